// Package wal is the one write-ahead log of a node, shared by all its shards.
//
// Whatever any shard appends while the disk is busy goes out in one vectored
// write and one fdatasync (group commit). The log knows raft entries, hard
// states and log starts; it does not know what is in a payload, does not decide
// when a file is no longer needed, and does not repair what is damaged: it
// reports.
//
// # Files
//
// A log is a directory of files `<seq>.wal`, seq in 16 hex digits and without
// gaps, of equal size, zero-filled when they are made and then reused:
//
//	.tmp --zero-filled, synced--> .spare --header written, synced--> <seq>.wal
//	  ^                             ^                                    |
//	removed at Open                 +------------- released -------------+
//
// A file gets its number by the rename that follows the sync of its header, and
// the file before it was finished and synced before that. So a file of any
// number has a valid header, and all files but the last are complete: whatever
// contradicts this is damage. Files leave in the order of their numbers, each
// with a sync of the directory.
//
//	file    = header group* (old groups of the file's former life, zeros)
//	header  = magic version length seq salt firstGroup fileSize shards crc table
//	group   = header record*, padded with zeros to 512
//	          magic flags fileSeq groupSeq length records syncedThrough salt crc
//	record  = header payload, padded with zeros to 8
//	          len type shard payloadCRC incarnation term index ordinal headerCRC
//
// Integers are little-endian, checksums CRC-32C. The file header is a multiple
// of 4096 bytes and carries the shard table: each shard's incarnation, term,
// vote, commit, first index, first term and checkpoint. The table in the oldest
// file is why the files before it were not needed any more.
//
// The checksum of a record's header is seeded with salt, file and group, so that
// neither a record of the file's former life nor bytes that a client put into a
// message are ever taken for a record. The salt is drawn when a log is made.
// payloadCRC belongs to the producer of the payload.
//
// Records are read in their order in the log, and the last writer wins: an entry
// replaces all earlier entries of its shard from its index on, a log start
// replaces them all, a higher incarnation replaces the shard.
//
// # Torn or damaged
//
// One write is in flight at a time, and a group says how far the file was
// synced before it (syncedThrough). An invalid group at q is damage if a later
// group of the file promises more than q or if there is a later file; else it is
// the torn last write, of which nothing was confirmed, and all of it is cut by
// zeroing. To give the last group such a witness too, an empty group is written
// (not synced) when the writer is idle, and synced at Close. The last group of
// a finished file has the flag final.
//
// Open writes what has no witness yet once more and syncs it: after a kill of
// the process it may be in the page cache only, and after a failed sync it may
// never have reached the disk although reading gives it.
//
// # Errors
//
// A failed write or sync is final (ErrFailed): the kernel may have dropped the
// pages, so the file isn't written again. A full disk is not: appends are refused
// with ErrNoSpace only if a new file is needed and neither a spare nor room is
// there, and go through when there is. With Options.Reserve that comes late: spares
// are held back for when no file can be made, and Events.Low tells in time. After a refusal, later entries of the
// shard are refused too until the refused index comes again (ErrGap), so that a
// log never has a hole.
//
// # Concurrency
//
// A writer goroutine owns the file being written, and what the shards have
// written last. A maintenance goroutine prepares spares and recycles. Everything
// else is two leaf mutexes: of the queue, and of the table of files. Completions
// run on the writer goroutine.
package wal
