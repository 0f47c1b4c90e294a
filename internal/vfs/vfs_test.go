package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSameBehavior runs one list of checks over the operating system and over
// memory, so that tests on Mem tell something about the real thing.
func TestSameBehavior(t *testing.T) {
	for name, fsys := range map[string]FS{
		"os": OS(), "mem": NewMem(),
		"inject": Inject(NewMem(), func(Op) error { return nil }),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a", "b")
			noErr(t, fsys.MkdirAll(dir))
			noErr(t, fsys.MkdirAll(dir))
			t.Run("files", func(t *testing.T) { checkFiles(t, fsys, dir) })
			t.Run("names", func(t *testing.T) { checkNames(t, fsys, dir) })
			t.Run("lock", func(t *testing.T) { checkLock(t, fsys, dir) })
			t.Run("atomic", func(t *testing.T) { checkAtomic(t, fsys, dir) })
		})
	}
}

func checkFiles(t *testing.T, fsys FS, dir string) {
	path := filepath.Join(dir, "f")
	f := must[File](t)(fsys.Create(path))
	if _, err := fsys.Create(path); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second create: %v", err)
	}
	noErr(t, f.ZeroFill(0, 600<<10))
	bufs := make([][]byte, 3000) // more than one system call takes
	var want []byte
	for i := range bufs {
		bufs[i] = bytes.Repeat([]byte{byte(i)}, i%7)
		want = append(want, bufs[i]...)
	}
	if n := must[int64](t)(f.WriteVAt(bufs, 100)); n != int64(len(want)) {
		t.Fatalf("wrote %d of %d", n, len(want))
	}
	got := make([]byte, len(want)+1)
	must[int](t)(f.ReadAt(got, 100))
	if !bytes.Equal(got, append(want, 0)) {
		t.Fatal("vectors came back differently")
	}
	if n, err := f.ReadAt(make([]byte, 10), 600<<10-4); n != 4 || !errors.Is(err, io.EOF) {
		t.Fatalf("read over the end: %d, %v", n, err)
	}
	noErr(t, f.SyncData())
	noErr(t, f.Sync())
	noErr(t, f.Truncate(50))
	noErr(t, f.Truncate(120))
	got = make([]byte, 120)
	must[int](t)(f.ReadAt(got, 0))
	if !bytes.Equal(got, make([]byte, 120)) {
		t.Fatal("truncated bytes came back")
	}
	if n := must[int64](t)(f.Size()); n != 120 {
		t.Fatalf("size %d", n)
	}
	noErr(t, f.Close())
	if _, err := f.WriteVAt([][]byte{{1}}, 0); !errors.Is(err, fs.ErrClosed) {
		t.Fatalf("write after close: %v", err)
	}
	if err := f.SyncData(); !errors.Is(err, fs.ErrClosed) {
		t.Fatalf("sync after close: %v", err)
	}
	r := must[File](t)(fsys.Open(path))
	if _, err := r.WriteAt([]byte{1}, 0); err == nil {
		t.Fatal("wrote through a read-only handle")
	}
	noErr(t, r.Close())
	noErr(t, FlipBit(fsys, path, 8*3+5))
	if b := must[[]byte](t)(ReadFile(fsys, path)); b[3] != 1<<5 || len(b) != 120 {
		t.Fatalf("flipped: %v", b)
	}
	noErr(t, fsys.Remove(path))
}

func checkNames(t *testing.T, fsys FS, dir string) {
	for _, n := range []string{"z", "y"} {
		f := must[File](t)(fsys.Create(filepath.Join(dir, n)))
		must[int](t)(f.WriteAt([]byte(n), 0))
		noErr(t, f.Close())
	}
	noErr(t, fsys.MkdirAll(filepath.Join(dir, "sub")))
	noErr(t, fsys.Rename(filepath.Join(dir, "z"), filepath.Join(dir, "y")))
	noErr(t, fsys.SyncDir(dir))
	if l := must[[]string](t)(fsys.List(dir)); !slices.Equal(l, []string{"sub", "y"}) {
		t.Fatalf("list: %v", l)
	}
	if b := must[[]byte](t)(ReadFile(fsys, filepath.Join(dir, "y"))); string(b) != "z" {
		t.Fatalf("contents after rename: %q", b)
	}
	if i := must[Info](t)(fsys.Stat(filepath.Join(dir, "y"))); i.Size != 1 || i.Dir {
		t.Fatalf("stat: %+v", i)
	}
	if i := must[Info](t)(fsys.Stat(dir)); !i.Dir {
		t.Fatalf("stat: %+v", i)
	}
	if err := fsys.Remove(dir); err == nil {
		t.Fatal("removed a directory that is not empty")
	}
	missing := filepath.Join(dir, "missing")
	_, open := fsys.Open(missing)
	_, rw := fsys.OpenReadWrite(missing)
	_, stat := fsys.Stat(missing)
	_, list := fsys.List(missing)
	_, create := fsys.Create(filepath.Join(missing, "x"))
	for i, err := range []error{
		open, rw, stat, list, create, fsys.Remove(missing), fsys.SyncDir(missing),
		fsys.Rename(missing, filepath.Join(dir, "x")),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("case %d: %v", i, err)
		}
	}
	noErr(t, fsys.Remove(filepath.Join(dir, "y")))
	noErr(t, fsys.Remove(filepath.Join(dir, "sub")))
	if s := must[Space](t)(fsys.FreeSpace(dir)); s.Free == 0 || s.Total < s.Free {
		t.Fatalf("space: %+v", s)
	}
}

