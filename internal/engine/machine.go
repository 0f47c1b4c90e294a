package engine

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/planted"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/wal"
)

// deliveriesPerTurn bounds the ranges that one turn of the loop delivers.
const deliveriesPerTurn = 256

// Machine is the state of one shard of queues. Owned by the shard's loop, but for
// what its readers use (places' runs and the tail, each under its own lock).
type Machine struct {
	id       uint32
	volatile bool
	ledger   *queue.Ledger
	dispatch *queue.Dispatch
	places   places
	tail     tail
	backs    backs
	store    *store.Store
	log      *slog.Logger
	wal      *wal.Log // nil when volatile
	aside    *quarantine

	core    Submitter // set by Bind
	links   links     // the same, or nil
	shard   *Shard    // what sessions see of it
	leading bool
	flushed uint64 // WAL files up to here were flushed before this start
	op      msg.Op
	give    func(*queue.Delivery)
	out     *outboxes // nil when volatile

	waitingGets []*get
	retiring    map[msg.LogID]bool      // take no consumers any more; see Shard.Retire
	later       []trimming              // notes that are settled and not forgotten yet
	returns     map[msg.LogID][]counted // requeues that wait for their counts to be applied
	cut         cut
	lossy       bool     // keys of the checkpoint are lost
	suspect     *suspect // while a replay goes on behind a loss

	cluster  Cluster // nil: there is this node alone
	link     uint64
	now      func() time.Time
	term     uint64 // that this node led last
	ticks    int
	gw       gateway
	peers    map[uint64]*remoteGateway // by node; while leading
	deadline time.Time                 // of the gathering
	running  bool                      // in Dispatch.Run
	wanting  []*proxy                  // starved by the last run
	granted  []*proxy                  // perhaps with credit left
	joiners  []*Consumer               // new ones, to be admitted by Drive
	gathered []func()                  // wait for the end of the gathering
	// taken is what this node's sessions settle by submissions that they will make.
	taken laneSets
	// returning is hidden since a counted return of this node is on its way, which was
	// submitted in an earlier term.
	returning laneSets
}

// Submitter takes operations of the machine's own that may wait for company.
type Submitter interface{ Submit(s shard.Sub) }

// links is what a Submitter also is that has a link to other nodes; see shard.Core.
type links interface {
	Pending(fn func(seq uint64, sub msg.Submission))
	LastSeq() uint64
	LinkApplied(link uint64) uint64
}

// counted is a requeue on a log that counts deliveries, in the order of its commands.
type counted struct {
	c    *Consumer
	lane uint8
	rs   []msg.Range
}

// Config makes a Machine.
type Config struct {
	Shard    uint32
	Volatile bool
	Store    *store.Store
	WAL      *wal.Log
	Log      *slog.Logger // default slog.Default()
	aside    *quarantine  // where what can't be read is put
	// TailCache is how many bytes of recent chunks are kept for consumers.
	TailCache int64
	// Cluster reaches the other nodes; nil without any. Link is this node's, see
	// shard.LinkID; Now the monotonic clock, default time.Now.
	Cluster Cluster
	Link    uint64
	Now     func() time.Time
}

// New returns an empty machine; Restore and RestoreDone fill it.
func New(c Config) *Machine {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	m := &Machine{
		id: c.Shard, volatile: c.Volatile, store: c.Store, wal: c.WAL, log: c.Log, aside: c.aside,
		ledger:  queue.NewLedger(),
		places:  places{lanes: map[lane]*place{}},
		tail:    tail{budget: c.TailCache},
		backs:   backs{budget: c.TailCache / 2},
		returns: map[msg.LogID][]counted{}, retiring: map[msg.LogID]bool{}, taken: laneSets{},
	}
	if c.Volatile {
		m.tail.budget = 0
	}
	if c.Store != nil && !c.Volatile {
		m.flushed = c.Store.Flushed(c.Shard).WALSeq
	}
	m.cluster, m.link, m.now = c.Cluster, c.Link, c.Now
	if m.now == nil {
		m.now = time.Now
	}
	m.shard = &Shard{m: m}
	m.dispatch = queue.NewDispatch(m.ledger, m)
	m.give = m.deliver
	m.ledger.OnFreeing(m.freeParts)
	return m
}

