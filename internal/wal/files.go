package wal

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"github.com/sluicemq/sluice/internal/vfs"
)

// file is a file of the log. The writer owns the contents of the last one.
type file struct {
	seq    uint64
	f      vfs.File
	header int64 // bytes; of a file that this process began
	size   int64 // bytes

	// Guarded by files.mu.
	used     int64 // bytes
	ranges   map[uint32]*ShardRange
	sealed   bool
	released bool
	refs     int // pins, and reads in progress
}

// files is the table of the live files and of the spares.
//
// Its maintenance (preparing spares, recycling) is done by one goroutine at a
// time, without mu held during input and output.
type files struct {
	opts *Options

	mu     sync.Mutex // a leaf: nothing is called with it held
	live   []*file    // ascending seq; gaps only where files were missing at Open
	spares []string   // paths of zero-filled files without a number
	taken  uint64     // highest number used for the name of a spare
	closed bool

	// Owned by whoever does the maintenance.
	dropping *file // has left live, but maybe not the directory
}

// acquire returns a live file and keeps it until release.
func (t *files) acquire(seq uint64) (*file, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	f := t.findLocked(seq)
	if f == nil {
		return nil, ErrGone
	}
	f.refs++
	return f, nil
}

func (t *files) findLocked(seq uint64) *file {
	i, ok := slices.BinarySearchFunc(t.live, seq, func(f *file, seq uint64) int {
		return cmp.Compare(f.seq, seq)
	})
	if !ok {
		return nil
	}
	return t.live[i]
}

// release undoes acquire; true if the file may now be recycled.
func (t *files) release(f *file) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.refs--
	if f.refs < 0 {
		panic("wal: BUG: file unpinned more often than pinned")
	}
	return f.refs == 0 && f.released
}

func (f *file) sealedLocked() SealedFile {
	return SealedFile{Seq: f.seq, Bytes: f.used, Shards: sortedRanges(f.ranges)}
}

// recyclable takes the oldest file out of the table if nothing holds it.
func (t *files) recyclable() *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.live) == 0 || t.closed {
		return nil
	}
	f := t.live[0]
	if !f.sealed || !f.released || f.refs > 0 {
		return nil
	}
	t.live = slices.Delete(t.live, 0, 1)
	return f
}

// recycle takes all released files out of the directory, oldest first. Each step
// is synced before the next: the numbers that remain never have a gap.
func (t *files) recycle() error {
	for {
		if t.dropping == nil {
			if t.dropping = t.recyclable(); t.dropping == nil {
				return nil
			}
		}
		reused, err := t.drop(t.dropping)
		if err != nil {
			return fmt.Errorf("recycle %s: %w", fileName(t.dropping.seq), err)
		}
		seq := t.dropping.seq
		t.dropping = nil
		if hook := t.opts.Events.FileRecycled; hook != nil {
			hook(seq, reused)
		}
	}
}

// drop may be repeated after an error.
func (t *files) drop(f *file) (reused bool, err error) {
	if f.f != nil {
		if err := f.f.Close(); err != nil {
			return false, err
		}
		f.f = nil
	}
	path := filepath.Join(t.opts.Dir, fileName(f.seq))
	t.mu.Lock()
	reused = f.size == t.opts.FileSize && len(t.spares) < t.opts.MaxSpare
	t.mu.Unlock()
	if reused && t.opts.Recycle != nil {
		reused = t.opts.Recycle()
	}
	spare := t.spareName(spareSuffix)
	if reused {
		err = t.opts.FS.Rename(path, spare)
	} else {
		err = t.opts.FS.Remove(path)
	}
	gone := errors.Is(err, fs.ErrNotExist) // by an earlier attempt, whose sync failed
	if err != nil && !gone {
		return false, err
	}
	if err := t.opts.FS.SyncDir(t.opts.Dir); err != nil {
		return false, err
	}
	if gone {
		return false, nil
	}
	if reused {
		t.addSpare(spare)
	}
	return reused, nil
}