func checkLock(t *testing.T, fsys FS, dir string) {
	l := must[io.Closer](t)(fsys.Lock(dir))
	if _, err := fsys.Lock(dir); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v", err)
	}
	noErr(t, l.Close())
	noErr(t, must[io.Closer](t)(fsys.Lock(dir)).Close())
}

func checkAtomic(t *testing.T, fsys FS, dir string) {
	path := filepath.Join(dir, "atomic")
	for _, s := range []string{"first", "second, longer", "3"} {
		noErr(t, WriteFileAtomic(fsys, path, []byte(s)))
		if b := must[[]byte](t)(ReadFile(fsys, path)); string(b) != s {
			t.Fatalf("%q", b)
		}
	}
}

// TestAtomicUnderPowerCut cuts WriteFileAtomic at every operation.
func TestAtomicUnderPowerCut(t *testing.T) {
	mem := NewMem()
	noErr(t, WriteFileAtomic(mem, "/f", bytes.Repeat([]byte("old"), 1000)))
	rng := rand.New(rand.NewPCG(1, 2))
	cuts := 0
	check := func(both bool) {
		for range 20 {
			cuts++
			b, err := ReadFile(mem.CrashClone(rng, CrashOptions{}), "/f")
			if err != nil {
				t.Fatal(err)
			}
			isNew := bytes.Equal(b, bytes.Repeat([]byte("new!"), 900))
			if !isNew && (!both || !bytes.Equal(b, bytes.Repeat([]byte("old"), 1000))) {
				t.Fatalf("cut %d: %d bytes that are neither old nor new", cuts, len(b))
			}
		}
	}
	fsys := Inject(mem, func(op Op) error {
		if op.Kind.Mutates() {
			check(true)
		}
		return nil
	})
	noErr(t, WriteFileAtomic(fsys, "/f", bytes.Repeat([]byte("new!"), 900)))
	check(false)
}

// TestCrashModel drives a file with random writes, syncs and truncations. After
// a power cut each sector must hold one of the contents that it had since the
// last sync, and with KeepNone and KeepAll exactly the synced and the latest.
func TestCrashModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mem := NewMem()
		f, _ := mem.Create("/f")
		_ = mem.SyncDir("/")
		var cur, synced []byte
		possible := map[int][][]byte{} // sector -> contents since the sync
		sector := func(b []byte, s int) []byte {
			out := make([]byte, SectorSize)
			if s*SectorSize < len(b) {
				copy(out, b[s*SectorSize:])
			}
			return out
		}
		const sectors = 8
		note := func() {
			for s := range sectors {
				possible[s] = append(possible[s], sector(cur, s))
			}
		}
		note()
		for range rapid.IntRange(1, 12).Draw(rt, "ops") {
			switch rapid.IntRange(0, 3).Draw(rt, "op") {
			case 0, 1:
				off := rapid.IntRange(0, (sectors-2)*SectorSize).Draw(rt, "off")
				b := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "b")}, rapid.IntRange(1, 2*SectorSize).Draw(rt, "n"))
				if _, err := f.WriteAt(b, int64(off)); err != nil {
					rt.Fatal(err)
				}
				cur = grown(slices.Clone(cur), int64(max(len(cur), off+len(b))))
				copy(cur[off:], b)
				note()
			case 2:
				size := rapid.IntRange(0, sectors*SectorSize).Draw(rt, "size")
				if err := f.Truncate(int64(size)); err != nil {
					rt.Fatal(err)
				}
				cur = grown(slices.Clone(cur), int64(size))
				note()
			case 3:
				if err := f.SyncData(); err != nil {
					rt.Fatal(err)
				}
				synced = slices.Clone(cur)
				clear(possible)
				note()
			}
		}
		got := func(k Keep) []byte {
			seed := rapid.Uint64().Draw(rt, "seed")
			c := mem.CrashClone(rand.New(rand.NewPCG(seed, 0)), CrashOptions{Data: k, Names: k})
			b, err := ReadFile(c, "/f")
			if err != nil {
				rt.Fatal(err)
			}
			return b
		}
		if b := got(KeepNone); !bytes.Equal(b, synced) {
			rt.Fatal("KeepNone differs from the synced state")
		}
		if b := got(KeepAll); !bytes.Equal(b, cur) {
			rt.Fatal("KeepAll differs from the written state")
		}
		b := got(KeepRandom)
		for s := 0; s*SectorSize < len(b); s++ {
			n := min(len(b)-s*SectorSize, SectorSize)
			ok := slices.ContainsFunc(possible[s], func(p []byte) bool {
				return bytes.Equal(p[:n], b[s*SectorSize:][:n])
			})
			// Growing the file by another write exposes zeros that were never written.
			if !ok && !bytes.Equal(b[s*SectorSize:][:n], zeroSector[:n]) && len(b) == len(cur) && n == SectorSize {
				rt.Fatalf("sector %d holds what it never held since the sync", s)
			}
		}
	})
}

