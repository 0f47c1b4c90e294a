package engine

import (
	"errors"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// ErrBodyGone says that a large body was deleted while it was read, or a part can't be
// read.
var ErrBodyGone = errors.New("engine: large body is gone")

// applyPart stores a part of a large body. One that isn't the next of its log is left
// out; the append that refers to it will find that.
func (m *Machine) applyPart(c *shard.Command, sub uint64, op *msg.Op) {
	if m.ledger.AppendPart(op.Log, op.Number) {
		m.note(c, sub, lane{op.Log, 0}, msg.Offset(op.Number), op)
	}
}

// freeParts is told by the ledger that a parts log goes.
func (m *Machine) freeParts(log msg.LogID) {
	m.places.drop(log, m.letGo(log))
}

// sizeLarge corrects what a lane's place says of n messages from off on, for those whose
// bodies lie in parts: each of them is delivered alone and counts for its whole size.
func (m *Machine) sizeLarge(k lane, off msg.Offset, n, bytes uint64) (uint64, uint64) {
	at, size, ok := m.ledger.NextLarge(k.log, k.lane, off)
	switch {
	case !ok || at >= off+n:
		return n, bytes
	case at > off:
		return at - off, bytes * (at - off) / n
	}
	return 1, bytes/n + size
}

// partsAtOnce is how many parts a reader asks the loop for at a time, which knows where
// they lie.
const partsAtOnce = 64

type partSource struct {
	first msg.Offset
	n     uint32
	src   queue.Source
}

// Body calls fn with the pieces of the body of the message that Each is at; a piece is
// valid during the call. Never more than one part is in memory. ErrBodyGone is returned
// when a part isn't there; if it should be, Each puts the message aside. An error of fn
// ends it and is returned.
func (r *Reader) Body(d *queue.Delivery, ref msg.PartsRef, fn func(piece []byte) error) error {
	s := d.Consumer.User.(Based).Base().shard
	err := r.Parts(s, ref, fn)
	if !errors.Is(err, ErrBodyGone) {
		return err
	}
	list, _, ok := r.body.bad.losses(s)
	if !ok {
		return ErrStopped
	}
	if len(list) > 0 {
		in := list[0]
		in.Lost = nil
		r.bad.add(r.off, r.off, in)
	}
	return err
}

// Parts is Body for a body that needn't belong to a message.
func (r *Reader) Parts(s *Shard, ref msg.PartsRef, fn func(piece []byte) error) error {
	if r.body == nil {
		r.body = new(Reader)
	}
	b := r.body
	b.bad.reset(ref.Log, 0)
	left := ref.Bytes
	next := msg.Offset(0)
	visit := func(off msg.Offset, rec *msg.Record) error {
		if off != next || uint64(len(rec.Body)) > left {
			return ErrBodyGone
		}
		next++
		left -= uint64(len(rec.Body))
		return fn(rec.Body)
	}
	var srcs []partSource
	for next < uint64(ref.Count) {
		to := min(next+partsAtOnce, uint64(ref.Count))
		if srcs = s.locateParts(srcs[:0], ref.Log, next, to); srcs == nil {
			return ErrStopped
		}
		for _, x := range srcs {
			if err := b.read(s.m, lane{ref.Log, 0}, x.first, x.n, x.src, visit); err != nil {
				return err
			}
		}
		if next < to {
			if len(b.bad.list) == 0 {
				b.bad.add(next, to-1, Incident{})
			}
			return ErrBodyGone
		}
	}
	if left > 0 {
		return ErrBodyGone
	}
	return nil
}

// locateParts appends where the parts [from, to) lie; nil when the shard has stopped.
func (s *Shard) locateParts(dst []partSource, log msg.LogID, from, to msg.Offset) []partSource {
	if dst == nil {
		dst = make([]partSource, 0, to-from)
	}
	ok := s.Call(func() {
		l := s.m.places.lanes[lane{log, 0}]
		for off := from; l != nil && off < to; {
			src, n, _ := l.locate(off, to-off)
			dst = append(dst, partSource{off, uint32(n), src})
			off += n
		}
	})
	if !ok {
		return nil
	}
	return dst
}

// DropBody gives up a large body that no message got; later, not waited for.
func (s *Shard) DropBody(log msg.LogID) {
	var b msg.Builder
	b.Delete(log)
	s.Submit(shard.Sub{Chunk: b.Finish(), Lazy: true})
}

// giveUpBody is giveUp for parts: the messages that have the body are put aside and
// settled, a body that no message has yet is dropped, so that none gets it.
func (b *badList) giveUpBody(s *Shard, done shard.Completer) (some bool, err error) {
	in := b.list[0].in
	var mb msg.Builder
	ok := s.Call(func() {
		if !s.m.ledger.Has(b.log) {
			return
		}
		some = true
		if in.Path == "" {
			in = nowhere(s.ID(), b.log, b.list[0].first)
		}
		s.m.ledger.EachOwner(b.log, func(log msg.LogID, n uint8, off msg.Offset) {
			in.Lost = append(in.Lost, Loss{Log: log, Lane: n, First: off, Last: off})
			mb.Settle(log, n, msg.Damaged, []msg.Range{{First: off, Count: 1}})
		})
	})
	switch {
	case !ok:
		return false, ErrStopped
	case !some:
		return false, nil
	case mb.Empty():
		mb.Delete(b.log)
	}
	if err := s.m.aside.add(in); err != nil {
		mb.Reset()
		return false, err
	}
	s.Submit(shard.Sub{Chunk: mb.Finish(), Done: done})
	return true, nil
}
