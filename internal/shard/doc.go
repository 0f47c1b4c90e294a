// Package shard orders commands: a shard is one Raft group (a single node is a group
// of one voter, through the same code) whose committed batches are applied to a
// Machine. It does not know what the commands mean and never parses a message; the
// bytes it orders lie in chunks that connections encoded.
//
// # Payload by reference
//
// Raft sees 16 bytes an entry (proposal number and length). The payload lies in a slot
// of the entry log by index until it is applied, and after that in the WAL; the sender
// of a peer puts it in, from either place. Raft's own byte limits therefore mean
// nothing: one entry a message, and limits of our own: proposals on their way to the WAL
// (Config.MaxInflight), and bytes that senders have not seen applied (Shard.SubmitWait).
//
// # One goroutine
//
// Core is the state machine without goroutines: every method is called by the one that
// owns it, the loop of Shard in the product, a test's own in a simulation. It never
// reads a disk and never waits: the WAL answers through an inbox. An entry is applied
// when it is committed and durable here, so a checkpoint never gets ahead of the WAL.
//
// # Links
//
// Each node numbers the submissions that it sends to a shard; a link is that sequence.
// The ledger of links accepts exactly the next number, so nothing is lost, doubled or
// reordered across a change of leader: the node keeps what isn't applied and offers it
// again to whoever leads. The local case is the same path. A link's id is the node and
// its incarnation; a newer incarnation of a node ends the older one.
package shard
