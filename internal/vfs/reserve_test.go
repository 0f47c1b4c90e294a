package vfs

import (
	"testing"
)

// TestReserve: on a full disk what goes through the reserve is written with its space,
// and the space is taken back when there is some again, also by a later process.
func TestReserve(t *testing.T) {
	const mib = 1 << 20
	mem := NewMem()
	mem.SetLimit(8 * mib)
	r := must[*Reserve](t)(NewReserve(mem, "/reserve", 4*mib))
	noErr(t, r.Fill(5*mib))
	if n := r.Missing(); n != 4*mib {
		t.Fatalf("took %d although that leaves too little", 4*mib-n)
	}
	noErr(t, r.Fill(4*mib))
	if s := must[Space](t)(mem.FreeSpace("/")); s.Free != 4*mib || r.Missing() != 0 {
		t.Fatalf("free %d, missing %d", s.Free, r.Missing())
	}
	other := must[File](t)(mem.Create("/other"))
	noErr(t, other.ZeroFill(0, 4*mib)) // somebody else fills the disk
	f := must[File](t)(r.Create("/f"))
	must[int](t)(f.WriteAt(make([]byte, mib), 0))
	must[int64](t)(f.WriteVAt([][]byte{make([]byte, mib)}, mib))
	noErr(t, f.ZeroFill(2*mib, mib/2))
	if n := r.Missing(); n < 2*mib+mib/2 || n > 3*mib {
		t.Fatalf("gave up %d for %d", n, 2*mib+mib/2)
	}
	free := must[Space](t)(mem.FreeSpace("/")).Free
	noErr(t, other.Allocate(4*mib+int64(free))) // and what is left of a part given up
	view := r.InPlace()
	if _, err := view.Create("/g"); !IsNoSpace(err) {
		t.Fatalf("made with the reserve: %v", err)
	}
	g := must[File](t)(view.OpenReadWrite("/f"))
	must[int](t)(g.WriteAt(make([]byte, mib/2), 2*mib+mib/2))
	if _, err := f.WriteAt(make([]byte, 2*mib), 3*mib); !IsNoSpace(err) {
		t.Fatalf("more than there is: %v", err)
	}
	noErr(t, r.Close())
	noErr(t, other.Truncate(2*mib)) // half of what is missing
	r = must[*Reserve](t)(NewReserve(mem, "/reserve", 4*mib))
	noErr(t, r.Fill(0))
	if n := r.Missing(); n < mib || n > 3*mib {
		t.Fatalf("%d missing where there was space for about half", n)
	}
	noErr(t, r.Close())
	noErr(t, other.Truncate(0))
	r = must[*Reserve](t)(NewReserve(mem, "/reserve", 4*mib))
	noErr(t, r.Fill(0))
	if s := must[Space](t)(mem.FreeSpace("/")); s.Free != mib || r.Missing() != 0 {
		t.Fatalf("free %d, missing %d", s.Free, r.Missing())
	}
	noErr(t, r.Close())
	r = must[*Reserve](t)(NewReserve(mem, "/reserve", 0))
	if len(mem.Paths("/reserve")) > 0 || r.Missing() != 0 {
		t.Fatal("a reserve of nothing is there")
	}
}

// TestAllocate: allocated space reads as zeros and is not free any more.
func TestAllocate(t *testing.T) {
	for name, fsys := range map[string]FS{"os": OS(), "mem": NewMem()} {
		dir := "/"
		if name == "os" {
			dir = t.TempDir()
		}
		f := must[File](t)(fsys.Create(dir + "/f"))
		must[int](t)(f.WriteAt([]byte("abc"), 0))
		noErr(t, f.Allocate(10_000))
		noErr(t, f.Allocate(5000)) // never shrinks
		b := must[[]byte](t)(ReadFile(fsys, dir+"/f"))
		if len(b) != 10_000 || string(b[:4]) != "abc\x00" {
			t.Fatalf("%s: %d bytes, %q", name, len(b), b[:4])
		}
		noErr(t, f.Close())
	}
}
