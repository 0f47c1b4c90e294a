package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// everyKind makes a store that has every kind of file and block, and returns the disk
// and what is on it.
func everyKind(t *testing.T) (*vfs.Mem, *broker) {
	t.Helper()
	disk := vfs.NewMem()
	b := newBroker(t, small(disk), 3)
	b.flush(6, 60, 300)
	b.flush(2, 30, 6000)
	w := b.s.NewWriter(0, WriterOptions{})
	var entries []pending
	for off := range msg.Offset(90) {
		entries = append(entries, pending{named{50, 0, off}, record(50, 0, off, 1000, 0), 0})
	}
	must(t, w.StartRun(50, 0, 90<<10))
	for _, e := range entries {
		must(t, w.Add(e.log, e.lane, e.off, e.rec))
	}
	metas, err := w.Finish()
	must(t, err)
	if len(metas) != 1 || !metas[0].Own {
		t.Fatalf("%+v", metas)
	}
	install(t, b.s, metas)
	b.accept(entries)
	b.runs = append(b.runs, runsOf(metas)...)
	b.checkpoint(20)
	b.checkpoint(20)
	return disk, b
}

// TestEveryFlippedBitIsDetected flips bits all over the files: Check must find each,
// and reading must give the right bytes or an error.
func TestEveryFlippedBitIsDetected(t *testing.T) {
	disk, b := everyKind(t)
	b.verify()
	must(t, b.s.Close())
	want := b.want
	for _, path := range disk.Paths("data") {
		if filepath.Base(path) == manifestName {
			continue
		}
		st, err := disk.Stat(path)
		must(t, err)
		step := max(st.Size/250, 1) | 1
		for at := int64(0); at < st.Size; at += step {
			if at > st.Size-200 {
				step = 1 // each byte of the trailer
			}
			bit := at*8 + at%8
			must(t, vfs.FlipBit(disk, path, bit))
			r, err := Check(disk, "data")
			must(t, err)
			if len(r.Damages) == 0 {
				t.Fatalf("bit %d of %s is not missed", bit, path)
			}
			if got := filepath.Join("data", r.Damages[0].Path); got != path {
				t.Fatalf("damage in %s is reported for %s", path, got)
			}
			if at%11 == 0 {
				readDamaged(t, disk, want)
			}
			must(t, vfs.FlipBit(disk, path, bit))
		}
	}
}

// readDamaged opens a store with one flipped bit and reads all that can be read.
func readDamaged(t *testing.T, disk *vfs.Mem, want map[named][]byte) {
	t.Helper()
	s, rec := open(t, small(disk))
	defer func() { must(t, s.Close()) }()
	missing := maps.Clone(want)
	for _, r := range rec.Shards[0].Runs {
		for next := r.First; next <= r.Last; {
			blk, err := s.ReadRange(r, next, 40<<10)
			var damage *DamageError
			if errors.As(err, &damage) {
				if !damage.HasRange || damage.Log != r.Log || damage.Lane != r.Lane || damage.Last < next {
					t.Fatalf("reading %+v from %d: %v", r, next, damage)
				}
				for k := range missing {
					if k.log == damage.Log && k.lane == damage.Lane && damage.First <= k.off && k.off <= damage.Last {
						delete(missing, k)
					}
				}
				next = damage.Last + 1
				continue
			}
			must(t, err)
			n := 0
			for off, got, ok := blk.Next(); ok; off, got, ok = blk.Next() {
				k := named{r.Log, r.Lane, off}
				if !bytes.Equal(got, want[k]) {
					t.Fatalf("%+v is read wrong", k)
				}
				delete(missing, k)
				next, n = off+1, n+1
			}
			blk.Release()
			if n == 0 {
				break
			}
		}
	}
	if len(missing) > 0 && len(rec.Damages) == 0 {
		t.Fatalf("%d entries are missing without a report", len(missing))
	}
	err := s.LoadCheckpoint(0, func(_, _ []byte) error { return nil })
	if err != nil && !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
}

// segmentWith returns a run of the broker for which ok holds, and its file's path.
func segmentWith(t *testing.T, b *broker, ok func(Run) bool) (Run, string) {
	t.Helper()
	for _, r := range b.runs {
		if ok(r) {
			return r, filepath.Join("data", segmentPath(0, r.Seg))
		}
	}
	t.Fatal("no such run")
	return Run{}, ""
}

// readable returns how many entries of all runs can be read, and the damages met.
func readable(t *testing.T, s *Store, runs []Run) (n int, damages []*DamageError) {
	t.Helper()
	for _, r := range runs {
		for next := r.First; next <= r.Last; {
			blk, err := s.ReadRange(r, next, MaxReadBytes)
			var damage *DamageError
			if errors.As(err, &damage) {
				damages = append(damages, damage)
				next = damage.Last + 1
				continue
			}
			must(t, err)
			was := n
			for off, _, ok := blk.Next(); ok; off, _, ok = blk.Next() {
				next, n = off+1, n+1
			}
			blk.Release()
			if n == was {
				break
			}
		}
	}
	return n, damages
}

