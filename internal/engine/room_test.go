package engine

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// TestDivide: what is kept for a full disk is never most of the disk.
func TestDivide(t *testing.T) {
	const file = 64 << 20
	for _, c := range []struct {
		total uint64
		cow   bool
		want  room
	}{
		{1 << 40, false, room{2, 2 * file, 2 * file}},
		{1 << 40, true, room{2, 4 * file, 4 * file}},
		{10 * file, false, room{1, 10 * file / 8, 10 * file / 8}},
		{300 << 20, false, room{0, 300 << 17, 300 << 17}},
	} {
		got := divide(vfs.Space{Total: c.total, CopyOnWrite: c.cow}, file)
		if got != c.want {
			t.Errorf("%d bytes: %+v, want %+v", c.total, got, c.want)
		}
		if kept := uint64(got.walSpares)*file + uint64(got.reserve+got.mark); kept > c.total/2 {
			t.Errorf("%d of %d bytes are kept", kept, c.total)
		}
	}
}

// TestStartOnFullDisk: a start that finds no space for the little that it has to write
// says so. With what an earlier one has kept for that it comes up.
func TestStartOnFullDisk(t *testing.T) {
	open := func(disk vfs.FS) (*Node, error) {
		return Open(NodeConfig{
			FS: disk, Dir: "data", Shards: 1, Meta: noMeta{}, MetaLoaded: func() error { return nil },
			WALFileBytes: 64 << 10, WALFiles: 2,
		})
	}
	synctest.Test(t, func(t *testing.T) {
		disk := vfs.NewMem()
		if err := disk.MkdirAll("data"); err != nil {
			t.Fatal(err)
		}
		disk.SetLimit(1)
		if _, err := open(disk); !vfs.IsNoSpace(err) {
			t.Fatalf("first start on a full disk: %v", err)
		}
		disk.SetLimit(100 << 10) // room for a MANIFEST, not for the write-ahead log
		if _, err := open(disk); !errors.Is(err, ErrDiskFull) {
			t.Fatalf("start without room for the log: %v", err)
		}
		disk.SetLimit(0)
		n, err := open(disk)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // spare files are made
		for range 5 {
			if _, err := n.Queues()[0].Do(func(b *msg.Builder) { b.Ensure(1, make([]byte, 10)) }); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 { // each start writes
			crashed := disk.CrashClone(nil, vfs.CrashOptions{Data: vfs.KeepAll, Names: vfs.KeepAll})
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			crashed.SetLimit(1)
			if n, err = open(crashed); err != nil {
				t.Fatalf("start on a full disk: %v", err)
			}
			disk = crashed
		}
		if _, err := n.Queues()[0].Do(func(b *msg.Builder) { b.Delete(1) }); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
