package broker

import (
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
)

// Reader turns deliveries into messages. Owned by the session's writer goroutine.
type Reader struct {
	r       engine.Reader
	settles map[*engine.Shard][]engine.Settled
}

// ErrBodyGone says that a large body was deleted while it was read, or a part can't be
// read.
var ErrBodyGone = engine.ErrBodyGone

// Reader returns a new reader of the session.
func (s *Session) Reader() *Reader {
	return &Reader{settles: map[*engine.Shard][]engine.Settled{}}
}

// Each calls fn with each message of d that still exists; the views are valid in fn
// only. Call it once per delivery: it settles those of consumers without
// acknowledgement, unless fn failed.
func (r *Reader) Each(d *queue.Delivery, fn func(off msg.Offset, rec *msg.Record) error) error {
	if err := r.r.Each(d, fn); err != nil {
		return err
	}
	if c := d.Consumer.User.(*Consumer).base; c.NoAck {
		sh := c.Shard()
		r.settles[sh] = append(r.settles[sh], engine.Settled{
			Consumer: c, Lane: d.Lane, Reason: msg.Acked,
			Ranges: []msg.Range{{First: d.First, Count: uint64(d.Count)}},
		})
	}
	return nil
}

// Body calls fn with the pieces of the body of a message with FlagParts, in order; a piece
// is valid during the call. It may be called in the fn of Each. ErrBodyGone, or the error
// of fn.
func (r *Reader) Body(d *queue.Delivery, rec *msg.Record, fn func(piece []byte) error) error {
	return r.r.Body(d, rec.Parts, fn)
}

// Kept is Body for a body that was kept to be sent back.
func (r *Reader) Kept(k Kept, fn func(piece []byte) error) error {
	// Nothing told that the parts have been applied: this does.
	if _, err := k.shard.Do(func(b *msg.Builder) { b.TermStart() }); err != nil {
		return err
	}
	return r.r.Parts(k.shard, k.ref, fn)
}

// Flush submits the settlements that Each made.
func (r *Reader) Flush() {
	for sh, list := range r.settles {
		if len(list) > 0 {
			sh.Settle(list, true, nil, 0)
			delete(r.settles, sh)
		}
	}
}

// Close gives back what the reader holds in memory.
func (r *Reader) Close() { r.r.Close() }
