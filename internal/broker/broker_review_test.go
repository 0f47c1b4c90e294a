package broker

import (
	"testing"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/meta"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/vfs"
)

func openOn(t *testing.T, fsys vfs.FS) *Broker {
	t.Helper()
	b, err := Open(Config{Dir: "data", FS: fsys, Shards: 1, Node: smallNode()})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c *client) declare(t *testing.T, spec QueueSpec) {
	t.Helper()
	if _, err := c.s.DeclareQueue(spec); err != nil {
		t.Fatal(err)
	}
}

// publishOne publishes and waits; false if it was not confirmed.
func (c *client) publishOne(t *testing.T, key string, n uint64) bool {
	t.Helper()
	if _, err := c.pub.Publish(nil, []byte(key), nil, &msg.Envelope{}, body(n, 10)); err != nil {
		t.Fatal(err)
	}
	token, slots := c.pub.Flush()
	for {
		c.mu.Lock()
		ok, bad := c.done[token] == slots, c.bad
		c.bad = false
		c.mu.Unlock()
		if ok || bad {
			return ok
		}
		<-c.wake
	}
}

// next waits for the next message.
func (c *client) next(t *testing.T) delivered {
	t.Helper()
	for {
		got, err := c.read()
		if err != nil || len(got) > 1 {
			t.Fatalf("%d messages at once, %v", len(got), err)
		}
		if len(got) == 1 {
			return got[0]
		}
		<-c.wake
	}
}

// TestSharedCreditComesBackWithCountedReturn: credit that a channel's consumers share is
// free again when a requeue that counts is applied, and who waits for it must be told.
func TestSharedCreditComesBackWithCountedReturn(t *testing.T) {
	for _, how := range []string{"returned", "queue deleted"} {
		t.Run(how, func(t *testing.T) {
			b := openOn(t, vfs.NewMem())
			defer func() { _ = b.Close() }()
			c := newClient(t, b, "a")
			defer c.s.Close()
			pool := NewPool(1)
			var list []*Consumer
			for i, q := range []string{"first", "second"} {
				c.declare(t, QueueSpec{Name: q, Type: route.Quorum, Durable: true})
				cons, err := c.s.Consume(ConsumeSpec{Queue: q, Messages: pool}, func(*Consumer) {})
				if err != nil {
					t.Fatal(err)
				}
				list = append(list, cons)
				if i == 0 {
					c.publishOne(t, q, 1)
				}
			}
			d := c.next(t)
			c.publishOne(t, "second", 2)
			for !pool.starved.Load() { // the second consumer has asked
				_, _ = c.s.QueueStatus("second")
			}
			c.s.Cancel(list[0])
			c.s.Settle(d.c, d.lane, Requeue, []msg.Range{{First: d.off, Count: 1}})
			c.s.FlushSettles()
			if how != "returned" {
				if _, err := c.s.DeleteQueue("first", false, false); err != nil {
					t.Fatal(err)
				}
			}
			if d := c.next(t); d.number != 2 {
				t.Fatalf("got %d", d.number)
			}
		})
	}
}

// TestSealedQueueIsOpenedAgain: a crash between the two halves of a conditional deletion
// leaves a queue that takes messages.
func TestSealedQueueIsOpenedAgain(t *testing.T) {
	disk := vfs.NewMem()
	b := openOn(t, disk)
	c := newClient(t, b, "a")
	c.declare(t, QueueSpec{Name: "q", Type: route.Classic, Durable: true})
	q := b.table().VHost("/").Queue("q")
	if _, err := b.node.Shard(uint32(q.Shard)).Do(func(mb *msg.Builder) { mb.Seal(q.ID, 0) }); err != nil {
		t.Fatal(err)
	}
	if c.publishOne(t, "q", 1) {
		t.Error("confirmed what no queue took")
	}
	c.s.Close()
	_ = b.Close()
	b = openOn(t, disk)
	defer func() { _ = b.Close() }()
	c = newClient(t, b, "b")
	defer c.s.Close()
	if !c.publishOne(t, "q", 2) {
		t.Fatal("not confirmed after the restart")
	}
	if st, err := c.s.QueueStatus("q"); err != nil || st.Messages != 1 {
		t.Fatalf("%+v, %v", st, err)
	}
}

// TestDeleteIfEmpty: messages that are ready keep a queue, those in flight don't.
func TestDeleteIfEmpty(t *testing.T) {
	b := openOn(t, vfs.NewMem())
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "a")
	defer c.s.Close()
	c.declare(t, QueueSpec{Name: "q", Type: route.Classic, Durable: true})
	c.publishOne(t, "q", 1)
	if _, err := c.s.DeleteQueue("q", false, true); err == nil {
		t.Fatal("deleted with a message")
	}
	if !c.publishOne(t, "q", 2) {
		t.Fatal("takes no messages any more")
	}
	for range 2 {
		if err := c.s.Get("q", false, 1, c); err != nil {
			t.Fatal(err)
		}
		if <-c.gets == nil {
			t.Fatal("a message is gone")
		}
	}
	if _, err := c.s.DeleteQueue("q", false, true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.s.QueueStatus("q"); err == nil {
		t.Fatal("the queue is still there")
	}
}

