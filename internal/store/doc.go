// Package store knows where the bytes of (log, lane, offset) lie on this node: in
// immutable segment files, named by a MANIFEST, with the checkpoint files of the
// shards beside them. It knows nothing of raft, ledgers or consumers: which
// offsets are unsettled is told to it as immutable lists of ranges, so that each
// replica may flush and compact at its own time.
//
// # Files
//
//	MANIFEST             the only truth about the other files
//	seg/<shard>/<id>.seg segments, immutable
//	ckpt/<shard>/<id>    checkpoint files, appended to
//
// A file that the MANIFEST does not list is a leftover of a crash and is deleted
// by Open. A crash at any point leaves the state before or after an Install or a
// Commit, never one in between.
//
// # Life of a segment
//
//	Writer.Add ... Finish     written and synced, unknown to the MANIFEST
//	Install(AddSegment)       listed: its runs may be read
//	SetLive, AddDead          entries are settled, its live share falls
//	Compact, Install          survivors moved to another segment
//	Install(DropSegment)      unlisted: unlinked when the last pin lets go
//
// # Segment file
//
// A segment is a chain of blocks between a header and a trailer:
//
//	header   magic u64, shard u32, id u32
//	block*   u32 checksum, u32 length of the block, u8 kind, payload
//	trailer  counts, the positions of directory and due pages, its own CRC
//
// The checksum is the CRC-32C of what follows it, mixed with the file's id and the
// block's position. Kinds of blocks:
//
//	entries    one run's entries: uvarint log, u8 lane, u16 count, uvarint first
//	           offset; then per entry a uvarint offset delta<<1|shared and either
//	           the record or a reference (uvarint position of the block, of the
//	           record in it, size) to a body of this file. The kind of a run's
//	           second and later blocks has the highest bit set.
//	bodies     records that several entries of this file share, each stored once
//	index      behind a run of several blocks: per block u64 first offset and
//	           u32 position
//	due        uvarint-coded (time, log, lane, offset), ascending by time
//	directory  uvarint-coded runs, ascending by (log, lane, first offset)
//
// A block holds entries of one run only, so a small run is read by one pread of
// just its own bytes and needs no index in memory, and damage is known by log and
// offset. Since blocks say what they are, a segment whose directory was damaged
// is still read, by a scan. Blocks are closed at 16 KiB so that they fill the
// chunks of package buf, and a record larger than that has a block of its own.
//
// # What it does not do
//
// It starts no goroutines and keeps no clock: flushing, compacting and
// checkpointing run on the caller's. It does not lock the data directory. It does
// not keep the records that are still in the WAL.
//
// # Concurrency
//
// Store's methods are safe for concurrent use, with two exceptions: at most one
// CheckpointWriter per shard, and at most one Compact per segment at a time. A
// Writer, a CheckpointWriter, a Compaction, a DueList and a Block belong to one
// goroutine. Lock order: Store.editMu, Store.mu, segment.mu; caches are leaves.
package store
