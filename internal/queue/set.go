package queue

import (
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

const (
	chunkBits = 16
	chunkSize = 1 << chunkBits // offsets in a chunk
)

// chunk holds the members among the 65,536 offsets that share offset>>16 == key, or
// describes span consecutive chunks that are full. Only full ones span.
type chunk struct {
	key  uint64
	span uint64 // at least 1
	chunkData
	dirty  bool // changed since a checkpoint took it; means nothing when full
	shared bool // a checkpoint refers to the data: copy it before changing it
}

func (c *chunk) end() uint64 { return c.key + c.span }

// Set is a set of offsets in chunks. A chunk without members takes no memory, any
// number of consecutive full ones takes one entry, others are kept as runs or, where
// these would take more, as a bitmap of 8 KiB. There is no third form for sparse
// single offsets, as roaring bitmaps have: it would save at most half of the runs' 4 bytes.
//
// Ranges are half-open. Changing a range costs O(chunks that exist), not its length.
// The zero value is an empty set.
type Set struct {
	// Invariant: sorted by key, disjoint; none is empty; adjacent full ones are one.
	// Entries in the slack behind len keep a small runs buffer for reuse.
	chunks []chunk
	count  uint64
}

// find returns the index of the entry that covers key, or where it would be inserted.
func (s *Set) find(key uint64) (int, bool) {
	// Most sets have one or two entries and most accesses go to an end.
	lo, hi := 0, len(s.chunks)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if s.chunks[m].end() <= key {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo, lo < len(s.chunks) && s.chunks[lo].key <= key
}

// Count returns the number of members.
func (s *Set) Count() uint64 { return s.count }

// Contains reports whether off is a member.
func (s *Set) Contains(off msg.Offset) bool {
	i, ok := s.find(off >> chunkBits)
	return ok && s.chunks[i].contains(uint32(off%chunkSize))
}

// NextSet returns the first member at or after off.
func (s *Set) NextSet(off msg.Offset) (msg.Offset, bool) {
	key := off >> chunkBits
	i, ok := s.find(key)
	if ok {
		if p := s.chunks[i].nextSet(uint32(off % chunkSize)); p < chunkSize {
			return key<<chunkBits | uint64(p), true
		}
		i++
	}
	if i == len(s.chunks) {
		return 0, false
	}
	return s.chunks[i].key<<chunkBits | uint64(s.chunks[i].nextSet(0)), true
}

// NextClear returns the first offset at or after off that is not a member.
func (s *Set) NextClear(off msg.Offset) msg.Offset {
	key := off >> chunkBits
	p := uint32(off % chunkSize)
	i, ok := s.find(key)
	for ok {
		c := &s.chunks[i]
		if !c.full() {
			if q := c.nextClear(p); q < chunkSize {
				return key<<chunkBits | uint64(q)
			}
		}
		key, p = c.end(), 0
		i++
		ok = i < len(s.chunks) && s.chunks[i].key == key
	}
	return key<<chunkBits | uint64(p)
}

// CountRange returns the number of members in [from, to).
func (s *Set) CountRange(from, to msg.Offset) uint64 {
	if from >= to || s.count == 0 {
		return 0
	}
	n := uint64(0)
	i, _ := s.find(from >> chunkBits)
	for ; i < len(s.chunks) && s.chunks[i].key<<chunkBits < to; i++ {
		c := &s.chunks[i]
		lo := max(from, c.key<<chunkBits)
		if c.full() {
			n += min(to-1, c.end()<<chunkBits-1) - lo + 1
			continue
		}
		last := min(to-1, c.key<<chunkBits|(chunkSize-1))
		n += uint64(c.countIn(uint32(lo%chunkSize), uint32(last%chunkSize)))
	}
	return n
}

// AddRange adds [from, to) and returns how many of it weren't members.
func (s *Set) AddRange(from, to msg.Offset) (added uint64) {
	if from >= to {
		return 0
	}
	first, last := from>>chunkBits, (to-1)>>chunkBits
	lo, hi := uint32(from%chunkSize), uint32((to-1)%chunkSize)
	if first == last {
		added = s.addIn(first, lo, hi)
		s.count += added
		return added
	}
	if lo > 0 {
		added += s.addIn(first, lo, chunkSize-1)
		first++
	}
	if hi < chunkSize-1 {
		added += s.addIn(last, 0, hi)
		last--
	}
	if first <= last {
		added += s.fill(first, last+1)
	}
	s.count += added
	return added
}

// addIn adds lo to hi, both included, in one chunk.
func (s *Set) addIn(key uint64, lo, hi uint32) uint64 {
	i, ok := s.find(key)
	if ok && s.chunks[i].full() {
		return 0
	}
	if !ok {
		s.insert(i, key)
	}
	c := &s.chunks[i]
	c.own()
	n := c.add(lo, hi)
	if n > 0 {
		c.dirty = true
		if c.full() {
			s.join(i)
		}
	}
	return uint64(n)
}

// fill makes the chunks of [key, end) full.
func (s *Set) fill(key, end uint64) (added uint64) {
	added = (end - key) << chunkBits
	i, _ := s.find(key)
	j := i
	for ; j < len(s.chunks) && s.chunks[j].key < end; j++ {
		c := &s.chunks[j]
		if c.full() {
			k, e := max(key, c.key), min(end, c.end())
			added -= (e - k) << chunkBits
			key, end = min(key, c.key), max(end, c.end())
			continue
		}
		added -= uint64(c.n)
	}
	if i == j {
		s.insert(i, key)
	} else {
		s.remove(i+1, j)
	}
	c := &s.chunks[i]
	c.key, c.span = key, end-key
	c.fillAll(c.shared)
	c.dirty, c.shared = false, false
	s.join(i)
	return added
}

// join merges entry i, which is full, with full neighbors.
func (s *Set) join(i int) {
	if i+1 < len(s.chunks) && s.chunks[i+1].full() && s.chunks[i].end() == s.chunks[i+1].key {
		s.chunks[i].span += s.chunks[i+1].span
		s.remove(i+1, i+2)
	}
	if i > 0 && s.chunks[i-1].full() && s.chunks[i-1].end() == s.chunks[i].key {
		s.chunks[i-1].span += s.chunks[i].span
		s.remove(i, i+1)
	}
}

// RemoveRange removes [from, to) and returns how many of it were members.
func (s *Set) RemoveRange(from, to msg.Offset) (removed uint64) {
	if from >= to || s.count == 0 {
		return 0
	}
	first, last := from>>chunkBits, (to-1)>>chunkBits
	lo, hi := uint32(from%chunkSize), uint32((to-1)%chunkSize)
	if first == last {
		removed = s.removeIn(first, lo, hi)
		s.count -= removed
		return removed
	}
	if lo > 0 {
		removed += s.removeIn(first, lo, chunkSize-1)
		first++
	}
	if hi < chunkSize-1 {
		removed += s.removeIn(last, 0, hi)
		last--
	}
	if first <= last {
		removed += s.clear(first, last+1)
	}
	s.count -= removed
	return removed
}

// TrimBelow removes everything below off.
func (s *Set) TrimBelow(off msg.Offset) {
	if s.count > 0 {
		s.RemoveRange(0, off)
	}
}

// removeIn removes lo to hi, both included, in one chunk.
func (s *Set) removeIn(key uint64, lo, hi uint32) uint64 {
	i, ok := s.find(key)
	if !ok {
		return 0
	}
	if lo == 0 && hi == chunkSize-1 {
		return s.clear(key, key+1)
	}
	if s.chunks[i].full() {
		i = s.isolate(i, key)
	}
	c := &s.chunks[i]
	c.own()
	n := c.remove(lo, hi)
	if n > 0 {
		c.dirty = true
		if c.n == 0 {
			s.remove(i, i+1)
		}
	}
	return uint64(n)
}

// isolate cuts the chunk key out of the full entry i and returns its index.
func (s *Set) isolate(i int, key uint64) int {
	before, after := key-s.chunks[i].key, s.chunks[i].end()-key-1
	if before > 0 {
		s.insert(i, s.chunks[i].key)
		s.chunks[i].span = before
		s.chunks[i].fillAll(false)
		i++
		s.chunks[i].key, s.chunks[i].span = key, after+1
	}
	if after > 0 {
		s.insert(i, key)
		s.chunks[i].fillAll(false)
		s.chunks[i+1].key, s.chunks[i+1].span = key+1, after
	}
	return i
}

// clear removes the chunks of [key, end).
func (s *Set) clear(key, end uint64) (removed uint64) {
	i, ok := s.find(key)
	if ok && s.chunks[i].key < key { // a full entry begins before
		c := &s.chunks[i]
		if cut := c.end(); cut > end {
			s.isolate(i, key)
			// What follows the isolated chunk is an entry of its own now.
			return s.clear(key, end)
		}
		removed += (c.end() - key) << chunkBits
		c.span = key - c.key
		i++
	}
	j := i
	for ; j < len(s.chunks) && s.chunks[j].key < end; j++ {
		c := &s.chunks[j]
		if c.end() > end {
			removed += (end - c.key) << chunkBits
			c.span = c.end() - end
			c.key = end
			break
		}
		removed += c.span * uint64(c.n)
	}
	s.remove(i, j)
	return removed
}

// insert makes room for an empty chunk at index i; the caller puts members in.
func (s *Set) insert(i int, key uint64) {
	n := len(s.chunks)
	if n == cap(s.chunks) {
		s.chunks = slices.Grow(s.chunks, max(1, n/2))
	}
	s.chunks = s.chunks[:n+1]
	spare := s.chunks[n].runs[:0]
	copy(s.chunks[i+1:], s.chunks[i:n])
	s.chunks[i] = chunk{key: key, span: 1, chunkData: chunkData{runs: spare}, dirty: true}
}

// remove drops the entries of [i, j).
func (s *Set) remove(i, j int) {
	if i == j {
		return
	}
	var spare []run
	if c := &s.chunks[i]; !c.shared && cap(c.runs) <= spareRunsMax {
		spare = c.runs[:0]
	}
	n := copy(s.chunks[i:], s.chunks[j:]) + i
	clear(s.chunks[n:])
	s.chunks[n].runs = spare
	s.chunks = s.chunks[:n]
	if n == 0 && cap(s.chunks) > spareChunksMax {
		s.chunks = nil
	}
}

// AppendRanges appends the members within [from, to) to dst as ranges, merging the
// first with dst's last where they touch.
func (s *Set) AppendRanges(dst []msg.Range, from, to msg.Offset) []msg.Range {
	for from < to {
		f, ok := s.NextSet(from)
		if !ok || f >= to {
			break
		}
		e := min(s.NextClear(f), to)
		dst = appendRange(dst, f, e)
		from = e
	}
	return dst
}

func appendRange(dst []msg.Range, from, to msg.Offset) []msg.Range {
	if n := len(dst); n > 0 && dst[n-1].First+dst[n-1].Count == from {
		dst[n-1].Count += to - from
		return dst
	}
	return append(dst, msg.Range{First: from, Count: to - from})
}
