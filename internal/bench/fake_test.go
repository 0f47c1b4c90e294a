package bench

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
)

// fakeMessage is one message in a fakeBroker.
type fakeMessage struct {
	queue       string
	body        []byte
	redelivered bool
}

// fakeBroker is a broker of one queue per name over real sockets, that can be
// told to break its promises. One lock guards everything.
type fakeBroker struct {
	t        *testing.T
	ln       net.Listener
	frameMax uint32

	// deliver turns the n-th published message (from 0) into what consumers
	// get; nil passes everything on.
	deliver func(n int, m fakeMessage) []fakeMessage
	// confirm returns what answers the n-th publish of a channel (from 1):
	// basicAck, basicNack or 0 for silence; nil acks all.
	confirm func(n uint64) method
	// singles confirms every message on its own and each read's in reverse.
	singles bool
	// onPublish runs before the n-th published message is handled.
	onPublish func(n int)
	// refuse makes the method of that id be answered with channel.close 406.
	refuse method
	// hangUpAtLogin closes the socket instead of answering start-ok.
	hangUpAtLogin bool

	start     sync.Once
	mu        sync.Mutex
	published int
	queues    map[string]*fakeQueue
	dirty     map[*fakeConn]struct{}
	wg        sync.WaitGroup
}

type fakeQueue struct {
	ready     []fakeMessage
	consumers []*fakeConsumer
	next      int
}

type fakeConsumer struct {
	conn     *fakeConn
	tag      string
	noAck    bool
	prefetch int
}

// fakeConn is one connection with channel 1.
type fakeConn struct {
	b         *fakeBroker
	nc        net.Conn
	r         *bufio.Reader
	w         *bufio.Writer
	confirms  bool
	published uint64   // on this channel
	pending   []uint64 // to be confirmed after this read
	publishTo string
	body      []byte
	bodySize  uint64
	tag       uint64
	unacked   []*fakeConsumer
	ackedTo   uint64
	prefetch  int
}

func newFakeBroker(t *testing.T) *fakeBroker {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBroker{t: t, ln: ln, frameMax: 131072, queues: map[string]*fakeQueue{}, dirty: map[*fakeConn]struct{}{}}
	t.Cleanup(func() {
		ln.Close()
		b.wg.Wait()
	})
	return b
}

// url starts the broker at its first call; its knobs are set before.
func (b *fakeBroker) url() string {
	b.start.Do(func() { b.wg.Go(b.accept) })
	return "amqp://guest:guest@" + b.ln.Addr().String() + "/"
}

func (b *fakeBroker) queueCount() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queues)
}

func (b *fakeBroker) accept() {
	for {
		nc, err := b.ln.Accept()
		if err != nil {
			return
		}
		b.wg.Go(func() {
			defer nc.Close()
			c := &fakeConn{b: b, nc: nc, r: bufio.NewReaderSize(nc, 64<<10), w: bufio.NewWriterSize(nc, 64<<10)}
			c.serve()
		})
	}
}

func (c *fakeConn) send(ch uint16, m method, args func(*encoder)) {
	c.w.Write(appendMethod(nil, ch, m, args))
	c.b.dirty[c] = struct{}{}
}

// serve handles frames until the connection ends. Output is flushed whenever
// the input buffer runs empty.
func (c *fakeConn) serve() {
	head := make([]byte, 8)
	if _, err := io.ReadFull(c.r, head); err != nil {
		return
	}
	c.w.Write(appendMethod(nil, 0, connectionStart, func(e *encoder) {
		e.u8(0)
		e.u8(9)
		e.table(field{"product", "fake"}, field{"version", "1.2.3"}, field{"capabilities", []field{{"basic.nack", true}}})
		e.longstr("PLAIN")
		e.longstr("en_US")
	}))
	c.w.Flush()
	for {
		head := make([]byte, 7)
		if _, err := io.ReadFull(c.r, head); err != nil {
			return
		}
		rest := make([]byte, binary.BigEndian.Uint32(head[3:])+1)
		if _, err := io.ReadFull(c.r, rest); err != nil {
			return
		}
		f := frame{head[0], binary.BigEndian.Uint16(head[1:]), rest[:len(rest)-1]}
		c.b.mu.Lock()
		open := c.handle(f)
		if c.r.Buffered() == 0 || len(c.pending) > 200 {
			c.confirmPending()
			for d := range c.b.dirty {
				d.w.Flush()
				delete(c.b.dirty, d)
			}
		}
		if !open {
			c.w.Flush()
			c.leave()
		}
		c.b.mu.Unlock()
		if !open {
			return
		}
	}
}

