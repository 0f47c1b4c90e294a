package sim

import (
	"log/slog"
	"time"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
)

// node is a simulated machine: a disk that stays, a process that comes and goes.
type node struct {
	w     *World
	index int
	id    uint64

	disk     *disk
	eng      *engine.Node
	up       bool
	stopping bool // cleanly
	inc      int  // starts
	procs    []*proc
	ticks    int
	moveDue  bool

	stalled time.Duration // nothing runs before
	turnDue bool
	walDue  bool
	timer   bool // a turn is due for what may wait for company

	drift   float64 // of its clock
	wallOff time.Duration
}

// epoch is where virtual time begins.
var epoch = time.Unix(1_700_000_000, 0)

// clock is the monotonic clock: no two run alike.
func (n *node) clock() time.Time { return epoch.Add(n.local(n.w.now)) }

func (n *node) local(d time.Duration) time.Duration {
	return d + time.Duration(float64(d)*n.drift)
}

func (n *node) wall() time.Time { return n.clock().Add(n.wallOff) }

// pause is how the product's sequential code waits on this start of the node.
func (n *node) pause(inc int) func(time.Duration) bool {
	return func(atMost time.Duration) bool {
		p := n.w.running
		if p == nil {
			panic("sim: something waits outside of a coroutine")
		}
		if !n.up || n.inc != inc {
			return false
		}
		n.kick()
		d := n.w.between(20*time.Microsecond, 300*time.Microsecond)
		switch {
		case atMost > 0:
			d = n.w.between(atMost/8, atMost)
		case n.w.faulty && n.w.chance(n.w.p.KeeperLate): // it was not its turn
			d = n.w.between(0, n.w.p.KeeperLag)
		}
		if !p.sleep(d) {
			return false
		}
		for n.up && n.inc == inc && n.w.now < n.stalled {
			if !p.sleep(n.stalled - n.w.now) {
				return false
			}
		}
		n.crashed()
		return n.up && n.inc == inc
	}
}

// boot starts the process on what the disk holds.
func (n *node) boot() {
	mem := vfs.NewMem()
	if n.disk != nil {
		mem = n.disk.rest
	}
	w := n.w
	n.inc++
	mem.SetLimit(0)
	n.disk = &disk{n: n, mem: mem}
	if w.faulty && w.p.PowerAt > 0 && w.chance(0.1) {
		n.disk.armed, n.disk.left = true, w.rng.IntN(20)
	}
	voters := make([]uint64, len(w.nodes))
	for i := range voters {
		voters[i] = uint64(i + 1)
	}
	cfg := engine.NodeConfig{
		FS: n.disk.fs(), Dir: "data", Log: slog.New(w.check.handler(n)), Shards: w.p.Shards,
		WALFileBytes: w.p.WALFile, WALFiles: w.p.WALFiles, TailCache: w.p.TailCache,
		CheckpointEntries: w.p.CheckpointEntries,
		Replicas:          engine.Replicas{Node: n.id, Voters: voters, Sender: port{n, n.inc}, Transport: port{n, n.inc}, LagEntries: w.p.Lag},
		Stepping: &engine.Stepping{
			Pause: n.pause(n.inc), Now: n.clock, Wall: n.wall, Salt: w.rng.Uint64() | 1, Wrap: n.wrap,
			Store: store.Options{
				SegmentBytes: w.p.Segment, OwnRunBytes: w.p.Segment / 4, CacheBytes: 64 << 10,
				ManifestBytes: 8 << 10, CheckpointBytes: 8 << 10, Identity: n.id,
			},
		},
	}
	if w.p.Lag > 0 {
		cfg.Replicas.Files = port{n, n.inc}
	}
	eng, err := engine.Open(cfg)
	n.eng = eng
	if n.disk.rest != nil { // the power went while it started
		n.down()
		return
	}
	if err != nil {
		w.check.fail("start", "node %d does not start: %v", n.id, err)
		return
	}
	n.up, n.walDue, n.turnDue, n.timer, n.moveDue, n.stopping = true, false, false, false, false, false
	w.stats.Boots++
	w.note(noteBoot, n.id, uint64(n.inc), 0)
	jobs := []func(){n.upkeep, eng.WriteCuts}
	if w.p.Lag > 0 {
		jobs = append(jobs, eng.FetchFiles)
	}
	for _, job := range jobs {
		n.procs = append(n.procs, w.spawn(func(*proc) { job() }))
	}
	n.tickLater(n.inc)
	n.kick()
}

func (n *node) upkeep() { n.eng.Upkeep() }

