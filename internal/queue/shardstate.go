package queue

import (
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
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
// remembers where each producer's last append lies, not the older ones.
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

// producer is the last append of one producer to a log.
type producer struct {
	epoch uint32
	first uint64     // sequence of the append's first message
	n     uint64     // messages, so that first+n is the next sequence
	off   msg.Offset // offset of the first message
}

// producerTable has an entry per producer that ever appended to the log.
type producerTable struct {
	last   map[uint64]producer
	dirty  bool // changed since a checkpoint took it
	stored bool // a checkpoint has it
}

// checkProducer judges an append by its producer's sequence; Appended means that it
// may go on. A producer that is not known, or has a new epoch, may begin anywhere.
func (g *logState) checkProducer(c *msg.Cond, n uint64) Outcome {
	if g.producers == nil {
		return Outcome{}
	}
	p, ok := g.producers.last[c.Producer]
	switch {
	case !ok || c.Epoch > p.epoch:
		return Outcome{}
	case c.Epoch < p.epoch:
		return Outcome{Code: Refused, Why: ProducerEpoch}
	}
	next := p.first + p.n
	switch {
	case c.Seq == next:
		return Outcome{}
	case c.Seq > next || n > next-c.Seq:
		return Outcome{Code: Refused, Why: ProducerSeq}
	case c.Seq >= p.first:
		return Outcome{Code: Duplicate, First: p.off + (c.Seq - p.first)}
	}
	return Outcome{Code: Duplicate, First: NoOffset}
}

func (g *logState) recordProducer(c *msg.Cond, n uint64, first msg.Offset) {
	if g.producers == nil {
		g.producers = &producerTable{last: make(map[uint64]producer, 1)}
	}
	g.producers.dirty = true
	g.producers.last[c.Producer] = producer{epoch: c.Epoch, first: c.Seq, n: n, off: first}
}

// sorted returns the producers' ids in rising order.
func (t *producerTable) sorted() []uint64 {
	ids := make([]uint64, 0, len(t.last))
	for id := range t.last {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
