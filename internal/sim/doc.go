// Package sim runs several whole nodes (shards, write-ahead log, store, upkeep) with
// their clients in one goroutine, over a network, disks and clocks of its own, from a
// seed: the same seed does the same, event for event. It breaks things on purpose, and a
// checker looks at everything that clients are told.
//
// # Events
//
// Whatever happens is an event in a heap by virtual time. What the product writes as
// sequential code that waits (flushing, checkpoints, a session's calls to a shard) runs
// as a coroutine: it gives way where it would wait and goes on when an event says so.
// Nothing reads the real clock, nothing depends on the order of a map. Raft draws its
// election timeouts from crypto/rand, whose Reader is exchanged during a run; so there is
// one run at a time in a process.
//
// # Faults
//
// Messages between nodes are delayed, lost, repeated and reordered; nodes are cut off, in
// one direction or both; processes die, with or without their disk's unsynced writes, at
// any operation on the disk; disks are slow or full; nodes stand still; clocks run unevenly
// and jump.
//
// # Checker
//
// It sees each applied command of each replica, each delivery and each answer to a client,
// and keeps a model of what must be in the queues. See history.go for what must hold.
package sim
