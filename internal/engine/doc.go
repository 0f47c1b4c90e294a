// Package engine is a shard's machine for queues: it joins the ledger (what is in the
// logs), the dispatch (who gets it next) and the places (where the bytes lie), and
// keeps the node's disk in order.
//
// A Machine is applied and driven by its shard's loop. It never reads a disk and does
// no work per message: it applies operations, and delivers ranges. Sessions reach it
// through methods that post to the loop.
//
// # Places
//
// An applied submission is an entry of the tail: its position in the WAL and, while
// the tail cache has room, its chunk. Per log and lane there is one note for each
// append operation in the tail, and a sorted list of runs in segments for what was
// flushed. A delivery carries a hint to its note; a Reader resolves it on the
// connection's own goroutine: chunk, else WAL file, else segment. Whatever the hint
// says, the runs are looked up last, so a hint that has become stale does no harm; a
// message found nowhere has been settled meanwhile.
//
// # Outboxes
//
// What a shard owes another shard is a record in its hidden log for that shard, written
// by the command that causes it (Builder.Owe). The leader consumes such logs like a
// session would; its mover reads the records, which are submissions, and offers them
// through a Transport to the target, as a link whose numbers are the offsets: so the
// target applies each exactly once. It answers how far it is, and what has arrived is
// settled. At start, and when either side's leader changes, the source asks and begins
// again from there.
//
// # Consumers of other nodes
//
// What a consumer holds is known by its node's gateway (gateway.go), so it outlives the
// shard's leader. If the leader is on this node the consumer is in the dispatch itself,
// else a proxy of it is in the leader's (leader.go, proxy.go), and both sides talk by
// Messages, which the network may lose: see Message. Everything there is done on shard
// loops, but for Message.Load, which reads the records that a delivery carries.
//
// # Upkeep
//
// One goroutine per node (Keeper) moves what is still unsettled in the oldest WAL file
// into segments once the sealed files exceed their budget, sees to it that a
// checkpoint covers the file, and gives the file back; it drops dead segments and
// rewrites those that are mostly dead. A volatile shard, which has no WAL, spills the
// same way when its chunks exceed their budget.
package engine