// TestCrashNames: a name is durable by SyncDir only, and both outcomes of an
// unsynced change occur.
func TestCrashNames(t *testing.T) {
	mem := NewMem()
	write := func(path, s string) {
		f := must[File](t)(mem.Create(path))
		must[int](t)(f.WriteAt([]byte(s), 0))
		noErr(t, f.Sync())
	}
	write("/old", "old")
	noErr(t, mem.SyncDir("/"))
	write("/new", "new")
	noErr(t, mem.Rename("/old", "/moved"))
	seen := map[string]int{}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		paths := mem.CrashClone(rng, CrashOptions{}).Paths("/")
		seen[filepath.Join(paths...)]++
	}
	for _, want := range []string{"/old", "/moved", "/new/old", "/moved/new"} {
		if seen[want] == 0 {
			t.Errorf("never saw %s in %v", want, seen)
		}
	}
	if len(seen) != 4 {
		t.Errorf("impossible outcome in %v", seen)
	}
	noErr(t, mem.SyncDir("/"))
	if p := mem.CrashClone(nil, CrashOptions{Data: KeepNone, Names: KeepNone}).Paths("/"); !slices.Equal(p, []string{"/moved", "/new"}) {
		t.Errorf("after sync: %v", p)
	}
}

// TestCrashTears: several sectors written by one call arrive in every subset.
func TestCrashTears(t *testing.T) {
	mem := NewMem()
	f := must[File](t)(mem.Create("/f"))
	noErr(t, f.ZeroFill(0, 3*SectorSize))
	noErr(t, f.Sync())
	noErr(t, mem.SyncDir("/"))
	must[int](t)(f.WriteAt(bytes.Repeat([]byte{1}, 3*SectorSize), 0))
	seen := map[[3]byte]bool{}
	rng := rand.New(rand.NewPCG(5, 6))
	for range 400 {
		b := must[[]byte](t)(ReadFile(mem.CrashClone(rng, CrashOptions{}), "/f"))
		seen[[3]byte{b[0], b[SectorSize], b[2*SectorSize]}] = true
	}
	if len(seen) != 8 {
		t.Fatalf("saw %d of 8 tearings", len(seen))
	}
}

// TestCloneAndForget: a killed process leaves its unsynced changes unsynced, and
// a failed write-back leaves them readable and lost.
func TestCloneAndForget(t *testing.T) {
	mem := NewMem()
	f := must[File](t)(mem.Create("/f"))
	must[int](t)(f.WriteAt([]byte("synced"), 0))
	noErr(t, f.Sync())
	noErr(t, mem.SyncDir("/"))
	must[int](t)(f.WriteAt([]byte("WRITTEN"), 0))
	noErr(t, mem.Rename("/f", "/g"))
	c := mem.Clone()
	must[int](t)(f.WriteAt([]byte("later"), 0))
	if b := must[[]byte](t)(ReadFile(c, "/g")); string(b) != "WRITTEN" {
		t.Fatalf("clone has %q", b)
	}
	none := CrashOptions{Data: KeepNone, Names: KeepNone}
	if b := must[[]byte](t)(ReadFile(c.CrashClone(nil, none), "/f")); string(b) != "synced" {
		t.Fatalf("clone lost power and has %q", b)
	}
	noErr(t, c.SyncDir("/"))
	noErr(t, c.ForgetDirty("/g"))
	g := must[File](t)(c.OpenReadWrite("/g"))
	noErr(t, g.SyncData())
	if b := must[[]byte](t)(ReadFile(c, "/g")); string(b) != "WRITTEN" {
		t.Fatalf("after forgetting, reading gives %q", b)
	}
	must[int](t)(g.WriteAt([]byte("?"), SectorSize))
	noErr(t, g.SyncData())
	if b := must[[]byte](t)(ReadFile(c.CrashClone(nil, none), "/g")); string(b[:7]) != "synced\x00" {
		t.Fatalf("what was forgotten reached the disk: %q", b[:7])
	}
}

