package store

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
)

// A shard goes to another node as a list of immutable files, pinned by a Snapshot here,
// of which that node fetches those that it lacks. A file is known by the store that
// wrote it and its id there, wherever it is copied to: so a later list that shares files
// with an earlier one costs only the difference.

// ChunkBytes is the most that is read of a peer's file at once.
const ChunkBytes = 256 << 10

// FileRef names a file of a CopyList at its source.
type FileRef struct {
	Checkpoint bool
	At         uint32 // id of the segment, or of the checkpoint file
}

// CopySegment is a segment of a CopyList.
type CopySegment struct {
	At      uint32 // id at the source
	Origin  uint64 // identity of the store that wrote it
	Seal    uint32 // its id there
	Bytes   int64
	Entries uint64
	Own     bool
	Set     SegID
}

// CopyList says what a shard consists of at a source.
type CopyList struct {
	Shard    uint32
	Source   uint64 // identity of the store that has the files
	Pin      uint64 // number under which the source keeps them pinned
	Check    CheckpointInfo
	Segments []CopySegment // by ascending At
}

// Identity returns the number that tells this store's files from those of others; the
// first time, it is made durable.
func (s *Store) Identity() (uint64, error) {
	const key = "identity"
	if b, ok := s.Setting(key); ok && len(b) == 8 {
		return binary.LittleEndian.Uint64(b), nil
	}
	id := s.opts.Identity
	for id == 0 {
		id = rand.Uint64()
	}
	var e Edit
	e.Set(key, binary.LittleEndian.AppendUint64(nil, id))
	return id, s.Install(&e)
}

// List describes the snapshot for whoever copies it. Its checkpoint may be older than its
// segments. ErrInvalid if there is none.
func (v *Snapshot) List(pin uint64) (*CopyList, error) {
	if !v.HasCheck || v.file == nil {
		return nil, fmt.Errorf("%w: a snapshot without a checkpoint", ErrInvalid)
	}
	id, err := v.s.Identity()
	if err != nil {
		return nil, err
	}
	l := &CopyList{Shard: v.file.shard, Source: id, Pin: pin, Check: v.Checkpoint}
	for _, m := range v.Segments {
		c := CopySegment{
			At: uint32(m.ID), Origin: m.Origin, Seal: m.seal(), Bytes: m.Bytes, Entries: m.Entries, Own: m.Own, Set: m.Set,
		}
		if m.Seal == 0 {
			c.Origin = id
		}
		l.Segments = append(l.Segments, c)
	}
	return l, nil
}

// Replace makes the segments those of a later snapshot, with the checkpoint as it is.
// What is settled in between needs no bytes: whoever loads the checkpoint applies that
// too before it delivers anything. later is released with v.
func (v *Snapshot) Replace(later *Snapshot) {
	v.Segments, later.Segments = later.Segments, v.Segments
	later.Release()
}

// ReadFile reads a file of the snapshot, of which at most ChunkBytes.
func (v *Snapshot) ReadFile(f FileRef, p []byte, off int64) (int, error) {
	p = p[:min(len(p), ChunkBytes)]
	if f.Checkpoint {
		if v.file == nil || v.file.id != f.At {
			return 0, ErrGone
		}
		return v.file.f.ReadAt(p[:max(0, min(int64(len(p)), v.Checkpoint.Len-off))], off)
	}
	if !slices.ContainsFunc(v.Segments, func(m SegmentMeta) bool { return uint32(m.ID) == f.At }) {
		return 0, ErrGone
	}
	g, err := v.s.acquire(SegID(f.At))
	if err != nil {
		return 0, err
	}
	defer v.s.release(g)
	h, err := v.s.files.acquire(g)
	if err != nil {
		return 0, err
	}
	defer v.s.files.release(h)
	return h.f.ReadAt(p[:max(0, min(int64(len(p)), g.meta.Bytes-off))], off)
}

const copyListVersion = 1

// Append encodes the list.
func (l *CopyList) Append(b []byte) []byte {
	u := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.AppendUvarint(b, v)
		}
	}
	k := &l.Check
	u(copyListVersion, uint64(l.Shard), l.Source, l.Pin, k.Index, uint64(k.File), uint64(k.Base), uint64(k.Len), k.Pairs, uint64(len(k.Extra)))
	b = append(b, k.Extra...)
	u(uint64(len(l.Segments)))
	for _, s := range l.Segments {
		own := uint64(0)
		if s.Own {
			own = 1
		}
		u(uint64(s.At), s.Origin, uint64(s.Seal), uint64(s.Bytes), s.Entries, own, uint64(s.Set))
	}
	return b
}

// ParseCopyList decodes a list.
func ParseCopyList(b []byte) (*CopyList, error) {
	v := varints{b: b}
	if v.u64() != copyListVersion {
		return nil, fmt.Errorf("%w: list of files of an unknown version", ErrInvalid)
	}
	l := &CopyList{Shard: v.u32(), Source: v.u64(), Pin: v.u64()}
	k := &l.Check
	k.Index, k.File, k.Base, k.Len, k.Pairs = v.u64(), v.u32(), int64(v.u64()), int64(v.u64()), v.u64()
	k.Extra = slices.Clone(v.bytes())
	n := v.u64()
	for ; n > 0 && !v.bad; n-- {
		s := CopySegment{At: v.u32(), Origin: v.u64(), Seal: v.u32(), Bytes: int64(v.u64()), Entries: v.u64()}
		s.Own, s.Set = v.u64() != 0, SegID(v.u32())
		v.bad = v.bad || s.Bytes < segmentHeaderLen+segmentTrailerLen || s.Seal == 0
		l.Segments = append(l.Segments, s)
	}
	if v.bad || len(v.b) > 0 || k.Len < checkpointHeaderLen || k.Base < 0 {
		return nil, fmt.Errorf("%w: list of files", ErrInvalid)
	}
	return l, nil
}
