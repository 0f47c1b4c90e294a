package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/sluicemq/sluice/internal/vfs"
)

// Files of other nodes come into incoming/<shard>. One that is not complete ends in
// .part; how much of it is sound is found from its blocks, so fetching goes on where a
// crash or an error ended it. Nothing there counts before Take.
const (
	incomingDir = "incoming"
	partSuffix  = ".part"
)

// FileSource reads the files of a list at the node that has them. Short reads are
// errors; what is not pinned there any more is ErrGone.
type FileSource interface {
	ReadFile(shard uint32, pin uint64, f FileRef, p []byte, off int64) (int, error)
}

// FetchOptions shape one Fetch.
type FetchOptions struct {
	// Throttle, if not nil, is told of every n bytes that were read; its error ends the
	// fetching.
	Throttle func(n int) error
}

func (s *Store) incoming(shard uint32) string {
	return s.abs(filepath.Join(incomingDir, strconv.FormatUint(uint64(shard), 10)))
}

func (c *CopySegment) name() string { return fmt.Sprintf("%016x-%08x.seg", c.Origin, c.Seal) }

// checkName is the same for all lengths of a checkpoint file: it only grows.
func (l *CopyList) checkName() string { return fmt.Sprintf("%016x-%08x.ckpt", l.Source, l.Check.File) }

// meta describes the segment as the file with an id here.
func (c *CopySegment) meta(shard uint32, id SegID) SegmentMeta {
	return SegmentMeta{
		ID: id, Shard: shard, Bytes: c.Bytes, Entries: c.Entries, Own: c.Own, Set: c.Set, Origin: c.Origin, Seal: c.Seal,
	}
}

// held returns the shard's listed segments by what they are copies of. Damaged ones
// are left out, so that they are fetched.
func (s *Store) held(shard uint32) (map[string]*segment, error) {
	id, err := s.Identity()
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := map[string]*segment{}
	for _, g := range s.listed(shard) {
		c := CopySegment{Origin: g.meta.Origin, Seal: g.meta.seal()}
		if g.meta.Seal == 0 {
			c.Origin = id
		}
		g.acct.mu.Lock()
		bad := g.acct.damaged
		g.acct.mu.Unlock()
		if !bad {
			m[c.name()] = g
		}
	}
	return m, nil
}

// Fetch gets the files of a list that are not here, one after the other; they are then
// durable, and everything in them was verified. What an earlier list brought and this one
// does not name is removed. A *DamageError says that a file is not sound at the source.
// One at a time for a shard.
func (s *Store) Fetch(l *CopyList, src FileSource, o FetchOptions) error {
	held, err := s.held(l.Shard)
	if err != nil {
		return err
	}
	dir := s.incoming(l.Shard)
	if err := s.fs.MkdirAll(dir); err != nil {
		return err
	}
	wanted := map[string]bool{l.checkName(): true}
	for i := range l.Segments {
		wanted[l.Segments[i].name()] = true
	}
	if err := s.sweepIncoming(l.Shard, func(name string) bool {
		return wanted[name] || len(name) > len(partSuffix) && wanted[name[:len(name)-len(partSuffix)]]
	}); err != nil {
		return err
	}
	f := fetcher{s: s, l: l, src: src, o: o, dir: dir}
	for i := range l.Segments {
		c := &l.Segments[i]
		if g := held[c.name()]; g != nil && g.meta.Bytes == c.Bytes && g.meta.Entries == c.Entries {
			continue
		}
		if err := f.segment(c); err != nil {
			return err
		}
	}
	if err := f.checkpoint(); err != nil {
		return err
	}
	return s.fs.SyncDir(dir)
}

// DropIncoming removes what was fetched for a shard and not taken.
func (s *Store) DropIncoming(shard uint32) error {
	return s.sweepIncoming(shard, func(string) bool { return false })
}

func (s *Store) sweepIncoming(shard uint32, keep func(name string) bool) error {
	names, err := s.fs.List(s.incoming(shard))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		if !keep(name) {
			if err := removeIfExists(s.fs, filepath.Join(s.incoming(shard), name)); err != nil {
				return err
			}
		}
	}
	return nil
}

type fetcher struct {
	s   *Store
	l   *CopyList
	src FileSource
	o   FetchOptions
	dir string
	buf []byte
}

func (f *fetcher) segment(c *CopySegment) error {
	path := filepath.Join(f.dir, c.name())
	if st, err := f.s.fs.Stat(path); err == nil && st.Size == c.Bytes {
		return nil // verified by an earlier call
	}
	header := appendSegmentHeader(nil, f.l.Shard, SegID(c.Seal))
	file, err := f.get(path+partSuffix, FileRef{At: c.At}, c.Bytes, header, c.Seal)
	if err != nil {
		return err
	}
	check := &segmentCheck{m: c.meta(f.l.Shard, SegID(c.At))}
	err = check.check(file)
	if err == nil && len(check.damages) > 0 {
		err = check.damages[0]
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, removeIfExists(f.s.fs, path+partSuffix))
	}
	return f.s.fs.Rename(path+partSuffix, path)
}

