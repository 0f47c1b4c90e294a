package amqp

import (
	"errors"
	"net"
	"time"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
	"github.com/sluicemq/sluice/internal/queue"
)

const (
	// writeBufferMax is how much is put together for one write.
	writeBufferMax = 256 << 10
	// largeBody is the size from which on a body is written from where it lies.
	largeBody = 64 << 10
	// largeWrite bounds one vectored write, so that a slow client makes progress
	// within the write timeout.
	largeWrite = 1 << 20
)

// errWriterDone ends the writer after the last frame.
var errWriterDone = errors.New("last frame sent")

// writer is the second goroutine of a connection: it encodes what is in the outbox and
// writes it to the socket. Owned by its goroutine.
type writer struct {
	c    *conn
	rr   RecordReader
	mail mail

	chunk *buf.Chunk // the write buffer, nil when nothing is to be written
	b     []byte     // what is in it
	vec   net.Buffers
	heads []byte // frame headers for vec
	give  uint64 // bytes for the pool, once b is written
	read  bool   // rr has read something

	broken error // what the socket failed with

	open  []*flush   // not all confirmed, by token
	over  []*flush   // all confirmed
	dirty []*channel // have confirmations to send

	at      delivery // the delivery that is being encoded
	visit   func(off msg.Offset, rec *msg.Record) error
	confirm func(tag uint64, multiple, nack bool)
	ch      *channel // for confirm
	props   []byte   // properties that are being put together

	wrote    bool // something, since the heartbeat timer fired last
	idle     *time.Timer
	idleSet  bool // idle runs
	busy     bool // there was something to do since idle was set
	deadline time.Time
	t        tally
}

func (w *writer) init(c *conn) {
	w.c = c
	w.rr = c.sess.Reader()
	w.visit = w.record
	w.idle = time.NewTimer(time.Hour)
	w.idle.Stop()
	w.confirm = w.appendConfirm
}

// run is the goroutine.
func (w *writer) run() {
	c := w.c
	defer close(c.writerDone)
	var beat <-chan time.Time
	if c.heartbeat > 0 {
		t := time.NewTicker(c.heartbeat / 2)
		defer t.Stop()
		beat = t.C
	}
	for {
		var err error
		switch some, dead := c.out.take(&w.mail); {
		case dead:
			err = errStopped
		case some:
			err = w.pass()
		default:
			select {
			case <-c.out.wake:
			case <-beat:
				err = w.heartbeat()
			case <-w.idle.C:
				w.shrink()
			}
		}
		if err != nil {
			w.stop(err)
			return
		}
	}
}

// stop ends the writer. After the last frame the reader goes on; after a fault of the
// network it must not.
func (w *writer) stop(err error) {
	c := w.c
	w.t.addTo(&c.srv.counters)
	w.idle.Stop()
	w.rr.Close()
	if w.chunk != nil {
		w.chunk.Release()
	}
	c.out.kill()
	if !errors.Is(err, errWriterDone) {
		_ = c.nc.Close()
	}
}

// shrink gives back memory if there was nothing to do for a while.
func (w *writer) shrink() {
	w.idleSet = false
	if w.busy {
		w.setIdle()
		return
	}
	w.rr.Close()
	w.mail = mail{}
	w.vec, w.heads, w.props, w.dirty, w.over, w.at = nil, nil, nil, nil, nil, delivery{}
	w.c.out.shrink()
}

// setIdle sets the timer for shrink, at most once in its time.
func (w *writer) setIdle() {
	if w.busy = w.idleSet; !w.busy {
		w.idleSet = true
		w.idle.Reset(idleAfter)
	}
}

func (w *writer) heartbeat() error {
	if w.wrote {
		w.wrote = false
		return nil
	}
	if err := w.room(amqpwire.FrameOverhead); err != nil {
		return err
	}
	w.b = amqpwire.AppendHeartbeat(w.b)
	err := w.flush()
	w.wrote = false
	return err
}

