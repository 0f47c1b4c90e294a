package engine

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/planted"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// ErrStopped is returned when the shard has stopped.
var ErrStopped = errors.New("engine: shard stopped")

// Sink takes what a consumer is given. Called on the shard's loop; must not block.
type Sink interface {
	Deliver(d *queue.Delivery)
	Got(token uint64, d *queue.Delivery, left uint64)
	// GetFailed ends a Get that never will be answered.
	GetFailed(token uint64, err error)
	Canceled(c *Consumer)
	// Hungry tells that a shared pool that had been empty has room again: the session
	// kicks all consumers that share it.
	Hungry(p queue.Pool)
}

// Based is what the User of a queue.Consumer must be: it leads back to the Consumer.
type Based interface{ Base() *Consumer }

// Consumer is a consumer with what is in flight to it. After Attach it is owned by the
// shard's loop, but for Sink and Shard.
type Consumer struct {
	queue.Consumer // its User is a Based
	Sink           Sink

	shard    *Shard
	inflight map[uint8]*queue.Set // by lane
	attached bool
	counts   bool // the log counts deliveries
	elsewhere
}

func (c *Consumer) hold(n uint8, r msg.Range) {
	s := c.inflight[n]
	if s == nil {
		if c.inflight == nil {
			c.inflight = map[uint8]*queue.Set{}
		}
		s = &queue.Set{}
		c.inflight[n] = s
	}
	s.AddRange(r.First, r.First+r.Count)
}

// letGo removes what is settled and returns the part of it that was in flight: rs
// itself if all was.
func (c *Consumer) letGo(n uint8, rs []msg.Range) (held []msg.Range, count uint64) {
	s := c.inflight[n]
	if s == nil {
		return nil, 0
	}
	total := uint64(0)
	for _, r := range rs {
		total += r.Count
		count += s.CountRange(r.First, r.First+r.Count)
	}
	held = rs
	if count < total {
		held = nil
		for _, r := range rs {
			held = s.AppendRanges(held, r.First, r.First+r.Count)
		}
	}
	for _, r := range held {
		s.RemoveRange(r.First, r.First+r.Count)
	}
	return held, count
}

// Shard is a shard of queues as sessions see it.
type Shard struct {
	*shard.Shard
	m   *Machine
	ids atomic.Uint64 // of consumers that were given none
}

func newShard(s *shard.Shard, m *Machine) *Shard {
	m.shard.Shard = s
	return m.shard
}

// Hear hands over a message about consumers from the same shard of another node.
func (s *Shard) Hear(x *Message) { s.Post(func() { s.m.Hear(x) }) }

// Machine returns the shard's machine, for functions that run on its loop.
func (s *Shard) Machine() *Machine { return s.m }

// NewConsumer makes a consumer of a log, whose User is a Based; Attach or Get put it
// to use.
func (s *Shard) NewConsumer(c queue.Consumer, sink Sink) *Consumer {
	if c.ID == 0 {
		c.ID = s.ids.Add(1) | 1<<63
	}
	return &Consumer{Consumer: c, Sink: sink, shard: s}
}

// Shard returns the shard that the consumer's log lives in.
func (c *Consumer) Shard() *Shard { return c.shard }

// fed tells the session when credit that this consumer shares has become available.
func (c *Consumer) fed() {
	if p, ok := c.Messages.(interface{ Hungry() bool }); ok && c.Messages != nil && p.Hungry() {
		c.Sink.Hungry(c.Messages)
	}
}

// Attach lets c receive; ready is called on the loop after the checks and before
// anything is delivered. Errors are those of queue.Dispatch.Attach. It waits for a leader
// that knows who consumes the log, so it may take as long as a change of leader.
func (s *Shard) Attach(c *Consumer, ready func()) error {
	answer := make(chan shard.Result, 1)
	if !s.Call(func() { s.m.attach(c, ready, func(err error) { answer <- shard.Result{Err: err} }) }) {
		return ErrStopped
	}
	err := s.Await(answer).Err
	if errors.Is(err, shard.ErrStopped) {
		return ErrStopped
	}
	return err
}

