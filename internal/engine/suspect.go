package engine

import (
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/wal"
)

// suspect is the state of a replay that has passed over lost commands. What is lost may
// have appended, so from there on the offsets that later commands name need not be those
// that the replay gives. Nothing may be lost by that, so:
//
//   - messages are appended whatever the ledger has against it, also to logs whose
//     creation is lost; but for those that are in segments already, with the offsets that
//     they had
//   - settlements of what was appended since are passed over: those messages come again,
//     flagged as redelivered
//
// A checkpoint ends it before anything new is written, so that no entry of afterwards is
// ever replayed like this.
type suspect struct {
	tails   map[lane]msg.Offset // where the lanes ended at the first loss
	skipped uint64              // settlements passed over
}

// Lose begins the suspect state, if it has not begun.
func (m *Machine) Lose() {
	if m.suspect != nil {
		return
	}
	m.raiseTails()
	m.suspect = &suspect{tails: map[lane]msg.Offset{}}
	m.ledger.Logs(func(log msg.LogID) bool {
		m.ledger.Lanes(log, func(n uint8, ln *queue.Lane) bool {
			m.suspect.tails[lane{log, n}] = ln.Tail()
			return true
		})
		return true
	})
}

// certain returns the part of a command's ranges that surely means what it says.
func (s *suspect) certain(k lane, rs []msg.Range) []msg.Range {
	limit := s.tails[k]
	var out []msg.Range
	for _, r := range rs {
		end := min(r.First+r.Count, limit)
		if r.First < end {
			out = append(out, msg.Range{First: r.First, Count: end - r.First})
		}
		s.skipped += r.First + r.Count - max(r.First, end)
	}
	return out
}

// judge prepares an operation for being applied in suspect state; false if it is passed
// over.
func (m *Machine) judge(op *msg.Op, pos wal.Position) bool {
	switch op.Kind {
	case msg.OpAppend:
		if pos.Seq <= m.flushed {
			return false
		}
		for _, t := range op.Targets {
			m.ensureLost(t.Log)
			m.ledger.Unseal(t.Log)
		}
		op.Cond.ExpectTail = false
	case msg.OpSettle, msg.OpReturn, msg.OpHold, msg.OpRequire:
		op.Ranges = m.suspect.certain(lane{op.Log, op.Lane}, op.Ranges)
		return len(op.Ranges) > 0
	case msg.OpReserveExact:
		op.Kind = msg.OpReserve
	case msg.OpSeal:
		return false
	case msg.OpReserve, msg.OpEnsure, msg.OpDelete, msg.OpUnseal, msg.OpBodyPart, msg.OpTermStart,
		msg.OpMeta, msg.OpUnhold, msg.OpSweep:
	}
	return true
}

// endSuspect ends it after the replay.
func (m *Machine) endSuspect() {
	if m.suspect == nil {
		return
	}
	m.ledger.Logs(func(log msg.LogID) bool {
		m.ledger.Lanes(log, func(n uint8, ln *queue.Lane) bool {
			if ln.Tail() > m.suspect.tails[lane{log, n}] {
				m.ledger.Reserve(log, n, ln.Tail())
			}
			return true
		})
		return true
	})
	m.suspect = nil
}

// ensureLost makes a log whose creation is lost, false if it is not to be there. Logs of
// the shard's own are made by what they are for.
func (m *Machine) ensureLost(log msg.LogID) bool {
	switch {
	case m.ledger.Has(log):
		return true
	case m.ledger.IsDeleted(log), msg.IsInternal(log):
		return false
	}
	m.ledger.Ensure(log, queue.AppendProfile(nil, queue.Profile{}))
	return true
}

// raiseTails makes sure that lanes reach as far as segments and notes have messages of
// theirs: the entries with their appends may be lost. What lies in neither was settled when
// they were written.
func (m *Machine) raiseTails() {
	for k, l := range m.places.lanes {
		end := msg.Offset(0)
		if n := len(l.notes); n > 0 {
			end = l.notes[n-1].first + uint64(l.notes[n-1].count)
		}
		for _, r := range l.runs {
			end = max(end, r.Last+1)
		}
		if end == 0 || !m.ensureLost(k.log) {
			continue
		}
		from := msg.Offset(0)
		if ln, ok := m.ledger.Lane(k.log, k.lane); ok {
			from = ln.Tail()
		}
		m.ledger.RaiseTail(k.log, k.lane, end)
		for from < end {
			src, n := m.placeOf(l, from, end-from)
			if src == nowhereAt {
				m.ledger.Settle(k.log, k.lane, msg.Range{First: from, Count: n}, msg.Acked)
			}
			from += n
		}
	}
}

// unplaced lists what is not settled and lies nowhere, or in a part of the write-ahead
// log that can't be read.
func (m *Machine) unplaced() []badList {
	var out []badList
	bySub := map[uint64]*wal.Damage{}
	m.ledger.Logs(func(log msg.LogID) bool {
		m.ledger.Lanes(log, func(n uint8, ln *queue.Lane) bool {
			b := badList{log: log, lane: n}
			l := m.places.lanes[lane{log, n}]
			for _, r := range ln.AppendUnsettled(nil, msg.Range{First: 0, Count: ln.Tail()}) {
				m.unplacedIn(&b, l, r, bySub)
			}
			if len(b.list) > 0 {
				out = append(out, b)
			}
			return true
		})
		return true
	})
	return out
}
