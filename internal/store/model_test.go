package store

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// fataler is what testing.T and rapid.T have in common here.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// broker plays the store's caller with naive maps: it knows every record and what
// is settled, keeps the runs, and does the upkeep that the store asks for.
type broker struct {
	t     fataler
	opts  Options
	s     *Store
	rng   *rand.Rand
	want  map[named][]byte // not settled
	due   map[named]int64
	tail  map[msg.LogID]msg.Offset // per log, both lanes
	runs  []Run
	pairs map[string][]byte
	index uint64 // of the last checkpoint
	check bool   // there is a checkpoint
}

func newBroker(t fataler, opts Options, seed uint64) *broker {
	b := &broker{
		t: t, opts: opts, rng: rand.New(rand.NewPCG(seed, 1)), want: map[named][]byte{},
		due: map[named]int64{}, tail: map[msg.LogID]msg.Offset{}, pairs: map[string][]byte{},
	}
	b.reopen()
	return b
}

func (b *broker) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%v", err)
	}
}

func compareNamed(a, b named) int {
	return cmp.Or(cmp.Compare(a.log, b.log), cmp.Compare(a.lane, b.lane), cmp.Compare(a.off, b.off))
}

// reopen closes and opens the store, takes its runs and tells it what is live.
func (b *broker) reopen() *Recovery {
	b.t.Helper()
	if b.s != nil {
		b.must(b.s.Close())
	}
	s, rec, err := Open(b.opts)
	b.must(err)
	b.s, b.runs = s, nil
	for _, sh := range rec.Shards {
		b.runs = append(b.runs, sh.Runs...)
	}
	for _, r := range b.runs {
		b.s.SetLive(r, int(liveCount(r, b.live(r))))
	}
	return rec
}

// liveFor is the LiveFunc for a compaction of some segments.
func (b *broker) liveFor(inputs []SegID) LiveFunc {
	prev := Run{}
	return func(r Run) Live {
		if o := cmp.Or(compareRuns(prev, r), cmp.Compare(prev.First, r.First)); o >= 0 {
			b.t.Fatalf("asked for %+v after %+v", r, prev)
		}
		prev = r
		l := Live{Ranges: b.live(r)}
		var before *Run
		for i := range b.runs {
			x := &b.runs[i]
			if compareRuns(*x, r) == 0 && x.First < r.First && (before == nil || before.First < x.First) {
				before = x
			}
		}
		l.Follows = before != nil && slices.Contains(inputs, before.Seg)
		return l
	}
}

// live returns what of a run is not settled.
func (b *broker) live(r Run) []msg.Range {
	var ranges []msg.Range
	for o := r.First; o <= r.Last; o++ {
		if _, live := b.want[named{r.Log, r.Lane, o}]; !live {
			continue
		}
		if n := len(ranges); n > 0 && ranges[n-1].First+ranges[n-1].Count == o {
			ranges[n-1].Count++
		} else {
			ranges = append(ranges, msg.Range{First: o, Count: 1})
		}
	}
	return ranges
}

// pending is an entry to flush.
type pending struct {
	named
	rec    []byte
	shared uint64 // key, 0 = not shared
}

// generate makes entries for a flush, sorted, with fan-outs, lanes, holes and sizes of
// every kind.
func (b *broker) generate(logs, n, size int) []pending {
	var out []pending
	add := func(log msg.LogID, rec []byte, key uint64) {
		k := named{log, 0, b.tail[log]}
		if b.rng.IntN(8) == 0 {
			k.lane = 9
		}
		b.tail[log] += 1 + msg.Offset(b.rng.IntN(10)/9) // sometimes a hole
		if rec == nil {
			expiry := int64(0)
			if b.rng.IntN(4) == 0 {
				expiry = 1000 + int64(b.rng.IntN(500))
			}
			rec = record(k.log, k.lane, k.off, 1+b.rng.IntN(2*size), expiry)
		}
		out = append(out, pending{k, rec, key})
	}
	for range n {
		switch b.rng.IntN(6) {
		case 0: // a fan-out
			key := b.rng.Uint64() | 1
			rec := record(0, 0, key, 1+b.rng.IntN(2*size), int64(b.rng.IntN(2)*1234))
			for range 1 + b.rng.IntN(logs) {
				add(msg.LogID(1+b.rng.IntN(logs)), rec, key)
			}
		default:
			add(msg.LogID(1+b.rng.IntN(logs)), nil, 0)
		}
	}
	slices.SortFunc(out, func(x, y pending) int { return compareNamed(x.named, y.named) })
	return out
}

