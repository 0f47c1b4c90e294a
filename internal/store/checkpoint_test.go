package store

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/sluicemq/sluice/internal/vfs"
)

func TestSnapshotKeepsTheCheckpointFile(t *testing.T) {
	disk := vfs.NewMem()
	b := newBroker(t, small(disk), 1)
	b.checkpoint(30)
	snap := b.s.Snapshot(0)
	path := "data/" + snap.CheckpointPath()
	before, err := vfs.ReadFile(disk, path)
	must(t, err)
	for b.s.metrics.bases.Load() == 0 {
		b.checkpoint(30)
	}
	after, err := vfs.ReadFile(disk, path)
	must(t, err)
	if n := snap.Checkpoint.Len; !bytes.Equal(before[:n], after[:n]) {
		t.Fatal("the valid part of a checkpoint file changed")
	}
	snap.Release()
	if _, err := disk.Stat(path); err == nil {
		t.Fatal("the old file is still there")
	}
	b.verify()
	must(t, b.s.Close())
}

func TestCheckpointOfManyKeysTakesPartsOfThem(t *testing.T) {
	disk := vfs.NewMem()
	b := newBroker(t, Options{FS: disk, Dir: "data"}, 1)
	for range 20 {
		b.checkpoint(200)
	}
	info, _ := b.s.Checkpoint(0)
	if info.Pairs != 4000 {
		t.Fatalf("%+v", info)
	}
	for _, atOnce := range []uint64{200, 3999, 4000, 5000} {
		got := map[string]bool{}
		must(t, livePairs(b.s.ckpts[0].f, 0, info, atOnce, func(key, value []byte) error {
			if got[string(key)] || !bytes.Equal(value, b.pairs[string(key)]) {
				t.Fatalf("key %q twice or wrong", key)
			}
			got[string(key)] = true
			return nil
		}))
		if len(got) != len(b.pairs) {
			t.Fatalf("%d of %d keys", len(got), len(b.pairs))
		}
	}
	must(t, b.s.Close())
}

func TestCheckpointDeltasStayProportional(t *testing.T) {
	disk := vfs.NewMem()
	s, _ := open(t, Options{FS: disk, Dir: "data"})
	value := make([]byte, 100)
	put := func(from, n int, index uint64) {
		c, err := s.BeginCheckpoint(7)
		must(t, err)
		for i := range n {
			must(t, c.Put(fmt.Appendf(nil, "%08d", from+i), value))
		}
		must(t, c.Commit(index, []byte{1}, nil))
	}
	put(0, 20_000, 1)
	base, _ := s.Checkpoint(7)
	for i := range 100 {
		put(i, 10, uint64(i+2))
	}
	info, _ := s.Checkpoint(7)
	if delta := info.Len - info.Base; info.Base != base.Base || delta > 100*10*(100+8+8)*3/2 {
		t.Fatalf("base %d, deltas %d", info.Base, delta)
	}
	for i := 0; s.metrics.bases.Load() == 0; i++ {
		put(0, 20_000, uint64(200+i))
	}
	if info, _ = s.Checkpoint(7); info.Base != info.Len || info.Len > base.Len*11/10 || info.Pairs != 20_000 {
		t.Fatalf("%+v", info)
	}
	if paths := disk.Paths("data/ckpt"); len(paths) != 1 {
		t.Fatal(paths)
	}
	must(t, s.Close())
}

func TestCheckpointLeavesAFileWhoseSyncFailed(t *testing.T) {
	disk := vfs.NewMem()
	fail := false
	b := newBroker(t, small(vfs.Inject(disk, func(op vfs.Op) error {
		if fail && op.Kind == vfs.OpSync {
			fail = false
			return errCut
		}
		return nil
	})), 1)
	b.checkpoint(10)
	c, err := b.s.BeginCheckpoint(0)
	must(t, err)
	must(t, c.Put([]byte("k"), nil))
	fail = true
	if err := c.Commit(9, nil, nil); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	b.verify()
	b.checkpoint(10)
	if info, _ := b.s.Checkpoint(0); info.File != 2 {
		t.Fatalf("%+v", info)
	}
	b.verify()
	must(t, b.s.Close())
}
