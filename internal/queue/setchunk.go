package queue

import (
	"math/bits"
	"slices"
)

const (
	runsMax        = 2048 // runs of a chunk; as many take the 8 KiB of a bitmap
	sparseMax      = 1024 // members, or gaps, at which a bitmap becomes runs again
	spareRunsMax   = 16   // largest runs buffer that an emptied entry keeps
	spareChunksMax = 16   // largest entry buffer that an emptied set keeps
	bitmapWords    = chunkSize / 64
)

// run is the members first to last, both included.
type run struct{ first, last uint16 }

type bitmap [bitmapWords]uint64

// chunkData holds the members of one chunk: all of them when n is chunkSize (then runs
// and bits are unused), else bits if it isn't nil, else runs: sorted, disjoint, not
// touching.
type chunkData struct {
	n    uint32
	runs []run
	bits *bitmap
}

func (c *chunkData) full() bool { return c.n == chunkSize }

// own prepares the chunk for a change while a checkpoint may refer to its data.
func (c *chunk) own() {
	if !c.shared {
		return
	}
	c.shared = false
	if c.bits != nil {
		b := *c.bits
		c.bits = &b
	}
	c.runs = slices.Clone(c.runs)
}

// fillAll makes the chunk full; discard says that its buffer must not be reused.
func (c *chunkData) fillAll(discard bool) {
	c.n, c.bits = chunkSize, nil
	if discard || cap(c.runs) > spareRunsMax {
		c.runs = nil
	}
}