// write hands entries to a writer, announcing about half of the runs.
func (b *broker) write(w *Writer, entries []pending) error {
	for i, e := range entries {
		if i == 0 || e.log != entries[i-1].log || e.lane != entries[i-1].lane {
			bytes, shared := int64(0), int64(0)
			for _, x := range entries[i:] {
				if x.log != e.log || x.lane != e.lane {
					break
				}
				bytes += int64(len(x.rec))
				if x.shared != 0 {
					shared += int64(len(x.rec))
				}
			}
			if 4*shared > bytes {
				bytes = 0
			}
			if b.rng.IntN(2) == 0 {
				if err := w.StartRun(e.log, e.lane, bytes); err != nil {
					return err
				}
			}
		}
		var err error
		if e.shared != 0 {
			err = w.AddShared(e.log, e.lane, e.off, SharedKey{Lo: e.shared}, e.rec)
		} else {
			err = w.Add(e.log, e.lane, e.off, e.rec)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *broker) accept(entries []pending) {
	for _, e := range entries {
		b.want[e.named] = e.rec
		if x := expiryOf(e.rec); x != 0 {
			b.due[e.named] = x
		}
	}
}

func (b *broker) flush(logs, n, size int) {
	b.t.Helper()
	entries := b.generate(logs, n, size)
	w := b.s.NewWriter(0, WriterOptions{})
	b.must(b.write(w, entries))
	metas, err := w.Finish()
	b.must(err)
	var e Edit
	for _, m := range metas {
		e.AddSegment(m)
	}
	e.SetFlushed(0, Flushed{1, b.s.Flushed(0).Index + 1})
	b.must(b.s.Install(&e))
	b.accept(entries)
	b.runs = append(b.runs, runsOf(metas)...)
}

// settle settles about one in n of what is live.
func (b *broker) settle(keep func(named) bool) {
	dead := map[named]bool{}
	for _, k := range slices.SortedFunc(maps.Keys(b.want), compareNamed) {
		if !keep(k) {
			delete(b.want, k)
			delete(b.due, k)
			dead[k] = true
		}
	}
	for _, r := range b.runs {
		n := 0
		for o := r.First; o <= r.Last; o++ {
			if dead[named{r.Log, r.Lane, o}] {
				n++
			}
		}
		b.s.AddDead(r, n)
	}
}

func (b *broker) drop(ids []SegID) {
	b.t.Helper()
	var e Edit
	for _, id := range ids {
		e.DropSegment(id)
	}
	b.must(b.s.Install(&e))
	b.forget(ids)
}

func (b *broker) forget(ids []SegID) {
	b.runs = slices.DeleteFunc(b.runs, func(r Run) bool { return slices.Contains(ids, r.Seg) })
}

func (b *broker) compact(ids []SegID) {
	b.t.Helper()
	c, err := b.s.Compact(ids, b.liveFor(ids), CompactOptions{})
	b.must(err)
	var e Edit
	c.AddTo(&e)
	b.must(b.s.Install(&e))
	b.forget(ids)
	b.runs = append(b.runs, runsOf(c.Outputs)...)
	c.Close()
}

// upkeep does what the store asks for until it is content.
func (b *broker) upkeep() {
	b.t.Helper()
	for range 1000 {
		c := b.s.Candidates(0)
		switch {
		case len(c.Dead) > 0:
			b.drop(c.Dead)
		case len(c.Measure) > 0:
			for _, id := range c.Measure {
				_, err := b.s.Measure(id, b.liveFor(nil))
				b.must(err)
			}
		case len(c.Rewrite) > 0:
			b.compact(c.Rewrite[0])
		case len(c.Merge) > 0:
			b.compact(c.Merge[0])
		default:
			return
		}
	}
	b.t.Fatalf("the store is never content: %+v", b.s.Candidates(0))
}

func (b *broker) checkpoint(n int) {
	b.t.Helper()
	c, err := b.s.BeginCheckpoint(0)
	b.must(err)
	next := maps.Clone(b.pairs)
	for range n {
		key := fmt.Sprintf("log %d", b.rng.IntN(3*n+1))
		if b.rng.IntN(4) == 0 {
			b.must(c.Put([]byte(key), nil))
			delete(next, key)
			continue
		}
		v := make([]byte, b.rng.IntN(300))
		b.must(c.Put([]byte(key), v))
		next[key] = v
	}
	b.must(c.Commit(b.index+1, []byte("extra"), nil))
	b.index, b.pairs, b.check = b.index+1, next, true
}

// verify reads everything and compares it with what should be there.
func (b *broker) verify() {
	b.t.Helper()
	slices.SortFunc(b.runs, func(x, y Run) int { return cmp.Or(compareRuns(x, y), cmp.Compare(x.First, y.First)) })
	got := map[named][]byte{}
	for i, r := range b.runs {
		if i > 0 && compareRuns(b.runs[i-1], r) == 0 && b.runs[i-1].Last >= r.First {
			b.t.Fatalf("%+v overlaps %+v", b.runs[i-1], r)
		}
		b.readRun(r, got)
	}
	for k, rec := range b.want {
		if !bytes.Equal(got[k], rec) {
			b.t.Fatalf("%+v: got %d bytes, want %d", k, len(got[k]), len(rec))
		}
	}
	b.verifyDue()
	pairs := map[string][]byte{}
	b.must(b.s.LoadCheckpoint(0, func(key, value []byte) error {
		if _, twice := pairs[string(key)]; twice {
			b.t.Fatalf("key %q twice", key)
		}
		pairs[string(key)] = bytes.Clone(value)
		return nil
	}))
	if !maps.EqualFunc(pairs, b.pairs, bytes.Equal) {
		b.t.Fatalf("checkpoint has %d pairs, want %d", len(pairs), len(b.pairs))
	}
	info, ok := b.s.Checkpoint(0)
	if ok != b.check || info.Index != b.index {
		b.t.Fatalf("checkpoint %v %+v", ok, info)
	}
}

// readRun reads a run with reads of random size and adds its live entries to got.
func (b *broker) readRun(r Run, got map[named][]byte) {
	b.t.Helper()
	n := uint32(0)
	for next := r.First; ; {
		blk, err := b.s.ReadRange(r, next, 1+b.rng.IntN(100<<10))
		b.must(err)
		was := n
		for {
			off, rec, ok := blk.Next()
			if !ok {
				break
			}
			n++
			k := named{r.Log, r.Lane, off}
			if _, live := b.want[k]; live && got[k] != nil {
				b.t.Fatalf("%+v is in two runs", k)
			}
			if off < next || off > r.Last {
				b.t.Fatalf("offset %d in a read of %+v from %d", off, r, next)
			}
			got[k] = bytes.Clone(rec)
			next = off + 1
		}
		blk.Release()
		if n == was {
			break
		}
	}
	if n != r.Count {
		b.t.Fatalf("%+v: %d entries", r, n)
	}
}

func (b *broker) verifyDue() {
	b.t.Helper()
	due := map[named]int64{}
	for _, m := range b.s.Segments(0) {
		d, err := b.s.Due(m.ID)
		b.must(err)
		if d == nil {
			continue
		}
		prev, n := int64(0), 0
		for {
			e, ok, err := d.Next()
			b.must(err)
			if !ok {
				break
			}
			if e.TimeMS < prev {
				b.t.Fatalf("due list of %d goes back from %d to %d", m.ID, prev, e.TimeMS)
			}
			prev = e.TimeMS
			n++
			k := named{e.Log, e.Lane, e.Offset}
			if _, live := b.want[k]; live {
				due[k] = e.TimeMS
			}
		}
		if n != d.Len() {
			b.t.Fatalf("due list of %d has %d entries, says %d", m.ID, n, d.Len())
		}
	}
	if !maps.Equal(due, b.due) {
		b.t.Fatalf("%d live entries in due lists, want %d", len(due), len(b.due))
	}
}

func TestStoreEqualsNaiveMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fsys := vfs.NewMem()
		b := newBroker(t, small(fsys), rapid.Uint64().Draw(t, "seed"))
		t.Repeat(map[string]func(*rapid.T){
			"flush few":   func(t *rapid.T) { b.flush(3, rapid.IntRange(1, 30).Draw(t, "n"), 200) },
			"flush many":  func(t *rapid.T) { b.flush(rapid.IntRange(1, 40).Draw(t, "logs"), 150, 600) },
			"flush large": func(t *rapid.T) { b.flush(2, rapid.IntRange(1, 4).Draw(t, "n"), 40<<10) },
			"settle": func(t *rapid.T) {
				n := rapid.IntRange(1, 5).Draw(t, "one in")
				b.settle(func(named) bool { return b.rng.IntN(n) > 0 })
			},
			"purge": func(t *rapid.T) {
				log := msg.LogID(rapid.IntRange(1, 5).Draw(t, "log"))
				b.settle(func(k named) bool { return k.log != log })
			},
			"compact": func(t *rapid.T) {
				var ids []SegID
				for _, m := range b.s.Segments(0) {
					if b.rng.IntN(3) == 0 {
						ids = append(ids, m.ID)
					}
				}
				if len(ids) > 0 {
					b.compact(ids)
				}
			},
			"upkeep":     func(*rapid.T) { b.upkeep() },
			"checkpoint": func(t *rapid.T) { b.checkpoint(rapid.IntRange(0, 60).Draw(t, "n")) },
			"reopen": func(t *rapid.T) {
				if rec := b.reopen(); rec.Orphans > 0 || len(rec.Damages) > 0 {
					t.Fatalf("%+v", rec)
				}
			},
			"verify": func(*rapid.T) { b.verify() },
		})
		b.verify()
		b.must(b.s.Close())
		r, err := Check(fsys, b.opts.Dir)
		b.must(err)
		if !r.Sound() || len(r.Orphans) > 0 {
			t.Fatalf("orphans %v, damages %v", r.Orphans, r.Damages)
		}
	})
}

