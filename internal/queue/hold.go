package queue

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

// laneID names a lane of the shard.
type laneID struct {
	log  msg.LogID
	lane uint8
}

// LaneRanges are offsets of one lane, sorted and disjoint.
type LaneRanges struct {
	Log    msg.LogID
	Lane   uint8
	Ranges []msg.Range
}

// holds is what transactions hold: messages that are settled if the transaction
// commits in another shard, and ready again if it doesn't.
type holds struct {
	// txs has what each transaction was given, in the order of its operations, until
	// Unhold or Sweep; what was settled since is still named.
	txs map[msg.TxID][]LaneRanges
	// lanes has what is held now. Invariant: only unsettled offsets; each belongs to
	// exactly one transaction; no set is empty.
	lanes     map[laneID]*Set
	changedIn uint32 // of txs; as logState.changedIn
}

// heldIn returns what transactions hold of a lane, nil if that is nothing. The set
// changes with the ledger until it is empty.
func (l *Ledger) heldIn(log msg.LogID, lane uint8) *Set { return l.holds.lanes[laneID{log, lane}] }

// HeldCount returns how many messages of a log transactions hold.
func (l *Ledger) HeldCount(log msg.LogID) (n uint64) {
	if len(l.holds.lanes) == 0 {
		return 0
	}
	l.Lanes(log, func(lane uint8, _ *Lane) bool {
		if s := l.heldIn(log, lane); s != nil {
			n += s.count
		}
		return true
	})
	return n
}

// touchHolds is called before each change of what transactions were given.
func (l *Ledger) touchHolds() {
	if l.isPending(l.holds.changedIn) {
		l.takeHolds()
	}
	l.holds.changedIn = l.epoch
}

func (l *Ledger) takeHolds() {
	l.holds.changedIn = 0
	l.put([]byte{keyHolds}, l.encodeHolds())
}

// Hold gives a transaction what is unsettled in ranges, which are sorted and disjoint,
// and not another's, and returns that. It ends when the offsets are settled, or by
// Unhold.
func (l *Ledger) Hold(tx msg.TxID, log msg.LogID, lane uint8, ranges []msg.Range) (newly []msg.Range) {
	_, n := l.at(log, lane)
	if n == nil {
		return nil
	}
	for _, r := range ranges {
		newly = n.AppendUnsettled(newly, r)
	}
	held := l.heldIn(log, lane)
	newly = without(newly, held)
	if len(newly) == 0 {
		return nil
	}
	l.touchHolds()
	if held == nil {
		held = &Set{}
		l.holds.lanes[laneID{log, lane}] = held
	}
	for _, r := range newly {
		held.AddRange(r.First, rangeEnd(r))
	}
	l.holds.txs[tx] = append(l.holds.txs[tx], LaneRanges{log, lane, newly})
	return newly
}

// without returns ranges less the members of s, which may be nil.
func without(ranges []msg.Range, s *Set) []msg.Range {
	if s == nil || s.count == 0 {
		return ranges
	}
	var out []msg.Range
	for _, r := range ranges {
		for at, end := r.First, rangeEnd(r); at < end; {
			at = s.NextClear(at)
			next, ok := s.NextSet(at)
			if !ok {
				next = end
			}
			if to := min(next, end); at < to {
				out = append(out, msg.Range{First: at, Count: to - at})
			}
			at = next
		}
	}
	return out
}

// Unhold ends a transaction's holds and returns what it still held, which is ready again.
func (l *Ledger) Unhold(tx msg.TxID) (released []LaneRanges) {
	parts, ok := l.holds.txs[tx]
	if !ok {
		return nil
	}
	l.touchHolds()
	delete(l.holds.txs, tx)
	for _, p := range parts {
		s := l.heldIn(p.Log, p.Lane)
		if s == nil {
			continue
		}
		var rs []msg.Range
		for _, r := range p.Ranges {
			rs = s.AppendRanges(rs, r.First, rangeEnd(r))
			s.RemoveRange(r.First, rangeEnd(r))
		}
		if s.count == 0 {
			delete(l.holds.lanes, laneID{p.Log, p.Lane})
		}
		if len(rs) > 0 {
			released = append(released, LaneRanges{p.Log, p.Lane, rs})
		}
	}
	return released
}

