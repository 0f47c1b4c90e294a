package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

func TestRunIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(Run{}); n > 48 {
		t.Fatalf("a run takes %d bytes", n)
	}
}

// write adds count entries of size bytes to the current flush.
func write(t testing.TB, w *Writer, log msg.LogID, first msg.Offset, count, size int) {
	t.Helper()
	must(t, w.StartRun(log, 0, int64(count*size)))
	for i := range msg.Offset(count) {
		must(t, w.Add(log, 0, first+i, record(log, 0, first+i, size, 0)))
	}
}

func flushOne(t testing.TB, s *Store, log msg.LogID, first msg.Offset, count, size int) []SegmentMeta {
	t.Helper()
	w := s.NewWriter(0, WriterOptions{})
	write(t, w, log, first, count, size)
	metas, err := w.Finish()
	must(t, err)
	install(t, s, metas)
	return metas
}

func TestLargeRunsGetFilesOfTheirOwn(t *testing.T) {
	s, _ := open(t, small(vfs.NewMem()))
	w := s.NewWriter(0, WriterOptions{})
	write(t, w, 1, 0, 3, 1000)
	write(t, w, 2, 0, 600, 1000) // more than two files
	write(t, w, 3, 0, 3, 1000)
	write(t, w, 4, 7, 100, 1000)
	write(t, w, 5, 0, 3, 1000)
	metas, err := w.Finish()
	must(t, err)
	install(t, s, metas)
	var shared, own []msg.LogID
	for _, m := range metas {
		if m.Set != metas[0].ID {
			t.Errorf("set %d of segment %d", m.Set, m.ID)
		}
		for _, r := range m.Runs {
			if m.Own {
				own = append(own, r.Log)
			} else {
				shared = append(shared, r.Log)
			}
		}
		if m.Bytes > s.opts.SegmentBytes*11/10 {
			t.Errorf("a file of %d bytes", m.Bytes)
		}
	}
	// What is left of log 2 behind two full files is too little for a file of its own.
	if !slices.Equal(shared, []msg.LogID{1, 3, 5}) || !slices.Equal(own, []msg.LogID{2, 2, 2, 4}) {
		t.Fatalf("shared %v, own %v", shared, own)
	}
	if got := readAll(t, s, runsOf(metas), 1<<20); len(got) != 709 {
		t.Fatalf("%d entries", len(got))
	}
	must(t, s.Close())
}

func TestWrongAnnouncementsDoNoHarm(t *testing.T) {
	s, _ := open(t, small(vfs.NewMem()))
	w := s.NewWriter(0, WriterOptions{})
	must(t, w.StartRun(1, 0, 1<<30)) // a file of its own for nothing
	must(t, w.StartRun(2, 0, 1<<30)) // and for one record
	must(t, w.Add(2, 0, 0, record(2, 0, 0, 100, 0)))
	for i := range msg.Offset(1000) { // unannounced, but several files
		must(t, w.Add(3, 0, i, record(3, 0, i, 1000, 0)))
	}
	metas, err := w.Finish()
	must(t, err)
	install(t, s, metas)
	for _, m := range metas {
		if m.Own != (m.Runs[0].Log == 3 && m.Entries > 60) || m.Bytes > s.opts.SegmentBytes+3*s.opts.OwnRunBytes {
			t.Errorf("%+v", m)
		}
	}
	if got := readAll(t, s, runsOf(metas), 1<<20); len(got) != 1001 {
		t.Fatalf("%d entries", len(got))
	}
	must(t, s.Close())
}

