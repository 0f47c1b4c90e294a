package queue

import (
	"maps"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

// laneDispatch is what the leader knows of a lane beyond the ledger.
type laneDispatch struct {
	number uint8
	wanted bool   // in Dispatch.wants
	window uint32 // how far to reserve ahead: ReserveWindow to MaxReserveWindow
	log    *logDispatch
	ledger *Lane
	mark   msg.Offset // reserved when the term began: below it everything is flagged
	// Invariant: nothing at or beyond head has been delivered in this term, everything
	// unsettled below it is in flight, leaving, unclaimed or in returned.
	head     msg.Offset
	returned Set  // below head and ready again
	fresh    Set  // below head and not delivered in this term: held once, perhaps returned since
	held     *Set // the ledger's set of what transactions hold; nil or empty for nothing
	inFlight uint64
	leaving  uint64 // acknowledged, delivered without ack, or held; not settled yet
	// The outstanding request of WantReserve. asked is 0 when there is none.
	asked, askedFrom, askedAt msg.Offset // asked for, reserved and floor at that time

	known     msg.Offset // all below it was delivered in earlier terms; see gather.go
	unclaimed Set        // only while gathering. Invariant: below head and unsettled
}

func (ln *laneDispatch) ready() uint64 {
	u := ln.ledger.Unsettled()
	return u - min(u, ln.inFlight+ln.leaving+ln.unclaimed.count)
}

// putBack makes offsets that were handed out ready again, but for those that a
// transaction holds: these are leaving.
func (ln *laneDispatch) putBack(ranges []msg.Range) {
	for _, r := range ranges {
		from, to := max(r.First, ln.ledger.low), min(rangeEnd(r), ln.head)
		ln.returned.AddRange(from, to)
		if !ln.holds() {
			continue
		}
		for _, h := range ln.held.AppendRanges(nil, from, to) {
			ln.returned.RemoveRange(h.First, rangeEnd(h))
			ln.leaving += h.Count
		}
	}
}

func (ln *laneDispatch) holds() bool { return ln.held != nil && ln.held.count > 0 }

// holdReady makes ready and unclaimed offsets leaving.
func (ln *laneDispatch) holdReady(ranges []msg.Range) {
	for _, r := range ranges {
		if from, to := max(r.First, ln.head), rangeEnd(r); from < to {
			ln.leaving += to - from
		}
		ln.leaving += ln.returned.RemoveRange(r.First, min(rangeEnd(r), ln.head))
		ln.leaving += ln.unclaimed.RemoveRange(r.First, rangeEnd(r))
		ln.fresh.RemoveRange(r.First, rangeEnd(r)) // it was delivered once
	}
}

// nextFree returns the first offset at or after off that is unsettled and not held, or
// the tail.
func (ln *laneDispatch) nextFree(off msg.Offset) msg.Offset {
	off = ln.ledger.NextUnsettled(off)
	for ln.holds() && ln.held.Contains(off) {
		off = ln.ledger.NextUnsettled(ln.held.NextClear(off))
	}
	return off
}

// batch is a range of ready messages that are delivered alike.
type batch struct {
	first, end  msg.Offset
	attempts    uint32
	redelivered bool
}

// nextReady returns the next messages in queue order: what was returned is older than
// head.
func (ln *laneDispatch) nextReady() (b batch, ok bool) {
	for ln.returned.count > 0 {
		first, _ := ln.returned.NextSet(0)
		if s := ln.ledger.NextUnsettled(first); s != first { // settled behind our back
			ln.returned.RemoveRange(first, s)
			continue
		}
		b = batch{first: first, end: min(ln.returned.NextClear(first), ln.ledger.NextSettled(first))}
		ln.judge(&b)
		return b, true
	}
	first := ln.nextFree(ln.head)
	if first >= ln.ledger.tail {
		return b, false
	}
	b = batch{first: first, end: ln.ledger.NextSettled(first)}
	if ln.holds() {
		if h, ok := ln.held.NextSet(first); ok {
			b.end = min(b.end, h)
		}
	}
	ln.judge(&b)
	return b, true
}

// judge tells whether the first message of b was delivered before and how often it was
// counted, and cuts b down to those of which the same is true.
func (ln *laneDispatch) judge(b *batch) {
	switch {
	case b.first < ln.mark:
		b.redelivered = true
		b.end = min(b.end, ln.mark)
	case b.first >= ln.head:
	case ln.fresh.count == 0:
		b.redelivered = true
	case ln.fresh.Contains(b.first):
		b.end = min(b.end, ln.fresh.NextClear(b.first))
	default:
		b.redelivered = true
		if f, ok := ln.fresh.NextSet(b.first); ok {
			b.end = min(b.end, f)
		}
	}
	var end msg.Offset
	b.attempts, end = ln.ledger.attemptsRun(b.first)
	b.end = min(b.end, end)
}

// handOut takes [first, end), of which nextReady spoke, off what is ready.
func (ln *laneDispatch) handOut(first, end msg.Offset) {
	if first >= ln.head {
		ln.head = end
		return
	}
	ln.returned.RemoveRange(first, end)
	if ln.fresh.count > 0 {
		ln.fresh.RemoveRange(first, end)
	}
}

// hold takes everything that is ready and returns it.
func (ln *laneDispatch) hold() (ranges []msg.Range) {
	for at := msg.Offset(0); ; {
		from, ok := ln.returned.NextSet(at)
		if !ok {
			break
		}
		at = ln.returned.NextClear(from)
		ranges = ln.ledger.AppendUnsettled(ranges, msg.Range{First: from, Count: at - from})
	}
	ln.returned = Set{}
	head := max(ln.head, ln.ledger.low)
	if tail := ln.ledger.tail; head < tail {
		rest := without(ln.ledger.AppendUnsettled(nil, msg.Range{First: head, Count: tail - head}), ln.held)
		ranges = append(ranges, rest...)
		ln.fresh.AddRange(head, tail)
		if ln.holds() { // those were delivered once
			for _, h := range ln.held.AppendRanges(nil, head, tail) {
				ln.fresh.RemoveRange(h.First, rangeEnd(h))
			}
		}
		ln.head = tail
	}
	for _, r := range ranges {
		ln.leaving += r.Count
	}
	return ranges
}

// floor returns the first offset that may never have been delivered, which
// reservations count from. It never falls: what is held is below head but can come
// back as fresh, so it stays in the count until it is settled or delivered.
func (ln *laneDispatch) floor() msg.Offset {
	if ln.unclaimed.count > 0 {
		first, _ := ln.unclaimed.NextSet(0)
		return first // anything else that counts is above
	}
	for ln.fresh.count > 0 {
		first, _ := ln.fresh.NextSet(0)
		s := ln.ledger.NextUnsettled(first)
		if s == first {
			return first
		}
		ln.fresh.RemoveRange(first, s)
	}
	return ln.nextFree(ln.head) // what a transaction holds was delivered
}

// Reservations of a lane reach at least ReserveWindow and at most MaxReserveWindow offsets
// beyond the first one that was never delivered: at most MaxReserveWindow fresh messages
// of a lane are flagged as redelivered after a crash.
//
// An extension is asked for when less than half of the window is left, so the other half
// must last until it commits. A lane that used three quarters of what was left while it
// waited doubles its window, one that used less than a sixteenth of the window halves
// it; its first request in a term says nothing. At the most 2,048 messages of a lane go
// out while a reservation commits: 600,000 per second if that takes 3 ms.
const (
	ReserveWindow    = 1024
	MaxReserveWindow = 4096
)

// checkReserve notes that the lane needs an extension, if so. dry says that a consumer waits
// for one.
func (d *Dispatch) checkReserve(ln *laneDispatch, dry bool) {
	if ln.wanted || ln.asked != 0 || !ln.log.reserves {
		return
	}
	if f := ln.floor(); dry || ln.ledger.reserved < f+uint64(ln.window/2) {
		ln.wanted = true
		d.wants = append(d.wants, ln)
	}
}

// WantReserve calls fn for each lane that needs its reserved mark raised to upto. The caller
// proposes it and calls Reserved when that is over; until then the lane isn't reported
// again. Call it when a batch is formed, and after Run. fn must not call the Dispatch.
func (d *Dispatch) WantReserve(fn func(log msg.LogID, lane uint8, upto msg.Offset)) {
	d.WantReserveSome(len(d.wants), fn)
}

// WantReserveSome is WantReserve for the first so many lanes; true if there are more.
func (d *Dispatch) WantReserveSome(most int, fn func(log msg.LogID, lane uint8, upto msg.Offset)) (more bool) {
	most = min(most, len(d.wants))
	for _, ln := range d.wants[:most] {
		ln.wanted = false
		f := ln.floor()
		upto := f + uint64(ln.window)
		if ln.log.dropped || upto <= ln.ledger.reserved {
			continue
		}
		ln.asked, ln.askedFrom, ln.askedAt = upto, ln.ledger.reserved, f
		fn(ln.log.id, ln.number, upto)
	}
	n := copy(d.wants, d.wants[most:])
	clear(d.wants[n:])
	d.wants = d.wants[:n]
	return n > 0
}

// Reserved tells that a lane's request of WantReserve is over: applied, or lost.
func (d *Dispatch) Reserved(log msg.LogID, lane uint8) {
	ln := d.lane(log, lane)
	if ln == nil {
		return
	}
	if ln.asked != 0 && ln.ledger.reserved >= ln.asked && ln.askedFrom > ln.mark {
		left, used := ln.askedFrom-min(ln.askedAt, ln.askedFrom), max(ln.floor(), ln.askedAt)-ln.askedAt
		switch {
		case used >= left-left/4:
			ln.window = min(ln.window*2, MaxReserveWindow)
		case used < uint64(ln.window/16):
			ln.window = max(ln.window/2, ReserveWindow)
		}
	}
	ln.asked = 0
	d.activate(ln.log)
}

// ExactReserves calls fn for each lane whose reserved mark is beyond what may have been
// delivered, with the mark that says so, for Ledger.ReserveExact at a clean stop.
// Nothing may be delivered after it. In the order of the logs' ids, so that the same run
// makes the same command.
func (d *Dispatch) ExactReserves(fn func(log msg.LogID, lane uint8, upto msg.Offset)) {
	for _, id := range slices.Sorted(maps.Keys(d.logs)) {
		g := d.logs[id]
		for _, ln := range g.lanes {
			if upto := max(ln.head, ln.mark); upto < ln.ledger.reserved {
				fn(g.id, ln.number, upto)
			}
		}
	}
}
