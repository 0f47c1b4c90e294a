package engine

import (
	"sync"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/planted"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// moveAskEvery is how long an offer may be without an answer before its target is
// asked: a network may have lost either.
const moveAskEvery = time.Second

// mover reads what a shard's outboxes deliver and offers it to the targets: the loop
// itself reads no disk. One goroutine a shard, asleep while nothing is owed.
type mover struct {
	shard *Shard
	via   Transport
	r     Reader
	pass  msg.Submission // does nothing: in the place of one that can't be read
	wake  chan struct{}
	stop  chan struct{}

	mu   sync.Mutex // a leaf
	list []queue.Delivery
}

func newMover(s *Shard, via Transport) *mover {
	mv := &mover{shard: s, via: via, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	var b msg.Builder
	b.TermStart()
	c := b.Finish()
	mv.pass = append(msg.Submission(nil), c.Bytes()...)
	c.Release()
	return mv
}

// add takes a delivery; it may not block.
func (v *mover) add(d *queue.Delivery) {
	v.mu.Lock()
	v.list = append(v.list, *d)
	v.mu.Unlock()
	poke(v.wake)
}

func (v *mover) run() {
	defer v.r.Close()
	ask := time.NewTimer(moveAskEvery)
	defer ask.Stop()
	for {
		var after <-chan time.Time
		if v.shard.m.out.moving.Load() {
			ask.Reset(moveAskEvery)
			after = ask.C
		}
		select {
		case <-v.stop:
			return
		case <-v.wake:
			v.move()
		case <-after:
			v.shard.LookAfterMoves()
		}
	}
}

// move reads and offers what was delivered so far.
func (v *mover) move() {
	v.mu.Lock()
	list := v.list
	v.list = nil
	v.mu.Unlock()
	for i := range list {
		v.offer(&list[i])
	}
}

// offer hands one delivery to its target. What can't be read now is delivered again when
// the target is asked; what never can be has been put into quarantine by the reader, and
// the target gets something in its place that does nothing.
func (v *mover) offer(d *queue.Delivery) {
	link, next := shard.OutboxLink(v.shard.ID()), d.First
	parts := make([]msg.Part, 0, d.Count)
	fill := func(upto msg.Offset) {
		for ; next < upto; next++ {
			parts = append(parts, msg.Part{Link: link, Seq: next + 1, Sub: v.pass})
		}
	}
	err := v.r.Each(d, func(off msg.Offset, rec *msg.Record) error {
		sub, err := msg.ParseSubmission(append([]byte(nil), rec.Body...))
		if err != nil {
			return err
		}
		fill(off)
		switch {
		case planted.OutboxTargetLost && off%8 == 5:
			sub = v.pass
		case planted.OutboxRerouted && d.Redelivered:
			sub = reroute(sub)
		}
		parts = append(parts, msg.Part{Link: link, Seq: off + 1, Sub: sub})
		next = off + 1
		return nil
	})
	if err != nil {
		v.shard.m.log.Warn("transfer not read, trying again", "shard", v.shard.ID(), "target", msg.OutboxTarget(d.Log), "err", err)
	} else {
		fill(d.First + uint64(d.Count))
	}
	if len(parts) > 0 {
		v.via.Offer(msg.OutboxTarget(d.Log), parts)
	}
}

// Move reads and offers what the shard owes others and its loop has handed out: what a
// mover's goroutine does, for whoever runs a shard without one.
func (s *Shard) Move() { s.m.out.mover.move() }

// LookAfterMoves asks targets that don't answer. It is due every second or so while
// something is on its way.
func (s *Shard) LookAfterMoves() { s.Post(func() { s.m.out.look() }) }

// local is the Transport within a node.
type local struct{ n *Node }

// Offer implements Transport.
func (l local) Offer(target uint32, parts []msg.Part) {
	if t := l.n.Shard(target); t != nil {
		t.Offer(parts)
	}
}

// Ask implements Transport.
func (l local) Ask(source, target uint32) {
	t := l.n.Shard(target)
	if t == nil {
		return
	}
	t.Asked(source)
}

// Asked has the shard tell source how far it is with what that owes it, if it leads. For
// any goroutine.
func (s *Shard) Asked(source uint32) {
	s.Post(func() {
		if s.m.leading {
			s.m.out.tell(source, true)
		}
	})
}

// Answer implements Transport.
func (l local) Answer(source, target uint32, applied uint64, again bool) {
	if s := l.n.Shard(source); s != nil {
		s.Answered(target, applied, again)
	}
}
