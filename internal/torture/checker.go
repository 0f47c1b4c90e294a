package torture

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// violationsKept is how many violations are kept in words; all are counted.
const violationsKept = 50

// Limits are what the checker allows.
type Limits struct {
	Grace  time.Duration // a fenced ack this old at the kill must have lasted
	Window int           // fresh messages per queue and kill that may be flagged
	// InFlight is how many more may be flagged per queue and kill because they
	// were on their way to clients: the sum of the queue's prefetches.
	InFlight int
}

// Counts is what the checker counted. The upper part is statistics, the lower
// one violations.
type Counts struct {
	Attempted     int // publishes begun
	Confirmed     int
	Delivered     int // deliveries and get-oks
	Distinct      int // messages received at least once
	Redelivered   int // deliveries of messages received before
	Requeued      int // nacks and rejects with requeue
	AcksLost      int // acked messages that came back after a kill, legitimately: not fenced, or within Grace
	Vanished      int // received and gone before their ack and their confirm, legitimately
	FreshFlagged  int // messages flagged though never received before
	FreshFlagMost int // the most of them in one queue, per kill
	Committed     int // transactions whose commit was answered

	Lost          int // confirmed, never received
	Unflagged     int // received again without the redelivered flag
	Resurrected   int // came back though acked and fenced long before the kill
	AckedNoKill   int // came back though acked, with no kill since
	OverWindow    int // fresh messages flagged beyond the allowance of their queue
	OutOfOrder    int // first deliveries behind a later one of their publisher
	Damaged       int // wrong checksum, wrong queue, or never published
	LeftInQueues  int // there after everything was settled and the broker restarted
	Unsettled     int // confirmed, received and never acked: gone, or the drain stopped short
	CutOff        int // connections that broke without a kill
	HalfTxs       int // transactions of which a part is there, or not all although the commit was answered
	RestartFailed int // the broker didn't come back, or ended by itself
}

// Violations sums up the lower part.
func (c Counts) Violations() int {
	return c.Lost + c.Unflagged + c.Resurrected + c.AckedNoKill + c.OverWindow +
		c.HalfTxs + c.OutOfOrder + c.Damaged + c.LeftInQueues + c.Unsettled + c.CutOff + c.RestartFailed
}

// Checker is told what clients see and judges it. It is safe for concurrent
// use; the order of calls for one message must be that of the events.
type Checker struct {
	limits Limits
	now    func() time.Time

	mu         sync.Mutex
	counts     Counts
	streams    map[streamKey][]state
	order      map[orderKey]int64 // greatest seq of a first delivery
	flags      map[uint16]*flags  // by queue
	missing    int                // confirmed and not received
	unacked    int                // confirmed, received and not acked
	kills      []time.Time
	txs        []*Tx
	violations []string
}

type streamKey struct{ publisher, queue uint16 }

// orderKey names a sequence of first deliveries that is to be in order: scope 0
// for a queue with a single consumer, else one connection of a consumer.
type orderKey struct {
	streamKey
	scope uint64
}

// state is what is known of one message.
type state struct {
	attempted, confirmed, delivered, acked, rolledBack bool

	backs int32 // arrivals after an ack

	ackKills int32     // kills before the ack
	fencedAt time.Time // of the ack; zero: not fenced
}

// NewChecker returns a checker that has seen nothing.
func NewChecker(l Limits, now func() time.Time) *Checker {
	return &Checker{
		limits: l, now: now,
		streams: map[streamKey][]state{}, order: map[orderKey]int64{},
		flags: map[uint16]*flags{},
	}
}

// Attempt books that the next message of a publisher for a queue is about to be
// sent, and returns its ID.
func (c *Checker) Attempt(publisher, queue uint16) ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := streamKey{publisher, queue}
	id := ID{publisher, queue, uint32(len(c.streams[key]))}
	c.streams[key] = append(c.streams[key], state{attempted: true})
	c.counts.Attempted++
	return id
}

// Confirmed books that the broker confirmed a message.
func (c *Checker) Confirmed(id ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.message(id); m != nil && !m.confirmed {
		m.confirmed = true
		c.counts.Confirmed++
		switch {
		case !m.delivered:
			c.missing++
		case !m.acked:
			c.unacked++
		}
	}
}

// Delivery is one arrival of a message at a client.
type Delivery struct {
	ID          ID
	From        uint16 // the queue that it came out of
	Redelivered bool
	// Scope says within what first deliveries have to be in order: 0 for the
	// only consumer of a queue, else a number of its own for each connection.
	Scope uint64
}

// Delivered books and judges an arrival.
func (c *Checker) Delivered(d Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Delivered++
	m := c.message(d.ID)
	if m == nil || d.From != d.ID.Queue {
		c.counts.Damaged++
		c.violate("%v came out of queue %d, was published: %v", d.ID, d.From, m != nil)
		return
	}
	if m.rolledBack {
		c.counts.HalfTxs++
		c.violate("%v was rolled back and arrived", d.ID)
	}
	if m.delivered {
		c.again(m, d)
		return
	}
	m.delivered = true
	c.counts.Distinct++
	if m.confirmed {
		c.missing--
		c.unacked++
	}
	c.judgeFlag(d)
	key := orderKey{streamKey{d.ID.Publisher, d.ID.Queue}, d.Scope}
	if last, ok := c.order[key]; ok && int64(d.ID.Seq) < last {
		c.counts.OutOfOrder++
		c.violate("%v delivered for the first time after seq %d", d.ID, last)
	} else {
		c.order[key] = int64(d.ID.Seq)
	}
}