// TestDeclareWaitsForTheLog: who is told that a queue exists may publish to it, though
// the session that makes it has not come to its log yet.
func TestDeclareWaitsForTheLog(t *testing.T) {
	b := openOn(t, vfs.NewMem())
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "a")
	defer c.s.Close()
	if _, err := b.define(meta.DeclareQueue{Queue: route.Queue{
		Name: "q", VHost: "/", Type: route.Classic, Durable: true, Shard: 1,
	}}); err != nil {
		t.Fatal(err)
	}
	c.declare(t, QueueSpec{Name: "q", Type: route.Classic, Durable: true})
	if !c.publishOne(t, "q", 1) {
		t.Fatal("not confirmed")
	}
	if st, err := c.s.QueueStatus("q"); err != nil || st.Messages != 1 {
		t.Fatalf("%+v, %v: a confirmed message is lost", st, err)
	}
}

// TestPartFailureIsItsPublishers: the failure of a part of a flush is told with that
// flush, whatever completes on the session in between.
func TestPartFailureIsItsPublishers(t *testing.T) {
	b := openOn(t, vfs.NewMem())
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "a")
	defer c.s.Close()
	c.pub.done.Completed(1, 7|partialBit, shard.Result{Err: shard.ErrTooLarge})
	c.s.done.Completed(1, 8, shard.Result{})
	if c.bad {
		t.Error("the failure was told to a settlement")
	}
	c.pub.done.Completed(1, 7, shard.Result{})
	if !c.bad {
		t.Error("a flush is confirmed of which a part failed")
	}
	c.bad = false
	c.pub.done.Completed(1, 9, shard.Result{})
	if c.bad {
		t.Error("the next flush failed too")
	}
	// A refusal overtakes the answer to an earlier flush.
	c.pub.done.Completed(1, 11|partialBit, shard.Result{Err: shard.ErrTooLarge})
	c.pub.done.Completed(1, 10, shard.Result{})
	if c.bad {
		t.Error("the failure was told to the flush before")
	}
	c.pub.done.Completed(1, 11, shard.Result{})
	if !c.bad || c.pub.done.some.Load() != 0 {
		t.Error("a flush is confirmed of which a part was refused")
	}
}

// TestBlockedUntilTheLastReason: one shard that can write again does not let publishers
// in while another can't.
func TestBlockedUntilTheLastReason(t *testing.T) {
	b := openOn(t, vfs.NewMem())
	defer func() { _ = b.Close() }()
	c := &told{newClient(t, b, "a"), make(chan bool, 8)}
	defer c.s.Close()
	s, err := b.Open(Identity{ID: "b", VHost: "/", User: "guest"}, c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b.diskRefuses(1, true)
	b.diskRefuses(2, true)
	await(t, "blocked", c.blocked, true)
	b.diskRefuses(1, false)
	late := &told{c.client, make(chan bool, 8)}
	s2, err := b.Open(Identity{ID: "c", VHost: "/", User: "guest"}, late)
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	await(t, "a late session", late.blocked, true)
	b.diskRefuses(2, false)
	await(t, "unblocked", c.blocked, false)
	await(t, "unblocked, late", late.blocked, false)
}

// TestVolatileSpillsAndDelivers: a volatile shard that spills while it is consumed delivers
// everything once and in order.
func TestVolatileSpillsAndDelivers(t *testing.T) {
	b := openOn(t, vfs.NewMem())
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "a")
	defer c.s.Close()
	c.declare(t, QueueSpec{Name: "v", Type: route.Classic})
	cons, err := c.s.Consume(ConsumeSpec{Queue: "v", Prefetch: 50}, func(*Consumer) {})
	if err != nil {
		t.Fatal(err)
	}
	if cons.base.Shard() != b.node.Shard(engine.VolatileShard) {
		t.Fatal("not volatile")
	}
	const total = 3000
	go func() {
		for n := uint64(1); n <= total; n++ {
			_, _ = c.pub.Publish(nil, []byte("v"), nil, &msg.Envelope{}, body(n, 500))
			c.pub.Flush()
		}
	}()
	for seen := uint64(0); seen < total; {
		got, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range got {
			if d.number != seen+1 || d.redelivered {
				t.Fatalf("message %d after %d, redelivered %v", d.number, seen, d.redelivered)
			}
			seen++
			c.s.Settle(cons, d.lane, Ack, []msg.Range{{First: d.off, Count: 1}})
		}
		c.s.FlushSettles()
		if len(got) == 0 {
			<-c.wake
		}
	}
}

// TestIDsOfQueuesAreNotInternal: ids of queues never look like those of the logs that a
// shard makes for itself.
func TestIDsOfQueuesAreNotInternal(t *testing.T) {
	for _, id := range []uint64{1, meta.LocalIDBit - 1, meta.LocalIDBit | 1, 2*meta.LocalIDBit - 1} {
		if msg.IsInternal(id) {
			t.Errorf("id %#x of a queue is taken for an internal log's", id)
		}
	}
}

// TestNotConfirmedBeforeTheLogIsThere: a queue is visible to routing a moment before its
// log is made. What is published to it in between is stored nowhere, so it isn't
// confirmed either.
func TestNotConfirmedBeforeTheLogIsThere(t *testing.T) {
	b := openOn(t, vfs.NewMem())
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "c")
	q := route.Queue{Name: "q", VHost: "/", Type: route.Classic, Durable: true, Shard: 1}
	r, err := b.define(meta.DeclareQueue{Queue: q})
	if err != nil {
		t.Fatal(err)
	}
	if c.publishOne(t, "q", 1) {
		t.Error("confirmed, and stored nowhere")
	}
	c.declare(t, QueueSpec{Name: "q", Durable: true}) // makes what is missing
	if !c.publishOne(t, "q", 2) {
		t.Error("not confirmed when the log is there")
	}
	if n, err := b.node.Shard(1).Counts(r.Queue.ID); err != nil || n.Ready != 1 {
		t.Errorf("%d ready, %v", n.Ready, err)
	}
}
