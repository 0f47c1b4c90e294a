package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// redial is the pause after a failed or ended connection.
const redial = 5 * time.Millisecond

// clients is everybody who talks to the broker in a run.
type clients struct {
	cfg   *Config
	run   uint32
	url   string
	check *Checker
	gate  gate

	scope atomic.Uint64 // numbers connections, see Delivery.Scope
	wg    sync.WaitGroup

	stopPublishing context.CancelFunc
	publishing     sync.WaitGroup
	// txs is read-locked by each transaction; ended says that they publish no more.
	txs   sync.RWMutex
	ended bool
}

// endPublishing ends it and waits until nothing is being published.
func (c *clients) endPublishing() {
	c.stopPublishing()
	c.publishing.Wait()
	c.txs.Lock()
	c.ended = true
	c.txs.Unlock()
}

func queueName(i int) string { return fmt.Sprintf("torture-%d", i) }

// shared reports whether queue i has several consumers and a getter. The others
// have one consumer, so that the order of deliveries is known.
func shared(i int) bool { return i%2 == 1 }

// consumersOf returns how many consumers queue i has.
func consumersOf(i int) int {
	if shared(i) {
		return 2
	}
	return 1
}

// start starts all clients; they wait at the gate.
func (c *clients) start(ctx context.Context) {
	pctx, cancel := context.WithCancel(ctx)
	c.stopPublishing = cancel
	seed := func(kind, i int) *rand.Rand {
		return rand.New(rand.NewPCG(c.cfg.Seed, uint64(kind)<<32|uint64(i)))
	}
	for i := range c.cfg.Publishers {
		p := &publisher{clients: c, index: i, rng: seed(1, i)}
		p.fill = rand.NewChaCha8([32]byte{byte(c.cfg.Seed), byte(i)})
		c.publishing.Go(func() { c.loop(pctx, p.rng, p.session) })
	}
	if c.cfg.Queues > 1 {
		for i := range c.cfg.Transactors {
			x := &transactor{clients: c, index: c.cfg.Publishers + i, rng: seed(4, i)}
			x.fill = rand.NewChaCha8([32]byte{byte(c.cfg.Seed), byte(i), 1})
			c.wg.Go(func() { c.loop(ctx, x.rng, x.session) })
		}
	}
	n := 0
	for q := range c.cfg.Queues {
		for range consumersOf(q) {
			k := &consumer{clients: c, queue: q, rng: seed(2, n)}
			c.wg.Go(func() { c.loop(ctx, k.rng, k.session) })
			n++
		}
		if shared(q) {
			g := &getter{clients: c, queue: q, rng: seed(3, q)}
			c.wg.Go(func() { c.loop(ctx, g.rng, g.session) })
		}
	}
}

// loop runs one connection after the other until ctx ends. What a client knows
// of a connection ends with it.
//
// The gate is closed before a kill: a session that ends with an error while it
// is open was cut off by a broker that had no reason to.
func (c *clients) loop(ctx context.Context, rng *rand.Rand, session func(context.Context, *amqp.Connection) error) {
	for c.gate.enter(ctx) {
		if conn, err := dial(c.url, "torture"); err == nil {
			err := session(ctx, conn)
			if err != nil && ctx.Err() == nil && c.gate.isOpen() {
				c.check.CutOff(err)
			}
			_ = conn.Close() // fails when the broker was killed
		}
		c.gate.leave()
		select {
		case <-ctx.Done():
		case <-time.After(redial + time.Duration(rng.Int64N(int64(redial)))):
		}
	}
}

// eachQueue runs f for every queue, on one channel.
func eachQueue(url string, queues int, f func(ch *amqp.Channel, q int) error) error {
	conn, err := dial(url, "torture: set-up")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	for q := range queues {
		if err := f(ch, q); err != nil {
			return fmt.Errorf("%s: %w", queueName(q), err)
		}
	}
	return nil
}

// declareAll makes sure that all queues exist and are empty.
func declareAll(url string, queues int) error {
	return eachQueue(url, queues, func(ch *amqp.Channel, q int) error {
		if _, err := ch.QueueDeclare(queueName(q), true, false, false, false, nil); err != nil {
			return err
		}
		_, err := ch.QueuePurge(queueName(q), false)
		return err
	})
}

// deleteAll deletes all queues.
func deleteAll(url string, queues int) error {
	return eachQueue(url, queues, func(ch *amqp.Channel, q int) error {
		_, err := ch.QueueDelete(queueName(q), false, false, false)
		return err
	})
}

// ready returns how many messages wait in each queue.
func ready(url string, queues int) ([]int, error) {
	ns := make([]int, queues)
	err := eachQueue(url, queues, func(ch *amqp.Channel, q int) error {
		state, err := ch.QueueDeclarePassive(queueName(q), true, false, false, false, nil)
		ns[q] = state.Messages
		return err
	})
	return ns, err
}

// publisher publishes to all queues in turn.
type publisher struct {
	*clients
	index int
	rng   *rand.Rand
	fill  *rand.ChaCha8
	next  int // queue
}

// sent is a message on its way.
type sent struct {
	id      ID
	confirm *amqp.DeferredConfirmation
}

func (p *publisher) session(ctx context.Context, conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Confirm(false); err != nil {
		return err
	}
	open := make(chan sent, p.cfg.ConfirmWindow)
	var wg sync.WaitGroup
	wg.Go(func() {
		for s := range open {
			// When the connection breaks, the client settles what is open as
			// not acked: nobody knows what became of these.
			if s.confirm.Wait() {
				p.check.Confirmed(s.id)
			}
		}
	})
	defer wg.Wait()
	defer close(open)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		for range max(1, p.cfg.Rate/100) {
			id := p.check.Attempt(uint16(p.index), uint16(p.next))
			p.next = (p.next + 1) % p.cfg.Queues
			confirm, err := ch.PublishWithDeferredConfirm("", queueName(int(id.Queue)), false, false, amqp.Publishing{
				DeliveryMode: amqp.Persistent,
				Body:         EncodeBody(p.run, id, p.size(), p.fill),
			})
			if err != nil {
				return err
			}
			open <- sent{id, confirm}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if conn.IsClosed() {
			return amqp.ErrClosed
		}
	}
}

