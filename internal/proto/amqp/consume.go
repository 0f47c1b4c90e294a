package amqp

import (
	"crypto/rand"
	"encoding/base64"
	"sync/atomic"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
)

// consumer is a consumer of a channel, or what basic.get reads a queue with.
type consumer struct {
	ch     *channel
	tag    string
	noAck  bool
	quorum bool     // of a queue that counts deliveries
	bc     Consumer // set before anything is delivered
	get    bool

	gone atomic.Bool // it lost its queue

	// Guarded by ch.mu. refs counts what may still refer to slot: being attached,
	// answers to basic.get that are not written, deliveries that are unacknowledged.
	slot uint32
	refs int

	// Owned by the reader.
	collected []collected
	dirty     bool
}

// ref adds a reference to cons, with a slot for the first.
func (cons *consumer) ref() error {
	ch := cons.ch
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if cons.refs++; cons.refs > 1 {
		return nil
	}
	if k := len(ch.free); k > 0 {
		cons.slot = ch.free[k-1]
		ch.free = ch.free[:k-1]
		ch.slots[cons.slot] = cons
		return nil
	}
	if len(ch.slots) >= maxSlots {
		cons.refs = 0
		return fault(amqpwire.ResourceError, "too many consumers on channel %d", ch.id)
	}
	cons.slot = uint32(len(ch.slots))
	ch.slots = append(ch.slots, cons)
	return nil
}

// unref gives a reference up.
func (cons *consumer) unref() {
	cons.ch.mu.Lock()
	cons.unrefLocked(1)
	cons.ch.mu.Unlock()
}

// unrefLocked gives n references up, and with the last one the slot. Then the reader
// may release the consumer, once it has submitted what it has collected.
func (cons *consumer) unrefLocked(n int) {
	cons.refs -= n
	ch := cons.ch
	if cons.refs > 0 || len(ch.slots) == 0 || ch.slots[cons.slot] != cons {
		return
	}
	ch.slots[cons.slot] = nil
	ch.free = append(ch.free, cons.slot)
	c := ch.c
	c.attached.Lock()
	c.attached.idle = append(c.attached.idle, cons)
	c.attached.Unlock()
	c.hasIdle.Store(true)
}

// gettersMax is how many consumers of basic.get a channel keeps for the next time.
const gettersMax = 64

// releaseIdle makes the broker forget consumers that nothing refers to any more. It
// comes after submit: what is acknowledged must not be released.
func (c *conn) releaseIdle() {
	if !c.hasIdle.CompareAndSwap(true, false) {
		return
	}
	c.attached.Lock()
	list := c.attached.idle
	c.attached.idle = nil
	c.attached.Unlock()
	for _, cons := range list {
		ch := cons.ch
		if ch.closed.Load() || cons.bc == nil {
			continue
		}
		if cons.get {
			ch.mu.Lock()
			refs := cons.refs
			ch.mu.Unlock()
			if refs > 0 || len(ch.getters) <= gettersMax {
				continue
			}
			delete(ch.getters, cons.bc)
		}
		c.sess.Release(cons.bc)
	}
}

func (c *conn) qos(ch *channel, m *amqpwire.BasicQos) error {
	if m.PrefetchSize != 0 {
		return notImplemented("prefetch_size!=0 (%d)", m.PrefetchSize)
	}
	if !m.Global {
		ch.prefetch = uint32(m.PrefetchCount)
		return c.send(ch.id, &amqpwire.BasicQosOk{})
	}
	limit := int64(m.PrefetchCount)
	if limit == 0 {
		limit = unlimited
	}
	ch.needPool()
	more := limit - ch.limit
	ch.limit = limit
	ch.pool.Give(more)
	if more > 0 {
		for _, cons := range ch.consumers {
			c.sess.Kick(cons.bc)
		}
	}
	return c.send(ch.id, &amqpwire.BasicQosOk{})
}

func (ch *channel) needPool() {
	if ch.pool == nil {
		ch.limit = unlimited
		ch.pool = broker.NewPool(ch.limit)
	}
}

