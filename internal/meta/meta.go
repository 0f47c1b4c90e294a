// Package meta is the catalog of definitions, shard 0's state machine: virtual
// hosts, exchanges, queues, bindings, users, settings and items, with the rules of the
// graph that they form. It assigns log ids. It does not route (package route
// does, fed with the Changes that come out here), does not compare a redeclaration
// with what exists (the protocols do, from Result), and checks no permission.
//
// A Catalog has two layers:
//
//	durable  replicated: changed by Apply with the committed ops of shard 0 only;
//	         the same on every node; exported to checkpoints, hashed
//	local    this node's ephemeral objects (non-durable exchanges, non-durable or
//	         exclusive queues, every binding with such an end): changed by
//	         ApplyLocal; vanishes with the process
//
// One name is in at most one layer. The local layer sees the durable one: a
// binding may lead from a durable exchange to an exclusive queue. The durable
// layer never looks at the local one for a decision or a result, for it must come
// to the same state on nodes whose local layers differ; it only takes along what
// is local when a durable end of it goes, or when a durable object is declared
// under a local object's name. What a node knows locally and a durable op should
// respect is put into the op before it is proposed, by Prepare:
//
//	op ─ IsLocal? ─ yes ─ ApplyLocal ─────────────────────┐
//	        └ no ─ Prepare ─ refused? answer              ├ Result, []Change
//	                  └ propose … committed ─ Apply ──────┘
//
// In the other direction ApplyLocal can't delete a durable auto-delete exchange
// whose last binding was local; it says so in Result.Propose. After a crash such
// an exchange stays until its next last binding goes.
//
// Applying is pure: no I/O, clock or randomness. The state after an op depends on
// the state before it and the op alone; the order of the changes that one
// deletion causes may differ between a catalog that was restored and one that
// lived through the same ops.
//
// Concurrency: a Catalog belongs to one goroutine. The objects that it hands out
// (route.Queue, route.Binding, route.Exchange, User) are immutable and may be
// shared.
package meta

import (
	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/route"
)

// LocalIDBit is set in the log ids of local queues and in no others. The two bits above
// it mark logs that no definition names (msg.IsInternal).
const LocalIDBit uint64 = 1 << 61

// Op is one of the operations of this package, a closed list. All are encoded by
// AppendOp.
type Op interface{ op() opCode }

// PutVHost creates a virtual host with its predeclared exchanges.
type PutVHost struct{ Name string }

// DeleteVHost removes a virtual host and everything in it, local objects too.
type DeleteVHost struct{ Name string }

// DeclareExchange creates an exchange unless its name is taken.
type DeclareExchange struct{ Exchange route.Exchange }

// DeleteExchange removes an exchange and all bindings that start or end there.
type DeleteExchange struct {
	VHost string
	Name  string
	// Held is filled in by Prepare: auto-delete exchanges that stay although
	// their last durable binding goes, because they have local ones.
	Held []string
	// IfUnused refuses if a binding starts there.
	IfUnused bool
}

// DeclareQueue creates a queue unless its name is taken. Queue.ID is ignored and
// assigned; Queue.Shard is the proposer's choice.
type DeclareQueue struct{ Queue route.Queue }

// AdoptQueue defines a queue for a log that exists, Queue.ID, and whose own definition is
// lost. Ids up to that one are not given out again.
type AdoptQueue struct{ Queue route.Queue }

// DeleteQueue removes a queue and its bindings, if it still is the one with that
// log id.
type DeleteQueue struct {
	VHost string
	Name  string
	// Held is as in DeleteExchange.
	Held []string
	ID   uint64
}

// Bind creates a binding unless an identical one exists; both ends must exist.
type Bind struct{ Binding route.Binding }

// Unbind removes a binding if it exists; both ends must exist.
type Unbind struct {
	// Held is as in DeleteExchange.
	Held []string
	// Binding without Headers, which don't identify it and aren't encoded.
	Binding route.Binding
}

// User is somebody who may log in.
type User struct {
	Name string
	// PasswordHash and Hashing, its algorithm, are opaque here.
	PasswordHash string
	Hashing      string
	Tags         []string
}

// PutUser creates or replaces a user.
type PutUser struct{ User User }

// DeleteUser removes a user.
type DeleteUser struct{ Name string }

// PutSetting stores a named value, such as the cluster's id.
type PutSetting struct{ Key, Value string }

// DeleteSetting removes a named value.
type DeleteSetting struct{ Key string }

// Outcome says what an op came to.
type Outcome uint8

// The outcomes.
const (
	// Refused: nothing changed, Result.Err says why.
	Refused Outcome = iota
	// Created: the object is new.
	Created
	// Exists: an object by that name (or an identical binding) was there and
	// stays as it is.
	Exists
	// Replaced: the object was there and has a new value.
	Replaced
	// Deleted: the object was there and is gone.
	Deleted
	// Absent: there was nothing to delete. Not an error.
	Absent
)

// Result answers whoever asked for an op.
type Result struct {
	// Err is set if and only if Outcome is Refused.
	Err *berr.Error
	// Queue is the queue created, found (to compare a redeclaration with) or
	// deleted.
	Queue *route.Queue
	// Exchange is the same for exchanges.
	Exchange *route.Exchange
	// Propose are ops that have become due and have to go through shard 0.
	Propose []Op
	Outcome Outcome
}

// ChangeKind says what a Change is about.
type ChangeKind uint8

// The kinds of changes, each with the field of Change that it fills.
const (
	VHostPut        ChangeKind = iota // VHost
	VHostDeleted                      // VHost
	ExchangePut                       // Exchange
	ExchangeDeleted                   // Exchange
	QueuePut                          // Queue
	QueueDeleted                      // Queue
	Bound                             // Binding
	Unbound                           // Binding
	UserPut                           // User
	UserDeleted                       // User
	SettingPut                        // Setting
	SettingDeleted                    // Setting
	ItemPut                           // Item
	ItemDeleted                       // Item
)

// Change is one effect of an op on one object. Everything that an op does is in
// its changes, cascades included: bindings are unbound before an end is deleted.
type Change struct {
	Exchange *route.Exchange
	Queue    *route.Queue
	Binding  *route.Binding
	User     *User
	Item     *Item
	VHost    string
	Setting  PutSetting
	Kind     ChangeKind
	// Local says that the object belongs to the local layer.
	Local bool
}

// ApplyChange brings a change into the routing table. Users, settings and items
// don't concern it.
func ApplyChange(e *route.Editor, c Change) {
	switch c.Kind {
	case VHostPut:
		e.PutVHost(c.VHost)
	case VHostDeleted:
		e.DeleteVHost(c.VHost)
	case ExchangePut:
		e.PutExchange(*c.Exchange)
	case ExchangeDeleted:
		e.DeleteExchange(c.Exchange.VHost, c.Exchange.Name)
	case QueuePut:
		e.PutQueue(c.Queue)
	case QueueDeleted:
		e.DeleteQueue(c.Queue.VHost, c.Queue.Name)
	case Bound:
		e.Bind(c.Binding)
	case Unbound:
		e.Unbind(c.Binding)
	case UserPut, UserDeleted, SettingPut, SettingDeleted, ItemPut, ItemDeleted:
	}
}
