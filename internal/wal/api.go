package wal

import (
	"errors"
	"time"

	"github.com/sluicemq/sluice/internal/vfs"
)

// Errors that completions and methods return; compare with errors.Is.
var (
	// ErrClosed: the log was closed before the append was taken.
	ErrClosed = errors.New("wal: closed")
	// ErrFailed: a write or sync failed. It is final for this Log: the kernel may
	// have dropped the dirty pages, so nothing is ever written to that file again
	// and every later append gets the same error. The cause is wrapped.
	// ErrVersion: a file has a format that this release does not know.
	ErrVersion = errors.New("wal: format version")
	ErrFailed  = errors.New("wal: failed for good")
	// ErrNoSpace: no room for another file. The append wasn't completed, though
	// its first records may be durable if it is larger than a group. The same
	// records may be submitted again, and go through once files were released or
	// space came back.
	ErrNoSpace = errors.New("wal: no space for another file")
	// ErrTooLarge: a payload exceeds Log.MaxPayload. Nothing was written.
	ErrTooLarge = errors.New("wal: record too large")
	// ErrGap: an entry's index is beyond the shard's last index + 1, or a hard
	// state commits beyond it, as after an earlier append of the shard was refused
	// with ErrNoSpace. Nothing of the append was written.
	ErrGap = errors.New("wal: entry would leave a gap")
	// ErrStale: a record of a shard incarnation that is gone or was superseded.
	ErrStale = errors.New("wal: stale shard incarnation")
	// ErrInvalid: a record with an unknown type or an impossible content.
	ErrInvalid = errors.New("wal: invalid record")
	// ErrGone: the file of a Position was recycled.
	ErrGone = errors.New("wal: file was recycled")
)

// Type says what a record is. The values are on disk.
type Type uint8

const (
	// TypeEntry is a raft entry (Term, Index, Payload). It replaces the shard's
	// earlier entries from Index on.
	TypeEntry Type = 1
	// TypeHardState is a raft hard state: Term, Index = commit, Aux = vote.
	TypeHardState Type = 2
	// TypeLogStart says that a snapshot was installed: the log is empty and
	// begins after Index, whose term is Term; Aux = checkpoint id. It replaces
	// all earlier entries of the shard, above and below.
	TypeLogStart Type = 3
	// TypeShardGone ends an incarnation of a shard: nothing of it is recovered.
	TypeShardGone Type = 4
)

// Record is one record to append. For anything but an entry use the
// constructors HardState.Record, LogStartRecord and ShardGoneRecord.
type Record struct {
	Type        Type
	Shard       uint32
	Incarnation uint64
	Term        uint64
	Index       uint64
	Aux         uint64 // vote or checkpoint id, see Type; 0 for entries
	// Payload is an entry's bytes in chunks, written without gathering. Borrowed:
	// neither the chunks nor the slice of them may change until Done was called.
	Payload [][]byte
	// PayloadCRC is the producer's checksum: CRC-32C of the payload, or what
	// Options.VerifyPayload makes of it.
	PayloadCRC uint32
}

// HardState is what a raft voter must not forget.
type HardState struct {
	Term, Vote, Commit uint64
}

// Record returns the record that stores h for a shard. Within one Append it
// belongs after the entries that its Commit covers.
func (h HardState) Record(shard uint32, incarnation uint64) Record {
	return Record{
		Type: TypeHardState, Shard: shard, Incarnation: incarnation,
		Term: h.Term, Index: h.Commit, Aux: h.Vote,
	}
}

// LogStartRecord returns the record that restarts a shard's log after an
// installed snapshot of index and term, which checkpoint holds.
func LogStartRecord(shard uint32, incarnation, index, term, checkpoint uint64) Record {
	return Record{
		Type: TypeLogStart, Shard: shard, Incarnation: incarnation,
		Term: term, Index: index, Aux: checkpoint,
	}
}

// ShardGoneRecord returns the record that ends an incarnation of a shard.
func ShardGoneRecord(shard uint32, incarnation uint64) Record {
	return Record{Type: TypeShardGone, Shard: shard, Incarnation: incarnation}
}

// Append is the unit of submission: records that are completed together. They
// are not atomic: after a crash, a prefix of an append whose Done wasn't called
// may be there.
//
// An Append without records completes after everything submitted before it and
// writes a sealing group; with NoSync it only completes.
type Append struct {
	// Records are written in this order. Borrowed until Done was called.
	Records []Record
	// NoSync says that nobody waits for durability, for records that only change
	// a commit index. A group with nothing else is written but not synced, and
	// Done(nil) then only means written. Ignored (so: synced) if a record is
	// anything but a hard state with the term and vote last written.
	NoSync bool
	// Done, if not nil, is called once, in order of submission, on the writer
	// goroutine, after the records are durable or have failed. It must not block,
	// and may Submit. Only once the log is closed does Submit itself call it.
	// pos[i] says where the payload of Records[i] lies (length 0 if it has none);
	// the slice is valid only during the call, and nil with an error.
	Done func(err error, pos []Position)
}