// Bind tells the machine where its own operations go.
func (m *Machine) Bind(s Submitter) {
	m.core = s
	m.links, _ = s.(links)
}

// Locate implements queue.Locator.
func (m *Machine) Locate(log msg.LogID, n uint8, off msg.Offset, most uint64) (queue.Source, uint64, uint64) {
	l := m.places.lanes[lane{log, n}]
	if l == nil {
		return queue.Source{Kind: srcRun}, 1, 1
	}
	src, count, bytes := l.locate(off, most)
	count, bytes = m.sizeLarge(lane{log, n}, off, count, bytes)
	return src, count, bytes
}

// Apply implements shard.Machine.
func (m *Machine) Apply(c *shard.Command) (res shard.Result) {
	it := c.Sub.Iter()
	op := &m.op
	sub := noSub
	m.ledger.SetTime(c.TimeMS)
	for i := 0; it.Next(op); i++ {
		if m.suspect != nil && !m.judge(op, c.Pos) {
			continue
		}
		switch op.Kind {
		case msg.OpRequire: // before all others, so nothing has been done yet
			if !m.ledger.AllFree(op.Log, op.Lane, op.Ranges) {
				return m.refuse(&it, op)
			}
		case msg.OpAppend, msg.OpBodyPart:
			if sub == noSub {
				sub = m.tailPush(c)
			}
			if op.Kind == msg.OpBodyPart {
				m.applyPart(c, sub, op)
				continue
			}
			m.applyAppend(c, sub, i, op, &res)
		case msg.OpHold:
			m.settledBy(c, op)
			if newly := m.ledger.Hold(op.Tx, op.Log, op.Lane, op.Ranges); m.leading {
				m.dispatch.Hold(op.Log, op.Lane, newly)
			}
		case msg.OpUnhold:
			m.freed(m.ledger.Unhold(op.Tx))
		case msg.OpSweep:
			m.applySweep(op.Tx.Node, op.Tx.Incarnation)
		case msg.OpSettle:
			m.settledBy(c, op)
			for _, r := range op.Ranges {
				m.settle(op.Log, op.Lane, r, op.Reason)
			}
		case msg.OpReturn:
			m.applyReturn(c, op)
		case msg.OpReserve:
			m.ledger.Reserve(op.Log, op.Lane, op.Upto)
			if m.leading {
				m.dispatch.Reserved(op.Log, op.Lane)
			}
		case msg.OpReserveExact:
			m.ledger.ReserveExact(op.Log, op.Lane, op.Upto)
		case msg.OpEnsure:
			m.ledger.Ensure(op.Log, op.Data)
		case msg.OpDelete:
			m.applyDelete(op.Log)
		case msg.OpSeal:
			if !m.ledger.Seal(op.Log, op.Flags) {
				res.Outcomes = append(res.Outcomes, shard.Outcome{Op: i, Code: shard.Refused})
			}
		case msg.OpUnseal:
			m.ledger.Unseal(op.Log)
		case msg.OpTermStart:
		case msg.OpMeta:
			m.log.Error("operation of another machine", "shard", m.id, "kind", op.Kind)
		}
	}
	if err := it.Err(); err != nil {
		m.log.Error("submission can't be read to its end", "shard", m.id, "index", c.Index, "err", err)
	}
	if sub != noSub {
		m.sealSub(c, sub)
	}
	return res
}

// refuse ends a submission of which a requirement does not hold. The large bodies that
// went ahead of its appends go.
func (m *Machine) refuse(it *msg.OpIter, op *msg.Op) shard.Result {
	for it.Next(op) {
		if op.Kind == msg.OpAppend && op.Parts.Count > 0 {
			m.ledger.DropUnbound(op.Parts.Log)
		}
	}
	return shard.Result{Refused: true}
}

// applySweep ends what incarnations of a node before the given one left unfinished:
// holds of transactions and large bodies.
func (m *Machine) applySweep(node, before uint32) {
	m.freed(m.ledger.Sweep(node, before))
	m.ledger.SweepParts(node, before)
}

