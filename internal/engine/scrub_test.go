package engine

import (
	"log/slog"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// TestScrub: damage is found where nobody reads, in a segment as well as in a sealed file
// of the log, and settled; a second pass finds nothing new.
func TestScrub(t *testing.T) {
	disk := vfs.NewMem()
	n, err := Open(NodeConfig{FS: disk, Dir: "d", Shards: 1, WALFileBytes: 64 << 10, WALFiles: 100, TailCache: 1, ScrubBytes: -1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	s := n.Queues()[0]
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	const messages = 40
	for range messages {
		if _, err := s.Do(func(b *msg.Builder) { appendTo(b, 1, 1, 9000) }); err != nil {
			t.Fatal(err)
		}
	}
	// The keeper has nothing to do by itself, with so many files.
	if err := n.keeper.retire(n.wal.Sealed()[0]); err != nil {
		t.Fatal(err)
	}
	segs, sealed := n.store.Segments(1), n.wal.Sealed()
	if len(segs) == 0 || len(sealed) == 0 {
		t.Fatal(len(segs), len(sealed))
	}
	sub := s.m.tail.upTo(sealed[len(sealed)-1].Seq)
	for path, at := range map[string]int64{
		"d/seg/1/00000001.seg":                          2000,
		"d/" + ofWAL(1, walDamage(sub[0].pos, "")).Path: int64(sub[0].pos.Off) + 100,
	} {
		if err := vfs.FlipBit(disk, path, 8*at); err != nil {
			t.Fatal(err)
		}
	}
	sc := newScrubber(n, 0)
	for range 2 {
		if err := sc.pass(); err != nil {
			t.Fatal(err)
		}
		lost := uint64(0)
		for _, in := range n.Damage().Incidents {
			for _, l := range in.Lost {
				lost += l.Last - l.First + 1
			}
		}
		var left uint64
		if _, err := s.Do(func(b *msg.Builder) { b.TermStart() }); err != nil { // after the settlements
			t.Fatal(err)
		}
		s.Call(func() {
			ln, _ := s.m.ledger.Lane(1, 0)
			left = ln.Unsettled()
		})
		if lost != 2 || left != messages-lost {
			t.Fatalf("%d lost, %d of %d left: %+v", lost, left, messages, n.Damage())
		}
	}
	if sc.passes.Load() != 2 || sc.bytes.Load() == 0 || sc.damages.Load() < 2 {
		t.Fatal(sc.passes.Load(), sc.bytes.Load(), sc.damages.Load())
	}
}