// TestSpaceBound settles in ways that make a naive store keep everything, and
// holds the store to its bound after upkeep.
func TestSpaceBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fsys := vfs.NewMem()
		b := newBroker(t, small(fsys), rapid.Uint64().Draw(t, "seed"))
		logs := rapid.SampledFrom([]int{1, 4, 60}).Draw(t, "logs")
		size := rapid.SampledFrom([]int{60, 500, 4000}).Draw(t, "size")
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			b.flush(logs, 200, size)
			switch rapid.IntRange(0, 3).Draw(t, "settle") {
			case 0: // all but a few old ones
				b.settle(func(named) bool { return b.rng.IntN(50) == 0 })
			case 1: // large ones first
				b.settle(func(k named) bool { return len(b.want[k]) < size })
			case 2: // all but one log's
				b.settle(func(k named) bool { return k.log == 1 })
			}
			b.upkeep()
			b.verify()
			checkBound(t, b)
		}
	})
}

// checkBound computes the live bytes the slow way: shared records once per shard.
func checkBound(t fataler, b *broker) {
	t.Helper()
	var live, disk, entries int64
	bodies := map[string]bool{}
	for _, rec := range b.want {
		entries++
		if !bodies[string(rec)] {
			bodies[string(rec)] = true
			live += int64(len(rec))
		}
	}
	runs := int64(len(b.runs))
	for _, m := range b.s.Segments(0) {
		disk += m.Bytes
	}
	segs := int64(len(b.s.Segments(0)))
	// What each entry, run and file costs besides its records: a header of an entry
	// or the reference of a shared one, head of a block and line of the directory,
	// due entry, trailer.
	limit := 2*live + 2*(32*entries+64*runs+256*segs)
	if disk > limit {
		t.Fatalf("%d bytes on disk for %d live ones in %d entries, %d runs, %d segments: limit %d",
			disk, live, entries, runs, segs, limit)
	}
}
