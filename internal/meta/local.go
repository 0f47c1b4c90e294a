package meta

import (
	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/route"
)

// IsLocal says whether op belongs to the local layer: whether it is about an
// ephemeral object, or a binding with an end that is.
func (c *Catalog) IsLocal(op Op) bool {
	switch op := op.(type) {
	case DeclareExchange:
		return !op.Exchange.Durable
	case DeclareQueue:
		return op.Queue.Ephemeral()
	case DeleteExchange:
		return c.localExchange(op.VHost, op.Name)
	case DeleteQueue:
		return op.ID&LocalIDBit != 0
	case Bind:
		return c.localEnds(&op.Binding)
	case Unbind:
		return c.localEnds(&op.Binding)
	}
	return false
}

func (c *Catalog) localExchange(vhost, name string) bool {
	s := c.local.spaces[vhost]
	return s != nil && s.exchanges[name] != nil
}

func (c *Catalog) localEnds(b *route.Binding) bool {
	s := c.local.spaces[b.VHost]
	if s == nil {
		return false
	}
	if s.exchanges[b.Source] != nil {
		return true
	}
	if b.Kind == route.ToExchange {
		return s.exchanges[b.Destination] != nil
	}
	return s.queues[b.Destination] != nil
}

func (r *run) applyLocal(op Op) Result {
	if !r.c.IsLocal(op) {
		return refuse(berr.CommandInvalid, "%T is not local", op)
	}
	l := &r.c.local
	switch op := op.(type) {
	case DeclareExchange:
		return r.declareExchange(l, op.Exchange)
	case DeclareQueue:
		return r.declareQueue(l, op.Queue)
	case DeleteExchange:
		return r.deleteExchange(l, op)
	case DeleteQueue:
		return r.deleteQueue(l, op)
	case Bind:
		return r.bind(l, op.Binding)
	case Unbind:
		return r.unbind(l, op.Binding)
	}
	return refuse(berr.CommandInvalid, "%T is not local", op)
}

// Prepare is for the proposer of a durable op, called right before it proposes.
// It returns the op to propose, with Held filled in, or a result that answers
// the client at once because a local object decides: a name that one has is
// taken, and a durable exchange with a local binding is in use.
func (c *Catalog) Prepare(op Op) (Op, *Result) {
	switch op := op.(type) {
	case DeclareExchange:
		if c.localExchange(op.Exchange.VHost, op.Exchange.Name) {
			x := c.Exchange(op.Exchange.VHost, op.Exchange.Name)
			return nil, &Result{Outcome: Exists, Exchange: x}
		}
	case DeclareQueue:
		if q := c.Queue(op.Queue.VHost, op.Queue.Name); q != nil && q.Ephemeral() {
			return nil, &Result{Outcome: Exists, Queue: q}
		}
	case DeleteExchange:
		s := c.local.spaces[op.VHost]
		if x := c.Exchange(op.VHost, op.Name); x != nil && op.IfUnused && s != nil && s.from[op.Name] != nil {
			res := exchangeInUse(x)
			return nil, &res
		}
		op.Held = c.held(op.VHost, end{op.Name, route.ToExchange})
		return op, nil
	case DeleteQueue:
		op.Held = c.held(op.VHost, end{op.Name, route.ToQueue})
		return op, nil
	case Unbind:
		op.Held = c.heldSource(op.Binding.VHost, op.Binding.Source, nil, map[string]bool{})
		return op, nil
	}
	return op, nil
}

// held returns the auto-delete exchanges that have local bindings, among those
// that a cascade beginning with the end of an object can reach.
func (c *Catalog) held(vhost string, to end) []string {
	return c.heldTo(vhost, to, nil, map[string]bool{})
}

func (c *Catalog) heldTo(vhost string, to end, list []string, seen map[string]bool) []string {
	d := c.vhost(vhost)
	if d == nil {
		return list
	}
	for e := d.to[to]; e != nil; e = e.nextTo {
		list = c.heldSource(vhost, e.binding.Source, list, seen)
	}
	return list
}

func (c *Catalog) heldSource(vhost, source string, list []string, seen map[string]bool) []string {
	x := c.Exchange(vhost, source)
	if x == nil || !x.AutoDelete || seen[source] {
		return list
	}
	seen[source] = true
	if s := c.local.spaces[vhost]; s != nil && s.from[source] != nil {
		return append(list, source)
	}
	return c.heldTo(vhost, end{source, route.ToExchange}, list, seen)
}
