package broker

import (
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

// begin starts a large message and writes b, in odd pieces.
func (c *client) begin(t *testing.T, ex, key string, b []byte, size int, keep bool) *Large {
	t.Helper()
	l, err := c.pub.Begin([]byte(ex), [][]byte{[]byte(key)}, nil, uint64(size), keep)
	if err != nil {
		t.Fatal(err)
	}
	for len(b) > 0 {
		n := min(len(b), 777)
		l.Write(b[:n])
		b = b[n:]
	}
	return l
}

func (c *client) flush(t *testing.T) (ok bool) {
	t.Helper()
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

func (c *client) settle(t *testing.T, d delivered) {
	t.Helper()
	c.s.Settle(d.c, d.lane, Ack, []msg.Range{{First: d.off, Count: 1}})
	token := uint64(1)<<60 | d.number
	slots := c.s.FlushSettlesWait(token)
	for {
		c.mu.Lock()
		ok := c.done[token] == slots
		delete(c.done, token)
		c.mu.Unlock()
		if ok {
			return
		}
		<-c.wake
	}
}

// partsLogs counts the parts logs of all shards.
func partsLogs(b *Broker) (n int) {
	for _, s := range append(b.node.Queues(), b.node.Shard(engine.VolatileShard)) {
		s.Call(func() {
			s.Machine().Ledger().Logs(func(id msg.LogID) bool {
				if msg.IsParts(id) {
					n++
				}
				return true
			})
		})
	}
	return n
}

// awaitParts waits for the sweep, which is some time after the start.
func awaitParts(t *testing.T, b *Broker, want int) {
	t.Helper()
	give := time.After(10 * time.Second)
	for n := partsLogs(b); n != want; n = partsLogs(b) {
		select {
		case <-give:
			t.Fatalf("%d parts logs, want %d", n, want)
		case <-time.After(time.Millisecond):
		}
	}
}

func consumeAll(t *testing.T, c *client, queues ...string) {
	t.Helper()
	for _, q := range queues {
		if _, err := c.s.Consume(ConsumeSpec{Queue: q, Prefetch: 1}, func(*Consumer) {}); err != nil {
			t.Fatal(err)
		}
	}
}

// A body that goes to queues in all shards is stored once in each, is there until the
// last of its queues is done with it, and survives a restart where its queue does.
func TestLargeBodyLivesAsLongAsItsMessages(t *testing.T) {
	disk := vfs.NewMem()
	b, err := Open(cutConfig(disk))
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, b, "a")
	var durable []string
	shards := map[uint16]bool{}
	for _, q := range []string{"a", "b", "c", "d", "volatile"} {
		c.declare(t, QueueSpec{Name: q, Type: route.Classic, Durable: q != "volatile"})
		if q != "volatile" {
			durable = append(durable, q)
		}
		shards[b.table().VHost("/").Queue(q).Shard] = true
		if err := c.s.Bind(BindingSpec{Source: "amq.fanout", Destination: q}); err != nil {
			t.Fatal(err)
		}
	}
	body := largeBody(7, 20_000)
	c.publishOne(t, "a", 1)
	c.begin(t, "amq.fanout", "", body, len(body), false).Publish(&msg.Envelope{})
	c.publishOne(t, "a", 2)
	if n := partsLogs(b); n != len(shards) || n != 3 {
		t.Fatalf("%d parts logs in %d shards", n, len(shards))
	}
	for _, f := range b.QueueFigures() {
		if want := map[string]uint64{"a": 3}[f.Name]; f.Ready != max(want, 1) || f.VHost != "/" {
			t.Errorf("queue %+v", f)
		}
	}
	consumeAll(t, c, "volatile")
	c.settle(t, c.next(t))
	if n := partsLogs(b); n != 2 {
		t.Fatalf("%d parts logs after the volatile queue was emptied", n)
	}
	c.s.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	if b, err = Open(cutConfig(disk)); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c = newClient(t, b, "b")
	defer c.s.Close()
	consumeAll(t, c, "a")
	for _, want := range []uint64{1, 7, 2} { // in the order in which they were published
		d := c.next(t)
		if d.number != want {
			t.Fatalf("message %d, want %d", d.number, want)
		}
		c.settle(t, d)
	}
	if _, err := c.s.PurgeQueue("b"); err != nil {
		t.Fatal(err)
	}
	if n := partsLogs(b); n != 2 {
		t.Fatalf("%d parts logs while each shard has a message", n)
	}
	for _, q := range durable[2:] {
		if _, err := c.s.DeleteQueue(q, false, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := partsLogs(b); n != 0 {
		t.Fatalf("%d parts logs are left", n)
	}
}

// What was begun and not published goes: when it is given up, and after a crash at the
// next start.
func TestUnfinishedLargeBodies(t *testing.T) {
	disk := vfs.NewMem()
	b, err := Open(cutConfig(disk))
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, b, "a")
	c.declare(t, QueueSpec{Name: "q", Type: route.Classic, Durable: true})
	body := largeBody(1, 20_000)
	l := c.begin(t, "", "q", body[:10_000], len(body), false)
	if !c.publishOne(t, "q", 4) || partsLogs(b) != 1 {
		t.Fatalf("%d parts logs while a body comes", partsLogs(b))
	}
	l.Drop()
	if !c.publishOne(t, "q", 5) || partsLogs(b) != 0 {
		t.Fatal("a body that was given up is there")
	}
	c.begin(t, "", "q", body[:10_000], len(body), false)
	whole := c.begin(t, "", "q", body, len(body), false)
	whole.Publish(&msg.Envelope{})
	if !c.flush(t) || partsLogs(b) != 2 {
		t.Fatal("not published")
	}
	left := disk.CrashClone(rand.New(rand.NewPCG(1, 1)), vfs.CrashOptions{})
	c.s.Close()
	_ = b.Close()
	if b, err = Open(cutConfig(left)); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c = newClient(t, b, "b")
	defer c.s.Close()
	awaitParts(t, b, 1)
	if !c.publishOne(t, "q", 6) {
		t.Fatal("not confirmed")
	}
	consumeAll(t, c, "q")
	for _, want := range []uint64{4, 5, 1, 6} {
		d := c.next(t)
		if d.number != want {
			t.Fatalf("message %d, want %d", d.number, want)
		}
		c.settle(t, d)
	}
}

// A body without a queue can be kept to be sent back, and is refused without its parts.
func TestKeptAndIncompleteBodies(t *testing.T) {
	b, err := Open(cutConfig(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := newClient(t, b, "a")
	defer c.s.Close()
	body := largeBody(3, 30_000)
	l := c.begin(t, "", "nobody", body, len(body), true)
	if p := l.Publish(&msg.Envelope{}); p.Routed || p.Slots != 0 {
		t.Fatalf("published to nobody: %+v", p)
	}
	kept, ok := l.Keep()
	if !ok {
		t.Fatal("not kept")
	}
	var got []byte
	if err := c.rd.Kept(kept, func(piece []byte) error { got = append(got, piece...); return nil }); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(body) {
		t.Fatal("other bytes came back")
	}
	kept.Drop()
	if err := c.rd.Kept(kept, func([]byte) error { return nil }); !errors.Is(err, ErrBodyGone) {
		t.Fatalf("a dropped body: %v", err)
	}
	if n := partsLogs(b); n != 0 {
		t.Fatalf("%d parts logs are left", n)
	}
	if _, ok := c.begin(t, "", "nobody", body, len(body), false).Keep(); ok || partsLogs(b) != 0 {
		t.Fatal("kept without being asked to")
	}
	if _, err := c.pub.Begin([]byte("none"), [][]byte{nil}, nil, 9000, false); berr.ReasonOf(err) != berr.NotFound {
		t.Fatalf("no such exchange: %v", err)
	}
	c.declare(t, QueueSpec{Name: "q", Type: route.Classic, Durable: true})
	l = c.begin(t, "", "q", body, len(body), false)
	l.to[0].shard.DropBody(l.log) // as if a part had not been stored
	l.Publish(&msg.Envelope{})
	if c.flush(t) {
		t.Fatal("confirmed without its body")
	}
	if n := partsLogs(b); n != 0 {
		t.Fatalf("%d parts logs are left", n)
	}
}

// A consumer's body is gone when its queue is deleted in the middle, and what follows on
// the reader isn't disturbed.
func TestLargeBodyDeletedWhileRead(t *testing.T) {
	b, err := Open(cutConfig(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := newClient(t, b, "a")
	defer c.s.Close()
	c.declare(t, QueueSpec{Name: "q", Type: route.Classic, Durable: true})
	body := largeBody(3, 200_000)
	c.begin(t, "", "q", body, len(body), false).Publish(&msg.Envelope{})
	c.flush(t)
	consumeAll(t, c, "q")
	<-c.wake
	c.mu.Lock()
	d := c.in[0]
	c.in = nil
	c.mu.Unlock()
	if want := uint64(len(body)); d.Count != 1 || d.Bytes < want || d.Bytes > want+1000 {
		t.Fatalf("%d messages of %d bytes are delivered", d.Count, d.Bytes)
	}
	pieces := 0
	err = c.rd.Each(&d, func(_ msg.Offset, rec *msg.Record) error {
		return c.rd.Body(&d, rec, func([]byte) error {
			if pieces++; pieces == 1 {
				_, err := c.s.DeleteQueue("q", false, false)
				return err
			}
			return nil
		})
	})
	if !errors.Is(err, ErrBodyGone) || pieces == 0 || pieces >= 200 {
		t.Fatalf("%d pieces, %v", pieces, err)
	}
	c.declare(t, QueueSpec{Name: "q", Type: route.Classic, Durable: true})
	c.publishOne(t, "q", 9)
	consumeAll(t, c, "q")
	if d := c.next(t); d.number != 9 {
		t.Fatalf("message %d", d.number)
	}
}

// A body of 64 MiB passes through a durable and a volatile queue with only a few parts of
// it in memory at any time, on the side of the publisher and of the consumer.
func TestLargeBodiesTakeLittleMemory(t *testing.T) {
	const size, limit = 64 << 20, 32 << 20
	b, err := Open(Config{Dir: t.TempDir(), Shards: 1, Node: engine.NodeConfig{
		WALFileBytes: 4 << 20, WALFiles: 2, TailCache: 1 << 20, VolatileMemory: 4 << 20,
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := newClient(t, b, "a")
	defer c.s.Close()
	for _, durable := range []bool{true, false} {
		c.declare(t, QueueSpec{Name: "q", Type: route.Classic, Durable: durable})
		base := heap()
		piece := make([]byte, 128<<10)
		sum := crc32.NewIEEE()
		l, err := c.pub.Begin(nil, [][]byte{[]byte("q")}, nil, size, false)
		if err != nil {
			t.Fatal(err)
		}
		grown := int64(0)
		for i := range size / len(piece) {
			piece[i%len(piece)]++
			_, _ = sum.Write(piece)
			l.Write(piece)
			if i%16 == 0 {
				grown = max(grown, heap()-base)
			}
		}
		l.Publish(&msg.Envelope{})
		if !c.flush(t) {
			t.Fatal("not confirmed")
		}
		want, pieces := sum.Sum32(), 0
		sum.Reset()
		if err := c.s.Get("q", false, 1, c); err != nil {
			t.Fatal(err)
		}
		d := <-c.gets
		err = c.rd.Each(d, func(_ msg.Offset, rec *msg.Record) error {
			return c.rd.Body(d, rec, func(piece []byte) error {
				_, _ = sum.Write(piece)
				if pieces++; pieces%16 == 0 {
					grown = max(grown, heap()-base)
				}
				return nil
			})
		})
		if err != nil || sum.Sum32() != want {
			t.Fatalf("durable %v: other bytes in %d pieces, %v", durable, pieces, err)
		}
		if grown > limit {
			t.Errorf("durable %v: %d bytes in memory at once", durable, grown)
		}
		t.Logf("durable %v: %d KiB in memory at most", durable, grown>>10)
		if _, err := c.s.DeleteQueue("q", false, false); err != nil {
			t.Fatal(err)
		}
	}
}

// heap returns the bytes in memory that are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