func (c *conn) consume(ch *channel, m *amqpwire.BasicConsume) error {
	name, err := ch.queueName(m.Queue)
	if err != nil {
		return err
	}
	c.forgetCanceled()
	if _, ok := ch.consumers[m.ConsumerTag]; ok && m.ConsumerTag != "" {
		return fault(amqpwire.NotAllowed, "attempt to reuse consumer tag '%s'", m.ConsumerTag)
	}
	if err := checkArgs(consumerArg, "", m.Arguments, c.object("queue", name)); err != nil {
		return err
	}
	tag := m.ConsumerTag
	if tag == "" {
		tag = generatedTag()
	}
	cons := &consumer{ch: ch, tag: tag, noAck: m.NoAck}
	if err := cons.ref(); err != nil {
		return err
	}
	c.submit()
	spec := broker.ConsumeSpec{
		Queue: name, NoAck: m.NoAck, Exclusive: m.Exclusive, Prefetch: ch.prefetch, Bytes: c.bytes, User: cons,
	}
	if !m.NoAck {
		ch.needPool()
		spec.Messages = ch.pool
	}
	answer, err := amqpwire.AppendMethodFrame(nil, ch.id, &amqpwire.BasicConsumeOk{ConsumerTag: tag})
	if err != nil {
		return err
	}
	bc, err := c.sess.Consume(spec, func(bc Consumer) {
		cons.bc = bc
		cons.quorum = bc.Queue().Type == route.Quorum
		if !m.NoWait {
			c.out.control(answer)
		}
	})
	if err != nil {
		cons.unref()
		return err
	}
	if ch.consumers == nil {
		ch.consumers = map[string]*consumer{}
	}
	ch.consumers[tag] = cons
	c.attach(cons)
	// The byte pool may have run dry and filled again before the writer knew of it.
	c.sess.Kick(bc)
	return nil
}

// generatedTag makes up a consumer tag as RabbitMQ does.
func generatedTag() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return "amq.ctag-" + base64.RawURLEncoding.EncodeToString(b[:])
}

// attach adds cons to those that are told when the outbox has room again.
func (c *conn) attach(cons *consumer) {
	c.attached.Lock()
	defer c.attached.Unlock()
	if c.attached.set == nil {
		c.attached.set = map[*consumer]struct{}{}
	}
	c.attached.set[cons] = struct{}{}
}

func (c *conn) detach(cons *consumer) {
	c.attached.Lock()
	defer c.attached.Unlock()
	delete(c.attached.set, cons)
}

func (c *conn) cancel(ch *channel, m *amqpwire.BasicCancel) error {
	c.forgetCanceled()
	if cons, ok := ch.consumers[m.ConsumerTag]; ok {
		delete(ch.consumers, m.ConsumerTag)
		c.detach(cons)
		c.sess.Cancel(cons.bc)
		if cons.gone.CompareAndSwap(false, true) {
			c.out.put(item{kind: itemDetached, cons: cons})
		}
	}
	return c.reply(ch, m.NoWait, &amqpwire.BasicCancelOk{ConsumerTag: m.ConsumerTag})
}

// forgetCanceled forgets the consumers that have lost their queues.
func (c *conn) forgetCanceled() {
	c.out.mu.Lock()
	list := c.out.canceled
	c.out.canceled = nil
	c.out.mu.Unlock()
	for _, cons := range list {
		c.detach(cons)
		if cons.ch.consumers[cons.tag] == cons {
			delete(cons.ch.consumers, cons.tag)
		}
	}
}

// get answers basic.get. It waits for what was published before, because a client may
// expect to get it, and for the answer, because answers must not overtake each other.
func (c *conn) get(ch *channel, m *amqpwire.BasicGet) error {
	name, err := ch.queueName(m.Queue)
	if err != nil {
		return err
	}
	if err := c.barrier(); err != nil {
		return err
	}
	c.tokens++
	token := c.tokens
	c.out.mu.Lock()
	c.out.got = false
	c.out.mu.Unlock()
	if err := c.sess.Get(name, m.NoAck, token, ch); err != nil {
		return err
	}
	var d queue.Delivery
	var found bool
	var left uint64
	alive := c.out.await(func() bool {
		o := &c.out
		if !o.got || o.gotToken != token {
			return false
		}
		d, found, left, err = o.gotAnswer, o.gotFound, o.gotLeft, o.gotFailed
		return true
	})
	switch {
	case !alive:
		return c.stopReason()
	case err != nil:
		return err
	case !found:
		return c.send(ch.id, &amqpwire.BasicGetEmpty{})
	}
	cons, err := ch.getter(d.Consumer.User.(Consumer), m.NoAck)
	if err != nil {
		return err
	}
	c.out.put(item{kind: itemGet, cons: cons, d: d, n: int(left)})
	return nil
}

// getter returns the consumer of basic.get that bc belongs to, with a reference more.
func (ch *channel) getter(bc Consumer, noAck bool) (*consumer, error) {
	cons := ch.getters[bc]
	if cons == nil {
		cons = &consumer{ch: ch, noAck: noAck, bc: bc, get: true, quorum: bc.Queue().Type == route.Quorum}
		if ch.getters == nil {
			ch.getters = map[Consumer]*consumer{}
		}
		ch.getters[bc] = cons
	}
	return cons, cons.ref()
}

// queueName resolves the name "" to the queue that was declared last on the channel.
func (ch *channel) queueName(name string) (string, error) {
	if name != "" {
		return name, nil
	}
	if ch.lastQueue == "" {
		return "", notFound("no previously declared queue")
	}
	return ch.lastQueue, nil
}
