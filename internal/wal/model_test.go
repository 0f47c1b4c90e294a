package wal

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/vfs"
)

var seedFlag = flag.Uint64("wal.seed", 0, "replay the randomized tests with this seed")

// seeds returns the seeds of a randomized test: fixed ones, one of today's, or
// the one given by -wal.seed.
func seeds(t testing.TB, fixed int) []uint64 {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	list := []uint64{uint64(time.Now().UnixNano()) | 1}
	for i := range fixed {
		list = append(list, uint64(i)*7919+1)
	}
	t.Logf("seeds %d (replay one with -wal.seed)", list)
	return list
}

const testDir = "/wal"

// modelShard is what a shard's log is after some records.
type modelShard struct {
	incarnation uint64
	hard        HardState
	entries     map[uint64]modelEntry
	last        uint64
	started     uint64
	gone        bool
}

type modelEntry struct {
	term    uint64
	payload string
}

// baseKey names a shard's incarnation: a new one begins without a base.
type baseKey struct {
	shard       uint32
	incarnation uint64
}

// model is the whole log after some records.
type model map[uint32]*modelShard

func (m model) clone() model {
	c := model{}
	for id, s := range m {
		n := *s
		n.entries = maps.Clone(s.entries)
		c[id] = &n
	}
	return c
}

// apply is the specification of last writer wins.
func (m model) apply(r *Record) {
	s := m[r.Shard]
	if s == nil || r.Incarnation > s.incarnation {
		s = &modelShard{incarnation: r.Incarnation, entries: map[uint64]modelEntry{}}
		m[r.Shard] = s
	}
	switch r.Type {
	case TypeEntry:
		maps.DeleteFunc(s.entries, func(i uint64, _ modelEntry) bool { return i >= r.Index })
		s.entries[r.Index] = modelEntry{r.Term, string(bytes.Join(r.Payload, nil))}
		s.last = r.Index
	case TypeHardState:
		s.hard = HardState{Term: r.Term, Vote: r.Aux, Commit: r.Index}
	case TypeLogStart:
		clear(s.entries)
		s.last, s.started = r.Index, r.Index
	case TypeShardGone:
		s.gone = true
		clear(s.entries)
	}
}

// diff compares what was recovered with the model. Entries below base[shard] may
// be missing, those at or above must be there.
func (m model) diff(rec *Recovery, base map[baseKey]uint64) error {
	for id, s := range m {
		r, ok := rec.Shard(id)
		if s.gone {
			if ok && r.Incarnation <= s.incarnation {
				return fmt.Errorf("shard %d came back from the dead", id)
			}
			continue
		}
		if !ok {
			return fmt.Errorf("shard %d is missing", id)
		}
		if r.Incarnation != s.incarnation || r.HardState != s.hard {
			return fmt.Errorf("shard %d: incarnation %d %+v, want %d %+v", id, r.Incarnation, r.HardState, s.incarnation, s.hard)
		}
		seen := map[uint64]bool{}
		err := rec.Replay(id, 0, func(e Entry) error {
			want, ok := s.entries[e.Index]
			if !ok || want.term != e.Term || want.payload != string(e.Payload) || e.Damaged {
				return fmt.Errorf("shard %d entry %d term %d: expected %v, term %d", id, e.Index, e.Term, ok, want.term)
			}
			seen[e.Index] = true
			return nil
		})
		if err != nil {
			return err
		}
		for i := range s.entries {
			if from := base[baseKey{id, s.incarnation}]; i >= from && !seen[i] {
				return fmt.Errorf("shard %d entry %d is missing (base %d, last %d)", id, i, from, s.last)
			}
		}
	}
	for _, r := range rec.Shards {
		if m[r.Shard] == nil {
			return fmt.Errorf("shard %d was never written", r.Shard)
		}
	}
	return nil
}

// history is everything submitted, and how much of it must survive.
type history struct {
	mu      sync.Mutex
	records []Record
	durable int                // records before it were confirmed
	certain model              // after the durable ones
	base    map[baseKey]uint64 // entries below may have been released
}

func newHistory() *history { return &history{certain: model{}, base: map[baseKey]uint64{}} }

// submitted notes records and returns how many there are.
func (h *history) submitted(r []Record) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records = append(h.records, r...)
	return len(h.records)
}

// confirmed notes that the first n records are durable.
func (h *history) confirmed(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ; h.durable < n; h.durable++ {
		h.certain.apply(&h.records[h.durable])
	}
}

// snapshot is what may be found after a crash now.
type snapshot struct {
	model   model
	pending []Record
	base    map[baseKey]uint64
	durable int // how many records were confirmed
}

func (h *history) snapshot() snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	return snapshot{h.certain.clone(), slices.Clone(h.records[h.durable:]), maps.Clone(h.base), h.durable}
}

// check accepts the confirmed state, and those after any number of the records
// in flight.
func (s snapshot) check(rec *Recovery) (model, error) {
	m := s.model.clone()
	err := m.diff(rec, s.base)
	errs := []error{err}
	for i := 0; err != nil && i < len(s.pending); i++ {
		m.apply(&s.pending[i])
		err = m.diff(rec, s.base)
		errs = append(errs, err)
	}
	if err != nil {
		return nil, fmt.Errorf("no state between confirmed and submitted: %w", errors.Join(errs...))
	}
	return m, nil
}

// workload makes records for a few shards. It is deterministic.
type workload struct {
	rng   *rand.Rand
	h     *history
	state model // after everything submitted
}

const workloadShards = 3

