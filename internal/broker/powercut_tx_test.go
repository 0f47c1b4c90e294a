package broker

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

const (
	txShards = 3
	txCount  = 40
)

// txRun is a workload of transactions that take messages from two queues and publish to
// several, in different shards.
type txRun struct {
	cutRun
	b    *Broker
	in   []string // one in each of two shards
	out  []string // one in each shard
	txs  []*txNote
	next uint64
}

// txNote is what a transaction does, and whether its commit was answered.
type txNote struct {
	settled, published []place
	answered           bool
}

// place is a numbered message of a queue.
type place struct {
	queue  string
	number uint64
}

// queueIn returns a name of a queue that lies in a shard.
func queueIn(b *Broker, prefix string, shard uint16) string {
	for i := 0; ; i++ {
		if name := fmt.Sprintf("%s%d", prefix, i); b.shardFor("/", name) == shard {
			return name
		}
	}
}

// declare makes the queues and fills those that are consumed; false when the power failed.
func (w *txRun) declare() bool {
	for s := uint16(1); s <= txShards; s++ {
		w.out = append(w.out, queueIn(w.b, "out", s))
	}
	w.in = []string{queueIn(w.b, "in", 1), queueIn(w.b, "in", 2)}
	for _, q := range append(append([]string{"volatile"}, w.in...), w.out...) {
		if _, err := w.c.s.DeclareQueue(QueueSpec{Name: q, Type: route.Classic, Durable: q != "volatile"}); err != nil {
			return false
		}
	}
	for i := range uint64(60) {
		q := w.in[i%2]
		e := msg.Envelope{Key: []byte(q)}
		if _, err := w.c.pub.Publish(nil, []byte(q), nil, &e, body(i+1, 20)); err != nil {
			return false
		}
		w.o.mark(w.o.published, q, i+1, false)
	}
	if !w.await(w.c.pub.Flush()) {
		return false
	}
	for i := range uint64(60) {
		w.o.mark(w.o.published, w.in[i%2], i+1, true)
	}
	for _, q := range w.in {
		if _, err := w.c.s.Consume(ConsumeSpec{Queue: q, Prefetch: 10}, func(*Consumer) {}); err != nil {
			return false
		}
	}
	return true
}

// publish publishes a numbered message, small or large; false when the power failed.
func (w *txRun) publish(q string, n uint64) bool {
	e := msg.Envelope{Key: []byte(q)}
	if w.rng.IntN(4) > 0 {
		_, err := w.c.pub.Publish(nil, []byte(q), nil, &e, body(n, w.rng.IntN(900)))
		return err == nil
	}
	b := largeBody(n, 4000+w.rng.IntN(3000))
	l, err := w.c.pub.Begin(nil, [][]byte{[]byte(q)}, nil, uint64(len(b)), false)
	if err != nil {
		return false
	}
	l.Write(b)
	l.Publish(&e)
	return true
}

// transact runs one transaction and waits for its end; false when the power failed.
func (w *txRun) transact() bool {
	got, err := w.c.read()
	if err != nil {
		return false
	}
	w.held = append(w.held, got...)
	note := &txNote{}
	w.c.pub.BeginTx()
	targets := append([]string{"volatile"}, w.out...)
	for range 1 + w.rng.IntN(4) {
		q := targets[w.rng.IntN(len(targets))]
		w.next++
		if !w.publish(q, 1000+w.next) {
			return false
		}
		if q != "volatile" {
			note.published = append(note.published, place{q, 1000 + w.next})
		}
	}
	keep := w.held[:0]
	for _, d := range w.held {
		switch w.rng.IntN(3) {
		case 0:
			keep = append(keep, d)
			continue
		case 1:
			if w.rng.IntN(3) == 0 {
				w.c.s.Settle(d.c, d.lane, Requeue, []msg.Range{{First: d.off, Count: 1}})
				continue
			}
		}
		w.c.s.Settle(d.c, d.lane, Ack, []msg.Range{{First: d.off, Count: 1}})
		note.settled = append(note.settled, place{d.c.Queue().Name, d.number})
	}
	w.held = keep
	w.o.mu.Lock()
	w.txs = append(w.txs, note)
	w.o.mu.Unlock()
	token := uint64(1)<<61 | w.next
	slots, err := w.c.pub.CommitTx(token)
	if err != nil || !w.await(token, slots) {
		return false
	}
	w.o.mu.Lock()
	note.answered = !w.off.Load()
	w.o.mu.Unlock()
	return true
}

func txConfig(fsys vfs.FS) Config {
	c := cutConfig(fsys)
	c.Shards = txShards
	return c
}

func txWorkload(t testing.TB, fsys vfs.FS, off *atomic.Bool, o *outcome) []*txNote {
	b, err := Open(txConfig(fsys))
	if err != nil {
		if !off.Load() {
			t.Error(err)
		}
		return nil
	}
	defer func() { _ = b.Close() }()
	ended := make(chan struct{})
	defer close(ended)
	go letGo(b, off, ended)
	w := &txRun{cutRun: cutRun{c: newClient(t, b, "a"), rng: rand.New(rand.NewPCG(*cutSeed, 5)), off: off, o: o}, b: b}
	defer w.c.s.Close()
	if !w.declare() {
		return nil
	}
	for range txCount {
		if !w.transact() {
			break
		}
	}
	return w.txs
}

