package queue

import (
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

// Code is the kind of an append's outcome.
type Code uint8

// Outcomes of an append to one target.
const (
	Appended  Code = iota // stored at First
	Unknown               // the ledger has no such log; not an error of the batch
	Sealed                // the log takes no more appends
	Duplicate             // the producer's messages are there already, at First
	Refused               // the precondition does not hold; see Outcome.Why
)

// Outcome is what became of an append to one target.
type Outcome struct {
	Code  Code
	Why   Refusal
	First msg.Offset // Appended, Duplicate: offset of the first message (or NoOffset)
}

// EnsureOutcome is what Ensure did.
type EnsureOutcome uint8

// Outcomes of Ensure.
const (
	EnsureSame    EnsureOutcome = iota // the log exists with this profile
	EnsureMade                         // the log is new
	EnsureChanged                      // the log exists, its profile was another
	EnsureGone                         // the id was deleted and is not made again
)

// Ledger is the replicated state of a shard's logs. Operations on logs, lanes or offsets
// that do not exist change nothing.
type Ledger struct {
	logs     map[msg.LogID]*logState
	profiles map[string]*profileRef
	shardState
	holds holds
	bodies
	now int64 // see SetTime
	checkpoint
	restore *restoring // not nil from the first Restore to RestoreDone
}

// logState is 112 bytes; see TestLogMemory before adding to it.
type logState struct {
	id        msg.LogID
	profile   *profileRef
	lane0     Lane
	more      *laneTable // nil while there is lane 0 only
	repeats   *repeats   // nil while nothing was appended under a name or number
	changedIn uint32     // checkpoint epoch of the first change not yet taken; 0 = none
	sealed    bool
	stored    bool // a checkpoint has the log's head
}

type laneTable struct {
	lanes []*numberedLane // sorted by number; pointers, since a Lane must not move
}

type numberedLane struct {
	number uint8 // 1 to 255
	Lane
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{
		logs:       make(map[msg.LogID]*logState),
		profiles:   make(map[string]*profileRef),
		holds:      holds{txs: make(map[msg.TxID][]LaneRanges), lanes: make(map[laneID]*Set)},
		bodies:     bodies{parts: map[msg.LogID]uint32{}, bound: map[laneID]*boundLane{}},
		checkpoint: checkpoint{epoch: 1},
	}
}

// Len returns the number of logs.
func (l *Ledger) Len() int { return len(l.logs) }

// Logs calls fn with each log's id, in no particular order, until fn returns false.
func (l *Ledger) Logs(fn func(log msg.LogID) bool) {
	for id := range l.logs {
		if !fn(id) {
			return
		}
	}
}

// Has reports whether the log exists.
func (l *Ledger) Has(log msg.LogID) bool { return l.logs[log] != nil }

// Profile returns the log's profile, ok=false when the log does not exist.
func (l *Ledger) Profile(log msg.LogID) (p Profile, ok bool) {
	if g := l.logs[log]; g != nil {
		return g.profile.Profile, true
	}
	return Profile{}, false
}

// EncodedProfile returns the bytes that Ensure gave, "" for an unknown log.
func (l *Ledger) EncodedProfile(log msg.LogID) string {
	if g := l.logs[log]; g != nil {
		return g.profile.raw
	}
	return ""
}

// IsSealed reports whether the log exists and refuses appends.
func (l *Ledger) IsSealed(log msg.LogID) bool {
	g := l.logs[log]
	return g != nil && g.sealed
}

// Lane returns a lane of a log for reading, ok=false when the log does not exist or
// nothing was ever appended to the lane; lane 0 always exists. The pointer is valid
// until the log is deleted.
func (l *Ledger) Lane(log msg.LogID, lane uint8) (ln *Lane, ok bool) {
	if g := l.logs[log]; g != nil {
		ln = g.lane(lane)
	}
	return ln, ln != nil
}

// Lanes calls fn with each lane of a log, lowest first, until fn returns false.
func (l *Ledger) Lanes(log msg.LogID, fn func(lane uint8, ln *Lane) bool) {
	g := l.logs[log]
	if g == nil || !fn(0, &g.lane0) || g.more == nil {
		return
	}
	for _, n := range g.more.lanes {
		if !fn(n.number, &n.Lane) {
			return
		}
	}
}

// lane returns the lane or nil.
func (g *logState) lane(number uint8) *Lane {
	if number == 0 {
		return &g.lane0
	}
	if g.more == nil {
		return nil
	}
	for _, n := range g.more.lanes {
		if n.number == number {
			return &n.Lane
		}
	}
	return nil
}

func (g *logState) makeLane(number uint8) *Lane {
	if n := g.lane(number); n != nil {
		return n
	}
	if g.more == nil {
		g.more = new(laneTable)
	}
	n := &numberedLane{number: number}
	i := 0
	for i < len(g.more.lanes) && g.more.lanes[i].number < number {
		i++
	}
	g.more.lanes = slices.Insert(g.more.lanes, i, n)
	return &n.Lane
}

func (g *logState) unsettled() uint64 {
	u := g.lane0.Unsettled()
	if g.more != nil {
		for _, n := range g.more.lanes {
			u += n.Unsettled()
		}
	}
	return u
}

// SetTime tells the time of the batch that is being applied, in ms: what was
// remembered of producers and ids expires by it. It never falls.
func (l *Ledger) SetTime(ms int64) { l.now = max(l.now, ms) }

// Append adds n > 0 messages at the end of a lane, if c (nil or zero: nothing) holds.
// A repetition is found before anything else is checked, so that a retry learns of its
// success. An outbox is made by its first append.
func (l *Ledger) Append(log msg.LogID, lane uint8, n int, c *msg.Cond) Outcome {
	return l.append(log, lane, n, c, false)
}

// AppendForced is Append that a seal does not refuse.
func (l *Ledger) AppendForced(log msg.LogID, lane uint8, n int, c *msg.Cond) Outcome {
	return l.append(log, lane, n, c, true)
}

func (l *Ledger) append(log msg.LogID, lane uint8, n int, c *msg.Cond, forced bool) Outcome {
	g := l.logs[log]
	if g == nil && msg.IsOutbox(log) {
		l.Ensure(log, outboxProfile)
		g = l.logs[log]
	}
	if g == nil {
		return Outcome{Code: Unknown}
	}
	if c != nil {
		if o := g.checkRepeats(c, uint64(n), l.now); o.Code != Appended {
			return o
		}
	}
	if g.sealed && !forced {
		return Outcome{Code: Sealed}
	}
	ln := g.lane(lane)
	if c != nil && c.ExpectTail {
		var tail msg.Offset
		if ln != nil {
			tail = ln.tail
		}
		if tail != c.Tail {
			return Outcome{Code: Refused, Why: TailMoved}
		}
	}
	l.touch(g)
	if ln == nil {
		ln = g.makeLane(lane)
	}
	first := ln.tail
	ln.tail += uint64(n)
	if c != nil {
		g.recordRepeats(c, uint64(n), first, l.now)
	}
	return Outcome{Code: Appended, First: first}
}

// Settle marks the offsets of r as done with, for a reason, and returns how many weren't
// before. Offsets beyond the tail are ignored.
func (l *Ledger) Settle(log msg.LogID, lane uint8, r msg.Range, why msg.Reason) (newly uint64) {
	g, n := l.at(log, lane)
	if n == nil {
		return 0
	}
	from, to := n.clip(r)
	if from >= to {
		return 0
	}
	l.touch(g)
	newly = n.settle(from, to)
	if len(l.holds.lanes) > 0 {
		l.holds.settled(log, lane, from, to)
	}
	if len(l.bound) > 0 {
		l.releaseBodies(laneID{log, lane}, from, to)
	}
	if newly > 0 && int(why) < len(l.settledBy) {
		l.touchShard()
		l.settledBy[why] += newly
	}
	return newly
}

// Return raises the delivery counts of the unsettled offsets of r if count is set;
// else it changes nothing.
func (l *Ledger) Return(log msg.LogID, lane uint8, r msg.Range, count bool) {
	g, n := l.at(log, lane)
	if n == nil || !count {
		return
	}
	if from, to := n.clip(r); from < to {
		l.touch(g)
		n.raise(from, to)
	}
}

// Reserve raises the reserved mark of a lane to upto; it never lowers it.
func (l *Ledger) Reserve(log msg.LogID, lane uint8, upto msg.Offset) {
	if g, n := l.at(log, lane); n != nil && upto > n.reserved {
		l.touch(g)
		n.reserved = upto
	}
}

// ReserveExact sets the reserved mark of a lane, also to a lower value, for a clean
// stop: the caller vouches (see Dispatch.ExactReserves) that nothing at or beyond upto
// was delivered.
func (l *Ledger) ReserveExact(log msg.LogID, lane uint8, upto msg.Offset) {
	if g, n := l.at(log, lane); n != nil && upto != n.reserved {
		l.touch(g)
		n.reserved = upto
	}
}

// RaiseTail says that a lane has reached at least tail: its appends are lost. All that it
// adds counts as delivered.
func (l *Ledger) RaiseTail(log msg.LogID, lane uint8, tail msg.Offset) {
	g := l.logs[log]
	if g == nil {
		return
	}
	if n := g.lane(lane); n != nil && n.tail >= tail {
		return
	}
	l.touch(g)
	n := g.makeLane(lane)
	n.tail, n.reserved = tail, max(n.reserved, tail)
}

// IsDeleted reports whether the log was deleted.
func (l *Ledger) IsDeleted(log msg.LogID) bool { return l.deleted.Contains(log) }

func (l *Ledger) at(log msg.LogID, lane uint8) (*logState, *Lane) {
	g := l.logs[log]
	if g == nil {
		return nil, nil
	}
	return g, g.lane(lane)
}

// Ensure makes the log if it doesn't exist and gives it the profile. An id that was
// deleted stays deleted.
func (l *Ledger) Ensure(log msg.LogID, profile []byte) EnsureOutcome {
	g := l.logs[log]
	switch {
	case g == nil && l.deleted.Contains(log):
		return EnsureGone
	case g == nil:
		g = &logState{id: log, profile: l.profile(profile)}
		l.logs[log] = g
		l.touch(g)
		return EnsureMade
	case g.profile.raw == string(profile):
		return EnsureSame
	}
	l.touch(g)
	old := g.profile
	g.profile = l.profile(profile)
	l.unrefProfile(old)
	if g.repeats != nil && g.profile.DedupWindowMS == 0 {
		g.repeats.dedup.clear()
	}
	return EnsureChanged
}

// Delete removes a log with all that is in it and reports whether it existed. The id
// is dead from then on even if it did not. A parts log goes only if it is unfinished;
// its id needs no grave, since parts can't come late: they are in order on their link.
func (l *Ledger) Delete(log msg.LogID) bool {
	if msg.IsParts(log) {
		return l.DropUnbound(log)
	}
	l.bury(log)
	g := l.logs[log]
	if g == nil {
		return false
	}
	l.remove(g)
	return true
}

// remove forgets a log, what is held of it, and the references that it has to parts.
func (l *Ledger) remove(g *logState) {
	l.forget(g)
	l.Lanes(g.id, func(lane uint8, n *Lane) bool {
		id := laneID{g.id, lane}
		delete(l.holds.lanes, id)
		l.releaseBodies(id, 0, n.tail)
		return true
	})
	delete(l.logs, g.id)
	l.unrefProfile(g.profile)
}

// Seal makes the log refuse appends, if cond (msg.SealIfEmpty or 0) holds, and reports
// whether it is sealed now. Empty is a log whose messages are all settled: in-flight
// ones are not.
func (l *Ledger) Seal(log msg.LogID, cond uint8) bool {
	g := l.logs[log]
	if g == nil {
		return false
	}
	if !g.sealed {
		if cond&msg.SealIfEmpty != 0 && g.unsettled() > 0 {
			return false
		}
		l.touch(g)
		g.sealed = true
	}
	return true
}

// Unseal takes a seal back.
func (l *Ledger) Unseal(log msg.LogID) {
	if g := l.logs[log]; g != nil && g.sealed {
		l.touch(g)
		g.sealed = false
	}
}
