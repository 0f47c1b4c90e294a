package wal

import "time"

// Recovery is what Open found. It stays valid as long as the Log, but Replay
// only until the files it needs are released; drop it after replaying, since it
// holds an index of all entries (32 bytes each).
type Recovery struct {
	Shards   []RecoveredShard // by ascending Shard; incarnations that are gone are left out
	Files    int
	Bytes    int64 // read in groups and headers
	Duration time.Duration
	// Torn is what was cut, nil if the log ended cleanly. Nothing in it was ever
	// confirmed.
	Torn *TornTail
	// Damages are never empty if something that was confirmed may be missing.
	Damages []Damage

	log *Log
}

// RecoveredShard is the last state of a shard.
type RecoveredShard struct {
	ShardState
	// Entries in the log, inclusive; LastIndex < FirstEntry (and both 0) if there
	// are none. FirstEntry may be above FirstIndex if the files before were
	// released.
	FirstEntry, LastIndex uint64
	LastTerm              uint64
	// Started is the index of a log start (installed snapshot) that was found
	// after everything else of the shard except the entries listed; 0 if none.
	Started uint64
	// Damaged: a damage names this shard, or one names no shard. A replicated
	// shard must not vote or campaign until its leader has matched it.
	Damaged bool
}

// TornTail is the incomplete last write of a crash.
type TornTail struct {
	Seq uint64 // file
	Off int64  // bytes; everything from here on was zeroed
	Len int64  // bytes zeroed
}

// Damage is something that was synced and is not as it was written.
type Damage struct {
	// Shard and the inclusive range of entry indexes that are affected, if
	// HasShard; First is 0 when the range is unknown. Without HasShard every
	// shard is suspect.
	HasShard    bool
	Shard       uint32
	First, Last uint64
	Seq         uint64 // file, 0 if it concerns none
	Off, Len    int64  // bytes in the file
	Reason      string
}
