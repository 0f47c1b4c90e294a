package wal

import (
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sluicemq/sluice/internal/vfs"
)

// TestFailedSyncIsFinal fails each write and each sync of a workload in turn:
// the log must not touch that file again, everything later is refused, and
// what was confirmed before is found by the next process.
func TestFailedSyncIsFinal(t *testing.T) {
	for n := 1; ; n++ {
		mem, h := vfs.NewMem(), newHistory()
		count, failedPath := 0, ""
		fsys := vfs.Inject(mem, func(op vfs.Op) error {
			if failedPath != "" {
				if op.Kind.Mutates() && op.Path == failedPath {
					t.Errorf("operation %d: %s of %s after the failure", n, op.Kind, op.Path)
				}
				return nil
			}
			if op.Kind != vfs.OpSync && op.Kind != vfs.OpWrite || strings.HasSuffix(op.Path, tmpSuffix) {
				return nil
			}
			if count++; count == n {
				failedPath = op.Path
				return syscall.EIO
			}
			return nil
		})
		var told atomic.Int32
		opts := testOptions(fsys)
		opts.Events.Failed = func(error) { told.Add(1) }
		l, _, err := Open(opts)
		if err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			continue // while opening: nothing was confirmed
		}
		failed := runUntilError(l, h, 30)
		if failed != nil {
			if _, err := put(l, entry(7, 1)); !errors.Is(err, ErrFailed) {
				t.Fatalf("append to a failed log: %v", err)
			}
		}
		err = l.Close()
		if failedPath == "" {
			if err != nil || n < 40 {
				t.Fatalf("after %d operations: %v", n, err)
			}
			return
		}
		if failed == nil {
			failed = err // in Close
		}
		if !errors.Is(failed, ErrFailed) || !errors.Is(failed, syscall.EIO) || !errors.Is(err, ErrFailed) || told.Load() != 1 {
			t.Fatalf("operation %d: %v, %v, told %d", n, failed, err, told.Load())
		}
		// As after a failed write-back: readable, but never on the disk.
		if strings.HasSuffix(failedPath, spareSuffix) {
			for _, p := range mem.Paths(testDir) {
				_ = mem.ForgetDirty(p)
			}
		}
		checkAfterFailure(t, mem, h.snapshot())
	}
}

// runUntilError runs the workload and returns the first error of an append.
func runUntilError(l *Log, h *history, rounds int) error {
	w := newWorkload(3, h)
	for range rounds {
		a, end := w.next()
		noSync := a.NoSync
		if _, err := putAppend(l, a); err != nil {
			return err
		}
		if !noSync {
			h.confirmed(end)
		}
	}
	return nil
}

// checkAfterFailure lets the next process open the log, and then cuts the power:
// what that process was told must be there once more.
func checkAfterFailure(t *testing.T, mem *vfs.Mem, snap snapshot) {
	t.Helper()
	l, rec := mustOpen(t, testOptions(mem))
	m, err := snap.check(rec)
	if err != nil || rec.Damaged() {
		t.Fatal(err, rec.Damages)
	}
	disk := mem.CrashClone(nil, vfs.CrashOptions{Data: vfs.KeepNone, Names: vfs.KeepNone})
	closeLog(t, l)
	l, rec = mustOpen(t, testOptions(disk))
	defer closeLog(t, l)
	if err := m.diff(rec, snap.base); err != nil || rec.Damaged() {
		t.Fatalf("what was recovered is gone after a power cut: %v %v", err, rec.Damages)
	}
}

// TestNoSpace: a full disk refuses appends that need a file, without holes and
// for as long as there is neither room nor a released file.
func TestNoSpace(t *testing.T) {
	mem := vfs.NewMem()
	opts := testOptions(mem)
	told := 0
	opts.Events.NoSpace = func(error) { told++ }
	l, _ := mustOpen(t, opts)
	mem.SetLimit(3 * minFileSize)
	var next uint64 = 1
	var err error
	for ; next < 100; next++ {
		if _, err = put(l, entry(1, next, make([]byte, 5000))); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) || told == 0 || l.Err() != nil {
		t.Fatalf("%v, told %d, %v", err, told, l.Err())
	}
	for _, c := range []struct {
		r    Record
		want error
	}{
		{entry(1, next+1), ErrGap},
		{entry(1, next), ErrNoSpace},
		{entry(2, 5), ErrNoSpace},
		{entry(2, 6), ErrGap}, // the shard begins with 5, or not at all
		{HardState{Term: 1}.Record(1, 1), ErrNoSpace},
	} {
		if _, err := put(l, c.r); !errors.Is(err, c.want) {
			t.Errorf("shard %d index %d: %v, want %v", c.r.Shard, c.r.Index, err, c.want)
		}
	}
	l.Release(l.Sealed()[0].Seq)
	pos := mustPut(t, l, entry(1, next), entry(2, 5))
	if pos[0].Seq != 4 {
		t.Fatalf("file %d", pos[0].Seq)
	}
	mem.SetLimit(0)
	mustPut(t, l, entry(1, next+1), entry(2, 6))
	closeLog(t, l)
	l, rec := mustOpen(t, testOptions(mem))
	defer closeLog(t, l)
	if s, _ := rec.Shard(1); s.LastIndex != next+1 || rec.Damaged() {
		t.Fatalf("%+v %v", s, rec.Damages)
	}
}

