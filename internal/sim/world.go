package sim

import (
	crand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"time"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// World is one run. Make it with New, run it once.
type World struct {
	// Say, if set, is told what happens, line by line: all that is rare, and whatever
	// concerns Watch.
	Say   func(string)
	Watch About

	seed  uint64
	kind  string
	p     Profile
	rng   *rand.Rand
	trace uint64

	now     time.Duration
	seq     uint64
	events  eventHeap
	running *proc

	net      network
	nodes    []*node
	queues   []*queueRef
	sessions []*session
	check    *checker
	stats    Stats

	faulty      bool // faults may happen
	quieting    bool // clients come to an end
	draining    bool // the queues are emptied, for the reckoning
	lastSession uint64
	lastLog     msg.LogID
	clients     []*proc
}

// Stats say how much a run did.
type Stats struct {
	Events, Boots, Kills, PowerCuts, Stops, Splits, Stalls, Jumps, FullDisks, SlowDisks int
	Transactions, Published, Confirms, Delivered, Settled, Attached, Purges, Deletions  int
	Leaders                                                                             int // terms in which a leader delivered
	Segments, Recycled                                                                  int // files written, and given back
	Snapshots, Copied                                                                   int // installed; bytes of files
}

// Add adds the figures of another run.
func (s *Stats) Add(o Stats) {
	s.Events += o.Events
	s.Snapshots += o.Snapshots
	s.Copied += o.Copied
	s.Boots += o.Boots
	s.Kills += o.Kills
	s.PowerCuts += o.PowerCuts
	s.Stops += o.Stops
	s.Splits += o.Splits
	s.Stalls += o.Stalls
	s.Jumps += o.Jumps
	s.FullDisks += o.FullDisks
	s.SlowDisks += o.SlowDisks
	s.Transactions += o.Transactions
	s.Published += o.Published
	s.Confirms += o.Confirms
	s.Delivered += o.Delivered
	s.Settled += o.Settled
	s.Attached += o.Attached
	s.Purges += o.Purges
	s.Deletions += o.Deletions
	s.Leaders += o.Leaders
	s.Segments += o.Segments
	s.Recycled += o.Recycled
}

// Result is what a run came to.
type Result struct {
	Seed  uint64
	Kind  string
	Trace uint64 // a hash of everything that happened
	Stats Stats
	Found *Violation
}

// Replay is the command that does a run again.
func (r Result) Replay() string {
	return fmt.Sprintf("go run ./internal/sim/cmd/sim -seed %d -kind %s -v", r.Seed, r.Kind)
}

// New prepares the run of a seed.
func New(seed uint64, kind string) *World {
	w := &World{seed: seed, kind: kind, rng: rand.New(rand.NewPCG(seed, 0x51))}
	w.p = ProfileOf(kind, w.rng)
	w.net = network{w: w, blocked: map[[2]int]bool{}}
	w.check = newChecker(w)
	return w
}

// Kinds of notes in the trace.
const (
	noteEvent uint64 = iota + 1
	noteBoot
	noteDown
	noteApply
	noteDeliver
	noteEnd
)

// note folds something that happened into the trace.
func (w *World) note(kind, a, b, c uint64) {
	for _, v := range [...]uint64{kind, a, b, c} {
		w.trace = (w.trace ^ v) * 0x9e3779b97f4a7c15
		w.trace ^= w.trace >> 29
	}
}

func (w *World) say(format string, args ...any) {
	if w.Say != nil {
		w.Say(fmt.Sprintf("%10.6f %s", w.now.Seconds(), fmt.Sprintf(format, args...)))
	}
}

// Run does the run: faults for a while, then peace, then the reckoning.
func (w *World) Run() Result {
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d", w.seed))
	was := crand.Reader
	crand.Reader = rand.NewChaCha8(seed)
	defer func() { crand.Reader = was }()
	w.say("seed %d, %s: %+v", w.seed, w.kind, w.p)
	w.play()
	for _, n := range w.nodes {
		for _, p := range n.procs {
			p.kill()
		}
	}
	for _, p := range w.clients {
		p.kill()
	}
	w.note(noteEnd, uint64(w.stats.Confirms), uint64(w.stats.Delivered), w.seq)
	w.stats.Events = int(w.seq)
	return Result{Seed: w.seed, Kind: w.kind, Trace: w.trace, Stats: w.stats, Found: w.check.found}
}

// play is the run itself. A panic is a finding like others; what runs as a coroutine then
// is lost.
func (w *World) play() {
	defer func() {
		if r := recover(); r != nil {
			w.check.fail("panic", "%v\n%s", r, debug.Stack())
		}
	}()
	w.start()
	w.until(w.p.Duration, nil)
	w.makePeace()
	if !w.until(w.now+peaceMax, w.quiet) {
		w.check.fail("stuck", "not everything comes to rest: %s", w.describe())
	}
	w.reckon()
}

// peaceMax is how long a healed cluster may take until nothing is left to do.
const peaceMax = 120 * time.Second

// until lets events happen until a time or a condition, which is looked at now and
// then. It ends early when something was found, and returns whether done was true.
func (w *World) until(end time.Duration, done func() bool) bool {
	next := w.now
	for w.check.found == nil && w.step(end) {
		if done != nil && w.now >= next {
			if done() {
				return true
			}
			next = w.now + 100*time.Millisecond
		}
	}
	if done == nil {
		w.now = max(w.now, end)
	}
	return w.check.found != nil
}

func (w *World) start() {
	w.net.loss, w.net.repeat, w.net.late, w.net.latest = w.p.Loss, w.p.Repeat, w.p.Late, w.p.Lateness
	for i := range w.p.Nodes {
		n := &node{w: w, index: i, id: uint64(i + 1), drift: w.p.Drift * (2*w.rng.Float64() - 1)}
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		n.boot()
	}
	for i := range w.p.Queues {
		w.queues = append(w.queues, &queueRef{shard: uint32(i%w.p.Shards + 1)})
		w.newLog(w.queues[i])
	}
	w.faulty = true
	for _, q := range w.queues {
		w.client(func(p *proc) { w.declare(p, q) })
	}
	for range w.p.Publishers {
		b := &publisher{w: w, pause: w.p.Pause}
		w.client(b.run)
	}
	for range w.p.Consumers {
		w.client(func(p *proc) {
			if p.sleep(w.p.ConsumeFrom) {
				w.consume(p)
			}
		})
	}
	w.startFaults()
}

// client spawns a coroutine that ends when clients come to an end.
func (w *World) client(fn func(p *proc)) { w.clients = append(w.clients, w.spawn(fn)) }

// newLog gives a queue a log that nobody has made yet.
func (w *World) newLog(q *queueRef) {
	w.lastLog++
	q.log = &logRef{id: w.lastLog, shard: q.shard, last: map[uint64]uint64{}, counts: w.chance(0.4)}
	w.check.logs[q.log.id] = q.log
}

// declare asks for a queue's log until it is there.
func (w *World) declare(p *proc, q *queueRef) {
	for l := q.log; !l.made && p.sleep(w.between(0, 50*time.Millisecond)); {
		if n := w.anyNode(); n != nil {
			profile := queue.AppendProfile(nil, queue.Profile{CountDeliveries: l.counts})
			_, _ = n.eng.Shard(q.shard).Do(func(b *msg.Builder) { b.Ensure(l.id, profile) }) // again if not
		}
	}
}

func (w *World) anyNode() *node {
	if n := w.nodes[w.rng.IntN(len(w.nodes))]; n.up {
		return n
	}
	return nil
}

// leader returns the node that leads a shard, nil if none does.
func (w *World) leader(id uint32) *node {
	for _, n := range w.nodes {
		if _, yes := n.leads(id); yes {
			return n
		}
	}
	return nil
}

// admin purges a queue, or replaces it by a new one.
func (w *World) admin(p *proc) {
	for p.sleep(w.between(w.p.AdminAt/2, 2*w.p.AdminAt)) && !w.quieting {
		q := w.queues[w.rng.IntN(len(w.queues))]
		l := q.log
		n := w.leader(q.shard)
		if n == nil || !l.made {
			continue
		}
		if w.chance(0.7) {
			w.purge(n, l)
			continue
		}
		w.stats.Deletions++
		l.closing = true
		w.newLog(q)
		w.say("queue of shard %d: log %d replaced by %d", q.shard, l.id, q.log.id)
		for !l.deleted && p.sleep(w.between(0, 50*time.Millisecond)) {
			if n := w.anyNode(); n != nil {
				_, _ = n.eng.Shard(q.shard).Do(func(b *msg.Builder) { b.Delete(l.id) }) // again if not
			}
		}
		w.declare(p, q)
	}
}

func (w *World) purge(n *node, l *logRef) {
	sh := n.eng.Shard(l.shard)
	w.stats.Purges++
	l.purges++
	l.purgeTerm, _ = sh.Core().Term()
	if _, err := sh.Purge(l.id); err == nil {
		l.purges--
	} // else it may still come true
}

// quiet says whether nothing is left to do.
func (w *World) quiet() bool {
	for _, p := range w.clients {
		if !p.ended {
			return false
		}
	}
	for _, q := range w.queues {
		if !q.log.made || q.log.deleted {
			return false
		}
	}
	for id := uint32(1); id <= uint32(w.p.Shards); id++ {
		ref := w.check.shard(id)
		if w.leader(id) == nil {
			return false
		}
		first := w.nodes[0].eng.Shard(id).Core().Applied()
		for _, n := range w.nodes {
			c := n.eng.Shard(id).Core()
			if !n.up || w.owes(n, id) || c.Applied() != first || c.Applied() < ref.last.index || !c.Quiet() {
				return false
			}
		}
	}
	return true
}

// owes says whether something in a shard's outboxes has not arrived.
func (w *World) owes(n *node, id uint32) bool {
	for to := uint32(1); to <= uint32(w.p.Shards); to++ {
		ln, ok := n.eng.Shard(id).Machine().Ledger().Lane(msg.OutboxLog(to), 0)
		if ok && ln.Unsettled() > 0 {
			return true
		}
	}
	return false
}

func (w *World) describe() string {
	var b strings.Builder
	for _, p := range w.clients {
		if !p.ended {
			b.WriteString(" a client waits;")
		}
	}
	for id := uint32(1); id <= uint32(w.p.Shards); id++ {
		for _, n := range w.nodes {
			if !n.up {
				fmt.Fprintf(&b, " node %d is down;", n.id)
				continue
			}
			c := n.eng.Shard(id).Core()
			term, leading := c.Term()
			fmt.Fprintf(&b, " shard %d node %d: term %d leads %v applied %d %s;", id, n.id, term, leading, c.Applied(), c.Describe())
		}
	}
	return b.String()
}

// reckon compares all replicas with the history, and takes everything out of the
// queues: what is there must be what was stored and not settled.
func (w *World) reckon() {
	if w.check.found != nil {
		return
	}
	for id := uint32(1); id <= uint32(w.p.Shards); id++ {
		want := w.nodes[0].eng.Shard(id).Machine().Ledger().HashAll()
		for _, n := range w.nodes {
			sh := n.eng.Shard(id)
			if h := sh.Machine().Ledger().HashAll(); h != want {
				w.check.fail("replicas", "shard %d: nodes 1 and %d are in different states at the end", id, n.id)
			}
			for l := msg.LogID(1); l <= w.lastLog; l++ {
				if r := w.check.logs[l]; r.shard == id {
					w.check.lane0(n, sh, r)
				}
			}
		}
	}
	w.draining = true
	w.client(w.drain)
	if !w.until(w.now+peaceMax, func() bool { return w.clients[len(w.clients)-1].ended && w.quiet() }) {
		w.check.fail("stuck", "the queues can't be emptied: %s", w.describe())
	}
	if w.check.found != nil {
		return
	}
	for _, m := range w.check.messages {
		missing := len(m.targets) - m.stored
		for _, l := range m.targets {
			if l.closing {
				missing = 0
			}
		}
		if m.done == m.asked && missing != 0 {
			w.check.failAbout(About{Message: m.id}, "lost", "confirmed, and missing in %d of %d queues", missing, len(m.targets))
		}
	}
	for _, q := range w.queues {
		for off := range q.log.items {
			if q.log.items[off].settledAt == 0 {
				w.check.failAbout(w.check.about(q.log, uint64(off)), "lost", "still in its queue, but not delivered")
			}
		}
	}
}

// drain consumes every queue to its end.
func (w *World) drain(p *proc) {
	for _, q := range w.queues {
		for left := true; left && w.check.found == nil; {
			if !p.sleep(20 * time.Millisecond) {
				return
			}
			n := w.leader(q.shard)
			if n == nil {
				continue
			}
			s := w.newSession(n, q, false)
			if err := s.sh.Attach(s.ec, func() { s.term, _ = s.sh.Core().Term() }); err != nil {
				s.close()
				continue
			}
			left = s.takeAll(p)
		}
	}
}

// takeAll acks everything that comes; false when nothing is left.
func (s *session) takeAll(p *proc) (left bool) {
	defer s.reader.Close()
	idle := 0
	for idle < 20 && s.valid() && p.sleep(50*time.Millisecond) {
		s.read()
		idle++
		if len(s.held) > 0 {
			idle = 0
			s.settle(s.take(len(s.held), false), msg.Acked, false)
		}
		left = false
		for i := range s.log.items {
			left = left || s.log.items[i].settledAt == 0
		}
		if !left {
			break
		}
	}
	give := idle < 20 && left // the leader changed
	s.close()
	if s.n.up {
		s.sh.Release(s.ec)
	}
	return give
}

var (
	_ engine.Sink     = (*session)(nil)
	_ shard.Completer = (*batch)(nil)
)