func TestSpaceLimit(t *testing.T) {
	mem := NewMem()
	f := must[File](t)(mem.Create("/f"))
	noErr(t, f.ZeroFill(0, 1000))
	mem.SetLimit(1500)
	if err := f.ZeroFill(1000, 501); !IsNoSpace(err) {
		t.Fatalf("growth past the limit: %v", err)
	}
	must[int](t)(f.WriteAt(make([]byte, 1000), 0))
	must[int](t)(f.WriteAt(make([]byte, 500), 1000))
	if _, err := mem.Create("/g"); !IsNoSpace(err) {
		t.Fatalf("create on a full disk: %v", err)
	}
	noErr(t, f.Truncate(100))
	if s := must[Space](t)(mem.FreeSpace("/")); s.Free != 1400 {
		t.Fatalf("free %d", s.Free)
	}
	noErr(t, mem.Remove("/f"))
	must[int](t)(f.WriteAt(make([]byte, 5000), 0)) // unlinked: not counted
	if s := must[Space](t)(mem.FreeSpace("/")); s.Free != 1500 {
		t.Fatalf("free %d", s.Free)
	}
}

func TestInject(t *testing.T) {
	mem := NewMem()
	noErr(t, WriteFileAtomic(mem, "/f", []byte("x")))
	var ops []OpKind
	fail := OpKind(0)
	fsys := Inject(mem, func(op Op) error {
		ops = append(ops, op.Kind)
		if op.Kind == fail {
			return syscall.EIO
		}
		return nil
	})
	noErr(t, WriteFileAtomic(fsys, "/f", []byte("y")))
	want := []OpKind{OpRemove, OpCreate, OpWrite, OpSync, OpRename, OpSyncDir}
	if !slices.Equal(ops, want) {
		t.Fatalf("ops %v", ops)
	}
	for _, fail = range want[1:] {
		if err := WriteFileAtomic(fsys, "/f", []byte("z")); !errors.Is(err, syscall.EIO) {
			t.Errorf("%v: %v", fail, err)
		}
	}
}

// TestConcurrentClose: a handle that is closed while it is written through
// never reaches another file.
func TestConcurrentClose(t *testing.T) {
	for name, fsys := range map[string]FS{"os": OS(), "mem": NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			noErr(t, fsys.MkdirAll(dir))
			victim := must[File](t)(fsys.Create(filepath.Join(dir, "victim")))
			defer victim.Close()
			for range 50 {
				path := filepath.Join(dir, "f")
				f := must[File](t)(fsys.Create(path))
				var wg sync.WaitGroup
				for range 2 {
					wg.Go(func() {
						for {
							if _, err := f.WriteVAt([][]byte{{1}, {2}}, 0); err != nil {
								if !errors.Is(err, fs.ErrClosed) {
									t.Error(err)
								}
								return
							}
						}
					})
				}
				noErr(t, f.Close())
				g := must[File](t)(fsys.Create(path + "2"))
				wg.Wait()
				if n := must[int64](t)(g.Size()); n != 0 {
					t.Fatal("a closed handle wrote to another file")
				}
				noErr(t, g.Close())
				noErr(t, fsys.Remove(path))
				noErr(t, fsys.Remove(path+"2"))
			}
		})
	}
}

func BenchmarkWriteVAt(b *testing.B) {
	f := must[File](b)(OS().Create(filepath.Join(b.TempDir(), "f")))
	defer f.Close()
	bufs := make([][]byte, 64)
	for i := range bufs {
		bufs[i] = make([]byte, 1024)
	}
	b.ReportAllocs()
	b.SetBytes(64 << 10)
	for b.Loop() {
		if _, err := f.WriteVAt(bufs, 0); err != nil {
			b.Fatal(err)
		}
	}
}