// Retire keeps consumers from a log that has none, since it will be deleted; false if it
// has some or is retired already. Unretire takes it back.
func (s *Shard) Retire(log msg.LogID) (yes bool) {
	s.whenGathered(func() {
		m := s.m
		if m.leading && !m.retiring[log] && m.dispatch.Counts(log).Consumers == 0 {
			m.retiring[log], yes = true, true
		}
	})
	return yes
}

// Unretire lets consumers attach again.
func (s *Shard) Unretire(log msg.LogID) { s.Call(func() { delete(s.m.retiring, log) }) }

// Detach ends deliveries to c; what is in flight stays so.
func (s *Shard) Detach(c *Consumer) {
	s.Call(func() {
		if !s.m.leading && c.wants {
			s.m.toLeader(&Message{Kind: MsgDetach, Consumer: c.ID})
		}
		s.m.detach(c)
	})
}

func (m *Machine) detach(c *Consumer) {
	c.wants = false
	if c.joining != nil {
		m.joined(c, ErrStopped)
	}
	if c.attached {
		c.attached = false
		m.dispatch.Detach(&c.Consumer)
	}
}

// Release detaches c and returns all that is in flight to it. A Get of c that was not
// answered yet never is.
func (s *Shard) Release(c *Consumer) {
	s.Call(func() {
		m := s.m
		m.detach(c)
		m.forgetGets(func(o *Consumer) bool { return o == c })
		if m.leading {
			for _, h := range c.holding() {
				m.giveBack(c, h.Lane, h.Ranges)
			}
			c.fed()
		} else if m.cluster != nil {
			m.releaseElsewhere(c)
		}
		delete(m.gw.consumers, c.ID)
		c.inflight = nil
		c.dropRecords()
	})
}

func (m *Machine) forgetGets(of func(c *Consumer) bool) {
	m.waitingGets = slices.DeleteFunc(m.waitingGets, func(g *get) bool { return of(g.c) })
}

// giveBack makes messages ready again; where deliveries count that is a command first.
func (m *Machine) giveBack(c *Consumer, n uint8, rs []msg.Range) {
	switch {
	case c.NoAck:
		m.dispatch.Release(c.Log, n, rs)
	case c.counts:
		m.returns[c.Log] = append(m.returns[c.Log], counted{c, n, rs})
		m.submitReturn(c.Log, n, rs)
	default:
		m.dispatch.Return(&c.Consumer, c.Log, n, rs)
	}
}

// Kick tells that a pool of c which was empty has room again.
func (s *Shard) Kick(cs ...*Consumer) {
	s.Post(func() {
		for _, c := range cs {
			switch {
			case !s.m.leading:
				s.m.grant(c)
			case c.attached:
				s.m.dispatch.Kick(&c.Consumer)
			}
		}
	})
}

// Settled is one consumer's part of a settlement.
type Settled struct {
	Consumer *Consumer
	Lane     uint8
	Ranges   []msg.Range // sorted, disjoint
	Requeue  bool        // else Reason says why they are done with
	Reason   msg.Reason
}

// Settle frees the consumers' credit at once, and submits what must be written. Lazy
// settlements wait a little for company. done may be nil. What is not in flight to its
// consumer any more is left alone: it may be another's by now. The list passes to the
// shard.
func (s *Shard) Settle(list []Settled, lazy bool, done shard.Completer, token uint64) {
	chunk := encodeSettled(list)
	posted := s.Post(func() {
		sub := shard.Sub{Chunk: chunk, Done: done, Token: token, Lazy: lazy}
		if s.m.settleSoft(list) {
			if chunk != nil {
				chunk.Release()
			}
			sub.Chunk = encodeSettled(list)
		}
		switch {
		case sub.Chunk != nil && planted.SettleNotJournaled:
			sub.Finish(s.ID(), shard.Result{})
		case sub.Chunk != nil:
			s.m.core.Submit(sub)
		case done != nil:
			done.Completed(s.ID(), token, shard.Result{})
		}
	})
	if posted {
		return
	}
	if chunk != nil {
		chunk.Release()
	}
	if done != nil {
		done.Completed(s.ID(), token, shard.Result{Err: ErrStopped})
	}
}