// Sweep ends what incarnations of a node before the given one left unfinished, and
// returns the messages that are ready again.
func (l *Ledger) Sweep(node, before uint32) (released []LaneRanges) {
	for _, tx := range l.holds.sorted() {
		if tx.Node == node && tx.Incarnation < before {
			released = append(released, l.Unhold(tx)...)
		}
	}
	return released
}

// AllFree reports whether all offsets of ranges are appended, unsettled and not held.
func (l *Ledger) AllFree(log msg.LogID, lane uint8, ranges []msg.Range) bool {
	_, n := l.at(log, lane)
	held := l.heldIn(log, lane)
	for _, r := range ranges {
		switch {
		case r.Count == 0:
		case n == nil, n.UnsettledIn(r) != r.Count:
			return false
		case held != nil && held.CountRange(r.First, rangeEnd(r)) > 0:
			return false
		}
	}
	return true
}

// settled takes offsets that were settled off what is held.
func (h *holds) settled(log msg.LogID, lane uint8, from, to msg.Offset) {
	id := laneID{log, lane}
	if s := h.lanes[id]; s != nil {
		if s.RemoveRange(from, to); s.count == 0 {
			delete(h.lanes, id)
		}
	}
}

func (h *holds) sorted() []msg.TxID {
	ids := make([]msg.TxID, 0, len(h.txs))
	for id := range h.txs {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b msg.TxID) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Incarnation, b.Incarnation), cmp.Compare(a.N, b.N))
	})
	return ids
}

// encodeHolds returns the value of the key of holds, nil when there are none.
func (l *Ledger) encodeHolds() []byte {
	if len(l.holds.txs) == 0 {
		return nil
	}
	b := binary.AppendUvarint([]byte{formatTable}, uint64(len(l.holds.txs)))
	for _, id := range l.holds.sorted() {
		b = binary.AppendUvarint(b, uint64(id.Node))
		b = binary.AppendUvarint(b, uint64(id.Incarnation))
		b = binary.AppendUvarint(b, id.N)
		parts := l.holds.txs[id]
		b = binary.AppendUvarint(b, uint64(len(parts)))
		for _, p := range parts {
			b = binary.AppendUvarint(b, p.Log)
			b = appendRanges(append(b, p.Lane), p.Ranges)
		}
	}
	return b
}

func (l *Ledger) restoreHolds(value []byte) error {
	clear(l.holds.txs)
	if value == nil {
		return nil
	}
	r := decoder{b: value}
	r.format(formatTable)
	for range r.count(4) {
		id := msg.TxID{Node: r.u32(), Incarnation: r.u32(), N: r.uv()}
		n := r.count(3)
		parts := make([]LaneRanges, 0, n)
		for range n {
			parts = append(parts, LaneRanges{Log: r.uv(), Lane: r.u8(), Ranges: r.ranges(offsetMax)})
		}
		if _, twice := l.holds.txs[id]; twice || n == 0 {
			r.fail("transaction")
		}
		l.holds.txs[id] = parts
	}
	return r.end()
}

// holdsRestored works out what is held when all logs are there.
func (l *Ledger) holdsRestored() error {
	for _, parts := range l.holds.txs {
		for _, p := range parts {
			_, n := l.at(p.Log, p.Lane)
			if n == nil {
				continue // deleted since
			}
			var open []msg.Range
			for _, r := range p.Ranges {
				open = n.AppendUnsettled(open, r)
			}
			if len(open) == 0 {
				continue
			}
			id := laneID{p.Log, p.Lane}
			s := l.holds.lanes[id]
			if s == nil {
				s = &Set{}
				l.holds.lanes[id] = s
			}
			for _, r := range open {
				if s.AddRange(r.First, rangeEnd(r)) != r.Count {
					return corrupt("message held by two transactions")
				}
			}
		}
	}
	return nil
}
