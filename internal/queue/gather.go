package queue

import (
	"errors"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

// ErrGathering is the error of Attach while it is not known who consumes the log; Attach
// again after EndGather.
var ErrGathering = errors.New("queue: consumers of the last term are coming back")

// Consumers outlive a leader, on nodes that it knows nothing of. So a term may begin with
// a time of gathering: what an earlier leader may have delivered, everything unsettled
// below a lane's reserved mark, is unclaimed and goes to nobody until the consumers that
// hold it have come back with Reattach and Claim, or EndGather says that they don't.
//
// Meanwhile a lane gives out what was appended since, unless something stands before it
// that may never have been delivered: that would turn the order around. What was
// delivered is known by the claims, since a lane is delivered in order: all below the
// highest one was.

// Gathering reports whether a gathering goes on.
func (d *Dispatch) Gathering() bool { return d.gathering }

// gather makes what may have been delivered in an earlier term unclaimed; for a new lane.
func (ln *laneDispatch) gather() {
	end := min(ln.mark, ln.ledger.tail)
	if end <= ln.ledger.low {
		return
	}
	ln.head = end
	for _, r := range without(ln.ledger.AppendUnsettled(nil, msg.Range{First: 0, Count: end}), ln.held) {
		ln.unclaimed.AddRange(r.First, rangeEnd(r))
	}
}

// freeBelow returns how much of a lane below off is unsettled and not held.
func (l *Ledger) freeBelow(log msg.LogID, number uint8, n *Lane, off msg.Offset) uint64 {
	u := n.UnsettledIn(msg.Range{First: 0, Count: off})
	if s := l.heldIn(log, number); s != nil {
		u -= s.CountRange(0, off)
	}
	return u
}

// gatherBefore makes the state of a log as it was before something was appended to a
// lane from first on.
func (d *Dispatch) gatherBefore(log msg.LogID, lane uint8, first msg.Offset) *logDispatch {
	g := d.log(log)
	if ln := d.lane(log, lane); ln != nil && ln.head > first {
		ln.unclaimed.RemoveRange(first, ln.head)
		ln.head = first
	}
	return g
}

// block returns the first message that is unclaimed and may never have been delivered.
func (ln *laneDispatch) block() (off msg.Offset, ok bool) {
	if ln.unclaimed.count == 0 {
		return 0, false
	}
	return ln.unclaimed.NextSet(ln.known)
}

// Reattach is Attach for a consumer of an earlier term; it also works during a gathering.
func (d *Dispatch) Reattach(c *Consumer) error { return d.attach(c) }

// Claim gives back to c what it holds of a lane of its log, which it got in an earlier term:
// it is in flight again. ranges must be sorted and disjoint. Refused is what c may not
// keep: it is settled, or another's by now, or was never delivered. c needn't be
// attached. Nothing is taken from the pools of c: what it holds was taken from them
// already, and the caller gives back what is refused.
//
// What is below the mark of the term and is unclaimed or ready can be claimed: so one who
// comes after EndGather gets what is not in flight to somebody else.
func (d *Dispatch) Claim(c *Consumer, lane uint8, ranges []msg.Range) (refused []msg.Range) {
	d.join(c)
	ln := d.laneOf(c.Log, lane)
	if ln == nil {
		return ranges
	}
	n, refused := ln.claim(ranges, ln.mark)
	for _, r := range ranges {
		ln.known = max(ln.known, min(rangeEnd(r), ln.mark))
	}
	if c.NoAck {
		ln.leaving += n
	} else {
		ln.inFlight += n
		c.inFlight += n
	}
	if c.at != nil && !c.mayReceive() {
		c.at.line.leave(c)
	}
	d.activate(ln.log)
	return refused
}

// ClaimLeaving hides until Settled what an earlier term settled, by a submission that is
// still on its way. Ranges as for Claim; refused are those that are neither unclaimed nor
// ready: they are left alone.
func (d *Dispatch) ClaimLeaving(log msg.LogID, lane uint8, ranges []msg.Range) (refused []msg.Range) {
	ln := d.laneOf(log, lane)
	if ln == nil {
		return ranges
	}
	n, refused := ln.claim(ranges, ln.ledger.tail)
	ln.leaving += n
	d.activate(ln.log)
	return refused
}

// laneOf returns the state of a lane, made if the ledger has its log; else nil.
func (d *Dispatch) laneOf(log msg.LogID, number uint8) *laneDispatch {
	if g := d.log(log); g != nil {
		return g.lane(number)
	}
	return nil
}

// claim takes what is below limit and unclaimed or ready; n messages.
func (ln *laneDispatch) claim(ranges []msg.Range, limit msg.Offset) (n uint64, refused []msg.Range) {
	for _, r := range ranges {
		at, end := r.First, rangeEnd(r)
		for at < end {
			first, e := ln.claimable(at, min(end, limit))
			if first == e {
				first, e = end, end
			}
			if at < first {
				refused = appendRange(refused, at, first)
			}
			if first < e {
				ln.claimOut(first, e)
				n += e - first
			}
			at = e
		}
	}
	return n, refused
}

// claimable returns the first range within [at, end) that can be claimed; an empty one if
// there is none.
func (ln *laneDispatch) claimable(at, end msg.Offset) (first, e msg.Offset) {
	first = end
	if f, ok := ln.unclaimed.NextSet(at); ok && f < end {
		first, e = f, min(ln.unclaimed.NextClear(f), end)
	}
	for from := at; from < first; {
		f, ok := ln.returned.NextSet(from)
		if !ok || f >= first {
			break
		}
		if from = ln.ledger.NextUnsettled(f); from == f { // else settled behind our back
			return f, min(ln.returned.NextClear(f), ln.ledger.NextSettled(f), end)
		}
	}
	if first < end {
		return first, e
	}
	if f := ln.nextFree(max(at, ln.head)); f < end {
		e = min(ln.ledger.NextSettled(f), end)
		if ln.holds() {
			if h, ok := ln.held.NextSet(f); ok {
				e = min(e, h)
			}
		}
		return f, e
	}
	return end, end
}

// claimOut takes [first, end), of which claimable spoke, off what is unclaimed or ready.
func (ln *laneDispatch) claimOut(first, end msg.Offset) {
	switch {
	case ln.unclaimed.count > 0 && ln.unclaimed.Contains(first):
		ln.unclaimed.RemoveRange(first, end)
		return
	case first > ln.head: // what is skipped is ready, and perhaps never delivered
		for _, r := range without(ln.ledger.AppendUnsettled(nil, msg.Range{First: ln.head, Count: first - ln.head}), ln.held) {
			ln.returned.AddRange(r.First, rangeEnd(r))
			ln.fresh.AddRange(r.First, rangeEnd(r))
		}
		ln.head = first
	}
	ln.handOut(first, end)
}

// EndGather ends a gathering: what nobody claimed is ready, and flagged as redelivered.
func (d *Dispatch) EndGather() {
	if !d.gathering {
		return
	}
	d.gathering = false
	ids := make([]msg.LogID, 0, len(d.logs))
	for id := range d.logs {
		ids = append(ids, id)
	}
	slices.Sort(ids) // so that the turns don't depend on chance
	for _, id := range ids {
		g := d.logs[id]
		for _, ln := range g.lanes {
			ln.endGather()
		}
		d.activate(g)
	}
}

func (ln *laneDispatch) endGather() {
	for at := msg.Offset(0); ; {
		first, ok := ln.unclaimed.NextSet(at)
		if !ok {
			break
		}
		at = ln.unclaimed.NextClear(first)
		ln.returned.AddRange(first, at)
		ln.fresh.AddRange(first, at) // for the count of reservations: it may be
	}
	ln.unclaimed = Set{}
}
