package queue

import (
	"math"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

const (
	// Counts are random more often than settled sets, and their runs are larger: small
	// chunks keep an insertion cheap. 4,096 offsets take 24 KiB at the very worst.
	countBits  = 12
	countChunk = 1 << countBits
)

// countRun says that the offsets first to last of a chunk, both included, have count n > 0.
type countRun struct{ first, last, n uint16 }

type countPart struct {
	key    uint64 // offset >> countBits
	runs   []countRun
	dirty  bool // changed since a checkpoint took it
	shared bool // a checkpoint refers to runs: copy them before changing one
}

// counts maps offsets to delivery counts; those with count 0 take nothing, what was
// returned together takes 6 bytes together. Counts stop at 65,535.
type counts struct {
	// Invariant: sorted by key, none without runs; runs sorted, disjoint, and
	// neighbors that touch differ in n.
	parts []countPart
}

func (s *counts) find(key uint64) (int, bool) {
	return slices.BinarySearchFunc(s.parts, key, func(p countPart, k uint64) int {
		switch {
		case p.key < k:
			return -1
		case p.key > k:
			return 1
		}
		return 0
	})
}

// get returns the count of off and the first offset after off that may have another
// one.
func (s *counts) get(off msg.Offset) (n uint32, end msg.Offset) {
	i, ok := s.find(off >> countBits)
	if ok {
		p := &s.parts[i]
		j := p.runAt(uint32(off % countChunk))
		if j < len(p.runs) {
			r := p.runs[j]
			if f := p.key<<countBits | uint64(r.first); off < f {
				return 0, f
			}
			return uint32(r.n), p.key<<countBits | uint64(r.last) + 1
		}
		return 0, (p.key + 1) << countBits
	}
	if i < len(s.parts) {
		return 0, s.parts[i].key<<countBits | uint64(s.parts[i].runs[0].first)
	}
	return 0, math.MaxUint64
}

// raise adds one to the counts of [from, to).
func (s *counts) raise(from, to msg.Offset) {
	for from < to {
		key := from >> countBits
		end := min(to, (key+1)<<countBits)
		i, ok := s.find(key)
		if !ok {
			s.parts = slices.Insert(s.parts, i, countPart{key: key})
		}
		p := &s.parts[i]
		p.own()
		p.raise(uint32(from%countChunk), uint32((end-1)%countChunk))
		from = end
	}
}

// remove forgets the counts of [from, to).
func (s *counts) remove(from, to msg.Offset) {
	i, _ := s.find(from >> countBits)
	j, k := i, i // parts of [j, k) go as a whole
	for ; k < len(s.parts); k++ {
		p := &s.parts[k]
		base := p.key << countBits
		if base >= to {
			break
		}
		lo, hi := max(from, base), min(to-1, base|(countChunk-1))
		p.own()
		p.remove(uint32(lo%countChunk), uint32(hi%countChunk))
		if len(p.runs) > 0 {
			s.parts[j], s.parts[k] = s.parts[k], s.parts[j]
			j++
		}
	}
	if j < k {
		s.parts = slices.Delete(s.parts, j, k)
	}
}

func (p *countPart) own() {
	if p.shared {
		p.runs, p.shared = slices.Clone(p.runs), false
	}
	p.dirty = true
}

// runAt returns the index of the first run whose last is at or after pos.
func (p *countPart) runAt(pos uint32) int {
	lo, hi := 0, len(p.runs)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if uint32(p.runs[m].last) < pos {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// split makes pos the first of a run if it lies inside one, and returns the index of
// the first run at or after pos.
func (p *countPart) split(pos uint32) int {
	i := p.runAt(pos)
	if i < len(p.runs) && uint32(p.runs[i].first) < pos {
		r := p.runs[i]
		p.runs[i].last = uint16(pos - 1)
		r.first = uint16(pos)
		i++
		p.runs = slices.Insert(p.runs, i, r)
	}
	return i
}

func (p *countPart) raise(lo, hi uint32) {
	p.split(hi + 1)
	i := p.split(lo)
	start := i
	for pos := lo; pos <= hi; i++ {
		if i < len(p.runs) && uint32(p.runs[i].first) == pos {
			r := &p.runs[i]
			r.n = min(r.n, math.MaxUint16-1) + 1
			pos = uint32(r.last) + 1
			continue
		}
		end := hi
		if i < len(p.runs) {
			end = min(end, uint32(p.runs[i].first)-1)
		}
		p.runs = slices.Insert(p.runs, i, countRun{uint16(pos), uint16(end), 1})
		pos = end + 1
	}
	p.merge(max(start, 1)-1, min(i+1, len(p.runs)))
}

// merge joins touching runs with equal counts among those of [i, j).
func (p *countPart) merge(i, j int) {
	w := i
	for r := i + 1; r < j; r++ {
		a, b := &p.runs[w], p.runs[r]
		if a.n == b.n && uint32(a.last)+1 == uint32(b.first) {
			a.last = b.last
			continue
		}
		w++
		p.runs[w] = b
	}
	if w+1 < j {
		p.runs = slices.Delete(p.runs, w+1, j)
	}
}

func (p *countPart) remove(lo, hi uint32) {
	j := p.split(hi + 1)
	n := len(p.runs)
	i := p.split(lo)
	j += len(p.runs) - n
	p.runs = slices.Delete(p.runs, i, j)
}