// handle takes one frame and reports whether the connection goes on.
func (c *fakeConn) handle(f frame) bool {
	switch f.typ {
	case frameHeader:
		c.bodySize, c.body = binary.BigEndian.Uint64(f.payload[4:]), nil
		return true
	case frameBody:
		c.body = append(c.body, f.payload...)
		if uint64(len(c.body)) == c.bodySize {
			c.publish()
		}
		return true
	}
	d := decoder{b: f.payload[4:]}
	if m := f.method(); m == c.b.refuse {
		c.send(1, channelClose, func(e *encoder) {
			e.u16(406)
			e.shortstr("PRECONDITION_FAILED - as the test wants it")
			e.u32(uint32(m))
		})
		return true
	}
	switch f.method() {
	case connectionStartOk:
		if c.b.hangUpAtLogin {
			return false
		}
		c.send(0, connectionTune, func(e *encoder) { e.u16(2047); e.u32(c.b.frameMax); e.u16(60) })
	case connectionOpen:
		c.send(0, connectionOpenOk, func(e *encoder) { e.shortstr("") })
	case connectionClose:
		c.send(0, connectionCloseOk, nil)
		return false
	case channelOpen:
		c.send(1, channelOpenOk, func(e *encoder) { e.longstr("") })
	case channelClose:
		c.confirmPending()
		c.send(1, channelCloseOk, nil)
	case confirmSelect:
		c.confirms = true
		c.send(1, confirmSelectOk, nil)
	case basicQos:
		d.u32()
		c.prefetch = int(d.u16())
		c.send(1, basicQosOk, nil)
	case basicPublish:
		d.u16()
		d.shortstr()
		c.publishTo = d.shortstr()
	case basicConsume:
		c.consume(&d)
	case basicAck:
		tag := d.u64()
		for ; c.ackedTo < tag; c.ackedTo++ {
			c.unacked = c.unacked[1:]
		}
		for _, q := range c.b.queues {
			q.dispatch()
		}
	case queueDeclare, queuePurge, queueDelete:
		c.queueMethod(f.method(), &d)
	}
	return true
}

func (c *fakeConn) queueMethod(m method, d *decoder) {
	d.u16()
	name := d.shortstr()
	q := c.b.queue(name)
	ready := uint32(len(q.ready))
	switch m {
	case queueDeclare:
		c.send(1, queueDeclareOk, func(e *encoder) { e.shortstr(name); e.u32(ready); e.u32(0) })
	case queuePurge:
		q.ready = nil
		c.send(1, queuePurgeOk, func(e *encoder) { e.u32(ready) })
	case queueDelete:
		delete(c.b.queues, name)
		c.send(1, queueDeleteOk, func(e *encoder) { e.u32(ready) })
	}
}

func (c *fakeConn) consume(d *decoder) {
	d.u16()
	q := c.b.queue(d.shortstr())
	k := &fakeConsumer{conn: c, tag: d.shortstr(), prefetch: c.prefetch}
	k.noAck = d.u8()&2 != 0
	c.send(1, basicConsumeOk, func(e *encoder) { e.shortstr(k.tag) })
	q.consumers = append(q.consumers, k)
	q.dispatch()
}

func (b *fakeBroker) queue(name string) *fakeQueue {
	q := b.queues[name]
	if q == nil {
		q = &fakeQueue{}
		b.queues[name] = q
	}
	return q
}

// publish takes the message that is whole now.
func (c *fakeConn) publish() {
	b := c.b
	if b.onPublish != nil {
		b.onPublish(b.published)
	}
	ms := []fakeMessage{{queue: c.publishTo, body: c.body}}
	if b.deliver != nil {
		ms = b.deliver(b.published, ms[0])
	}
	b.published++
	c.published++
	if c.confirms {
		c.pending = append(c.pending, c.published)
	}
	for _, m := range ms {
		q := b.queue(m.queue)
		q.ready = append(q.ready, m)
		q.dispatch()
	}
}

// leave ends the connection's consumers.
func (c *fakeConn) leave() {
	delete(c.b.dirty, c)
	for _, q := range c.b.queues {
		q.consumers = slices.DeleteFunc(q.consumers, func(k *fakeConsumer) bool { return k.conn == c })
	}
}

func (c *fakeConn) confirmPending() {
	if len(c.pending) == 0 {
		return
	}
	if c.b.confirm == nil && !c.b.singles {
		last := c.pending[len(c.pending)-1]
		c.send(1, basicAck, func(e *encoder) { e.u64(last); e.u8(1) })
	} else {
		for i := len(c.pending) - 1; i >= 0; i-- {
			tag, m := c.pending[i], basicAck
			if c.b.confirm != nil {
				m = c.b.confirm(tag)
			}
			if m != 0 {
				c.send(1, m, func(e *encoder) { e.u64(tag); e.u8(0) })
			}
		}
	}
	c.pending = c.pending[:0]
}

// dispatch hands out what is ready, in turn to consumers with room.
func (q *fakeQueue) dispatch() {
	for len(q.ready) > 0 {
		k := q.pick()
		if k == nil {
			return
		}
		m := q.ready[0]
		q.ready = q.ready[1:]
		c := k.conn
		c.tag++
		if !k.noAck {
			c.unacked = append(c.unacked, k)
		}
		c.send(1, basicDeliver, func(e *encoder) {
			e.shortstr(k.tag)
			e.u64(c.tag)
			e.u8(bit(m.redelivered, 0))
			e.shortstr("")
			e.shortstr(m.queue)
		})
		var e encoder
		e.begin(frameHeader, 1)
		e.u32(60 << 16)
		e.u64(uint64(len(m.body)))
		e.u16(0)
		e.end()
		for body := m.body; len(body) > 0; {
			n := min(len(body), int(c.b.frameMax)-frameOverhead)
			e.begin(frameBody, 1)
			e.b = append(e.b, body[:n]...)
			e.end()
			body = body[n:]
		}
		c.w.Write(e.b)
	}
}

func (q *fakeQueue) pick() *fakeConsumer {
	for range q.consumers {
		k := q.consumers[q.next%len(q.consumers)]
		q.next++
		if k.noAck || k.prefetch == 0 || len(k.conn.unacked) < k.prefetch {
			return k
		}
	}
	return nil
}