func TestWriterRefusesDisorderAndLeavesNothing(t *testing.T) {
	rec := record(1, 0, 0, 100, 0)
	cases := map[string]func(w *Writer) error{
		"offset again":   func(w *Writer) error { return w.Add(5, 1, 10, rec) },
		"offset back":    func(w *Writer) error { return w.Add(5, 1, 3, rec) },
		"lane back":      func(w *Writer) error { return w.Add(5, 0, 11, rec) },
		"log back":       func(w *Writer) error { return w.Add(4, 9, 11, rec) },
		"run again":      func(w *Writer) error { return w.StartRun(5, 1, 0) },
		"offset too big": func(w *Writer) error { return w.Add(5, 1, 1<<63, rec) },
		"no record":      func(w *Writer) error { return w.Add(5, 1, 11, nil) },
		"short record":   func(w *Writer) error { return w.Add(5, 1, 11, rec[:90]) },
		"two records":    func(w *Writer) error { return w.Add(5, 1, 11, append(slices.Clone(rec), rec...)) },
		"no body":        func(w *Writer) error { return w.AddShared(5, 1, 11, SharedKey{1, 2}, nil) },
	}
	for name, bad := range cases {
		t.Run(name, func(t *testing.T) {
			disk := vfs.NewMem()
			s, _ := open(t, small(disk))
			w := s.NewWriter(0, WriterOptions{})
			must(t, w.Add(5, 1, 10, rec))
			err := bad(w)
			if !errors.Is(err, ErrOrder) && !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			if again := w.Add(6, 0, 0, rec); !errors.Is(again, err) {
				t.Fatalf("after an error: %v", again)
			}
			if _, again := w.Finish(); !errors.Is(again, err) {
				t.Fatalf("after an error: %v", again)
			}
			w.Abort()
			if left := disk.Paths("data/seg"); len(left) > 0 {
				t.Fatal(left)
			}
			must(t, s.Close())
		})
	}
}

func TestThrottleCanStop(t *testing.T) {
	disk := vfs.NewMem()
	s, _ := open(t, Options{FS: disk, Dir: "data"})
	stop := errors.New("stop")
	calls := 0
	w := s.NewWriter(0, WriterOptions{Throttle: func(n int) error {
		if calls += n; calls > 3<<20 {
			return stop
		}
		return nil
	}})
	var err error
	for i := msg.Offset(0); err == nil; i++ {
		err = w.Add(1, 0, i, record(1, 0, i, 100<<10, 0))
	}
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	w.Abort()
	metas := flushOne(t, s, 1, 0, 3000, 1000)
	_, err = s.Compact([]SegID{metas[0].ID}, all, CompactOptions{Throttle: func(int) error { return stop }})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if left := disk.Paths("data/seg"); len(left) != 1 {
		t.Fatal(left)
	}
	must(t, s.Close())
}

// all is the LiveFunc when nothing has been settled.
func all(r Run) Live {
	return Live{Ranges: []msg.Range{{First: 0, Count: 1 << 62}}, Follows: true}
}

func TestPinnedSegmentsOutliveTheirDrop(t *testing.T) {
	disk := vfs.NewMem()
	s, _ := open(t, small(disk))
	m := flushOne(t, s, 1, 0, 10, 100)[0]
	if !s.Pin(m.ID) {
		t.Fatal("can't pin")
	}
	snap := s.Snapshot(0)
	if len(snap.Segments) != 1 || disk.Paths("data/seg")[0] != "data/"+snap.Path(snap.Segments[0]) {
		t.Fatalf("%+v", snap)
	}
	var e Edit
	e.DropSegment(m.ID)
	must(t, s.Install(&e))
	if len(s.Segments(0)) != 0 || s.Pin(m.ID) {
		t.Fatal("a dropped segment is listed or can be pinned")
	}
	if got := readAll(t, s, m.Runs, 1<<20); len(got) != 10 {
		t.Fatal("a pinned segment can't be read")
	}
	if x := s.Metrics(); x.Segments != 0 || x.Pinned != 1 {
		t.Fatalf("%+v", x)
	}
	snap.Release()
	snap.Release()
	if len(disk.Paths("data/seg")) != 1 {
		t.Fatal("unlinked although pinned")
	}
	s.Unpin(m.ID)
	if left := disk.Paths("data/seg"); len(left) != 0 {
		t.Fatal(left)
	}
	if _, err := s.ReadRange(m.Runs[0], 0, 1<<20); !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
	s.AddDead(m.Runs[0], 1) // of a segment that is gone: nothing
	must(t, s.Close())
}

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

