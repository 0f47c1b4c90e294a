package store

import (
	"errors"

	"github.com/sluicemq/sluice/internal/vfs"
)

// throttledFS tells of what is read of files.
type throttledFS struct {
	vfs.FS
	read func(n int) error
}

type throttledFile struct {
	vfs.File
	read func(n int) error
}

// Open implements vfs.FS.
func (t throttledFS) Open(path string) (vfs.File, error) {
	f, err := t.FS.Open(path)
	if err != nil {
		return nil, err
	}
	return throttledFile{f, t.read}, nil
}

// ReadAt implements vfs.File.
func (t throttledFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.File.ReadAt(p, off)
	return n, errors.Join(t.read(n), err)
}

// stopper remembers the error of a throttle, which ends a scrub.
type stopper struct {
	read func(n int) error
	err  error
}

func (s *stopper) note(n int) error {
	if s.err == nil {
		s.err = s.read(n)
	}
	return s.err
}

// ScrubSegment reads a whole segment, as Check does, and lists what is damaged. read is
// told of each read and may wait, or end it with an error.
func (s *Store) ScrubSegment(id SegID, read func(n int) error) ([]*DamageError, error) {
	g, err := s.acquire(id)
	if err != nil {
		return nil, err
	}
	defer s.release(g)
	stop := stopper{read: read}
	_, _, list := checkSegment(throttledFS{s.fs, stop.note}, s.opts.Dir, g.meta)
	if stop.err != nil {
		return nil, stop.err
	}
	return list, nil
}

// ScrubCheckpoint is ScrubSegment for a shard's checkpoint.
func (s *Store) ScrubCheckpoint(shard uint32, read func(n int) error) ([]*DamageError, error) {
	v := s.Snapshot(shard)
	defer v.Release()
	if !v.HasCheck {
		return nil, nil
	}
	stop := stopper{read: read}
	_, damage := checkCheckpoint(throttledFS{s.fs, stop.note}, s.opts.Dir, shard, v.Checkpoint)
	if stop.err != nil || damage == nil {
		return nil, stop.err
	}
	return []*DamageError{damage}, nil
}
