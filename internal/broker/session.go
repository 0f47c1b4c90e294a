package broker

import (
	"errors"
	"sync"

	"github.com/sluicemq/sluice/internal/access"
	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/meta"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
)

// Session is one connection's access to a virtual host. See the package comment.
type Session struct {
	b    *Broker
	id   Identity
	sink Sink
	done completer // of settlements

	blocked bool // Sink.Blocked was told last; guarded by Broker.mu

	mu        sync.Mutex // guards consumers and gets; held for map access only
	consumers map[*Consumer]struct{}
	gets      map[getKey]*Consumer
	closed    bool

	own map[uint64]*route.Queue // exclusive queues by id; of the reader

	settles map[*engine.Shard][]engine.Settled // collected by Settle
}

type getKey struct {
	user  any
	queue uint64
	noAck bool
}

// Consumer is a consumer of one queue.
type Consumer struct {
	base *engine.Consumer
	q    *route.Queue
	user any
}

// Base implements engine.Based.
func (c *Consumer) Base() *engine.Consumer { return c.base }

// User returns the protocol's own value: ConsumeSpec.User, or the user of Get.
func (c *Consumer) User() any { return c.user }

// Queue returns the queue that is consumed.
func (c *Consumer) Queue() *route.Queue { return c.q }

// Open begins a session of an authenticated user. NotFound and AccessRefused concern
// the virtual host.
func (b *Broker) Open(id Identity, sink Sink) (*Session, error) {
	if b.table().VHost(id.VHost) == nil {
		return nil, berr.New(berr.NotFound, "vhost %s not found", id.VHost)
	}
	if !b.meta.accounts.Load().table.VHost(id.User, id.VHost) {
		return nil, berr.New(berr.NotAllowed, "access to vhost '%s' refused for user '%s'", id.VHost, id.User)
	}
	s := &Session{
		b: b, id: id, sink: sink, consumers: map[*Consumer]struct{}{}, gets: map[getKey]*Consumer{},
		settles: map[*engine.Shard][]engine.Settled{},
	}
	s.done.sink, s.done.making = sink, &b.meta.making
	b.mu.Lock()
	b.sessions[s] = struct{}{}
	b.mu.Unlock()
	poke(b.tell)
	return s, nil
}

// Close returns everything in flight, and deletes the session's exclusive queues and
// the auto-delete queues that lose their last consumer. Idempotent.
func (s *Session) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	var all []*Consumer
	for c := range s.consumers {
		all = append(all, c)
	}
	for _, c := range s.gets {
		all = append(all, c)
	}
	s.mu.Unlock()
	s.FlushSettles()
	for _, c := range all {
		s.Release(c)
	}
	for _, q := range s.own {
		_ = s.remove(q)
	}
	s.b.mu.Lock()
	delete(s.b.sessions, s)
	s.b.mu.Unlock()
}

func (s *Session) vhost() *route.VHost { return s.b.table().VHost(s.id.VHost) }

// lookup finds a queue that this session may use.
func (s *Session) lookup(name string) (*route.Queue, error) {
	vh := s.vhost()
	if vh == nil {
		return nil, berr.New(berr.NotFound, "vhost %s not found", s.id.VHost)
	}
	q := vh.Queue(name)
	if q == nil {
		return nil, notFoundQueue(name, s.id.VHost)
	}
	return q, s.mayUse(q)
}

func (s *Session) mayUse(q *route.Queue) error {
	if q.Exclusive && q.Owner != s.id.ID {
		return berr.New(berr.ResourceLocked, "cannot obtain exclusive access to locked queue '%s' in vhost '%s'. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration.", q.Name, s.id.VHost)
	}
	return nil
}

func (s *Session) shardOf(q *route.Queue) *engine.Shard { return s.b.node.Shard(uint32(q.Shard)) }

