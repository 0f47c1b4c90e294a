package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicemq/sluice/internal/vfs"
)

// entry makes a record of shard id, term 1.
func entry(id uint32, i uint64, payload ...[]byte) Record {
	return Record{
		Type: TypeEntry, Shard: id, Incarnation: 1, Term: 1, Index: i,
		Payload: payload, PayloadCRC: checksum(bytes.Join(payload, nil)),
	}
}

// put appends and waits.
func put(l *Log, records ...Record) ([]Position, error) {
	return putAppend(l, Append{Records: records})
}

func putAppend(l *Log, a Append) ([]Position, error) {
	type result struct {
		pos []Position
		err error
	}
	c := make(chan result, 1)
	a.Done = func(err error, pos []Position) { c <- result{slices.Clone(pos), err} }
	l.Submit(a)
	r := <-c
	return r.pos, r.err
}

func mustPut(t testing.TB, l *Log, records ...Record) []Position {
	t.Helper()
	pos, err := put(l, records...)
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

// fill seals some files of the least size, at least, with entries of a shard.
func fill(t testing.TB, l *Log, id uint32, from uint64, files int) (next uint64) {
	t.Helper()
	for range files * 5 {
		mustPut(t, l, entry(id, from, make([]byte, 6000)))
		from++
	}
	return from
}

// tail opens the last file for damage, and tells where its groups are.
func groupsOf(t testing.TB, mem *vfs.Mem, seq uint64) (path string, groups []foundGroup) {
	t.Helper()
	path = filepath.Join(testDir, fileName(seq))
	b, err := vfs.ReadFile(mem, path)
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(blockSize); at+sectorSize <= int64(len(b)); at += sectorSize {
		if g, ok := parseGroupHeader(b[at:]); ok && g.fileSeq == seq {
			groups = append(groups, foundGroup{at, g})
		}
	}
	return path, groups
}

func TestReadPinRelease(t *testing.T) {
	mem := vfs.NewMem()
	recycled := make(chan uint64, 100)
	opts := testOptions(mem)
	opts.Events.FileRecycled = func(seq uint64, _ bool) { recycled <- seq }
	l, _ := mustOpen(t, opts)
	big := bytes.Repeat([]byte("0123456789"), 300)
	pos := mustPut(t, l, entry(1, 1, big[:700], nil, big[700:710], big[710:]), HardState{Term: 1}.Record(1, 1))
	if pos[0].Seq != 1 || pos[0].Len != 3000 || pos[1] != (Position{}) {
		t.Fatalf("positions %v", pos)
	}
	buf := make([]byte, 1000)
	if err := l.ReadAt(pos[0], 1500, buf); err != nil || !bytes.Equal(buf, big[1500:2500]) {
		t.Fatalf("read: %v", err)
	}
	for _, off := range []int{-1, 2001} {
		if err := l.ReadAt(pos[0], off, buf); !errors.Is(err, ErrInvalid) {
			t.Fatalf("read outside of the payload: %v", err)
		}
	}
	fill(t, l, 1, 2, 3)
	for range 2 {
		if !l.Pin(1) {
			t.Fatal("pin")
		}
	}
	if l.Pin(77) {
		t.Fatal("pin of a file that isn't there")
	}
	l.Release(2) // waits for the first
	l.Release(1)
	l.Unpin(1)
	wait(t, l)
	if len(recycled) > 0 {
		t.Fatal("recycled a pinned file")
	}
	if err := l.ReadAt(pos[0], 0, buf); err != nil {
		t.Fatalf("read of a released, pinned file: %v", err)
	}
	l.Unpin(1)
	wait(t, l)
	if a, b := <-recycled, <-recycled; a != 1 || b != 2 {
		t.Fatalf("recycled %d, %d", a, b)
	}
	if err := l.ReadAt(pos[0], 0, buf); !errors.Is(err, ErrGone) {
		t.Fatalf("read of a recycled file: %v", err)
	}
	if l.Pin(1) {
		t.Fatal("pinned a recycled file")
	}
	if m := l.Metrics(); m.Spares != 2 || m.Records != 17 || m.Queued != 0 {
		t.Fatalf("metrics %+v", m)
	}
	closeLog(t, l)
	if err := l.ReadAt(pos[0], 0, buf); !errors.Is(err, ErrClosed) {
		t.Fatalf("read after close: %v", err)
	}
	if _, err := put(l, entry(1, 2)); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after close: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSealedRanges: entries that were replaced, or whose shard is gone, don't
// keep a file, in the running log and after opening it again.
func TestSealedRanges(t *testing.T) {
	mem := vfs.NewMem()
	l, _ := mustOpen(t, testOptions(mem))
	mustPut(t, l, entry(1, 1), entry(1, 2), entry(1, 3), entry(2, 1), entry(3, 5), entry(4, 1))
	fill(t, l, 9, 1, 1)
	if got := fmt.Sprint(l.Sealed()[0].Shards[:4]); got != "[{1 1 1 3 0} {2 1 1 1 0} {3 1 5 5 0} {4 1 1 1 0}]" {
		t.Fatal(got)
	}
	mustPut(t, l, entry(1, 3), entry(2, 1), LogStartRecord(3, 1, 9, 1, 1), ShardGoneRecord(4, 1))
	check := func(l *Log) {
		t.Helper()
		f := l.Sealed()[0]
		if len(f.Shards) != 2 || f.Shards[0].Shard != 1 || f.Shards[0].Last != 2 || f.Shards[1].Shard != 9 {
			t.Fatalf("ranges %+v", f.Shards)
		}
	}
	check(l)
	mustPut(t, l, HardState{Term: 1}.Record(9, 2)) // a new incarnation
	if f := l.Sealed()[0]; len(f.Shards) != 1 {
		t.Fatalf("ranges %+v", f.Shards)
	}
	closeLog(t, l)
	l, _ = mustOpen(t, testOptions(mem))
	if f := l.Sealed()[0]; len(f.Shards) != 1 || f.Shards[0].Last != 2 {
		t.Fatalf("ranges after opening %+v", f.Shards)
	}
	closeLog(t, l)
}

func TestRefusals(t *testing.T) {
	l, _ := mustOpen(t, testOptions(vfs.NewMem()))
	defer closeLog(t, l)
	mustPut(t, l, entry(1, 10), HardState{Term: 1, Commit: 9}.Record(1, 1), HardState{Term: 1}.Record(2, 3))
	limit := l.MaxPayload()
	gap := entry(1, 12)
	for i, c := range []struct {
		records []Record
		want    error
	}{
		{[]Record{gap}, ErrGap},
		{[]Record{entry(1, 11), entry(1, 13)}, ErrGap},
		{[]Record{gap}, ErrGap}, // the 11 just refused did not count
		{[]Record{HardState{Term: 1, Commit: 11}.Record(1, 1)}, ErrGap},
		{[]Record{entry(2, 1)}, ErrStale},
		{[]Record{entry(1, 0)}, ErrInvalid},
		{[]Record{{Type: 9}}, ErrInvalid},
		{[]Record{{Type: TypeHardState, Payload: [][]byte{{1}}}}, ErrInvalid},
		{[]Record{entry(1, 11, make([]byte, limit), []byte{1})}, ErrTooLarge},
		{[]Record{entry(1, 11, make([]byte, limit))}, nil},
		{[]Record{gap}, nil},
		{[]Record{ShardGoneRecord(2, 3)}, nil},
		{[]Record{HardState{Term: 1}.Record(2, 3)}, ErrStale},
		{[]Record{HardState{Term: 1}.Record(2, 4)}, nil},
	} {
		if _, err := put(l, c.records...); !errors.Is(err, c.want) {
			t.Errorf("case %d: %v, want %v", i, err, c.want)
		}
	}
}

// TestLargeAppend: an append of more than a file is completed once, with all
// positions, and completions keep the order of submission.
func TestLargeAppend(t *testing.T) {
	mem := vfs.NewMem()
	l, _ := mustOpen(t, testOptions(mem))
	rng := rand.New(rand.NewPCG(1, 1))
	var records []Record
	for i := range 100 {
		b := make([]byte, rng.IntN(3000))
		for j := range b {
			b[j] = byte(rng.Uint32())
		}
		records = append(records, entry(1, uint64(i+1), b))
	}
	var order []int
	done := make(chan struct{})
	l.Submit(
		Append{Records: []Record{entry(2, 1)}, Done: func(error, []Position) { order = append(order, 1) }},
		Append{Records: []Record{entry(2, 3)}, Done: func(err error, _ []Position) {
			if errors.Is(err, ErrGap) {
				order = append(order, 2)
			}
		}},
		Append{Records: records, Done: func(err error, pos []Position) {
			order = append(order, 3)
			for i, p := range pos {
				buf := make([]byte, p.Len)
				if err := l.ReadAt(p, 0, buf); err != nil || !bytes.Equal(buf, records[i].Payload[0]) {
					t.Errorf("entry %d at %v: %v", i+1, p, err)
				}
			}
		}},
		Append{Records: []Record{entry(2, 2)}, Done: func(error, []Position) { close(done) }},
	)
	<-done
	if !slices.Equal(order, []int{1, 2, 3}) {
		t.Fatalf("order %v", order)
	}
	closeLog(t, l)
	l, rec := mustOpen(t, testOptions(mem))
	defer closeLog(t, l)
	n := 0
	if err := rec.Replay(1, 50, func(e Entry) error {
		n++
		if (e.Payload == nil) != (e.Index < 50) || (e.Index >= 50 && !bytes.Equal(e.Payload, records[e.Index-1].Payload[0])) {
			return fmt.Errorf("entry %d", e.Index)
		}
		return nil
	}); err != nil || n != 100 {
		t.Fatalf("replayed %d: %v", n, err)
	}
	stop := errors.New("stop")
	if err := rec.Replay(1, 1, func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Fatal(err)
	}
}

// TestNoSync: only groups that change nothing but commit indexes go unsynced.
func TestNoSync(t *testing.T) {
	l, _ := mustOpen(t, testOptions(vfs.NewMem()))
	defer closeLog(t, l)
	mustPut(t, l, entry(1, 1), entry(1, 2), HardState{Term: 1, Vote: 1}.Record(1, 1))
	for i, c := range []struct {
		records []Record
		syncs   uint64
	}{
		{[]Record{HardState{Term: 1, Vote: 1, Commit: 1}.Record(1, 1)}, 0},
		{[]Record{HardState{Term: 1, Vote: 1, Commit: 2}.Record(1, 1), HardState{Term: 1, Vote: 1, Commit: 2}.Record(1, 1)}, 0},
		{[]Record{HardState{Term: 1, Vote: 2, Commit: 2}.Record(1, 1)}, 1},
		{[]Record{HardState{Term: 2, Vote: 2, Commit: 2}.Record(1, 1)}, 1},
		{[]Record{HardState{Term: 2, Vote: 2, Commit: 2}.Record(1, 2)}, 1},
		{[]Record{HardState{Term: 1, Vote: 1}.Record(7, 1)}, 1},
		{[]Record{entry(7, 1)}, 1},
	} {
		before := l.Metrics().Syncs
		if _, err := putAppend(l, Append{Records: c.records, NoSync: true}); err != nil {
			t.Fatal(err)
		}
		if got := l.Metrics().Syncs - before; got != c.syncs {
			t.Errorf("case %d: %d syncs", i, got)
		}
	}
}

// TestIdleSeal: the witness of the last group is written after the idle time, by
// itself and once; and no goroutine is left after Close (the bubble would hang).
func TestIdleSeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		opts := testOptions(mem)
		opts.inline, opts.IdleSeal = false, 0
		l, _ := mustOpen(t, opts)
		for i := range uint64(3) {
			mustPut(t, l, entry(1, i+1))
			time.Sleep(defaultIdleSeal - time.Millisecond)
			synctest.Wait()
			if g := l.Metrics().Groups; g != 2*i+1 {
				t.Fatalf("%d groups before the idle time", g)
			}
			time.Sleep(time.Hour)
			synctest.Wait()
			if g := l.Metrics().Groups; g != 2*i+2 {
				t.Fatalf("%d groups after the idle time", g)
			}
		}
		if s := l.Metrics().Syncs; s != 3 {
			t.Fatalf("%d syncs: sealing must not sync", s)
		}
		closeLog(t, l)
		rep, err := Verify(mem, testDir, nil)
		if err != nil || len(rep.Damages) > 0 || rep.Torn != nil || rep.Files[0].Groups != 6 {
			t.Fatalf("%+v, %v", rep, err)
		}
	})
}