func TestFanOutStoresItsBodyOnce(t *testing.T) {
	s, _ := open(t, Options{FS: vfs.NewMem(), Dir: "data"})
	body := record(0, 0, 0, 10_000, 77)
	const logs, each = 1000, 10
	w := s.NewWriter(0, WriterOptions{})
	for log := range msg.LogID(logs) {
		for i := range msg.Offset(each) {
			must(t, w.AddShared(log, 0, i, SharedKey{9, i}, body))
		}
	}
	metas, err := w.Finish()
	must(t, err)
	install(t, s, metas)
	check := func(metas []SegmentMeta, entries int) {
		t.Helper()
		if limit := int64(each*len(body) + 32*entries + 48*logs + 4096); len(metas) != 1 || metas[0].Bytes > limit {
			t.Fatalf("%d files, %d bytes, limit %d", len(metas), metas[0].Bytes, limit)
		}
		got := readAll(t, s, metas[0].Runs, 64<<10)
		if len(got) != entries {
			t.Fatalf("%d entries", len(got))
		}
		for k, rec := range got {
			if !bytes.Equal(rec, body) {
				t.Fatalf("%+v", k)
			}
		}
	}
	check(metas, logs*each)
	// One entry of each body survives: the bodies do, once, and the file is done with.
	live := func(r Run) Live {
		if r.Log == 500 {
			return all(r)
		}
		return Live{}
	}
	for _, r := range metas[0].Runs {
		if r.Log != 500 {
			s.SetLive(r, 0)
		}
	}
	c := s.Candidates(0)
	if len(c.Measure) != 1 {
		t.Fatalf("%+v", c)
	}
	bytes, err := s.Measure(metas[0].ID, live)
	must(t, err)
	if bytes < each*10_000 || bytes > each*10_000+1000 {
		t.Fatalf("measured %d", bytes)
	}
	if c = s.Candidates(0); len(c.Rewrite)+len(c.Measure) != 0 && bytes*2 > metas[0].Bytes {
		t.Fatalf("%+v: nothing to gain: %d of %d", c, bytes, metas[0].Bytes)
	}
	done, err := s.Compact([]SegID{metas[0].ID}, live, CompactOptions{})
	must(t, err)
	var e Edit
	done.AddTo(&e)
	must(t, s.Install(&e))
	done.Close()
	check(done.Outputs, each)
	d, err := s.Due(done.Outputs[0].ID)
	must(t, err)
	if d.Len() != each {
		t.Fatalf("%d due", d.Len())
	}
	must(t, s.Close())
}

func TestMergesFollowAge(t *testing.T) {
	s, _ := open(t, Options{FS: vfs.NewMem(), Dir: "data"})
	flush := func(n, size int) SegID { return flushOne(t, s, 1, msg.Offset(s.next.Load())<<20, n, size)[0].ID }
	var old, young []SegID
	for range 5 {
		old = append(old, flush(10, 100))
	}
	flush(1700, 1024) // of a larger tier
	for range 8 {
		young = append(young, flush(10, 100))
	}
	if c := s.Candidates(0); len(c.Merge) != 0 {
		t.Fatalf("merge over a larger segment: %v", c.Merge)
	}
	young = append(young, flush(10, 100))
	c := s.Candidates(0)
	if len(c.Merge) != 1 || !slices.Equal(c.Merge[0], young) {
		t.Fatalf("%v, want %v", c.Merge, young)
	}
	done, err := s.Compact(young, all, CompactOptions{})
	must(t, err)
	var e Edit
	done.AddTo(&e)
	must(t, s.Install(&e))
	done.Close()
	if m := done.Outputs[0]; len(done.Outputs) != 1 || m.Set != young[0] || len(m.Runs) != 1 || m.Runs[0].Count != 90 {
		t.Fatalf("%+v", done.Outputs)
	}
	for range 3 {
		old = append(old, flush(10, 100))
	}
	if c := s.Candidates(0); len(c.Merge) != 0 {
		t.Fatal(c.Merge)
	}
	must(t, s.Close())
}

func TestRunsThatDoNotFollowStayApart(t *testing.T) {
	s, _ := open(t, small(vfs.NewMem()))
	a := flushOne(t, s, 1, 0, 10, 100)[0]
	between := flushOne(t, s, 1, 10, 10, 100)[0]
	c := flushOne(t, s, 1, 20, 10, 100)[0]
	done, err := s.Compact([]SegID{a.ID, c.ID}, func(r Run) Live {
		l := all(r)
		l.Follows = false
		return l
	}, CompactOptions{})
	must(t, err)
	var e Edit
	done.AddTo(&e)
	must(t, s.Install(&e))
	done.Close()
	runs := done.Outputs[0].Runs
	if len(runs) != 2 || runs[0].Last != 9 || runs[1].First != 20 {
		t.Fatalf("%+v", runs)
	}
	if got := readAll(t, s, append(runs, between.Runs...), 100); len(got) != 30 {
		t.Fatal(len(got))
	}
	must(t, s.Close())
}

