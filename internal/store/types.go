package store

import (
	"errors"
	"fmt"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// SegID names a segment of this node. Ids ascend over all shards and are not
// used again.
type SegID uint32

// Run is a log's contiguous part of a segment: Count entries of (Log, Lane) with
// offsets between First and Last, both present. 48 bytes; a log's runs are kept
// by the caller, sorted by First.
type Run struct {
	Log   msg.LogID
	First msg.Offset
	Last  msg.Offset
	Seg   SegID
	Pos   uint32 // bytes from the file's start
	Size  uint32 // bytes from Pos, without the run's index
	Count uint32
	Dir   uint32 // ordinal in the segment's directory
	Lane  uint8
	Flags RunFlags
}

// RunFlags say what reading a run takes.
type RunFlags uint8

const (
	// RunIndexed is set if the run has several blocks and an index behind them.
	RunIndexed RunFlags = 1 << iota
	// RunShared is set if entries of the run refer to shared bodies.
	RunShared
)

// SegmentMeta describes a finished segment.
type SegmentMeta struct {
	ID      SegID
	Shard   uint32
	Bytes   int64  // size of the file
	Entries uint64 // records, shared ones counted each time
	// Own: the file holds OwnRunBytes or more of a single log. It is never merged.
	Own bool
	// Set names the flush that wrote the segment, or the oldest of those whose
	// entries were merged into it: it orders segments by age. What is not Own of a
	// set counts as one when segments are merged.
	Set SegID
	// Origin and Seal name a file that another store wrote: that store's identity and
	// the file's id there, with which its checksums are made. Both 0 for own files.
	Origin uint64
	Seal   uint32
	// Runs by ascending (Log, Lane, First); those of a log don't overlap. Owned by
	// the caller; nil in Store.Segments.
	Runs []Run

	stats segmentStats
}

// seal returns the id with which the file's checksums are made.
func (m *SegmentMeta) seal() uint32 {
	if m.Seal != 0 {
		return m.Seal
	}
	return uint32(m.ID)
}

// Errors; compare with errors.Is.
var (
	// ErrGone: the segment was dropped and nobody had pinned it. The caller looks
	// up the run that replaced it.
	ErrGone = errors.New("store: segment is gone")
	// ErrFailed: writing the MANIFEST failed in a way that leaves its contents
	// unknown. Final for this Store: reading goes on, edits do not.
	ErrFailed = errors.New("store: failed for good")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store: closed")
	// ErrOrder: entries were not added by ascending (log, lane, offset).
	ErrOrder = errors.New("store: entries out of order")
	// ErrInvalid: an argument that contradicts the store's state or a record that
	// is not one.
	ErrInvalid = errors.New("store: invalid argument")
	// ErrDamaged: what was read is not what was written. The error is a
	// *DamageError.
	ErrDamaged = errors.New("store: damaged")
)

// DamageError says what can't be read. Everything else of the segment still can.
type DamageError struct {
	Path  string // relative to the store's directory
	Seg   SegID  // 0 when it is not a segment
	Shard uint32
	// HasRange: the damage affects only what (Log, Lane) has between First and
	// Last, inclusive.
	HasRange    bool
	Log         msg.LogID
	Lane        uint8
	First, Last msg.Offset
	Pos, Len    int64 // bytes in the file
	Reason      string
}

// Error names the file, the place and, if known, the offsets.
func (e *DamageError) Error() string {
	s := fmt.Sprintf("store: damaged: %s at %d: %s", e.Path, e.Pos, e.Reason)
	if e.HasRange {
		s += fmt.Sprintf(" (log %d lane %d offsets %d to %d)", e.Log, e.Lane, e.First, e.Last)
	}
	return s
}

// Is makes errors.Is(err, ErrDamaged) true.
func (e *DamageError) Is(target error) bool { return target == ErrDamaged }

// Options configure a Store. The zero value of a field is its default.
type Options struct {
	FS  vfs.FS // required
	Dir string // required; made if missing

	SegmentBytes int64 // size at which a writer begins a new file; default 64 MiB
	OwnRunBytes  int64 // a run this large gets files of its own; default 4 MiB
	CacheBytes   int64 // budget of the block cache; default 8 MiB
	OpenFiles    int   // segment files kept open; default 256
	// ManifestBytes is the size over which the MANIFEST is rewritten; default 1 MiB.
	ManifestBytes int64
	// CheckpointBytes is the least size of deltas that leads to a new base;
	// default 1 MiB.
	CheckpointBytes int64
	// Identity tells this store's files from those of others it exchanges files with.
	// 0: what the directory has, or a random number. Fixed when it is first needed.
	Identity uint64
	// Events are hooks for logging and metrics.
	Events Events
}

// Events are called synchronously where it happens, with no lock held but that
// of edits; they must be quick and must not call the store. Each may be nil.
type Events struct {
	// Damaged: something could not be read.
	Damaged func(*DamageError)
	// Removed: a file was unlinked; orphan if no MANIFEST listed it.
	Removed func(path string, orphan bool)
	// Deferred: upkeep that nobody waits for (rewriting MANIFEST or a checkpoint's
	// base, an unlink) failed and will be tried again.
	Deferred func(what string, err error)
}

// Recovery is what Open found.
type Recovery struct {
	Shards   []RecoveredShard // by ascending Shard
	Segments int
	Bytes    int64 // of the segments
	Orphans  int   // files removed because no MANIFEST lists them
	// Damages are edits of the MANIFEST that were read from their copies, checkpoint
	// files that are missing, and segments that are, or whose directory can't be read.
	// The runs that a scan of their blocks found are in Shards; the caller must report
	// the rest, and call ReplaceManifest when the bytes have been put aside.
	Damages []*DamageError
}

// RecoveredShard is what the store holds of a shard.
type RecoveredShard struct {
	Shard uint32
	// Runs by ascending (Log, Lane, First). Owned by the caller.
	Runs []Run
}

// Flushed says up to where a shard's entries need no WAL: what was unsettled up
// to Index (in WAL files up to WALSeq) lies in segments.
type Flushed struct {
	WALSeq uint64
	Index  uint64
}

// CheckpointInfo describes a shard's last committed checkpoint.
type CheckpointInfo struct {
	Index uint64 // of the raft log, as given to Commit
	Extra []byte // as given to Commit
	File  uint32 // id of the file under ckpt/<shard>
	Base  int64  // bytes of the base
	Len   int64  // valid bytes of the file
	Pairs uint64 // written to the file, deletes and replaced ones included
}

// Metrics are counters since Open, and gauges.
type Metrics struct {
	Segments, Pinned          int // listed; dropped but pinned
	SegmentBytes              int64
	LiveBytes, DeadBytes      int64 // of entries and bodies in the segments, estimated
	CacheHits, CacheMisses    uint64
	CacheBytes                int64
	OpenFiles                 int
	BytesWritten, BytesRead   uint64 // of segments
	Edits, ManifestRewrites   uint64
	BaseRewrites, Compactions uint64
}
