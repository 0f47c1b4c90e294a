package queue

import "github.com/sluicemq/sluice/internal/msg"

// Refusal says which part of a precondition did not hold.
type Refusal uint8

// The reasons of Refused.
const (
	NotRefused    Refusal = iota
	TailMoved             // Cond.Tail is not the lane's tail
	ProducerEpoch         // a newer epoch of the producer has appended
	ProducerSeq           // the sequence leaves a gap, overlaps what is stored only in part, or begins an epoch elsewhere than at 0
	PartsMissing          // the parts of the body are not all there
)

// NoOffset is the First of a Duplicate whose place is no longer known: the ledger
// remembers where each producer's last five appends lie, not the older ones.
const NoOffset = ^msg.Offset(0)

// deletedMax bounds the entries of the set of deleted ids to 2 MiB. Ids are given out in
// rising order, so the set holds the latest 16 million or more, and a log that
// somebody still tries to make is not older than a submission can be late.
const deletedMax = 256

// shardState is what belongs to no log.
type shardState struct {
	settledBy [msg.Damaged + 1]uint64 // messages settled, by reason
	deleted   Set                     // ids of deleted logs
	stored    []uint64                // chunks of deleted that lie in the checkpoint
	changedIn uint32                  // as logState.changedIn
}

// SettledBy returns how many messages of the shard were ever settled for a reason.
func (l *Ledger) SettledBy(why msg.Reason) uint64 {
	if int(why) < len(l.settledBy) {
		return l.settledBy[why]
	}
	return 0
}

// bury adds a log to the deleted ids.
func (l *Ledger) bury(log msg.LogID) {
	if log == ^msg.LogID(0) || l.deleted.Contains(log) {
		return
	}
	l.touchShard()
	l.deleted.AddRange(log, log+1)
	if len(l.deleted.chunks) > deletedMax {
		l.deleted.TrimBelow(l.deleted.chunks[1].key << chunkBits)
	}
}
