package queue

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
)

// Transactions in the model of the dispatch: messages that a consumer acknowledged are
// given to one by an operation, which is applied later, perhaps in a later term.

// beginTx acknowledges something in a transaction.
func (m *dispatchMachine) beginTx(t *rapid.T) {
	c := m.consumer(t)
	m.holding(c, func(k laneKey, s *simLane, offs []msg.Offset) {
		offs = some(t, offs)
		for _, o := range offs {
			s.messages[o].state = simLeaving
		}
		c.inFlight -= len(offs)
		m.d.Acked(&c.Consumer, k.log, k.lane, uint64(len(offs)))
		m.nextTx++
		m.queue = append(m.queue, simOp{key: k, ranges: toRanges(offs), hold: msg.TxID{Node: 1, N: m.nextTx}, by: c})
	})
}

// holdLate holds something that is ready: the transaction began in an earlier term.
func (m *dispatchMachine) holdLate(t *rapid.T) {
	k := m.key(t)
	s := m.lanes[k]
	if s == nil {
		return
	}
	var offs []msg.Offset
	for i := range s.messages {
		if x := s.messages[i]; x.state == simReady && x.term > 0 && x.term < m.term {
			offs = append(offs, msg.Offset(i))
		}
	}
	if len(offs) == 0 {
		return
	}
	m.nextTx++
	m.applyHold(simOp{key: k, ranges: toRanges(some(t, offs)), hold: msg.TxID{Node: 1, N: m.nextTx}})
}

func (m *dispatchMachine) applyHold(o simOp) {
	s := m.lanes[o.key]
	for _, r := range o.ranges {
		for i := r.First; i < r.First+r.Count; i++ {
			s.messages[i].state = simTx
		}
	}
	m.d.Hold(o.key.log, o.key.lane, m.l.Hold(o.hold, o.key.log, o.key.lane, o.ranges))
	m.txs = append(m.txs, o)
}

// endTx settles what a transaction holds, or gives it up.
func (m *dispatchMachine) endTx(t *rapid.T) {
	if len(m.txs) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.txs)-1).Draw(t, "tx")
	o := m.txs[i]
	m.txs = slices.Delete(m.txs, i, i+1)
	if rapid.Bool().Draw(t, "commit") {
		m.queue = append(m.queue, simOp{key: o.key, ranges: o.ranges})
	}
	m.queue = append(m.queue, simOp{key: o.key, unhold: o.hold})
}

func (m *dispatchMachine) applyUnhold(tx msg.TxID) {
	for _, p := range m.l.Unhold(tx) {
		s := m.lanes[laneKey{p.Log, p.Lane}]
		for _, r := range p.Ranges {
			for i := r.First; i < r.First+r.Count; i++ {
				s.messages[i].state, s.messages[i].holder = simReady, nil
			}
		}
		m.d.Release(p.Log, p.Lane, p.Ranges)
	}
}

// A hold of the last term that is applied when the message is in flight again: what its
// new holder gives back stays hidden until the hold ends.
func TestHoldOfWhatIsInFlight(t *testing.T) {
	m := newDispatchMachine()
	m.l.Append(1, 0, 3, nil)
	m.l.Reserve(1, 0, 10)
	c := &Consumer{ID: 1, Log: 1, User: &simConsumer{}}
	if err := m.d.Attach(c); err != nil {
		t.Fatal(err)
	}
	var got []msg.Offset
	run := func() []msg.Offset {
		got = nil
		m.d.Run(100, func(d *Delivery) {
			for i := range uint64(d.Count) {
				got = append(got, d.First+i)
			}
		})
		return got
	}
	if run(); len(got) != 3 {
		t.Fatalf("delivered %v", got)
	}
	tx := msg.TxID{Node: 1, N: 1}
	m.d.Hold(1, 0, m.l.Hold(tx, 1, 0, []msg.Range{{First: 1, Count: 1}}))
	m.d.Return(c, 1, 0, []msg.Range{{First: 0, Count: 3}})
	if run(); !slices.Equal(got, []msg.Offset{0, 2}) {
		t.Fatalf("delivered %v while 1 is held", got)
	}
	for _, p := range m.l.Unhold(tx) {
		m.d.Release(p.Log, p.Lane, p.Ranges)
	}
	if run(); !slices.Equal(got, []msg.Offset{1}) {
		t.Fatalf("delivered %v after the hold", got)
	}
	if n := m.d.Counts(1); n != (Counts{Unacked: 3, Consumers: 1}) {
		t.Fatalf("%+v", n)
	}
}
