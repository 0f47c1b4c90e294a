package broker

import (
	"slices"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/shard"
)

// Large is a message whose body goes ahead of it, part by part as it arrives, to each
// shard that has a queue for it. It is routed when it begins and appended when Publish
// is called; a message published in between comes before it. Owned by the session's
// reader goroutine.
type Large struct {
	p      *Publisher
	log    msg.LogID
	size   uint64
	have   uint64
	parts  uint32
	w      msg.PartWriter
	to     []destination
	routed bool
	lost   bool // a part was not taken: the message can't be stored everywhere
}

// destination is a shard that gets the parts, and the queues there.
type destination struct {
	shard   *engine.Shard
	targets []msg.Target
}

// Kept is a body that no queue took, kept in the volatile shard to be sent back. It takes
// space until Drop.
type Kept struct {
	shard *engine.Shard
	ref   msg.PartsRef
}

// Drop gives the body up; for any goroutine.
func (k Kept) Drop() { k.shard.DropBody(k.ref.Log) }

// IsLarge reports whether a body of so many bytes goes by Begin.
func (p *Publisher) IsLarge(size uint64) bool { return size > uint64(p.s.b.cfg.LargeBytes) }

// Begin routes a message by several keys, of which size bytes of body will come. Without
// a queue for it the body is dropped as it comes, or with keep kept. NotFound,
// AccessRefused: as by Publish. ResourceError: no more large bodies before a restart.
func (p *Publisher) Begin(exchange []byte, keys [][]byte, h route.HeaderLookup, size uint64, keep bool) (*Large, error) {
	vh, ex, err := p.exchange(exchange, keys...)
	if err != nil {
		return nil, err
	}
	log, ok := p.s.b.node.NewParts()
	if !ok {
		return nil, berr.New(berr.ResourceError, "no more messages of this size before a restart")
	}
	l := &Large{p: p, log: log, size: size}
	for _, q := range p.routeAll(vh, ex, keys, h) {
		l.routed = true
		l.add(p.s.b.node.Shard(uint32(q.Shard)), msg.Target{Log: q.ID})
	}
	if !l.routed && keep {
		l.to = append(l.to, destination{shard: p.s.b.node.Shard(engine.VolatileShard)})
	}
	return l, nil
}

func (l *Large) add(s *engine.Shard, t msg.Target) {
	i := slices.IndexFunc(l.to, func(d destination) bool { return d.shard == s })
	if i < 0 {
		i = len(l.to)
		l.to = append(l.to, destination{shard: s})
	}
	l.to[i].targets = append(l.to[i].targets, t)
}

// Buffered returns what the message takes in memory.
func (l *Large) Buffered() int { return l.w.Cap() }

// Write takes the next piece of the body; all of them make the size that Begin was told.
// It is copied. It may block while the broker is behind.
func (l *Large) Write(piece []byte) {
	if len(l.to) == 0 {
		l.have += uint64(len(piece))
		return
	}
	limit := l.p.s.b.cfg.PartBytes
	for len(piece) > 0 {
		n := l.w.Write(piece, limit)
		l.have += uint64(n)
		piece = piece[n:]
		if l.w.Len() == limit || l.have == l.size {
			l.submit()
		}
	}
}

// submit hands the part to all shards; its bytes are shared.
func (l *Large) submit() {
	chunk := l.w.Finish(l.log, l.parts)
	l.parts++
	for range l.to[1:] {
		chunk.Retain()
	}
	for _, d := range l.to {
		if !l.p.waitPressure(d.shard.ID()) {
			chunk.Release() // so the message will be refused there
			l.lost = true
			continue
		}
		d.shard.SubmitWait(shard.Sub{Chunk: chunk}, l.p.s.b.stop)
	}
}

func (l *Large) ref() msg.PartsRef { return msg.PartsRef{Log: l.log, Count: l.parts, Bytes: l.size} }

// Publish adds the message, whose body is complete, to the current flush, as
// Publisher.Publish does.
func (l *Large) Publish(e *msg.Envelope) Published {
	out := Published{Routed: l.routed}
	if !l.routed {
		return out
	}
	for _, d := range l.to {
		sl, bit := l.p.slot(d.shard.ID())
		sl.b.AppendLarge(d.targets, msg.Cond{}, e, l.ref())
		out.Slots |= bit
	}
	l.p.large = append(l.p.large, l)
	return out
}

// Keep returns the body that was kept; ok is false if a queue took it, or it was not to be
// kept.
func (l *Large) Keep() (k Kept, ok bool) {
	if l.routed || len(l.to) == 0 {
		return k, false
	}
	return Kept{shard: l.to[0].shard, ref: l.ref()}, true
}

// Drop gives the message up before Publish: what has come of the body goes.
func (l *Large) Drop() {
	l.w.Reset()
	l.drop()
}

// drop gives up the body where no message has it. It comes behind the message on the
// link, so that it does nothing where that was applied.
func (l *Large) drop() {
	if l.parts == 0 {
		return
	}
	for _, d := range l.to {
		d.shard.DropBody(l.log)
	}
}
