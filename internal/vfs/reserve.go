package vfs

import (
	"errors"
	"io/fs"
	"math"
	"path/filepath"
	"sync"
)

// Reserve is a file system that keeps space on its volume for itself: a file whose
// blocks are allocated and hold nothing. When the volume is full for an operation, as
// much of the file is given up as that operation needs, and it is done again; Fill
// takes the space back when there is some.
//
// Giving up is a truncation and a sync, which makes the blocks allocatable on ext4, XFS
// and in memory file systems at once. Copy-on-write file systems may need a moment
// more: the operation fails, and goes through when it is repeated. ZFS stores no zeros
// and honors no allocation, so a Reserve keeps nothing there. Somebody else may take
// what was given up before it is used; then more is given up.
//
// Safe for concurrent use.
type Reserve struct {
	FS
	path string

	mu   sync.Mutex
	f    File  // nil before the first Fill, and after Close
	size int64 // bytes of the file
	want int64
}

// reserveStep is the least that is given up at once, in bytes.
const reserveStep = 64 << 10

// NewReserve returns fsys with a reserve of want bytes in the file of that path, which
// is taken over if it is there. Nothing is allocated before Fill. With want 0 there is
// none, and a file that is there is removed.
func NewReserve(fsys FS, path string, want int64) (*Reserve, error) {
	r := &Reserve{FS: fsys, path: path, want: want}
	if want == 0 {
		if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return r, nil
	}
	f, err := fsys.OpenReadWrite(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if r.size, err = f.Size(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r.f = f
	if r.size > want {
		if err := f.Truncate(want); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		r.size = want
	}
	return r, nil
}

// Missing returns how many bytes of the reserve are given up, or not made yet.
func (r *Reserve) Missing() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want - r.size
}

// Fill makes the reserve, if that leaves at least spare bytes free. Once it is there,
// what was given up is taken back as far as there is space, before others take it.
func (r *Reserve) Fill(spare int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.size == r.want {
		return nil
	}
	sp, err := r.FS.FreeSpace(filepath.Dir(r.path))
	if err != nil {
		return err
	}
	size := r.want
	switch free := int64(min(sp.Free, math.MaxInt64)); {
	case r.f == nil && free-spare < size:
		return nil
	case r.f == nil:
		if r.f, err = r.FS.Create(r.path); err != nil {
			return err
		}
	case free < size-r.size:
		// Not quite all: allocating takes a little more than it gives.
		if size = r.size + free - free/64; size-r.size < reserveStep {
			return nil
		}
	}
	if err := r.f.Allocate(size); err != nil {
		// What a failed allocation has taken is of no use to anybody.
		return errors.Join(err, r.f.Truncate(r.size))
	}
	r.size = size
	if err := r.f.Sync(); err != nil {
		return err
	}
	return r.FS.SyncDir(filepath.Dir(r.path))
}

// giveUp frees n bytes or a little more; false if the reserve is used up.
func (r *Reserve) giveUp(n int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.size == 0 || r.f == nil {
		return false
	}
	size := max(0, r.size-max(n, reserveStep))
	if r.f.Truncate(size) != nil {
		return false
	}
	r.size = size
	_ = r.f.Sync() // only hastens it
	return true
}

// do runs an operation that needs about n bytes, with what it takes of the reserve.
func (r *Reserve) do(n int64, op func() error) error {
	for {
		err := op()
		if !IsNoSpace(err) || !r.giveUp(n) {
			return err
		}
	}
}

// Close closes the reserve's file, which stays.
func (r *Reserve) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		return nil
	}
	err := r.f.Close()
	r.f = nil
	return err
}

// Create implements FS.
func (r *Reserve) Create(path string) (f File, err error) {
	err = r.do(0, func() (err error) { f, err = r.FS.Create(path); return err })
	return r.wrap(f, err)
}

// Open implements FS.
func (r *Reserve) Open(path string) (File, error) { return r.FS.Open(path) }

// OpenReadWrite implements FS.
func (r *Reserve) OpenReadWrite(path string) (File, error) {
	f, err := r.FS.OpenReadWrite(path)
	return r.wrap(f, err)
}

func (r *Reserve) wrap(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &reserveFile{File: f, r: r}, nil
}

// Rename implements FS.
func (r *Reserve) Rename(from, to string) error {
	return r.do(0, func() error { return r.FS.Rename(from, to) })
}

// MkdirAll implements FS.
func (r *Reserve) MkdirAll(dir string) error {
	return r.do(0, func() error { return r.FS.MkdirAll(dir) })
}

// InPlace returns a view of the file system in which only what is written to files that
// were there may use the reserve: those that are made are for later.
func (r *Reserve) InPlace() FS { return inPlace{r.FS, r} }

type inPlace struct {
	FS
	r *Reserve
}

func (i inPlace) OpenReadWrite(path string) (File, error) { return i.r.OpenReadWrite(path) }

func (i inPlace) Rename(from, to string) error { return i.r.Rename(from, to) }

// reserveFile repeats what fails for want of space.
type reserveFile struct {
	File
	r *Reserve
}

func (f *reserveFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.r.do(int64(len(p)), func() (err error) { n, err = f.File.WriteAt(p, off); return err })
	return n, err
}

func (f *reserveFile) WriteVAt(bufs [][]byte, off int64) (n int64, err error) {
	size := int64(0)
	for _, b := range bufs {
		size += int64(len(b))
	}
	err = f.r.do(size, func() (err error) { n, err = f.File.WriteVAt(bufs, off); return err })
	return n, err
}

func (f *reserveFile) ZeroFill(off, n int64) error {
	return f.r.do(n, func() error { return f.File.ZeroFill(off, n) })
}

func (f *reserveFile) Allocate(size int64) error {
	have, err := f.Size()
	if err != nil {
		return err
	}
	return f.r.do(size-have, func() error { return f.File.Allocate(size) })
}

func (f *reserveFile) Truncate(size int64) error {
	return f.r.do(0, func() error { return f.File.Truncate(size) })
}
