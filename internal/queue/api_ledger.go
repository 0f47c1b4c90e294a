package queue

import "github.com/sluicemq/sluice/internal/msg"

// Code is the kind of an append's outcome.
type Code uint8

// Outcomes of an append to one target.
const (
	Appended  Code = iota // stored at First
	Unknown               // the ledger has no such log; not an error of the batch
	Sealed                // the log takes no more appends
	Duplicate             // the producer's messages are there already, at First
	Refused               // the precondition does not hold; see Outcome.Why
)

// Refusal says which part of a precondition did not hold.
type Refusal uint8

// The reasons of Refused.
const (
	NotRefused    Refusal = iota
	TailMoved             // Cond.Tail is not the lane's tail
	ProducerEpoch         // a newer epoch of the producer has appended
	ProducerSeq           // the sequence leaves a gap, or overlaps what is stored only in part
)

// NoOffset is the First of a Duplicate whose place is no longer known: the ledger
// remembers where each producer's last append lies, not older ones.
const NoOffset = ^msg.Offset(0)

// Outcome is what became of an append to one target.
type Outcome struct {
	Code  Code
	Why   Refusal
	First msg.Offset // Appended, Duplicate: offset of the first message (or NoOffset)
}

// LinkOutcome is what Accept says of a submission's number.
type LinkOutcome uint8

// Outcomes of Accept.
const (
	LinkAccept    LinkOutcome = iota // the next one: apply it
	LinkDuplicate                    // applied before: skip it
	LinkGap                          // an earlier one is missing: skip it, the sender repeats from Last+1
)

// EnsureOutcome is what Ensure did.
type EnsureOutcome uint8

// Outcomes of Ensure.
const (
	EnsureSame    EnsureOutcome = iota // the log exists with this profile
	EnsureMade                         // the log is new
	EnsureChanged                      // the log exists, its profile was another
	EnsureGone                         // the id was deleted and is not made again
)

// Ledger is the replicated state of a shard's logs.
type Ledger struct{}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger { panic("unbuilt") }

// Len returns the number of logs.
func (l *Ledger) Len() int { panic("unbuilt") }

// Logs calls fn with each log's id, in no particular order, until fn returns false.
func (l *Ledger) Logs(fn func(log msg.LogID) bool) { panic("unbuilt") }

// Has reports whether the log exists.
func (l *Ledger) Has(log msg.LogID) bool { panic("unbuilt") }

// Profile returns the log's profile.
func (l *Ledger) Profile(log msg.LogID) (Profile, bool) { panic("unbuilt") }

// IsSealed reports whether the log exists and refuses appends.
func (l *Ledger) IsSealed(log msg.LogID) bool { panic("unbuilt") }

// Lane returns a lane of a log for reading, ok=false when the log does not exist or
// nothing was ever appended to the lane (lane 0 always exists). The pointer is valid until the log
// is deleted.
func (l *Ledger) Lane(log msg.LogID, lane uint8) (ln *Lane, ok bool) { panic("unbuilt") }

// Lanes calls fn with each lane of a log, lowest first, until fn returns false.
func (l *Ledger) Lanes(log msg.LogID, fn func(lane uint8, ln *Lane) bool) { panic("unbuilt") }

// Append adds n > 0 messages at the end of a lane, if c holds.
func (l *Ledger) Append(log msg.LogID, lane uint8, n int, c *msg.Cond) Outcome { panic("unbuilt") }

// Settle marks the offsets of r as done with and returns how many weren't before.
func (l *Ledger) Settle(log msg.LogID, lane uint8, r msg.Range, why msg.Reason) (newly uint64) {
	panic("unbuilt")
}

// Return raises the delivery count of the unsettled offsets of r if count is set; else
// it changes nothing.
func (l *Ledger) Return(log msg.LogID, lane uint8, r msg.Range, count bool) { panic("unbuilt") }

// Reserve raises the reserved mark of a lane to upto; it never lowers it.
func (l *Ledger) Reserve(log msg.LogID, lane uint8, upto msg.Offset) { panic("unbuilt") }

// ReserveExact sets the reserved mark of a lane even to a lower value, for a clean stop:
// the caller vouches (Dispatch.ExactReserves) that nothing at or beyond upto was
// delivered.
func (l *Ledger) ReserveExact(log msg.LogID, lane uint8, upto msg.Offset) { panic("unbuilt") }

// Ensure makes the log if it doesn't exist and gives it the profile. An id that was deleted
// stays deleted.
func (l *Ledger) Ensure(log msg.LogID, profile []byte) EnsureOutcome { panic("unbuilt") }

// Delete removes a log with all that is in it and reports whether it existed.
func (l *Ledger) Delete(log msg.LogID) bool { panic("unbuilt") }

