package engine

import (
	"errors"
	"slices"
	"sync/atomic"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// ErrMoving means that what was moved to another shard may not have arrived yet. It is
// stored and will.
var ErrMoving = errors.New("engine: leadership ended before a transfer was seen to arrive")

// Transport carries submissions from the outbox of one shard, the source, to the one
// they are for, the target, and tells the source how far the target is. Its methods are
// called on shard loops (Offer also on a mover's goroutine): they must not block. What
// it loses is offered again once Answer says so, or after Mover asks.
type Transport interface {
	// Offer hands parts, which are in order, to the leader of target: Shard.Offer. It
	// keeps the bytes.
	Offer(target uint32, parts []msg.Part)
	// Ask asks the leader of target how far it is with source: Shard.Asked; the answer
	// goes to Shard.Answered with again set.
	Ask(source, target uint32)
	// Answer hands to the leader of source what target has applied: Shard.Answered.
	Answer(source, target uint32, applied uint64, again bool)
}

// Bounds of what is on its way from one shard to another. A submission that is larger
// than moveBytes goes alone.
const (
	moveMessages = 256
	moveBytes    = 4 << 20
)

// outboxes is what a shard owes others, and what it tells those that owe it. Owned by
// the loop; idle it holds nothing but a consumer per target.
type outboxes struct {
	m       *Machine
	via     Transport
	applied func(link uint64) uint64 // how far a link into this shard is
	peers   []uint32                 // all durable shards of queues
	to      map[uint32]*outbox       // by target, while leading
	mover   *mover

	began  bool     // leadership has begun: all who owe this shard must hear
	asks   []uint32 // targets to be asked
	moved  []uint32 // sources of which something was applied
	gaps   []uint32 // sources whose offers left something out
	moving atomic.Bool
}

// outbox is what the shard owes one target.
type outbox struct {
	target  uint32
	log     msg.LogID
	cons    *Consumer
	room    window
	ready   bool   // the target's position is known and the consumer attached
	applied uint64 // offsets below are applied at the target
	seen    uint64 // applied when the mover last looked
	sent    []sent // what is in flight, in order
	waits   []await
}

// sent is a delivery whose bytes count against the window.
type sent struct {
	end   msg.Offset
	bytes int64
}

// await is somebody who waits until the target has applied the offsets below upto.
type await struct {
	upto uint64
	done func(error)
}

// window is the room for bytes in flight. Only the loop uses it.
type window struct{ room int64 }

// Take implements queue.Pool.
func (w *window) Take(n int64) int64 {
	n = max(min(n, w.room), 0)
	w.room -= n
	return n
}

// Give implements queue.Pool.
func (w *window) Give(n int64) { w.room += n }

// carried is the User of an outbox's consumer.
type carried struct {
	b *outbox
	c *Consumer
}

// Base implements Based.
func (x *carried) Base() *Consumer { return x.c }

// BindOutboxes lets the machine move what it owes other shards, and tell others what it
// has applied. applied is Core.LinkApplied of its shard; peers are all shards that may
// owe another something.
func (m *Machine) BindOutboxes(s *Shard, via Transport, applied func(link uint64) uint64, peers []uint32) {
	m.out = &outboxes{m: m, via: via, applied: applied, peers: peers}
	m.out.mover = newMover(s, via)
}

// lead begins a term: nothing is known of the targets.
func (o *outboxes) lead() {
	o.to = map[uint32]*outbox{}
	o.asks, o.moved, o.gaps, o.began = nil, nil, nil, true
	for _, t := range o.peers {
		if o.m.ledger.Has(msg.OutboxLog(t)) {
			o.open(t)
		}
	}
}

// follow ends a term.
func (o *outboxes) follow() {
	old := o.to
	o.to = nil
	o.moving.Store(false)
	for _, b := range old {
		for _, w := range b.waits {
			w.done(ErrMoving)
		}
	}
}

// open begins to move what the shard owes a target.
func (o *outboxes) open(target uint32) {
	if o.to[target] != nil {
		return
	}
	o.to[target] = &outbox{target: target, log: msg.OutboxLog(target)}
	o.asks = append(o.asks, target)
}

// drive passes on what has come up since the last turn.
func (o *outboxes) drive() {
	if o.began {
		o.began = false
		for _, s := range o.peers {
			o.tell(s, true)
		}
	}
	if len(o.asks) > 0 {
		o.note()
		poke(o.mover.wake) // to look after what it asks
	}
	for _, t := range o.asks {
		o.via.Ask(o.m.id, t)
	}
	for _, s := range o.moved {
		o.tell(s, false)
	}
	for _, s := range o.gaps {
		o.tell(s, true)
	}
	o.asks, o.moved, o.gaps = o.asks[:0], o.moved[:0], o.gaps[:0]
}

func (o *outboxes) tell(source uint32, again bool) {
	o.via.Answer(source, o.m.id, o.applied(shard.OutboxLink(source)), again)
}

// arrived notes that something of a source was applied here, or with gap that something
// before what came of it is missing.
func (o *outboxes) arrived(source uint32, gap bool) {
	list := &o.moved
	if gap {
		list = &o.gaps
	}
	if !slices.Contains(*list, source) {
		*list = append(*list, source)
	}
}

// answered takes the word of a target. again: what is beyond applied must be offered
// again.
func (o *outboxes) answered(target uint32, applied uint64, again bool) {
	b := o.to[target]
	if b == nil {
		return
	}
	b.applied = max(b.applied, applied)
	if again || !b.ready {
		o.restart(b)
	} else {
		o.settle(b)
	}
	n := 0
	for n < len(b.waits) && b.waits[n].upto <= b.applied {
		b.waits[n].done(nil)
		n++
	}
	b.waits = slices.Delete(b.waits, 0, n)
	o.note()
}

// settle ends what is in flight and has arrived.
func (o *outboxes) settle(b *outbox) {
	c := b.cons
	set := c.inflight[0]
	if set == nil {
		return
	}
	rs, n := c.letGo(0, set.AppendRanges(nil, 0, b.applied))
	if n == 0 {
		return
	}
	o.m.dispatch.Acked(&c.Consumer, b.log, 0, n)
	k := 0
	for k < len(b.sent) && b.sent[k].end <= b.applied {
		b.room.Give(b.sent[k].bytes)
		k++
	}
	b.sent = slices.Delete(b.sent, 0, k)
	o.m.dispatch.Kick(&c.Consumer)
	var mb msg.Builder
	mb.Settle(b.log, 0, msg.Acked, rs)
	o.m.core.Submit(shard.Sub{Chunk: mb.Finish(), Lazy: true})
}

// restart begins again at what the target wants next.
func (o *outboxes) restart(b *outbox) {
	m := o.m
	if c := b.cons; c != nil {
		m.detach(c)
		if set := c.inflight[0]; set != nil {
			if rs := set.AppendRanges(nil, 0, queue.NoOffset); len(rs) > 0 {
				m.dispatch.Return(&c.Consumer, b.log, 0, rs)
			}
		}
	}
	b.ready, b.sent = false, nil
	b.room = window{moveBytes}
	b.cons = &Consumer{shard: o.mover.shard, Sink: o, Consumer: queue.Consumer{
		Log: b.log, Prefetch: moveMessages, Bytes: &b.room,
	}}
	b.cons.User = &carried{b, b.cons}
	ln, ok := m.ledger.Lane(b.log, 0)
	if !ok {
		return
	}
	var mb msg.Builder
	if rs := ln.AppendUnsettled(nil, msg.Range{Count: b.applied}); len(rs) > 0 {
		mb.Settle(b.log, 0, msg.Acked, rs)
	}
	if mb.Empty() {
		o.attach(b)
		return
	}
	// What has arrived must not be delivered; it is settled first.
	m.core.Submit(shard.Sub{Chunk: mb.Finish(), Done: settledFirst{o, b, b.cons}})
}

func (o *outboxes) attach(b *outbox) {
	if err := o.m.dispatch.Reattach(&b.cons.Consumer); err != nil { // nobody else has it, ever
		o.m.log.Error("outbox not consumed", "shard", o.m.id, "target", b.target, "err", err)
		return
	}
	b.cons.attached, b.ready = true, true
	o.note()
}

// settledFirst attaches a consumer once what has arrived already is settled.
type settledFirst struct {
	o *outboxes
	b *outbox
	c *Consumer
}

// Completed implements shard.Completer.
func (s settledFirst) Completed(_ uint32, _ uint64, res shard.Result) {
	if res.Err == nil && s.o.to[s.b.target] == s.b && s.b.cons == s.c {
		s.o.attach(s.b)
	}
}

// Deliver implements Sink: the mover reads it.
func (o *outboxes) Deliver(d *queue.Delivery) {
	b := d.Consumer.User.(*carried).b
	b.sent = append(b.sent, sent{d.First + uint64(d.Count), int64(max(d.Bytes, 1))})
	o.note()
	o.mover.add(d)
}

// GetFailed implements Sink.
func (o *outboxes) GetFailed(uint64, error) {}

// Got implements Sink; nothing is asked for.
func (o *outboxes) Got(uint64, *queue.Delivery, uint64) {}

// Canceled implements Sink; outboxes are never deleted.
func (o *outboxes) Canceled(*Consumer) {}

// Hungry implements Sink; the window is no shared pool.
func (o *outboxes) Hungry(queue.Pool) {}

// note tells the mover whether it must look after what is on its way.
func (o *outboxes) note() {
	busy := false
	for _, b := range o.to {
		busy = busy || len(b.sent) > 0 || !b.ready
	}
	o.moving.Store(busy)
}

// look asks targets that have not moved on since the last time: an offer or an answer
// may be lost.
func (o *outboxes) look() {
	for _, b := range o.to {
		if (len(b.sent) > 0 || !b.ready) && b.applied == b.seen {
			o.via.Ask(o.m.id, b.target)
		}
		b.seen = b.applied
	}
	o.note()
}

// wait calls done when the target has applied the offsets below upto, or with an error
// if leadership ends before.
func (o *outboxes) wait(target uint32, upto uint64, done func(error)) {
	b := o.to[target]
	switch {
	case b == nil:
		done(ErrMoving)
	case b.applied >= upto:
		done(nil)
	default:
		b.waits = append(b.waits, await{upto, done})
	}
}

// waitAll calls done when all that the shard owes now has arrived, or with an error if
// leadership ends before.
func (o *outboxes) waitAll(done func(error)) {
	if !o.m.leading {
		done(ErrMoving)
		return
	}
	var moves []shard.Move
	for t, b := range o.to {
		if ln, ok := o.m.ledger.Lane(b.log, 0); ok {
			moves = append(moves, shard.Move{Target: t, Seq: ln.Tail()})
		}
	}
	o.waitMoved(moves, done)
}

// waitMoved calls done when all moves have arrived, or with the first error.
func (o *outboxes) waitMoved(moves []shard.Move, done func(error)) {
	left := len(moves)
	if left == 0 {
		done(nil)
		return
	}
	var first error
	for _, mv := range moves {
		o.wait(mv.Target, mv.Seq, func(err error) {
			if first == nil {
				first = err
			}
			if left--; left == 0 {
				done(first)
			}
		})
	}
}

// Answered takes the word of a target: it has applied the first so many submissions of
// this shard's outbox. again: those beyond must be offered again. For any goroutine.
func (s *Shard) Answered(target uint32, applied uint64, again bool) {
	s.Post(func() {
		if s.m.leading {
			s.m.out.answered(target, applied, again)
		}
	})
}

// AwaitMoved calls done once the targets have applied what was moved to them, which a
// Result told, or with the first error. On the loop only; done is called there too,
// perhaps at once.
func (s *Shard) AwaitMoved(moves []shard.Move, done func(error)) { s.m.out.waitMoved(moves, done) }
