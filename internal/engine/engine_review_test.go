package engine

import (
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
)

// user is a consumer's session.
type user struct {
	c    *Consumer
	got  atomic.Int64 // messages
	gets atomic.Int64 // answers
}

func (u *user) Base() *Consumer           { return u.c }
func (u *user) Deliver(d *queue.Delivery) { u.got.Add(int64(d.Count)) }

// GetFailed implements Sink.
func (u *user) GetFailed(uint64, error) {}

func (u *user) Got(uint64, *queue.Delivery, uint64) { u.gets.Add(1) }
func (u *user) Canceled(*Consumer)                  {}
func (u *user) Hungry(queue.Pool)                   {}
func newUser(s *Shard, qc queue.Consumer) *user {
	u := &user{}
	qc.User = u
	u.c = s.NewConsumer(qc, u)
	return u
}

// noMeta is a shard 0 without definitions.
type noMeta struct{}

func (noMeta) Apply(*shard.Command) shard.Result                 { return shard.Result{} }
func (noMeta) Lead(uint64)                                       {}
func (noMeta) Follow()                                           {}
func (noMeta) Drive(*msg.Builder) bool                           { return false }
func (noMeta) BeginCheckpoint()                                  {}
func (noMeta) CheckpointSlice(int, func(key, value []byte)) bool { return true }
func (noMeta) Restore(_, _ []byte) error                         { return nil }
func (noMeta) Reset()                                            {}

