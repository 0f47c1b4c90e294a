package broker

import (
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
)

// Sink is the receiving end of a session. Its methods are called from shard loops and
// other goroutines of the broker: they must not block and must not call back into the
// session; they append to the connection's outbox and wake its writer.
type Sink interface {
	// Completed ends one slot of a flush: see Publisher.Flush. err is nil when all of
	// the slot's messages are durable.
	Completed(token uint64, slot uint8, err error)
	// Deliver hands out a range of messages. d is only valid during the call.
	Deliver(d *queue.Delivery)
	// Got answers Session.Get: d is nil when the queue was empty. left is the number
	// of messages that stay ready.
	Got(token uint64, d *queue.Delivery, left uint64)
	// GetFailed ends a Session.Get that never will be answered.
	GetFailed(token uint64, err error)
	// Canceled tells that a consumer lost its queue.
	Canceled(c *Consumer)
	// Blocked tells that the broker takes no messages for the reason given, until
	// Unblocked.
	Blocked(reason string)
	Unblocked()
	// Shutdown asks the session to end: the broker stops, or an operator said so.
	Shutdown(reason string)
}

// Identity says who opens a session.
type Identity struct {
	ID       string // unique in this process, e.g. "127.0.0.1:40000 -> 127.0.0.1:5672"
	Name     string // given by the client, may be empty
	User     string
	Client   string // the id that the protocol gives a client, empty if none
	VHost    string
	Protocol string
}

// ExchangeSpec declares an exchange.
type ExchangeSpec struct {
	Name, Type                    string
	Durable, AutoDelete, Internal bool
	Alternate                     string
	HashOn                        route.HashOn
	Args                          []byte // the client's table in wire format, kept for comparison
}

// QueueSpec declares a queue.
type QueueSpec struct {
	Name                           string // "" asks for a generated one
	Type                           string // route.Classic or route.Quorum
	Durable, Exclusive, AutoDelete bool
	Args                           []byte // the client's table in wire format, kept for comparison
}

// QueueStatus is what declaring or looking at a queue tells.
type QueueStatus struct {
	Name      string
	Messages  uint64 // ready
	Consumers uint32
	// Existing is the definition that was there before, nil when the queue was made by
	// this call: the protocol compares what its clients expect to be equal.
	Existing *route.Queue
}

// BindingSpec names a binding.
type BindingSpec struct {
	Source, Destination string
	Kind                route.DestinationKind
	Key                 string
	Args                []byte // wire format, sorted by field name
	Headers             []route.HeaderArg
}

// ConsumeSpec starts a consumer.
type ConsumeSpec struct {
	Queue     string
	NoAck     bool
	Exclusive bool
	Prefetch  uint32 // 0: no limit of its own
	// Messages is a prefetch shared by several consumers, nil for none.
	Messages *Pool
	// Bytes is the room of the connection's outbox.
	Bytes *Pool
	User  any // the protocol's own
}

// Settlement says how messages are done with.
type Settlement uint8

// The ways of settling.
const (
	Ack     Settlement = iota
	Reject             // discarded (or dead-lettered), as rejected
	Requeue            // ready again; counts as an attempt where the queue counts
)

// Published tells where a message went.
type Published struct {
	Routed bool   // at least one queue
	Slots  uint32 // bit i: slot i of the current flush holds it
}

// Record is one stored message as a consumer reads it; see msg.Record.
type Record = msg.Record
