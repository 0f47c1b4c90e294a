package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/vfs"
)

// crasher cuts the power before every mutating operation of a workload, several
// times each, and checks what a new process makes of the disk.
type crasher struct {
	t       testing.TB
	mem     *vfs.Mem
	h       *history
	seed    uint64
	perOp   int
	ops     int
	checked int
}

func (c *crasher) hook(op vfs.Op) error {
	if !op.Kind.Mutates() || c.t.Failed() {
		return nil
	}
	c.ops++
	snap := c.h.snapshot()
	for i := range c.perOp {
		rng := rand.New(rand.NewPCG(c.seed, uint64(c.ops)<<8|uint64(i)))
		disk := c.mem.Clone() // the process is killed; the power goes during recovery
		if i > 0 {
			disk = c.mem.CrashClone(rng, vfs.CrashOptions{Data: vfs.Keep(i / 2), Names: vfs.Keep(rng.IntN(3))})
		}
		c.checked++
		if err := c.recover(disk, snap, rng); err != nil {
			c.t.Errorf("seed %d, cut before operation %d (%s %s at %d), try %d: %v", c.seed, c.ops, op.Kind, op.Path, op.Off, i, err)
			return nil
		}
	}
	return nil
}

// recover opens the log twice: first with the power cut again at a random
// operation of the recovery, then to the end and beyond.
func (c *crasher) recover(disk *vfs.Mem, snap snapshot, rng *rand.Rand) error {
	again, n := disk, rng.IntN(12)
	fsys := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind.Mutates() {
			if n == 0 {
				again = disk.CrashClone(rng, vfs.CrashOptions{})
			}
			n--
		}
		return nil
	})
	if _, err := c.open(fsys, snap); err != nil {
		return err
	}
	m, err := c.open(again, snap)
	if err != nil {
		return fmt.Errorf("second crash: %w", err)
	}
	return c.goOn(again, m, snap.base)
}

// open recovers, checks, and closes.
func (c *crasher) open(fsys vfs.FS, snap snapshot) (model, error) {
	before, err := Verify(fsys, testDir, nil)
	if err != nil && before.Files != nil {
		return nil, err
	}
	l, rec, err := Open(testOptions(fsys))
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if rec.Damaged() || len(before.Damages) > 0 {
		return nil, fmt.Errorf("damage after a mere power cut: %v %v", rec.Damages, before.Damages)
	}
	if (before.Torn != nil) != (rec.Torn != nil) {
		return nil, fmt.Errorf("Verify and Open disagree: %v, %v", before.Torn, rec.Torn)
	}
	m, err := snap.check(rec)
	if err != nil {
		return nil, err
	}
	return m, l.Close()
}

// goOn appends to a recovered log, and expects everything at the next opening.
func (c *crasher) goOn(disk *vfs.Mem, m model, base map[baseKey]uint64) error {
	l, _, err := Open(testOptions(disk))
	if err != nil {
		return err
	}
	defer l.Close()
	m = m.clone()
	var failed error
	for id := range uint32(workloadShards) {
		s := m[id]
		if s == nil || s.gone {
			continue
		}
		p := []byte(fmt.Sprintf("after the crash %d", id))
		a := Append{Records: []Record{{
			Type: TypeEntry, Shard: id, Incarnation: s.incarnation, Term: s.hard.Term + 1,
			Index: s.last + 1, Payload: [][]byte{p}, PayloadCRC: checksum(p),
		}}}
		a.Done = func(err error, _ []Position) {
			if err != nil {
				failed = err
			}
		}
		l.Submit(a)
		m.apply(&a.Records[0])
	}
	if err := errors.Join(l.Close(), failed); err != nil {
		return fmt.Errorf("appending after recovery: %w", err)
	}
	l, rec, err := Open(testOptions(disk))
	if err != nil {
		return err
	}
	defer l.Close()
	if rec.Damaged() || rec.Torn != nil {
		return fmt.Errorf("after appending: %v %v", rec.Damages, rec.Torn)
	}
	if err := m.diff(rec, base); err != nil {
		return fmt.Errorf("after appending: %w", err)
	}
	return l.Close()
}