func TestDuplicateEntriesAreMergedToOne(t *testing.T) {
	s, _ := open(t, small(vfs.NewMem()))
	a := flushOne(t, s, 1, 0, 30, 100)[0]
	b := flushOne(t, s, 1, 10, 40, 100)[0] // flushed again after a crash
	done, err := s.Compact([]SegID{b.ID, a.ID}, all, CompactOptions{})
	must(t, err)
	done.Close() // not installed
	if len(done.Outputs) != 1 || done.Outputs[0].Entries != 50 {
		t.Fatalf("%+v", done.Outputs)
	}
	if _, err := s.Runs(done.Outputs[0].ID); !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
	if n := len(s.fs.(*vfs.Mem).Paths("data/seg")); n != 2 {
		t.Fatalf("%d files", n)
	}
	must(t, s.Close())
}

func TestIDsAreNotUsedAgain(t *testing.T) {
	b := newBroker(t, small(vfs.NewMem()), 1)
	var last SegID
	for i := range 10 {
		b.flush(1, 3, 100)
		m := b.s.Segments(0)[0]
		if m.ID <= last {
			t.Fatalf("%d after %d", m.ID, last)
		}
		last = m.ID
		b.drop([]SegID{m.ID})
		if i%2 == 0 { // so that nothing in it tells of the segment
			must(t, b.s.man.rewrite(b.s.state))
		}
		b.reopen()
	}
	must(t, b.s.Close())
}

func TestBlocksAreBoundToTheirPlace(t *testing.T) {
	b := append(make([]byte, blockHeaderLen), "contents"...)
	sealBlock(b, kindBodies, 1, 100)
	if openBlock(b, kindBodies, 1, 100) == nil {
		t.Fatal("not recognised")
	}
	if openBlock(b, kindBodies, 1, 200) != nil || openBlock(b, kindBodies, 2, 100) != nil || openBlock(b, kindDue, 1, 100) != nil {
		t.Fatal("recognised in another place, or as another kind")
	}
}

