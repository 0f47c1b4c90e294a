package amqp

import (
	"math"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
	"github.com/sluicemq/sluice/internal/queue"
)

// deliver encodes a range of messages for a consumer.
func (w *writer) deliver(cons *consumer, d *queue.Delivery) error {
	w.at = delivery{cons: cons, d: d, noAck: cons.noAck, next: d.First, gone: w.at.gone[:0]}
	err := w.readRange()
	w.t.delivered += int64(w.at.count)
	w.give += d.Bytes
	if len(w.b) == 0 {
		w.returnRoom() // nothing of it is in the buffer
	}
	return err
}

// getOk answers basic.get: with the message, or with get-empty if it is gone.
func (w *writer) getOk(it *item) error {
	cons := it.cons
	left := uint32(min(it.n, math.MaxUint32))
	w.at = delivery{cons: cons, d: &it.d, noAck: cons.noAck, get: true, left: left, next: it.d.First, gone: w.at.gone[:0]}
	err := w.readRange()
	if err == nil && w.at.count == 0 && !cons.ch.closed.Load() {
		var frame []byte
		frame, err = amqpwire.AppendMethodFrame(nil, cons.ch.id, &amqpwire.BasicGetEmpty{})
		if err == nil {
			err = w.bytes(frame)
		}
	}
	w.t.got += int64(w.at.count)
	cons.unref()
	return err
}

// readRange encodes the delivery w.at. A channel that has closed meanwhile gets nothing:
// the reader has returned its messages.
func (w *writer) readRange() (err error) {
	c, at := w.c, &w.at
	if at.cons.ch.closed.Load() || c.closing.Load() {
		return nil
	}
	var readErr error
	w.enterSession(func() {
		w.read = true
		readErr = w.rr.Each(at.d, w.visit)
		w.commitRun()
		if readErr == nil {
			w.noteGone(at.d.First + uint64(at.d.Count))
			w.settleGone()
		}
	})
	if readErr == nil {
		return nil
	}
	if w.broken != nil {
		return w.broken
	}
	c.log.Error("a message can't be read", "queue", at.cons.bc.Queue().Name, "offset", at.next, "err", readErr)
	c.requestClose(&closeRequest{err: wireError(fault(amqpwire.InternalError, "a message of queue '%s' can't be read",
		at.cons.bc.Queue().Name), amqpwire.IDBasicDeliver)})
	return nil
}

// record encodes one message of the delivery w.at.
func (w *writer) record(off msg.Offset, rec *msg.Record) error {
	ch := w.at.cons.ch
	switch {
	case off < w.at.next:
		return nil // told twice
	case rec.Flags&msg.FlagParts != 0:
		return w.recordLarge(off, rec)
	case len(rec.Body) > largeBody:
		if err := w.head(off, rec, 0); err != nil {
			return err
		}
		return w.writeLarge(ch.id, rec.Body)
	}
	if err := w.head(off, rec, amqpwire.BodyFramesSize(len(rec.Body), w.c.frameMax)); err != nil {
		return err
	}
	w.b = amqpwire.AppendBodyFrames(w.b, ch.id, rec.Body, w.c.frameMax)
	return nil
}

// head encodes what stands in front of a message's body, with room for so many bytes
// more.
func (w *writer) head(off msg.Offset, rec *msg.Record, room int) error {
	at := &w.at
	ch := at.cons.ch
	w.noteGone(off)
	at.next = off + 1
	ch.lastDelivery++
	tag := ch.lastDelivery
	props := amqpwire.RawProps(rec.Props)
	if at.d.Attempts > 0 && at.cons.quorum {
		props = w.countedProps(props, at.d.Attempts)
	}
	if err := w.room(amqpwire.MaxHeadSize + len(props) + room); err != nil {
		return err
	}
	w.noteDelivered(tag, off)
	if at.get {
		w.b = amqpwire.AppendGetOkHead(w.b, ch.id, tag, at.d.Redelivered, rec.Exchange, rec.Key, at.left, props, rec.BodyLen())
	} else {
		w.b = amqpwire.AppendDeliverHead(w.b, ch.id, at.cons.tag, tag, at.d.Redelivered, rec.Exchange, rec.Key, props, rec.BodyLen())
	}
	at.count++
	return nil
}

// countedProps adds the header x-delivery-count, which quorum queues have.
func (w *writer) countedProps(props amqpwire.RawProps, attempts uint32) amqpwire.RawProps {
	p, err := amqpwire.AppendPropsWithHeader(w.props[:0], props, "x-delivery-count", amqpwire.Int64(int64(attempts)))
	if err != nil {
		return props // malformed ones were refused when they came
	}
	w.props = p
	return p
}

// noteDelivered remembers a delivery for its acknowledgement. It gets into the
// channel's list, under its lock, before anything is written.
func (w *writer) noteDelivered(tag uint64, off msg.Offset) {
	at := &w.at
	if at.noAck {
		return
	}
	if at.runLen > 0 && at.runOff+uint64(at.runLen) == off {
		at.runLen++
		return
	}
	w.commitRun()
	at.runTag, at.runOff, at.runLen = tag, off, 1
}

// commitRun puts the run of deliveries into the channel's list.
func (w *writer) commitRun() {
	at := &w.at
	if at.runLen == 0 {
		return
	}
	ch := at.cons.ch
	ch.mu.Lock()
	at.cons.refs += at.runLen
	ch.unacked.add(at.runTag, at.cons.slot, at.d.Lane, at.runOff, at.runLen)
	ch.mu.Unlock()
	at.runLen = 0
}

// noteGone notes the messages of the delivery before off that Each left out.
func (w *writer) noteGone(off msg.Offset) {
	at := &w.at
	if off > at.next && !at.noAck {
		at.gone = append(at.gone, msg.Range{First: at.next, Count: off - at.next})
	}
}

// settleGone frees the credit of messages that no longer exist.
func (w *writer) settleGone() {
	at := &w.at
	if len(at.gone) == 0 {
		return
	}
	w.c.settleMu.Lock()
	defer w.c.settleMu.Unlock()
	w.c.sess.Settle(at.cons.bc, at.d.Lane, broker.Ack, at.gone)
	w.c.sess.FlushSettles()
}
