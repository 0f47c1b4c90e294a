package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"path/filepath"
	"sync/atomic"

	"github.com/sluicemq/sluice/internal/vfs"
)

// A checkpoint file is a header and a chain of blocks, of which the MANIFEST says
// how many bytes are valid:
//
//	header  u64 magic, u32 shard, u32 id
//	pairs   per pair uvarint length and bytes of the key, u8 1 with uvarint length
//	        and bytes of the value, or u8 0 if the key is deleted
//	mark    uvarint index: the end of a delta
//
// The first delta of a file is its base. A key's last pair holds.
const (
	checkpointMagic     = 0x31544b4343494c53 // "SLICCKT1"
	checkpointHeaderLen = 16
	pairsTarget         = 64 << 10

	// keysAtOnce bounds the memory of finding each key's last pair: with more pairs
	// in a file, it is read once for each part of the key space. About 100 bytes a
	// key.
	keysAtOnce = 1 << 18
)

// checkpointFile is the current checkpoint file of a shard, or one that a snapshot
// still holds.
type checkpointFile struct {
	shard, id uint32
	path      string // relative
	refs      atomic.Int32
	f         vfs.File // written by the shard's CheckpointWriter only
	// broken: a sync failed, so that nothing that is written here can be relied on.
	// Owned by whoever writes the checkpoint.
	broken bool
}

func (c *checkpointFile) close() error { return c.f.Close() }

func (s *Store) releaseCheckpoint(c *checkpointFile) {
	if c.refs.Add(-1) > 0 {
		return
	}
	_ = c.close() // the file goes
	s.remove(c.path, false)
}

// openCheckpoint opens a shard's checkpoint file, if it has one. A missing file is
// damage.
func (s *Store) openCheckpoint(shard uint32) (*DamageError, error) {
	info, ok := s.Checkpoint(shard)
	if !ok {
		return nil, nil
	}
	c := &checkpointFile{shard: shard, id: info.File, path: checkpointPath(shard, info.File)}
	f, err := s.fs.OpenReadWrite(s.abs(c.path))
	if errors.Is(err, fs.ErrNotExist) {
		return missingCheckpoint(shard, info), nil
	}
	if err != nil {
		return nil, err
	}
	c.f = f
	c.refs.Store(1)
	s.ckpts[shard] = c
	return nil, nil
}

func missingCheckpoint(shard uint32, info CheckpointInfo) *DamageError {
	return &DamageError{
		Path: checkpointPath(shard, info.File), Shard: shard, Len: info.Len, Reason: "the file is missing",
	}
}

// createCheckpoint makes an empty file. Its name is not durable yet.
func (s *Store) createCheckpoint(shard, id uint32) (*checkpointFile, error) {
	c := &checkpointFile{shard: shard, id: id, path: checkpointPath(shard, id)}
	if err := s.fs.MkdirAll(s.abs(filepath.Dir(c.path))); err != nil {
		return nil, err
	}
	// A rewrite that failed may have left its file.
	if err := removeIfExists(s.fs, s.abs(c.path)); err != nil {
		return nil, err
	}
	f, err := s.fs.Create(s.abs(c.path))
	if err != nil {
		return nil, err
	}
	c.f = f
	c.refs.Store(1)
	h := binary.LittleEndian.AppendUint64(nil, checkpointMagic)
	h = binary.LittleEndian.AppendUint32(h, shard)
	h = binary.LittleEndian.AppendUint32(h, id)
	if _, err := f.WriteAt(h, 0); err != nil {
		s.releaseCheckpoint(c)
		return nil, err
	}
	return c, nil
}

// CheckpointWriter writes one delta: the keys that changed since the last one.
type CheckpointWriter struct {
	s     *Store
	shard uint32
	file  *checkpointFile
	fresh bool // the file is new: the MANIFEST does not list it
	pos   int64
	pairs uint64
	block []byte
	err   error
	done  bool
}

// BeginCheckpoint starts the next delta of a shard's checkpoint. One at a time per
// shard.
func (s *Store) BeginCheckpoint(shard uint32) (*CheckpointWriter, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	info, ok := s.Checkpoint(shard)
	s.mu.RLock()
	file := s.ckpts[shard]
	s.mu.RUnlock()
	if ok && file == nil {
		return nil, missingCheckpoint(shard, info)
	}
	if ok && file.broken {
		if err := s.rewriteBase(shard, info); err != nil {
			return nil, err
		}
		return s.BeginCheckpoint(shard)
	}
	c := &CheckpointWriter{s: s, shard: shard, file: file, pos: info.Len, pairs: info.Pairs}
	if !ok {
		var err error
		if c.file, err = s.createCheckpoint(shard, 1); err != nil {
			return nil, err
		}
		c.fresh, c.pos = true, checkpointHeaderLen
	}
	return c, nil
}