func openNode(t *testing.T, fsys vfs.FS) *Node {
	t.Helper()
	n, err := Open(NodeConfig{
		FS: fsys, Dir: "data", Shards: 1, Meta: noMeta{}, MetaLoaded: func() error { return nil },
		WALFileBytes: 64 << 10, WALFiles: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func appendTo(b *msg.Builder, log msg.LogID, n, size int) {
	for range n {
		b.Append([]msg.Target{{Log: log}}, &msg.Envelope{}, make([]byte, size))
	}
}

// TestReleaseForgetsWaitingGet: a get whose session ends before its reservation is
// durable takes nothing out of the queue.
func TestReleaseForgetsWaitingGet(t *testing.T) {
	var gate atomic.Pointer[chan struct{}]
	fsys := vfs.Inject(vfs.NewMem(), func(op vfs.Op) error {
		if g := gate.Load(); g != nil && op.Kind == vfs.OpWrite && strings.HasPrefix(op.Path, filepath.Join("data", "wal")) {
			<-*g
		}
		return nil
	})
	n := openNode(t, fsys)
	defer func() { _ = n.Close() }()
	s := n.Queues()[0]
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Do(func(b *msg.Builder) { appendTo(b, 1, 1, 10) }); err != nil {
		t.Fatal(err)
	}
	g := make(chan struct{})
	gate.Store(&g)
	u := newUser(s, queue.Consumer{Log: 1})
	s.Get(u.c, 1)
	s.Release(u.c)
	gate.Store(nil)
	close(g)
	if _, err := s.Do(func(b *msg.Builder) { b.TermStart() }); err != nil { // behind the reservation
		t.Fatal(err)
	}
	c, err := s.Counts(1)
	if err != nil || c.Ready != 1 || c.Unacked != 0 {
		t.Fatalf("%+v, %v: the message went to a session that has ended", c, err)
	}
}

// volatileShard is a running volatile shard with a store, and a keeper that does
// nothing by itself.
func volatileShard(t *testing.T) (*Shard, *Keeper) {
	t.Helper()
	st, _, err := store.Open(store.Options{FS: vfs.NewMem(), Dir: "data"})
	if err != nil {
		t.Fatal(err)
	}
	m := New(Config{Shard: VolatileShard, Volatile: true, Store: st})
	mem := &memory{m: m, now: time.Now}
	m.Bind(mem)
	s := newShard(shard.NewWith(VolatileShard, mem), m)
	s.Start()
	s.Call(func() {}) // its first turn makes it lead
	k := newKeeper(st, slog.Default(), 2, 1)
	k.volatile = s
	t.Cleanup(func() { s.Stop(); _ = st.Close() })
	return s, k
}

// TestSpillMeetsConsumers: messages of a volatile queue that are settled while they are
// on their way to the disk are left out.
func TestSpillMeetsConsumers(t *testing.T) {
	s, k := volatileShard(t)
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil); b.Ensure(2, nil) }); err != nil {
		t.Fatal(err)
	}
	for _, log := range []msg.LogID{1, 2, 1} {
		if _, err := s.Do(func(b *msg.Builder) { appendTo(b, log, 2, 100) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, log := range []msg.LogID{2, 1} { // the second submission, then the first
		jobs, _, ok := s.collect(3)
		if !ok {
			t.Fatal("stopped")
		}
		gone := []msg.Range{{First: 0, Count: 2}}
		if _, err := s.Do(func(b *msg.Builder) { b.Settle(log, 0, msg.Acked, gone) }); err != nil {
			t.Fatal(err)
		}
		metas, _, err := k.write(s, jobs, 3)
		if err != nil || len(metas) != 1 {
			t.Fatalf("%d segments, %v", len(metas), err)
		}
		k.store.Discard(metas)
	}
}

// TestSpillKeepsNoList: a volatile shard has no checkpoint to tell what was spilled.
func TestSpillKeepsNoList(t *testing.T) {
	s, k := volatileShard(t)
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := s.Do(func(b *msg.Builder) { appendTo(b, 1, 1, 100) }); err != nil {
			t.Fatal(err)
		}
	}
	if !k.volatilePressure() {
		t.Error("publishers need not wait for a shard beyond its budget")
	}
	k.spillVolatile()
	if k.volatilePressure() {
		t.Error("publishers wait for a shard that has spilled")
	}
	s.Call(func() {
		if n := len(s.m.cut.dead) + len(s.m.cut.fresh); n > 0 {
			t.Errorf("%d submissions are remembered for a checkpoint", n)
		}
		if n := len(s.m.places.lanes[lane{1, 0}].runs); n != 1 {
			t.Errorf("%d runs", n)
		}
	})
}

// TestNothingIsDeliveredAfterExactReserves: what is delivered after a clean stop has
// said how far deliveries went would come back unflagged.
func TestNothingIsDeliveredAfterExactReserves(t *testing.T) {
	s, _ := volatileShard(t)
	_, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil); b.Reserve(1, 0, 100) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Do(func(b *msg.Builder) { appendTo(b, 1, 5, 10); b.Reserve(1, 0, 100) }); err != nil {
		t.Fatal(err)
	}
	u := newUser(s, queue.Consumer{Log: 1})
	s.Call(func() { // as when the consumer attaches in the turn of the stop
		if err := s.m.dispatch.Attach(&u.c.Consumer); err != nil {
			t.Error(err)
		}
		s.m.dispatch.ExactReserves(func(msg.LogID, uint8, msg.Offset) {})
		s.m.Follow()
		var b msg.Builder
		s.m.Drive(&b)
	})
	if n := u.got.Load(); n != 0 {
		t.Fatalf("%d messages delivered", n)
	}
}

// TestCloseOnFullDisk: a clean stop doesn't wait for space.
func TestCloseOnFullDisk(t *testing.T) {
	disk := vfs.NewMem()
	n := openNode(t, disk)
	s := n.Queues()[0]
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	disk.SetLimit(1)
	for starved := false; !starved; {
		var b msg.Builder
		appendTo(&b, 1, 1, 10_000)
		s.Submit(shard.Sub{Chunk: b.Finish()}) // as a settlement, which is never refused
		s.Call(func() { starved = s.Core().Starved() })
	}
	closed := make(chan error, 1)
	go func() { closed <- n.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for space")
	}
}

// TestLateSettlement: a settlement that arrives when its message has been returned and
// is another consumer's changes nothing.
func TestLateSettlement(t *testing.T) {
	s, _ := volatileShard(t)
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Do(func(b *msg.Builder) { appendTo(b, 1, 3, 10) }); err != nil {
		t.Fatal(err)
	}
	u := newUser(s, queue.Consumer{Log: 1})
	if err := s.Attach(u.c, func() {}); err != nil {
		t.Fatal(err)
	}
	s.Call(func() {}) // a turn for the reservation, and one to deliver
	for u.got.Load() < 3 {
		s.Call(func() {})
	}
	w := newWaiter()
	ack := func(c *Consumer, first, n uint64) {
		s.Settle([]Settled{{Consumer: c, Reason: msg.Acked, Ranges: []msg.Range{{First: first, Count: n}}}}, false, w, 1)
		if res := <-w.ch; res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	ack(u.c, 0, 1)
	s.Release(u.c)
	ack(u.c, 0, 3)
	if c, err := s.Counts(1); err != nil || c.Ready != 2 || c.Unacked != 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	s.Stop()
	s.Settle(nil, false, w, 1)
	if res := <-w.ch; res.Err == nil {
		t.Fatal("settled by a shard that has stopped")
	}
}
