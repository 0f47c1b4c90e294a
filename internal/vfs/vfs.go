// Package vfs is the seam between sluice's storage code and the file system.
//
// It is deliberately small: positioned reads and writes, explicit syncs of
// data and of directories, rename, and an exclusive lock on a data directory.
// There is no append mode, no seek position and no buffering, because every
// writer above keeps its own offsets and decides itself when a sync is due.
//
// Implementations:
//
//   - OS is the operating system (Linux: pwritev, fdatasync, fallocate, flock).
//   - Mem keeps everything in memory and knows what was synced. CrashClone
//     gives the disk as it may look after a power cut at that moment: the
//     synced state, plus some of the unsynced 512-byte sectors and directory
//     operations in any combination.
//   - Inject wraps another FS and asks a hook before every operation, to fail
//     it, to count it, or to take a CrashClone at exactly that point.
//   - Reserve wraps another FS and keeps space on its volume that only it uses,
//     when the volume is full.
//
// # Durability contract
//
// Data written is durable after SyncData or Sync of the file. The entry of a
// file in its directory (Create, Rename, Remove) is durable after SyncDir of
// the directory; syncing the file itself does not make its name durable.
// MkdirAll is durable when it returns.
//
// # Concurrency
//
// Every FS and every File is safe for concurrent use. Overlapping concurrent
// writes have an undefined but memory-safe outcome, as on a disk. Closing a
// file waits for the operations in progress on it; later ones return
// fs.ErrClosed.
//
// # Errors
//
// Errors satisfy errors.Is with fs.ErrNotExist, fs.ErrExist, fs.ErrClosed and
// syscall.ENOSPC, syscall.EIO as the operating system gives them. IsNoSpace
// tells a full disk or an exhausted quota.
package vfs

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"
)

// SectorSize is the unit, in bytes, that a disk writes atomically. Whatever is
// larger may be torn by a power cut.
const SectorSize = 512

// ErrLocked is returned by FS.Lock when another holder has the directory.
var ErrLocked = errors.New("data directory is locked by another process")

// FS is a file system. Paths are as filepath.Join makes them.
type FS interface {
	// Create makes a new file for reading and writing; fs.ErrExist if there is
	// one. Its name is durable after SyncDir.
	Create(path string) (File, error)
	// Open opens an existing file for reading only.
	Open(path string) (File, error)
	// OpenReadWrite opens an existing file for reading and writing.
	OpenReadWrite(path string) (File, error)
	// Remove unlinks a file or an empty directory. Open handles stay usable.
	Remove(path string) error
	// Rename moves a file, replacing the target atomically.
	Rename(from, to string) error
	// List returns the names (not paths) in a directory, sorted.
	List(dir string) ([]string, error)
	// MkdirAll makes a directory and its missing parents, durably.
	MkdirAll(dir string) error
	// Stat describes a file or directory.
	Stat(path string) (Info, error)
	// SyncDir makes creates, renames and removes in dir durable.
	SyncDir(dir string) error
	// Lock takes the exclusive lock of a data directory, without waiting;
	// ErrLocked if it is held. Closing the result releases it, and so does the
	// end of the process.
	Lock(dir string) (io.Closer, error)
	// FreeSpace describes the volume that path lies on.
	FreeSpace(path string) (Space, error)
}

// File is an open file without a position.
type File interface {
	// ReaderAt as in package io: a short read returns io.EOF.
	io.ReaderAt
	// WriterAt as in package io; writing past the end grows the file.
	io.WriterAt
	// WriteVAt writes the concatenation of bufs at off, in one system call as
	// far as the kernel's vector limit goes, and returns the bytes written. bufs
	// and what it points to are not changed and not kept.
	WriteVAt(bufs [][]byte, off int64) (int64, error)
	// ZeroFill writes n zero bytes at off, really writing them: blocks that are
	// merely reserved make later syncs two to five times slower. On a full disk
	// it fails early, before most of the writing, where the file system can
	// tell.
	ZeroFill(off, n int64) error
	// Allocate grows the file to size bytes whose blocks are reserved and not
	// written, so that the space is nobody else's. Reading them gives zeros.
	Allocate(size int64) error
	// SyncData makes the contents, and the size if it grew, durable (fdatasync).
	SyncData() error
	// Sync makes contents and all metadata of the file durable (fsync).
	Sync() error
	// Truncate sets the size in bytes; growing adds a hole.
	Truncate(size int64) error
	// Size returns the current size in bytes.
	Size() (int64, error)
	// Close releases the handle. It syncs nothing.
	Close() error
}

// Info is what Stat tells.
type Info struct {
	Size int64 // bytes; 0 for a directory
	Dir  bool
}

// Space describes a volume.
type Space struct {
	Free  uint64 // bytes an unprivileged process may still allocate
	Total uint64 // bytes altogether
	// CopyOnWrite says that overwriting in place allocates, so that it may fail
	// on a full volume (btrfs, ZFS, bcachefs).
	CopyOnWrite bool
}

// IsNoSpace reports whether err means a full volume or an exhausted quota.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// ReadFile returns the whole contents of a file.
func ReadFile(fsys FS, path string) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if errors.Is(err, io.EOF) && int64(n) == size {
		err = nil
	}
	return b[:n], err
}

// WriteFileAtomic replaces path by data so that after a crash either the old
// or the new contents are there, and after its return the new ones: temporary
// file beside it (path + ".tmp"), sync, rename, sync of the directory.
func WriteFileAtomic(fsys FS, path string, data []byte) error {
	tmp := path + ".tmp"
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	return fsys.SyncDir(filepath.Dir(path))
}

// FlipBit inverts one bit of a file and syncs it, for tests of damage. bit
// counts from the file's start, least significant bit of each byte first.
func FlipBit(fsys FS, path string, bit int64) error {
	f, err := fsys.OpenReadWrite(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // what was written is synced before
	var b [1]byte
	if _, err := f.ReadAt(b[:], bit/8); err != nil {
		return err
	}
	b[0] ^= 1 << (bit % 8)
	if _, err := f.WriteAt(b[:], bit/8); err != nil {
		return err
	}
	return f.SyncData()
}
