package queue

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
)

// move changes the leader: what was submitted and not applied is submitted again, but for
// the leader's own reservations; consumers live on, or die.
func (m *dispatchMachine) move(t *rapid.T) {
	if rapid.IntRange(0, 4).Draw(t, "really") > 0 {
		return
	}
	m.commit(rapid.IntRange(0, len(m.queue)).Draw(t, "applied"))
	for _, c := range slices.Concat(m.consumers, m.away) {
		m.leave(t, c, rapid.IntRange(0, 3).Draw(t, "dies") == 0)
	}
	m.consumers, m.held = nil, nil
	m.queue = slices.DeleteFunc(m.queue, func(o simOp) bool { return o.reserve > 0 })
	m.term++
	if rapid.Bool().Draw(t, "new") {
		m.d = NewDispatch(m.l, m) // on another node, which knows the consumers by others' words
		for _, c := range m.away {
			c.consumerState = consumerState{}
		}
	}
	m.d.Start(true)
	for k, s := range m.lanes {
		m.restartLane(t, k, s)
	}
	for _, o := range m.queue {
		if o.by == nil { // a purge
			m.sendAgain(o)
		}
	}
}

// leave takes down what c holds, and puts it among those that may come back unless it
// dies.
func (m *dispatchMachine) leave(t *rapid.T, c *simConsumer, dies bool) {
	m.away = slices.DeleteFunc(m.away, func(o *simConsumer) bool { return o == c })
	if dies {
		if c.Messages != nil && !c.NoAck {
			c.Messages.Give(int64(c.inFlight))
		}
		m.queue = slices.DeleteFunc(m.queue, func(o simOp) bool { return o.by == c })
		return
	}
	m.away = append(m.away, c)
	if c.holds != nil {
		return // it was away already
	}
	c.holds = map[laneKey][]msg.Offset{}
	m.holding(c, func(k laneKey, _ *simLane, offs []msg.Offset) { c.holds[k] = offs })
	if c.NoAck && rapid.Bool().Draw(t, "unsent") { // waits in its connection, not settled yet
		m.queue = slices.DeleteFunc(m.queue, func(o simOp) bool {
			if o.by != c {
				return false
			}
			for _, r := range o.ranges {
				for i := r.First; i < r.First+r.Count; i++ {
					c.holds[o.key] = append(c.holds[o.key], i)
				}
			}
			return true
		})
	}
	for _, offs := range c.holds {
		slices.Sort(offs)
	}
}

func (m *dispatchMachine) restartLane(t *rapid.T, k laneKey, s *simLane) {
	ln, _ := m.l.Lane(k.log, k.lane)
	s.mark, s.asked, s.last = ln.Reserved(), false, 0
	s.end = min(s.mark, ln.Tail())
	fresh := 0
	for i := range s.messages {
		x := &s.messages[i]
		if x.term > 0 {
			s.last = msg.Offset(i) + 1
		}
		if x.state == simSettled || x.state == simTx {
			continue
		}
		x.state, x.holder = simReady, nil
		if msg.Offset(i) < s.end {
			x.state = simUnclaimed
			if x.term == 0 {
				fresh++
			}
		} else if x.term > 0 {
			t.Fatalf("%d was delivered and is not below the mark %d", i, s.mark)
		}
	}
	if fresh > MaxReserveWindow {
		t.Fatalf("%d fresh messages will be flagged", fresh)
	}
}

// checkOrder: during a gathering nothing may pass what was never delivered.
func (m *dispatchMachine) checkOrder(t *rapid.T, s *simLane, first msg.Offset) {
	for i := s.last; i < min(s.end, first); i++ {
		if s.messages[i].state == simUnclaimed && s.messages[i].term == 0 {
			t.Fatalf("%d is delivered before %d, which perhaps nobody has seen", first, i)
		}
	}
}

// sendAgain claims what a submission settles that was not applied.
func (m *dispatchMachine) sendAgain(o simOp) {
	s := m.lanes[o.key]
	if s == nil || o.reserve > 0 {
		return
	}
	m.d.ClaimLeaving(o.key.log, o.key.lane, o.ranges)
	for _, r := range o.ranges {
		for i := r.First; i < r.First+r.Count; i++ {
			if x := &s.messages[i]; x.state == simUnclaimed || x.state == simReady {
				x.state = simLeaving
			}
		}
	}
}

// resend is the news of what is on its way, told by the node that it comes from.
func (m *dispatchMachine) resend(*rapid.T) {
	if m.d.Gathering() {
		for _, o := range m.queue {
			m.sendAgain(o)
		}
	}
}

