package amqp

import (
	"slices"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
)

func (s *fakeSession) Reader() RecordReader { return &fakeReader{s: s} }

type fakeReader struct {
	s    *fakeSession
	done []fakeSettle
}

func (r *fakeReader) Each(d *queue.Delivery, fn func(off msg.Offset, rec *msg.Record) error) error {
	r.s.b.mu.Lock()
	l := r.s.b.logs[d.Log]
	var records [][]byte
	if l != nil {
		records = l.records[d.First : d.First+uint64(d.Count)]
	}
	r.s.b.mu.Unlock()
	for i, b := range records {
		if b == nil {
			continue
		}
		rec, _, err := msg.ParseRecord(b)
		if err != nil {
			return err
		}
		if err := fn(d.First+uint64(i), &rec); err != nil {
			return err
		}
	}
	if c := d.Consumer.User.(*fakeConsumer); c.NoAck {
		r.done = append(r.done, fakeSettle{c, d.Lane, broker.Ack, []msg.Range{{First: d.First, Count: uint64(d.Count)}}})
	}
	return nil
}

func (r *fakeReader) Close() {}

func (r *fakeReader) Flush() {
	r.s.b.mu.Lock()
	defer r.s.b.mu.Unlock()
	for _, x := range r.done {
		for _, rg := range x.ranges {
			newly := r.s.b.ledger.Settle(x.c.Log, x.lane, rg, msg.Acked)
			r.s.b.dispatch.Settled(x.c.Log, x.lane, rg, newly)
		}
	}
	r.done = r.done[:0]
}

type fakePublisher struct {
	s       *fakeSession
	token   uint64
	slots   uint32
	cache   route.Scratch
	targets []*route.Queue
	pending []fakeAppend
}

type fakeAppend struct {
	log    uint64
	record []byte
}

func (p *fakePublisher) Publish(exchange, key []byte, h route.HeaderLookup, e *msg.Envelope, body ...[]byte) (broker.Published, error) {
	p.s.b.mu.Lock()
	defer p.s.b.mu.Unlock()
	vh := p.s.b.table.VHost(p.s.id.VHost)
	x := vh.ExchangeBytes(exchange)
	switch {
	case p.s.b.refuse != nil:
		return broker.Published{}, p.s.b.refuse
	case x == nil:
		return broker.Published{}, berr.New(berr.NotFound, "no exchange '%s' in vhost '%s'", exchange, p.s.id.VHost)
	case x.Internal:
		return broker.Published{}, berr.New(berr.AccessRefused, "cannot publish to internal exchange '%s' in vhost '%s'", exchange, p.s.id.VHost)
	}
	p.targets = vh.Route(&p.cache, x, key, h, p.targets[:0])
	return p.append(e, body), nil
}

func (p *fakePublisher) append(e *msg.Envelope, body [][]byte) (out broker.Published) {
	if len(p.targets) == 0 {
		return out
	}
	record := msg.AppendRecord(nil, e, body...)
	for _, q := range p.targets {
		out.Routed = true
		out.Slots |= 1 << q.Shard
		p.pending = append(p.pending, fakeAppend{q.ID, record})
	}
	p.slots |= out.Slots
	return out
}

func (p *fakePublisher) PublishTo(exchange []byte, keys [][]byte, h route.HeaderLookup, e *msg.Envelope, body ...[]byte) (broker.Published, error) {
	p.s.b.mu.Lock()
	defer p.s.b.mu.Unlock()
	if err := p.routeAll(exchange, keys, h); err != nil {
		return broker.Published{}, err
	}
	return p.append(e, body), nil
}

func (p *fakePublisher) routeAll(exchange []byte, keys [][]byte, h route.HeaderLookup) error {
	vh := p.s.b.table.VHost(p.s.id.VHost)
	x := vh.ExchangeBytes(exchange)
	switch {
	case p.s.b.refuse != nil:
		return p.s.b.refuse
	case x == nil:
		return berr.New(berr.NotFound, "no exchange '%s' in vhost '%s'", exchange, p.s.id.VHost)
	}
	var all []*route.Queue
	for _, key := range keys {
		for _, q := range vh.Route(&p.cache, x, key, h, nil) {
			if !slices.Contains(all, q) {
				all = append(all, q)
			}
		}
	}
	p.targets = all
	return nil
}

func (p *fakePublisher) IsLarge(size uint64) bool {
	if p.s.b.large == 0 {
		return size > 1<<20
	}
	return size > p.s.b.large
}