// Seal makes the log refuse appends, if cond (msg.SealIfEmpty or 0) holds, and reports
// whether it is sealed now.
func (l *Ledger) Seal(log msg.LogID, cond uint8) bool { panic("unbuilt") }

// Unseal takes a seal back.
func (l *Ledger) Unseal(log msg.LogID) { panic("unbuilt") }

// Accept takes note of submission number seq of a link, which is taken only if it
// follows the last one; the first of a link is 1. Link 0 is the leader's own and
// always accepted.
func (l *Ledger) Accept(link, seq uint64) LinkOutcome { panic("unbuilt") }

// LinkLast returns the number of the last submission accepted from a link, 0 for none.
func (l *Ledger) LinkLast(link uint64) uint64 { panic("unbuilt") }

// RemoveLink forgets a link whose node incarnation is gone.
func (l *Ledger) RemoveLink(link uint64) { panic("unbuilt") }

// BeginCheckpoint freezes the cut that the following CheckpointSlice calls emit: what
// changed since the previous checkpoint, as it is now. It costs O(1). A running checkpoint
// must be finished (or given up by MarkAllDirty) before the next.
func (l *Ledger) BeginCheckpoint() { panic("unbuilt") }

// CheckpointSlice emits up to max keys of the running checkpoint and reports whether
// that was all. A nil value deletes the key. key and value are valid during the call
// of emit only. Between slices the ledger may change at will.
func (l *Ledger) CheckpointSlice(max int, emit func(key, value []byte)) (done bool) {
	panic("unbuilt")
}

// CheckpointRunning reports whether a checkpoint was begun and isn't done.
func (l *Ledger) CheckpointRunning() bool { panic("unbuilt") }

// MarkAllDirty makes the next checkpoint a complete one and gives up a running one.
func (l *Ledger) MarkAllDirty() { panic("unbuilt") }

// Restore takes one key of a checkpoint into an empty ledger. Keys may come in any order
// and repeatedly, the last value counts, nil deletes: so a base and its deltas can be replayed as
// they were emitted. Before RestoreDone the ledger can't be used otherwise.
func (l *Ledger) Restore(key, value []byte) error { panic("unbuilt") }

// RestoreDone assembles what Restore took and checks that nothing is missing.
func (l *Ledger) RestoreDone() error { panic("unbuilt") }

// Hash returns a hash of all that a log's state says, 0 for an unknown log. Equal states
// have equal hashes, in whatever way they came about.
func (l *Ledger) Hash(log msg.LogID) uint64 { panic("unbuilt") }

// HashAll returns a hash of the whole ledger.
func (l *Ledger) HashAll() uint64 { panic("unbuilt") }

// SettledBy returns how many messages of the shard were settled for a reason.
func (l *Ledger) SettledBy(why msg.Reason) uint64 { panic("unbuilt") }

// Lane is a sub-log with offsets of its own. Its methods only read.
type Lane struct{}

// Tail returns the offset that the next message gets.
func (n *Lane) Tail() msg.Offset { panic("unbuilt") }

// Low returns the offset below which everything is settled.
func (n *Lane) Low() msg.Offset { panic("unbuilt") }

// Reserved returns the mark at and beyond which nothing has been delivered.
func (n *Lane) Reserved() msg.Offset { panic("unbuilt") }

// Unsettled returns how many messages are not settled.
func (n *Lane) Unsettled() uint64 { panic("unbuilt") }

// IsSettled reports whether off is settled.
func (n *Lane) IsSettled(off msg.Offset) bool { panic("unbuilt") }

// NextUnsettled returns the first unsettled offset at or after off, or Tail.
func (n *Lane) NextUnsettled(off msg.Offset) msg.Offset { panic("unbuilt") }

// NextSettled returns the first settled offset at or after off, or Tail.
func (n *Lane) NextSettled(off msg.Offset) msg.Offset { panic("unbuilt") }

// UnsettledIn returns how many offsets of r are not settled.
func (n *Lane) UnsettledIn(r msg.Range) uint64 { panic("unbuilt") }

// AppendUnsettled appends the unsettled parts of r to dst.
func (n *Lane) AppendUnsettled(dst []msg.Range, r msg.Range) []msg.Range { panic("unbuilt") }

// Attempts returns the delivery count of off: how often it was returned and counted.
func (n *Lane) Attempts(off msg.Offset) uint32 { panic("unbuilt") }

// Profile is the configuration of a log as the ledger knows it.
type Profile struct {
	CountDeliveries bool // returns are written and counted
}

// AppendProfile appends the encoding of p.
func AppendProfile(dst []byte, p Profile) []byte { panic("unbuilt") }

// ParseProfile decodes a profile. Fields that it does not know are skipped.
func ParseProfile(b []byte) (Profile, error) { panic("unbuilt") }