// Take frees the credit of what a list settles and hides it until it is settled or
// given back; nothing is written. It reduces the list to what is in flight. No entry may
// be a requeue.
func (s *Shard) Take(list []Settled) {
	s.Call(func() {
		m := s.m
		m.settleSoft(list)
		if m.cluster == nil {
			return
		}
		for _, x := range list { // until a submission has it, only this tells of it
			m.taken.add(x.Consumer.Log, x.Lane, x.Ranges)
		}
	})
}

// GiveBack makes ready again what Take took.
func (s *Shard) GiveBack(list []Settled) {
	s.Post(func() {
		for _, x := range list {
			s.m.taken.take(x.Consumer.Log, x.Lane, x.Ranges)
			if s.m.leading {
				s.m.dispatch.Release(x.Consumer.Log, x.Lane, x.Ranges)
			} else {
				s.m.toLeader(&Message{Kind: MsgReturn, Consumer: x.Consumer.ID, Claims: []Claim{{Log: x.Consumer.Log, Lane: x.Lane, Ranges: x.Ranges}}})
			}
		}
	})
}

// encodeSettled makes the submission for a list, nil if nothing has to be written.
func encodeSettled(list []Settled) *buf.Chunk {
	var b msg.Builder
	for _, x := range list {
		if !x.Requeue && len(x.Ranges) > 0 {
			b.Settle(x.Consumer.Log, x.Lane, x.Reason, x.Ranges)
		}
	}
	return b.Finish()
}

// settleSoft frees credit and returns messages. It reduces the list to what is in
// flight and reports whether that was less.
func (m *Machine) settleSoft(list []Settled) (reduced bool) {
	for i := range list {
		x := &list[i]
		c := x.Consumer
		held, n := c.letGo(x.Lane, x.Ranges)
		if len(held) != len(x.Ranges) || len(held) > 0 && &held[0] != &x.Ranges[0] {
			x.Ranges, reduced = held, true
		}
		switch {
		case n == 0:
			continue
		case !m.leading:
			m.settleElsewhere(c, x, held, n)
			continue
		case x.Requeue:
			m.giveBack(c, x.Lane, held)
		case !c.NoAck:
			m.dispatch.Acked(&c.Consumer, c.Log, x.Lane, n)
		}
		c.fed()
	}
	return reduced
}

// get is a basic.get that waits for its reservation.
type get struct {
	c     *Consumer
	token uint64
}

// Get asks for one message for c; the answer comes through its Sink, from Drive, which
// is only called while the lease holds.
func (s *Shard) Get(c *Consumer, token uint64) {
	s.Post(func() {
		s.m.know(c)
		s.m.waitingGets = append(s.m.waitingGets, &get{c, token})
		if !s.m.leading {
			s.m.toLeader(&Message{Kind: MsgGet, Consumers: []Spec{c.spec()}, Token: token})
		}
		s.m.failGets()
	})
}

// failGets ends the gets that wait if the shard has failed for good.
func (m *Machine) failGets() {
	c, ok := m.core.(interface{ Failed() error })
	if !ok || c.Failed() == nil {
		return
	}
	for _, g := range m.waitingGets {
		g.c.Sink.GetFailed(g.token, c.Failed())
	}
	m.waitingGets = nil
}

func (m *Machine) tryGets() {
	if len(m.waitingGets) == 0 || !m.leading {
		return
	}
	kept := m.waitingGets[:0]
	for _, g := range m.waitingGets {
		d, st := m.dispatch.Get(g.c.Log, &g.c.Consumer)
		switch st {
		case queue.GetWait:
			kept = append(kept, g)
		case queue.GetEmpty:
			g.c.Sink.Got(g.token, nil, 0)
		case queue.GetFound:
			g.c.hold(d.Lane, msg.Range{First: d.First, Count: uint64(d.Count)})
			g.c.Sink.Got(g.token, &d, m.dispatch.Counts(g.c.Log).Ready)
		}
	}
	clear(m.waitingGets[len(kept):])
	m.waitingGets = kept
}

