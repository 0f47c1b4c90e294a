package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sluicemq/sluice/internal/vfs"
)

// expected is what a store holds, as far as its caller can tell.
type expected struct {
	want    map[named][]byte
	due     map[named]int64
	pairs   map[string][]byte
	index   uint64
	check   bool
	flushed uint64
	setting string
}

func (b *broker) expected() expected {
	v, _ := b.s.Setting("k")
	return expected{
		maps.Clone(b.want), maps.Clone(b.due), maps.Clone(b.pairs), b.index, b.check,
		b.s.Flushed(0).Index, string(v),
	}
}

// steps are the operations that must happen wholly or not at all. Each returns what
// the store holds if it happens.
var steps = []struct {
	name    string
	prepare func(b *broker)
	step    func(b *broker) (expected, error)
}{
	{"flush", func(b *broker) { b.flush(4, 40, 300) }, stepFlush},
	{"first flush", func(*broker) {}, stepFlush},
	{"merge", func(b *broker) {
		for range 3 {
			b.flush(5, 30, 300)
		}
		b.settle(func(named) bool { return b.rng.IntN(3) > 0 })
	}, func(b *broker) (expected, error) {
		var ids []SegID
		for _, m := range b.s.Segments(0) {
			ids = append(ids, m.ID)
		}
		c, err := b.s.Compact(ids, b.liveFor(ids), CompactOptions{})
		if err != nil {
			return b.expected(), err
		}
		defer c.Close()
		var e Edit
		c.AddTo(&e)
		return b.expected(), b.s.Install(&e)
	}},
	{"drop", func(b *broker) {
		b.flush(2, 20, 300)
		b.flush(2, 20, 300)
	}, func(b *broker) (expected, error) {
		id := b.s.Segments(0)[0].ID
		var e Edit
		e.DropSegment(id)
		e.Set("k", []byte("dropped"))
		after := b.expected()
		after.setting = "dropped"
		for _, r := range b.runs {
			for off := r.First; r.Seg == id && off <= r.Last; off++ {
				delete(after.want, named{r.Log, r.Lane, off})
				delete(after.due, named{r.Log, r.Lane, off})
			}
		}
		return after, b.s.Install(&e)
	}},
	{"first checkpoint", func(*broker) {}, stepCheckpoint},
	{"checkpoint", func(b *broker) { b.checkpoint(20) }, stepCheckpoint},
	{"base rewrite", func(b *broker) {
		for b.s.metrics.bases.Load() == 0 {
			b.checkpoint(20)
		}
		for info, _ := b.s.Checkpoint(0); info.Len-info.Base < max(info.Base, 8<<10)*9/10; info, _ = b.s.Checkpoint(0) {
			b.checkpoint(5)
		}
	}, stepCheckpoint},
	{"manifest rewrite", func(b *broker) {
		b.flush(3, 20, 300)
		b.checkpoint(10)
		for b.s.man.end < 4000 {
			var e Edit
			e.Set("other", make([]byte, 50))
			b.must(b.s.Install(&e))
		}
	}, func(b *broker) (expected, error) {
		after := b.expected()
		after.setting = string(bytes.Repeat([]byte("x"), 200))
		var e Edit
		e.Set("k", []byte(after.setting))
		return after, b.s.Install(&e)
	}},
}

func stepFlush(b *broker) (expected, error) {
	entries := b.generate(4, 60, 600)
	after := b.expected()
	after.flushed++
	for _, p := range entries {
		after.want[p.named] = p.rec
		if x := expiryOf(p.rec); x != 0 {
			after.due[p.named] = x
		}
	}
	w := b.s.NewWriter(0, WriterOptions{})
	defer w.Abort()
	if err := b.write(w, entries); err != nil {
		return after, err
	}
	metas, err := w.Finish()
	if err != nil {
		return after, err
	}
	var e Edit
	for _, m := range metas {
		e.AddSegment(m)
	}
	e.SetFlushed(0, Flushed{1, after.flushed})
	if err = b.s.Install(&e); err != nil && !errors.Is(err, ErrFailed) {
		b.s.Discard(metas)
	}
	return after, err
}

