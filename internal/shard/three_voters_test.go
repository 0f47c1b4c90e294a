package shard

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

var diskSeeds = flag.Uint64("shard.diskseeds", 100, "number of runs of three voters on disks that lose power")

// sentBy says whose link carried a number; link 0 is a leader's own operation.
type sentBy struct{ link uint64 }

// diskPacket is a message on the network. Payloads that were in the log of the sender
// when it was sent are read from there when it arrives.
type diskPacket struct {
	from   *diskNode
	log    *gate
	to     uint64
	m      *pb.Message
	bodies []Body
	parts  []msg.Part
	gap    *gapReport
}

type diskNet struct {
	c    *diskCluster
	from *diskNode
	log  *gate
}

func (s diskNet) Send(_ uint32, out []Outgoing) {
	for _, o := range out {
		m := proto.Clone(o.Msg).(*pb.Message)
		if len(m.GetEntries()) > 1 {
			s.c.t.Fatalf("a message of %d entries", len(m.GetEntries()))
		}
		s.c.net = append(s.c.net, diskPacket{from: s.from, log: s.log, to: m.GetTo(), m: m, bodies: o.Bodies})
	}
}

func (s diskNet) Forward(_ uint32, to uint64, parts []msg.Part) {
	s.c.net = append(s.c.net, diskPacket{from: s.from, log: s.log, to: to, parts: parts})
}

func (s diskNet) Missing(_ uint32, link, term, want uint64) {
	s.c.net = append(s.c.net, diskPacket{from: s.from, log: s.log, to: uint64(linkNode(link)), gap: &gapReport{link, term, want}})
}

// diskCluster drives voters over write-ahead logs of small files. One goroutine
// decides what happens next, from a seed; a log's own goroutines work only while it
// waits for them, but for the preparing of files, so that runs of a seed are alike
// without being the same.
type diskCluster struct {
	t      *testing.T
	rng    *rand.Rand
	now    time.Time
	nodes  []*diskNode
	voters []uint64
	net    []diskPacket
	cutOff int // index of the node that is partitioned away, -1 if none
	faults bool

	next uint64
	sent map[uint64]sentBy
	acks map[uint64]bool

	byFiles bool // followers that are far behind get snapshots
	spares  int  // nodes that have no part at first

	cuts, overwrites                                     int
	made, installed, interrupted, copied, changes, flips int
	sealed, recycled                                     atomic.Int64
}

func newDiskCluster(t *testing.T, voters int, seed uint64, faults bool) *diskCluster {
	c := &diskCluster{
		t: t, rng: rand.New(rand.NewPCG(seed, 3)), now: time.Unix(1_700_000_000, 0), cutOff: -1,
		sent: map[uint64]sentBy{}, acks: map[uint64]bool{}, faults: faults,
	}
	c.byFiles = seed%2 == 0
	if c.byFiles && seed%4 == 0 {
		c.spares = 2
	}
	for i := range uint64(voters) {
		c.voters = append(c.voters, i+1)
	}
	for i := range uint64(voters + c.spares) {
		n := &diskNode{id: i + 1, disk: vfs.NewMem()}
		c.nodes = append(c.nodes, n)
		c.boot(n)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			if n.gate != nil {
				_ = n.gate.log.Close()
			}
		}
	})
	return c
}

func (c *diskCluster) number(link uint64) uint64 {
	c.next++
	c.sent[c.next] = sentBy{link}
	return c.next
}

// Completed implements Completer: the confirm of a number.
func (c *diskCluster) Completed(_ uint32, token uint64, res Result) {
	if res.Err == nil {
		c.acks[token] = true
	}
}

func (c *diskCluster) publish(n *diskNode) {
	link := LinkID(uint32(n.id), n.inc)
	for range 1 + c.rng.IntN(3) {
		num := c.number(link)
		var b msg.Builder
		b.Meta(opBytes(num))
		n.core.Submit(Sub{Chunk: b.Finish(), Done: c, Token: num, Lazy: c.rng.IntN(4) == 0})
	}
}