// DeclareExchange makes an exchange unless there is one of that name, which it then
// returns.
func (s *Session) DeclareExchange(spec ExchangeSpec) (existing *route.Exchange, err error) {
	if err := s.mayDeclare(spec); err != nil {
		return nil, err
	}
	r, err := s.b.define(meta.DeclareExchange{Exchange: route.Exchange{
		Name: spec.Name, VHost: s.id.VHost, Type: spec.Type, Alternate: spec.Alternate, HashOn: spec.HashOn, Args: spec.Args,
		Durable: spec.Durable, AutoDelete: spec.AutoDelete, Internal: spec.Internal,
	}})
	if err != nil || r.Outcome == meta.Created {
		return nil, err
	}
	return r.Exchange, nil
}

// LookupExchange returns an exchange, nil if there is none of that name.
func (s *Session) LookupExchange(name string) *route.Exchange {
	if vh := s.vhost(); vh != nil {
		return vh.Exchange(name)
	}
	return nil
}

// DeleteExchange removes an exchange and its bindings; one that doesn't exist is fine.
func (s *Session) DeleteExchange(name string, ifUnused bool) error {
	if err := s.may(access.Configure, access.Exchange, name); err != nil {
		return err
	}
	_, err := s.b.define(meta.DeleteExchange{VHost: s.id.VHost, Name: name, IfUnused: ifUnused})
	return err
}

func (s *Session) binding(b BindingSpec) (route.Binding, error) {
	rb := route.Binding{
		VHost: s.id.VHost, Source: b.Source, Destination: b.Destination, Key: b.Key,
		Args: string(b.Args), Headers: b.Headers, Kind: b.Kind,
	}
	if err := s.mayBind(b); err != nil {
		return rb, err
	}
	if b.Kind == route.ToQueue {
		if _, err := s.lookup(b.Destination); err != nil {
			return rb, err
		}
	}
	return rb, nil
}

// Bind makes a binding; an identical one is fine.
func (s *Session) Bind(b BindingSpec) error {
	rb, err := s.binding(b)
	if err == nil {
		_, err = s.b.define(meta.Bind{Binding: rb})
	}
	return err
}

// Unbind removes a binding; one that doesn't exist is fine, its ends must.
func (s *Session) Unbind(b BindingSpec) error {
	rb, err := s.binding(b)
	if err == nil {
		rb.Headers = nil
		_, err = s.b.define(meta.Unbind{Binding: rb})
	}
	return err
}

// DeclareQueue makes a queue unless there is one of that name; see QueueStatus.Existing.
func (s *Session) DeclareQueue(spec QueueSpec) (QueueStatus, error) {
	q := route.Queue{
		Name: spec.Name, VHost: s.id.VHost, Args: spec.Args, Type: spec.Type,
		Durable: spec.Durable, Exclusive: spec.Exclusive, AutoDelete: spec.AutoDelete,
	}
	if q.Name == "" {
		q.Name = generatedName()
	}
	if err := s.may(access.Configure, access.Queue, q.Name); err != nil {
		return QueueStatus{}, err
	}
	if q.Exclusive {
		q.Owner = s.id.ID
	}
	q.Shard = uint16(engine.VolatileShard)
	if !q.Ephemeral() {
		q.Shard = s.b.shardFor(q.VHost, q.Name)
	}
	if vh := s.vhost(); vh != nil {
		if old := vh.Queue(q.Name); old != nil {
			return s.status(old, old)
		}
	}
	r, err := s.b.define(meta.DeclareQueue{Queue: q})
	if err != nil {
		return QueueStatus{}, err
	}
	if r.Outcome != meta.Created {
		return s.status(r.Queue, r.Queue)
	}
	made := r.Queue
	if made.Exclusive {
		if s.own == nil {
			s.own = map[uint64]*route.Queue{}
		}
		s.own[made.ID] = made
	}
	if err := s.ensure(made); err != nil {
		return QueueStatus{}, err
	}
	return QueueStatus{Name: made.Name}, nil
}