// freed tells the dispatch of messages that are held no more.
func (m *Machine) freed(list []queue.LaneRanges) {
	for _, p := range list {
		if m.leading {
			m.dispatch.Release(p.Log, p.Lane, p.Ranges)
		}
	}
}

const noSub = ^uint64(0)

// tailPush enters the submission into the tail; what lies in a WAL file that was
// flushed before this start is in segments already and only gets offsets.
func (m *Machine) tailPush(c *shard.Command) uint64 {
	m.cut.notes = m.cut.notes[:0]
	return m.tail.push(c.Pos, unsealed, c.Chunk)
}

// unsealed is what a submission counts for while it is applied, so that what its own
// operations free does not take it out of the tail.
const unsealed = 1 << 31

// sealSub settles the account of a submission after its last operation.
func (m *Machine) sealSub(c *shard.Command, sub uint64) {
	m.tail.setLive(sub, uint32(len(m.cut.notes)), m.volatile)
	if !m.volatile && len(m.cut.notes) > 0 {
		m.cut.addSub(sub, c.Pos, m.cut.notes)
	}
}

// setLive fills in how many notes refer to a submission.
func (t *tail) setLive(sub uint64, n uint32, volatile bool) {
	t.mu.Lock()
	t.subs[sub-t.first].live += n + 1 - unsealed
	t.mu.Unlock()
	t.unref(sub, volatile) // takes back the one added; frees the chunk if n is 0
}

func (m *Machine) applyAppend(c *shard.Command, sub uint64, i int, op *msg.Op, res *shard.Result) {
	var cond *msg.Cond
	if op.HasCond {
		cond = &op.Cond
	}
	for k, t := range op.Targets {
		var out queue.Outcome
		switch {
		case op.Parts.Count > 0:
			out = m.ledger.AppendLarge(t.Log, t.Lane, cond, op.Parts, op.Forced)
		case op.Forced:
			out = m.ledger.AppendForced(t.Log, t.Lane, op.N, cond)
		default:
			out = m.ledger.Append(t.Log, t.Lane, op.N, cond)
		}
		if out.Code == queue.Refused && m.suspect != nil {
			out = m.ledger.Append(t.Log, t.Lane, op.N, nil)
		}
		switch out.Code {
		case queue.Appended:
			m.note(c, sub, lane{t.Log, t.Lane}, out.First, op)
			if msg.IsOutbox(t.Log) {
				m.owes(c, t.Log, out.First, op.N, res)
			}
			if planted.LocationInLedger {
				m.ledger.Reserve(t.Log, t.Lane, out.First+1+uint64(c.Pos.Off/512%2))
			}
			if m.leading {
				m.dispatch.Appended(t.Log, t.Lane, out.First, uint64(op.N))
			}
			continue
		case queue.Sealed:
			res.Outcomes = append(res.Outcomes, shard.Outcome{Op: i, Target: k, Code: shard.Sealed})
		case queue.Unknown:
			res.Outcomes = append(res.Outcomes, shard.Outcome{Op: i, Target: k, Log: t.Log, Code: shard.Gone})
		case queue.Duplicate:
			res.Outcomes = append(res.Outcomes, shard.Outcome{Op: i, Target: k, Code: shard.Duplicate, Offset: out.First})
		case queue.Refused:
			res.Outcomes = append(res.Outcomes, shard.Outcome{Op: i, Target: k, Code: shard.Refused})
		}
	}
	if op.Parts.Count > 0 {
		m.ledger.DropUnbound(op.Parts.Log)
	}
}

// note enters where the records of an operation lie that a lane got.
func (m *Machine) note(c *shard.Command, sub uint64, k lane, first msg.Offset, op *msg.Op) {
	if c.Pos.Seq != 0 && c.Pos.Seq <= m.flushed {
		return
	}
	n := note{first: first, sub: sub, count: uint32(op.N), op: uint32(op.Pos), bytes: uint32(op.Bytes)}
	l := m.places.of(k)
	l.notes = append(l.notes, n)
	m.cut.notes = append(m.cut.notes, laneNote{k, n})
}

