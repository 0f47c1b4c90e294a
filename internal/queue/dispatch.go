package queue

import (
	"github.com/sluicemq/sluice/internal/msg"
)

// Dispatch decides which consumer gets which messages next. Owned by the shard's loop.
// Its calls and those of its Ledger go hand in hand: first the operation is applied to the
// ledger, then the Dispatch is told (Appended, Settled, Reserved, Drop).
//
// Logs with work take turns (deficit round robin). Its own memory is per log that has
// had a consumer in this term, and per consumer.
type Dispatch struct {
	ledger *Ledger
	loc    Locator
	term   uint64
	logs   map[msg.LogID]*logDispatch
	active struct{ first, last *logDispatch } // logs that may have work, in turn
	wants  []*laneDispatch                    // to be reported by WantReserve
	out    Delivery                           // scratch

	gathering bool // see gather.go
}

// logDispatch is made when a consumer attaches or something is delivered, and stays
// until the log is deleted or the term ends: it knows what has been delivered.
type logDispatch struct {
	id        msg.LogID
	lane0     laneDispatch
	one       [1]*laneDispatch // the backing of lanes while there is one
	lanes     []*laneDispatch  // the highest first
	consumers []*Consumer
	line      line
	exclusive bool         // its only consumer is exclusive
	reserves  bool         // deliveries wait for their reservation
	active    bool         // in Dispatch.active
	dropped   bool         // deleted; may still be in Dispatch.active and wants
	after     *logDispatch // in Dispatch.active
	debt      int64        // bytes that it delivered beyond its turns
}

// NewDispatch returns a dispatch over l, started.
func NewDispatch(l *Ledger, loc Locator) *Dispatch {
	d := &Dispatch{ledger: l, loc: loc}
	d.Start(false)
	return d
}

// Start begins a term: all consumers and what was in flight are forgotten. What is below
// its lane's reserved mark now will be flagged as redelivered. Everything unsettled is
// ready; with gather, what is below the mark waits for EndGather, since consumers of the
// last term may come back for it.
func (d *Dispatch) Start(gather bool) {
	d.term++
	d.gathering = gather
	d.logs = make(map[msg.LogID]*logDispatch)
	d.active.first, d.active.last = nil, nil
	d.wants = nil
}

// log returns the state of a log, made if the ledger has the log; else nil.
func (d *Dispatch) log(id msg.LogID) *logDispatch {
	g := d.logs[id]
	if g == nil && d.ledger.Has(id) {
		p, _ := d.ledger.Profile(id)
		g = &logDispatch{id: id, reserves: !p.Unreserved}
		g.lanes = g.one[:0]
		d.ledger.Lanes(id, func(number uint8, n *Lane) bool {
			g.addLane(number, n, d.ledger.heldIn(id, number), d.gathering)
			return true
		})
		d.logs[id] = g
	}
	return g
}

// addLane adds the state of a lane from which nothing has been delivered in this term.
// held is what transactions hold of it, or nil.
func (g *logDispatch) addLane(number uint8, n *Lane, held *Set, gather bool) {
	ln := &g.lane0
	if number != 0 {
		ln = new(laneDispatch)
	}
	*ln = laneDispatch{number: number, log: g, ledger: n, head: n.low, mark: n.reserved, window: ReserveWindow, held: held}
	if held != nil {
		ln.leaving = held.count
	}
	if gather {
		ln.gather()
	}
	g.lanes = append(g.lanes, ln)
	for i := len(g.lanes) - 1; i > 0 && g.lanes[i-1].number < number; i-- {
		g.lanes[i-1], g.lanes[i] = g.lanes[i], g.lanes[i-1]
	}
}

func (g *logDispatch) lane(number uint8) *laneDispatch {
	for _, ln := range g.lanes {
		if ln.number == number {
			return ln
		}
	}
	return nil
}

// lane returns the state of a lane if its log has state, else nil.
func (d *Dispatch) lane(log msg.LogID, number uint8) *laneDispatch {
	if g := d.logs[log]; g != nil {
		return g.lane(number)
	}
	return nil
}

// activate gives the log a turn if it has consumers to serve.
func (d *Dispatch) activate(g *logDispatch) {
	if g.active || g.line.n == 0 {
		return
	}
	g.active = true
	if d.active.last != nil {
		d.active.last.after = g
	} else {
		d.active.first = g
	}
	d.active.last = g
}