func TestDamageOfOneBlockLeavesTheOthers(t *testing.T) {
	disk, b := everyKind(t)
	total, _ := readable(t, b.s, b.runs)
	run, path := segmentWith(t, b, func(r Run) bool { return r.Log == 50 })
	must(t, vfs.FlipBit(disk, path, int64(run.Pos+40<<10)*8))
	b.reopen()
	n, damages := readable(t, b.s, b.runs)
	if len(damages) != 1 || damages[0].Log != 50 || damages[0].Seg != run.Seg || !errors.Is(damages[0], ErrDamaged) {
		t.Fatal(damages)
	}
	lost := int(damages[0].Last - damages[0].First + 1)
	if lost < 5 || lost > 16 || n != total-lost {
		t.Fatalf("%d of %d readable, %v", n, total, damages[0])
	}
	// A damaged segment is neither merged nor rewritten, whatever it holds.
	b.s.SetLive(run, 1)
	if c := b.s.Candidates(0); len(c.Rewrite)+len(c.Measure)+len(c.Dead) > 0 {
		t.Fatalf("%+v", c)
	}
	if _, err := b.s.Compact([]SegID{run.Seg}, b.liveFor(nil), CompactOptions{}); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	must(t, b.s.Close())
	r, err := Check(disk, "data")
	must(t, err)
	if len(r.Damages) != 1 || r.Damages[0].First != damages[0].First || r.Damages[0].Last != damages[0].Last || len(r.Orphans) != 0 {
		t.Fatalf("%v, orphans %v", r.Damages, r.Orphans)
	}
}

func TestDamagedIndexIsRebuilt(t *testing.T) {
	disk, b := everyKind(t)
	total, _ := readable(t, b.s, b.runs)
	run, path := segmentWith(t, b, func(r Run) bool { return r.Log == 50 })
	must(t, vfs.FlipBit(disk, path, int64(run.Pos+run.Size+20)*8))
	b.reopen()
	reported := 0
	b.s.opts.Events.Damaged = func(*DamageError) { reported++ }
	if n, damages := readable(t, b.s, b.runs); n != total || len(damages) > 0 || reported == 0 {
		t.Fatalf("%d of %d, %v, %d reported", n, total, damages, reported)
	}
	// With a damaged block besides, only that block is lost.
	must(t, vfs.FlipBit(disk, path, int64(run.Pos+30<<10)*8))
	b.reopen()
	n, damages := readable(t, b.s, b.runs)
	if len(damages) != 1 || n != total-int(damages[0].Last-damages[0].First+1) || n < total-40 {
		t.Fatalf("%d of %d, %v", n, total, damages)
	}
	must(t, b.s.Close())
}

func TestDamagedDirectoryIsSalvaged(t *testing.T) {
	for _, back := range []int64{50, segmentTrailerLen + 20} { // trailer, directory
		disk, b := everyKind(t)
		total, _ := readable(t, b.s, b.runs)
		run, path := segmentWith(t, b, func(r Run) bool { return r.Log != 50 && r.Flags&RunIndexed != 0 })
		st, err := disk.Stat(path)
		must(t, err)
		must(t, vfs.FlipBit(disk, path, (st.Size-back)*8))
		rec := b.reopen()
		if len(rec.Damages) != 1 || rec.Damages[0].Seg != run.Seg {
			t.Fatal(rec.Damages)
		}
		if n, damages := readable(t, b.s, b.runs); n != total || len(damages) > 0 {
			t.Fatalf("%d of %d entries, %v", n, total, damages)
		}
		// When all that was found is settled, the file may go.
		b.settle(func(k named) bool { return false })
		if c := b.s.Candidates(0); len(c.Dead) != len(b.s.Segments(0)) {
			t.Fatalf("%+v", c)
		}
		must(t, b.s.Close())
	}
}

func TestMissingSegmentIsReportedAndMayGo(t *testing.T) {
	disk, b := everyKind(t)
	run, path := segmentWith(t, b, func(r Run) bool { return r.Log == 50 })
	must(t, disk.Remove(path))
	rec := b.reopen()
	if len(rec.Damages) != 1 || rec.Damages[0].Seg != run.Seg || !strings.Contains(rec.Damages[0].Reason, "missing") {
		t.Fatal(rec.Damages)
	}
	if c := b.s.Candidates(0); !slices.Equal(c.Dead, []SegID{run.Seg}) {
		t.Fatalf("%+v", c)
	}
	b.drop([]SegID{run.Seg})
	if rec := b.reopen(); len(rec.Damages) > 0 {
		t.Fatal(rec.Damages)
	}
	must(t, b.s.Close())
}