// ensure makes the log of a queue.
func (s *Session) ensure(q *route.Queue) error {
	_, err := s.shardOf(q).Do(func(b *msg.Builder) { b.Ensure(q.ID, profileOf(q)) })
	if err != nil {
		return berr.Wrap(berr.Unavailable, err, "queue '%s' not made", q.Name)
	}
	s.b.meta.making.Delete(q.ID) // answered after all that came before
	return nil
}

// status looks at a queue that is defined. Its log may still be on its way, from the
// session that makes it: then it is made here, for the caller will publish to it.
func (s *Session) status(q, existing *route.Queue) (QueueStatus, error) {
	if err := s.mayUse(q); err != nil {
		return QueueStatus{}, err
	}
	sh, has := s.shardOf(q), false
	if sh.Call(func() { has = sh.Machine().Ledger().Has(q.ID) }) && !has {
		if err := s.ensure(q); err != nil {
			return QueueStatus{}, err
		}
	}
	c, err := sh.Counts(q.ID)
	if err != nil {
		return QueueStatus{}, berr.Wrap(berr.Unavailable, err, "queue '%s'", q.Name)
	}
	return QueueStatus{Name: q.Name, Messages: c.Ready, Consumers: uint32(c.Consumers), Existing: existing}, nil
}

// QueueStatus looks at a queue.
func (s *Session) QueueStatus(name string) (QueueStatus, error) {
	q, err := s.lookup(name)
	if err != nil {
		return QueueStatus{}, err
	}
	return s.status(q, q)
}

// DeleteQueue removes a queue and returns how many messages were ready; one that
// doesn't exist is fine.
func (s *Session) DeleteQueue(name string, ifUnused, ifEmpty bool) (uint64, error) {
	if err := s.may(access.Configure, access.Queue, name); err != nil {
		return 0, err
	}
	q, err := s.lookup(name)
	if err != nil {
		if berr.ReasonOf(err) == berr.NotFound {
			return 0, nil
		}
		return 0, err
	}
	sh := s.shardOf(q)
	counts, err := sh.Counts(q.ID)
	if err != nil {
		return 0, berr.Wrap(berr.Unavailable, err, "queue '%s'", name)
	}
	if ifUnused && counts.Consumers > 0 {
		return 0, berr.New(berr.PreconditionFailed, "queue '%s' in vhost '%s' in use", name, s.id.VHost)
	}
	if !ifEmpty {
		return counts.Ready, s.remove(q)
	}
	if counts.Ready > 0 {
		return 0, s.notEmpty(q)
	}
	if err := s.sealEmpty(sh, q); err != nil {
		return 0, err
	}
	err = s.remove(q)
	if err != nil { // the queue stays, so it takes messages again
		_, _ = sh.Do(func(b *msg.Builder) { b.Unseal(q.ID) })
	}
	return 0, err
}

func (s *Session) notEmpty(q *route.Queue) error {
	return berr.New(berr.PreconditionFailed, "queue '%s' in vhost '%s' not empty", q.Name, s.id.VHost)
}

// sealEmpty makes a queue that has no message ready refuse further ones, or says that
// it has. What is published in between is not confirmed; see completer.
func (s *Session) sealEmpty(sh *engine.Shard, q *route.Queue) error {
	// With nothing in flight either, looking and sealing are one.
	res, err := sh.Do(func(b *msg.Builder) { b.Seal(q.ID, msg.SealIfEmpty) })
	if err == nil && len(res.Outcomes) == 0 {
		return nil
	}
	c, err := sh.Counts(q.ID)
	if err == nil && c.Ready > 0 {
		return s.notEmpty(q)
	}
	if err == nil {
		_, err = sh.Do(func(b *msg.Builder) { b.Seal(q.ID, 0) })
	}
	if err != nil {
		return berr.Wrap(berr.Unavailable, err, "queue '%s'", q.Name)
	}
	if c, err = sh.Counts(q.ID); err == nil && c.Ready == 0 {
		return nil
	}
	if _, err := sh.Do(func(b *msg.Builder) { b.Unseal(q.ID) }); err != nil {
		return berr.Wrap(berr.Unavailable, err, "queue '%s'", q.Name)
	}
	return s.notEmpty(q)
}

