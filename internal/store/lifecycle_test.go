package store

import (
	"bytes"
	"errors"
	"testing"

	"github.com/sluicemq/sluice/internal/vfs"
)

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
	at := end + 2*int64(len(appendFrame(nil, frameMagic, payload, 0, 0)))
	f, err := disk.OpenReadWrite("data/MANIFEST")
	must(t, err)
	_, err = f.WriteAt(appendFrame(nil, frameMagic, edit("old").changes[0].append(nil), at, end), at)
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