// step does one random thing.
func (c *diskCluster) step() {
	c.now = c.now.Add(time.Duration(c.rng.IntN(3)) * time.Millisecond)
	n := c.nodes[c.rng.IntN(len(c.nodes))]
	switch k := c.rng.IntN(100); {
	case k < 25 && !n.down:
		n.gate.complete(1 + c.rng.IntN(3))
	case k < 58 && len(c.net) > 0:
		c.deliver(c.rng.IntN(min(len(c.net), 4)))
	case k < 66:
		c.tick(TickEvery)
	case k < 76 && !n.down:
		c.publish(n)
	case k < 80 && !n.down:
		c.saveCheckpoint(n)
	case k < 83:
		c.release()
	case k < 87 && n.down:
		c.boot(n)
	case k < 91 && c.byFiles && !n.down:
		c.transfer(n)
	case k < 93 && c.byFiles && !n.down:
		c.tidy(n)
	case c.faults:
		c.fault(n)
	}
	c.turn()
}

// tidy is what a node does with its segments now and then.
func (c *diskCluster) tidy(n *diskNode) {
	switch c.rng.IntN(3) {
	case 0:
		c.flush(n)
	case 1:
		c.compact(n)
	case 2:
		c.changeConf()
	}
}

// changeConf lets the leader propose that a spare node learns or votes, or that a voter
// goes.
func (c *diskCluster) changeConf() {
	l := c.leader()
	if l == nil || c.spares == 0 {
		return
	}
	voters, learners := l.core.Conf()
	var ch ConfChange
	id := uint64(1 + c.rng.IntN(len(c.nodes)))
	switch {
	case slices.Contains(learners, id):
		ch.Vote = []uint64{id}
	case !slices.Contains(voters, id):
		ch.Learn = []uint64{id}
	case len(voters) > 2:
		ch.Remove = []uint64{id}
	}
	switch err := l.core.ProposeConf(ch); {
	case err == nil:
		c.changes++
	case errors.Is(err, ErrConfPending), errors.Is(err, ErrBehind), errors.Is(err, ErrConf):
	default:
		c.t.Fatal(err)
	}
}

func (c *diskCluster) fault(n *diskNode) {
	switch c.rng.IntN(220) {
	case 0, 1:
		n.power.arm(c.rng.IntN(12))
	case 2:
		n.power.cut()
	case 3, 4, 5:
		c.cutOff = c.rng.IntN(len(c.nodes)+1) - 1
	case 10:
		c.flip(n)
	case 6, 7, 8, 9:
		if n.full = !n.full; n.full {
			n.disk.SetLimit(1)
		} else {
			n.disk.SetLimit(0)
		}
	}
}

func (c *diskCluster) tick(d time.Duration) {
	c.now = c.now.Add(d)
	for _, n := range c.nodes {
		if !c.crashed(n) {
			n.core.Tick()
		}
	}
}

func (c *diskCluster) turn() {
	for _, n := range c.nodes {
		if c.crashed(n) {
			continue
		}
		for _, f := range n.takePosts() {
			f()
		}
		n.core.Turn()
		n.publish()
		if err := n.core.Failed(); err != nil {
			c.t.Fatalf("node %d: %v", n.id, err)
		}
		if n.m.strange != "" {
			c.t.Fatalf("node %d: %s", n.id, n.m.strange)
		}
		if n.core.applied > n.core.durable {
			c.t.Fatalf("node %d applied %d, durable is %d", n.id, n.core.applied, n.core.durable)
		}
	}
}

// release lets files go that nobody needs any more. Without snapshots that is what the
// checkpoints of all cover; with them, each node decides for itself.
func (c *diskCluster) release() {
	upto := c.nodes[0].saved.Index
	for _, n := range c.nodes {
		upto = min(upto, n.saved.Index)
	}
	for _, n := range c.nodes {
		if c.byFiles {
			upto = n.saved.Index
		}
		if !n.down && upto > 0 {
			n.releaseFiles(n.core.Compact(upto))
		}
	}
}

