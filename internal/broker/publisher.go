package broker

import (
	"math/rand/v2"
	"time"

	"github.com/sluicemq/sluice/internal/access"
	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/shard"
)

// routeCacheEntries bounds a publisher's memory of routes.
const routeCacheEntries = 1024

// Publisher encodes a session's messages into submissions, one per shard, until they
// are flushed. Owned by the session's reader goroutine.
type Publisher struct {
	s     *Session
	done  completer
	token uint64
	used  uint32          // slots of the current flush
	inTx  bool            // since BeginTx
	slots [maxSlots]*slot // each made when it is needed: many sessions never publish

	right   right
	cache   *route.Cache
	scratch route.Scratch
	queues  []*route.Queue
	one     [1]msg.Target
	targets []msg.Target
	large   []*Large // of the current flush
}

type slot struct {
	shard *engine.Shard
	b     msg.Builder
}

// Publisher returns a new publisher of the session.
func (s *Session) Publisher() *Publisher {
	p := &Publisher{s: s, done: completer{sink: s.sink, making: &s.b.meta.making}, token: 1}
	p.scratch.Seed(rand.Uint64())
	return p
}

// Publish routes a message and adds it to the current flush. Everything is copied. It
// may block while the broker is behind. NotFound: no such exchange; AccessRefused: an
// internal one.
func (p *Publisher) Publish(exchange, key []byte, h route.HeaderLookup, e *msg.Envelope, body ...[]byte) (Published, error) {
	vh, ex, err := p.exchange(exchange, key)
	if err != nil {
		return Published{}, err
	}
	if p.cache == nil {
		p.cache = route.NewCache(routeCacheEntries)
		p.cache.Seed(rand.Uint64())
	}
	return p.append(p.cache.Route(vh, ex, key, h), e, body), nil
}

// PublishTo is Publish with several routing keys: each queue gets the message once.
func (p *Publisher) PublishTo(exchange []byte, keys [][]byte, h route.HeaderLookup, e *msg.Envelope, body ...[]byte) (Published, error) {
	vh, ex, err := p.exchange(exchange, keys...)
	if err != nil {
		return Published{}, err
	}
	return p.append(p.routeAll(vh, ex, keys, h), e, body), nil
}

// routeAll returns the queues that any of the keys leads to, each once.
func (p *Publisher) routeAll(vh *route.VHost, ex *route.Exchange, keys [][]byte, h route.HeaderLookup) []*route.Queue {
	p.queues = p.queues[:0]
	for _, key := range keys {
		from := len(p.queues)
		p.queues = vh.Route(&p.scratch, ex, key, h, p.queues)
		kept := p.queues[:from]
		for _, q := range p.queues[from:] {
			if !contains(kept, q) {
				kept = append(kept, q)
			}
		}
		p.queues = kept
	}
	return p.queues
}

func contains(list []*route.Queue, q *route.Queue) bool {
	for _, x := range list {
		if x == q {
			return true
		}
	}
	return false
}

func (p *Publisher) exchange(name []byte, keys ...[]byte) (*route.VHost, *route.Exchange, error) {
	vh := p.s.vhost()
	if vh == nil {
		return nil, nil, berr.New(berr.NotFound, "vhost %s not found", p.s.id.VHost)
	}
	ex := vh.ExchangeBytes(name)
	if ex == nil {
		if err := p.s.may(access.Write, access.Exchange, string(name)); err != nil {
			return nil, nil, err
		}
		return nil, nil, berr.New(berr.NotFound, "no exchange '%s' in vhost '%s'", name, p.s.id.VHost)
	}
	if err := p.mayPublish(ex, keys...); err != nil {
		return nil, nil, err
	}
	if ex.Internal {
		return nil, nil, berr.New(berr.AccessRefused, "cannot publish to internal exchange '%s' in vhost '%s'", name, p.s.id.VHost)
	}
	return vh, ex, nil
}

func (p *Publisher) append(queues []*route.Queue, e *msg.Envelope, body [][]byte) Published {
	switch len(queues) {
	case 0:
		return Published{}
	case 1:
		p.one[0] = msg.Target{Log: queues[0].ID}
		return Published{Routed: true, Slots: p.add(uint32(queues[0].Shard), p.one[:], e, body)}
	}
	out := Published{Routed: true}
	seen := uint32(0)
	for i, q := range queues {
		bit := uint32(1) << slotOf(uint32(q.Shard))
		if seen&bit != 0 {
			continue
		}
		seen |= bit
		p.targets = p.targets[:0]
		for _, r := range queues[i:] {
			if r.Shard == q.Shard {
				p.targets = append(p.targets, msg.Target{Log: r.ID})
			}
		}
		out.Slots |= p.add(uint32(q.Shard), p.targets, e, body)
	}
	return out
}

func (p *Publisher) add(id uint32, targets []msg.Target, e *msg.Envelope, body [][]byte) uint32 {
	sl, bit := p.slot(id)
	sl.b.Append(targets, e, body...)
	return bit
}

// slot returns the slot of a shard, with room in its builder, for something to be added.
func (p *Publisher) slot(id uint32) (sl *slot, bit uint32) {
	n := slotOf(id)
	if sl = p.slots[n]; sl == nil {
		sl = &slot{shard: p.s.b.node.Shard(id)}
		p.slots[n] = sl
	}
	sl.b.Forced = p.inTx
	if sl.b.Full() && !p.inTx {
		p.submit(sl, p.token|partialBit)
	}
	p.used |= 1 << n
	return sl, 1 << n
}

// waitPressure waits while the flusher is far behind; false if no messages are taken.
func (p *Publisher) waitPressure(id uint32) bool {
	for p.s.b.node.Pressure(id) {
		if p.s.b.node.Refuses() { // what makes room may wait behind this in the connection
			return false
		}
		select {
		case <-time.After(time.Millisecond):
			continue
		case <-p.s.b.stop:
		}
		break
	}
	return true
}

func (p *Publisher) submit(sl *slot, token uint64) {
	sub := shard.Sub{Chunk: sl.b.Finish(), Done: &p.done, Token: token}
	if !p.waitPressure(sl.shard.ID()) {
		sub.Finish(sl.shard.ID(), shard.Result{Err: shard.ErrNoRoom})
		return
	}
	sl.shard.SubmitWait(sub, p.s.b.stop)
}

// Token returns the token of the flush that the next message belongs to. Tokens
// increase from 1 and have the two highest bits clear.
func (p *Publisher) Token() uint64 { return p.token }

// Flush submits what was published. For each bit of slots Sink.Completed is called
// once, possibly before Flush returns.
func (p *Publisher) Flush() (token uint64, slots uint32) {
	token, slots = p.token, p.used
	if slots == 0 {
		return token, 0
	}
	p.token++
	p.used = 0
	for n := range p.slots {
		if slots&(1<<n) != 0 {
			p.submit(p.slots[n], token)
		}
	}
	for i, l := range p.large {
		l.drop() // does nothing, unless the message was refused
		p.large[i] = nil
	}
	p.large = p.large[:0]
	return token, slots
}