// owes notes submissions for another shard.
func (m *Machine) owes(c *shard.Command, log msg.LogID, first msg.Offset, n int, res *shard.Result) {
	target := msg.OutboxTarget(log)
	if m.leading && m.out != nil {
		m.out.open(target)
	}
	if c.Local {
		res.Moves = append(res.Moves, shard.Move{Target: target, Seq: first + uint64(n)})
	}
}

// settle records a settlement and keeps the accounts of segments and tail.
func (m *Machine) settle(log msg.LogID, n uint8, r msg.Range, why msg.Reason) {
	ln, ok := m.ledger.Lane(log, n)
	if !ok {
		return
	}
	l := m.places.lanes[lane{log, n}] // nil in a replay of what needed no segment
	if l != nil && len(l.runs) > 0 {
		m.countDead(l, ln, r)
	}
	newly := m.ledger.Settle(log, n, r, why)
	if m.leading {
		m.dispatch.Settled(log, n, r, newly)
	}
	if l != nil {
		m.trim(l, ln.Low())
	}
}

// trimMax is how many notes one operation, or one turn, forgets.
const trimMax = 4096

// trimming is what is left to forget of a lane: notes below low.
type trimming struct {
	l   *place
	low msg.Offset
}

// trim forgets the notes of settled messages. If there are many, as after a purge, the
// rest is done in later turns: nothing but memory waits for it.
func (m *Machine) trim(l *place, low msg.Offset) {
	if !l.trim(low, trimMax, m.unref) {
		m.later = append(m.later, trimming{l, low})
	}
}

// trimLater goes on with that; true if there is more.
func (m *Machine) trimLater() bool {
	if len(m.later) == 0 {
		return false
	}
	if t := m.later[0]; t.l.trim(t.low, trimMax, m.unref) {
		m.later[0] = trimming{}
		if m.later = m.later[1:]; len(m.later) == 0 {
			m.later = nil
		}
	}
	return len(m.later) > 0
}

func (m *Machine) unref(sub uint64) { m.tail.unref(sub, m.volatile) }

// countDead tells the store how many entries of each run the range settles; called
// before it is settled.
func (m *Machine) countDead(l *place, ln *queue.Lane, r msg.Range) {
	end := r.First + r.Count
	for i := range l.runs {
		run := &l.runs[i]
		if run.First >= end {
			break
		}
		if run.Last < r.First {
			continue
		}
		lo, hi := max(run.First, r.First), min(run.Last+1, end)
		if n := ln.UnsettledIn(msg.Range{First: lo, Count: hi - lo}); n > 0 {
			m.store.AddDead(*run, int(n))
		}
	}
}

func (m *Machine) applyReturn(c *shard.Command, op *msg.Op) {
	for _, r := range op.Ranges {
		m.ledger.Return(op.Log, op.Lane, r, op.Count)
	}
	if p := m.elsewhere(c); p != nil {
		p.returned(op.Log, op.Lane, op.Ranges)
		return
	}
	if m.leading && len(m.returning) > 0 && c.Local { // of an earlier term
		m.unhide(op.Log, op.Lane, m.returning.take(op.Log, op.Lane, op.Ranges))
	}
	if q := m.returns[op.Log]; m.leading && len(q) > 0 && q[0].lane == op.Lane && slices.Equal(q[0].rs, op.Ranges) {
		m.dispatch.Return(&q[0].c.Consumer, op.Log, q[0].lane, q[0].rs)
		q[0].c.fed()
		if len(q) == 1 {
			delete(m.returns, op.Log)
		} else {
			m.returns[op.Log] = q[1:]
		}
	}
}

// letGo settles the accounts of a log that goes and returns its lanes.
func (m *Machine) letGo(log msg.LogID) (lanes []uint8) {
	m.ledger.Lanes(log, func(n uint8, ln *queue.Lane) bool {
		lanes = append(lanes, n)
		if l := m.places.lanes[lane{log, n}]; l != nil {
			m.countDead(l, ln, msg.Range{First: 0, Count: ln.Tail()})
			m.trim(l, ^msg.Offset(0))
		}
		return true
	})
	return lanes
}

