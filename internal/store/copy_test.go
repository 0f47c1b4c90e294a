package store

import (
	"bytes"
	"errors"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// copySource serves a pinned snapshot; bad is told of each read and may spoil it.
type copySource struct {
	v     *Snapshot
	bytes int
	bad   func(f FileRef, p []byte, off int64) error
}

func (s *copySource) ReadFile(_ uint32, _ uint64, f FileRef, p []byte, off int64) (int, error) {
	n, err := s.v.ReadFile(f, p[:min(len(p), 3000)], off)
	s.bytes += n
	if err == nil && s.bad != nil {
		err = s.bad(f, p[:n], off)
	}
	return n, err
}

// copyFrom makes a store with a few segments and a checkpoint of two deltas.
func copyFrom(t *testing.T) *Store {
	s, _ := open(t, small(vfs.NewMem()))
	for k := range 3 {
		w := s.NewWriter(7, WriterOptions{})
		for log := msg.LogID(1); log <= 20; log++ {
			must(t, w.StartRun(log, 0, 0))
			for off := range msg.Offset(10) {
				must(t, w.Add(log, 0, 10*msg.Offset(k)+off, record(log, 0, off, 200, 0)))
			}
		}
		metas, err := w.Finish()
		must(t, err)
		install(t, s, metas)
	}
	for i := range 2 {
		c, err := s.BeginCheckpoint(7)
		must(t, err)
		must(t, c.Put([]byte("kept"), bytes.Repeat([]byte{byte(i)}, 5000)))
		must(t, c.Put([]byte("own"), []byte("of that node")))
		must(t, c.Commit(uint64(50+i), []byte("extra"), nil))
	}
	return s
}

func list(t *testing.T, v *Snapshot) *CopyList {
	l, err := v.List(1)
	must(t, err)
	parsed, err := ParseCopyList(l.Append(nil))
	must(t, err)
	return parsed
}

// TestCopyIsVerified: what was spoilt on its way is not taken, what was interrupted goes
// on where it ended, and in the end both stores have the same entries.
func TestCopyIsVerified(t *testing.T) {
	src := copyFrom(t)
	v := src.Snapshot(7)
	defer v.Release()
	l := list(t, v)
	opts := small(vfs.NewMem())
	opts.Identity = 2
	dst, _ := open(t, opts)
	from := &copySource{v: v}
	from.bad = func(f FileRef, p []byte, _ int64) error {
		if !f.Checkpoint && f.At == l.Segments[1].At {
			p[len(p)/2] ^= 1
		}
		return nil
	}
	if err := dst.Fetch(l, from, FetchOptions{}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a spoilt file: %v", err)
	}
	all, errNet := from.bytes, errors.New("network")
	left := 3
	from.bad = func(FileRef, []byte, int64) error {
		if left--; left < 0 {
			return errNet
		}
		return nil
	}
	from.bytes = 0
	for k := 0; ; k++ {
		left = 3
		err := dst.Fetch(l, from, FetchOptions{})
		if err == nil {
			break
		}
		if k > 200 {
			t.Fatal(err)
		}
	}
	if from.bytes > 3*all {
		t.Fatalf("%d bytes were read for files of about %d", from.bytes, all)
	}
	runs, err := dst.Take(l, []byte("installed"), func(key []byte) bool { return string(key) == "own" })
	must(t, err)
	sameCopy(t, src, dst, runs)
	must(t, dst.Close())
	dst, rec := open(t, opts)
	if len(rec.Damages) > 0 || rec.Segments != 3 {
		t.Fatalf("after a restart: %+v", rec)
	}
	from.bytes, from.bad = 0, nil
	must(t, dst.Fetch(l, from, FetchOptions{})) // the segments are here
	if int64(from.bytes) > l.Check.Len {
		t.Fatalf("%d bytes read again", from.bytes)
	}
	must(t, dst.Close())
	must(t, src.Close())
}

// sameCopy compares what was taken with its source.
func sameCopy(t *testing.T, src, dst *Store, runs []Run) {
	t.Helper()
	want := map[named][]byte{}
	for _, m := range src.Segments(7) {
		rs, err := src.Runs(m.ID)
		must(t, err)
		for k, b := range readAll(t, src, rs, 1<<20) {
			want[k] = b
		}
	}
	got := readAll(t, dst, runs, 1<<20)
	if len(got) != len(want) || len(got) != 600 {
		t.Fatalf("%d entries of %d", len(got), len(want))
	}
	for k, b := range want {
		if !bytes.Equal(got[k], b) {
			t.Fatalf("%v differs", k)
		}
	}
	keys := map[string]int{}
	must(t, dst.LoadCheckpoint(7, func(key, value []byte) error { keys[string(key)] = len(value); return nil }))
	if info, _ := dst.Checkpoint(7); len(keys) != 1 || keys["kept"] != 5000 || info.Index != 51 || string(info.Extra) != "installed" {
		t.Fatalf("keys %v, checkpoint %+v", keys, info)
	}
}

// FuzzCopyList: a list from elsewhere is refused or reads as it is written again.
func FuzzCopyList(f *testing.F) {
	l := &CopyList{Shard: 3, Source: 9, Pin: 1, Check: CheckpointInfo{Index: 4, Extra: []byte{1}, Len: 900}}
	l.Segments = []CopySegment{{At: 1, Origin: 9, Seal: 1, Bytes: 4000, Entries: 3, Own: true, Set: 1}}
	f.Add(l.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseCopyList(b)
		if err != nil {
			return
		}
		again, err := ParseCopyList(l.Append(nil))
		if err != nil || !bytes.Equal(again.Append(nil), l.Append(nil)) {
			t.Fatalf("%v: %+v became %+v", err, l, again)
		}
	})
}