func (n *diskNode) releaseFiles(free uint64) {
	for _, f := range n.gate.log.Sealed() {
		for _, s := range f.Shards {
			if s.Last > free {
				return
			}
		}
		n.gate.log.Release(f.Seq)
	}
}

// deliver takes a message off the network; some are lost, some come again later.
func (c *diskCluster) deliver(k int) {
	p := c.net[k]
	c.net = slices.Delete(c.net, k, k+1)
	to := c.nodes[p.to-1]
	if c.parted(to, p.from) || c.crashed(to) || c.faults && c.rng.IntN(20) == 0 {
		return
	}
	if c.faults && c.rng.IntN(30) == 0 {
		c.net = append(c.net, p)
	}
	switch {
	case p.parts != nil:
		to.core.Offer(p.parts)
		return
	case p.gap != nil:
		if p.gap.link == LinkID(uint32(to.id), to.inc) {
			to.core.Missing(p.gap.term, p.gap.want)
		}
		return
	}
	bodies := slices.Clone(p.bodies)
	for i, b := range bodies {
		_, length, ok := parseRef(p.m.GetEntries()[i].GetData())
		if b.Bytes != nil || !ok || p.m.GetEntries()[i].GetType() != pb.EntryNormal {
			continue
		}
		if b.Pos.Seq == 0 {
			c.t.Fatalf("node %d sends entry %d without its payload", p.from.id, p.m.GetEntries()[i].GetIndex())
		}
		bodies[i].Bytes = make([]byte, length)
		if err := p.log.log.ReadAt(b.Pos, 0, bodies[i].Bytes); err != nil {
			return // restarted since, or recycled because everybody had it
		}
		if !msg.VerifyBatch(bodies[i].Bytes, b.CRC) {
			c.t.Fatalf("node %d: not entry %d is at its position", p.from.id, p.m.GetEntries()[i].GetIndex())
		}
	}
	to.core.Receive(p.m, bodies)
}

// settle ends all faults and runs until everything is applied everywhere.
func (c *diskCluster) settle() {
	c.faults, c.cutOff = false, -1
	for _, n := range c.nodes {
		n.power.disarm()
		n.disk.SetLimit(0)
		n.full = false
		if c.crashed(n) {
			c.boot(n)
		}
	}
	for k := 0; !c.quiet(); k++ {
		if k == 20_000 {
			c.t.Fatalf("no rest: %s", c.describe())
		}
		c.round(k)
	}
}

// round lets 10 ms pass in which every disk and every message arrives.
func (c *diskCluster) round(k int) {
	c.now = c.now.Add(10 * time.Millisecond)
	for _, n := range c.nodes {
		n.gate.complete(100)
		c.saveCheckpoint(n)
		c.transfer(n)
	}
	c.release()
	if k%5 == 0 {
		c.tick(0)
	}
	for i := len(c.net); i > 0 && len(c.net) > 0; i-- {
		c.deliver(0)
	}
	c.turn()
}

// members are the nodes that have a part, as a leader knows.
func (c *diskCluster) members() (list []*diskNode) {
	l := c.leader()
	if l == nil {
		return nil
	}
	voters, learners := l.core.Conf()
	for _, id := range append(voters, learners...) {
		list = append(list, c.nodes[id-1])
	}
	return list
}

func (c *diskCluster) quiet() bool {
	list := c.members()
	for _, n := range list {
		n.mu.Lock()
		posts := len(n.posts)
		n.mu.Unlock()
		r := n.core
		if r.pending.len() > 0 || r.applied != list[0].core.applied || r.applied != r.log.last() || posts+len(n.gate.queue)+len(r.retry) > 0 {
			return false
		}
	}
	return len(list) > 0
}