// remove deletes the definition, then the log.
func (s *Session) remove(q *route.Queue) error {
	delete(s.own, q.ID)
	if _, err := s.b.define(meta.DeleteQueue{VHost: q.VHost, Name: q.Name, ID: q.ID}); err != nil {
		return err
	}
	_, err := s.shardOf(q).Do(func(b *msg.Builder) { b.Delete(q.ID) })
	if err != nil {
		return berr.Wrap(berr.Unavailable, err, "queue '%s'", q.Name)
	}
	return nil
}

// PurgeQueue removes all messages that are ready and returns how many.
func (s *Session) PurgeQueue(name string) (uint64, error) {
	q, err := s.lookupFor(access.Read, name)
	if err != nil {
		return 0, err
	}
	n, err := s.shardOf(q).Purge(q.ID)
	if err != nil {
		return 0, berr.Wrap(berr.Unavailable, err, "queue '%s'", name)
	}
	return n, nil
}

// Consume attaches a consumer. ready is called when nothing can fail any more and
// nothing was delivered yet, on the shard's loop.
func (s *Session) Consume(spec ConsumeSpec, ready func(*Consumer)) (*Consumer, error) {
	q, err := s.lookupFor(access.Read, spec.Queue)
	if err != nil {
		return nil, err
	}
	c := s.newConsumer(q, queue.Consumer{
		Prefetch: spec.Prefetch, NoAck: spec.NoAck, Exclusive: spec.Exclusive,
	}, spec)
	s.mu.Lock()
	s.consumers[c] = struct{}{}
	s.mu.Unlock()
	err = s.shardOf(q).Attach(c.base, func() { ready(c) })
	if err == nil {
		return c, nil
	}
	s.forget(c)
	switch {
	case errors.Is(err, queue.ErrExclusive), errors.Is(err, queue.ErrInUse):
		return nil, berr.New(berr.AccessRefused, "queue '%s' in vhost '%s' in exclusive use", q.Name, s.id.VHost)
	case errors.Is(err, queue.ErrUnknownLog):
		return nil, notFoundQueue(q.Name, s.id.VHost)
	}
	return nil, berr.Wrap(berr.Unavailable, err, "queue '%s'", q.Name)
}

func (s *Session) newConsumer(q *route.Queue, qc queue.Consumer, spec ConsumeSpec) *Consumer {
	c := &Consumer{q: q, user: spec.User}
	qc.ID, qc.Log, qc.User = s.b.nextID.Add(1), q.ID, c
	if spec.Messages != nil {
		qc.Messages = spec.Messages
	}
	if spec.Bytes != nil {
		qc.Bytes = spec.Bytes
	}
	c.base = s.shardOf(q).NewConsumer(qc, engineSink{s})
	return c
}

func (s *Session) forget(c *Consumer) {
	s.mu.Lock()
	delete(s.consumers, c)
	s.mu.Unlock()
}

// Cancel ends deliveries to c; what is in flight stays with the session.
func (s *Session) Cancel(c *Consumer) {
	c.base.Shard().Detach(c.base)
	s.lastConsumer(c)
}

// Release ends deliveries to c and returns everything in flight to it, also what was
// handed to the Sink and not settled. Idempotent.
func (s *Session) Release(c *Consumer) {
	c.base.Shard().Release(c.base)
	s.mu.Lock()
	_, attached := s.consumers[c]
	delete(s.consumers, c)
	for k, g := range s.gets {
		if g == c {
			delete(s.gets, k)
		}
	}
	s.mu.Unlock()
	if attached {
		s.lastConsumer(c)
	}
}

