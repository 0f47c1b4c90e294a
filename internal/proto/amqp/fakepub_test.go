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
	vh := p.s.b.table.VHost(p.s.id.VHost)
	x := vh.ExchangeBytes(exchange)
	if x == nil {
		return broker.Published{}, berr.New(berr.NotFound, "no exchange '%s' in vhost '%s'", exchange, p.s.id.VHost)
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
	return p.append(e, body), nil
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