// Position says where a payload lies.
type Position struct {
	Seq uint64 // sequence of the file, from 1; 0 = no position
	Off uint32 // bytes from the file's start
	Len uint32 // bytes
}

// ShardState is a row of the shard table in a file's header, and what recovery
// tells about a shard.
type ShardState struct {
	Shard       uint32
	Incarnation uint64
	HardState
	// FirstIndex is the first index that the log may hold: that of the snapshot
	// or compaction point + 1. FirstTerm is the term of FirstIndex-1.
	FirstIndex, FirstTerm uint64
	CheckpointID          uint64
}

// Options configure a Log. The zero value of a field is its default.
type Options struct {
	FS  vfs.FS // required
	Dir string // required; made if missing

	// FileSize is the size of each file in bytes, a multiple of 4096; default
	// 64 MiB, least 32 KiB, most 1 GiB.
	FileSize int64
	// IdleSeal is how long the writer is idle before it writes the empty sealing
	// group that makes damage of the last group evident; default 5 ms.
	IdleSeal time.Duration
	// MaxSpare is how many recycled files are kept for reuse; default 2.
	MaxSpare int
	// Reserve is how many zero-filled files are held back for when no file can be made:
	// the log goes on in them, and says by Events.Low that it does, or soon will. They
	// are made in the background. Default 0.
	Reserve int
	// Recycle, if not nil, says whether a released file may become a spare; else it is
	// removed, because somebody needs its space more.
	Recycle func() bool
	// Tables, if not nil, gives the shards' current FirstIndex, FirstTerm and
	// CheckpointID whenever a file is begun. Term, vote and commit are taken from
	// what was written last, so that a header is never ahead of its log; those in
	// Tables only count for shards the log has no record of. Called on the writer
	// goroutine; must not block on whoever waits for a completion.
	Tables func() []ShardState
	// VerifyPayload, if not nil, decides in recovery whether an entry's payload
	// is the one that crc was made for; default: crc is its CRC-32C. It must not
	// keep payload, and must be safe for concurrent use.
	VerifyPayload func(payload []byte, crc uint32) bool
	// Events are hooks for logging and metrics.
	Events Events

	// Stepped leaves the writing to calls of Step: the log has no goroutine of its own,
	// and its owner decides when what happens.
	Stepped bool
	// Salt is the seed of a new log's checksums; 0: drawn at random.
	Salt uint64

	// inline makes the writer goroutine do the maintenance between groups, so that
	// tests have one order of operations.
	inline bool
}

// Events are called synchronously, on the goroutine where it happens; they must
// be quick. Each may be nil. None is called with a lock of the Log held.
type Events struct {
	// FileSealed: a file is full and closed for writing (the work of the flusher
	// begins here).
	FileSealed func(SealedFile)
	// FileBegun: a file was taken into use.
	FileBegun func(seq uint64)
	// FileRecycled: a released file left the log; reused tells whether it became
	// a spare or was removed.
	FileRecycled func(seq uint64, reused bool)
	// NoSpace: a file could not be made; appends are being refused.
	NoSpace func(err error)
	// Low: no file can be made, for want of space, so that only the file in use and the
	// reserve are left; or there are spares besides the reserve again. Who appends what
	// can wait should do so in between.
	Low func(yes bool)
	// MaintenanceFailed: recycling a file, or preparing one ahead, failed; it is
	// tried again at the next occasion.
	MaintenanceFailed func(err error)
	// Failed: the log failed for good.
	Failed func(err error)
	// Synced: a group of n bytes was written and synced, in d altogether.
	Synced func(n int, d time.Duration)
}

// SealedFile describes a file that will not be written any more.
type SealedFile struct {
	Seq    uint64
	Bytes  int64 // in use, headers and padding included
	Shards []ShardRange
}

// ShardRange is what a file holds of a shard that still counts: entries that
// were replaced by later files are left out.
type ShardRange struct {
	Shard       uint32
	Incarnation uint64
	First, Last uint64 // entry indexes, inclusive
	Bytes       int64  // payload bytes of the entries
}

// Metrics are counters since Open, and gauges.
type Metrics struct {
	Records, Groups, Syncs, Bytes uint64 // written; Bytes with headers and padding
	Files, Spares, Queued         int    // live files, spare files, appends waiting
}

// Entry is a recovered raft entry.
type Entry struct {
	Index, Term uint64
	Pos         Position
	PayloadCRC  uint32
	// Payload is valid until the callback returns; nil if not asked for or
	// Damaged.
	Payload []byte
	// Damaged says that the entry's bytes are not what was written. Its Index and
	// Term are right.
	Damaged bool
}