// Put stores the value of a key; nil deletes the key. A later Put of the same key
// wins. Both are copied.
func (c *CheckpointWriter) Put(key, value []byte) error {
	if c.err != nil {
		return c.err
	}
	if n := len(key) + len(value) + 32; len(c.block) > 0 && len(c.block)+n > pairsTarget {
		if err := c.closeBlock(kindPairs); err != nil {
			return err
		}
	}
	if len(c.block) == 0 {
		c.block = append(c.block, make([]byte, blockHeaderLen)...)
	}
	c.block = binary.AppendUvarint(c.block, uint64(len(key)))
	c.block = append(c.block, key...)
	if value == nil {
		c.block = append(c.block, 0)
	} else {
		c.block = append(c.block, 1)
		c.block = binary.AppendUvarint(c.block, uint64(len(value)))
		c.block = append(c.block, value...)
	}
	c.pairs++
	return nil
}

func (c *CheckpointWriter) closeBlock(kind uint8) error {
	if len(c.block) == 0 {
		return nil
	}
	sealBlock(c.block, kind, c.file.id, c.pos)
	if _, err := c.file.f.WriteAt(c.block, c.pos); err != nil {
		c.err = err
		return err
	}
	c.pos += int64(len(c.block))
	c.block = recycle(c.block)
	return nil
}

// finish writes the mark and syncs the file.
func (c *CheckpointWriter) finish(index uint64) error {
	if c.err != nil {
		return c.err
	}
	if err := c.closeBlock(kindPairs); err != nil {
		return err
	}
	c.block = append(c.block[:0], make([]byte, blockHeaderLen)...)
	c.block = binary.AppendUvarint(c.block, index)
	if err := c.closeBlock(kindMark); err != nil {
		return err
	}
	if err := c.file.f.SyncData(); err != nil {
		c.file.broken = true
		c.err = err
		return err
	}
	if c.fresh {
		if err := c.s.fs.SyncDir(c.s.abs(filepath.Dir(c.file.path))); err != nil {
			c.err = err
			return err
		}
	}
	return nil
}

// Commit syncs the delta and makes it, with index and extra, the shard's
// checkpoint, in one edit of the MANIFEST; more holds other changes for the same
// edit and may be nil. When the deltas outweigh the base, it then writes a new base,
// which takes as long as reading and writing the live keys; if only that fails, it
// is an event, and tried again by the next Commit. A failed Commit has changed
// nothing.
func (c *CheckpointWriter) Commit(index uint64, extra []byte, more *Edit) error {
	if c.done {
		return ErrClosed
	}
	defer c.Abort()
	if err := c.finish(index); err != nil {
		return err
	}
	info, _ := c.s.Checkpoint(c.shard)
	info.File, info.Len, info.Pairs = c.file.id, c.pos, c.pairs
	info.Index, info.Extra = index, bytes.Clone(extra)
	if c.fresh {
		info.Base = c.pos
	}
	var e Edit
	if more != nil {
		e.changes = append(e.changes, more.changes...)
	}
	e.setCheckpoint(c.shard, info)
	if err := c.s.install(&e, func() { c.s.ckpts[c.shard] = c.file }); err != nil {
		c.err = err
		return err
	}
	c.done = true
	if info.Len-info.Base > max(info.Base, c.s.opts.CheckpointBytes) {
		if err := c.s.rewriteBase(c.shard, info); err != nil {
			c.s.deferred("rewrite "+c.file.path, err)
		}
	}
	return nil
}

// Abort gives up the delta. It does nothing after Commit succeeded.
func (c *CheckpointWriter) Abort() {
	if c.done {
		return
	}
	c.done = true
	if c.err == nil {
		c.err = ErrClosed
	}
	if c.fresh && !errors.Is(c.err, ErrFailed) { // else the MANIFEST may list it
		c.s.releaseCheckpoint(c.file)
	}
}

// rewriteBase writes the live pairs to a new file and switches to it.
func (s *Store) rewriteBase(shard uint32, info CheckpointInfo) error {
	file, err := s.createCheckpoint(shard, info.File+1)
	if err != nil {
		return err
	}
	c := &CheckpointWriter{s: s, shard: shard, file: file, fresh: true, pos: checkpointHeaderLen}
	defer c.Abort()
	if err := s.livePairs(shard, info, c.Put); err != nil {
		return err
	}
	if err := c.finish(info.Index); err != nil {
		return err
	}
	info.File, info.Base, info.Len, info.Pairs = file.id, c.pos, c.pos, c.pairs
	var e Edit
	e.setCheckpoint(shard, info)
	var old *checkpointFile
	err = s.install(&e, func() { old, s.ckpts[shard] = s.ckpts[shard], file })
	if err != nil {
		c.err = err
		return err
	}
	c.done = true
	s.metrics.bases.Add(1)
	s.releaseCheckpoint(old)
	return nil
}

// Checkpoint returns the shard's last committed checkpoint, false if there is none.
func (s *Store) Checkpoint(shard uint32) (CheckpointInfo, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sh := s.state.shards[shard]
	info := sh.check
	info.Extra = bytes.Clone(info.Extra)
	return info, sh.hasCheck
}

