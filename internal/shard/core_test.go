package shard

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/wal"
)

var (
	seedFlag  = flag.Uint64("shard.seed", 0, "replay one simulated run of the shard tests")
	seedsFlag = flag.Uint64("shard.seeds", 40, "number of simulated runs of one to five voters with logs in memory")
)

// listMachine appends the numbers it is given; its state is the list.
type listMachine struct {
	list  []uint64
	leads bool
	drive func(b *msg.Builder)

	frozen []uint64
}

func (m *listMachine) Apply(c *Command) Result {
	var op msg.Op
	var last uint64
	_ = c.Sub.Ops(&op, func(_ int, op *msg.Op) bool {
		last = binary.LittleEndian.Uint64(op.Data)
		m.list = append(m.list, last)
		return true
	})
	return Result{Value: last}
}
func (m *listMachine) Lead(uint64) { m.leads = true }
func (m *listMachine) Follow()     { m.leads = false }
func (m *listMachine) Drive(b *msg.Builder) bool {
	if m.drive != nil {
		m.drive(b)
	}
	return false
}
func (m *listMachine) BeginCheckpoint() { m.frozen = append([]uint64(nil), m.list...) }
func (m *listMachine) CheckpointSlice(_ int, emit func(k, v []byte)) bool {
	var v []byte
	for _, x := range m.frozen {
		v = binary.LittleEndian.AppendUint64(v, x)
	}
	emit([]byte("list"), append(v, 1))
	return true
}

func (m *listMachine) Restore(_, v []byte) error {
	m.list = nil
	for v = v[:len(v)-1]; len(v) > 0; v = v[8:] {
		m.list = append(m.list, binary.LittleEndian.Uint64(v))
	}
	return nil
}

func (m *listMachine) Reset() { m.list, m.frozen = nil, nil }

// fakeLog keeps what is durable and what is on its way; the test decides when writes
// complete and what a power cut leaves.
type fakeLog struct {
	durable  []wal.Record
	queue    []wal.Append
	refuse   error
	position uint32
}

func (l *fakeLog) Submit(a ...wal.Append) { l.queue = append(l.queue, a...) }
func (l *fakeLog) MaxPayload() int        { return 1 << 20 }

// complete makes the n oldest writes durable.
func (l *fakeLog) complete(n int) {
	for ; n > 0 && len(l.queue) > 0; n-- {
		a := l.queue[0]
		l.queue = l.queue[1:]
		if l.refuse != nil {
			a.Done(l.refuse, nil)
			continue
		}
		pos := make([]wal.Position, len(a.Records))
		for i, r := range a.Records {
			flat := []byte{}
			for _, v := range r.Payload {
				flat = append(flat, v...)
			}
			r.Payload = [][]byte{flat}
			pos[i] = wal.Position{Seq: 1, Off: l.position, Len: uint32(len(flat))}
			l.position++
			l.durable = append(l.durable, r)
		}
		a.Done(nil, pos)
	}
}