// runAt returns the index of the first run whose last is at or after p.
func (c *chunkData) runAt(p uint32) int {
	lo, hi := 0, len(c.runs)
	if hi > 0 && uint32(c.runs[hi-1].last) < p { // appending at the end is the usual case
		return hi
	}
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if uint32(c.runs[m].last) < p {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

func (c *chunkData) contains(p uint32) bool {
	switch {
	case c.full():
		return true
	case c.bits != nil:
		return c.bits[p/64]>>(p%64)&1 == 1
	}
	i := c.runAt(p)
	return i < len(c.runs) && uint32(c.runs[i].first) <= p
}

// nextSet returns the first member at or after p, or chunkSize.
func (c *chunkData) nextSet(p uint32) uint32 {
	switch {
	case c.full():
		return p
	case c.bits != nil:
		return c.bits.next(p, 0)
	}
	i := c.runAt(p)
	if i == len(c.runs) {
		return chunkSize
	}
	return max(p, uint32(c.runs[i].first))
}

// nextClear returns the first offset at or after p that is no member, or chunkSize.
func (c *chunkData) nextClear(p uint32) uint32 {
	switch {
	case c.full():
		return chunkSize
	case c.bits != nil:
		return c.bits.next(p, ^uint64(0))
	}
	i := c.runAt(p)
	if i == len(c.runs) || uint32(c.runs[i].first) > p {
		return p
	}
	return uint32(c.runs[i].last) + 1
}

// countIn returns the number of members from lo to hi, both included.
func (c *chunkData) countIn(lo, hi uint32) uint32 {
	switch {
	case c.full():
		return hi - lo + 1
	case c.bits != nil:
		return c.bits.count(lo, hi)
	}
	n := uint32(0)
	for _, r := range c.runs[c.runAt(lo):] {
		if uint32(r.first) > hi {
			break
		}
		n += min(hi, uint32(r.last)) - max(lo, uint32(r.first)) + 1
	}
	return n
}

// add adds lo to hi, both included, to a chunk that isn't full, and returns how many
// were new.
func (c *chunkData) add(lo, hi uint32) uint32 {
	if c.bits != nil {
		n := hi - lo + 1 - c.bits.count(lo, hi)
		c.bits.set(lo, hi)
		c.n += n
		if c.full() {
			c.fillAll(false)
		} else if c.n >= chunkSize-sparseMax {
			c.toRuns()
		}
		return n
	}
	// Runs i to j-1 overlap or touch the new one.
	i := c.runAt(max(lo, 1) - 1)
	j := i
	n := hi - lo + 1
	first, last := lo, hi
	for ; j < len(c.runs) && uint32(c.runs[j].first) <= hi+1; j++ {
		f, l := uint32(c.runs[j].first), uint32(c.runs[j].last)
		if a, b := max(f, lo), min(l, hi); a <= b {
			n -= b - a + 1
		}
		first, last = min(first, f), max(last, l)
	}
	merged := run{uint16(first), uint16(last)}
	if i == j {
		c.runs = slices.Insert(c.runs, i, merged)
	} else {
		c.runs[i] = merged
		c.runs = slices.Delete(c.runs, i+1, j)
		c.shrink()
	}
	c.n += n
	if c.full() {
		c.fillAll(false)
	} else if len(c.runs) > runsMax {
		c.toBits()
	}
	return n
}

// remove removes lo to hi, both included, and returns how many were members.
func (c *chunkData) remove(lo, hi uint32) uint32 {
	if c.full() {
		c.runs = append(c.runs[:0], run{0, chunkSize - 1})
	}
	if c.bits != nil {
		n := c.bits.count(lo, hi)
		c.bits.unset(lo, hi)
		c.n -= n
		if c.n <= sparseMax {
			c.toRuns()
		}
		return n
	}
	i := c.runAt(lo)
	j := i
	n := uint32(0)
	var rest [2]run // what remains of the first and the last run touched
	k := 0
	for ; j < len(c.runs) && uint32(c.runs[j].first) <= hi; j++ {
		f, l := uint32(c.runs[j].first), uint32(c.runs[j].last)
		n += min(l, hi) - max(f, lo) + 1
		if f < lo {
			rest[k] = run{uint16(f), uint16(lo - 1)}
			k++
		}
		if l > hi {
			rest[k] = run{uint16(hi + 1), uint16(l)}
			k++
		}
	}
	if n > 0 {
		c.runs = slices.Replace(c.runs, i, j, rest[:k]...)
		c.shrink()
		c.n -= n
		if len(c.runs) > runsMax {
			c.toBits()
		}
	}
	return n
}

// shrink gives back a buffer of which little is used any more.
func (c *chunkData) shrink() {
	if cap(c.runs) > 4*spareRunsMax && len(c.runs) < cap(c.runs)/3 {
		c.runs = append(make([]run, 0, len(c.runs)+len(c.runs)/2), c.runs...)
	}
}

func (c *chunkData) toBits() {
	b := new(bitmap)
	for _, r := range c.runs {
		b.set(uint32(r.first), uint32(r.last))
	}
	c.bits, c.runs = b, nil
}

func (c *chunkData) toRuns() {
	b := c.bits
	c.bits, c.runs = nil, nil
	for p := b.next(0, 0); p < chunkSize; {
		e := b.next(p, ^uint64(0))
		c.runs = append(c.runs, run{uint16(p), uint16(e - 1)})
		if e == chunkSize {
			break
		}
		p = b.next(e, 0)
	}
}

// next returns the first position at or after p whose bit is set in the words xor
// flip, or chunkSize.
func (b *bitmap) next(p uint32, flip uint64) uint32 {
	if p >= chunkSize {
		return chunkSize
	}
	w := p / 64
	if v := (b[w] ^ flip) >> (p % 64); v != 0 {
		return p + uint32(bits.TrailingZeros64(v))
	}
	for w++; w < bitmapWords; w++ {
		if v := b[w] ^ flip; v != 0 {
			return w*64 + uint32(bits.TrailingZeros64(v))
		}
	}
	return chunkSize
}

// masks returns the masks of the first and the last word of lo to hi.
func masks(lo, hi uint32) (first, last uint64) {
	return ^uint64(0) << (lo % 64), ^uint64(0) >> (63 - hi%64)
}

func (b *bitmap) set(lo, hi uint32) {
	f, l := masks(lo, hi)
	i, j := lo/64, hi/64
	if i == j {
		b[i] |= f & l
		return
	}
	b[i] |= f
	for i++; i < j; i++ {
		b[i] = ^uint64(0)
	}
	b[j] |= l
}

func (b *bitmap) unset(lo, hi uint32) {
	f, l := masks(lo, hi)
	i, j := lo/64, hi/64
	if i == j {
		b[i] &^= f & l
		return
	}
	b[i] &^= f
	for i++; i < j; i++ {
		b[i] = 0
	}
	b[j] &^= l
}

func (b *bitmap) count(lo, hi uint32) uint32 {
	f, l := masks(lo, hi)
	i, j := lo/64, hi/64
	if i == j {
		return uint32(bits.OnesCount64(b[i] & f & l))
	}
	n := bits.OnesCount64(b[i]&f) + bits.OnesCount64(b[j]&l)
	for i++; i < j; i++ {
		n += bits.OnesCount64(b[i])
	}
	return uint32(n)
}
