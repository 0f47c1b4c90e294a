package amqp

import (
	"fmt"
	"slices"
	"sync"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
)

// fakeBroker is a broker in memory: the real routing table, ledger and dispatch, one
// lock, and a slice of records per queue. What it is told it does at once, so a
// completion may come before Flush returns.
type fakeBroker struct {
	mu       sync.Mutex
	table    *route.Table
	ledger   *queue.Ledger
	dispatch *queue.Dispatch
	logs     map[uint64]*fakeLog
	nextID   uint64
	sessions map[*fakeSession]bool
	// withhold keeps completions back until complete is called.
	withhold bool
	kept     []func()
	fail     error // what all completions fail with
	refuse   error // what Publish fails with
	blocked  bool
	large    uint64 // bodies that are larger come by Begin; 0 is 1 MiB
	bodies   map[msg.LogID]*fakeLarge
}

type fakeLog struct {
	q       *route.Queue
	records [][]byte
	users   int // consumers
}

func newFakeBroker() *fakeBroker {
	b := &fakeBroker{logs: map[uint64]*fakeLog{}, sessions: map[*fakeSession]bool{}, ledger: queue.NewLedger(), bodies: map[msg.LogID]*fakeLarge{}}
	b.dispatch = queue.NewDispatch(b.ledger, b)
	e := route.New().Edit()
	e.PutVHost("/")
	b.table = e.Done()
	return b
}

// Locate implements queue.Locator.
func (b *fakeBroker) Locate(log msg.LogID, _ uint8, off msg.Offset, limit uint64) (queue.Source, uint64, uint64) {
	l := b.logs[log]
	n := min(limit, uint64(len(l.records))-off)
	size := uint64(0)
	for _, r := range l.records[off : off+n] {
		size += uint64(len(r))
	}
	return queue.Source{}, n, size
}

func (b *fakeBroker) AuthenticateExternal(user string) error { return b.Authenticate(user, "", true) }

func (b *fakeBroker) Authenticate(user, password string, loopback bool) error {
	if user == "guest" && password == "guest" && loopback {
		return nil
	}
	return berr.New(berr.AccessRefused, "wrong password of user '%s'", user)
}

func (b *fakeBroker) Open(id broker.Identity, sink Sink) (Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.table.VHost(id.VHost) == nil {
		return nil, berr.New(berr.NotFound, "vhost %s not found", id.VHost)
	}
	s := &fakeSession{b: b, id: id, sink: sink, consumers: map[*fakeConsumer]bool{}, gets: map[fakeGet]*fakeConsumer{}}
	b.sessions[s] = true
	if b.blocked {
		sink.Blocked("low on disk")
	}
	return s, nil
}

// run delivers what can be delivered.
func (b *fakeBroker) run() {
	for more := true; more; {
		more = b.dispatch.Run(1000, func(d *queue.Delivery) {
			c := d.Consumer.User.(*fakeConsumer)
			c.note(d)
			c.s.sink.Deliver(d)
		})
		if b.reserve() {
			more = true
		}
	}
}

func (b *fakeBroker) reserve() (any bool) {
	type want struct {
		log  msg.LogID
		lane uint8
		upto msg.Offset
	}
	var wants []want
	b.dispatch.WantReserve(func(log msg.LogID, lane uint8, upto msg.Offset) {
		wants = append(wants, want{log, lane, upto})
	})
	for _, w := range wants {
		b.ledger.Reserve(w.log, w.lane, w.upto)
		b.dispatch.Reserved(w.log, w.lane)
	}
	return len(wants) > 0
}

func (b *fakeBroker) queue(vhost, name string) (*fakeLog, error) {
	q := b.table.VHost(vhost).Queue(name)
	if q == nil {
		return nil, berr.New(berr.NotFound, "no queue '%s' in vhost '%s'", name, vhost)
	}
	return b.logs[q.ID], nil
}

// ready returns how many messages of a queue can be delivered.
func (b *fakeBroker) counts(name string) queue.Counts {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, err := b.queue("/", name)
	if err != nil {
		return queue.Counts{}
	}
	return b.dispatch.Counts(l.q.ID)
}

// complete lets go what withhold kept, the last first if backwards.
func (b *fakeBroker) complete(backwards bool) {
	b.mu.Lock()
	kept := b.kept
	b.kept, b.withhold = nil, false
	b.mu.Unlock()
	if backwards {
		slices.Reverse(kept)
	}
	for _, fn := range kept {
		fn()
	}
}

// block tells all sessions that no messages are taken.
func (b *fakeBroker) block(blocked bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.sessions {
		if blocked {
			s.sink.Blocked("low on disk")
		} else {
			s.sink.Unblocked()
		}
	}
}

