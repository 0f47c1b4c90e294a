package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// Kinds of changes. The values are on disk.
const (
	opAddSegment  uint8 = 1 + iota // shard, id, bytes, entries, own, set
	opDropSegment                  // id
	opCheckpoint                   // shard, file, base, length, pairs, index, extra
	opFlushed                      // shard, WAL sequence, index
	opSet                          // key, value
	opUnset                        // key
	opNextID                       // the least id that no segment has had
	opAddCopy                      // as opAddSegment, then origin, seal
)

// change is one element of an edit; which fields mean something depends on kind.
type change struct {
	kind  uint8
	meta  SegmentMeta // add: shard, id, bytes, entries, own, set; drop: id
	shard uint32
	check CheckpointInfo
	flush Flushed
	key   string
	value []byte
	next  SegID
}

// Edit is a list of changes to the MANIFEST that happen together. The zero value
// is empty and ready for use.
type Edit struct {
	changes []change
}

// AddSegment lists a segment that a Writer or Compact finished.
func (e *Edit) AddSegment(m SegmentMeta) {
	m.Runs = nil
	e.changes = append(e.changes, change{kind: m.addKind(), meta: m})
}

func (m *SegmentMeta) addKind() uint8 {
	if m.Seal != 0 {
		return opAddCopy
	}
	return opAddSegment
}

// adds says whether the change lists a segment.
func (c *change) adds() bool { return c.kind == opAddSegment || c.kind == opAddCopy }

// DropSegment takes a segment off the list.
func (e *Edit) DropSegment(id SegID) {
	e.changes = append(e.changes, change{kind: opDropSegment, meta: SegmentMeta{ID: id}})
}

// SetFlushed records up to where a shard has been flushed.
func (e *Edit) SetFlushed(shard uint32, f Flushed) {
	e.changes = append(e.changes, change{kind: opFlushed, shard: shard, flush: f})
}

// Set stores a setting of the node; a nil value deletes it. Key and value are
// copied.
func (e *Edit) Set(key string, value []byte) {
	if value == nil {
		e.changes = append(e.changes, change{kind: opUnset, key: key})
		return
	}
	e.changes = append(e.changes, change{kind: opSet, key: key, value: bytes.Clone(value)})
}

func (e *Edit) setCheckpoint(shard uint32, c CheckpointInfo) {
	e.changes = append(e.changes, change{kind: opCheckpoint, shard: shard, check: c})
}

// Empty says whether the edit has no changes.
func (e *Edit) Empty() bool { return e == nil || len(e.changes) == 0 }

func (c *change) append(b []byte) []byte {
	b = append(b, c.kind)
	u := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.AppendUvarint(b, v)
		}
	}
	str := func(s []byte) {
		u(uint64(len(s)))
		b = append(b, s...)
	}
	switch c.kind {
	case opAddSegment, opAddCopy:
		own := uint64(0)
		if c.meta.Own {
			own = 1
		}
		u(uint64(c.meta.Shard), uint64(c.meta.ID), uint64(c.meta.Bytes), c.meta.Entries, own, uint64(c.meta.Set))
		if c.kind == opAddCopy {
			u(c.meta.Origin, uint64(c.meta.Seal))
		}
	case opDropSegment:
		u(uint64(c.meta.ID))
	case opCheckpoint:
		k := &c.check
		u(uint64(c.shard), uint64(k.File), uint64(k.Base), uint64(k.Len), k.Pairs, k.Index)
		str(k.Extra)
	case opFlushed:
		u(uint64(c.shard), c.flush.WALSeq, c.flush.Index)
	case opSet:
		str([]byte(c.key))
		str(c.value)
	case opUnset:
		str([]byte(c.key))
	case opNextID:
		u(uint64(c.next))
	}
	return b
}

