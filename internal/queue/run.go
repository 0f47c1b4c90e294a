package queue

import (
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/planted"
)

// A log's turn ends after TurnMessages or when TurnBytes are delivered, whichever comes
// first. Bytes beyond are a debt that its next turns pay off, up to debtMax: so one
// huge message delays the log's others by at most 16 turns.
const (
	TurnMessages = 64
	TurnBytes    = 64 << 10

	debtMax = 16 * TurnBytes
)

// perConsumer is how many ready messages there must be for each consumer in line, for
// one of them to get a message more at a time: few messages are dealt one by one.
const perConsumer = 8

// Run delivers up to maxDeliveries ranges and reports whether there is more to do. The
// order is that of the queue within a log: the highest lane first, in it returned ones
// first, then by offset. Consumers with credit take turns, per message while few are
// ready. out must not call the Dispatch, nor keep the Delivery.
func (d *Dispatch) Run(maxDeliveries int, out func(*Delivery)) (more bool) {
	for n := 0; n < maxDeliveries; {
		g := d.popActive()
		if g == nil {
			return false
		}
		n += d.serve(g, maxDeliveries-n, out)
	}
	return d.active.first != nil
}

// serve gives a log its turn and returns the number of deliveries made.
func (d *Dispatch) serve(g *logDispatch, limit int, out func(*Delivery)) (n int) {
	if g.debt >= TurnBytes {
		g.debt -= TurnBytes
		d.activate(g)
		return 0
	}
	room, messages := TurnBytes-g.debt, uint64(TurnMessages)
	for {
		c := g.line.first
		if c == nil {
			break
		}
		ln, b, status := g.next()
		if status != GetFound {
			if ln != nil {
				d.checkReserve(ln, true)
			}
			break
		}
		if n == limit || messages == 0 || room <= 0 {
			d.activate(g)
			break
		}
		b.end = min(b.end, b.first+min(messages, g.share()))
		if d.deliver(c, ln, b, room) {
			n++
			messages -= uint64(d.out.Count)
			room -= int64(d.out.Bytes)
			out(&d.out)
		}
	}
	g.debt = min(max(-room, 0), debtMax)
	if len(g.consumers) > 0 {
		for _, ln := range g.lanes {
			d.checkReserve(ln, false)
		}
	}
	return n
}

// share returns how many messages the first in line may get at once.
func (g *logDispatch) share() uint64 {
	if g.line.n == 1 {
		return TurnMessages
	}
	ready := uint64(0)
	for _, ln := range g.lanes {
		ready += ln.ready()
	}
	return min(max(ready/uint64(perConsumer*g.line.n), 1), TurnMessages)
}

// next returns the next messages of a log in queue order, cut down to what is reserved.
// A lane that waits for its reservation or for claims holds the lower ones back: to pass
// it would turn priorities around. With GetWait the lane is the one that needs a
// reservation, nil if there are claims to wait for.
func (g *logDispatch) next() (*laneDispatch, batch, GetStatus) {
	status := GetEmpty
	for _, ln := range g.lanes {
		b, ok := ln.nextReady()
		if off, blocked := ln.block(); blocked && (!ok || off < b.first) {
			return nil, batch{}, GetWait
		}
		if !ok {
			if ln.unclaimed.count > 0 {
				status = GetWait
			}
			continue
		}
		if g.reserves && !planted.ReserveAfterDelivery {
			if b.first >= ln.ledger.reserved {
				return ln, b, GetWait
			}
			b.end = min(b.end, ln.ledger.reserved)
		}
		return ln, b, GetFound
	}
	return nil, batch{}, status
}

// deliver hands as much of b to c as its credit allows, by preparing d.out, and moves c
// to the end of the line; or it takes c out of the line and returns false when a pool
// grants nothing. room is what the log's turn has left in bytes, at least 1.
func (d *Dispatch) deliver(c *Consumer, ln *laneDispatch, b batch, room int64) bool {
	want := b.end - b.first
	if !c.NoAck {
		if c.Prefetch > 0 {
			want = min(want, uint64(c.Prefetch)-c.inFlight)
		}
		if c.Messages != nil {
			granted := c.Messages.Take(int64(want))
			if granted <= 0 {
				return d.starve(c)
			}
			want = min(want, uint64(granted))
		}
	}
	src, n, bytes := d.locate(ln, b.first, want)
	n, bytes = fit(n, bytes, uint64(room))
	if c.Bytes != nil {
		ask := max(bytes, 1)
		granted := c.Bytes.Take(int64(ask))
		if granted > 0 {
			n, bytes = fit(n, ask, uint64(granted))
			if granted != int64(bytes) {
				c.Bytes.Give(granted - int64(bytes))
			}
		} else {
			n = 0
		}
	}
	if c.Messages != nil && !c.NoAck && n < want {
		c.Messages.Give(int64(want - n))
	}
	if n == 0 {
		return d.starve(c)
	}
	d.handOver(c, ln, b, src, n, bytes)
	c.at.line.leave(c)
	c.at.line.enter(c)
	return true
}

// starve takes c out of the line until it is kicked.
func (d *Dispatch) starve(c *Consumer) bool {
	c.starved = true
	c.at.line.leave(c)
	return false
}

// locate asks the Locator, and doesn't trust it with the bounds.
func (d *Dispatch) locate(ln *laneDispatch, off msg.Offset, most uint64) (src Source, n, bytes uint64) {
	src, n, bytes = d.loc.Locate(ln.log.id, ln.number, off, most)
	return src, min(max(n, 1), most), bytes
}

// fit reduces n messages of so many bytes together to those that fit into room by their
// average size, but not below one.
func fit(n, bytes, room uint64) (uint64, uint64) {
	if bytes <= room || n == 1 {
		return n, bytes
	}
	k := max(n*room/bytes, 1)
	return k, (bytes*k + n - 1) / n
}

// handOver accounts for the delivery of n messages and describes it in d.out.
func (d *Dispatch) handOver(c *Consumer, ln *laneDispatch, b batch, src Source, n, bytes uint64) {
	ln.handOut(b.first, b.first+n)
	if c.NoAck {
		ln.leaving += n
	} else {
		ln.inFlight += n
		c.inFlight += n
	}
	d.out = Delivery{
		Consumer: c, Log: ln.log.id, Lane: ln.number,
		Redelivered: b.redelivered, Attempts: b.attempts,
		First: b.first, Count: uint32(n), Bytes: bytes, Src: src,
	}
}

// Get hands out the next ready message of a log to c, which needn't be attached, has no
// Messages pool, and whose Prefetch and Bytes are not asked.
func (d *Dispatch) Get(log msg.LogID, c *Consumer) (Delivery, GetStatus) {
	d.join(c)
	g := d.log(log)
	if g == nil {
		return Delivery{}, GetEmpty
	}
	ln, b, status := g.next()
	if status != GetFound {
		if ln != nil {
			d.checkReserve(ln, true)
		}
		return Delivery{}, status
	}
	src, _, bytes := d.locate(ln, b.first, 1)
	d.handOver(c, ln, b, src, 1, bytes)
	d.out.Get = true
	d.checkReserve(ln, false)
	return d.out, GetFound
}