func TestDamagedBodyIsReportedForEachLog(t *testing.T) {
	disk := vfs.NewMem()
	s, _ := open(t, small(disk))
	w := s.NewWriter(0, WriterOptions{})
	for log := range msg.LogID(10) {
		must(t, w.Add(log, 0, 0, record(log, 0, 0, 200, 0)))
		must(t, w.AddShared(log, 0, 1, SharedKey{1, 1}, record(0, 0, 1, 500, 0)))
		must(t, w.Add(log, 0, 2, record(log, 0, 2, 200, 0)))
	}
	metas, err := w.Finish()
	must(t, err)
	install(t, s, metas)
	must(t, vfs.FlipBit(disk, filepath.Join("data", segmentPath(0, metas[0].ID)), (segmentHeaderLen+100)*8))
	n, damages := readable(t, s, metas[0].Runs)
	if n != 20 || len(damages) != 10 {
		t.Fatalf("%d entries, %v", n, damages)
	}
	for i, d := range damages {
		if d.Log != msg.LogID(i) || d.First != 1 || d.Last != 1 {
			t.Fatal(d)
		}
	}
	must(t, s.Close())
	r, err := Check(disk, "data")
	must(t, err)
	if len(r.Damages) != 11 { // the block, and each log that refers to it
		t.Fatal(r.Damages)
	}
}

func TestManifestTornOrDamaged(t *testing.T) {
	disk, b := everyKind(t)
	for i := range 5 {
		var e Edit
		e.Set("k", []byte{byte(i)})
		must(t, b.s.Install(&e))
	}
	must(t, b.s.Close())
	path := filepath.Join("data", manifestName)
	raw, err := vfs.ReadFile(disk, path)
	must(t, err)
	mf, err := readManifest(raw)
	st, end, torn := mf.st, mf.end, mf.torn
	must(t, err)
	if torn || len(st.segs) == 0 {
		t.Fatal(end, torn)
	}
	// Whatever bit is flipped, the state is what it was: an edit or its copy is sound.
	// Up to the copy of the last edit it is told; behind that there is nothing to lose.
	for at := int64(0); at < int64(len(raw)); at++ {
		if at > end+100 {
			at += 997
			if at >= int64(len(raw)) {
				break
			}
		}
		flipped := bytes.Clone(raw)
		flipped[at] ^= 1 << (at % 8)
		mg, err := readManifest(flipped)
		got, torn := mg.st, mg.torn
		switch {
		case err != nil || !bytes.Equal(got.encode(), st.encode()):
			t.Fatalf("byte %d of %d: %v", at, end, err)
		case at < end && !torn && (len(mg.damages) != 1 || mg.damages[0].Pos > at || mg.damages[0].Pos+mg.damages[0].Len <= at):
			t.Fatalf("byte %d of %d: %v", at, end, mg.damages)
		case at >= end && !torn:
			t.Fatalf("byte %d of %d: not seen", at, end)
		}
	}
	// The file cut anywhere gives the state of some edit, or an error at its start.
	for n := range end {
		cut := append(bytes.Clone(raw[:n]), make([]byte, len(raw)-int(n))...)
		if _, err := readManifest(cut); err != nil && n > 200+manifestHeaderLen+int64(len(st.encode())) {
			t.Fatalf("cut at %d of %d: %v", n, end, err)
		}
	}
	must(t, vfs.FlipBit(disk, path, (manifestHeaderLen+10)*8))
	s, rec, err := Open(small(disk))
	if err != nil || len(rec.Damages) != 1 {
		t.Fatal(rec, err)
	}
	must(t, s.ReplaceManifest())
	must(t, s.Close())
	s, rec, err = Open(small(disk))
	if err != nil || len(rec.Damages) != 0 || !bytes.Equal(s.state.encode(), st.encode()) {
		t.Fatal(rec, err)
	}
	must(t, s.Close())
	must(t, disk.Remove(path))
	if _, _, err := Open(small(disk)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "missing") {
		t.Fatal(err)
	}
	if len(disk.Paths("data/seg")) == 0 {
		t.Fatal("segments were deleted for want of a MANIFEST")
	}
}

// TestManifestWithoutCopies: an edit behind one whose copy never came, with one as long
// behind it, is not taken for that copy.
func TestManifestWithoutCopies(t *testing.T) {
	b := binary.LittleEndian.AppendUint64(nil, manifestMagic)
	b = binary.LittleEndian.AppendUint64(b, manifestVersion)
	at := int64(0)
	for i := range byte(4) {
		c := change{kind: opSet, key: "k", value: []byte{i}}
		b = appendFrame(b, frameMagic, c.append(nil), int64(len(b)), at)
		at = int64(len(b))
	}
	m, err := readManifest(b)
	if err != nil || len(m.damages) > 0 || m.end != at || !bytes.Equal(m.st.settings["k"], []byte{3}) {
		t.Fatal(m, err)
	}
}
