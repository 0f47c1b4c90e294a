package queue

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
)

// crash keeps the ledger, with some of what was submitted, and nothing else.
func (m *dispatchMachine) crash(t *rapid.T) {
	if rapid.IntRange(0, 5).Draw(t, "really") > 0 {
		return
	}
	if rapid.Bool().Draw(t, "clean") {
		m.commit(len(m.queue))
		m.d.ExactReserves(func(log msg.LogID, lane uint8, upto msg.Offset) { m.l.ReserveExact(log, lane, upto) })
	} else {
		m.commit(rapid.IntRange(0, len(m.queue)).Draw(t, "applied"))
	}
	m.queue, m.held, m.consumers, m.away = nil, nil, nil, nil
	for _, p := range m.pools {
		p.starved, p.room = false, simMessagesRoom
	}
	m.term++
	if rapid.Bool().Draw(t, "same") {
		m.d.Start(false)
	} else {
		m.d = NewDispatch(m.l, m)
	}
	for k, s := range m.lanes {
		ln, _ := m.l.Lane(k.log, k.lane)
		s.mark, s.asked = ln.Reserved(), false
		fresh := 0
		for i := range s.messages {
			x := &s.messages[i]
			if x.state == simSettled || x.state == simTx {
				continue
			}
			x.state, x.holder = simReady, nil
			if x.term > 0 && msg.Offset(i) >= s.mark {
				t.Fatalf("%d was delivered and is not below the mark %d", i, s.mark)
			}
			if x.term == 0 && msg.Offset(i) < s.mark {
				fresh++
			}
		}
		if fresh > MaxReserveWindow {
			t.Fatalf("%d fresh messages will be flagged", fresh)
		}
	}
}

func (m *dispatchMachine) counts(log msg.LogID) (c Counts) {
	for _, lane := range []uint8{0, 5, 9} {
		if s := m.lanes[laneKey{log, lane}]; s != nil {
			for i := range s.messages {
				switch s.messages[i].state {
				case simReady:
					c.Ready++
				case simInFlight:
					c.Unacked++
				case simUnclaimed:
					c.Unclaimed++
				}
			}
		}
	}
	for _, o := range m.consumers {
		if o.attached && o.Log == log {
			c.Consumers++
		}
	}
	return c
}

func (m *dispatchMachine) check(t *rapid.T) {
	m.kick()
	used := 0
	for log := msg.LogID(1); log <= simLogs; log++ {
		if got, want := m.d.Counts(log), m.counts(log); got != want {
			t.Fatalf("counts of %d: %+v, want %+v", log, got, want)
		}
	}
	for _, c := range slices.Concat(m.consumers, m.away) {
		if c.Messages != nil && !c.NoAck {
			used += c.inFlight
		}
	}
	if p := m.pools[0]; p.room+int64(used) != simMessagesRoom {
		t.Fatalf("messages pool has %d, %d are in flight", p.room, used)
	}
	for k, s := range m.lanes {
		ln, _ := m.l.Lane(k.log, k.lane)
		fresh := len(s.messages)
		for i := range s.messages {
			if s.messages[i].state != simSettled && s.messages[i].term == 0 {
				fresh = i
				break
			}
		}
		if limit := uint64(fresh) + MaxReserveWindow; ln.Reserved() > limit {
			t.Fatalf("reserved %d, the first never delivered is %d", ln.Reserved(), fresh)
		}
	}
}

// settle lets everything take its course and finds stalls.
func (m *dispatchMachine) quiesce(t *rapid.T) {
	for range 1000 {
		m.kick()
		more := m.runFor(t, 1000)
		m.ask(t)
		if n := len(m.queue); n > 0 {
			m.commit(n)
			continue
		}
		if !more && m.delivered == 0 {
			break
		}
	}
	if len(m.queue) > 0 {
		t.Fatal("never comes to rest")
	}
	for _, c := range m.consumers {
		if !c.attached || c.Prefetch > 0 && !c.NoAck && c.inFlight >= int(c.Prefetch) {
			continue
		}
		if p, ok := c.Messages.(*simPool); ok && p.room <= 0 && !c.NoAck {
			continue
		}
		if p, ok := c.Bytes.(*simPool); ok && p.room <= 0 {
			continue
		}
		k, off, ok := m.firstReady(c.Log)
		if !ok || m.counts(c.Log).Unclaimed > 0 {
			continue
		}
		if slices.ContainsFunc(m.held, func(h simOp) bool { return h.key == k }) {
			continue // the reservation may wait for the purge
		}
		t.Fatalf("stall: %d of %v is ready for consumer %d: %s", off, k, c.ID, describe(&c.Consumer))
	}
}

func describe(c *Consumer) string {
	return fmt.Sprintf("prefetch %d in flight %d in line %v starved %v", c.Prefetch, c.inFlight, c.inLine, c.starved)
}

func TestDispatchModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newDispatchMachine()
		t.Repeat(map[string]func(*rapid.T){
			"append": m.append, "append2": m.append, "attach": m.attach, "attach2": m.attach, "detach": m.detach,
			"ack": m.ack, "ack2": m.ack, "get": m.get, "run": m.run, "run2": m.run, "run3": m.run,
			"return": func(t *rapid.T) { m.giveBack(t, m.consumer(t), false) },
			"ask":    m.ask, "lose": m.lose,
			"commit":  func(t *rapid.T) { m.commit(rapid.IntRange(1, 5).Draw(t, "n")) },
			"commit2": func(t *rapid.T) { m.commit(len(m.queue)) },
			"beginTx": m.beginTx, "endTx": m.endTx, "holdLate": m.holdLate,
			"purge": m.purge, "endPurge": m.endPurge, "room": m.room, "drop": m.drop, "late": m.late, "crash": m.crash,
			"move": m.move, "back": m.back, "back2": m.back, "resend": m.resend, "endGather": m.endGather,
			"quiesce": m.quiesce,
			"":        m.check,
		})
	})
}