// popActive takes the log whose turn it is off the list; nil when there is none.
func (d *Dispatch) popActive() *logDispatch {
	g := d.active.first
	if g != nil {
		d.active.first = g.after
		if g.after == nil {
			d.active.last = nil
		}
		g.after, g.active = nil, false
	}
	return g
}

// enlist puts c into the line if it has credit, and gives its log a turn.
func (d *Dispatch) enlist(c *Consumer) {
	if c.at != nil && c.term == d.term {
		c.at.line.enter(c)
		d.activate(c.at)
	}
}

// join makes c's state belong to this term.
func (d *Dispatch) join(c *Consumer) {
	if c.term != d.term {
		c.consumerState = consumerState{term: d.term}
	}
}

// Attach adds a consumer to its log. The error is ErrUnknownLog, ErrAttached,
// ErrExclusive or ErrInUse; or ErrGathering, since the one who comes back may be
// exclusive.
func (d *Dispatch) Attach(c *Consumer) error {
	if d.gathering && d.ledger.Has(c.Log) {
		return ErrGathering
	}
	return d.attach(c)
}

func (d *Dispatch) attach(c *Consumer) error {
	d.join(c)
	if c.at != nil {
		return ErrAttached
	}
	g := d.log(c.Log)
	switch {
	case g == nil:
		return ErrUnknownLog
	case g.exclusive:
		return ErrExclusive
	case c.Exclusive && len(g.consumers) > 0:
		return ErrInUse
	}
	g.exclusive = c.Exclusive
	c.at, c.index, c.starved = g, len(g.consumers), false
	g.consumers = append(g.consumers, c)
	d.enlist(c)
	return nil
}

// Detach removes a consumer. What is in flight to it stays so: the caller may still have
// it Acked, or Return it.
func (d *Dispatch) Detach(c *Consumer) {
	g := c.at
	if g == nil || c.term != d.term {
		return
	}
	g.line.leave(c)
	last := len(g.consumers) - 1
	g.consumers[c.index] = g.consumers[last]
	g.consumers[c.index].index = c.index
	g.consumers[last] = nil
	g.consumers = g.consumers[:last]
	g.exclusive = false
	c.at = nil
}

// Drop forgets a deleted log and returns the consumers that it had, detached, for their
// cancellation to be told.
func (d *Dispatch) Drop(log msg.LogID) []*Consumer {
	g := d.logs[log]
	if g == nil {
		return nil
	}
	delete(d.logs, log)
	cs := g.consumers
	for _, c := range cs {
		g.line.leave(c)
		c.at = nil
	}
	g.consumers, g.dropped = nil, true
	return cs
}

// free takes n messages off what c has in flight.
func (d *Dispatch) free(c *Consumer, n uint64) {
	if c.term == d.term {
		c.inFlight -= min(n, c.inFlight)
	}
	if c.Messages != nil && !c.NoAck {
		c.Messages.Give(int64(n))
	}
	d.enlist(c)
}

// Acked frees the credit of n messages in flight to c and hides them until Settled.
// The caller proposes their settlement.
func (d *Dispatch) Acked(c *Consumer, log msg.LogID, lane uint8, n uint64) {
	if ln := d.lane(log, lane); ln != nil && c.term == d.term {
		k := min(n, ln.inFlight)
		ln.inFlight -= k
		ln.leaving += k
	}
	d.free(c, n)
}

// Return makes messages in flight to c ready again, in their original place, and frees
// their credit. ranges must be disjoint. Where delivery counts matter call it when the
// counted return is applied, after Ledger.Return, so that the redelivery carries the
// new count; elsewhere at once.
func (d *Dispatch) Return(c *Consumer, log msg.LogID, lane uint8, ranges []msg.Range) {
	n := uint64(0)
	for _, r := range ranges {
		n += r.Count
	}
	// What was delivered in an earlier term is ready in this one anyway.
	if ln := d.lane(log, lane); ln != nil && c.term == d.term {
		ln.inFlight -= min(n, ln.inFlight)
		ln.putBack(ranges)
		d.activate(ln.log)
	}
	d.free(c, n)
}

