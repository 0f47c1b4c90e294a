// Package route is the routing table: virtual hosts with their exchanges,
// queues and bindings, and the matching of a message against them.
//
// A Table is immutable. Connections load the newest one from an atomic pointer
// and read it without locks for as long as they like; the one writer makes the
// next one with an Editor, which copies only the paths that it changes:
//
//	t := route.New()
//	e := t.Edit()           // t stays as it is
//	e.PutVHost("/")
//	e.PutQueue(&route.Queue{VHost: "/", Name: "q", ID: 1})
//	t = e.Done()            // publish this
//	vh := t.VHost("/")
//	targets = vh.Route(&scratch, vh.Exchange(""), []byte("q"), nil, targets[:0])
//
// An edit costs O(change · log n) in time and in new memory, whatever the size
// of the table. Structure:
//
//	Table ─ pmap ─ VHost ─┬ pmap ─ Queue
//	                      └ pmap ─ Exchange ─┬ direct: pmap key ─ bindingSet
//	                                         ├ fanout, headers: bindingSet
//	                                         └ topic: trie of words ─ bindingSet
//
// pmap is a hash array mapped trie keyed by string; bindingSet a B+ tree in the
// order of binding identity, so that targets come out in the same order
// everywhere and several bindings of one queue are neighbors.
//
// The package keeps no graph rules: whether an object may be declared or
// deleted, and what goes with it, is decided by package meta, which says every
// single change. In particular the caller unbinds what is bound to a queue or
// exchange before it deletes it. A target that was forgotten stays reachable,
// and whoever appends to its log learns that the id is dead.
//
// Concurrency: Table, VHost, Exchange, Queue and Binding are immutable after
// Done and shared freely. Editor, Scratch and Cache belong to one goroutine.
package route

import "strings"

// Exchange types. A type that isn't listed here is refused by KnownType.
const (
	Direct  = "direct"
	Fanout  = "fanout"
	Topic   = "topic"
	Headers = "headers"
)

// Queue types.
const (
	Classic = "classic"
	Quorum  = "quorum"
)

// KnownType says whether t is an exchange type that this package can route.
func KnownType(t string) bool {
	switch t {
	case Direct, Fanout, Topic, Headers, ConsistentHash, ModulusHash, Random, LocalRandom:
		return true
	}
	return false
}

// Queue is the definition of a queue, as the target of a route. It is handed to
// the Editor by pointer and must not be modified from then on; the pointer is
// its identity as a target.
type Queue struct {
	// Name is unique within VHost.
	Name  string
	VHost string
	// ID is the log id. It is never reused, so that a message routed to a queue
	// that was deleted and declared again can't land in the new one.
	ID uint64
	// Args is the argument table as the client sent it, opaque here.
	Args []byte
	// Owner is the id of the connection that an exclusive queue belongs to.
	Owner string
	// Type is Classic or Quorum.
	Type string
	// Shard is the shard that the log lives in.
	Shard      uint16
	Durable    bool
	Exclusive  bool
	AutoDelete bool
}

// Ephemeral says whether the queue is node-local and vanishes with its node or
// connection: durability decides, not auto-delete.
func (q *Queue) Ephemeral() bool { return !q.Durable || q.Exclusive }

// Exchange is the definition of an exchange together with its bindings. Pointers
// obtained from a VHost are valid for that version of the table: the pointer
// changes whenever the definition or a binding does.
type Exchange struct {
	// Name is unique within VHost; "" is the default exchange.
	Name  string
	VHost string
	// Type is one of the exchange types of this package.
	Type string
	// Alternate is the name of the exchange that takes what this one routes
	// nowhere; "" for none.
	Alternate string
	// Args is the argument table as the client sent it, opaque here.
	Args []byte
	// HashOn is what a ConsistentHash exchange hashes.
	HashOn     HashOn
	Durable    bool
	AutoDelete bool
	// Internal exchanges take messages from exchanges only. Enforced by the
	// protocols, not by Route.
	Internal bool

	router router
}

// DestinationKind says what a binding leads to.
type DestinationKind uint8

// The two kinds of binding destinations.
const (
	ToQueue DestinationKind = iota
	ToExchange
)

// String returns the word that the management API uses.
func (k DestinationKind) String() string {
	if k == ToExchange {
		return "exchange"
	}
	return "queue"
}

// Binding leads from an exchange to a queue or to another exchange. It is
// identified by all its fields but Headers (which Args determines) within its
// virtual host, and is immutable.
type Binding struct {
	VHost       string
	Source      string
	Destination string
	Key         string
	// Args is the argument table in wire format. Because it is part of the
	// identity, whoever makes a Binding sorts its fields by name first.
	Args string
	// Headers are the same arguments decoded; looked at by headers exchanges.
	Headers []HeaderArg
	Kind    DestinationKind
}

// PredeclaredExchanges returns the definitions that every virtual host has from
// the beginning: the default exchange and the amq.* ones.
func PredeclaredExchanges(vhost string) []Exchange {
	system := func(name, typ string, internal bool) Exchange {
		return Exchange{Name: name, VHost: vhost, Type: typ, Durable: true, Internal: internal}
	}
	return []Exchange{
		system("", Direct, false),
		system("amq.direct", Direct, false),
		system("amq.fanout", Fanout, false),
		system("amq.topic", Topic, false),
		system("amq.headers", Headers, false),
		system("amq.match", Headers, false),
		system("amq.rabbitmq.trace", Topic, true),
	}
}

// Predeclared says whether name is an exchange of PredeclaredExchanges, which
// nobody can delete.
func Predeclared(name string) bool {
	switch name {
	case "", "amq.direct", "amq.fanout", "amq.topic", "amq.headers", "amq.match", "amq.rabbitmq.trace":
		return true
	}
	return false
}

// compareBindings orders by destination first, so that in a set the bindings of
// one target are neighbors. Source and virtual host are the same in a set.
func compareBindings(a, b *Binding) int {
	if a.Kind != b.Kind {
		return int(a.Kind) - int(b.Kind)
	}
	if c := strings.Compare(a.Destination, b.Destination); c != 0 {
		return c
	}
	if c := strings.Compare(a.Key, b.Key); c != 0 {
		return c
	}
	return strings.Compare(a.Args, b.Args)
}