func (c *diskCluster) describe() string {
	s := ""
	for _, n := range c.nodes {
		r := n.core
		s += fmt.Sprintf("\nnode %d: down %v term %d lead %d leading %v first %d durable %d applied %d last %d pending %d retry %d inflight %d queue %d saved %d",
			n.id, n.down, r.term, r.lead, r.leading, r.log.first, r.durable, r.applied, r.log.last(), r.pending.len(), len(r.retry), r.inflight, len(n.gate.queue), n.saved.Index)
	}
	return s
}

// check compares the replicas and what was confirmed.
func (c *diskCluster) check() {
	list := c.members()
	want := list[0].m.list
	for _, n := range list {
		c.verify(n, n.files.flushed)
		if !slices.Equal(n.m.list, want) {
			c.t.Fatalf("replicas differ:\n%v\n%v", want, n.m.list)
		}
	}
	seen := map[uint64]bool{}
	last := map[uint64]uint64{} // per link
	for _, n := range want {
		by, ok := c.sent[n]
		if !ok || seen[n] {
			c.t.Fatalf("number %d twice, or never sent", n)
		}
		seen[n] = true
		if by.link != 0 && n <= last[by.link] {
			c.t.Fatalf("link %x: %d after %d", by.link, n, last[by.link])
		}
		last[by.link] = n
	}
	for n, by := range c.sent {
		if c.acks[n] && !seen[n] {
			c.t.Fatalf("confirmed number %d is lost", n)
		}
		if by.link != 0 && !seen[n] && n < last[by.link] {
			c.t.Fatalf("link %x has a gap at %d", by.link, n)
		}
	}
}

// runDisk returns how much happened.
func runDisk(t *testing.T, seed uint64) *diskCluster {
	c := newDiskCluster(t, votersOf(seed), seed, true)
	for range 4000 {
		c.step()
	}
	c.settle()
	c.check()
	for _, n := range c.nodes { // all at once: what was confirmed is on disks
		n.power.cut()
	}
	c.settle()
	c.check()
	for _, n := range c.nodes {
		c.overwrites += n.gate.overwrites
	}
	return c
}

// TestThreeVotersOnDisks runs voters, mostly three, over real write-ahead logs whose
// files are recycled as checkpoints let them, through power cuts before any operation
// that changes a disk, full disks, replaced suffixes, and messages that are lost,
// repeated, reordered or cut off. In half of the runs no log is kept for who is more
// than a few entries behind: such a node fetches the files of a snapshot; in a quarter
// nodes join as learners, vote, and leave. All replicas must apply the same list, with
// every confirmed number in it once, the numbers of a link in order and without gaps,
// and nothing that nobody sent; and have the bytes of all that is in segments.
func TestThreeVotersOnDisks(t *testing.T) {
	first, n := uint64(1), *diskSeeds
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	var cuts, overwrites, acks, recycled, made, installed, interrupted, changes, flips int
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			c := runDisk(t, seed)
			cuts, overwrites, acks, recycled = cuts+c.cuts, overwrites+c.overwrites, acks+len(c.acks), recycled+int(c.recycled.Load())
			made, installed, interrupted, changes = made+c.made, installed+c.installed, interrupted+c.interrupted, changes+c.changes
			flips += c.flips
		})
	}
	t.Logf("%d runs: %d power cuts, %d replaced suffixes, %d files recycled, %d confirms", n, cuts, overwrites, recycled, acks)
	t.Logf("%d snapshots made, fetching interrupted %d times, %d installed; %d changes of the configuration; %d logs damaged", made, interrupted, installed, changes, flips)
	if n >= 100 && !t.Failed() && (acks < 100*int(n) || cuts < int(n) || overwrites < int(n) || recycled < int(n) ||
		installed < int(n)/8 || changes < int(n)/16) {
		t.Fatal("the runs prove little")
	}
}