func (m *Machine) applyDelete(log msg.LogID) {
	if msg.IsParts(log) {
		m.ledger.Delete(log) // freeParts is told, if it goes
		return
	}
	m.places.drop(log, m.letGo(log))
	m.ledger.Delete(log)
	delete(m.retiring, log)
	returns := m.returns[log]
	delete(m.returns, log)
	if !m.leading {
		for _, c := range m.own() {
			if c.Log == log {
				m.canceled(c)
			}
		}
		return
	}
	for _, c := range m.dispatch.Drop(log) {
		ec := c.User.(Based).Base()
		ec.attached, ec.wants = false, false
		ec.Sink.Canceled(ec)
	}
	for _, r := range returns { // nothing comes back, but the credit does
		m.dispatch.Return(&r.c.Consumer, log, r.lane, r.rs)
		r.c.fed()
	}
	m.answerGets(log)
}

// Lead implements shard.Machine. Consumers of this node come back at once, those of
// others are waited for.
func (m *Machine) Lead(term uint64) {
	m.leading, m.term = true, term
	clear(m.retiring)
	var live []uint64
	if m.cluster != nil {
		live = m.cluster.Live()
	}
	m.dispatch.Start(len(live) > 0 || len(m.gw.consumers) > 0)
	m.rejoin()
	if m.out != nil {
		m.out.lead()
	}
	if len(live) > 0 {
		m.beginGather(live)
	} else {
		m.peers = nil
		m.endGather()
	}
}

// Follow implements shard.Machine.
func (m *Machine) Follow() {
	m.leading = false
	for _, c := range m.own() {
		c.attached = false
		if c.joining != nil && m.cluster == nil { // there will be no other leader
			m.joined(c, ErrStopped)
		}
	}
	for _, log := range slices.Sorted(maps.Keys(m.returns)) {
		for _, r := range m.returns[log] { // the next leader sees to the messages
			r.c.feed(int64(rangesCount(r.rs)), 0)
		}
	}
	clear(m.returns)
	m.peers, m.wanting, m.granted, m.joiners = nil, nil, nil, nil
	m.runGathered()
	m.forgetGets(func(c *Consumer) bool { _, is := c.User.(*proxy); return is })
	m.failGets()
	if m.out != nil {
		m.out.follow()
	}
}

// Drive implements shard.Machine: deliver, and reserve ahead. Not once it was told to
// follow, which may be before its Core is: at a clean stop.
func (m *Machine) Drive(b *msg.Builder) bool {
	if !m.leading {
		return false
	}
	if m.out != nil {
		m.out.drive()
	}
	m.maybeEndGather()
	if len(m.joiners) > 0 && !m.dispatch.Gathering() {
		m.admit()
	}
	m.running = true
	more := m.dispatch.Run(deliveriesPerTurn, m.give)
	m.running = false
	if len(m.peers) > 0 {
		m.askWants(more)
	}
	more = m.trimLater() || more
	m.tryGets()
	if b.Len() < reserveBytes { // else what is there is proposed first
		more = m.dispatch.WantReserveSome(reserveLanes, func(log msg.LogID, n uint8, upto msg.Offset) { b.Reserve(log, n, upto) }) || more
	}
	return more
}

// What the machine's own operations may take while none can be proposed: lanes that ask
// for a reservation at once, and bytes beyond which they wait.
const (
	reserveLanes = 1024
	reserveBytes = 16 << 10
)

func (m *Machine) deliver(d *queue.Delivery) {
	c := d.Consumer.User.(Based).Base()
	c.hold(d.Lane, msg.Range{First: d.First, Count: uint64(d.Count)})
	c.Sink.Deliver(d)
}

// Ledger gives read access to the replicated state; on the loop only.
func (m *Machine) Ledger() *queue.Ledger { return m.ledger }

// Counts returns the figures of a log; on the loop only.
func (m *Machine) Counts(log msg.LogID) queue.Counts { return m.dispatch.Counts(log) }