// size draws the size of a body: mostly small, now and then of several frames.
func (p *publisher) size() int {
	switch n := p.rng.IntN(1000); {
	case n == 0:
		return 128<<10 + p.rng.IntN(256<<10)
	case n < 100:
		return p.rng.IntN(16 << 10)
	default:
		return p.rng.IntN(2 << 10)
	}
}

// consumer consumes one queue.
type consumer struct {
	*clients
	queue int
	rng   *rand.Rand

	ch      *amqp.Channel
	held    []held // delivered and unsettled, in order
	toFence []ID   // acked since the last round trip
}

type held struct {
	id  ID
	tag uint64
}

func (k *consumer) session(ctx context.Context, conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	k.ch, k.held, k.toFence = ch, nil, nil
	prefetch := 1 + k.rng.IntN(k.cfg.Prefetch)
	if err := ch.Qos(prefetch, 0, false); err != nil {
		return err
	}
	deliveries, err := ch.Consume(queueName(k.queue), "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	var scope uint64
	if shared(k.queue) {
		scope = k.clients.scope.Add(1)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for batch := 1 + k.rng.IntN(min(prefetch, 32)); ; {
		select {
		case <-ctx.Done():
			return nil
		case d, ok := <-deliveries:
			if !ok {
				return amqp.ErrClosed
			}
			if id, ok := k.receive(k.queue, &d, scope); ok {
				k.held = append(k.held, held{id, d.DeliveryTag})
			} else if err := d.Ack(false); err != nil {
				return err
			}
			if len(k.held) < batch {
				continue
			}
			batch = 1 + k.rng.IntN(min(prefetch, 32))
			if err := k.settle(); err != nil {
				return err
			}
		case <-tick.C:
			if err := k.settle(); err != nil {
				return err
			}
			if err := k.fence(); err != nil {
				return err
			}
		}
	}
}

// receive books a delivery. It returns false for what is no message of this run.
func (c *clients) receive(queue int, d *amqp.Delivery, scope uint64) (ID, bool) {
	id, err := DecodeBody(c.run, d.Body)
	if err != nil {
		c.check.Damaged(uint16(queue), err)
		return ID{}, false
	}
	c.check.Delivered(Delivery{ID: id, From: uint16(queue), Redelivered: d.Redelivered, Scope: scope})
	return id, true
}

// settle settles everything held, in one of the ways that there are.
func (k *consumer) settle() error {
	defer func() { k.held = k.held[:0] }()
	if len(k.held) == 0 {
		return nil
	}
	switch k.rng.IntN(5) {
	case 0, 1: // all at once
		for _, h := range k.held {
			k.check.Acked(h.id)
			k.toFence = append(k.toFence, h.id)
		}
		return k.ch.Ack(k.held[len(k.held)-1].tag, true)
	case 2: // one by one, in any order
		k.rng.Shuffle(len(k.held), func(i, j int) { k.held[i], k.held[j] = k.held[j], k.held[i] })
	case 3: // some back to the queue
		k.rng.Shuffle(len(k.held), func(i, j int) { k.held[i], k.held[j] = k.held[j], k.held[i] })
		n := k.rng.IntN(len(k.held)/4 + 1)
		for _, h := range k.held[:n] {
			k.check.Requeued(h.id)
			if err := k.requeue(h.tag); err != nil {
				return err
			}
		}
		k.held = k.held[n:]
	}
	for _, h := range k.held {
		k.check.Acked(h.id)
		k.toFence = append(k.toFence, h.id)
		if err := k.ch.Ack(h.tag, false); err != nil {
			return err
		}
	}
	return nil
}

func (k *consumer) requeue(tag uint64) error {
	if k.rng.IntN(2) == 0 {
		return k.ch.Reject(tag, true)
	}
	return k.ch.Nack(tag, false, true)
}

// fence does a round trip on the channel: the broker has handled every ack
// before it. Asking for the queue changes nothing in the broker.
func (k *consumer) fence() error {
	if len(k.toFence) == 0 {
		return nil
	}
	if _, err := k.ch.QueueDeclarePassive(queueName(k.queue), true, false, false, false, nil); err != nil {
		return err
	}
	k.check.Fenced(k.toFence)
	k.toFence = k.toFence[:0]
	return nil
}

// getter takes messages with basic.get.
type getter struct {
	*clients
	queue int
	rng   *rand.Rand
}

func (g *getter) session(ctx context.Context, conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	scope := g.clients.scope.Add(1)
	for ctx.Err() == nil {
		d, ok, err := ch.Get(queueName(g.queue), false)
		if err != nil {
			return err
		}
		if ok {
			if err := g.one(&d, scope); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(g.rng.Int64N(int64(5 * time.Millisecond)))):
		}
	}
	return nil
}

// one settles a message that was got. The next get is the round trip behind its
// ack, but isn't taken for a fence: it would be one of a single message.
func (g *getter) one(d *amqp.Delivery, scope uint64) error {
	id, ok := g.receive(g.queue, d, scope)
	switch {
	case !ok:
		return d.Ack(false)
	case g.rng.IntN(10) == 0:
		g.check.Requeued(id)
		return d.Nack(false, true)
	default:
		g.check.Acked(id)
		return d.Ack(false)
	}
}