// Begin keeps the body in the broker's map until it is dropped.
func (p *fakePublisher) Begin(exchange []byte, keys [][]byte, h route.HeaderLookup, size uint64, keep bool) (Large, error) {
	b := p.s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := p.routeAll(exchange, keys, h); err != nil {
		return nil, err
	}
	b.nextID++
	l := &fakeLarge{p: p, targets: p.targets, keep: keep, lasts: -1, ref: msg.PartsRef{
		Log: msg.PartsLog(1, 1, uint32(b.nextID)), Count: uint32(size/fakePart + 1), Bytes: size,
	}}
	b.bodies[l.ref.Log] = l
	return l, nil
}

// fakePart is the size of the pieces in which large bodies are read.
const fakePart = 1000

type fakeLarge struct {
	p       *fakePublisher
	targets []*route.Queue
	keep    bool
	ref     msg.PartsRef
	body    []byte
	// published: it is a queue's, or was one's.
	published bool
	lasts     int // pieces until it is gone
}

func (l *fakeLarge) Write(piece []byte) { l.body = append(l.body, piece...) }
func (l *fakeLarge) Buffered() int      { return len(l.body) % fakePart }

func (l *fakeLarge) Publish(e *msg.Envelope) (out broker.Published) {
	b := l.p.s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(l.targets) == 0 {
		if !l.keep {
			delete(b.bodies, l.ref.Log)
		}
		return out
	}
	l.published = true
	var mb msg.Builder
	mb.AppendLarge([]msg.Target{{Log: 1}}, msg.Cond{}, e, l.ref)
	c := mb.Finish()
	defer c.Release()
	s, _ := msg.ParseSubmission(c.Bytes())
	var op msg.Op
	it := s.Iter()
	it.Next(&op)
	run := s.Records(&op)
	record, _ := run.Next()
	l.p.targets = l.targets
	for _, q := range l.targets {
		out.Routed = true
		out.Slots |= 1 << q.Shard
		l.p.pending = append(l.p.pending, fakeAppend{q.ID, slices.Clone(record)})
	}
	l.p.slots |= out.Slots
	return out
}

func (l *fakeLarge) Keep() (Kept, bool) { return l, l.keep && len(l.targets) == 0 }

func (l *fakeLarge) Drop() {
	b := l.p.s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.bodies, l.ref.Log)
}

func (r *fakeReader) Body(_ *queue.Delivery, rec *msg.Record, fn func(piece []byte) error) error {
	r.s.b.mu.Lock()
	l := r.s.b.bodies[rec.Parts.Log]
	r.s.b.mu.Unlock()
	if l == nil {
		return broker.ErrBodyGone
	}
	return r.Kept(l, fn)
}

func (r *fakeReader) Kept(k Kept, fn func(piece []byte) error) error {
	l := k.(*fakeLarge)
	for piece := range slices.Chunk(l.body, fakePart) {
		r.s.b.mu.Lock()
		there := r.s.b.bodies[l.ref.Log] == l && l.lasts != 0
		l.lasts--
		r.s.b.mu.Unlock()
		if !there {
			return broker.ErrBodyGone
		}
		if err := fn(piece); err != nil {
			return err
		}
	}
	return nil
}

func (p *fakePublisher) Token() uint64 { return p.token }

func (p *fakePublisher) Flush() (uint64, uint32) {
	b := p.s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	token, slots, sink := p.token, p.slots, p.s.sink
	p.token++
	p.slots = 0
	for _, a := range p.pending {
		l := b.logs[a.log]
		if l == nil {
			continue
		}
		l.records = append(l.records, a.record)
		out := b.ledger.Append(a.log, 0, 1, nil)
		b.dispatch.Appended(a.log, 0, out.First, 1)
	}
	clear(p.pending)
	p.pending = p.pending[:0]
	for slot := range uint8(32) {
		if slots&(1<<slot) == 0 {
			continue
		}
		err := b.fail
		fn := func() { sink.Completed(token, slot, err) }
		if b.withhold {
			b.kept = append(b.kept, fn)
		} else {
			fn()
		}
	}
	b.run()
	return token, slots
}

func (p *fakePublisher) BeginTx() {}

func (p *fakePublisher) RollbackTx() { p.pending, p.slots = nil, 0 }

func (p *fakePublisher) CommitTx(token uint64) (slots uint32, err error) {
	if len(p.s.settles) > 0 {
		slots = p.s.FlushSettlesWait(token)
	}
	old := p.token
	p.token = token
	_, published := p.Flush()
	p.token = old
	return slots | published, nil
}

func (s *fakeSession) TxBytesMax() int { return 1 << 20 }