// parseChange reads one change; a false result means bytes that no change has.
func parseChange(v *varints) (c change, ok bool) {
	c.kind = v.u8()
	switch c.kind {
	case opAddSegment, opAddCopy:
		m := &c.meta
		m.Shard, m.ID = v.u32(), SegID(v.u32())
		m.Bytes, m.Entries = int64(v.u64()), v.u64()
		m.Own, m.Set = v.u64() != 0, SegID(v.u32())
		if c.kind == opAddCopy {
			m.Origin, m.Seal = v.u64(), v.u32()
		}
	case opDropSegment:
		c.meta.ID = SegID(v.u32())
	case opCheckpoint:
		c.shard = v.u32()
		k := &c.check
		k.File, k.Base, k.Len = v.u32(), int64(v.u64()), int64(v.u64())
		k.Pairs, k.Index = v.u64(), v.u64()
		k.Extra = bytes.Clone(v.bytes())
	case opFlushed:
		c.shard = v.u32()
		c.flush = Flushed{v.u64(), v.u64()}
	case opSet:
		c.key = string(v.bytes())
		c.value = append([]byte{}, v.bytes()...)
	case opUnset:
		c.key = string(v.bytes())
	case opNextID:
		c.next = SegID(v.u32())
	default:
		v.bad = true
	}
	return c, !v.bad
}

// manifestShard is what the MANIFEST says of a shard besides its segments.
type manifestShard struct {
	flushed  Flushed
	check    CheckpointInfo
	hasCheck bool
}

// manifestState is what a list of edits amounts to.
type manifestState struct {
	segs     map[SegID]SegmentMeta
	shards   map[uint32]manifestShard
	settings map[string][]byte
	next     SegID // the least id that no listed segment has had
}

func newManifestState() *manifestState {
	return &manifestState{
		segs: map[SegID]SegmentMeta{}, shards: map[uint32]manifestShard{},
		settings: map[string][]byte{}, next: 1,
	}
}

// check says whether the changes make sense, one after the other, in this state.
func (st *manifestState) check(changes []change) error {
	var listed map[SegID]bool // ids that the changes added or dropped
	for i := range changes {
		c := &changes[i]
		id := c.meta.ID
		is, touched := listed[id]
		if !touched {
			_, is = st.segs[id]
		}
		switch {
		case c.adds() && (is || id == 0):
			return fmt.Errorf("%w: segment %d is listed already", ErrInvalid, id)
		case c.kind == opDropSegment && !is:
			return fmt.Errorf("%w: segment %d is not listed", ErrInvalid, id)
		case c.adds() || c.kind == opDropSegment:
			if listed == nil {
				listed = map[SegID]bool{}
			}
			listed[id] = c.adds()
		}
	}
	return nil
}

// apply makes changes that check found sensible.
func (st *manifestState) apply(changes []change) {
	for i := range changes {
		c := &changes[i]
		switch c.kind {
		case opAddSegment, opAddCopy:
			m := c.meta
			m.stats = segmentStats{} // not in the file
			st.segs[m.ID] = m
			st.next = max(st.next, c.meta.ID+1)
		case opDropSegment:
			delete(st.segs, c.meta.ID)
		case opCheckpoint:
			sh := st.shards[c.shard]
			sh.check, sh.hasCheck = c.check, true
			st.shards[c.shard] = sh
		case opFlushed:
			sh := st.shards[c.shard]
			sh.flushed = c.flush
			st.shards[c.shard] = sh
		case opSet:
			st.settings[c.key] = c.value
		case opUnset:
			delete(st.settings, c.key)
		case opNextID:
			st.next = max(st.next, c.next)
		}
	}
}

// applyEncoded applies one frame's payload.
func (st *manifestState) applyEncoded(payload []byte) error {
	v := varints{b: payload}
	var changes []change
	for len(v.b) > 0 {
		c, ok := parseChange(&v)
		if !ok {
			return fmt.Errorf("a change that makes no sense")
		}
		changes = append(changes, c)
	}
	if err := st.check(changes); err != nil {
		return err
	}
	st.apply(changes)
	return nil
}

// encode returns the one edit that leads from nothing to this state.
func (st *manifestState) encode() []byte {
	var b []byte
	add := func(c change) { b = c.append(b) }
	add(change{kind: opNextID, next: st.next})
	for _, id := range slices.Sorted(maps.Keys(st.segs)) {
		m := st.segs[id]
		add(change{kind: m.addKind(), meta: m})
	}
	for _, shard := range slices.Sorted(maps.Keys(st.shards)) {
		sh := st.shards[shard]
		if sh.flushed != (Flushed{}) {
			add(change{kind: opFlushed, shard: shard, flush: sh.flushed})
		}
		if sh.hasCheck {
			add(change{kind: opCheckpoint, shard: shard, check: sh.check})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(st.settings)) {
		add(change{kind: opSet, key: key, value: st.settings[key]})
	}
	return b
}