// TestOpenWithoutSpace: a log whose last file is full opens on a full disk, and
// takes appends when there is space.
func TestOpenWithoutSpace(t *testing.T) {
	mem := vfs.NewMem()
	if err := mem.MkdirAll(testDir); err != nil {
		t.Fatal(err)
	}
	mem.SetLimit(1000)
	opts := testOptions(mem)
	opts.inline = false
	l, _ := mustOpen(t, opts)
	if _, err := put(l, entry(1, 1)); !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	seal(t, l)
	mem.SetLimit(0)
	mustPut(t, l, entry(1, 1))
	closeLog(t, l)
}

// TestNoSpaceInPlace: on a copy-on-write file system also writing in place may
// fail for want of space. It is not fatal, and leaves nothing behind.
func TestNoSpaceInPlace(t *testing.T) {
	mem := vfs.NewMem()
	full := false
	fsys := vfs.Inject(mem, func(op vfs.Op) error {
		if full && op.Kind == vfs.OpWrite {
			return syscall.ENOSPC
		}
		return nil
	})
	l, _ := mustOpen(t, testOptions(fsys))
	mustPut(t, l, entry(1, 1))
	full = true
	if _, err := put(l, entry(1, 2), entry(1, 3)); !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	full = false
	if _, err := put(l, entry(1, 3)); !errors.Is(err, ErrGap) {
		t.Fatal(err)
	}
	mustPut(t, l, entry(1, 2), entry(1, 3))
	closeLog(t, l)
	rep, err := Verify(mem, testDir, nil)
	if err != nil || len(rep.Damages) > 0 || rep.Shards[0].LastIndex != 3 {
		t.Fatalf("%+v %v", rep, err)
	}
}

// TestRecyclingFails: a file that cannot be renamed stays, later ones stay behind
// it, and all leave at a later occasion.
func TestRecyclingFails(t *testing.T) {
	mem := vfs.NewMem()
	var broken atomic.Bool
	broken.Store(true)
	var fails, recycled atomic.Int32
	fsys := vfs.Inject(mem, func(op vfs.Op) error {
		if broken.Load() && op.Kind == vfs.OpRename && filepath.Ext(op.Path) == walSuffix {
			return syscall.EIO
		}
		return nil
	})
	opts := testOptions(fsys)
	opts.Events.MaintenanceFailed = func(error) { fails.Add(1) }
	opts.Events.FileRecycled = func(uint64, bool) { recycled.Add(1) }
	l, _ := mustOpen(t, opts)
	fill(t, l, 1, 1, 3)
	for _, f := range l.Sealed() {
		l.Release(f.Seq)
	}
	wait(t, l)
	if fails.Load() == 0 || recycled.Load() != 0 {
		t.Fatalf("%d failures, %d recycled", fails.Load(), recycled.Load())
	}
	rep, err := Verify(mem, testDir, nil)
	if err != nil || len(rep.Damages) > 0 {
		t.Fatal(err, rep.Damages)
	}
	broken.Store(false)
	mustPut(t, l, entry(2, 1)) // any occasion
	wait(t, l)
	if n := recycled.Load(); n < 3 {
		t.Fatalf("%d recycled", n)
	}
	closeLog(t, l)
}

// TestReserve: when others have filled the disk the log goes on in the files that it
// holds back, after saying so; with space it takes them back, and says that as well. A
// log that is opened on a full disk has them too.
func TestReserve(t *testing.T) {
	mem := vfs.NewMem()
	opts := testOptions(mem)
	opts.Reserve, opts.MaxSpare, opts.inline = 2, 4, false
	low := make(chan bool, 10)
	opts.Events.Low = func(yes bool) { low <- yes }
	made := func(l *Log, n int) {
		t.Helper()
		for l.Metrics().Spares < n { // its goroutine is at it
			mustPut(t, l)
		}
	}
	l, _ := mustOpen(t, opts)
	made(l, 3)
	next := uint64(1)
	untilFull := func(l *Log) (file uint64) {
		t.Helper()
		for ; ; next++ {
			pos, err := put(l, entry(1, next, make([]byte, 5000)))
			if errors.Is(err, ErrNoSpace) {
				return file
			}
			if err != nil {
				t.Fatal(err)
			}
			file = pos[0].Seq
		}
	}
	mem.SetLimit(1) // full
	if file := untilFull(l); file != 4 {
		t.Fatalf("the last file is %d, want the one in use, a spare and two held back", file)
	}
	if !<-low {
		t.Fatal("it was not low first")
	}
	for range 2 {
		l.Release(l.Sealed()[0].Seq)
	}
	made(l, 2)
	closeLog(t, l)
	select {
	case yes := <-low:
		t.Fatalf("low: %v, with the reserve only", yes)
	default:
	}
	l, _ = mustOpen(t, opts)
	if file := untilFull(l); file != 6 {
		t.Fatalf("after opening on a full disk the last file is %d", file)
	}
	if !<-low {
		t.Fatal("not low")
	}
	mem.SetLimit(0)
	if <-low {
		t.Fatal("low again")
	}
	mustPut(t, l, entry(1, next))
	made(l, 2)
	closeLog(t, l)
}
