package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lockName is the file in a data directory that the exclusive lock is taken on.
const lockName = "LOCK"

// maxVectors is the kernel's limit of vectors in one pwritev (IOV_MAX).
const maxVectors = 1024

// Magic numbers of statfs for copy-on-write file systems.
const (
	magicBtrfs    = 0x9123683e
	magicZFS      = 0x2fc12fc1
	magicBcachefs = 0xca451a4e
)

// OS returns the operating system's file system.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) Create(path string) (File, error) {
	return openOS(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (osFS) Open(path string) (File, error) { return openOS(path, os.O_RDONLY) }

func (osFS) OpenReadWrite(path string) (File, error) { return openOS(path, os.O_RDWR) }

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

func (osFS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// MkdirAll makes one level at a time, from the top, and syncs the parent of
// each directory that it made.
func (f osFS) MkdirAll(dir string) error {
	dir = filepath.Clean(dir)
	st, err := os.Stat(dir)
	if err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := f.MkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !os.IsExist(err) {
		return err
	}
	return f.SyncDir(filepath.Dir(dir))
}

func (osFS) Stat(path string) (Info, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Info{}, err
	}
	if st.IsDir() {
		return Info{Dir: true}, nil
	}
	return Info{Size: st.Size()}, nil
}

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func (osFS) Lock(dir string) (io.Closer, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close() // nothing was written
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s: %w", path, ErrLocked)
	}
	return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
}

func (osFS) FreeSpace(path string) (Space, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(path, &st) }); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	unit := uint64(st.Frsize)
	if unit == 0 {
		unit = uint64(st.Bsize)
	}
	s := Space{Free: st.Bavail * unit, Total: st.Blocks * unit}
	switch uint32(st.Type) {
	case magicBtrfs, magicZFS, magicBcachefs:
		s.CopyOnWrite = true
	}
	return s, nil
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// osFile uses its descriptor directly for the calls that package os lacks. mu
// keeps Close from handing the number to another file in the middle of one.
type osFile struct {
	f    *os.File
	path string

	mu     sync.RWMutex
	closed bool // guarded by mu
}

func openOS(path string, flags int) (File, error) {
	f, err := os.OpenFile(path, flags, 0o640)
	if err != nil {
		return nil, err
	}
	return &osFile{f: f, path: path}, nil
}

// with runs a system call on the descriptor.
func (o *osFile) with(op string, call func(fd int) error) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return &fs.PathError{Op: op, Path: o.path, Err: fs.ErrClosed}
	}
	fd := int(o.f.Fd())
	if err := retry(func() error { return call(fd) }); err != nil {
		return &fs.PathError{Op: op, Path: o.path, Err: err}
	}
	return nil
}

func (o *osFile) ReadAt(p []byte, off int64) (int, error) { return o.f.ReadAt(p, off) }

func (o *osFile) WriteAt(p []byte, off int64) (int, error) { return o.f.WriteAt(p, off) }

// vectors are pooled so that a write allocates nothing.
var vectors = sync.Pool{New: func() any { return new([maxVectors]unix.Iovec) }}

func (o *osFile) WriteVAt(bufs [][]byte, off int64) (int64, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return 0, &fs.PathError{Op: "pwritev", Path: o.path, Err: fs.ErrClosed}
	}
	vec := vectors.Get().(*[maxVectors]unix.Iovec)
	defer func() {
		clear(vec[:])
		vectors.Put(vec)
	}()
	var done int64
	skip := 0 // bytes of bufs[0] already written
	for {
		n := 0
		for i := 0; i < len(bufs) && n < maxVectors; i++ {
			b := bufs[i]
			if i == 0 {
				b = b[skip:]
			}
			if len(b) == 0 {
				continue
			}
			vec[n].Base = unsafe.SliceData(b)
			vec[n].SetLen(len(b))
			n++
		}
		if n == 0 {
			return done, nil
		}
		w, err := pwritev(int(o.f.Fd()), vec[:n], off+done)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && w == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return done, &fs.PathError{Op: "pwritev", Path: o.path, Err: err}
		}
		done += int64(w)
		w += skip
		for len(bufs) > 0 && w >= len(bufs[0]) {
			w -= len(bufs[0])
			bufs = bufs[1:]
		}
		skip = w
	}
}

// pwritev is the system call itself: unix.Pwritev allocates a vector per call.
func pwritev(fd int, vec []unix.Iovec, off int64) (int, error) {
	const wordBits = 32 << (^uintptr(0) >> 63)
	lo, hi := uintptr(off), uintptr(uint64(off)>>(wordBits-1)>>1)
	n, _, errno := unix.Syscall6(unix.SYS_PWRITEV, uintptr(fd),
		uintptr(unsafe.Pointer(&vec[0])), uintptr(len(vec)), lo, hi, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// zeros is what ZeroFill writes from.
var zeros [256 << 10]byte

func (o *osFile) ZeroFill(off, n int64) error {
	// Reserving first makes ENOSPC come before the work and the blocks contiguous.
	// A file system without fallocate is only slower.
	err := o.with("fallocate", func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
	if err != nil && IsNoSpace(err) {
		return err
	}
	for end := off + n; off < end; {
		w, err := o.f.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off += int64(w)
	}
	return nil
}

// Allocate writes zeros where the file system can't reserve.
func (o *osFile) Allocate(size int64) error {
	have, err := o.Size()
	if err != nil || have >= size {
		return err
	}
	err = o.with("fallocate", func(fd int) error { return unix.Fallocate(fd, 0, have, size-have) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return o.ZeroFill(have, size-have)
	}
	return err
}

func (o *osFile) SyncData() error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return &fs.PathError{Op: "fdatasync", Path: o.path, Err: fs.ErrClosed}
	}
	for {
		err := unix.Fdatasync(int(o.f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "fdatasync", Path: o.path, Err: err}
		}
	}
}

func (o *osFile) Sync() error { return o.f.Sync() }

func (o *osFile) Truncate(size int64) error { return o.f.Truncate(size) }

func (o *osFile) Size() (int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (o *osFile) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	return o.f.Close()
}