// TestCloseCompletes: what was submitted before Close is durable after it, and
// Close ends all goroutines also with work in the queue.
func TestCloseCompletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		opts := testOptions(mem)
		opts.inline = false
		l, _ := mustOpen(t, opts)
		var ok atomic.Int32
		for i := range uint64(50) {
			l.Submit(Append{Records: []Record{entry(1, i+1, make([]byte, 1500))}, Done: func(err error, _ []Position) {
				if err == nil {
					ok.Add(1)
				}
			}})
		}
		closeLog(t, l)
		if ok.Load() != 50 {
			t.Fatalf("%d completed", ok.Load())
		}
		disk := mem.CrashClone(nil, vfs.CrashOptions{Data: vfs.KeepNone, Names: vfs.KeepNone})
		l, rec := mustOpen(t, testOptions(disk))
		if s, _ := rec.Shard(1); s.LastIndex != 50 || s.FirstEntry != 1 || s.LastTerm != 1 {
			t.Fatalf("%+v", s)
		}
		closeLog(t, l)
	})
}

// TestTables: term, vote and commit in a header come from what was written, the
// rest from the caller; a shard without records from the caller alone.
func TestTables(t *testing.T) {
	mem := vfs.NewMem()
	opts := testOptions(mem)
	opts.Tables = func() []ShardState {
		return []ShardState{
			{Shard: 1, Incarnation: 1, HardState: HardState{Term: 99, Commit: 99}, FirstIndex: 5, FirstTerm: 4, CheckpointID: 3},
			{Shard: 2, Incarnation: 7, HardState: HardState{Term: 6, Vote: 5, Commit: 4}, FirstIndex: 5},
			{Shard: 3, Incarnation: 1, HardState: HardState{Term: 99}},
		}
	}
	l, _ := mustOpen(t, opts)
	mustPut(t, l, entry(1, 5), HardState{Term: 2, Vote: 1, Commit: 5}.Record(1, 1), ShardGoneRecord(3, 1))
	fill(t, l, 9, 1, 2)
	for _, f := range l.Sealed() {
		l.Release(f.Seq)
	}
	wait(t, l)
	closeLog(t, l)
	l, rec := mustOpen(t, testOptions(mem))
	defer closeLog(t, l)
	if s, _ := rec.Shard(1); s.HardState != (HardState{2, 1, 5}) || s.FirstIndex != 5 || s.FirstTerm != 4 || s.CheckpointID != 3 || s.LastIndex != 0 {
		t.Errorf("shard 1: %+v", s)
	}
	if s, _ := rec.Shard(2); s.HardState != (HardState{6, 5, 4}) || s.Incarnation != 7 {
		t.Errorf("shard 2: %+v", s)
	}
	if s, ok := rec.Shard(3); ok {
		t.Errorf("shard 3: %+v", s)
	}
	if rec.Damaged() {
		t.Error(rec.Damages)
	}
}

