package wal

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Recovery is what Open found. It stays valid as long as the Log, but Replay
// only until the files it needs are released; drop it after replaying, since it
// holds an index of all entries (24 bytes each).
type Recovery struct {
	Shards   []RecoveredShard // by ascending Shard; incarnations that are gone are left out
	Files    int
	Bytes    int64 // of valid groups and headers
	Duration time.Duration
	// Torn is what was cut, nil if the log ended cleanly. Nothing in it was ever
	// confirmed.
	Torn *TornTail
	// Damages are never empty if something that was confirmed may be missing.
	Damages []Damage

	read  func(pos Position, off int, buf []byte) error
	index *index
	seqs  []uint64 // by ordinal in the index
}

// RecoveredShard is the last state of a shard.
type RecoveredShard struct {
	ShardState
	// FirstEntry and LastIndex are the indexes of the first and last entry in the
	// log; both 0 if there is none. FirstEntry may be above FirstIndex if the
	// files before were released. LastTerm is the term of LastIndex. A LastIndex
	// below what a manifest says was durable is damage too (the last files are
	// gone), which only the caller can see.
	FirstEntry, LastIndex, LastTerm uint64
	// Started is the index of the last log start (installed snapshot) in the log,
	// 0 if none. The entries listed came after it.
	Started uint64
	// Damaged: a damage names this shard, or one names no shard. A replicated
	// shard must not vote or campaign until its leader has matched it.
	Damaged bool
}

// TornTail is the incomplete last write of a crash.
type TornTail struct {
	Seq uint64 // file
	Off int64  // bytes; the log ends here
	Len int64  // bytes zeroed from there on
}

// Damage is something that was synced and is not as it was written.
type Damage struct {
	// Shard and the inclusive range of entry indexes that are affected, if
	// HasShard; First is 0 when the range is unknown, or no entry is concerned.
	// Without HasShard every shard is suspect.
	HasShard    bool
	Shard       uint32
	First, Last uint64
	Seq         uint64 // file, 0 if it is about the log as a whole
	Off, Len    int64  // bytes in the file
	// Records: records of any shard may have been here that nothing else tells of.
	Records bool
	Reason  string
}

// String describes the damage in one line for an operator.
func (d Damage) String() string {
	where := "log"
	if d.Seq != 0 {
		where = fmt.Sprintf("file %s offset %d length %d", fileName(d.Seq), d.Off, d.Len)
	}
	switch {
	case d.HasShard && d.First != 0:
		return fmt.Sprintf("%s: shard %d entries %d to %d: %s", where, d.Shard, d.First, d.Last, d.Reason)
	case d.HasShard:
		return fmt.Sprintf("%s: shard %d: %s", where, d.Shard, d.Reason)
	}
	return fmt.Sprintf("%s: %s", where, d.Reason)
}

// Error is String.
func (d Damage) Error() string { return d.String() }

// Damaged tells whether anything confirmed may be missing.
func (r *Recovery) Damaged() bool { return len(r.Damages) > 0 }

// Shard returns the recovered state of a shard, if the log knows it.
func (r *Recovery) Shard(shard uint32) (RecoveredShard, bool) {
	i, ok := slices.BinarySearchFunc(r.Shards, shard, func(s RecoveredShard, id uint32) int {
		return cmp.Compare(s.Shard, id)
	})
	if !ok {
		return RecoveredShard{}, false
	}
	return r.Shards[i], true
}

// Replay calls fn for each recovered entry of a shard in order of its index;
// indexes that are missing (see Damages) are passed over. Payloads are read for
// indexes >= from, one at a time. Several shards may be replayed concurrently. It
// stops at the first error of fn or of reading and returns it.
func (r *Recovery) Replay(shard uint32, from uint64, fn func(Entry) error) error {
	s := r.index.shards[shard]
	if s == nil || s.gone {
		return nil
	}
	var buf []byte
	for _, run := range s.runs {
		for i, l := range run.locs {
			e := Entry{
				Index: run.first + uint64(i), Term: l.term, PayloadCRC: l.crc,
				Pos:     Position{Seq: r.seqs[l.ordinal()], Off: l.off, Len: l.length},
				Damaged: l.file&badBit != 0,
			}
			if e.Index >= from && !e.Damaged {
				buf = slices.Grow(buf[:0], int(l.length))[:l.length]
				if err := r.read(e.Pos, 0, buf); err != nil {
					return fmt.Errorf("shard %d entry %d: %w", shard, e.Index, err)
				}
				e.Payload = buf
			}
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	return nil
}