// TestPowerCut is the test that this package is for: whatever was confirmed is
// there after a power cut at any moment, identical, and nothing else is.
func TestPowerCut(t *testing.T) {
	for _, seed := range seeds(t, 1) {
		h := newHistory()
		mem := vfs.NewMem()
		c := &crasher{t: t, mem: mem, h: h, seed: seed, perOp: 4}
		recycled := 0
		opts := testOptions(vfs.Inject(mem, c.hook))
		opts.Tables = h.tables
		opts.Events.FileRecycled = func(uint64, bool) { recycled++ }
		l, _ := mustOpen(t, opts)
		w := newWorkload(seed, h)
		for part := range 3 {
			w.run(t, l, 25)
			seal(t, l)
			closeLog(t, l)
			if part < 2 {
				l, _ = mustOpen(t, opts)
			}
		}
		t.Logf("seed %d: %d records, %d operations, %d recoveries, %d files recycled", seed, len(h.records), c.ops, c.checked, recycled)
		if recycled < 5 {
			t.Errorf("seed %d: only %d files were recycled", seed, recycled)
		}
	}
}

// TestPowerCutConcurrent cuts while submitters, readers and the maintenance run
// at once. Each submitter has its own shard, and checks are per shard.
func TestPowerCutConcurrent(t *testing.T) {
	seed := seeds(t, 0)[0]
	mem := vfs.NewMem()
	const shards, rounds = 4, 250
	hist := make([]*history, shards)
	for i := range hist {
		hist[i] = newHistory()
	}
	opts := testOptions(mem)
	opts.inline, opts.IdleSeal = false, time.Millisecond
	l, _ := mustOpen(t, opts)
	var wg sync.WaitGroup
	for id := range uint32(shards) {
		wg.Go(func() { submitAlone(t, l, hist, id, seed, rounds) })
	}
	stop := make(chan struct{})
	var cuts int
	var cutter sync.WaitGroup
	cutter.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 99))
		for ; ; cuts++ {
			select {
			case <-stop:
				return
			default:
			}
			snaps := make([]snapshot, shards)
			for i := range snaps {
				snaps[i] = hist[i].snapshot()
			}
			disk := mem.CrashClone(rng, vfs.CrashOptions{})
			// What was submitted meanwhile may be there too.
			for i := range snaps {
				hist[i].mu.Lock()
				snaps[i].pending = slices.Clone(hist[i].records[snaps[i].durable:])
				snaps[i].base = maps.Clone(hist[i].base)
				hist[i].mu.Unlock()
			}
			if err := checkShards(disk, snaps); err != nil {
				t.Errorf("seed %d, cut %d: %v", seed, cuts, err)
				return
			}
		}
	})
	wg.Wait()
	close(stop)
	cutter.Wait()
	closeLog(t, l)
	t.Logf("%d power cuts", cuts)
}

func checkShards(disk *vfs.Mem, snaps []snapshot) error {
	l, rec, err := Open(testOptions(disk))
	if err != nil {
		return err
	}
	defer l.Close()
	if rec.Damaged() {
		return fmt.Errorf("damage: %v", rec.Damages)
	}
	for id, s := range snaps {
		only := *rec
		only.Shards = nil
		if r, ok := rec.Shard(uint32(id)); ok {
			only.Shards = []RecoveredShard{r}
		}
		if _, err := s.check(&only); err != nil {
			return err
		}
	}
	return nil
}