// again judges the arrival of a message that arrived before.
func (c *Checker) again(m *state, d Delivery) {
	c.counts.Redelivered++
	if !d.Redelivered {
		c.counts.Unflagged++
		c.violate("%v delivered again without the redelivered flag (acked: %v)", d.ID, m.acked)
	}
	if !m.acked {
		return
	}
	m.acked = false // it has to be settled anew
	m.backs++
	if m.confirmed {
		c.unacked++
	}
	kill, killed := c.firstKillAfter(m)
	switch {
	case !killed:
		c.counts.AckedNoKill++
		c.violate("%v delivered again after its ack, with no kill since", d.ID)
	case !m.fencedAt.IsZero() && kill.Sub(m.fencedAt) >= c.limits.Grace:
		c.counts.Resurrected++
		c.violate("%v delivered again, though acked and fenced %v before the kill", d.ID, kill.Sub(m.fencedAt))
	default:
		c.counts.AcksLost++
	}
	m.fencedAt = time.Time{}
}

// firstKillAfter returns the first kill after the message's ack.
func (c *Checker) firstKillAfter(m *state) (time.Time, bool) {
	if int(m.ackKills) >= len(c.kills) {
		return time.Time{}, false
	}
	return c.kills[m.ackKills], true
}

// flags is the state of one queue's allowance for fresh messages with the flag.
//
// After a kill a broker flags what lies before its last reservation: where the
// queue's deliveries could have been. With one consumer that is a stretch which
// ends for good at the first fresh message without the flag. What one kill left
// flagged may be consumed after the next one only, so that a stretch can be of
// several kills. With several consumers its end isn't seen; there it is all one.
type flags struct {
	kills     int // since the stretch before ended
	killsSeen int // of all
	fresh     int // flagged fresh messages in this stretch
}

// judgeFlag judges the flag, or its absence, of a message that no client received
// before.
func (c *Checker) judgeFlag(d Delivery) {
	f := c.flags[d.From]
	if f == nil {
		f = &flags{}
		c.flags[d.From] = f
	}
	f.kills += len(c.kills) - f.killsSeen
	f.killsSeen = len(c.kills)
	if !d.Redelivered {
		if d.Scope == 0 {
			f.kills, f.fresh = 0, 0
		}
		return
	}
	c.counts.FreshFlagged++
	f.fresh++
	if f.kills > 0 {
		c.counts.FreshFlagMost = max(c.counts.FreshFlagMost, (f.fresh+f.kills-1)/f.kills)
	}
	if allowed := f.kills * (c.limits.Window + c.limits.InFlight); f.fresh > allowed {
		c.counts.OverWindow++
		c.violate("%v flagged at its first delivery, the %d-th in a stretch after %d kills (allowed: %d)", d.ID, f.fresh, f.kills, allowed)
	}
}

// Acked books that a message is about to be acked.
func (c *Checker) Acked(id ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.message(id); m != nil && m.delivered && !m.acked {
		if m.confirmed {
			c.unacked--
		}
		m.acked, m.ackKills, m.fencedAt = true, int32(len(c.kills)), time.Time{}
	}
}

// Requeued books that a message is about to be given back.
func (c *Checker) Requeued(ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Requeued++
}

// Fenced books that a round trip on the channel of these acks has ended.
func (c *Checker) Fenced(ids []ID) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if m := c.message(id); m != nil && m.acked {
			m.fencedAt = now
		}
	}
}

// Killed books a kill that happened at t. By now no client may do anything to
// the killed broker.
func (c *Checker) Killed(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kills = append(c.kills, t)
}

// Damaged books a body that is no message of this run.
func (c *Checker) Damaged(from uint16, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Damaged++
	c.violate("queue %d: %v", from, err)
}

// LeftOver books messages that a queue holds though all were settled.
func (c *Checker) LeftOver(queue, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.LeftInQueues += n
	c.violate("queue %d holds %d messages after everything was settled", queue, n)
}

// CutOff books that a connection broke without a kill.
func (c *Checker) CutOff(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.CutOff++
	c.violate("a connection broke without a kill: %v", err)
}

// RestartFailed books that the broker didn't come back, or ended by itself.
func (c *Checker) RestartFailed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.RestartFailed++
	c.violate("%v", err)
}

// Open returns how many confirmed messages were not received yet, and how many
// of those received are not acked.
func (c *Checker) Open() (missing, unacked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.missing, c.unacked
}

// Progress returns the number of confirms and of arrivals so far.
func (c *Checker) Progress() (confirmed, delivered int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts.Confirmed, c.counts.Delivered
}

// Finish judges what only the end shows and returns the outcome. Violations in
// words are cut off at violationsKept.
func (c *Checker) Finish() (Counts, []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Lost, c.counts.Unsettled = c.missing, c.unacked
	c.judgeTxs()
	for key, ms := range c.streams {
		for seq, m := range ms {
			id := ID{key.publisher, key.queue, uint32(seq)}
			switch {
			case m.confirmed && !m.delivered:
				c.violate("%v confirmed and never received", id)
			case m.delivered && !m.acked && !m.confirmed:
				c.counts.Vanished++
			case m.delivered && !m.acked:
				c.violate("%v received and not acked at the end", id)
			}
		}
	}
	return c.counts, slices.Clone(c.violations)
}

// message returns what is known of a message, nil if it was never sent.
func (c *Checker) message(id ID) *state {
	ms := c.streams[streamKey{id.Publisher, id.Queue}]
	if int64(id.Seq) >= int64(len(ms)) {
		return nil
	}
	return &ms[id.Seq]
}

func (c *Checker) violate(format string, args ...any) {
	if len(c.violations) < violationsKept {
		c.violations = append(c.violations, fmt.Sprintf(format, args...))
	}
}