// Settled tells that the ledger settled r, newly messages of it (what Ledger.Settle
// returned), for whatever reason.
func (d *Dispatch) Settled(log msg.LogID, lane uint8, r msg.Range, newly uint64) {
	ln := d.lane(log, lane)
	if ln == nil {
		return
	}
	if ln.unclaimed.count > 0 {
		newly -= ln.unclaimed.RemoveRange(r.First, rangeEnd(r))
		d.activate(ln.log) // it may have been blocked by these
	}
	ln.leaving -= min(newly, ln.leaving)
	if ln.holds() { // what is left of it is leaving still
		ln.leaving = max(ln.leaving, ln.held.count)
	}
	// After a change of leader a late ack can settle what is in flight to another
	// consumer, whose own ack then settles nothing. That must not count as
	// leaving for good.
	if u := ln.ledger.Unsettled(); ln.inFlight+ln.leaving > u {
		ln.leaving = u - min(u, ln.inFlight)
	}
	if ln.fresh.count > 0 { // the reservation may have waited for it, see floor
		d.activate(ln.log)
	}
}

// Appended tells that n messages were appended to a lane, from first on.
func (d *Dispatch) Appended(log msg.LogID, lane uint8, first msg.Offset, n uint64) {
	g := d.logs[log]
	if g == nil && d.gathering && n > 0 {
		g = d.gatherBefore(log, lane, first)
	}
	if g == nil || n == 0 {
		return
	}
	if first == 0 && g.lane(lane) == nil {
		if led, ok := d.ledger.Lane(log, lane); ok {
			g.addLane(lane, led, nil, d.gathering)
		}
	}
	d.activate(g)
}

// Kick tells that a pool which granted c nothing may have room again.
func (d *Dispatch) Kick(c *Consumer) {
	if c.starved { // else it is in line already, or has no credit
		c.starved = false
		d.enlist(c)
	}
}

// Hold tells that the ledger gave ranges of a lane to a transaction (what Ledger.Hold
// returned): they are leaving until they are settled, or Release gives them back after
// Ledger.Unhold. What its consumer acknowledged before (Acked) is leaving already.
func (d *Dispatch) Hold(log msg.LogID, lane uint8, ranges []msg.Range) {
	if ln := d.lane(log, lane); ln != nil {
		ln.held = d.ledger.heldIn(log, lane)
		ln.holdReady(ranges)
	}
}

// HoldAll hides all that is ready in a log, for a purge, until Settled or Release. What is
// unclaimed stays.
func (d *Dispatch) HoldAll(log msg.LogID) (held []Held) {
	g := d.log(log)
	if g == nil {
		return nil
	}
	for _, ln := range g.lanes {
		if ranges := ln.hold(); len(ranges) > 0 {
			held = append(held, Held{Lane: ln.number, Ranges: ranges})
		}
	}
	return held
}

// Release makes held messages ready again, when their settlement is given up.
func (d *Dispatch) Release(log msg.LogID, lane uint8, ranges []msg.Range) {
	ln := d.lane(log, lane)
	switch {
	case ln != nil:
		for _, r := range ranges {
			ln.leaving -= min(r.Count, ln.leaving)
		}
	case d.gathering:
		if ln = d.laneOf(log, lane); ln == nil {
			return
		}
		for _, r := range ranges { // made too late to know of the hold
			ln.unclaimed.RemoveRange(r.First, rangeEnd(r))
		}
	default:
		return
	}
	ln.putBack(ranges)
	d.activate(ln.log)
}

// Counts returns the figures of a log, zero for an unknown one.
func (d *Dispatch) Counts(log msg.LogID) (c Counts) {
	g := d.logs[log]
	if g == nil {
		d.ledger.Lanes(log, func(number uint8, n *Lane) bool {
			c.Ready += n.Unsettled()
			if d.gathering {
				c.Unclaimed += d.ledger.freeBelow(log, number, n, n.reserved)
			}
			return true
		})
		c.Ready -= d.ledger.HeldCount(log) + c.Unclaimed
		return c
	}
	for _, ln := range g.lanes {
		c.Unclaimed += ln.unclaimed.count
		c.Ready += ln.ready()
		c.Unacked += ln.inFlight
	}
	c.Consumers = len(g.consumers)
	return c
}