// spareName makes a path that is not in use.
func (t *files) spareName(suffix string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken++
	return filepath.Join(t.opts.Dir, fmt.Sprintf("%016x%s", t.taken, suffix))
}

// enough says whether there is a spare besides the reserve.
func (t *files) enough() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.spares) > t.opts.Reserve
}

// prepare makes a spare.
func (t *files) prepare() error {
	fsys, tmp, spare := t.opts.FS, t.spareName(tmpSuffix), t.spareName(spareSuffix)
	f, err := fsys.Create(tmp)
	if err != nil {
		return fmt.Errorf("prepare a file: %w", err)
	}
	err = zeroFill(f, t.opts.FileSize)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(tmp, spare)
	}
	if err != nil {
		_ = fsys.Remove(tmp) // else Open removes it
		return fmt.Errorf("prepare a file: %w", err)
	}
	if err := fsys.SyncDir(t.opts.Dir); err != nil {
		return fmt.Errorf("prepare a file: %w", err)
	}
	t.addSpare(spare)
	return nil
}

// fillStep is how much of a new file is written between syncs: a sync of all of it
// would hold up those of the log for a tenth of a second.
const fillStep = 1 << 20

// zeroFill writes zeros and makes them durable. All of the space is taken first, or none:
// what will not suffice is not kept from others meanwhile.
func zeroFill(f vfs.File, size int64) error {
	if err := f.Allocate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; off += fillStep {
		if err := f.ZeroFill(off, min(fillStep, size-off)); err != nil {
			return err
		}
		if err := f.SyncData(); err != nil {
			return err
		}
	}
	return f.Sync()
}

func (t *files) addSpare(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spares = append(t.spares, path)
}

// takeSpare removes a spare from the pool; "" if it is empty.
func (t *files) takeSpare() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.spares) == 0 {
		return ""
	}
	s := t.spares[len(t.spares)-1]
	t.spares = t.spares[:len(t.spares)-1]
	return s
}

// begin turns a spare into the file of the given header: the header is synced
// before the name says that there is one.
func (t *files) begin(spare string, h fileHeader) (*file, error) {
	fsys, path := t.opts.FS, filepath.Join(t.opts.Dir, fileName(h.seq))
	f, err := fsys.OpenReadWrite(spare)
	if err != nil {
		return nil, err
	}
	b := appendFileHeader(nil, h)
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.SyncData()
	}
	if err == nil {
		err = fsys.Rename(spare, path)
	}
	if err != nil {
		t.addSpare(spare)
	} else {
		err = fsys.SyncDir(t.opts.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	n := &file{
		seq: h.seq, f: f, header: int64(len(b)), size: h.fileSize, used: int64(len(b)),
		ranges: map[uint32]*ShardRange{},
	}
	t.mu.Lock()
	t.live = append(t.live, n)
	t.mu.Unlock()
	return n, nil
}

// closeAll closes the handles; reads in progress come first.
func (t *files) closeAll() error {
	t.mu.Lock()
	t.closed = true
	live := t.live
	t.mu.Unlock()
	var errs []error
	for _, f := range live {
		errs = append(errs, f.f.Close())
	}
	if t.dropping != nil && t.dropping.f != nil {
		errs = append(errs, t.dropping.f.Close())
	}
	return errors.Join(errs...)
}

// readAt reads part of a payload.
func (f *file) readAt(pos Position, off int, buf []byte) error {
	if off < 0 || int64(off)+int64(len(buf)) > int64(pos.Len) {
		return fmt.Errorf("%w: %d bytes at %d of a payload of %d", ErrInvalid, len(buf), off, pos.Len)
	}
	n, err := f.f.ReadAt(buf, int64(pos.Off)+int64(off))
	switch {
	case n == len(buf):
		return nil
	case errors.Is(err, fs.ErrClosed):
		return ErrClosed
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// seal closes a file for writing and returns its description.
func (t *files) seal(f *file) SealedFile {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.sealed = true
	return f.sealedLocked()
}

func (t *files) setUsed(f *file, used int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.used = used
}