// back lets a consumer of an earlier term come back, perhaps after the gathering.
func (m *dispatchMachine) back(t *rapid.T) {
	if len(m.away) == 0 {
		return
	}
	c := rapid.SampledFrom(m.away).Draw(t, "consumer")
	m.away = slices.DeleteFunc(m.away, func(o *simConsumer) bool { return o == c })
	m.consumers = append(m.consumers, c)
	if c.attached {
		c.attached = m.mayAttach(t, c)
	}
	for _, k := range m.lanesOf(c) {
		m.claim(t, c, k, m.claimsOf(t, c, k))
	}
	c.holds = nil
	m.forgetIdle()
}

// mayAttach attaches c: it may be too late for that.
func (m *dispatchMachine) mayAttach(t *rapid.T, c *simConsumer) bool {
	var want error
	for _, o := range m.consumers {
		switch {
		case o == c || !o.attached || o.Log != c.Log:
		case o.Exclusive:
			want = ErrExclusive
		case c.Exclusive && want == nil:
			want = ErrInUse
		}
	}
	if !m.l.Has(c.Log) {
		want = ErrUnknownLog
	}
	if err := m.d.Reattach(&c.Consumer); !errors.Is(err, want) {
		t.Fatalf("Reattach: %v, want %v", err, want)
	}
	return want == nil
}

func (m *dispatchMachine) lanesOf(c *simConsumer) (ks []laneKey) {
	for _, lane := range []uint8{0, 5, 9} {
		if k := (laneKey{c.Log, lane}); len(c.holds[k]) > 0 {
			ks = append(ks, k)
		}
	}
	return ks
}

// claimsOf is what c holds, with something that isn't its own any more: as if it had not
// seen its settlement.
func (m *dispatchMachine) claimsOf(t *rapid.T, c *simConsumer, k laneKey) []msg.Offset {
	offs := slices.Clone(c.holds[k])
	if s := m.lanes[k]; s != nil && rapid.Bool().Draw(t, "more") {
		for i := range s.messages {
			x := &s.messages[i]
			gone := x.state == simSettled || x.state == simInFlight || x.state == simLeaving || x.state == simTx
			if gone && x.term > 0 && x.term < m.term && i%3 == 0 && !slices.Contains(offs, msg.Offset(i)) {
				offs = append(offs, msg.Offset(i))
			}
		}
		slices.Sort(offs)
	}
	return offs
}

func (m *dispatchMachine) claim(t *rapid.T, c *simConsumer, k laneKey, offs []msg.Offset) {
	s := m.lanes[k]
	var kept, refused []msg.Offset
	for _, o := range offs {
		ok := false
		if s != nil {
			x := &s.messages[o]
			if ok = x.state == simUnclaimed || x.state == simReady && o < s.mark; ok {
				if x.state, x.holder = simInFlight, c; c.NoAck {
					x.state = simLeaving
				}
			}
		}
		if ok {
			kept = append(kept, o)
			continue
		}
		refused = append(refused, o)
		if slices.Contains(c.holds[k], o) && !c.NoAck { // it lets go of it
			c.inFlight--
			if c.Messages != nil {
				c.Messages.Give(1)
			}
		}
	}
	if got := m.d.Claim(&c.Consumer, k.lane, toRanges(offs)); !slices.Equal(got, toRanges(refused)) {
		t.Fatalf("refused %v, want %v", got, toRanges(refused))
	}
	if c.NoAck && len(kept) > 0 {
		m.queue = append(m.queue, simOp{key: k, ranges: toRanges(kept), by: c})
	}
}

func (m *dispatchMachine) endGather(t *rapid.T) {
	if !m.d.Gathering() {
		return
	}
	m.resend(t)
	m.d.EndGather()
	for _, s := range m.lanes {
		for i := range s.messages {
			if s.messages[i].state == simUnclaimed {
				s.messages[i].state = simReady
			}
		}
	}
}

// dropAway forgets what consumers hold of a deleted log.
func (m *dispatchMachine) dropAway(log msg.LogID) {
	for _, c := range m.away {
		for k, offs := range c.holds {
			if k.log == log {
				if c.Messages != nil && !c.NoAck {
					c.Messages.Give(int64(len(offs)))
				}
				if !c.NoAck {
					c.inFlight -= len(offs)
				}
				delete(c.holds, k)
			}
		}
	}
}

// late settles something that is ready: the ack of a consumer that got it in an earlier
// term. While acks of this term are on their way to the same lane the counts would be
// off until they are applied.
func (m *dispatchMachine) late(t *rapid.T) {
	k := m.key(t)
	s := m.lanes[k]
	if s == nil || slices.ContainsFunc(s.messages, func(x simMessage) bool { return x.state == simLeaving || x.state == simHeld }) {
		return
	}
	var offs []msg.Offset
	for i := range s.messages {
		if x := s.messages[i]; (x.state == simReady || x.state == simUnclaimed) && x.term > 0 {
			offs = append(offs, msg.Offset(i))
		}
	}
	if len(offs) == 0 {
		return
	}
	offs = some(t, offs)
	for _, r := range toRanges(offs) {
		m.d.Settled(k.log, k.lane, r, m.l.Settle(k.log, k.lane, r, msg.Acked))
	}
	for _, o := range offs {
		s.messages[o].state = simSettled
	}
}