func TestStaleFramesAreCut(t *testing.T) {
	disk := vfs.NewMem()
	s, _ := open(t, small(disk))
	end := s.man.end
	must(t, s.Close())
	edit := func(v string) *Edit {
		e := &Edit{}
		e.Set("k", []byte(v))
		return e
	}
	// A power cut left a frame, but not the one before it; the next edit ends just
	// where it begins.
	payload := edit("new").changes[0].append(nil)
	at := end + int64(len(appendFrame(nil, payload, 0, 0))) + frameHeaderLen
	f, err := disk.OpenReadWrite("data/MANIFEST")
	must(t, err)
	_, err = f.WriteAt(appendFrame(nil, edit("old").changes[0].append(nil), at, end), at)
	must(t, err)
	must(t, f.Close())
	s, _ = open(t, small(disk))
	must(t, s.Install(edit("new")))
	if s.man.end != at {
		t.Fatalf("the edit ends at %d, not %d", s.man.end, at)
	}
	must(t, s.Close())
	s, _ = open(t, small(disk))
	if v, _ := s.Setting("k"); string(v) != "new" {
		t.Fatalf("%q", v)
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

// TestFanOutIsNotStoredAgainWithEveryFile flushes fan-outs whose bodies alone fill a
// file, to logs that have much of their own.
func TestFanOutIsNotStoredAgainWithEveryFile(t *testing.T) {
	s, _ := open(t, small(vfs.NewMem()))
	w := s.NewWriter(0, WriterOptions{})
	var own, shared int64
	for log := range msg.LogID(40) {
		for i := range msg.Offset(75) {
			rec := record(0, 0, i, 4000, 0)
			if log == 0 {
				shared += int64(len(rec))
			}
			must(t, w.AddShared(log, 0, 2*i, SharedKey{0, i}, rec))
			rec = record(log, 0, i, 500, 0)
			own += int64(len(rec))
			must(t, w.Add(log, 0, 2*i+1, rec))
		}
	}
	metas, err := w.Finish()
	must(t, err)
	disk := int64(0)
	for _, m := range metas {
		disk += m.Bytes
	}
	if disk > own+shared+(own+shared)/5+32*40*150 {
		t.Fatalf("%d files of %d bytes for %d + %d", len(metas), disk, own, shared)
	}
	s.Discard(metas)
	must(t, s.Close())
}

func TestSettingsAndShards(t *testing.T) {
	b := newBroker(t, small(vfs.NewMem()), 1)
	var e Edit
	e.Set("shards", []byte{4})
	e.Set("empty", []byte{})
	e.Set("gone", []byte{1})
	e.SetFlushed(2, Flushed{7, 99})
	must(t, b.s.Install(&e))
	e = Edit{}
	e.Set("gone", nil)
	must(t, b.s.Install(&e))
	for range 2 {
		if v, ok := b.s.Setting("shards"); !ok || !bytes.Equal(v, []byte{4}) {
			t.Fatal(v, ok)
		}
		if v, ok := b.s.Setting("empty"); !ok || len(v) != 0 {
			t.Fatal(v, ok)
		}
		if _, ok := b.s.Setting("gone"); ok {
			t.Fatal("a deleted setting is there")
		}
		if f := b.s.Flushed(2); f != (Flushed{7, 99}) {
			t.Fatal(f)
		}
		b.reopen()
	}
	e = Edit{}
	e.DropSegment(77)
	if err := b.s.Install(&e); !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
	must(t, b.s.Close())
	if err := b.s.Install(&e); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	b.s = nil
}

func TestReadAheadGrowsOnlyWhenReadingOn(t *testing.T) {
	disk := vfs.NewMem()
	var reads []int64
	fsys := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind == vfs.OpRead {
			reads = append(reads, op.Len)
		}
		return nil
	})
	s, _ := open(t, Options{FS: fsys, Dir: "data"})
	m := flushOne(t, s, 1, 0, 16<<10, 1000)[0]
	var ra ReadAhead
	next := msg.Offset(0)
	read := func(part int) (size int64) {
		reads = reads[:0]
		b, err := ra.Read(s, m.Runs[0], next, MaxReadBytes)
		must(t, err)
		for i := 0; i != part; i++ {
			off, _, ok := b.Next()
			if !ok {
				break
			}
			next = off + 1
		}
		b.Release()
		return slices.Max(append(reads, 0))
	}
	read(-1)
	for want := int64(128 << 10); want <= 1<<20; want *= 2 {
		if got := read(-1); got > want || got < want*8/10 {
			t.Fatalf("read of %d, want about %d", got, want)
		}
	}
	if got := read(3); got < 800<<10 {
		t.Fatalf("a read of %d", got)
	}
	if got := read(-1); got > 64<<10 {
		t.Fatalf("a read of %d by a consumer that left most of the last one", got)
	}
	next = 15 << 10
	if got := read(-1); got > 64<<10 {
		t.Fatalf("a read of %d after a jump", got)
	}
	must(t, s.Close())
}

func TestCachesKeepTheirBudgets(t *testing.T) {
	b := newBroker(t, small(vfs.NewMem()), 1)
	for range 12 {
		b.flush(30, 60, 700)
	}
	for range 3 {
		readAll(t, b.s, b.runs, 1)
		x := b.s.Metrics()
		if x.CacheBytes > b.opts.CacheBytes || x.OpenFiles > b.opts.OpenFiles || x.CacheHits == 0 || x.CacheMisses == 0 {
			t.Fatalf("%+v", x)
		}
	}
	before := b.s.Metrics().BytesRead
	r := b.runs[0]
	for range 10 {
		blk, err := b.s.ReadRange(r, r.First, 1)
		must(t, err)
		blk.Release()
	}
	if n := b.s.Metrics().BytesRead - before; n > uint64(2*blockTarget) {
		t.Fatalf("%d bytes read for the same block", n)
	}
	must(t, b.s.Close())
}