func newWorkload(seed uint64, h *history) *workload {
	w := &workload{rng: rand.New(rand.NewPCG(seed, 1)), h: h, state: model{}}
	for id := range uint32(workloadShards) {
		w.state[id] = &modelShard{incarnation: 1, entries: map[uint64]modelEntry{}, hard: HardState{Term: 1}}
	}
	return w
}

func (w *workload) payload() [][]byte {
	var chunks [][]byte
	for range w.rng.IntN(4) {
		n := w.rng.IntN(1200)
		if w.rng.IntN(20) == 0 {
			n = w.rng.IntN(7000)
		}
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(w.rng.Uint32())
		}
		chunks = append(chunks, b)
	}
	return chunks
}

// next returns an append. What it contains is noted as submitted.
func (w *workload) next() (a Append, end int) {
	id := uint32(w.rng.IntN(workloadShards))
	s := w.state[id]
	switch k := w.rng.IntN(100); {
	case k < 60:
		a.Records = w.entries(id, s.last+1)
	case k < 72 && s.last > s.hard.Commit: // another leader replaces a suffix
		s.hard.Term++
		from := s.hard.Commit + 1 + w.rng.Uint64N(s.last-s.hard.Commit)
		a.Records = append(w.entries(id, from), s.hard.Record(id, s.incarnation))
	case k < 88:
		s.hard.Commit += w.rng.Uint64N(s.last - s.hard.Commit + 1)
		a = Append{Records: []Record{s.hard.Record(id, s.incarnation)}, NoSync: true}
	case k < 93:
		s.hard.Vote = w.rng.Uint64N(5)
		a.Records = []Record{s.hard.Record(id, s.incarnation)}
	case k < 96:
		i := s.last + 1 + w.rng.Uint64N(5)
		s.hard.Commit = i
		a.Records = []Record{LogStartRecord(id, s.incarnation, i, s.hard.Term, 7), s.hard.Record(id, s.incarnation)}
	case k < 98:
		a.Records = []Record{
			ShardGoneRecord(id, s.incarnation),
			HardState{Term: 1}.Record(id, s.incarnation+1),
		}
	}
	for i := range a.Records {
		w.state.apply(&a.Records[i])
	}
	return a, w.h.submitted(a.Records)
}

func (w *workload) entries(id uint32, from uint64) []Record {
	s := w.state[id]
	var list []Record
	for i := range 1 + w.rng.IntN(4) {
		p := w.payload()
		list = append(list, Record{
			Type: TypeEntry, Shard: id, Incarnation: s.incarnation, Term: s.hard.Term,
			Index: from + uint64(i), Payload: p, PayloadCRC: checksum(bytes.Join(p, nil)),
		})
	}
	return list
}

// tables is Options.Tables: first indexes as far as entries may be released.
func (h *history) tables() []ShardState {
	h.mu.Lock()
	defer h.mu.Unlock()
	var rows []ShardState
	for id, s := range h.certain {
		if base := h.base[baseKey{id, s.incarnation}]; base > 0 && !s.gone {
			rows = append(rows, ShardState{
				Shard: id, Incarnation: s.incarnation, HardState: s.hard,
				FirstIndex: base, FirstTerm: 1, CheckpointID: base,
			})
		}
	}
	return rows
}

// advance moves the checkpoint of some shards up to a confirmed commit index, and
// releases what it covers.
func (w *workload) advance(l *Log) {
	w.h.mu.Lock()
	for id := range uint32(workloadShards) {
		if s := w.h.certain[id]; s != nil && s.incarnation == w.state[id].incarnation && w.rng.IntN(3) > 0 {
			k := baseKey{id, s.incarnation}
			w.h.base[k] = max(w.h.base[k], s.hard.Commit+1)
		}
	}
	base := maps.Clone(w.h.base)
	w.h.mu.Unlock()
	for _, f := range l.Sealed() {
		for _, r := range f.Shards {
			if r.Last >= base[baseKey{r.Shard, r.Incarnation}] {
				return
			}
		}
		l.Release(f.Seq)
	}
}

// run submits n rounds and waits for each.
func (w *workload) run(t testing.TB, l *Log, n int) {
	for range n {
		var round []Append
		for range 1 + w.rng.IntN(4) {
			a, end := w.next()
			noSync := a.NoSync
			a.Done = func(err error, pos []Position) {
				if err != nil {
					t.Errorf("append: %v", err)
				} else if !noSync {
					w.h.confirmed(end)
				}
			}
			round = append(round, a)
		}
		l.Submit(round...)
		wait(t, l)
		if w.rng.IntN(4) == 0 {
			w.advance(l)
			wait(t, l) // the writer recycles before it takes what is queued
		}
	}
}

// wait lets everything submitted complete, without writing anything.
func wait(t testing.TB, l *Log) {
	t.Helper()
	for range 2 {
		done := make(chan error, 1)
		l.Submit(Append{NoSync: true, Done: func(err error, _ []Position) { done <- err }})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// seal completes everything and makes it evident.
func seal(t testing.TB, l *Log) {
	t.Helper()
	done := make(chan error, 1)
	l.Submit(Append{Done: func(err error, _ []Position) { done <- err }})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func testOptions(fsys vfs.FS) Options {
	return Options{FS: fsys, Dir: testDir, FileSize: minFileSize, IdleSeal: time.Hour, inline: true}
}

func mustOpen(t testing.TB, o Options) (*Log, *Recovery) {
	t.Helper()
	l, rec, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l, rec
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
