package bench

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// consumer is one consuming connection. Owned by its loop.
type consumer struct {
	run    *run
	c      *conn
	index  int
	queues []int // indices of the queues that it consumes

	// The message that is being received: a deliver, then a header, then bodies.
	state       int
	curTag      uint64
	redelivered bool
	queue       int // index of the queue that it comes from
	bodySize    uint64
	bodyGot     uint64
	stamp       stamp
	stamped     bool
	damaged     bool

	tags     map[string]int // queue index by consumer tag
	tag      uint64         // delivery tag of the last whole message
	ackedTag uint64         // the last one that was acked

	receipts  *receipts
	received  uint64
	inWindow  uint64
	firstAt   int64
	lastAt    int64
	damage    uint64 // bodies that are not as published
	misrouted uint64
	e2eNanos  *hdrhistogram.Histogram
	cpu       cpuMeter

	freshNow    atomic.Uint64 // distinct messages received here, for progress and draining
	receivedNow atomic.Uint64
}

// States of consumer.state: the frame that comes next.
const (
	wantDeliver = iota
	wantHeader
	wantBody
)

func newConsumer(r *run, c *conn, index int) *consumer {
	k := &consumer{
		run: r, c: c, index: index,
		queues:   share(index, r.cfg.Consumers, r.cfg.Queues),
		tags:     map[string]int{},
		receipts: newReceipts(),
		e2eNanos: newHistogram(),
	}
	return k
}

// setUp sets the prefetch and subscribes.
func (k *consumer) setUp() error {
	cfg := k.run.cfg
	if cfg.Prefetch > 0 && !cfg.AutoAck {
		_, err := k.c.call(basicQos, basicQosOk, func(e *encoder) {
			e.u32(0)
			e.u16(uint16(cfg.Prefetch))
			e.u8(0)
		})
		if err != nil {
			return err
		}
	}
	for _, q := range k.queues {
		tag := "q" + strconv.Itoa(q)
		k.tags[tag] = q
		// Not awaited: the consumer's first deliveries may come before the
		// answer, and await would drop them. Answers are skipped in read.
		k.c.send(1, basicConsume, func(e *encoder) {
			e.u16(0)
			e.shortstr(k.run.names[q])
			e.shortstr(tag)
			e.u8(bit(cfg.AutoAck, 1))
			e.table()
		})
	}
	_, err := k.c.flush()
	return err
}

// loop consumes until it is told to stop.
func (k *consumer) loop() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() { k.cpu.end() }()
	done := true
	for {
		if !done {
			if _, err := k.c.poll(true, pollMax); err != nil {
				return err
			}
		}
		n, err := k.c.fill(done)
		if err != nil {
			return err
		}
		now := k.run.now()
		k.cpu.at(now, k.run)
		if n > 0 {
			if err := k.read(now); err != nil {
				return err
			}
		}
		if k.run.stop.Load() || k.run.stopConsumers.Load() {
			k.ack()
			return k.c.shutdown()
		}
		if done, err = k.c.flush(); err != nil {
			return err
		}
	}
}

// read takes every whole frame in the read buffer.
func (k *consumer) read(now int64) error {
	for {
		f, ok, err := k.c.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := k.frame(f, now); err != nil {
			return err
		}
	}
	k.receivedNow.Store(k.received)
	k.freshNow.Store(k.receipts.fresh)
	return nil
}

// frame advances the message that is being received.
func (k *consumer) frame(f frame, now int64) error {
	switch {
	case f.typ == frameMethod && f.method() == basicDeliver:
		d, ok := parseDeliver(f.payload)
		if !ok || k.state != wantDeliver {
			return fmt.Errorf("%w: basic.deliver", errMalformed)
		}
		if k.queue, ok = k.tags[string(d.consumerTag)]; !ok {
			return fmt.Errorf("%w: delivery for unknown consumer %q", errMalformed, d.consumerTag)
		}
		k.curTag, k.redelivered, k.state = d.tag, d.redelivered, wantHeader
	case f.typ == frameMethod:
		if k.state != wantDeliver && f.channel != 0 {
			return fmt.Errorf("%w: a method inside of a message", errMalformed)
		}
		return k.c.control(f)
	case f.typ == frameHeader:
		if k.state != wantHeader || len(f.payload) < 12 {
			return fmt.Errorf("%w: header frame", errMalformed)
		}
		k.bodySize, k.bodyGot = binary.BigEndian.Uint64(f.payload[4:]), 0
		k.stamped, k.damaged = false, false
		k.state = wantBody
		if k.bodySize == 0 {
			k.message(now)
		}
	case f.typ == frameBody:
		if k.state != wantBody || uint64(len(f.payload)) > k.bodySize-k.bodyGot {
			return fmt.Errorf("%w: body frame", errMalformed)
		}
		k.body(f.payload)
		if k.bodyGot == k.bodySize {
			k.message(now)
		}
	case f.typ != frameHeartbeat:
		return fmt.Errorf("%w: type %d", errMalformed, f.typ)
	}
	return nil
}

// body takes a part of the body.
func (k *consumer) body(part []byte) {
	off := int(k.bodyGot)
	k.bodyGot += uint64(len(part))
	if off == 0 {
		k.stamp, k.stamped = parseStamp(part)
		if !k.stamped {
			return
		}
		part, off = part[stampSize:], stampSize
	}
	if !k.run.fill.matches(part, off) {
		k.damaged = true
	}
}

// message books the message that has just become whole, and acks when it is
// time to.
func (k *consumer) message(now int64) {
	k.state = wantDeliver
	k.received++
	k.tag = k.curTag
	if k.firstAt == 0 {
		k.firstAt = now
	}
	k.lastAt = now
	if k.run.measured(now) {
		k.inWindow++
	}
	s := k.stamp
	switch {
	case !k.stamped || k.damaged:
		k.damage++
	default:
		k.receipts.add(s.key(), s.seq, k.redelivered)
		if s.run != k.run.id {
			break // left by another run: nothing more to say about it
		}
		if int(s.queue) != k.queue {
			k.misrouted++
		}
		if k.bodySize != uint64(len(k.run.fill)) {
			k.damage++
		}
		if k.run.measured(s.timeNanos - k.run.baseUnix) {
			record(k.e2eNanos, now+k.run.baseUnix-s.timeNanos)
		}
	}
	if k.tag-k.ackedTag >= uint64(k.run.cfg.AckEvery) {
		k.ack()
	}
}

// ack acks everything received so far.
func (k *consumer) ack() {
	if k.run.cfg.AutoAck || k.tag == k.ackedTag {
		return
	}
	k.c.out = appendAck(k.c.out, k.tag, k.tag-k.ackedTag > 1)
	k.ackedTag = k.tag
}