func stepCheckpoint(b *broker) (expected, error) {
	after := b.expected()
	after.index, after.check = after.index+1, true
	c, err := b.s.BeginCheckpoint(0)
	if err != nil {
		return after, err
	}
	defer c.Abort()
	for i := range 40 {
		key, value := fmt.Sprintf("log %d", 2*i), bytes.Repeat([]byte{byte(i)}, 60)
		after.pairs[key] = value
		if err := c.Put([]byte(key), value); err != nil {
			return after, err
		}
	}
	return after, c.Commit(after.index, nil, nil)
}

var errCut = errors.New("power cut")

// trial prepares a store, then does one step in which fail decides about each
// operation that changes the disk, counted from 0.
func trial(t *testing.T, i int, fail func(n int, op vfs.Op, disk *vfs.Mem) error) (b *broker, disk *vfs.Mem, before, after expected, err error) {
	t.Helper()
	disk = vfs.NewMem()
	n, armed := 0, false
	fsys := vfs.Inject(disk, func(op vfs.Op) error {
		if !armed || !op.Kind.Mutates() {
			return nil
		}
		n++
		return fail(n-1, op, disk)
	})
	b = newBroker(t, small(fsys), 11)
	steps[i].prepare(b)
	before = b.expected()
	armed = true
	after, err = steps[i].step(b)
	armed = false
	return b, disk, before, after, err
}

// reborn opens a disk, finds out which of two states is there and checks that all of
// it is, and that the store works on.
func reborn(t *testing.T, disk *vfs.Mem, states ...expected) {
	t.Helper()
	b := &broker{t: t, opts: small(disk), rng: rand.New(rand.NewPCG(5, 5))}
	s, rec, err := Open(b.opts)
	must(t, err)
	if len(rec.Damages) > 0 {
		t.Fatal(rec.Damages)
	}
	b.s = s
	for _, sh := range rec.Shards {
		b.runs = append(b.runs, sh.Runs...)
	}
	info, ok := s.Checkpoint(0)
	v, _ := s.Setting("k")
	found := false
	for _, x := range states {
		if x.flushed == s.Flushed(0).Index && x.check == ok && x.index == info.Index && x.setting == string(v) {
			found = true
			b.want, b.due, b.pairs, b.index, b.check = x.want, x.due, x.pairs, x.index, x.check
		}
	}
	if !found {
		t.Fatalf("neither before nor after: flushed %+v, checkpoint %v %+v, setting %q", s.Flushed(0), ok, info, v)
	}
	b.want, b.due, b.pairs = maps.Clone(b.want), maps.Clone(b.due), maps.Clone(b.pairs)
	b.verify()
	r, err := Check(disk, "data")
	must(t, err)
	if !r.Sound() || len(r.Orphans) > 0 {
		t.Fatalf("orphans %v, damages %v", r.Orphans, r.Damages)
	}
	b.tail = map[uint64]uint64{1: 1 << 20, 2: 1 << 20, 3: 1 << 20}
	b.flush(3, 10, 300)
	b.checkpoint(10)
	b.upkeep()
	b.reopen()
	b.verify()
	b.must(b.s.Close())
}

