package engine

import (
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
)

// TestRetireAfterRestarts: a message that lies in a file of the write-ahead log moves to a
// segment when the file is given back, also if the log, after two restarts, doesn't know
// the entries there any more because a checkpoint covers them.
func TestRetireAfterRestarts(t *testing.T) {
	fsys := vfs.NewMem()
	open := func() *Node {
		n, err := Open(NodeConfig{
			FS: fsys, Dir: "data", Shards: 1, WALFileBytes: 64 << 10, WALFiles: 100, CheckpointEntries: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	do := func(n *Node, build func(b *msg.Builder)) {
		t.Helper()
		if _, err := n.Queues()[0].Do(build); err != nil {
			t.Fatal(err)
		}
	}
	n := open()
	do(n, func(b *msg.Builder) { b.Ensure(1, nil); b.Ensure(2, nil) })
	do(n, func(b *msg.Builder) { appendTo(b, 1, 1, 10) })
	for range 3 { // each start begins a file, whose header says where the log begins
		do(n, func(b *msg.Builder) { appendTo(b, 2, 1, 48<<10) })
		do(n, func(b *msg.Builder) { appendTo(b, 2, 1, 48<<10) })
		var applied uint64
		n.Queues()[0].Call(func() { applied = n.Queues()[0].Core().Applied() })
		if err := n.keeper.checkpointed(1, applied, false); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		n = open()
	}
	defer func() { _ = n.Close() }()
	for _, f := range n.wal.Sealed() {
		if err := n.keeper.retire(f); err != nil {
			t.Fatal(err)
		}
		if from, to := n.queues[0].m.tail.span(f.Seq); from != to {
			t.Fatalf("file %d is given back with %d submissions that are needed", f.Seq, to-from)
		}
	}
	s := n.Queues()[0]
	u := newUser(s, queue.Consumer{Log: 1})
	var d queue.Delivery
	s.Call(func() {
		d = queue.Delivery{Consumer: &u.c.Consumer, Log: 1, Count: 1}
		d.Src, _, _ = s.m.Locate(1, 0, 0, 1)
	})
	var r Reader
	defer r.Close()
	found := 0
	err := r.Each(&d, func(msg.Offset, *msg.Record) error { found++; return nil })
	if err != nil || found != 1 {
		t.Fatalf("%d messages found (%v), 1 was stored", found, err)
	}
}

// TestFlushedOnlyGrows: a start that flushes a file again, and has applied less by then than
// the one that did it first, doesn't forget up to where segments reach. Until it has come
// so far, what lies beyond looks as if nobody needed it.
func TestFlushedOnlyGrows(t *testing.T) {
	n := openNode(t, vfs.NewMem())
	defer func() { _ = n.Close() }()
	s := n.Queues()[0]
	want := store.Flushed{WALSeq: 29, Index: 249}
	var e store.Edit
	e.SetFlushed(1, want)
	if err := n.store.Install(&e); err != nil {
		t.Fatal(err)
	}
	if err := n.keeper.flush(s, 22, 0); err != nil {
		t.Fatal(err)
	}
	if got := n.store.Flushed(1); got != want {
		t.Fatalf("flushed up to %+v, was %+v", got, want)
	}
}