func TestRecordsLargerThanEveryBuffer(t *testing.T) {
	s, _ := open(t, Options{FS: vfs.NewMem(), Dir: "data"})
	w := s.NewWriter(0, WriterOptions{})
	want := map[named][]byte{}
	for i, size := range []int{100, 3 << 20, 100, blockTarget, blockTarget - 40, 300 << 10, 1 << 20, 90} {
		for log := msg.LogID(1); log <= 2; log++ {
			want[named{log, 0, msg.Offset(i)}] = record(0, 0, msg.Offset(i), size, 0)
		}
	}
	for log := msg.LogID(1); log <= 2; log++ {
		for i := range msg.Offset(8) {
			must(t, w.AddShared(log, 0, i, SharedKey{0, i}, want[named{log, 0, i}]))
		}
	}
	for i := range msg.Offset(8) {
		want[named{3, 0, i}] = want[named{1, 0, i}]
		must(t, w.Add(3, 0, i, want[named{1, 0, i}]))
	}
	metas, err := w.Finish()
	must(t, err)
	install(t, s, metas)
	done, err := s.Compact([]SegID{metas[0].ID}, all, CompactOptions{})
	must(t, err)
	e := Edit{}
	done.AddTo(&e)
	must(t, s.Install(&e))
	for _, runs := range [][]Run{metas[0].Runs, runsOf(done.Outputs)} {
		for _, size := range []int{1, 64 << 10, 1 << 20, 1 << 30} {
			got := readAll(t, s, runs, size)
			for k, rec := range want {
				if !bytes.Equal(got[k], rec) {
					t.Fatalf("%+v: %d bytes, want %d", k, len(got[k]), len(rec))
				}
			}
		}
	}
	// Bodies once for the first two logs; the third has a file of its own by now.
	if m := done.Outputs; len(m) != 2 || m[0].Own || !m[1].Own || m[0].Bytes+m[1].Bytes > 10<<20 {
		t.Fatalf("%+v", m)
	}
	done.Close()
	must(t, s.Close())
}

func TestDueListOfManyPages(t *testing.T) {
	s, _ := open(t, Options{FS: vfs.NewMem(), Dir: "data"})
	w := s.NewWriter(0, WriterOptions{})
	const n = 40_000
	for i := range msg.Offset(n) {
		expiry := int64(i*7919%n) + 1
		if i%10 == 0 {
			expiry = 0
		}
		must(t, w.Add(1, 2, i, record(1, 2, i, 60, expiry)))
	}
	metas, err := w.Finish()
	must(t, err)
	install(t, s, metas)
	d, err := s.Due(metas[0].ID)
	must(t, err)
	before := s.Metrics().BytesRead
	prev, count := int64(0), 0
	for {
		e, ok, err := d.Next()
		must(t, err)
		if !ok {
			break
		}
		if count == 0 && s.Metrics().BytesRead-before > 64<<10 {
			t.Fatal("more than a page was read for the first entry")
		}
		if e.TimeMS < prev || e.Log != 1 || e.Lane != 2 || int64(e.Offset*7919%n)+1 != e.TimeMS {
			t.Fatalf("%+v after %d", e, prev)
		}
		prev = e.TimeMS
		count++
	}
	if count != n*9/10 || d.Len() != count {
		t.Fatalf("%d entries", count)
	}
	if st := s.segs[metas[0].ID].meta.stats; st.dirPos-st.duePos < 3*duePageTarget {
		t.Fatal("too few pages for this test")
	}
	must(t, s.Close())
}

// TestReadersDuringUpkeep has many readers on what is compacted, dropped and merged
// under them: with the pins of their time everything stays readable.
func TestReadersDuringUpkeep(t *testing.T) {
	b := newBroker(t, small(vfs.NewMem()), 9)
	b.flush(10, 300, 400)
	var mu sync.Mutex // the runs of the time
	runs := slices.Clone(b.runs)
	pin := func() []Run {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range runs {
			if !b.s.Pin(r.Seg) {
				t.Error("a listed segment can't be pinned")
			}
		}
		return slices.Clone(runs)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	var entries atomic.Int64
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				for _, r := range pin() {
					blk, err := b.s.ReadRange(r, r.First, 32<<10)
					if err != nil {
						t.Error(err)
					}
					for _, rec, ok := blk.Next(); ok; _, rec, ok = blk.Next() {
						if msg.RecordSize(rec) != len(rec) {
							t.Error("not a record")
						}
						entries.Add(1)
					}
					blk.Release()
					b.s.Unpin(r.Seg)
				}
			}
		})
	}
	swap := func(f func()) {
		// As a shard does: what readers pin is what was valid before the edit.
		mu.Lock()
		defer mu.Unlock()
		f()
		runs = slices.Clone(b.runs)
	}
	for range 30 {
		swap(func() { b.flush(10, 40, 400) })
		b.settle(func(named) bool { return b.rng.IntN(2) > 0 })
		swap(b.upkeep)
	}
	for entries.Load() == 0 {
	}
	stop.Store(true)
	wg.Wait()
	b.verify()
	must(t, b.s.Close())
}