// letGo closes the broker once the power is off: without it nothing moves, so whoever
// waits for the disk must be let go.
func letGo(b *Broker, off *atomic.Bool, ended chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case <-time.After(20 * time.Millisecond):
			if off.Load() {
				_ = b.Close()
				return
			}
		}
	}
}

// checkTxs opens what a power cut left: each transaction is there as a whole or not at
// all, and as a whole if its commit was answered.
func checkTxs(t *testing.T, disk *vfs.Mem, txs []*txNote, o *outcome) {
	b, err := Open(txConfig(disk))
	if err != nil {
		t.Fatalf("recovery: %v", err)
	}
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "check")
	defer c.s.Close()
	early := deliveredBefore(t, b, c)
	found := map[place]int{}
	for vh := range b.table().VHosts() {
		for q := range vh.Queues() {
			for {
				if err := c.s.Get(q.Name, false, 1, c); err != nil {
					t.Fatal(err)
				}
				d := <-c.gets
				if d == nil {
					break
				}
				err := c.rd.Each(d, func(_ msg.Offset, rec *msg.Record) error {
					n, err := wholeNumber(c.rd, d, rec)
					found[place{q.Name, n}]++
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, p := range early {
		if found[p] == 0 {
			t.Errorf("%v was delivered after the start although it was acknowledged by a transaction that is there", p)
		}
	}
	checkParts(t, b)
	for p, n := range found {
		if n > 1 {
			t.Errorf("%v is there %d times", p, n)
		}
	}
	taken := map[place]bool{}
	for i, x := range txs {
		for _, p := range x.settled {
			taken[p] = true
		}
		checkWhole(t, i, x, found)
	}
	for q, list := range o.published {
		for n, sure := range list {
			if p := (place{q, n}); sure && !taken[p] && found[p] == 0 {
				t.Errorf("%v is lost", p)
			}
		}
	}
}

// deliveredBefore consumes from all queues while what was left unfinished is brought to
// its end, gives everything back and returns what it was given.
func deliveredBefore(t *testing.T, b *Broker, c *client) (out []place) {
	t.Helper()
	var all []*Consumer
	for vh := range b.table().VHosts() {
		for q := range vh.Queues() {
			x, err := c.s.Consume(ConsumeSpec{Queue: q.Name}, func(*Consumer) {})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, x)
		}
	}
	<-b.node.Swept()
	got, err := c.read()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range got {
		out = append(out, place{d.c.Queue().Name, d.number})
	}
	for _, x := range all {
		c.s.Release(x)
	}
	return out
}

func checkWhole(t *testing.T, i int, x *txNote, found map[place]int) {
	t.Helper()
	done, undone := 0, 0
	for _, p := range x.published {
		done += found[p]
		undone += 1 - min(found[p], 1)
	}
	for _, p := range x.settled {
		undone += found[p]
		done += 1 - min(found[p], 1)
	}
	if done > 0 && undone > 0 {
		t.Errorf("transaction %d (answered: %v) is half there: %+v", i, x.answered, x)
	}
	if x.answered && undone > 0 {
		t.Errorf("transaction %d was answered and is not there: %+v", i, x)
	}
}

// TestPowerCutInTransactions fails the power before one operation on the disk after
// another while transactions over several shards commit.
func TestPowerCutInTransactions(t *testing.T) {
	var ops atomic.Int64
	var never atomic.Bool
	txs := txWorkload(t, vfs.Inject(vfs.NewMem(), func(op vfs.Op) error {
		if op.Kind.Mutates() {
			ops.Add(1)
		}
		return nil
	}), &never, newOutcome())
	for i, x := range txs {
		if !x.answered {
			t.Fatalf("transaction %d is not answered", i)
		}
	}
	if len(txs) != txCount {
		t.Fatalf("%d transactions", len(txs))
	}
	total := ops.Load()
	every := *cutEvery
	if every == 0 {
		every = max(total/60, 1)
	}
	for n := int64(1); n <= total; n += every {
		t.Run(fmt.Sprintf("seed=%d/at=%d", *cutSeed, n), func(t *testing.T) {
			t.Parallel()
			cutInTx(t, n)
		})
	}
}

func cutInTx(t *testing.T, n int64) {
	o := newOutcome()
	disk := vfs.NewMem()
	var off atomic.Bool
	var ops atomic.Int64
	var left *vfs.Mem
	rng := rand.New(rand.NewPCG(*cutSeed, uint64(n)))
	opts := []vfs.CrashOptions{{}, {Data: vfs.KeepRandom, Names: vfs.KeepRandom}, {Data: vfs.KeepAll, Names: vfs.KeepAll}}[n%3]
	txs := txWorkload(t, vfs.Inject(disk, func(op vfs.Op) error {
		if !op.Kind.Mutates() {
			return nil
		}
		if k := ops.Add(1); k == n {
			o.mu.Lock() // what clients know is fixed at this moment
			off.Store(true)
			left = disk.CrashClone(rng, opts)
			o.mu.Unlock()
		}
		if off.Load() {
			return errCut
		}
		return nil
	}), &off, o)
	if left == nil {
		left = disk.CrashClone(rng, opts)
	}
	checkTxs(t, left, txs, o)
}