// gathered is a fixture of which 10 messages were delivered by an earlier leader, to one
// consumer that lives and one that doesn't, alternately.
func gathered(t *testing.T) (f *fixture, alive *Consumer) {
	f = newFixture(1, 10)
	f.attach(t, &Consumer{ID: 1, Log: 1})
	f.attach(t, &Consumer{ID: 2, Log: 1})
	f.collect()
	f.publish(1, 0, 10)
	if out := f.collect(); len(out) != 10 {
		t.Fatalf("%d deliveries", len(out))
	}
	f.d.Start(true)
	return f, &Consumer{ID: 1, Log: 1, Prefetch: 6}
}

func evens(to msg.Offset) (rs []msg.Range) {
	for i := msg.Offset(0); i < to; i += 2 {
		rs = append(rs, msg.Range{First: i, Count: 1})
	}
	return rs
}

func TestGather(t *testing.T) {
	f, c := gathered(t)
	if err := f.d.Attach(&Consumer{Log: 1}); !errors.Is(err, ErrGathering) {
		t.Errorf("Attach: %v", err)
	}
	if err := f.d.Reattach(c); err != nil {
		t.Fatal(err)
	}
	if r := f.d.Claim(c, 0, evens(10)); len(r) > 0 || c.InFlight() != 5 {
		t.Fatalf("refused %v, in flight %d", r, c.InFlight())
	}
	if n := f.d.Counts(1); n != (Counts{Unacked: 5, Unclaimed: 5, Consumers: 1}) {
		t.Errorf("%+v", n)
	}
	if r := f.d.Claim(&Consumer{Log: 1}, 0, evens(3)); len(r) != 2 {
		t.Errorf("claimed what is another's: refused only %v", r)
	}
	if _, s := f.d.Get(1, &Consumer{Log: 1}); s != GetWait {
		t.Errorf("get: %v", s)
	}
	f.publish(1, 0, 2)
	if out := f.collect(); len(out) > 0 { // 9 may be nobody's and fresh
		t.Errorf("delivered %d before what stands before it", out[0].First)
	}
	f.d.EndGather()
	out := f.collect()
	if len(out) != 1 || out[0].First != 1 || !out[0].Redelivered || out[0].Attempts != 0 {
		t.Errorf("%+v", out) // the prefetch of 6
	}
}

// What is certainly fresh goes out during a gathering if nothing fresh stands before it.
func TestGatherFreshAtOnce(t *testing.T) {
	f, c := gathered(t)
	if err := f.d.Reattach(c); err != nil {
		t.Fatal(err)
	}
	f.d.Claim(c, 0, []msg.Range{{First: 4, Count: 1}, {First: 9, Count: 1}})
	f.publish(1, 0, 2)
	if out := f.collect(); len(out) != 1 || out[0].First != 10 || out[0].Count != 2 {
		t.Errorf("%+v", out)
	}
}

// A consumer that comes when the gathering is over keeps what nobody else has got.
func TestClaimAfterGather(t *testing.T) {
	f, c := gathered(t)
	f.d.EndGather()
	f.attach(t, &Consumer{ID: 3, Log: 1, Prefetch: 3})
	f.collect()
	r := f.d.Claim(c, 0, evens(10))
	if want := evens(3); !slices.Equal(r, want) || c.InFlight() != 3 {
		t.Errorf("refused %v, want %v", r, want)
	}
	if n := f.d.Counts(1); n != (Counts{Ready: 4, Unacked: 6, Consumers: 1}) {
		t.Errorf("%+v", n)
	}
}

// Late acks of the last term don't unhide what is on its way in this one.
func TestSettledWhileUnclaimed(t *testing.T) {
	f, c := gathered(t)
	f.d.Claim(c, 0, evens(10))
	f.d.Acked(c, 1, 0, 2)
	f.settle(1, 0, msg.Range{First: 1, Count: 1})
	if n := f.d.Counts(1); n != (Counts{Unacked: 3, Unclaimed: 4}) {
		t.Errorf("%+v", n)
	}
	f.d.ClaimLeaving(1, 0, []msg.Range{{First: 3, Count: 1}})
	f.d.EndGather()
	if n := f.d.Counts(1); n != (Counts{Ready: 3, Unacked: 3}) {
		t.Errorf("%+v", n)
	}
}
