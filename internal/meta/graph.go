package meta

import (
	"errors"
	"slices"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/route"
)

// This file has the rules of the graph, the same for both layers but for what a
// layer can see: l.local ops see both, durable ones only their own.

func noVHost(name string) Result {
	return refuse(berr.NotFound, "vhost %s not found", name)
}

// findQueue looks where ops of l may look.
func (c *Catalog) findQueue(l *layer, vhost, name string) *route.Queue {
	if l.local {
		return c.Queue(vhost, name)
	}
	return l.space(vhost).queues[name]
}

func (c *Catalog) findExchange(l *layer, vhost, name string) *route.Exchange {
	if l.local {
		return c.Exchange(vhost, name)
	}
	return l.space(vhost).exchanges[name]
}

func (r *run) declareExchange(l *layer, x route.Exchange) Result {
	vhost := r.c.vhost(x.VHost)
	if vhost == nil {
		return noVHost(x.VHost)
	}
	if !route.KnownType(x.Type) {
		return refuse(berr.PreconditionFailed, "unknown exchange type '%s'", x.Type)
	}
	if have := r.c.findExchange(l, x.VHost, x.Name); have != nil {
		return Result{Outcome: Exists, Exchange: have}
	}
	if !l.local {
		r.evictExchange(x.VHost, x.Name)
	}
	x.VHost = vhost.name
	l.space(x.VHost).exchanges[x.Name] = &x
	l.touch(exchangeKey(x.VHost, x.Name))
	r.emit(Change{Kind: ExchangePut, Exchange: &x, Local: l.local})
	return Result{Outcome: Created, Exchange: &x}
}

func (r *run) declareQueue(l *layer, q route.Queue) Result {
	vhost := r.c.vhost(q.VHost)
	if vhost == nil {
		return noVHost(q.VHost)
	}
	if q.Name == "" {
		return refuse(berr.CommandInvalid, "queue name is empty")
	}
	if have := r.c.findQueue(l, q.VHost, q.Name); have != nil {
		return Result{Outcome: Exists, Queue: have}
	}
	if l.local {
		q.ID = r.c.nextLocal | LocalIDBit
		r.c.nextLocal++
	} else {
		r.evictQueue(q.VHost, q.Name)
		q.ID = r.c.nextID
		r.c.nextID++
		l.touch(counterKey)
	}
	q.VHost, q.Type = vhost.name, internType(q.Type)
	l.space(q.VHost).queues[q.Name] = &q
	l.touch(queueKey(q.VHost, q.Name))
	r.emit(Change{Kind: QueuePut, Queue: &q, Local: l.local})
	return Result{Outcome: Created, Queue: &q}
}

func (r *run) adoptQueue(q route.Queue) Result {
	l := &r.c.durable
	vhost := r.c.vhost(q.VHost)
	switch {
	case vhost == nil:
		return noVHost(q.VHost)
	case q.Name == "" || q.Ephemeral() || q.ID == 0 || q.ID&LocalIDBit != 0:
		return refuse(berr.CommandInvalid, "queue '%s' can't have log %d", q.Name, q.ID)
	}
	if have := r.c.findQueue(l, q.VHost, q.Name); have != nil {
		return Result{Outcome: Exists, Queue: have}
	}
	r.evictQueue(q.VHost, q.Name)
	r.c.nextID = max(r.c.nextID, q.ID+1)
	l.touch(counterKey)
	q.VHost, q.Type = vhost.name, internType(q.Type)
	l.space(q.VHost).queues[q.Name] = &q
	l.touch(queueKey(q.VHost, q.Name))
	r.emit(Change{Kind: QueuePut, Queue: &q})
	return Result{Outcome: Created, Queue: &q}
}

// internType spares 100,000 queues a copy each of their type's name.
func internType(t string) string {
	switch t {
	case route.Classic:
		return route.Classic
	case route.Quorum:
		return route.Quorum
	}
	return t
}

// evictQueue removes a local queue whose name a durable one is about to take.
// Prepare prevents that but for a race between nodes, in which the durable one
// must win, since the other nodes don't know of the local one.
func (r *run) evictQueue(vhost, name string) {
	if s := r.c.local.spaces[vhost]; s != nil && s.queues[name] != nil {
		r.dropQueue(&r.c.local, s.queues[name])
	}
}

func (r *run) evictExchange(vhost, name string) {
	if s := r.c.local.spaces[vhost]; s != nil && s.exchanges[name] != nil {
		r.dropExchange(&r.c.local, s.exchanges[name])
	}
}

func (r *run) deleteExchange(l *layer, op DeleteExchange) Result {
	if op.Name == "" {
		return refuse(berr.AccessRefused, "operation not permitted on the default exchange")
	}
	if route.Predeclared(op.Name) {
		return refuse(berr.AccessRefused, "deletion of system exchange '%s' in vhost '%s' not allowed", op.Name, op.VHost)
	}
	if r.c.vhost(op.VHost) == nil {
		return noVHost(op.VHost)
	}
	s := l.space(op.VHost)
	x := s.exchanges[op.Name]
	if x == nil {
		return Result{Outcome: Absent}
	}
	if op.IfUnused && s.from[op.Name] != nil {
		return exchangeInUse(x)
	}
	r.dropExchange(l, x)
	return Result{Outcome: Deleted, Exchange: x}
}

func exchangeInUse(x *route.Exchange) Result {
	return refuse(berr.PreconditionFailed, "exchange '%s' in vhost '%s' in use", x.Name, x.VHost)
}

func (r *run) deleteQueue(l *layer, op DeleteQueue) Result {
	if r.c.vhost(op.VHost) == nil {
		return noVHost(op.VHost)
	}
	q := l.space(op.VHost).queues[op.Name]
	if q == nil || q.ID != op.ID {
		return Result{Outcome: Absent}
	}
	r.dropQueue(l, q)
	return Result{Outcome: Deleted, Queue: q}
}

