package amqp

import (
	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
)

// Broker is what a server needs of package broker; see [FromBroker].
type Broker interface {
	// Authenticate checks a password; the error is a *berr.Error.
	Authenticate(user, password string, remoteIsLoopback bool) error
	// AuthenticateExternal lets a user in who has proved who he is otherwise; the error
	// is a *berr.Error.
	AuthenticateExternal(user string) error
	// Open begins a session of an authenticated user. NotFound and AccessRefused
	// concern the virtual host.
	Open(id broker.Identity, sink Sink) (Session, error)
}

// Sink is broker.Sink with the Consumer of this package. Its methods must not block
// and must not call the session.
type Sink interface {
	Completed(token uint64, slot uint8, err error)
	Deliver(d *queue.Delivery)
	Got(token uint64, d *queue.Delivery, left uint64)
	GetFailed(token uint64, err error)
	Canceled(c Consumer)
	Blocked(reason string)
	Unblocked()
	Shutdown(reason string)
}

// Consumer is the broker's side of a consumer. It is the User of a queue.Consumer.
type Consumer interface {
	// User returns what ConsumeSpec.User was, or the user of a Get.
	User() any
	// Queue returns the queue that is consumed.
	Queue() *route.Queue
}

// Session is what a connection may do once it is open. Kick may be called from
// several goroutines, Settle and FlushSettles from one at a time; the rest belongs to
// the reader.
type Session interface {
	definer

	Publisher() Publisher
	Reader() RecordReader

	// Consume attaches a consumer. It calls ready when nothing can fail any more and
	// nothing was delivered yet, on another goroutine perhaps; ready must not block.
	Consume(spec broker.ConsumeSpec, ready func(Consumer)) (Consumer, error)
	// Cancel detaches c: nothing is delivered to it any more, what is in flight stays.
	Cancel(c Consumer)
	// Release detaches c and makes everything ready again that is in flight to it.
	Release(c Consumer)
	// Kick tells that a pool of c which was empty has room again.
	Kick(c Consumer)
	// Get asks for one message; Sink.Got has the answer.
	Get(queue string, noAck bool, token uint64, user any) error

	// Settle collects ranges, sorted and disjoint, that were delivered to c.
	Settle(c Consumer, lane uint8, how broker.Settlement, ranges []msg.Range)
	// FlushSettles submits what was collected.
	FlushSettles()
	// FlushSettlesWait is FlushSettles that reports to Sink.Completed, for each slot
	// whose bit it returns.
	FlushSettlesWait(token uint64) (slots uint32)

	// TxBytesMax returns how large a transaction may be.
	TxBytesMax() int

	// Close ends the session: exclusive queues go, what is in flight comes back.
	Close()
}

// definer is the part of Session that makes and changes objects.
type definer interface {
	DeclareExchange(spec broker.ExchangeSpec) (existing *route.Exchange, err error)
	LookupExchange(name string) *route.Exchange
	DeleteExchange(name string, ifUnused bool) error
	Bind(b broker.BindingSpec) error
	Unbind(b broker.BindingSpec) error
	DeclareQueue(spec broker.QueueSpec) (broker.QueueStatus, error)
	QueueStatus(name string) (broker.QueueStatus, error)
	DeleteQueue(name string, ifUnused, ifEmpty bool) (messages uint64, err error)
	PurgeQueue(name string) (messages uint64, err error)
}

// Publisher takes messages. It belongs to the reader.
type Publisher interface {
	// Publish copies and routes a message. It may block when the broker is behind.
	Publish(exchange, key []byte, h route.HeaderLookup, e *msg.Envelope, body ...[]byte) (broker.Published, error)
	// PublishTo is Publish with several keys.
	PublishTo(exchange []byte, keys [][]byte, h route.HeaderLookup, e *msg.Envelope, body ...[]byte) (broker.Published, error)
	// IsLarge reports whether a message with so large a body is to be published by Begin.
	IsLarge(size uint64) bool
	// Begin routes a message whose body of size bytes is still to come. Without a queue
	// for it the body is dropped as it comes, or with keep kept to be sent back.
	Begin(exchange []byte, keys [][]byte, h route.HeaderLookup, size uint64, keep bool) (Large, error)
	// Token returns the token of the flush that the next message belongs to. Tokens
	// increase and have bit 63 clear.
	Token() uint64
	// BeginTx makes what is published from here on a transaction's. Nothing is waiting
	// for a Flush.
	BeginTx()
	// CommitTx commits that together with what Session.Settle collected, as a whole.
	// For each bit of slots Sink.Completed is called once, when it is durable. After an
	// error nothing was done.
	CommitTx(token uint64) (slots uint32, err error)
	// RollbackTx drops what was published since BeginTx.
	RollbackTx()
	// Flush submits what was published. For each bit of slots Sink.Completed is called
	// once, never before Flush was called.
	Flush() (token uint64, slots uint32)
}

// Large is a message whose body goes to the broker as it comes. It ends by Publish, Drop,
// or the Drop of what Keep returned.
type Large interface {
	// Write takes the next piece of the body and copies it. It may block when the broker
	// is behind.
	Write(piece []byte)
	// Buffered returns what the message takes in memory.
	Buffered() int
	// Publish is Publisher.Publish, when the body is complete.
	Publish(e *msg.Envelope) broker.Published
	// Keep returns a complete body that no queue took and that was to be kept.
	Keep() (k Kept, ok bool)
	// Drop gives the message up.
	Drop()
}

// Kept is a body to be sent back; Drop gives it up, on any goroutine.
type Kept interface{ Drop() }

// RecordReader reads what was delivered. It belongs to the writer.
type RecordReader interface {
	// Each calls fn for each message of d that still exists; the views are valid in fn
	// only. It is called once per delivery: it settles those of NoAck consumers.
	Each(d *queue.Delivery, fn func(off msg.Offset, rec *msg.Record) error) error
	// Body calls fn with the pieces of a body that lies in parts, while Each is in its fn
	// with that message; a piece is valid in fn only. The error is that of fn, or
	// broker.ErrBodyGone.
	Body(d *queue.Delivery, rec *msg.Record, fn func(piece []byte) error) error
	// Kept is Body for a body that was kept.
	Kept(k Kept, fn func(piece []byte) error) error
	// Flush submits the settlements that Each made.
	Flush()
	// Close gives back the memory that is kept for the next Each, which may come.
	Close()
}
