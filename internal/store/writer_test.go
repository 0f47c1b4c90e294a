package store

import (
	"bytes"
	"errors"
	"slices"
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