// LoadCheckpoint calls fn once for each live key of the shard's checkpoint, in no
// particular order, with slices that are valid during the call. It stops at the
// first error of fn and returns it. A *DamageError means that the checkpoint can't
// be used. Not concurrent with a CheckpointWriter of the shard.
func (s *Store) LoadCheckpoint(shard uint32, fn func(key, value []byte) error) error {
	info, ok := s.Checkpoint(shard)
	if !ok {
		return nil
	}
	return s.livePairs(shard, info, fn)
}

// CheckCheckpoint reads all of a shard's checkpoint; a *DamageError says what is wrong.
func (s *Store) CheckCheckpoint(shard uint32) error {
	info, ok := s.Checkpoint(shard)
	if !ok {
		return nil
	}
	s.mu.RLock()
	file := s.ckpts[shard]
	s.mu.RUnlock()
	if file == nil {
		return missingCheckpoint(shard, info)
	}
	return scanPairs(file.f, shard, info, func(uint64, []byte, []byte) error { return nil })
}

func (s *Store) livePairs(shard uint32, info CheckpointInfo, fn func(key, value []byte) error) error {
	s.mu.RLock()
	file := s.ckpts[shard]
	s.mu.RUnlock()
	if file == nil {
		return missingCheckpoint(shard, info)
	}
	err := livePairs(file.f, shard, info, keysAtOnce, fn)
	var damage *DamageError
	if errors.As(err, &damage) && s.opts.Events.Damaged != nil {
		s.opts.Events.Damaged(damage)
	}
	return err
}

// livePairs calls fn for each key's last pair unless it deletes the key. It goes
// over the file twice for each part of the key space, of which there is one for
// each atOnce pairs: to find the last pairs, and to hand them out.
func livePairs(f vfs.File, shard uint32, info CheckpointInfo, atOnce uint64, fn func(key, value []byte) error) error {
	return lastPairs(info.Pairs, atOnce, fn, func(fn func(n uint64, key, value []byte) error) error {
		return scanPairs(f, shard, info, fn)
	})
}

// lastPairs is livePairs for what scan gives, at most so many pairs.
func lastPairs(pairs, atOnce uint64, fn func(key, value []byte) error, scan func(func(n uint64, key, value []byte) error) error) error {
	parts := pairs/atOnce + 1
	seed := maphash.MakeSeed()
	last := make(map[string]uint64, min(pairs, atOnce))
	for part := range parts {
		clear(last)
		err := scan(func(n uint64, key, _ []byte) error {
			if parts == 1 || maphash.Bytes(seed, key)%parts == part {
				last[string(key)] = n
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = scan(func(n uint64, key, value []byte) error {
			if l, ok := last[string(key)]; !ok || l != n || value == nil {
				return nil
			}
			return fn(key, value)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// scanPairs calls fn for every pair of a checkpoint file with its number.
func scanPairs(f vfs.File, shard uint32, info CheckpointInfo, fn func(n uint64, key, value []byte) error) error {
	damage := func(pos int64, reason string) error {
		return &DamageError{
			Path: checkpointPath(shard, info.File), Shard: shard, Pos: pos, Len: info.Len - pos, Reason: reason,
		}
	}
	sc := newScanner(f, info.File, info.Len)
	defer sc.close()
	h, err := sc.fill(0, checkpointHeaderLen)
	if err != nil {
		return fmt.Errorf("store: %s: %w", checkpointPath(shard, info.File), err)
	}
	le := binary.LittleEndian
	if len(h) < checkpointHeaderLen || le.Uint64(h) != checkpointMagic || le.Uint32(h[8:]) != shard || le.Uint32(h[12:]) != info.File {
		return damage(0, "header")
	}
	n := uint64(0)
	index, marked := uint64(0), false
	pos := int64(checkpointHeaderLen)
	for pos < info.Len {
		b, err := sc.at(pos)
		if err != nil {
			return fmt.Errorf("store: %s: %w", checkpointPath(shard, info.File), err)
		}
		v := varints{}
		if b != nil {
			v.b = b[blockHeaderLen:]
		}
		switch {
		case b == nil:
			return damage(pos, "block")
		case b[8] == kindMark:
			index, marked = v.u64(), true
		case b[8] == kindPairs:
			marked = false
			if n, err = eachPair(&v, n, fn); err != nil {
				return err
			}
		default:
			v.bad = true
		}
		if v.bad {
			return damage(pos, "contents of a block")
		}
		pos += int64(len(b))
	}
	if !marked || index != info.Index || n != info.Pairs {
		return damage(info.Len, "end mark")
	}
	return nil
}

func eachPair(v *varints, n uint64, fn func(n uint64, key, value []byte) error) (uint64, error) {
	for len(v.b) > 0 && !v.bad {
		key := v.bytes()
		var value []byte
		if v.u8() != 0 {
			value = v.bytes()
		}
		if v.bad {
			break
		}
		if err := fn(n, key, value); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