// pass encodes and writes all of w.mail.
func (w *writer) pass() error {
	err := w.items()
	if err != nil && !errors.Is(err, errWriterDone) {
		return err
	}
	if e := w.confirms(); e != nil {
		return e
	}
	if err != nil {
		// The last frame stands behind the confirmations.
		if e := w.bytes(w.mail.control[len(w.mail.control)-w.mail.items[len(w.mail.items)-1].n:]); e != nil {
			return e
		}
	}
	w.mail.reset()
	if e := w.flush(); e != nil {
		return e
	}
	w.t.addTo(&w.c.srv.counters)
	w.enterSession(w.endReads)
	w.setIdle()
	return err
}

// enterSession calls fn unless the session is closed, and keeps it open meanwhile.
func (w *writer) enterSession(fn func()) {
	w.c.sessMu.Lock()
	defer w.c.sessMu.Unlock()
	if !w.c.sessClosed {
		fn()
	}
}

// endReads ends a pass in the session: settles what no one acknowledges and tells
// consumers that there is room.
func (w *writer) endReads() {
	if w.read {
		w.rr.Flush()
		w.read = false
	}
	if !w.c.bytes.Hungry() {
		return
	}
	a := &w.c.attached
	a.Lock()
	defer a.Unlock()
	for cons := range a.set {
		w.c.sess.Kick(cons.bc)
	}
}

