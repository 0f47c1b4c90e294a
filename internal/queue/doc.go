// Package queue is the heart of a shard: what is in its logs and who gets it next.
//
// # Ledger and dispatch
//
// The Ledger is replicated state. It names a message by (log, lane, offset) and knows
// of each lane where it ends, what in it is settled, how often an offset came back and
// how far deliveries were promised (reserved). The same operations in the same order
// give the same ledger on each replica; Hash compares them.
//
// The Dispatch is the leader's alone and is lost with its term: consumers, their
// credit, how many messages are in flight, what came back and is ready again. It reads
// the ledger and never changes it: whatever follows from a delivery is proposed by
// its caller and comes back through the ledger.
//
//	        Append                 Run, Get                Acked            Settle
//	(none) -------> ready (head) ----------> in flight ------------> leaving -----> settled
//	                  ^   |                      |                     ^  |
//	                  |   | HoldAll              | Return, no ack      |  | Release
//	                  |   +----------------------)---------------------+  |
//	                  +---- ready (returned) <---+-----------------------+
//
// Only the transitions Append and Settle are the ledger's. A message that is leaving is
// hidden: neither ready nor in flight, until the settlement commits (Settled) or
// is given up (Release).
//
// # What costs what
//
// Nothing here is kept per message, and no operation costs more per message: sets of
// offsets are chunked (Set), operations and deliveries are ranges. A log with one lane
// and nothing settled out of order takes less than 200 bytes.
//
// # Redelivered
//
// Deliveries are not written down. Instead the leader reserves offsets ahead: nothing
// at or beyond a lane's reserved mark has ever been delivered. What is unsettled and
// below the mark when a term starts is flagged as redelivered. At any moment
//
//	reserved <= first unsettled offset never delivered + MaxReserveWindow
//
// so a crash flags at most MaxReserveWindow fresh messages of a lane, however often it
// crashes. See Dispatch.WantReserve.
//
// # What it does not do
//
// It has no goroutines, locks, clocks or I/O; all methods of a Ledger and its Dispatch
// are called from one goroutine, the shard's loop. It does not know bytes: a Locator
// tells where a delivered range lies, as an opaque Source. It does not decide limits,
// expiry or dead-lettering.
package queue
