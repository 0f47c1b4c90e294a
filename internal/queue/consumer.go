package queue

import (
	"errors"

	"github.com/sluicemq/sluice/internal/msg"
)

// Errors of Attach.
var (
	ErrUnknownLog = errors.New("queue: unknown log")
	ErrExclusive  = errors.New("queue: the log has an exclusive consumer")
	ErrInUse      = errors.New("queue: exclusive access to a log that has consumers")
	ErrAttached   = errors.New("queue: consumer is attached already")
)

// Source says where the bytes of a delivered range lie: in the tail cache, a WAL file
// or a segment. It is opaque here; the Locator's owner defines it.
type Source struct {
	Kind uint8
	Ref  uint64
	Pos  uint32
}

// Locator finds the bytes of messages without reading them.
type Locator interface {
	// Locate returns the source of the message at off and how many messages from off
	// on, n of 1 to max, lie in this source, consecutive, with the length of their
	// records together; an estimate of bytes is good enough. It is called only for
	// unsettled offsets and only from the shard's loop.
	Locate(log msg.LogID, lane uint8, off msg.Offset, max uint64) (src Source, n uint64, bytes uint64)
}

// Pool is credit that several consumers share, perhaps on several shards: the global
// prefetch of a channel in messages, or the room in a connection's outbox in bytes.
// The session implements it; its methods are safe for concurrent use.
type Pool interface {
	// Take asks for n > 0 units and returns how many of them it granted, possibly
	// 0. After it returned 0 the session calls Dispatch.Kick when there is room again,
	// even if there was room again before Take returned.
	Take(n int64) int64
	// Give returns n units. A negative n takes -n units whether there is room or
	// not: the overdraft of a message that is larger than what Take granted.
	Give(n int64)
}

// Consumer is a receiver of one log's messages. The caller fills the exported fields
// and changes none of them after Attach (or its first Get).
type Consumer struct {
	ID  uint64
	Log msg.LogID
	// Prefetch limits the messages in flight to this consumer; 0 is no limit. It
	// means nothing for NoAck.
	Prefetch uint32
	// NoAck: a delivery is at once leaving; the caller proposes its settlement when it
	// sees the delivery, and does not call Acked for it.
	NoAck bool
	// Exclusive: no other consumer may attach to the log.
	Exclusive bool
	// Priority is reserved: consumers of higher priority first. Not used yet.
	Priority int32
	// Messages is shared credit in messages, nil for none. The Dispatch takes from it
	// for each delivery (not for NoAck, not for Get) and gives back at Acked and
	// Return.
	Messages Pool
	// Bytes is shared room in bytes, nil for none. The Dispatch only takes from it (and
	// gives back what it asked for too much); the session gives back what it has sent.
	// A delivery needs a grant of at least one byte and is cut down to the messages
	// that fit the grant, but never below one message: so a message larger than
	// the room goes out when there is any room at all, and overdraws the pool by less
	// than its own size.
	Bytes Pool
	User  any

	consumerState
}

// consumerState is the Dispatch's part of a Consumer.
type consumerState struct {
	term       uint64       // the Dispatch's term that the rest belongs to
	at         *logDispatch // nil while not attached
	index      int          // in at.consumers
	inFlight   uint64
	next, prev *Consumer // neighbors in the line of those with credit, if inLine
	inLine     bool
	starved    bool // a pool granted nothing, until Kick
}

// InFlight returns the number of messages delivered to c, in this term, and neither
// acknowledged nor returned.
func (c *Consumer) InFlight() uint64 { return c.inFlight }

// mayReceive says whether c belongs into its log's line.
func (c *Consumer) mayReceive() bool {
	return c.at != nil && !c.starved && (c.NoAck || c.Prefetch == 0 || c.inFlight < uint64(c.Prefetch))
}

// line is the consumers of a log that have credit, first come first served.
type line struct {
	first, last *Consumer
	n           int
}

// enter puts c at the end of its log's line, if it has credit and isn't there.
func (q *line) enter(c *Consumer) {
	if c.inLine || !c.mayReceive() {
		return
	}
	c.inLine, c.prev, c.next = true, q.last, nil
	if q.last != nil {
		q.last.next = c
	} else {
		q.first = c
	}
	q.last = c
	q.n++
}

// leave takes c out of its log's line, if it is there.
func (q *line) leave(c *Consumer) {
	if !c.inLine {
		return
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		q.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		q.last = c.prev
	}
	c.inLine, c.prev, c.next = false, nil, nil
	q.n--
}

// Delivery is a range of messages handed to a consumer: consecutive offsets that lie in
// one source and are equal in Redelivered and Attempts. The Dispatch reuses the struct
// that it passes out.
type Delivery struct {
	Consumer    *Consumer
	Log         msg.LogID
	Lane        uint8
	Redelivered bool
	// Attempts is the ledger's delivery count: how many counted returns the messages
	// have behind them.
	Attempts uint32
	First    msg.Offset
	Count    uint32
	Bytes    uint64 // as the Locator estimated it
	Src      Source
	Get      bool // the answer to Get
}

// Counts are the figures of a log at this moment.
type Counts struct {
	Ready     uint64 // may be delivered
	Unacked   uint64 // in flight
	Unclaimed uint64 // during a gathering: in flight or ready, that isn't known yet
	Consumers int
}

// Held are the messages of a lane that HoldAll hid.
type Held struct {
	Lane   uint8
	Ranges []msg.Range // sorted, disjoint, all unsettled
}

// GetStatus is the outcome of Get.
type GetStatus uint8

// Outcomes of Get.
const (
	GetEmpty GetStatus = iota // nothing is ready
	GetFound                  // the delivery is valid
	// GetWait: a message is ready but its offset isn't reserved. WantReserve reports
	// the lane; call Get again after Reserved was called for it. Or there may be one, once
	// the gathering has ended.
	GetWait
)