// TestManyShards: a table of several blocks, and one that is too large.
func TestManyShards(t *testing.T) {
	mem := vfs.NewMem()
	opts := testOptions(mem)
	opts.FileSize = 256 << 10
	l, _ := mustOpen(t, opts)
	const shards = 200
	for id := range uint32(shards) {
		mustPut(t, l, HardState{Term: 1, Vote: uint64(id)}.Record(id, 1))
	}
	var i uint64
	for len(l.Sealed()) < 2 {
		i++
		mustPut(t, l, entry(1, i, make([]byte, l.MaxPayload())))
	}
	for _, f := range l.Sealed() {
		l.Release(f.Seq)
	}
	wait(t, l)
	closeLog(t, l)
	l, rec := mustOpen(t, opts)
	if len(rec.Shards) != shards || rec.Damaged() {
		t.Fatalf("%d shards, %v", len(rec.Shards), rec.Damages)
	}
	for id := uint32(shards); id < 400; id++ {
		mustPut(t, l, HardState{Term: 1}.Record(id, 1))
	}
	if _, err := put(l, entry(1, i+1, make([]byte, l.MaxPayload()))); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("table of 400 shards in 16 KiB: %v", err)
	}
	if err := l.Close(); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
}

func TestOptions(t *testing.T) {
	for i, o := range []Options{
		{},
		{FS: vfs.NewMem()},
		{FS: vfs.NewMem(), Dir: "/w", FileSize: 1000},
		{FS: vfs.NewMem(), Dir: "/w", FileSize: minFileSize + 1},
		{FS: vfs.NewMem(), Dir: "/w", FileSize: 2 << 30},
		{FS: vfs.NewMem(), Dir: "/w", IdleSeal: -1},
	} {
		if _, _, err := Open(o); !errors.Is(err, ErrInvalid) {
			t.Errorf("case %d: %v", i, err)
		}
	}
}

