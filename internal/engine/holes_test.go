package engine

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/vfs"
)

// failures is a Sink that waits for the answers of gets.
type failures struct {
	*user
	failed chan error
}

func (f *failures) GetFailed(_ uint64, err error) { f.failed <- err }

// TestGetOnFailedShard: gets that wait when the shard fails are told, and so are those
// that come later.
func TestGetOnFailedShard(t *testing.T) {
	fail := make(chan struct{})
	fsys := vfs.Inject(vfs.NewMem(), func(op vfs.Op) error {
		select {
		case <-fail:
			if op.Kind == vfs.OpSync && strings.Contains(op.Path, "wal") {
				return syscall.EIO
			}
		default:
		}
		return nil
	})
	n := openNode(t, fsys)
	defer func() { _ = n.Close() }()
	s := n.Queues()[0]
	fillLog(t, s, 1, 5000)
	close(fail)
	const gets = 3000 // more than are reserved ahead
	f := &failures{newUser(s, queue.Consumer{Log: 1}), make(chan error, gets)}
	f.c.Sink = f
	for i := range uint64(gets) {
		s.Get(f.c, i)
	}
	if err := <-f.failed; !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	s.Call(func() {})
	if n := int(f.gets.Load()) + 1 + len(f.failed); n != gets {
		t.Fatalf("%d of %d answered", n, gets)
	}
}

// fillLog makes a log with n messages.
func fillLog(t *testing.T, s *Shard, log msg.LogID, n int) {
	t.Helper()
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(log, nil) }); err != nil {
		t.Fatal(err)
	}
	for ; n > 0; n -= 500 {
		if _, err := s.Do(func(b *msg.Builder) { appendTo(b, log, min(n, 500), 1) }); err != nil {
			t.Fatal(err)
		}
	}
}