// items does what the items say, up to the final one; then it returns errWriterDone.
func (w *writer) items() error {
	control := w.mail.control
	for i := range w.mail.items {
		it := &w.mail.items[i]
		var err error
		switch it.kind {
		case itemControl:
			err = w.bytes(control[:it.n])
			control = control[it.n:]
		case itemDeliver:
			cons := it.d.Consumer.User.(Consumer).User().(*consumer)
			err = w.deliver(cons, &it.d)
		case itemGet:
			err = w.getOk(it)
		case itemDetached:
			it.cons.unref()
		case itemReturn:
			err = w.sendBack(it.ret)
		case itemFinal:
			// Nothing is put into the outbox behind it but what nobody waits for.
			w.mail.items = w.mail.items[:i+1]
			w.mail.control = w.mail.control[:len(w.mail.control)-len(control)+it.n]
			return errWriterDone
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// confirms sends what has become complete.
func (w *writer) confirms() error {
	if len(w.mail.flushes) == 0 && len(w.mail.comps) == 0 {
		return nil
	}
	for _, f := range w.mail.flushes {
		w.dirty = f.settle(w.dirty) // what has nothing to wait for
		w.keep(f)
	}
	for _, comp := range w.mail.comps {
		w.complete(comp)
	}
	if len(w.over) > 0 {
		w.c.out.finished(w.over)
		clear(w.over)
		w.over = w.over[:0]
	}
	var err error
	for _, ch := range w.dirty {
		if ch.closed.Load() {
			ch.confirms.news = nil
			continue
		}
		w.count(ch.confirms.news)
		w.ch = ch
		ch.confirms.emit(w.confirm)
		if err == nil {
			err = w.room(0)
		}
	}
	clear(w.dirty)
	w.dirty, w.ch = w.dirty[:0], nil
	return err
}

func (w *writer) count(news []tagRun) {
	for _, r := range news {
		if r.nack {
			w.t.nacked += int64(r.end - r.first)
		} else {
			w.t.confirmed += int64(r.end - r.first)
		}
	}
}

// keep puts a flush in its place: among the open ones, or those that are over.
func (w *writer) keep(f *flush) {
	if f.left == 0 {
		w.over = append(w.over, f)
		return
	}
	w.open = append(w.open, f)
}

// complete settles the flush of a completion.
func (w *writer) complete(comp completion) {
	for i, f := range w.open {
		if f.token != comp.token {
			continue
		}
		f.done |= 1 << comp.slot
		if comp.failed {
			f.failed |= 1 << comp.slot
		}
		w.dirty = f.settle(w.dirty)
		if f.left == 0 {
			w.over = append(w.over, f)
			copy(w.open[i:], w.open[i+1:])
			w.open[len(w.open)-1] = nil
			w.open = w.open[:len(w.open)-1]
		}
		return
	}
}

// appendConfirm appends one confirmation of w.ch. The buffer may grow beyond its usual
// size here; room puts that right.
func (w *writer) appendConfirm(tag uint64, multiple, nack bool) {
	w.grow(32)
	w.b = appendConfirm(w.b, w.ch.id, tag, multiple, nack)
}

// grow makes sure that the buffer has room for n more bytes, whatever that takes.
func (w *writer) grow(n int) {
	if w.chunk != nil && cap(w.b)-len(w.b) >= n {
		return
	}
	chunk := buf.Get(max(len(w.b)+n, 2*len(w.b)))
	w.b = append(chunk.Bytes(), w.b...)
	if w.chunk != nil {
		w.chunk.Release()
	}
	w.chunk = chunk
}

// room makes sure that the buffer has room for n more bytes, by writing it if it is
// full.
func (w *writer) room(n int) error {
	if len(w.b) > 0 && len(w.b)+n > writeBufferMax {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.grow(n)
	return nil
}

// bytes sends frames that are encoded.
func (w *writer) bytes(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), writeBufferMax)
		if err := w.room(n); err != nil {
			return err
		}
		w.b = append(w.b, b[:n]...)
		b = b[n:]
	}
	return nil
}

// flush writes the buffer and gives it back.
func (w *writer) flush() error {
	if len(w.b) > 0 {
		w.commitRun()
		w.armWrite()
		n, err := w.c.nc.Write(w.b)
		w.sent(int64(n))
		if err != nil {
			w.broken = err
			return err
		}
	}
	if w.chunk != nil {
		w.chunk.Release()
		w.chunk, w.b = nil, nil
	}
	return nil
}

// sent accounts for n bytes that were written, and returns room to the pool.
func (w *writer) sent(n int64) {
	w.t.out += n
	w.wrote = true
	w.returnRoom()
}

func (w *writer) returnRoom() {
	if w.give > 0 {
		w.c.bytes.Give(int64(w.give))
		w.give = 0
	}
}

// armWrite sets the write deadline, not at every write.
func (w *writer) armWrite() {
	c := w.c
	if c.closing.Load() {
		return
	}
	now := time.Now()
	if w.deadline.Sub(now) > c.cfg.WriteTimeout/2 {
		return
	}
	w.deadline = now.Add(c.cfg.WriteTimeout)
	_ = c.nc.SetWriteDeadline(w.deadline)
	if c.closing.Load() {
		// The reader has set the last deadline meanwhile.
		_ = c.nc.SetWriteDeadline(now.Add(c.cfg.CloseTimeout))
	}
}

// writeLarge writes the buffer and a body in frames, the body from where it lies.
func (w *writer) writeLarge(ch uint16, body []byte) error {
	payload := int(w.c.frameMax) - amqpwire.FrameOverhead
	w.commitRun()
	for len(body) > 0 {
		part := body[:min(len(body), largeWrite)]
		body = body[len(part):]
		w.heads = w.heads[:0]
		w.vec = append(w.vec[:0], w.b)
		// heads must not move while vec refers to it.
		if need := (len(part)/payload + 1) * amqpwire.FrameOverhead; cap(w.heads) < need {
			w.heads = make([]byte, 0, need)
		}
		for len(part) > 0 {
			piece := part[:min(len(part), payload)]
			part = part[len(piece):]
			k := len(w.heads)
			w.heads = amqpwire.AppendFrameHeader(w.heads, amqpwire.FrameBody, ch, uint32(len(piece)))
			w.vec = append(w.vec, w.heads[k:], piece)
			k = len(w.heads)
			w.heads = append(w.heads, amqpwire.FrameEnd)
			w.vec = append(w.vec, w.heads[k:])
		}
		w.armWrite()
		vec := w.vec // WriteTo uses it up
		n, err := vec.WriteTo(w.c.nc)
		clear(w.vec)
		w.b = w.b[:0]
		w.sent(n)
		if err != nil {
			w.broken = err
			return err
		}
	}
	return nil
}

// delivery is where the writer is in encoding a range.
type delivery struct {
	cons  *consumer
	d     *queue.Delivery
	noAck bool
	get   bool
	left  uint32     // ready messages, for basic.get
	next  msg.Offset // what should come next; what lies between is gone
	gone  []msg.Range
	count int // records that were encoded

	// The run of tags and offsets that is not in the channel's list yet.
	runTag uint64
	runOff msg.Offset
	runLen int
}
