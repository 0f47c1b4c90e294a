package broker

import (
	"testing"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

// txClient is a client with a queue in each of two shards and a volatile one, and three
// messages of each durable one in flight to it.
type txClient struct {
	*client
	b      *Broker
	queues []string // shard 1, shard 2, volatile
	held   []delivered
}

func newTxClient(t *testing.T) *txClient {
	t.Helper()
	b, err := Open(cutConfig(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	c := &txClient{client: newClient(t, b, "tx"), b: b}
	t.Cleanup(c.s.Close)
	c.queues = []string{queueIn(b, "q", 1), queueIn(b, "q", 2), "volatile"}
	for i, q := range c.queues {
		if _, err := c.s.DeclareQueue(QueueSpec{Name: q, Type: route.Classic, Durable: i < 2}); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			break
		}
		for n := range uint64(3) {
			c.publish(t, q, n+1, 10)
		}
		if token, slots := c.pub.Flush(); !c.wait(token, slots) {
			t.Fatal("not confirmed")
		}
		if _, err := c.s.Consume(ConsumeSpec{Queue: q}, func(*Consumer) {}); err != nil {
			t.Fatal(err)
		}
	}
	for len(c.held) < 6 {
		<-c.wake
		got, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		c.held = append(c.held, got...)
	}
	return c
}

func (c *txClient) publish(t *testing.T, q string, n uint64, size int) {
	t.Helper()
	e := msg.Envelope{Key: []byte(q)}
	if _, err := c.pub.Publish(nil, []byte(q), nil, &e, body(n, size)); err != nil {
		t.Fatal(err)
	}
}

// wait waits for the completions of a flush; false when one failed.
func (c *txClient) wait(token uint64, slots uint32) bool {
	for {
		c.mu.Lock()
		done, bad := c.done[token] == slots, c.bad
		c.bad = false
		c.mu.Unlock()
		if done || bad {
			return done
		}
		<-c.wake
	}
}

func (c *txClient) settleAll() {
	for _, d := range c.held {
		c.s.Settle(d.c, d.lane, Ack, []msg.Range{{First: d.off, Count: 1}})
	}
}

// check compares the queues' messages: ready, and in flight.
func (c *txClient) check(t *testing.T, want [3][2]uint64) {
	t.Helper()
	for i, q := range c.queues {
		x, err := c.s.lookup(q)
		if err != nil {
			t.Fatal(err)
		}
		n, err := c.s.shardOf(x).Counts(x.ID)
		if err != nil || n.Ready != want[i][0] || n.Unacked != want[i][1] {
			t.Errorf("queue %s: %+v, want %v, %v", q, n, want[i], err)
		}
	}
}

// What a transaction did is seen by the next request after its commit, in all shards.
func TestTxIsThereWhenAnswered(t *testing.T) {
	c := newTxClient(t)
	c.check(t, [3][2]uint64{{0, 3}, {0, 3}, {0, 0}})
	for _, d := range c.held {
		c.s.Cancel(d.c) // what is published stays ready
	}
	c.pub.BeginTx()
	for i, q := range c.queues {
		for n := range uint64(i + 2) {
			c.publish(t, q, 10+n, 400)
		}
	}
	c.settleAll()
	slots, err := c.pub.CommitTx(1 << 61)
	if err != nil || !c.wait(1<<61, slots) {
		t.Fatal(err, "not committed")
	}
	c.check(t, [3][2]uint64{{2, 0}, {3, 0}, {4, 0}})
}

// Large bodies of a transaction are there with it, and gone without it.
func TestTxWithLargeBodies(t *testing.T) {
	c := newTxClient(t)
	for _, d := range c.held {
		c.s.Cancel(d.c)
	}
	large := func() {
		c.pub.BeginTx()
		for i, q := range c.queues {
			b := largeBody(uint64(20+i), 6000)
			c.begin(t, "", q, b, len(b), false).Publish(&msg.Envelope{})
		}
	}
	large()
	c.pub.RollbackTx()
	awaitParts(t, c.b, 0)
	large()
	slots, err := c.pub.CommitTx(1 << 61)
	if err != nil || !c.wait(1<<61, slots) {
		t.Fatal(err, "not committed")
	}
	c.check(t, [3][2]uint64{{1, 3}, {1, 3}, {1, 0}})
	awaitParts(t, c.b, 3)
	for i, q := range c.queues {
		if err := c.s.Get(q, true, 1, c); err != nil {
			t.Fatal(err)
		}
		d := <-c.gets
		if d == nil {
			t.Fatalf("queue %s is empty", q)
		}
		err := c.rd.Each(d, func(_ msg.Offset, rec *msg.Record) error {
			n, err := wholeNumber(c.rd, d, rec)
			if n != uint64(20+i) {
				t.Errorf("queue %s: message %d", q, n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	c.rd.Flush()
	awaitParts(t, c.b, 0)
}

func TestTxRolledBack(t *testing.T) {
	c := newTxClient(t)
	c.pub.BeginTx()
	c.publish(t, c.queues[0], 10, 10)
	c.pub.RollbackTx()
	if _, slots := c.pub.Flush(); slots != 0 {
		t.Error("something was published")
	}
	c.pub.BeginTx()
	if slots, err := c.pub.CommitTx(1 << 61); err != nil || slots != 0 {
		t.Errorf("an empty transaction: %b, %v", slots, err)
	}
	c.check(t, [3][2]uint64{{0, 3}, {0, 3}, {0, 0}})
}

// A transaction that doesn't fit into one command is refused as a whole.
func TestTxTooLarge(t *testing.T) {
	c := newTxClient(t)
	c.pub.BeginTx()
	for n := range uint64(8) {
		c.publish(t, c.queues[n%2], 10+n, c.s.TxBytesMax()/7)
	}
	c.settleAll()
	if _, err := c.pub.CommitTx(1 << 61); berr.ReasonOf(err) != berr.ResourceError {
		t.Fatalf("error %v", err)
	}
	c.check(t, [3][2]uint64{{0, 3}, {0, 3}, {0, 0}})
	c.pub.BeginTx()
	for n := range uint64(6) {
		c.publish(t, c.queues[n%2], 10+n, c.s.TxBytesMax()/7)
	}
	slots, err := c.pub.CommitTx(1 << 61)
	if err != nil || !c.wait(1<<61, slots) {
		t.Fatal("one that fits is not committed", err)
	}
}

// When a shard can't take part, nothing is done and what was acknowledged is ready again.
func TestTxGivenUp(t *testing.T) {
	c := newTxClient(t)
	for _, d := range c.held {
		c.s.Cancel(d.c)
	}
	c.b.node.Queues()[1].Stop()
	c.pub.BeginTx()
	c.publish(t, c.queues[0], 10, 1000) // so that the first shard coordinates
	c.settleAll()
	slots, err := c.pub.CommitTx(1 << 61)
	if err != nil {
		t.Fatal(err)
	}
	if c.wait(1<<61, slots) {
		t.Fatal("committed without a shard")
	}
	x, err := c.s.lookup(c.queues[0])
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.s.shardOf(x).Counts(x.ID); err != nil || n.Ready != 3 || n.Unacked != 0 {
		t.Errorf("%+v, %v", n, err)
	}
}
