package shard

import (
	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/wal"
)

// Command is one applied submission with where its bytes lie.
type Command struct {
	Index  uint64 // of the Raft entry
	Part   int    // ordinal of the submission in its batch
	TimeMS int64  // shard time, never decreasing
	Sub    msg.Submission
	// Chunk holds Sub's bytes, or is nil when they were read back from the WAL. Apply
	// retains it if it wants to keep it.
	Chunk *buf.Chunk
	// Pos is where Sub lies in the WAL.
	Pos wal.Position
	// Link is that of the node which submitted it, 0 for the leader's own.
	Link uint64
	// Local says that the submission came from this node; its Result is then used.
	Local bool
}

// Result says what became of a submission. The zero value: everything was done.
type Result struct {
	// Err is set when the submission was not applied at all.
	Err error
	// Outcomes lists the append targets that were not simply appended.
	Outcomes []Outcome
	// Moves lists the submissions for other shards that this one put into outboxes.
	Moves []Move
	// Refused: a requirement of the submission did not hold, so nothing of it was done.
	Refused bool
	// Value is the machine's own answer, e.g. that of a metadata operation.
	Value any
}

// Move is a submission for another shard: it is on its way, as number Seq of the shard's
// outbox for Target.
type Move struct {
	Target uint32
	Seq    uint64
}

// OutcomeCode says what became of one target of an append.
type OutcomeCode uint8

// Outcomes of an append to one target.
const (
	Appended  OutcomeCode = iota
	Gone                  // the log does not exist any more
	Sealed                // the log takes no messages, at least for now
	Duplicate             // appended before; Offset is the first time's
	Refused               // the precondition failed
)

// Outcome of one target of one append operation.
type Outcome struct {
	Op, Target int
	Log        msg.LogID // of the target, for Gone
	Code       OutcomeCode
	Offset     msg.Offset
}

// Completer is told what became of its submissions, on the shard's loop: it must not
// block and must not call back into the shard synchronously.
type Completer interface {
	Completed(shard uint32, token uint64, res Result)
}

// Machine is what a shard replicates. All methods are called by the owner of the Core.
type Machine interface {
	// Apply applies one submission. It must be deterministic in the command and the
	// state; what only the leader does follows in Drive.
	Apply(c *Command) Result
	// Lead is called when the first entry of the own term has been applied: the
	// machine is then current and may act as leader.
	Lead(term uint64)
	// Follow is called when leadership ends, or may have.
	Follow()
	// Drive lets the leader act: deliver, and put operations of its own into b. It
	// returns true when it has more to do at once.
	Drive(b *msg.Builder) bool
	// BeginCheckpoint fixes the cut that the following slices describe.
	BeginCheckpoint()
	// CheckpointSlice emits up to about max changed keys; value nil means deleted. The
	// slices are borrowed for the call. It returns true when the cut is complete.
	CheckpointSlice(max int, emit func(key, value []byte)) bool
	// Restore loads one key of a checkpoint.
	Restore(key, value []byte) error
	// Reset forgets everything: the checkpoint of another node is loaded next.
	Reset()
}