// recover gives what a restart finds: the last writer of each index wins.
func (l *fakeLog) recover() Restored {
	rs := wal.RecoveredShard{ShardState: wal.ShardState{FirstIndex: 1}}
	entries := map[uint64]wal.Record{}
	for _, r := range l.durable {
		switch r.Type {
		case wal.TypeHardState:
			rs.HardState = wal.HardState{Term: r.Term, Vote: r.Aux, Commit: r.Index}
		case wal.TypeEntry:
			for i := r.Index; i <= rs.LastIndex; i++ {
				delete(entries, i)
			}
			entries[r.Index] = r
			rs.LastIndex, rs.FirstEntry = r.Index, 1
		}
	}
	return Restored{Wal: &rs, Replay: func(from uint64, fn func(wal.Entry) error) error {
		for i := uint64(1); i <= rs.LastIndex; i++ {
			r := entries[i]
			e := wal.Entry{Index: i, Term: r.Term, PayloadCRC: r.PayloadCRC, Pos: wal.Position{Seq: 1, Len: uint32(len(r.Payload[0]))}}
			if i >= from {
				e.Payload = r.Payload[0]
				if len(e.Payload) > 0 && !msg.VerifyBatch(e.Payload, e.PayloadCRC) {
					return errors.New("payload damaged")
				}
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		return nil
	}}
}

// replica is one node of a simulated shard.
type replica struct {
	id    uint64
	core  *Core
	m     *listMachine
	log   *fakeLog
	posts []func()
	inc   uint32
	down  bool
}

type packet struct {
	from   int
	to     int
	m      *pb.Message
	bodies []Body
	parts  []msg.Part
	gap    *gapReport
}

// gapReport is what Sender.Missing carries.
type gapReport struct{ link, term, want uint64 }

// cluster drives replicas in one goroutine from a seed.
type cluster struct {
	t    *testing.T
	rng  *rand.Rand
	now  time.Time
	reps []*replica
	net  []packet

	size int
	cut  int // replica that is partitioned away, -1 if none
	sent map[uint64]bool
	acks map[uint64]bool // confirmed numbers
	next uint64
}

type netOf struct {
	c    *cluster
	from int
}

func (n netOf) Send(_ uint32, out []Outgoing) {
	for _, o := range out {
		m := proto.Clone(o.Msg).(*pb.Message)
		n.c.net = append(n.c.net, packet{from: n.from, to: int(m.GetTo()) - 1, m: m, bodies: o.Bodies})
	}
}

func (n netOf) Forward(_ uint32, to uint64, parts []msg.Part) {
	n.c.net = append(n.c.net, packet{from: n.from, to: int(to) - 1, parts: parts})
}

func (n netOf) Missing(_ uint32, link, term, want uint64) {
	n.c.net = append(n.c.net, packet{from: n.from, to: int(linkNode(link)) - 1, gap: &gapReport{link, term, want}})
}

func newCluster(t *testing.T, n int, seed uint64) *cluster {
	c := &cluster{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_700_000_000, 0), cut: -1,
		sent: map[uint64]bool{}, acks: map[uint64]bool{}, size: n,
	}
	for i := range n {
		r := &replica{id: uint64(i + 1), log: &fakeLog{}}
		c.reps = append(c.reps, r)
		c.boot(i)
	}
	return c
}

func (c *cluster) boot(i int) {
	r := c.reps[i]
	r.inc++
	r.m = &listMachine{}
	r.posts = nil
	var voters []uint64
	for id := range uint64(c.size) {
		voters = append(voters, id+1)
	}
	core, err := NewCore(Config{
		ID: 7, Incarnation: 1, Node: r.id, Voters: voters, Link: LinkID(uint32(r.id), r.inc),
		Log: r.log, Machine: r.m, Sender: netOf{c, i}, Now: func() time.Time { return c.now },
		Post: func(f func()) { r.posts = append(r.posts, f) },
	}, r.log.recover())
	if err != nil {
		c.t.Fatal(err)
	}
	r.core, r.down = core, false
}

// Completed implements Completer: the confirm of a number.
func (c *cluster) Completed(_ uint32, token uint64, res Result) {
	if res.Err == nil {
		c.acks[token] = true
	}
}

func (c *cluster) publish(i int, lazy bool) { c.submit(i, 8, lazy) }

func (c *cluster) publishSized(i, size int) { c.submit(i, size, false) }

func (c *cluster) submit(i, size int, lazy bool) {
	c.next++
	var b msg.Builder
	b.Meta(append(binary.LittleEndian.AppendUint64(nil, c.next), make([]byte, size-8)...))
	c.sent[c.next] = true
	c.reps[i].core.Submit(Sub{Chunk: b.Finish(), Done: c, Token: c.next, Lazy: lazy})
}

// step does one random thing; faults says whether crashes and partitions may happen.
func (c *cluster) step(faults bool) {
	c.now = c.now.Add(time.Duration(c.rng.IntN(3)) * time.Millisecond)
	i := c.rng.IntN(len(c.reps))
	r := c.reps[i]
	switch k := c.rng.IntN(100); {
	case k < 25 && !r.down:
		r.log.complete(1 + c.rng.IntN(3))
	case k < 55 && len(c.net) > 0:
		c.deliver(c.rng.IntN(min(len(c.net), 4)), faults)
	case k < 65:
		c.now = c.now.Add(TickEvery / 3)
		for _, r := range c.reps {
			if !r.down {
				r.core.Tick()
			}
		}
	case k < 75 && !r.down:
		c.publish(i, c.rng.IntN(4) == 0)
	case k == 75 && faults && !r.down:
		r.log.queue, r.posts, r.down = nil, nil, true // power cut: what wasn't synced is gone
	case k < 80 && r.down:
		c.boot(i)
	case k == 80 && faults:
		c.cut = c.rng.IntN(len(c.reps)+1) - 1
	}
	c.turn()
}

func (c *cluster) turn() {
	for _, r := range c.reps {
		if r.down {
			continue
		}
		posts := r.posts
		r.posts = nil
		for _, f := range posts {
			f()
		}
		r.core.Turn()
		if r.core.failed != nil {
			c.t.Fatal(r.core.failed)
		}
	}
}

func (c *cluster) deliver(k int, faults bool) {
	p := c.net[k]
	c.net = append(c.net[:k], c.net[k+1:]...)
	r := c.reps[p.to]
	if r.down || c.cut >= 0 && (c.cut == p.to || c.cut == p.from) || faults && c.rng.IntN(20) == 0 {
		return
	}
	switch {
	case p.parts != nil:
		r.core.Offer(p.parts)
		return
	case p.gap != nil:
		if p.gap.link == LinkID(uint32(r.id), r.inc) {
			r.core.Missing(p.gap.term, p.gap.want)
		}
		return
	}
	for i, b := range p.bodies {
		if b.Bytes != nil || b.Pos.Seq == 0 {
			continue
		}
		// In the WAL of the sender: find it there, as its sender goroutine would.
		e := p.m.GetEntries()[i]
		for _, rec := range c.reps[p.from].log.durable {
			if rec.Type == wal.TypeEntry && rec.Index == e.GetIndex() && rec.Term == e.GetTerm() {
				p.bodies[i].Bytes = rec.Payload[0]
			}
		}
	}
	r.core.Receive(p.m, p.bodies)
}

// TestReplicatedOrder runs one, three or five voters through crashes that lose what was not synced,
// partitions, message loss and reordering, with submissions from every node. All
// replicas must apply the same list, without repeats, with every confirmed number in
// it and each link's numbers in order.
func TestReplicatedOrder(t *testing.T) {
	first, n := uint64(1), *seedsFlag
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	for seed := first; seed < first+n; seed++ {
		voters := votersOf(seed)
		t.Run(fmt.Sprint("seed=", seed, " voters=", voters), func(t *testing.T) { runCluster(t, voters, seed) })
	}
}

// votersOf says how many voters a run has: three in most, one or five in some.
func votersOf(seed uint64) int { return []int{3, 3, 5, 3, 1}[seed%5] }

func runCluster(t *testing.T, voters int, seed uint64) {
	c := newCluster(t, voters, seed)
	for range 4000 {
		c.step(true)
	}
	c.cut = -1
	for i, r := range c.reps {
		if r.down {
			c.boot(i)
		}
	}
	for range 6000 { // calm: everything that is still pending gets through
		c.step(false)
	}
	for k := 0; k < 20000 && !c.quiet(); k++ {
		c.now = c.now.Add(10 * time.Millisecond)
		for _, r := range c.reps {
			r.log.complete(100)
			if k%5 == 0 {
				r.core.Tick()
			}
		}
		for len(c.net) > 0 {
			c.deliver(0, false)
		}
		c.turn()
	}
	want := c.reps[0].m.list
	seen := map[uint64]bool{}
	for _, n := range want {
		if seen[n] || !c.sent[n] {
			t.Fatalf("number %d applied twice or never sent", n)
		}
		seen[n] = true
	}
	for n := range c.acks {
		if !seen[n] {
			t.Fatalf("confirmed number %d is lost", n)
		}
	}
	for _, r := range c.reps[1:] {
		if fmt.Sprint(r.m.list) != fmt.Sprint(want) {
			t.Fatalf("replicas differ:\n%v\n%v", want, r.m.list)
		}
	}
	if len(c.acks) < 100 {
		t.Fatalf("only %d numbers were confirmed: the run proves little", len(c.acks))
	}
}

func (c *cluster) quiet() bool {
	for _, r := range c.reps {
		if r.core.pending.len() > 0 || r.core.applied != c.reps[0].core.applied || len(r.core.applyQ) > 0 {
			return false
		}
	}
	return len(c.net) == 0
}

// TestOneVoterNeedsNoClock: a single node confirms as soon as its disk answers, keeps
// order, and holds lazy submissions until their delay is over or company comes.
func TestOneVoterNeedsNoClock(t *testing.T) {
	c := newCluster(t, 1, 1)
	r := c.reps[0]
	for range 4 { // the first entry of the term
		c.turn()
		r.log.complete(10)
	}
	if !r.m.leads {
		t.Fatal("a single voter does not lead after its first write")
	}
	var b msg.Builder
	b.Meta(make([]byte, 8))
	r.core.Submit(Sub{Chunk: b.Finish(), Lazy: true})
	c.turn()
	if len(r.log.queue) != 0 {
		t.Fatal("a lazy submission was written at once")
	}
	if w := r.core.WaitUntil(); !w.Equal(c.now.Add(settleDelay)) {
		t.Fatalf("wakes at %v", w)
	}
	c.publish(0, false)
	c.turn()
	if len(r.log.queue) != 1 || len(c.acks) != 0 {
		t.Fatalf("%d writes, %d confirms before the sync", len(r.log.queue), len(c.acks))
	}
	r.log.complete(1)
	c.turn()
	if len(c.acks) != 1 || len(r.m.list) != 2 {
		t.Fatalf("%d confirms, list %v", len(c.acks), r.m.list)
	}
}

// TestFullDiskHoldsAndRecovers: refused writes are tried again in order, nothing is
// confirmed meanwhile, and nothing is lost or doubled afterwards.
func TestFullDiskHoldsAndRecovers(t *testing.T) {
	c := newCluster(t, 1, 1)
	r := c.reps[0]
	for range 4 {
		c.turn()
		r.log.complete(10)
	}
	var said []bool
	r.core.cfg.Blocked = func(b bool) { said = append(said, b) }
	r.log.refuse = wal.ErrNoSpace
	for range 5 {
		c.publish(0, false)
		c.turn()
		r.log.complete(5)
	}
	c.turn()
	if len(c.acks) != 0 || !r.core.Starved() {
		t.Fatalf("confirmed %d on a full disk", len(c.acks))
	}
	r.core.Retry()
	r.log.complete(5)
	c.turn()
	r.log.refuse = nil
	r.core.Retry()
	for range 10 {
		r.log.complete(5)
		c.turn()
	}
	if len(c.acks) != 5 || fmt.Sprint(r.m.list) != "[1 2 3 4 5]" || fmt.Sprint(said) != "[true false]" {
		t.Fatalf("acks %d, list %v, said %v", len(c.acks), r.m.list, said)
	}
}

func TestClockSlewsAndNeverGoesBack(t *testing.T) {
	base := time.Now()
	var k clock
	k.begin(0, base, base.UnixMilli())
	start := k.last
	at := base
	// A wall clock an hour behind: time goes on, a little slower.
	for range 1000 {
		at = at.Add(time.Millisecond)
		before := k.last
		if got := k.read(at, at.UnixMilli()); got < before {
			t.Fatal("went back")
		}
	}
	if d := k.last - start; d < 940 || d > 1060 {
		t.Fatalf("1 s took %d ms of shard time", d)
	}
	k.begin(start+3_600_000, at, at.UnixMilli()) // the last batch was an hour ahead
	from := k.last
	at = at.Add(10 * time.Second)
	if d := k.read(at, at.UnixMilli()) - from; d < 9_400 || d > 9_600 {
		t.Fatalf("10 s ahead of the wall took %d ms", d)
	}
}