func (b *fakeBroker) deleteQueue(l *fakeLog) {
	e := b.table.Edit()
	var dead []*route.Binding
	for x := range b.table.VHost(l.q.VHost).Exchanges() {
		for bind := range x.Bindings() {
			if bind.Kind == route.ToQueue && bind.Destination == l.q.Name {
				dead = append(dead, bind)
			}
		}
	}
	for _, bind := range dead {
		e.Unbind(bind)
	}
	e.DeleteQueue(l.q.VHost, l.q.Name)
	b.table = e.Done()
	b.ledger.Delete(l.q.ID)
	for _, qc := range b.dispatch.Drop(l.q.ID) {
		c := qc.User.(*fakeConsumer)
		delete(c.s.consumers, c)
		c.s.sink.Canceled(c)
	}
	delete(b.logs, l.q.ID)
}

type fakeGet struct {
	user  any
	log   uint64
	noAck bool
}

type fakeSession struct {
	b         *fakeBroker
	id        broker.Identity
	sink      Sink
	consumers map[*fakeConsumer]bool
	gets      map[fakeGet]*fakeConsumer
	settles   []fakeSettle
	closed    bool
}

type fakeSettle struct {
	c      *fakeConsumer
	lane   uint8
	how    broker.Settlement
	ranges []msg.Range
}

type fakeConsumer struct {
	queue.Consumer
	s        *fakeSession
	l        *fakeLog
	user     any
	inFlight queue.Set
	attached bool
}

func (c *fakeConsumer) User() any           { return c.user }
func (c *fakeConsumer) Queue() *route.Queue { return c.l.q }

func (c *fakeConsumer) note(d *queue.Delivery) {
	if !c.NoAck {
		c.inFlight.AddRange(d.First, d.First+uint64(d.Count))
	}
}

func (s *fakeSession) Close() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	for c := range s.consumers {
		s.releaseLocked(c)
	}
	for _, c := range s.gets {
		s.releaseLocked(c)
	}
	for _, l := range s.b.logs {
		if l.q.Exclusive && l.q.Owner == s.id.ID {
			s.b.deleteQueue(l)
		}
	}
	delete(s.b.sessions, s)
	s.b.run()
}

func (s *fakeSession) lookup(name string) (*fakeLog, error) {
	l, err := s.b.queue(s.id.VHost, name)
	if err == nil && l.q.Exclusive && l.q.Owner != s.id.ID {
		return nil, berr.New(berr.ResourceLocked, textLockedFake, name, s.id.VHost)
	}
	return l, err
}

const textLockedFake = "cannot obtain exclusive access to locked queue '%s' in vhost '%s'. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration."

func (s *fakeSession) DeclareExchange(spec broker.ExchangeSpec) (*route.Exchange, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if x := s.b.table.VHost(s.id.VHost).Exchange(spec.Name); x != nil {
		return x, nil
	}
	e := s.b.table.Edit()
	e.PutExchange(route.Exchange{
		Name: spec.Name, VHost: s.id.VHost, Type: spec.Type, Alternate: spec.Alternate, Args: spec.Args,
		Durable: spec.Durable, AutoDelete: spec.AutoDelete, Internal: spec.Internal,
	})
	s.b.table = e.Done()
	return nil, nil
}

func (s *fakeSession) LookupExchange(name string) *route.Exchange {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.b.table.VHost(s.id.VHost).Exchange(name)
}

func (s *fakeSession) DeleteExchange(name string, ifUnused bool) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	x := s.b.table.VHost(s.id.VHost).Exchange(name)
	if x == nil {
		return nil
	}
	if ifUnused && x.BindingCount() > 0 {
		return berr.New(berr.PreconditionFailed, "exchange '%s' in vhost '%s' in use", name, s.id.VHost)
	}
	e := s.b.table.Edit()
	e.DeleteExchange(s.id.VHost, name)
	s.b.table = e.Done()
	return nil
}

func (s *fakeSession) binding(b broker.BindingSpec) (*route.Binding, error) {
	vh := s.b.table.VHost(s.id.VHost)
	if vh.Exchange(b.Source) == nil {
		return nil, berr.New(berr.NotFound, "no exchange '%s' in vhost '%s'", b.Source, s.id.VHost)
	}
	if b.Kind == route.ToQueue {
		if _, err := s.lookup(b.Destination); err != nil {
			return nil, err
		}
	} else if vh.Exchange(b.Destination) == nil {
		return nil, berr.New(berr.NotFound, "no exchange '%s' in vhost '%s'", b.Destination, s.id.VHost)
	}
	return &route.Binding{
		VHost: s.id.VHost, Source: b.Source, Destination: b.Destination, Key: b.Key,
		Args: string(b.Args), Headers: b.Headers, Kind: b.Kind,
	}, nil
}

