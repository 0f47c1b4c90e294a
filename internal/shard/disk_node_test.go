package shard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
	"github.com/sluicemq/sluice/internal/wal"
)

// errPower is what every operation on a disk without power gives.
var errPower = errors.New("power cut")

// power cuts a disk off, before a mutating operation or at once.
type power struct {
	mu    sync.Mutex
	mem   *vfs.Mem
	rng   *rand.Rand
	armed bool
	left  int      // mutating operations until the cut, while armed
	rest  *vfs.Mem // what is on the disk after the cut
}

func (p *power) hook(op vfs.Op) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rest == nil && p.armed && op.Kind.Mutates() {
		if p.left--; p.left < 0 {
			p.cutLocked()
		}
	}
	if p.rest != nil {
		return errPower
	}
	return nil
}

func (p *power) arm(ops int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.left = true, ops
}

func (p *power) disarm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = false
}

func (p *power) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rest == nil {
		p.cutLocked()
	}
}

// cutLocked takes what is left: nothing, all or any part of what was not synced.
func (p *power) cutLocked() {
	keep := []vfs.Keep{vfs.KeepNone, vfs.KeepRandom, vfs.KeepRandom, vfs.KeepAll}
	p.rest = p.mem.CrashClone(p.rng, vfs.CrashOptions{Data: keep[p.rng.IntN(4)], Names: keep[p.rng.IntN(4)]})
}

func (p *power) gone() *vfs.Mem {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rest
}

// gate holds appends back until the simulation lets them go on to the log, and gives
// their completions to it: so the simulation decides how far a disk is.
type gate struct {
	log        *wal.Log
	queue      []wal.Append
	last       uint64 // index of the last entry submitted
	overwrites int    // appends that replaced a suffix
}

func (g *gate) MaxPayload() int { return g.log.MaxPayload() }

func (g *gate) Submit(appends ...wal.Append) {
	for _, a := range appends {
		for _, r := range a.Records {
			if r.Type != wal.TypeEntry {
				continue
			}
			if r.Index <= g.last {
				g.overwrites++
			}
			g.last = r.Index
		}
	}
	g.queue = append(g.queue, appends...)
}

// complete writes the n oldest appends as one submission and waits for the log.
func (g *gate) complete(n int) {
	n = min(n, len(g.queue))
	if n == 0 {
		return
	}
	batch := append([]wal.Append(nil), g.queue[:n]...)
	g.queue = g.queue[n:]
	done := make(chan struct{})
	tail := batch[n-1].Done
	batch[n-1].Done = func(err error, pos []wal.Position) {
		tail(err, pos)
		close(done)
	}
	g.log.Submit(batch...)
	<-done
}

// judge is a list machine that looks at every byte it is given.
type judge struct {
	listMachine
	strange string
}

// opBytes is what the number n looks like when it is submitted: its filler follows
// from it, so that bytes of another record do not pass.
func opBytes(n uint64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, n)
	for i := range fillerLen(n) {
		b = append(b, byte(n*131+uint64(i)))
	}
	return b
}

func fillerLen(n uint64) int { return int(n*2654435761>>7) % 1500 }

func (j *judge) Apply(c *Command) Result {
	var op msg.Op
	err := c.Sub.Ops(&op, func(_ int, op *msg.Op) bool {
		if len(op.Data) < 8 {
			j.strange = fmt.Sprintf("entry %d has an operation of %d bytes", c.Index, len(op.Data))
			return false
		}
		n := binary.LittleEndian.Uint64(op.Data)
		if string(op.Data) != string(opBytes(n)) {
			j.strange = fmt.Sprintf("entry %d: bytes of number %d are not its own", c.Index, n)
		}
		j.list = append(j.list, n)
		return true
	})
	if err != nil {
		j.strange = fmt.Sprintf("entry %d: %v", c.Index, err)
	}
	return Result{}
}

// diskNode is one voter with a disk of its own that loses power.
type diskNode struct {
	id    uint64
	inc   uint32 // starts
	disk  *vfs.Mem
	power *power
	gate  *gate
	core  *Core
	m     *judge
	table atomic.Pointer[wal.ShardState]
	mu    sync.Mutex
	posts []func()

	files nodeFiles
	saved Cut  // what is known of the durable checkpoint; Index 0 if there is none
	taken *Cut // handed over, not durable yet
	full  bool // the disk

	flipped bool // a bit of its log
	down    bool
}

func (n *diskNode) post(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.posts = append(n.posts, f)
}

func (n *diskNode) takePosts() []func() {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.posts
	n.posts = nil
	return p
}

func (n *diskNode) tables() []wal.ShardState {
	if t := n.table.Load(); t != nil {
		return []wal.ShardState{*t}
	}
	return nil
}