// settleEvery settles every second message, so that what is left is one range each.
func settleEvery(t *testing.T, s *Shard, n uint64) {
	t.Helper()
	for at := uint64(0); at < n; {
		var rs []msg.Range
		for ; at < n && len(rs) < 1000; at += 2 {
			rs = append(rs, msg.Range{First: at, Count: 1})
		}
		if _, err := s.Do(func(b *msg.Builder) { b.Settle(1, 0, msg.Acked, rs) }); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPurgeOfManyRanges: a purge that names more ranges than a file of the write-ahead
// log has room for goes out in parts.
func TestPurgeOfManyRanges(t *testing.T) {
	n := openNode(t, vfs.NewMem())
	defer func() { _ = n.Close() }()
	s := n.Queues()[0]
	const messages = 100_000
	fillLog(t, s, 1, messages)
	settleEvery(t, s, messages)
	if n, err := s.Purge(1); err != nil || n != messages/2 {
		t.Fatalf("purged %d, %v", n, err)
	}
	if c, err := s.Counts(1); err != nil || c != (queue.Counts{}) {
		t.Fatalf("%+v, %v", c, err)
	}
}

// TestPurgeThatFails: what a purge could not settle is ready again.
func TestPurgeThatFails(t *testing.T) {
	s, _ := volatileShard(t)
	fillLog(t, s, 1, 10)
	s.Call(func() {
		held := s.m.dispatch.HoldAll(1)
		if c := s.m.dispatch.Counts(1); c.Ready != 0 {
			t.Errorf("%d ready while held", c.Ready)
		}
		s.m.release(1, held)
	})
	if c, err := s.Counts(1); err != nil || c.Ready != 10 {
		t.Fatalf("%+v, %v", c, err)
	}
}

// TestRetiredLogTakesNoConsumers: between the last consumer's leaving and the deletion
// that it leads to nobody can attach.
func TestRetiredLogTakesNoConsumers(t *testing.T) {
	s, _ := volatileShard(t)
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	u, v := newUser(s, queue.Consumer{Log: 1}), newUser(s, queue.Consumer{Log: 1})
	if err := s.Attach(u.c, func() {}); err != nil {
		t.Fatal(err)
	}
	if s.Retire(1) {
		t.Fatal("retired with a consumer")
	}
	s.Detach(u.c)
	if !s.Retire(1) || s.Retire(1) {
		t.Fatal("not retired once")
	}
	if err := s.Attach(v.c, func() {}); !errors.Is(err, queue.ErrUnknownLog) {
		t.Fatal(err)
	}
	s.Unretire(1)
	if err := s.Attach(v.c, func() {}); err != nil {
		t.Fatal(err)
	}
}

// TestNotesAreForgottenInTurns: a deletion frees the memory of many submissions, though
// not in one turn.
func TestNotesAreForgottenInTurns(t *testing.T) {
	s, _ := volatileShard(t)
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	for range 3*trimMax + 1 {
		var b msg.Builder
		appendTo(&b, 1, 1, 1)
		s.Submit(shard.Sub{Chunk: b.Finish()})
	}
	// Asked on the loop, right after the deletion was applied.
	held := make(heldSubs, 1)
	var b msg.Builder
	b.Delete(1)
	s.Submit(shard.Sub{Chunk: b.Finish(), Done: subsCounter{s.m, held}})
	if n := <-held; n < 2*trimMax {
		t.Errorf("%d of %d submissions are held when the deletion is applied: forgotten at once", n, 3*trimMax+1)
	}
	for left := 1; left > 0; {
		s.Call(func() { left = len(s.m.later) + len(s.m.tail.subs) })
	}
}

// subsCounter tells how many submissions a machine holds when its own is applied.
type (
	heldSubs    chan int
	subsCounter struct {
		m   *Machine
		out heldSubs
	}
)

// Completed implements shard.Completer.
func (c subsCounter) Completed(uint32, uint64, shard.Result) { c.out <- len(c.m.tail.subs) }

// TestCollectWhileLanesComeAndGo: what is unsettled is found, lane by lane, while logs
// are made and deleted between the slices.
func TestCollectWhileLanesComeAndGo(t *testing.T) {
	s, _ := volatileShard(t)
	const logs = 4 * sliceOfWork
	for log := msg.LogID(1); log <= logs; log++ {
		fillLog(t, s, log, 1)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for log := msg.LogID(logs + 1); ; log++ {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = s.Do(func(b *msg.Builder) { b.Ensure(log, nil) })
			_, _ = s.Do(func(b *msg.Builder) { appendTo(b, log, 1, 1) })
			_, _ = s.Do(func(b *msg.Builder) { b.Delete(log) })
		}
	}()
	jobs, _, ok := s.collect(logs)
	close(stop)
	<-stopped
	seen := map[msg.LogID]int{}
	for _, j := range jobs {
		seen[j.k.log]++
	}
	for log := msg.LogID(1); log <= logs; log++ {
		if seen[log] != 1 {
			t.Fatalf("log %d was found %d times, %v", log, seen[log], ok)
		}
	}
	if len(seen) != logs {
		t.Fatalf("%d logs", len(seen))
	}
}

// TestDamageInVolatileSegment: what is damaged of messages that don't outlive the
// process stops no start.
func TestDamageInVolatileSegment(t *testing.T) {
	disk := vfs.NewMem()
	n, err := Open(NodeConfig{
		FS: disk, Dir: "data", Shards: 1, Meta: noMeta{}, MetaLoaded: func() error { return nil },
		WALFileBytes: 64 << 10, VolatileMemory: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	v := n.Shard(VolatileShard)
	if _, err := v.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	for len(n.store.Segments(VolatileShard)) == 0 {
		if _, err := v.Do(func(b *msg.Builder) { appendTo(b, 1, 10, 100) }); err != nil {
			t.Fatal(err)
		}
		poke(n.keeper.wake)
	}
	crashed := disk.CrashClone(nil, vfs.CrashOptions{Data: vfs.KeepAll, Names: vfs.KeepAll})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	paths := crashed.Paths("data/seg/")
	if len(paths) == 0 {
		t.Fatal("no segment")
	}
	for _, p := range paths {
		f, err := crashed.OpenReadWrite(p)
		if err == nil {
			err = errors.Join(f.Truncate(100), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	n = openNode(t, crashed)
	if len(n.store.Segments(VolatileShard)) > 0 {
		t.Error("it is still there")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}