// wrap lets the checker see what a machine applies.
func (n *node) wrap(id uint32, m shard.Machine, l *queue.Ledger) shard.Machine {
	return &watched{Machine: m, n: n, inc: n.inc, id: id, ledger: l}
}

// down sees to a process that is gone.
func (n *node) down() {
	n.up = false
	n.w.note(noteDown, n.id, uint64(n.inc), 0)
	procs := n.procs
	n.procs = nil
	for _, p := range procs {
		p.kill()
	}
	n.w.check.nodeDown(n)
	if n.w.faulty {
		n.w.after(n.w.between(20*time.Millisecond, n.w.p.DownFor), n.bootIfDown)
	}
}

func (n *node) bootIfDown() {
	if !n.up {
		n.boot()
	}
}

// crashed notices that the process is gone; true if it is.
func (n *node) crashed() bool {
	if n.up && n.disk.rest != nil {
		n.down()
	}
	return !n.up
}

// kick lets the loops of the node run soon.
func (n *node) kick() {
	if n.up && !n.turnDue {
		n.turnDue = true
		inc := n.inc
		n.w.after(n.w.between(time.Microsecond, 40*time.Microsecond), func() { n.run(inc, n.turn) })
	}
}

// run calls fn unless the process was replaced, after a standstill.
func (n *node) run(inc int, fn func()) {
	switch {
	case !n.up || n.inc != inc:
	case n.w.now < n.stalled:
		n.w.after(n.stalled-n.w.now, func() { n.run(inc, fn) })
	default:
		fn()
	}
}

// shards are the loops that the simulation steps: all but the volatile one.
func (n *node) shards() []*shard.Shard {
	all := n.eng.Shards()
	return all[:len(all)-1]
}

// turn gives each loop a round.
func (n *node) turn() {
	n.turnDue = false
	more := false
	for _, s := range n.shards() {
		more = s.Step() || more
		if n.crashed() {
			return
		}
		if err := s.Core().Failed(); err != nil {
			n.w.check.fail("shard", "shard %d of node %d failed: %v", s.ID(), n.id, err)
			return
		}
		if !s.Core().WaitUntil().IsZero() && !n.timer {
			n.timer = true
			n.w.after(5*time.Millisecond, func() { n.timer = false; n.kick() })
		}
	}
	if more {
		n.kick()
	}
	n.driveLog()
	n.moveLater()
}

// moveLater lets what shards owe each other be read and sent, beside the loops.
func (n *node) moveLater() {
	if n.moveDue || n.w.p.Shards == 1 {
		return
	}
	n.moveDue = true
	inc := n.inc
	n.w.after(n.w.between(10*time.Microsecond, 500*time.Microsecond), func() {
		n.run(inc, func() {
			n.moveDue = false
			for _, s := range n.eng.Queues() {
				s.Move()
			}
			n.crashed()
		})
	})
}

// driveLog lets the write-ahead log write a round when the disk is ready.
func (n *node) driveLog() {
	if n.walDue || n.eng.WAL().Metrics().Queued == 0 {
		return
	}
	n.walDue = true
	inc := n.inc
	n.w.after(n.disk.latency(), func() {
		n.run(inc, func() {
			n.walDue = false
			n.eng.WAL().Step()
			if n.crashed() {
				return
			}
			n.kick()
			n.driveLog()
			n.w.after(5*time.Millisecond, func() { n.run(inc, n.idle) })
		})
	})
}

func (n *node) idle() {
	if !n.walDue && n.eng.WAL().Metrics().Queued == 0 {
		n.eng.WAL().Idle()
		n.crashed()
	}
}

func (n *node) tickLater(inc int) {
	d := time.Duration(float64(shard.TickEvery) / (1 + n.drift))
	n.w.after(d, func() {
		n.run(inc, func() {
			for _, s := range n.shards() {
				s.Tick()
			}
			if n.ticks++; n.ticks%20 == 0 {
				for _, s := range n.eng.Queues() {
					s.LookAfterMoves()
				}
			}
			if !n.crashed() {
				n.kick()
				n.tickLater(inc)
			}
		})
	})
}

// receive hands something to a shard's loop.
func (n *node) receive(id uint32, fn func(s *shard.Shard)) {
	for _, s := range n.shards() {
		if s.ID() == id {
			fn(s)
		}
	}
	n.kick()
}

// leads says whether the node acts as leader of a shard now, and in which term.
func (n *node) leads(id uint32) (term uint64, yes bool) {
	if !n.up || n.w.now < n.stalled {
		return 0, false
	}
	s := n.eng.Shard(id)
	term, _ = s.Core().Term()
	return term, s.Core().Leading()
}