func submitAlone(t *testing.T, l *Log, hist []*history, id uint32, seed uint64, rounds int) {
	h := hist[id]
	rng := rand.New(rand.NewPCG(seed, uint64(id)))
	var all sync.WaitGroup
	window := make(chan struct{}, 4)
	var i uint64
	for range rounds {
		i++
		p := make([]byte, rng.IntN(3000))
		for j := range p {
			p[j] = byte(rng.Uint32())
		}
		index := i
		a := Append{Records: []Record{{
			Type: TypeEntry, Shard: id, Incarnation: 1, Term: 1, Index: i,
			Payload: [][]byte{p}, PayloadCRC: checksum(p),
		}}}
		end := h.submitted(a.Records)
		window <- struct{}{}
		all.Add(1)
		a.Done = func(err error, pos []Position) {
			defer all.Done()
			defer func() { <-window }()
			if err != nil {
				t.Errorf("append: %v", err)
				return
			}
			h.confirmed(end)
			at := pos[0] // pos itself is only ours until we return
			all.Go(func() { readBack(t, l, h, id, index, at, p) })
		}
		l.Submit(a)
		if rng.IntN(10) == 0 {
			releaseOldest(l, hist, id)
		}
	}
	all.Wait()
}

// readBack reads a payload; it may have been released meanwhile.
func readBack(t *testing.T, l *Log, h *history, id uint32, index uint64, pos Position, want []byte) {
	off := len(want) / 3
	buf := make([]byte, len(want)-off)
	err := l.ReadAt(pos, off, buf)
	if err == nil && string(buf) == string(want[off:]) {
		return
	}
	h.mu.Lock()
	base := h.base[baseKey{id, 1}]
	h.mu.Unlock()
	if !errors.Is(err, ErrGone) || index >= base {
		t.Errorf("shard %d entry %d (base %d): %v", id, index, base, err)
	}
}

// releaseOldest gives up this shard's entries in the oldest sealed file, and the
// file itself if all shards have.
func releaseOldest(l *Log, hist []*history, id uint32) {
	sealed := l.Sealed()
	if len(sealed) == 0 {
		return
	}
	free := true
	for _, r := range sealed[0].Shards {
		h, k := hist[r.Shard], baseKey{r.Shard, 1}
		h.mu.Lock()
		if r.Shard == id {
			h.base[k] = max(h.base[k], r.Last+1)
		}
		free = free && h.base[k] > r.Last
		h.mu.Unlock()
	}
	if free {
		l.Release(sealed[0].Seq)
	}
}

// TestKillThenPowerCut kills the process before each sync of the directory, lets
// the next one write several files, and cuts the power at each of its operations.
func TestKillThenPowerCut(t *testing.T) {
	var killed []*vfs.Mem
	mem := vfs.NewMem()
	l, _ := mustOpen(t, testOptions(vfs.Inject(mem, func(op vfs.Op) error {
		if op.Kind == vfs.OpSyncDir {
			killed = append(killed, mem.Clone())
		}
		return nil
	})))
	next := fill(t, l, 1, 1, 3)
	for _, f := range l.Sealed() {
		l.Release(f.Seq)
	}
	wait(t, l)
	fill(t, l, 1, next, 1)
	closeLog(t, l)
	rng := rand.New(rand.NewPCG(1, 3))
	for i, disk := range killed {
		var confirmed atomic.Uint64
		l, rec := mustOpen(t, testOptions(vfs.Inject(disk, func(op vfs.Op) error {
			if !op.Kind.Mutates() || t.Failed() {
				return nil
			}
			for _, keep := range []vfs.Keep{vfs.KeepNone, vfs.KeepRandom} {
				rep, err := Verify(disk.CrashClone(rng, vfs.CrashOptions{Data: keep, Names: keep}), testDir, nil)
				if confirmed.Load() == 0 && errors.Is(err, fs.ErrNotExist) {
					continue
				}
				var last uint64
				for _, s := range rep.Shards {
					last = s.LastIndex
				}
				if err != nil || len(rep.Damages) > 0 || last < confirmed.Load() {
					t.Errorf("kill %d, then cut at %s %s: last %d of %d, %v %v", i, op.Kind, op.Path, last, confirmed.Load(), err, rep.Damages)
				}
			}
			return nil
		})))
		s, _ := rec.Shard(1)
		for n := s.LastIndex + 1; n < s.LastIndex+12; n++ {
			mustPut(t, l, entry(1, n, make([]byte, 6000)))
			confirmed.Store(n)
		}
		closeLog(t, l)
	}
	if len(killed) < 12 {
		t.Fatalf("only %d kills", len(killed))
	}
}