func (s *fakeSession) Bind(b broker.BindingSpec) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	bind, err := s.binding(b)
	if err == nil {
		e := s.b.table.Edit()
		e.Bind(bind)
		s.b.table = e.Done()
	}
	return err
}

func (s *fakeSession) Unbind(b broker.BindingSpec) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	bind, err := s.binding(b)
	if err == nil {
		e := s.b.table.Edit()
		e.Unbind(bind)
		s.b.table = e.Done()
	}
	return err
}

func (s *fakeSession) status(l *fakeLog) broker.QueueStatus {
	n := s.b.dispatch.Counts(l.q.ID)
	return broker.QueueStatus{Name: l.q.Name, Messages: n.Ready, Consumers: uint32(n.Consumers), Existing: l.q}
}

func (s *fakeSession) DeclareQueue(spec broker.QueueSpec) (broker.QueueStatus, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.nextID++
	if spec.Name == "" {
		spec.Name = fmt.Sprintf("amq.gen-%d", s.b.nextID)
	}
	if l, err := s.lookup(spec.Name); err == nil {
		return s.status(l), nil
	} else if berr.ReasonOf(err) != berr.NotFound {
		return broker.QueueStatus{}, err
	}
	q := &route.Queue{
		Name: spec.Name, VHost: s.id.VHost, ID: s.b.nextID, Args: spec.Args, Type: spec.Type,
		Shard: uint16(s.b.nextID % 3), Durable: spec.Durable, Exclusive: spec.Exclusive, AutoDelete: spec.AutoDelete,
	}
	if q.Exclusive {
		q.Owner = s.id.ID
	}
	e := s.b.table.Edit()
	e.PutQueue(q)
	s.b.table = e.Done()
	s.b.logs[q.ID] = &fakeLog{q: q}
	s.b.ledger.Ensure(q.ID, queue.AppendProfile(nil, queue.Profile{CountDeliveries: q.Type == route.Quorum}))
	return broker.QueueStatus{Name: q.Name}, nil
}

func (s *fakeSession) QueueStatus(name string) (broker.QueueStatus, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	l, err := s.lookup(name)
	if err != nil {
		return broker.QueueStatus{}, err
	}
	return s.status(l), nil
}

func (s *fakeSession) DeleteQueue(name string, ifUnused, ifEmpty bool) (uint64, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	l, err := s.lookup(name)
	if berr.ReasonOf(err) == berr.NotFound && err != nil {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n := s.b.dispatch.Counts(l.q.ID)
	switch {
	case ifUnused && n.Consumers > 0:
		return 0, berr.New(berr.PreconditionFailed, "queue '%s' in vhost '%s' in use", name, s.id.VHost)
	case ifEmpty && n.Ready > 0:
		return 0, berr.New(berr.PreconditionFailed, "queue '%s' in vhost '%s' not empty", name, s.id.VHost)
	}
	s.b.deleteQueue(l)
	return n.Ready, nil
}

func (s *fakeSession) PurgeQueue(name string) (n uint64, err error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	l, err := s.lookup(name)
	if err != nil {
		return 0, err
	}
	for _, h := range s.b.dispatch.HoldAll(l.q.ID) {
		for _, r := range h.Ranges {
			newly := s.b.ledger.Settle(l.q.ID, h.Lane, r, msg.Purged)
			s.b.dispatch.Settled(l.q.ID, h.Lane, r, newly)
			n += newly
		}
	}
	return n, nil
}

func (s *fakeSession) Publisher() Publisher { return &fakePublisher{s: s, token: 1} }

func (s *fakeSession) Consume(spec broker.ConsumeSpec, ready func(Consumer)) (Consumer, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	l, err := s.lookup(spec.Queue)
	if err != nil {
		return nil, err
	}
	c := s.newConsumer(l, spec.User)
	c.Prefetch, c.NoAck, c.Exclusive = spec.Prefetch, spec.NoAck, spec.Exclusive
	c.Bytes = spec.Bytes
	if spec.Messages != nil {
		c.Messages = spec.Messages
	}
	n := s.b.dispatch.Counts(l.q.ID).Consumers
	if spec.Exclusive && n > 0 || l.users < 0 {
		return nil, berr.New(berr.AccessRefused, "queue '%s' in vhost '%s' in exclusive use", spec.Queue, s.id.VHost)
	}
	ready(c)
	if err := s.b.dispatch.Attach(&c.Consumer); err != nil {
		return nil, berr.New(berr.Internal, "%v", err)
	}
	if spec.Exclusive {
		l.users = -1
	}
	c.attached = true
	s.consumers[c] = true
	s.b.run()
	return c, nil
}

func (s *fakeSession) newConsumer(l *fakeLog, user any) *fakeConsumer {
	c := &fakeConsumer{s: s, l: l, user: user}
	c.Consumer.Log = l.q.ID
	c.Consumer.User = c
	return c
}

func (s *fakeSession) Cancel(bc Consumer) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.detach(bc.(*fakeConsumer))
}

