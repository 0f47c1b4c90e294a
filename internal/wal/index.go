package wal

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// index is what a scan learns about the shards: the last writer's state of each
// and where its entries lie. It is bounded by the number of records.
type index struct {
	shards map[uint32]*shardIndex
}

// shardIndex is one shard's part. Entries form runs of consecutive indexes; more
// than one run means that something between them is missing.
type shardIndex struct {
	ShardState
	gone    bool
	started uint64 // index of the last log start, 0 = none
	runs    []run
}

type run struct {
	first uint64
	locs  []loc
}

func (r run) last() uint64 { return r.first + uint64(len(r.locs)) - 1 }

// loc is one entry.
type loc struct {
	term   uint64
	file   uint32 // ordinal in scan.files; badBit set if its payload is damaged
	off    uint32
	length uint32
	crc    uint32
}

const badBit = 1 << 31

func (l loc) ordinal() int { return int(l.file &^ badBit) }

func newIndex() *index { return &index{shards: map[uint32]*shardIndex{}} }

// shard returns the part of a shard's incarnation, or nil if that was superseded
// or is gone.
func (x *index) shard(id uint32, incarnation uint64) *shardIndex {
	s := x.shards[id]
	if s == nil || incarnation > s.Incarnation {
		s = &shardIndex{ShardState: ShardState{Shard: id, Incarnation: incarnation}}
		x.shards[id] = s
	}
	if s.gone || incarnation < s.Incarnation {
		return nil
	}
	return s
}

// table takes in the shard table of a file's header.
func (x *index) table(rows []ShardState) {
	for _, row := range rows {
		s := x.shard(row.Shard, row.Incarnation)
		if s == nil {
			continue
		}
		s.HardState = row.HardState
		s.compact(row.FirstIndex, row.FirstTerm, row.CheckpointID)
	}
}

// compact takes over a first index if it is news.
func (s *shardIndex) compact(first, term, checkpoint uint64) {
	if first >= s.FirstIndex {
		s.FirstIndex, s.FirstTerm, s.CheckpointID = first, term, checkpoint
	}
}

// record takes in a record of the given file, whose payload lies at off. An entry
// with a damaged payload is known by its header; the rest is only reported.
func (x *index) record(r *parsedRecord, file uint32, off int64) {
	s := x.shard(r.shard, r.incarnation)
	if s == nil {
		return
	}
	if r.typ != TypeEntry && !r.payloadOK {
		return
	}
	switch r.typ {
	case TypeEntry:
		l := loc{term: r.term, file: file, off: uint32(off), length: r.length, crc: r.payloadCRC}
		if !r.payloadOK {
			l.file |= badBit
		}
		s.entry(r.index, l)
	case TypeHardState:
		s.HardState = HardState{Term: r.term, Vote: le.Uint64(r.payload), Commit: r.index}
	case TypeLogStart:
		s.started, s.runs = r.index, nil
		s.FirstIndex, s.FirstTerm, s.CheckpointID = r.index+1, r.term, le.Uint64(r.payload)
	case TypeShardGone:
		s.gone, s.runs = true, nil
	}
}

func (s *shardIndex) entry(i uint64, l loc) {
	for len(s.runs) > 0 {
		r := &s.runs[len(s.runs)-1]
		if i == r.last()+1 {
			r.locs = append(r.locs, l)
			return
		}
		if i > r.last() {
			break
		}
		if i > r.first {
			r.locs = append(r.locs[:i-r.first], l)
			return
		}
		s.runs = s.runs[:len(s.runs)-1]
	}
	s.runs = append(s.runs, run{first: i, locs: []loc{l}})
}

// finish drops what is compacted and reports what is missing.
func (x *index) finish() []Damage {
	var damages []Damage
	for _, id := range slices.Sorted(maps.Keys(x.shards)) {
		s := x.shards[id]
		if s.gone {
			continue
		}
		s.trim()
		damages = append(damages, s.missing()...)
	}
	return damages
}

func (s *shardIndex) trim() {
	for len(s.runs) > 0 && s.runs[0].first < s.FirstIndex {
		r := &s.runs[0]
		if r.last() >= s.FirstIndex {
			r.locs = r.locs[s.FirstIndex-r.first:]
			r.first = s.FirstIndex
			return
		}
		s.runs = s.runs[1:]
	}
}

// missing reports gaps between entries, and a commit index beyond the last one.
// A log without entries says nothing: they may have been released.
func (s *shardIndex) missing() []Damage {
	var damages []Damage
	report := func(first, last uint64, reason string) {
		damages = append(damages, Damage{
			HasShard: true, Shard: s.Shard, First: first, Last: last, Reason: reason,
		})
	}
	known := s.started
	if known > 0 && s.FirstIndex > known {
		known = s.FirstIndex - 1 // the entries in between were compacted
	}
	for _, r := range s.runs {
		if known > 0 && r.first > known+1 {
			report(known+1, r.first-1, "entries missing")
		}
		known = r.last()
	}
	if known > 0 && s.Commit > known {
		report(known+1, s.Commit, fmt.Sprintf("entries missing, commit index is %d", s.Commit))
	}
	return damages
}

// recovered lists the shards that exist.
func (x *index) recovered(damages []Damage) []RecoveredShard {
	var list []RecoveredShard
	for _, s := range x.shards {
		if s.gone {
			continue
		}
		r := RecoveredShard{ShardState: s.ShardState, Started: s.started}
		if len(s.runs) > 0 {
			end := s.runs[len(s.runs)-1]
			r.FirstEntry, r.LastIndex = s.runs[0].first, end.last()
			r.LastTerm = end.locs[len(end.locs)-1].term
		}
		r.Damaged = slices.ContainsFunc(damages, func(d Damage) bool {
			return !d.HasShard || d.Shard == s.Shard
		})
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b RecoveredShard) int { return cmp.Compare(a.Shard, b.Shard) })
	return list
}

// ranges returns for each file what it holds that still counts.
func (x *index) ranges(files int) []map[uint32]*ShardRange {
	list := make([]map[uint32]*ShardRange, files)
	for i := range list {
		list[i] = map[uint32]*ShardRange{}
	}
	for id, s := range x.shards {
		for _, r := range s.runs {
			for i, l := range r.locs {
				addRange(list[l.ordinal()], id, s.Incarnation, r.first+uint64(i), int64(l.length))
			}
		}
	}
	return list
}

// addRange extends a file's range of a shard by an entry, in log order.
func addRange(m map[uint32]*ShardRange, shard uint32, incarnation, i uint64, bytes int64) {
	r := m[shard]
	if r == nil || r.Incarnation != incarnation {
		r = &ShardRange{Shard: shard, Incarnation: incarnation, First: i}
		m[shard] = r
	}
	r.First, r.Last = min(r.First, i), i
	r.Bytes += bytes
}

// clipRange drops from a file's range of a shard what entries from index i on
// replace.
func clipRange(m map[uint32]*ShardRange, shard uint32, i uint64) {
	r := m[shard]
	switch {
	case r == nil || r.Last < i:
	case r.First >= i:
		delete(m, shard)
	default:
		r.Last = i - 1
	}
}

func sortedRanges(m map[uint32]*ShardRange) []ShardRange {
	list := make([]ShardRange, 0, len(m))
	for _, id := range slices.Sorted(maps.Keys(m)) {
		list = append(list, *m[id])
	}
	return list
}
