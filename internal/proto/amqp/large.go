package amqp

import (
	"errors"
	"sync"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// beginLarge routes a message with a large body when its header has come.
func (c *conn) beginLarge(ch *channel, ct *content) error {
	keys, h, err := c.routingKeys(ct)
	if err != nil {
		return err
	}
	ct.large, err = c.pub.Begin(ct.exchange, keys, h, ct.size, ct.mandatory)
	if err != nil && c.nackable(ch, err) {
		ct.large, ct.refused = nil, err // told when the body has come
		return nil
	}
	return err
}

// nackable says whether err is told by basic.nack rather than by closing the channel.
func (c *conn) nackable(ch *channel, err error) bool {
	r := berr.ReasonOf(err)
	return ch.confirm && (r == berr.Unavailable || r == berr.ResourceError)
}

// countLarge keeps the account of what the unfinished part of a body takes.
func (c *conn) countLarge(ct *content) {
	n := 0
	if ct.large != nil {
		n = ct.large.Buffered()
	}
	c.batch.partial += int64(n - ct.counted)
	ct.counted = n
}

// publishLarge hands over a message whose body is with the broker already.
func (c *conn) publishLarge(ct *content, e *msg.Envelope) (broker.Published, error) {
	if ct.refused != nil {
		return broker.Published{}, ct.refused
	}
	var err error
	if e.Props, err = c.batch.publish.withoutBCC(ct.props); err != nil {
		return broker.Published{}, err
	}
	c.batch.published = true
	p := ct.large.Publish(e)
	if p.Routed || !ct.mandatory {
		ct.large = nil
		c.countLarge(ct)
	}
	return p, nil
}

// returned is a message with a large body that goes back to its publisher.
type returned struct {
	ch   *channel
	head []byte // frames in front of the body
	kept Kept
}

// keeping are the bodies that wait to be sent back: the reader adds, the writer removes.
type keeping struct {
	sync.Mutex
	set map[*returned]struct{}
}

// returnLarge sends back a message that no queue took, whose body the broker has kept. It
// counts as a whole in the outbox, so that a client that doesn't read is not read from.
func (c *conn) returnLarge(ch *channel, ct *content, head []byte) {
	kept, ok := ct.large.Keep()
	if !ok {
		return
	}
	ct.large = nil
	c.countLarge(ct)
	r := &returned{ch: ch, head: append([]byte(nil), head...), kept: kept}
	c.keeping.Lock()
	if c.keeping.set == nil {
		c.keeping.set = map[*returned]struct{}{}
	}
	c.keeping.set[r] = struct{}{}
	c.keeping.Unlock()
	c.out.put(item{kind: itemReturn, n: int(ct.size), ret: r})
}

// dropKept gives up the bodies that were not sent back. Both goroutines are done.
func (c *conn) dropKept() {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	for r := range c.keeping.set {
		r.kept.Drop()
	}
	c.keeping.set = nil
}

// sendBack writes a returned message and gives up its body.
func (w *writer) sendBack(r *returned) error {
	c := w.c
	var readErr error
	w.enterSession(func() {
		if r.ch.closed.Load() || c.closing.Load() {
			return
		}
		started := false
		readErr = w.rr.Kept(r.kept, func(piece []byte) error {
			if !started {
				started = true
				if err := w.bytes(r.head); err != nil {
					return err
				}
			}
			return w.writeLarge(r.ch.id, piece)
		})
	})
	c.keeping.Lock()
	delete(c.keeping.set, r)
	c.keeping.Unlock()
	r.kept.Drop()
	if readErr == nil || w.broken != nil {
		return w.broken
	}
	c.log.Error("a message can't be sent back", "err", readErr)
	c.requestClose(&closeRequest{err: wireError(fault(amqpwire.InternalError, "a message can't be sent back"), amqpwire.IDBasicReturn)})
	return nil
}

// recordLarge encodes a message whose body lies in parts, one after the other. If the
// body is gone before anything of it was sent, the message is left out as others are;
// later the connection has to end, since a content can't be taken back.
func (w *writer) recordLarge(off msg.Offset, rec *msg.Record) error {
	ch := w.at.cons.ch
	started := false
	err := w.rr.Body(w.at.d, rec, func(piece []byte) error {
		if !started {
			started = true
			if err := w.head(off, rec, 0); err != nil {
				return err
			}
		}
		return w.writeLarge(ch.id, piece)
	})
	if !started && errors.Is(err, broker.ErrBodyGone) {
		return nil
	}
	return err
}