// lastConsumer deletes an auto-delete queue that has lost its last consumer. Whoever wants
// to consume from it meanwhile finds it gone.
func (s *Session) lastConsumer(c *Consumer) {
	if !c.q.AutoDelete {
		return
	}
	if sh := c.base.Shard(); sh.Retire(c.q.ID) && s.remove(c.q) != nil {
		sh.Unretire(c.q.ID)
	}
}

// Kick tells that a pool of c which was empty has room again. For any goroutine.
func (s *Session) Kick(c *Consumer) { c.base.Shard().Kick(c.base) }

// Get asks for one message; the answer is Sink.Got. The Delivery's consumer has user as
// its User.
func (s *Session) Get(name string, noAck bool, token uint64, user any) error {
	q, err := s.lookupFor(access.Read, name)
	if err != nil {
		return err
	}
	k := getKey{user, q.ID, noAck}
	s.mu.Lock()
	c := s.gets[k]
	s.mu.Unlock()
	if c == nil {
		c = s.newConsumer(q, queue.Consumer{NoAck: noAck}, ConsumeSpec{User: user})
		s.mu.Lock()
		s.gets[k] = c
		s.mu.Unlock()
	}
	c.base.Shard().Get(c.base, token)
	return nil
}

// Settle collects ranges, sorted and disjoint, that were delivered to c.
func (s *Session) Settle(c *Consumer, lane uint8, how Settlement, ranges []msg.Range) {
	x := engine.Settled{Consumer: c.base, Lane: lane, Ranges: append([]msg.Range(nil), ranges...)}
	switch how {
	case Ack:
		x.Reason = msg.Acked
	case Reject:
		x.Reason = msg.Rejected
	case Requeue:
		x.Requeue = true
	}
	sh := c.base.Shard()
	s.settles[sh] = append(s.settles[sh], x)
}

// FlushSettles submits what was collected. Nobody waits for it, so it may share a
// write with others.
func (s *Session) FlushSettles() {
	for sh, list := range s.settles {
		if len(list) > 0 {
			sh.Settle(list, true, nil, 0)
			delete(s.settles, sh)
		}
	}
}

// FlushSettlesWait is FlushSettles that reports to Sink.Completed for each slot whose
// bit it returns, when the settlements are durable.
func (s *Session) FlushSettlesWait(token uint64) (slots uint32) {
	for sh, list := range s.settles {
		if len(list) > 0 {
			slots |= 1 << slotOf(sh.ID())
		}
	}
	for sh, list := range s.settles {
		if len(list) > 0 {
			sh.Settle(list, false, &s.done, token)
			delete(s.settles, sh)
		}
	}
	return slots
}

// engineSink passes on what shards say.
type engineSink struct{ s *Session }

// Deliver implements engine.Sink.
func (e engineSink) Deliver(d *queue.Delivery) { e.s.sink.Deliver(d) }

// Got implements engine.Sink.
func (e engineSink) Got(token uint64, d *queue.Delivery, left uint64) { e.s.sink.Got(token, d, left) }

// GetFailed implements engine.Sink.
func (e engineSink) GetFailed(token uint64, err error) {
	e.s.sink.GetFailed(token, berr.Wrap(berr.Unavailable, err, "queue"))
}

// Canceled implements engine.Sink.
func (e engineSink) Canceled(c *engine.Consumer) { e.s.sink.Canceled(c.User.(*Consumer)) }

// Hungry implements engine.Sink: all consumers that share the pool are served again.
func (e engineSink) Hungry(p queue.Pool) {
	e.s.mu.Lock()
	var list []*Consumer
	for c := range e.s.consumers {
		if c.base.Messages == p || c.base.Bytes == p {
			list = append(list, c)
		}
	}
	e.s.mu.Unlock()
	for _, c := range list {
		c.base.Shard().Kick(c.base)
	}
}