func (s *fakeSession) detach(c *fakeConsumer) {
	if c.attached {
		c.attached = false
		s.b.dispatch.Detach(&c.Consumer)
		if c.Exclusive {
			c.l.users = 0
		}
	}
}

func (s *fakeSession) Release(bc Consumer) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.releaseLocked(bc.(*fakeConsumer))
	s.b.run()
}

func (s *fakeSession) releaseLocked(c *fakeConsumer) {
	s.detach(c)
	delete(s.consumers, c)
	delete(s.gets, fakeGet{c.user, c.l.q.ID, c.NoAck})
	for _, r := range c.inFlight.AppendRanges(nil, 0, ^uint64(0)) {
		s.b.settle(fakeSettle{c, 0, broker.Requeue, []msg.Range{r}})
	}
}

func (s *fakeSession) Kick(bc Consumer) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.dispatch.Kick(&bc.(*fakeConsumer).Consumer)
	s.b.run()
}

func (s *fakeSession) Get(name string, noAck bool, token uint64, user any) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	l, err := s.lookup(name)
	if err != nil {
		return err
	}
	key := fakeGet{user, l.q.ID, noAck}
	c := s.gets[key]
	if c == nil {
		c = s.newConsumer(l, user)
		c.NoAck = noAck
		s.gets[key] = c
	}
	for {
		d, status := s.b.dispatch.Get(l.q.ID, &c.Consumer)
		switch status {
		case queue.GetEmpty:
			s.sink.Got(token, nil, 0)
		case queue.GetFound:
			c.note(&d)
			s.sink.Got(token, &d, s.b.dispatch.Counts(l.q.ID).Ready)
		case queue.GetWait:
			s.b.reserve()
			continue
		}
		return nil
	}
}

func (s *fakeSession) Settle(c Consumer, lane uint8, how broker.Settlement, ranges []msg.Range) {
	for i, r := range ranges {
		if r.Count == 0 || i > 0 && ranges[i-1].First+ranges[i-1].Count > r.First {
			panic(fmt.Sprintf("ranges out of order: %v", ranges))
		}
	}
	s.settles = append(s.settles, fakeSettle{c.(*fakeConsumer), lane, how, slices.Clone(ranges)})
}

func (s *fakeSession) FlushSettles() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	for _, x := range s.settles {
		s.b.settle(x)
	}
	s.settles = s.settles[:0]
	s.b.run()
}

func (s *fakeSession) FlushSettlesWait(token uint64) uint32 {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	settles := s.settles
	s.settles = nil
	fn := func() {
		for _, x := range settles {
			s.b.settle(x)
		}
		s.b.run()
		s.sink.Completed(token, 5, nil)
	}
	if s.b.withhold {
		s.b.kept = append(s.b.kept, func() {
			s.b.mu.Lock()
			defer s.b.mu.Unlock()
			fn()
		})
	} else {
		fn()
	}
	return 1 << 5
}

// settle does one settlement and checks that its messages were in flight.
func (b *fakeBroker) settle(x fakeSettle) {
	id := x.c.l.q.ID
	if b.logs[id] == nil {
		return
	}
	for _, r := range x.ranges {
		if n := x.c.inFlight.RemoveRange(r.First, r.First+r.Count); n != r.Count {
			panic(fmt.Sprintf("settled %v, of which %d are in flight", r, n))
		}
		if x.how == broker.Requeue {
			b.ledger.Return(id, x.lane, r, true)
			continue
		}
		b.dispatch.Acked(&x.c.Consumer, id, x.lane, r.Count)
		why := msg.Acked
		if x.how == broker.Reject {
			why = msg.Rejected
		}
		b.dispatch.Settled(id, x.lane, r, b.ledger.Settle(id, x.lane, r, why))
	}
	if x.how == broker.Requeue {
		b.dispatch.Return(&x.c.Consumer, id, x.lane, x.ranges)
	}
	pool, ok := x.c.Messages.(*broker.Pool)
	if ok && pool != nil && pool.Hungry() {
		for c := range x.c.s.consumers {
			b.dispatch.Kick(&c.Consumer)
		}
	}
}