// open recovers the log; false if the power went meanwhile.
func (n *diskNode) open(c *diskCluster) (*wal.Recovery, bool) {
	n.table.Store(nil)
	log, rec, err := wal.Open(wal.Options{
		FS: vfs.Inject(n.disk, n.power.hook), Dir: "wal", FileSize: 64 << 10, IdleSeal: time.Hour,
		Tables: n.tables, VerifyPayload: VerifyPayload,
		Events: wal.Events{
			FileSealed:   func(wal.SealedFile) { c.sealed.Add(1) },
			FileRecycled: func(_ uint64, reused bool) { c.recycled.Add(1) },
		},
	})
	if n.power.gone() != nil {
		if err == nil {
			_ = log.Close()
		}
		return nil, false
	}
	if err != nil {
		c.t.Fatalf("node %d: %v", n.id, err)
	}
	if rec.Damaged() && !n.flipped {
		c.t.Fatalf("node %d: power cut taken for damage: %v", n.id, rec.Damages)
	}
	n.gate = &gate{log: log}
	return rec, true
}

// boot starts the node on what the last power cut left. The power may go again while
// the log recovers.
func (c *diskCluster) boot(n *diskNode) {
	for !c.tryBoot(n) {
		if n.gate != nil {
			_ = n.gate.log.Close()
		}
		n.disk = n.power.gone()
		c.cuts++
	}
}

// tryBoot is one attempt to start; false if the power went meanwhile.
func (c *diskCluster) tryBoot(n *diskNode) bool {
	n.disk.SetLimit(0)
	n.full = false
	n.power = &power{mem: n.disk, rng: rand.New(rand.NewPCG(c.rng.Uint64(), 2))}
	if c.faults && c.rng.IntN(8) == 0 {
		n.power.arm(c.rng.IntN(12))
	}
	rec, ok := n.open(c)
	if !ok || !c.openStore(n) {
		return false
	}
	n.inc++
	n.m, n.posts, n.taken, n.down = &judge{}, nil, nil, false
	r, ok := c.restored(n)
	if !ok {
		return false
	}
	r.Suspect = rec.Damaged()
	if s, ok := rec.Shard(7); ok {
		r.Wal = &s
		r.Replay = func(from uint64, fn func(wal.Entry) error) error { return rec.Replay(7, from, fn) }
		n.gate.last = s.LastIndex
	}
	n.m.drive = func(b *msg.Builder) {
		// One at a time: a machine must bound what it puts there while nothing is proposed.
		if c.faults && b.Empty() && c.rng.IntN(30) == 0 {
			b.Meta(opBytes(c.number(0)))
		}
	}
	voters := c.voters
	if !slices.Contains(voters, n.id) {
		voters = nil // it joins later
	}
	var snaps Snapshots
	if c.byFiles {
		snaps = diskSnaps{c, n}
	}
	var err error
	n.core, err = NewCore(Config{
		LagEntries: 10, Snapshots: snaps, Logger: slog.New(slog.DiscardHandler),
		ID: 7, Incarnation: 1, Node: n.id, Voters: voters, Link: LinkID(uint32(n.id), n.inc),
		Log: n.gate, Machine: n.m, Sender: diskNet{c, n, n.gate}, Now: func() time.Time { return c.now },
		Post: n.post, Checkpoint: func(k Cut) { n.taken = &k }, CheckpointEntries: 30,
	}, r)
	if err != nil && n.power.gone() != nil {
		return false
	}
	if err != nil {
		c.t.Fatalf("node %d, start %d: %v", n.id, n.inc, err)
	}
	n.publish()
	return true
}

// restored gives what the store says; false if the power went meanwhile.
func (c *diskCluster) restored(n *diskNode) (r Restored, ok bool) {
	n.saved = Cut{}
	if info, ok := n.files.store.Checkpoint(7); ok {
		x, err := ParseCheckpointExtra(info.Extra)
		if err != nil {
			c.t.Fatal(err)
		}
		n.saved = Cut{Index: info.Index, Term: x.Term}
		r = Restored{Checkpoint: info.Index, Term: x.Term, Conf: x.Conf, Installed: x.Installed}
	}
	st, err := n.loadCheckpoint()
	if c.trouble(n, err) {
		return r, false
	}
	r.TimeMS, r.Links = st.TimeMS, st.Links
	return r, true
}

func (n *diskNode) publish() {
	t := n.core.Table(0)
	n.table.Store(&t)
}

// crashed sees to a node whose power is gone; true if it is.
func (c *diskCluster) crashed(n *diskNode) bool {
	if n.down {
		return true
	}
	if n.power.gone() == nil {
		return false
	}
	_ = n.gate.log.Close()
	n.disk, n.down = n.power.gone(), true
	c.overwrites += n.gate.overwrites
	c.cuts++
	return true
}
