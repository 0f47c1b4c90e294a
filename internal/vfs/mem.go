package vfs

import (
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Mem is a file system in memory that distinguishes what was synced from what
// was merely written; see CrashClone. Directories themselves are durable as
// soon as they are made and cannot be renamed.
type Mem struct {
	mu sync.Mutex // guards everything below and all nodes

	names   map[string]*node // the name space as processes see it
	durable map[string]*node // as a power cut at this moment leaves it at least
	pending []nameOp         // what leads from durable to names, in order
	dirs    map[string]bool
	locked  map[string]bool
	limit   int64 // bytes; 0 = none
	used    int64 // Invariant: sum of the sizes of the nodes in names
}

// NewMem returns an empty file system without a space limit.
func NewMem() *Mem {
	return &Mem{
		names:   map[string]*node{},
		durable: map[string]*node{},
		dirs:    map[string]bool{"/": true, ".": true},
		locked:  map[string]bool{},
	}
}

// SetLimit bounds the sum of all file sizes in bytes; 0 lifts the bound. What
// would grow a file past it fails with ENOSPC; overwriting in place never does.
func (m *Mem) SetLimit(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = bytes
}

// nameOp is an unsynced change of a directory. Each is atomic on its own.
type nameOp struct {
	from, to string // create: to only; remove: from only; rename: both
	node     *node
}

// dir is the directory whose sync makes the change durable: for a rename the
// target's.
func (o nameOp) dir() string {
	if o.to != "" {
		return filepath.Dir(o.to)
	}
	return filepath.Dir(o.from)
}

func (o nameOp) apply(names map[string]*node) {
	if o.from != "" && names[o.from] == o.node {
		delete(names, o.from)
	}
	if o.to != "" {
		names[o.to] = o.node
	}
}

func pathError(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// Create implements FS.
func (m *Mem) Create(path string) (File, error) {
	path = filepath.Clean(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[path] != nil || m.dirs[path] {
		return nil, pathError("create", path, fs.ErrExist)
	}
	if !m.dirs[filepath.Dir(path)] {
		return nil, pathError("create", path, fs.ErrNotExist)
	}
	if m.limit > 0 && m.used >= m.limit {
		return nil, pathError("create", path, syscall.ENOSPC)
	}
	n := newNode(nil)
	m.names[path] = n
	m.pending = append(m.pending, nameOp{to: path, node: n})
	return &memFile{m: m, n: n, path: path, write: true}, nil
}

// Open implements FS.
func (m *Mem) Open(path string) (File, error) { return m.open(path, false) }

// OpenReadWrite implements FS.
func (m *Mem) OpenReadWrite(path string) (File, error) { return m.open(path, true) }

func (m *Mem) open(path string, write bool) (File, error) {
	path = filepath.Clean(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[path]
	if n == nil {
		if m.dirs[path] {
			return nil, pathError("open", path, syscall.EISDIR)
		}
		return nil, pathError("open", path, fs.ErrNotExist)
	}
	return &memFile{m: m, n: n, path: path, write: write}, nil
}

// Remove implements FS.
func (m *Mem) Remove(path string) error {
	path = filepath.Clean(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dirs[path] {
		if len(m.listLocked(path)) > 0 {
			return pathError("remove", path, syscall.ENOTEMPTY)
		}
		delete(m.dirs, path)
		return nil
	}
	n := m.names[path]
	if n == nil {
		return pathError("remove", path, fs.ErrNotExist)
	}
	m.unlinkLocked(n)
	m.changeLocked(nameOp{from: path, node: n})
	return nil
}

func (m *Mem) unlinkLocked(n *node) {
	m.used -= int64(len(n.data))
	n.unlinked = true
}

func (m *Mem) changeLocked(op nameOp) {
	op.apply(m.names)
	m.pending = append(m.pending, op)
}

// Rename implements FS.
func (m *Mem) Rename(from, to string) error {
	from, to = filepath.Clean(from), filepath.Clean(to)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[from]
	switch {
	case m.dirs[from] || m.dirs[to]:
		return pathError("rename", from, syscall.EISDIR)
	case n == nil || !m.dirs[filepath.Dir(to)]:
		return pathError("rename", from, fs.ErrNotExist)
	case from == to:
		return nil
	}
	if old := m.names[to]; old != nil {
		m.unlinkLocked(old)
	}
	m.changeLocked(nameOp{from: from, to: to, node: n})
	return nil
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	dir = filepath.Clean(dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirs[dir] {
		return nil, pathError("list", dir, fs.ErrNotExist)
	}
	return m.listLocked(dir), nil
}

func (m *Mem) listLocked(dir string) []string {
	var names []string
	for path := range m.names {
		if filepath.Dir(path) == dir {
			names = append(names, filepath.Base(path))
		}
	}
	for path := range m.dirs {
		if path != dir && filepath.Dir(path) == dir {
			names = append(names, filepath.Base(path))
		}
	}
	slices.Sort(names)
	return names
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for dir = filepath.Clean(dir); !m.dirs[dir]; dir = filepath.Dir(dir) {
		if m.names[dir] != nil {
			return pathError("mkdir", dir, syscall.ENOTDIR)
		}
		m.dirs[dir] = true
	}
	return nil
}

// Stat implements FS.
func (m *Mem) Stat(path string) (Info, error) {
	path = filepath.Clean(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dirs[path] {
		return Info{Dir: true}, nil
	}
	if n := m.names[path]; n != nil {
		return Info{Size: int64(len(n.data))}, nil
	}
	return Info{}, pathError("stat", path, fs.ErrNotExist)
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	dir = filepath.Clean(dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirs[dir] {
		return pathError("syncdir", dir, fs.ErrNotExist)
	}
	m.pending = slices.DeleteFunc(m.pending, func(op nameOp) bool {
		if op.dir() != dir {
			return false
		}
		op.apply(m.durable)
		return true
	})
	return nil
}

// Lock implements FS. A CrashClone is not locked.
func (m *Mem) Lock(dir string) (io.Closer, error) {
	dir = filepath.Clean(dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirs[dir] {
		return nil, pathError("lock", dir, fs.ErrNotExist)
	}
	if m.locked[dir] {
		return nil, pathError("lock", dir, ErrLocked)
	}
	m.locked[dir] = true
	return &memLock{m: m, dir: dir}, nil
}

type memLock struct {
	m    *Mem
	dir  string
	once sync.Once
}

func (l *memLock) Close() error {
	l.once.Do(func() {
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		delete(l.m.locked, l.dir)
	})
	return nil
}

// FreeSpace implements FS.
func (m *Mem) FreeSpace(string) (Space, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.limit == 0 {
		return Space{Free: math.MaxInt64, Total: math.MaxInt64}, nil
	}
	return Space{Free: uint64(max(0, m.limit-m.used)), Total: uint64(m.limit)}, nil
}

// Paths returns the paths of all files below prefix, sorted.
func (m *Mem) Paths(prefix string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var paths []string
	for path := range m.names {
		if strings.HasPrefix(path, prefix) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// memFile is an open handle.
type memFile struct {
	m      *Mem
	n      *node
	path   string
	write  bool
	closed bool // guarded by m.mu
}

// enter locks the file system if the handle may be used for op.
func (f *memFile) enter(op string, write bool) error {
	f.m.mu.Lock()
	switch {
	case f.closed:
		f.m.mu.Unlock()
		return pathError(op, f.path, fs.ErrClosed)
	case write && !f.write:
		f.m.mu.Unlock()
		return pathError(op, f.path, syscall.EBADF)
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.enter("read", false); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	if off < 0 {
		return 0, pathError("read", f.path, syscall.EINVAL)
	}
	if off >= int64(len(f.n.data)) {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.WriteVAt([][]byte{p}, off)
	return int(n), err
}

func (f *memFile) WriteVAt(bufs [][]byte, off int64) (int64, error) {
	if err := f.enter("write", true); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	if off < 0 {
		return 0, pathError("write", f.path, syscall.EINVAL)
	}
	var total int64
	for _, b := range bufs {
		total += int64(len(b))
	}
	if total == 0 {
		return 0, nil
	}
	if err := f.growLocked(off + total); err != nil {
		return 0, err
	}
	at := off
	for _, b := range bufs {
		at += int64(copy(f.n.data[at:], b))
	}
	f.n.touch(off, at)
	return total, nil
}

// growLocked makes the file at least size bytes long.
func (f *memFile) growLocked(size int64) error {
	grow := size - int64(len(f.n.data))
	if grow <= 0 {
		return nil
	}
	if !f.n.unlinked {
		if f.m.limit > 0 && f.m.used+grow > f.m.limit {
			return pathError("write", f.path, syscall.ENOSPC)
		}
		f.m.used += grow
	}
	f.n.resize(size)
	return nil
}

func (f *memFile) ZeroFill(off, n int64) error {
	if err := f.enter("zerofill", true); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	if err := f.growLocked(off + n); err != nil {
		return err
	}
	clear(f.n.data[off : off+n])
	f.n.touch(off, off+n)
	return nil
}

func (f *memFile) Allocate(size int64) error {
	if err := f.enter("allocate", true); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	return f.growLocked(size)
}

func (f *memFile) SyncData() error { return f.Sync() }

func (f *memFile) Sync() error {
	if err := f.enter("sync", false); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	f.n.sync()
	return nil
}

func (f *memFile) Truncate(size int64) error {
	if err := f.enter("truncate", true); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	old := int64(len(f.n.data))
	if size >= old {
		return f.growLocked(size)
	}
	if !f.n.unlinked {
		f.m.used -= old - size
	}
	// What is cut reads as zero if the file grows again.
	clear(f.n.data[size:])
	f.n.touch(size, old)
	f.n.resize(size)
	return nil
}

func (f *memFile) Size() (int64, error) {
	if err := f.enter("size", false); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	return int64(len(f.n.data)), nil
}

func (f *memFile) Close() error {
	if err := f.enter("close", false); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	f.closed = true
	return nil
}
