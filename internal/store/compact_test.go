package store

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

func TestMergesFollowAge(t *testing.T) {
	s, _ := open(t, Options{FS: vfs.NewMem(), Dir: "data"})
	flush := func(n, size int) SegID { return flushOne(t, s, 1, msg.Offset(s.next.Load())<<20, n, size)[0].ID }
	var young []SegID
	for range 5 {
		flush(10, 100)
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
		flush(10, 100)
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