func (f *fetcher) checkpoint() error {
	path := filepath.Join(f.dir, f.l.checkName())
	k := f.l.Check
	if st, err := f.s.fs.Stat(path); err == nil {
		if st.Size == k.Len {
			return nil
		}
		if err := f.s.fs.Rename(path, path+partSuffix); err != nil {
			return err
		}
	}
	header := binary.LittleEndian.AppendUint64(nil, checkpointMagic)
	header = binary.LittleEndian.AppendUint32(header, f.l.Shard)
	header = binary.LittleEndian.AppendUint32(header, k.File)
	file, err := f.get(path+partSuffix, FileRef{Checkpoint: true, At: k.File}, k.Len, header, k.File)
	if err != nil {
		return err
	}
	err = scanPairs(file, f.l.Shard, k, func(uint64, []byte, []byte) error { return nil })
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, removeIfExists(f.s.fs, path+partSuffix))
	}
	return f.s.fs.Rename(path+partSuffix, path)
}

// get completes a file: it goes on behind the last block that is sound.
func (f *fetcher) get(path string, ref FileRef, size int64, header []byte, seal uint32) (vfs.File, error) {
	file, err := f.s.fs.OpenReadWrite(path)
	if errors.Is(err, fs.ErrNotExist) {
		file, err = f.s.fs.Create(path)
	}
	if err != nil {
		return nil, err
	}
	pos, err := soundPrefix(file, size, header, seal)
	if err == nil {
		err = f.copy(file, ref, pos, size)
	}
	if err == nil {
		err = file.Truncate(size) // it may have been longer
	}
	if err == nil {
		err = file.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (f *fetcher) copy(file vfs.File, ref FileRef, pos, size int64) error {
	if f.buf == nil {
		f.buf = make([]byte, ChunkBytes)
	}
	for synced := pos; pos < size; {
		n, err := f.src.ReadFile(f.l.Shard, f.l.Pin, ref, f.buf[:min(ChunkBytes, size-pos)], pos)
		if n > 0 {
			err = nil
		} else if err == nil {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("store: fetch %s %d of shard %d at %d: %w", kindName(ref), ref.At, f.l.Shard, pos, err)
		}
		if _, err := file.WriteAt(f.buf[:n], pos); err != nil {
			return err
		}
		if pos += int64(n); pos-synced >= syncSize {
			if err := file.SyncData(); err != nil {
				return err
			}
			synced = pos
		}
		if f.o.Throttle != nil {
			if err := f.o.Throttle(n); err != nil {
				return err
			}
		}
	}
	return nil
}

func kindName(f FileRef) string {
	if f.Checkpoint {
		return "checkpoint"
	}
	return "segment"
}

// soundPrefix returns how much of a part of a file can be kept.
func soundPrefix(f vfs.File, size int64, header []byte, seal uint32) (int64, error) {
	have, err := f.Size()
	if err != nil {
		return 0, err
	}
	sc := newScanner(f, seal, min(have, size))
	defer sc.close()
	h, err := sc.fill(0, len(header))
	if err != nil || !slices.Equal(h, header) {
		return 0, err
	}
	pos := int64(len(header))
	for pos < min(have, size) {
		b, err := sc.at(pos)
		if err != nil {
			return 0, err
		}
		if b == nil {
			break
		}
		pos += int64(len(b))
	}
	return pos, nil
}

// Take makes fetched files the shard's only ones, in one edit of the MANIFEST: its old
// segments are dropped, those that the list names stay or come in, and its checkpoint is
// the list's, without the keys that drop names, and with extra. It returns the runs of
// the shard. Nothing else may write a checkpoint of the shard or compact it meanwhile.
// After an error that is not ErrFailed it may be repeated.
func (s *Store) Take(l *CopyList, extra []byte, drop func(key []byte) bool) ([]Run, error) {
	held, err := s.held(l.Shard)
	if err != nil {
		return nil, err
	}
	t := &taking{s: s, l: l, dir: s.incoming(l.Shard), kept: map[SegID]bool{}}
	defer t.undo()
	check, info, err := t.checkpoint(extra, drop)
	if err != nil {
		return nil, err
	}
	if err := t.segments(held); err != nil {
		return nil, err
	}
	var e Edit
	for _, m := range s.Segments(l.Shard) {
		if !t.kept[m.ID] {
			e.DropSegment(m.ID)
		}
	}
	for _, m := range t.fresh {
		e.AddSegment(m)
	}
	e.setCheckpoint(l.Shard, info)
	var old *checkpointFile
	err = s.install(&e, func() { old, s.ckpts[l.Shard] = s.ckpts[l.Shard], check })
	if err != nil {
		t.failed = errors.Is(err, ErrFailed) // the MANIFEST may list the files
		return nil, err
	}
	t.done = true
	if old != nil {
		s.releaseCheckpoint(old)
	}
	if err := s.DropIncoming(l.Shard); err != nil {
		s.deferred("empty "+t.dir, err)
	}
	return mergeSorted(t.runs), nil
}

// taking is a Take before its edit.
type taking struct {
	s      *Store
	l      *CopyList
	dir    string
	check  *checkpointFile
	fresh  []SegmentMeta
	kept   map[SegID]bool
	runs   [][]Run
	moved  [][2]string // from and to
	done   bool
	failed bool
}

// undo puts everything back unless the edit was made.
func (t *taking) undo() {
	if t.done || t.failed {
		return
	}
	for _, m := range t.moved {
		if err := t.s.fs.Rename(m[1], m[0]); err != nil {
			t.s.deferred("put back "+m[1], err)
		}
	}
	if t.check != nil {
		t.s.releaseCheckpoint(t.check)
	}
}

// checkpoint writes the fetched checkpoint as a base of this store's own.
func (t *taking) checkpoint(extra []byte, drop func(key []byte) bool) (*checkpointFile, CheckpointInfo, error) {
	k := t.l.Check
	was, _ := t.s.Checkpoint(t.l.Shard)
	f, err := t.s.fs.Open(filepath.Join(t.dir, t.l.checkName()))
	if err != nil {
		return nil, was, err
	}
	defer func() { _ = f.Close() }() // it was only read
	if t.check, err = t.s.createCheckpoint(t.l.Shard, was.File+1); err != nil {
		return nil, was, err
	}
	w := &CheckpointWriter{s: t.s, shard: t.l.Shard, file: t.check, fresh: true, pos: checkpointHeaderLen}
	err = livePairs(f, t.l.Shard, k, keysAtOnce, func(key, value []byte) error {
		if drop(key) {
			return nil
		}
		return w.Put(key, value)
	})
	if err == nil {
		err = w.finish(k.Index)
	}
	if err != nil {
		return nil, was, err
	}
	return t.check, CheckpointInfo{
		Index: k.Index, Extra: slices.Clone(extra), File: t.check.id, Base: w.pos, Len: w.pos, Pairs: w.pairs,
	}, nil
}

// segments moves the fetched segments to their places, the oldest set first.
func (t *taking) segments(held map[string]*segment) error {
	list := slices.Clone(t.l.Segments)
	slices.SortStableFunc(list, func(a, b CopySegment) int { return cmp.Or(cmp.Compare(a.Set, b.Set), cmp.Compare(a.At, b.At)) })
	sets := map[SegID]SegID{} // at the source, and here
	dest := t.s.abs(filepath.Dir(segmentPath(t.l.Shard, 1)))
	if err := t.s.fs.MkdirAll(dest); err != nil {
		return err
	}
	for i := range list {
		c := &list[i]
		if g := held[c.name()]; g != nil && g.meta.Bytes == c.Bytes && g.meta.Entries == c.Entries {
			runs, _, err := t.s.directory(g)
			if err != nil {
				return err
			}
			t.kept[g.meta.ID] = true
			t.runs = append(t.runs, runs)
			sets[c.Set] = g.meta.Set
			continue
		}
		m := c.meta(t.l.Shard, t.s.newID())
		if sets[c.Set] == 0 {
			sets[c.Set] = m.ID
		}
		m.Set = sets[c.Set]
		if err := t.segment(c, m); err != nil {
			return err
		}
	}
	if err := t.s.fs.SyncDir(dest); err != nil {
		return err
	}
	return nil
}

func (t *taking) segment(c *CopySegment, m SegmentMeta) error {
	from, to := filepath.Join(t.dir, c.name()), t.s.abs(segmentPath(m.Shard, m.ID))
	f, err := t.s.fs.Open(from)
	if err != nil {
		return err
	}
	tr, runs, infos, reason, err := readDirectory(f, m)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if reason != "" {
		return &DamageError{Path: from, Shard: m.Shard, Len: m.Bytes, Reason: reason}
	}
	if err := t.s.fs.Rename(from, to); err != nil {
		return err
	}
	t.moved = append(t.moved, [2]string{from, to})
	m.stats = newStats(&tr, runs, infos)
	t.fresh = append(t.fresh, m)
	t.runs = append(t.runs, runs)
	return nil
}
