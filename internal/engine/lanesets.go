package engine

import (
	"cmp"
	"maps"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
)

// laneSets are offsets of several lanes.
type laneSets map[lane]*queue.Set

func (ls laneSets) add(log msg.LogID, n uint8, rs []msg.Range) {
	if len(rs) == 0 {
		return
	}
	k := lane{log, n}
	if ls[k] == nil {
		ls[k] = &queue.Set{}
	}
	for _, r := range rs {
		ls[k].AddRange(r.First, r.First+r.Count)
	}
}

// take removes what is there of rs and returns it.
func (ls laneSets) take(log msg.LogID, n uint8, rs []msg.Range) (taken []msg.Range) {
	k := lane{log, n}
	s := ls[k]
	if s == nil {
		return nil
	}
	for _, r := range rs {
		taken = s.AppendRanges(taken, r.First, r.First+r.Count)
		s.RemoveRange(r.First, r.First+r.Count)
	}
	if s.Count() == 0 {
		delete(ls, k)
	}
	return taken
}

// lanes lists them in order.
func (ls laneSets) lanes() []lane {
	return slices.SortedFunc(maps.Keys(ls), func(a, b lane) int {
		return cmp.Or(cmp.Compare(a.log, b.log), cmp.Compare(a.lane, b.lane))
	})
}

// unhide makes ready again what of it is unsettled.
func (ls laneSets) unhide(m *Machine) {
	for _, k := range ls.lanes() {
		m.unhide(k.log, k.lane, ls[k].AppendRanges(nil, 0, queue.NoOffset))
	}
	clear(ls)
}

// unhide makes hidden messages ready again, if they are unsettled.
func (m *Machine) unhide(log msg.LogID, n uint8, rs []msg.Range) {
	ln, ok := m.ledger.Lane(log, n)
	if !ok {
		return
	}
	var free []msg.Range
	for _, r := range rs {
		free = ln.AppendUnsettled(free, r)
	}
	m.dispatch.Release(log, n, free)
}

// without returns what of ranges is in none of others.
func without(ranges []msg.Range, others ...[]msg.Range) []msg.Range {
	var s queue.Set
	for _, r := range ranges {
		s.AddRange(r.First, r.First+r.Count)
	}
	for _, rs := range others {
		for _, r := range rs {
			s.RemoveRange(r.First, r.First+r.Count)
		}
	}
	return s.AppendRanges(nil, 0, queue.NoOffset)
}

// inLane returns the ranges of the claims to a lane.
func inLane(claims []Claim, n uint8) (rs []msg.Range) {
	for _, h := range claims {
		if h.Lane == n {
			rs = append(rs, h.Ranges...)
		}
	}
	return rs
}
