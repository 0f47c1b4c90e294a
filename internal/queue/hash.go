package queue

import (
	"encoding/binary"
	"math/bits"

	"github.com/sluicemq/sluice/internal/msg"
)

// hasher folds words into 64 bits. Not against adversaries: it compares replicas.
type hasher uint64

func (h *hasher) add(v uint64) {
	x := uint64(*h) ^ v*0x9e3779b97f4a7c15
	hi, lo := bits.Mul64(x^0xa0761d6478bd642f, bits.RotateLeft64(v, 32)^0xe7037ed1a0b428db)
	*h = hasher(bits.RotateLeft64(x, 23) ^ hi ^ lo)
}

func (h *hasher) addString(s string) {
	h.add(uint64(len(s)))
	var w [8]byte
	for len(s) > 0 {
		w = [8]byte{}
		s = s[copy(w[:], s):]
		h.add(binary.LittleEndian.Uint64(w[:]))
	}
}

func (h *hasher) addSet(s *Set) {
	h.add(s.count)
	for at := msg.Offset(0); ; {
		from, ok := s.NextSet(at)
		if !ok {
			return
		}
		at = s.NextClear(from)
		h.add(from)
		h.add(at)
	}
}

func (h *hasher) addCounts(s *counts) {
	if s == nil {
		return
	}
	for i := range s.parts { // runs are merged within their part: equal counts, equal runs
		base := s.parts[i].key << countBits
		for _, r := range s.parts[i].runs {
			h.add(base | uint64(r.first))
			h.add(uint64(r.last))
			h.add(uint64(r.n))
		}
	}
}

// Hash returns a hash of all that a log's state says, 0 for an unknown log. Equal states
// have equal hashes in whatever way they came about.
func (l *Ledger) Hash(log msg.LogID) uint64 {
	g := l.logs[log]
	if g == nil {
		return 0
	}
	h := hasher(log)
	h.addString(g.profile.raw)
	if g.sealed {
		h.add(1)
	}
	l.Lanes(log, func(number uint8, n *Lane) bool {
		h.add(uint64(number))
		h.add(n.tail)
		h.add(n.low)
		h.add(n.reserved)
		h.addSet(&n.settled)
		h.addCounts(n.counts)
		if s := l.heldIn(log, number); s != nil {
			h.addSet(s)
		}
		h.addBound(l.bound[laneID{log, number}])
		return true
	})
	if g.repeats != nil {
		h.addRepeats(g.repeats)
	}
	return max(uint64(h), 1)
}

func (h *hasher) addRepeats(r *repeats) {
	for p := r.producers.oldest; p != nil; p = p.newer {
		h.add(p.id)
		h.add(uint64(p.epoch))
		h.add(uint64(p.timeMS))
		if p.wrap {
			h.add(1)
		}
		for _, a := range p.last[:p.known] {
			h.add(a.first)
			h.add(a.n)
			h.add(a.off)
		}
	}
	for n := r.dedup.first; n < r.dedup.next; n++ {
		e := r.dedup.at(n)
		h.addString(e.id)
		h.add(e.off)
		h.add(uint64(e.timeMS))
	}
}

func (h *hasher) addHolds(x *holds) {
	for _, tx := range x.sorted() {
		h.add(uint64(tx.Node)<<32 | uint64(tx.Incarnation))
		h.add(tx.N)
		for _, p := range x.txs[tx] {
			h.add(p.Log)
			h.add(uint64(p.Lane))
			for _, r := range p.Ranges {
				h.add(r.First)
				h.add(r.Count)
			}
		}
	}
}

// HashAll returns a hash of the whole ledger.
func (l *Ledger) HashAll() uint64 {
	h := hasher(len(l.logs))
	for _, n := range l.settledBy {
		h.add(n)
	}
	h.addSet(&l.deleted)
	h.addHolds(&l.holds)
	sum := uint64(0) // of the logs, in whatever order
	for id := range l.logs {
		sum += l.Hash(id)
	}
	h.add(sum)
	return uint64(h)
}