// TestOtherFileSize: a log goes on with files of another size.
func TestOtherFileSize(t *testing.T) {
	mem := vfs.NewMem()
	opts := testOptions(mem)
	var next uint64 = 1
	for range 3 {
		for _, opts.FileSize = range []int64{minFileSize, 64 << 10} {
			l, rec := mustOpen(t, opts)
			if s, _ := rec.Shard(1); s.LastIndex != next-1 || rec.Damaged() {
				t.Fatalf("%+v %v", s, rec.Damages)
			}
			next = fill(t, l, 1, next, 1)
			closeLog(t, l)
		}
	}
}

// TestOS runs the whole on the operating system's files.
func TestOS(t *testing.T) {
	opts := Options{FS: vfs.OS(), Dir: filepath.Join(t.TempDir(), "wal"), FileSize: 256 << 10}
	l, _ := mustOpen(t, opts)
	rng := rand.New(rand.NewPCG(1, 1))
	want := map[uint64][]byte{}
	for i := range uint64(40) {
		chunks := [][]byte{make([]byte, rng.IntN(900)), make([]byte, rng.IntN(60000))}
		for _, c := range chunks {
			for j := range c {
				c[j] = byte(rng.Uint32())
			}
		}
		want[i+1] = bytes.Join(chunks, nil)
		mustPut(t, l, entry(1, i+1, chunks...))
	}
	closeLog(t, l)
	l, rec := mustOpen(t, opts)
	defer closeLog(t, l)
	if err := rec.Replay(1, 1, func(e Entry) error {
		if !bytes.Equal(e.Payload, want[e.Index]) {
			return fmt.Errorf("entry %d", e.Index)
		}
		delete(want, e.Index)
		return nil
	}); err != nil || len(want) > 0 || rec.Damaged() {
		t.Fatalf("%v, %d missing, %v", err, len(want), rec.Damages)
	}
}