// answerGets ends the gets that wait on a log that is gone.
func (m *Machine) answerGets(log msg.LogID) {
	kept := m.waitingGets[:0]
	for _, g := range m.waitingGets {
		if g.c.Log == log {
			g.c.Sink.Got(g.token, nil, 0)
			continue
		}
		kept = append(kept, g)
	}
	m.waitingGets = kept
}

// Counts returns the figures of a log, during a gathering at its end.
func (s *Shard) Counts(log msg.LogID) (c queue.Counts, err error) {
	if !s.whenGathered(func() { c = s.m.dispatch.Counts(log) }) {
		return queue.Counts{}, ErrStopped
	}
	return c, nil
}

// whenGathered runs fn on the loop when it is known what is in flight, and waits for it.
func (s *Shard) whenGathered(fn func()) bool {
	done := make(chan shard.Result, 1)
	ok := s.Call(func() {
		s.m.whenGathered(func() {
			fn()
			done <- shard.Result{}
		})
	})
	return ok && s.Await(done).Err == nil
}

// purgeRanges is how many ranges of offsets one submission of a purge settles, so that
// it fits anywhere and takes no turn for itself.
const purgeRanges = 4096

// Purge settles all that is ready in a log, during a gathering at its end, and returns how
// many messages that were, when it is durable. What can't be settled is ready again.
func (s *Shard) Purge(log msg.LogID) (n uint64, err error) {
	var held []queue.Held
	if !s.whenGathered(func() { held = s.m.dispatch.HoldAll(log) }) {
		return 0, ErrStopped
	}
	for i, h := range held {
		for rs := h.Ranges; len(rs) > 0; {
			part := rs[:min(len(rs), purgeRanges)]
			if _, err = s.Do(func(b *msg.Builder) { b.Settle(log, h.Lane, msg.Purged, part) }); err != nil {
				held[i].Ranges = rs
				s.Call(func() { s.m.release(log, held[i:]) })
				return n, err
			}
			for _, r := range part {
				n += r.Count
			}
			rs = rs[len(part):]
		}
	}
	return n, nil
}

// release makes ready what a purge held and has not settled.
func (m *Machine) release(log msg.LogID, held []queue.Held) {
	if !m.leading { // whoever leads next begins with all of it
		return
	}
	for _, h := range held {
		m.dispatch.Release(log, h.Lane, h.Ranges)
	}
}

// sealReserves ends deliveries and records how far they went. It does not wait for a
// disk that is full: then more is flagged than need be.
func (s *Shard) sealReserves() {
	var b msg.Builder
	s.Call(func() {
		if s.m.leading {
			s.m.dispatch.ExactReserves(b.ReserveExact)
			s.m.Follow()
		}
	})
	b.TermStart() // so that there is something to wait for
	w := newWaiter()
	s.Submit(shard.Sub{Chunk: b.Finish(), Done: w})
	for starved := false; !starved; {
		if s.AwaitFor(w.ch, starvedEvery) || !s.Call(func() { starved = s.Core().Starved() }) {
			return
		}
	}
}

// starvedEvery is how often a stop looks whether it waits for a full disk.
const starvedEvery = 20 * time.Millisecond

// Do submits operations and waits until they are applied.
func (s *Shard) Do(build func(b *msg.Builder)) (shard.Result, error) {
	var b msg.Builder
	build(&b)
	return s.DoChunk(b.Finish())
}

// DoChunk submits an encoded submission and waits until it is applied.
func (s *Shard) DoChunk(c *buf.Chunk) (shard.Result, error) { return Do(s.Shard, c) }

// Do submits to any shard and waits until it is applied.
func Do(s *shard.Shard, c *buf.Chunk) (shard.Result, error) {
	w := newWaiter()
	s.Submit(shard.Sub{Chunk: c, Done: w})
	res := s.Await(w.ch)
	return res, res.Err
}

// waiter is a Completer that somebody waits for.
type waiter struct{ ch chan shard.Result }

func newWaiter() *waiter { return &waiter{make(chan shard.Result, 1)} }

// Completed implements shard.Completer.
func (w *waiter) Completed(_ uint32, _ uint64, res shard.Result) { w.ch <- res }
