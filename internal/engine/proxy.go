package engine

import (
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
)

// proxy stands in the dispatch for a consumer of another node.
type proxy struct {
	*Consumer
	peer *remoteGateway

	messages, bytes pool
	wanting, asked  bool
}

// Base implements Based.
func (x *proxy) Base() *Consumer { return x.Consumer }

// pool is what a gateway granted of a session's pool. Only what the dispatch takes too
// much in a run comes back to it: what is acknowledged goes to the session's.
type pool struct {
	of   *proxy
	free int64
	want int64
}

// Take implements queue.Pool.
func (p *pool) Take(n int64) int64 {
	g := max(min(n, p.free), 0)
	if g == 0 {
		p.want = n
		p.of.starve()
	}
	p.free -= g
	return g
}

// Give implements queue.Pool.
func (p *pool) Give(n int64) {
	if p.of.peer.m.running {
		p.free = max(p.free+n, 0)
	}
}

func (x *proxy) starve() {
	if !x.wanting {
		x.wanting = true
		x.peer.m.wanting = append(x.peer.m.wanting, x)
	}
}

// Deliver implements Sink.
func (x *proxy) Deliver(d *queue.Delivery) {
	x.peer.send(&Message{
		Kind: MsgDeliver, Consumer: x.ID, Bytes: int64(d.Bytes), Lane: d.Lane, Redelivered: d.Redelivered,
		Attempts: d.Attempts, First: d.First, Count: d.Count, from: *d,
	})
}

// Got implements Sink.
func (x *proxy) Got(token uint64, d *queue.Delivery, left uint64) {
	out := &Message{Kind: MsgGot, Consumer: x.ID, Token: token, Left: left}
	if d != nil {
		out.Bytes, out.Lane, out.Redelivered, out.Attempts = int64(d.Bytes), d.Lane, d.Redelivered, d.Attempts
		out.First, out.Count, out.from = d.First, d.Count, *d
	}
	x.peer.send(out)
}

// GetFailed implements Sink. It isn't called: a shard that fails forgets proxies first.
func (x *proxy) GetFailed(uint64, error) {}

// Canceled implements Sink: its node learns of the deletion when it applies it.
func (x *proxy) Canceled(*Consumer) {}

// Hungry implements Sink.
func (x *proxy) Hungry(queue.Pool) {}

// acked frees the credit of what is settled soon, or is being settled.
func (x *proxy) acked(n uint8, rs []msg.Range) { x.peer.leaving.add(x.Log, n, x.hide(n, rs)) }

// hide frees the credit of what x holds of ranges, and hides it.
func (x *proxy) hide(n uint8, rs []msg.Range) []msg.Range {
	held, count := x.letGo(n, rs)
	if count > 0 && !x.NoAck {
		x.peer.m.dispatch.Acked(&x.Consumer.Consumer, x.Log, n, count)
	}
	return held
}

// giveBack makes what x holds of ranges ready again.
func (x *proxy) giveBack(n uint8, rs []msg.Range) {
	held, count := x.letGo(n, rs)
	switch {
	case count == 0:
	case x.NoAck:
		x.peer.m.dispatch.Release(x.Log, n, held)
	default:
		x.peer.m.dispatch.Return(&x.Consumer.Consumer, x.Log, n, held)
	}
}

// release gives back what x holds, but for what waits for its counted return, and
// forgets x.
func (p *remoteGateway) release(x *proxy, returning []Claim) {
	p.hideReturning(x, returning)
	for _, h := range x.holding() {
		x.giveBack(h.Lane, h.Ranges)
	}
	p.forget(x)
}