func TestPowerCutAtEveryOperation(t *testing.T) {
	modes := []vfs.CrashOptions{
		{Data: vfs.KeepNone, Names: vfs.KeepNone},
		{Data: vfs.KeepAll, Names: vfs.KeepAll},
		{Data: vfs.KeepAll, Names: vfs.KeepNone},
		{Data: vfs.KeepNone, Names: vfs.KeepAll},
		{},
		{},
		{},
		{},
	}
	for i := range steps {
		t.Run(steps[i].name, func(t *testing.T) {
			for cut, done := 0, false; !done; cut++ {
				for mode, opts := range modes {
					var left *vfs.Mem
					_, disk, before, after, err := trial(t, i, func(n int, _ vfs.Op, disk *vfs.Mem) error {
						if n < cut {
							return nil
						}
						if n == cut {
							left = disk.CrashClone(rand.New(rand.NewPCG(uint64(cut), uint64(mode))), opts)
						}
						return errCut
					})
					if left == nil { // the step had no more operations
						must(t, err)
						left, done = disk.CrashClone(rand.New(rand.NewPCG(1, uint64(mode))), opts), true
						before = after
					}
					if err == nil && !done {
						before = after // what was reported as done stays done
					}
					t.Run(fmt.Sprintf("%d/%d", cut, mode), func(t *testing.T) { reborn(t, left, before, after) })
				}
			}
		})
	}
}

// TestKillThenPowerCut kills the process at every operation; the next one opens the
// store, makes an edit, and loses power at every operation of that: what it builds on
// must be durable before what it adds.
func TestKillThenPowerCut(t *testing.T) {
	modes := []vfs.CrashOptions{{Data: vfs.KeepNone, Names: vfs.KeepNone}, {}, {}}
	for i := range steps {
		t.Run(steps[i].name, func(t *testing.T) {
			for cut := 0; ; cut++ {
				var killed *vfs.Mem
				_, _, before, after, _ := trial(t, i, func(n int, _ vfs.Op, disk *vfs.Mem) error {
					if n < cut {
						return nil
					}
					if n == cut {
						killed = disk.Clone()
					}
					return errCut
				})
				if killed == nil {
					return
				}
				for mode, opts := range modes {
					rng := rand.New(rand.NewPCG(uint64(cut), uint64(mode)))
					for cut2, done := 0, false; !done; cut2++ {
						var left *vfs.Mem
						left, done = editAndCut(t, killed.Clone(), cut2, rng, opts)
						t.Run(fmt.Sprintf("%d/%d/%d", cut, mode, cut2), func(t *testing.T) {
							reborn(t, left, before, after)
							s, _ := open(t, small(left))
							if v, _ := s.Setting("later"); done && !bytes.Equal(v, []byte{1}) {
								t.Fatalf("a durable edit is lost: %v", v)
							}
							must(t, s.Close())
						})
					}
				}
			}
		})
	}
}

// editAndCut opens the store on a disk and makes an edit, with a power cut at the
// operation with number cut; done says that there were fewer.
func editAndCut(t *testing.T, disk *vfs.Mem, cut int, rng *rand.Rand, opts vfs.CrashOptions) (left *vfs.Mem, done bool) {
	t.Helper()
	n := 0
	s, _, err := Open(small(vfs.Inject(disk, func(op vfs.Op) error {
		if !op.Kind.Mutates() {
			return nil
		}
		if n == cut {
			left = disk.CrashClone(rng, opts)
		}
		if n++; n > cut {
			return errCut
		}
		return nil
	})))
	if err == nil {
		var e Edit
		e.Set("later", []byte{1})
		err = s.Install(&e)
	}
	if left != nil {
		return left, false
	}
	must(t, err)
	return disk.CrashClone(rng, opts), true
}