// checkEnds finds the ends of a binding where ops of l may look.
func (r *run) checkEnds(l *layer, b *route.Binding) (source *route.Exchange, destination string, err *berr.Error) {
	c := r.c
	vhost := c.vhost(b.VHost)
	if vhost == nil {
		return nil, "", noVHost(b.VHost).Err
	}
	if b.Source == "" || (b.Kind == route.ToExchange && b.Destination == "") {
		return nil, "", berr.New(berr.AccessRefused, "operation not permitted on the default exchange")
	}
	source = c.findExchange(l, b.VHost, b.Source)
	if source == nil {
		return nil, "", berr.New(berr.NotFound, "no exchange '%s' in vhost '%s'", b.Source, b.VHost)
	}
	if b.Kind == route.ToExchange {
		x := c.findExchange(l, b.VHost, b.Destination)
		if x == nil {
			return nil, "", berr.New(berr.NotFound, "no exchange '%s' in vhost '%s'", b.Destination, b.VHost)
		}
		return source, x.Name, nil
	}
	q := c.findQueue(l, b.VHost, b.Destination)
	if q == nil {
		return nil, "", berr.New(berr.NotFound, "no queue '%s' in vhost '%s'", b.Destination, b.VHost)
	}
	return source, q.Name, nil
}

func (r *run) bind(l *layer, b route.Binding) Result {
	source, destination, err := r.checkEnds(l, &b)
	if err != nil {
		return Result{Err: err}
	}
	if source.Type == route.Headers {
		var bad *route.HeaderMatchError
		if errors.As(route.CheckHeaders(b.Headers), &bad) {
			return refuse(berr.PreconditionFailed, "%s", bad.Error())
		}
	}
	if source.Type == route.ConsistentHash {
		if err := route.CheckWeight(b.Key); err != nil {
			return refuse(berr.PreconditionFailed, "%s", err.Error())
		}
	}
	s := l.space(b.VHost)
	key := bindingKey(&b)
	if s.bindings[key] != nil {
		return Result{Outcome: Exists}
	}
	// Share the strings of the ends: bindings are many.
	b.VHost, b.Source, b.Destination = source.VHost, source.Name, destination
	if b.Key == destination {
		b.Key = destination
	}
	s.link(key, &b)
	l.touch(key)
	r.emit(Change{Kind: Bound, Binding: &b, Local: l.local})
	return Result{Outcome: Created}
}

func (r *run) unbind(l *layer, b route.Binding) Result {
	if _, _, err := r.checkEnds(l, &b); err != nil {
		return Result{Err: err}
	}
	s := l.space(b.VHost)
	e := s.bindings[bindingKey(&b)]
	if e == nil {
		return Result{Outcome: Absent}
	}
	r.dropEdge(l, s, e)
	return Result{Outcome: Deleted}
}

// dropQueue removes a queue with its bindings, the local ones of a durable queue
// included.
func (r *run) dropQueue(l *layer, q *route.Queue) {
	s := l.space(q.VHost)
	delete(s.queues, q.Name)
	r.dropTo(l, q.VHost, end{q.Name, route.ToQueue})
	l.touch(queueKey(q.VHost, q.Name))
	r.emit(Change{Kind: QueueDeleted, Queue: q, Local: l.local})
}

// dropExchange removes an exchange with its bindings in both directions. It is
// taken out of the space first: in a cycle of auto-delete exchanges the cascade
// comes back to it.
func (r *run) dropExchange(l *layer, x *route.Exchange) {
	s := l.space(x.VHost)
	delete(s.exchanges, x.Name)
	r.dropFrom(l, x.VHost, x.Name)
	r.dropTo(l, x.VHost, end{x.Name, route.ToExchange})
	l.touch(exchangeKey(x.VHost, x.Name))
	r.emit(Change{Kind: ExchangeDeleted, Exchange: x, Local: l.local})
}

// sides are the layers in which an object of l may have bindings.
func (r *run) sides(l *layer) []*layer {
	if l.local {
		return []*layer{l}
	}
	return []*layer{l, &r.c.local}
}

func (r *run) dropFrom(l *layer, vhost, name string) {
	for _, side := range r.sides(l) {
		if s := side.spaces[vhost]; s != nil {
			for s.from[name] != nil {
				r.dropEdge(side, s, s.from[name])
			}
		}
	}
}

func (r *run) dropTo(l *layer, vhost string, to end) {
	for _, side := range r.sides(l) {
		if s := side.spaces[vhost]; s != nil {
			for s.to[to] != nil {
				r.dropEdge(side, s, s.to[to])
			}
		}
	}
}

// dropEdge removes a binding, and with it an auto-delete exchange of which it was
// the last.
func (r *run) dropEdge(l *layer, s *space, e *edge) {
	b := e.binding
	s.unlink(e)
	l.touch(e.key)
	r.emit(Change{Kind: Unbound, Binding: b, Local: l.local})
	if s.from[b.Source] != nil {
		return
	}
	if x := s.exchanges[b.Source]; x != nil {
		if x.AutoDelete && !(!l.local && slices.Contains(r.held, x.Name)) {
			r.dropExchange(l, x)
		}
		return
	}
	if !l.local {
		return
	}
	// A durable exchange lost its last local binding.
	d := r.c.vhost(b.VHost)
	if x := d.exchanges[b.Source]; x != nil && x.AutoDelete && d.from[b.Source] == nil {
		r.propose = append(r.propose, DeleteExchange{VHost: b.VHost, Name: b.Source, IfUnused: true})
	}
}