// TestDiskFullAtEveryOperation fails each operation in turn that may need space. The
// store must be in the state before, in this process, without a partial file; and the
// step must succeed when there is space again.
func TestDiskFullAtEveryOperation(t *testing.T) {
	needsSpace := func(k vfs.OpKind) bool {
		return k == vfs.OpCreate || k == vfs.OpWrite || k == vfs.OpZeroFill || k == vfs.OpMkdir
	}
	for i := range steps {
		t.Run(steps[i].name, func(t *testing.T) {
			for cut := 0; ; cut++ {
				hit, rewriting := false, false
				b, disk, before, after, err := trial(t, i, func(n int, op vfs.Op, _ *vfs.Mem) error {
					name := filepath.Base(op.Path)
					if name == manifestName+tmpSuffix && op.Kind != vfs.OpWrite {
						rewriting = op.Kind == vfs.OpCreate
					}
					if n < cut || !needsSpace(op.Kind) {
						return nil
					}
					hit = true
					if op.Kind == vfs.OpWrite && strings.HasPrefix(name, manifestName) && !rewriting {
						return nil // the space was reserved ahead
					}
					return syscall.ENOSPC
				})
				if !hit {
					return
				}
				t.Run(fmt.Sprint(cut), func(t *testing.T) {
					now := before
					if err == nil {
						now = after // only upkeep failed
					} else if !vfs.IsNoSpace(err) {
						t.Fatal(err)
					}
					r, cerr := Check(disk, "data")
					must(t, cerr)
					if !r.Sound() || len(r.Orphans) > 0 {
						t.Fatalf("orphans %v, damages %v", r.Orphans, r.Damages)
					}
					if steps[i].name != "merge" || err != nil {
						b.want, b.due, b.pairs, b.index, b.check = now.want, now.due, now.pairs, now.index, now.check
						b.takeRuns()
						b.verify()
					}
					if err != nil {
						again, err := steps[i].step(b)
						must(t, err)
						now = again
					}
					must(t, b.s.Close())
					reborn(t, disk, now)
				})
			}
		})
	}
}

// takeRuns reads the runs of all segments again.
func (b *broker) takeRuns() {
	b.t.Helper()
	b.runs = nil
	for _, m := range b.s.Segments(0) {
		runs, err := b.s.Runs(m.ID)
		b.must(err)
		b.runs = append(b.runs, runs...)
	}
}

// TestSyncFails fails each sync in turn, for good. The step must not be reported as
// done, unless only upkeep is concerned, and the next start finds one of the states.
func TestSyncFails(t *testing.T) {
	for i := range steps {
		t.Run(steps[i].name, func(t *testing.T) {
			for cut := 0; ; cut++ {
				hit := false
				b, disk, before, after, err := trial(t, i, func(n int, op vfs.Op, _ *vfs.Mem) error {
					if n >= cut && (op.Kind == vfs.OpSync || op.Kind == vfs.OpSyncDir) {
						hit = true
						return syscall.EIO
					}
					return nil
				})
				if !hit {
					return
				}
				if err == nil {
					before = after
				}
				if errors.Is(err, ErrFailed) {
					var e Edit
					e.Set("k", nil)
					if err := b.s.Install(&e); !errors.Is(err, ErrFailed) {
						t.Fatalf("an edit after the MANIFEST failed: %v", err)
					}
					if _, err := b.s.BeginCheckpoint(0); !errors.Is(err, ErrFailed) {
						t.Fatalf("a checkpoint after the MANIFEST failed: %v", err)
					}
				}
				_ = b.s.Close() // may fail as well
				for mode := range uint64(4) {
					left := disk.CrashClone(rand.New(rand.NewPCG(uint64(cut), mode)), vfs.CrashOptions{})
					t.Run(fmt.Sprint(cut), func(t *testing.T) { reborn(t, left, before, after) })
				}
			}
		})
	}
}

func TestPowerCutDuringFirstOpen(t *testing.T) {
	for cut := 0; ; cut++ {
		disk := vfs.NewMem()
		var left *vfs.Mem
		n := 0
		fsys := vfs.Inject(disk, func(op vfs.Op) error {
			if !op.Kind.Mutates() {
				return nil
			}
			if n == cut {
				left = disk.CrashClone(rand.New(rand.NewPCG(uint64(cut), 1)), vfs.CrashOptions{})
			}
			if n++; n > cut {
				return errCut
			}
			return nil
		})
		s, _, err := Open(small(fsys))
		if left == nil {
			must(t, err)
			must(t, s.Close())
			return
		}
		reborn(t, left, expected{want: map[named][]byte{}, due: map[named]int64{}, pairs: map[string][]byte{}})
	}
}
