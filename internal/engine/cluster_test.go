package engine

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
)

// trio is three nodes that hold the same shard, stepped by one goroutine over a time and a
// network of its own, with consumers on all of them.
type trio struct {
	t     *testing.T
	rng   *rand.Rand
	now   time.Time
	nodes []*trioNode
	net   []trioPacket
	// mute is the node whose raft messages are lost, and off the one that is cut off
	// wholly; 0: none. dead is the one that the others take for dead.
	mute, off, dead uint64
	until           time.Time // of that
	gone            bool      // nodes are cut off
	faults          bool      // messages between machines are lost, repeated and reordered

	sessions []*trioSession
	ended    []*trioSession
	messages map[trioKey]*trioMessage
	sent     uint64
	numbers  map[uint64]uint64 // of stored ones, by who published: the last
	confirms int
	moves    int
	lastTerm uint64
	stats    struct{ delivered, elsewhere, redelivered, kept, gets int }
	nextID   uint64
	refuse   string // the first violation
}

type trioNode struct {
	*trio
	id     uint64
	eng    *Node
	sh     *Shard
	reader Reader
	losses int // times that it was cut off
}

type trioPacket struct {
	from, to uint64
	raft     bool
	load     func() error
	arrive   func(to *trioNode)
}

type trioKey struct {
	log msg.LogID
	off msg.Offset
}

type trioMessage struct {
	number    uint64
	delivered bool
	acked     bool
	holder    *trioSession
	losses    int // of the holder's node when it got it
}

// trioPool is a session's credit.
type trioPool struct {
	room, size int64
	starved    bool
}

func (p *trioPool) Take(n int64) int64 {
	g := max(min(n, p.room), 0)
	p.room -= g
	p.starved = p.starved || g == 0
	return g
}

func (p *trioPool) Give(n int64) { p.room += n }

func (p *trioPool) Hungry() bool {
	hungry := p.starved && p.room > 0
	p.starved = p.starved && !hungry
	return hungry
}

func newTrio(t *testing.T, seed uint64) *trio {
	c := &trio{
		t: t, rng: rand.New(rand.NewPCG(seed, 7)), now: time.Unix(1_700_000_000, 0),
		messages: map[trioKey]*trioMessage{}, numbers: map[uint64]uint64{},
	}
	for id := uint64(1); id <= 3; id++ {
		n := &trioNode{trio: c, id: id}
		eng, err := Open(NodeConfig{
			FS: vfs.NewMem(), Dir: "data", Shards: 1, WALFileBytes: 4 << 20, WALFiles: 100,
			Replicas: Replicas{Node: id, Voters: []uint64{1, 2, 3}, Sender: trioRaft{n}, Cluster: n},
			Stepping: &Stepping{
				Pause: func(time.Duration) bool { c.round(); return true },
				Now:   func() time.Time { return c.now }, Wall: func() time.Time { return c.now },
				Salt: seed<<8 | id, Store: store.Options{},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		n.eng, n.sh = eng, eng.Queues()[0]
		c.nodes = append(c.nodes, n)
	}
	c.awaitLeader()
	for log := msg.LogID(1); log <= trioLogs; log++ {
		profile := []byte(nil)
		if log == 2 {
			profile = queue.AppendProfile(nil, queue.Profile{CountDeliveries: true})
		}
		if _, err := c.leader().sh.Do(func(b *msg.Builder) { b.Ensure(log, profile) }); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

const trioLogs = 3

// Live implements Cluster.
func (n *trioNode) Live() (ids []uint64) {
	for id := uint64(1); id <= 3; id++ {
		if id != n.id && id != n.dead {
			ids = append(ids, id)
		}
	}
	return ids
}

// Send implements Cluster.
func (n *trioNode) Send(_ uint32, to uint64, x *Message) {
	var sent []byte
	load := func() error {
		err := x.Load(&n.reader)
		sent = AppendMessage(nil, x)
		return err
	}
	n.net = append(n.net, trioPacket{n.id, to, false, load, func(to *trioNode) {
		arrived, err := ParseMessage(sent)
		if err != nil {
			n.fail("a message can't be read: %v", err)
			return
		}
		to.sh.Hear(arrived)
	}})
}

// trioRaft is a node's way to the other replicas.
type trioRaft struct{ n *trioNode }

// Send implements shard.Sender.
func (r trioRaft) Send(_ uint32, out []shard.Outgoing) {
	for _, o := range out {
		o := o.Clone()
		load := func() error {
			for i := range o.Bodies {
				if b := &o.Bodies[i]; b.Bytes == nil && b.Pos.Len > 0 {
					b.Bytes = make([]byte, b.Pos.Len)
					if err := r.n.eng.WAL().ReadAt(b.Pos, 0, b.Bytes); err != nil {
						return err
					}
				}
			}
			return nil
		}
		r.n.net = append(r.n.net, trioPacket{r.n.id, o.To(), true, load, func(to *trioNode) { to.sh.Shard.Receive(o.Msg, o.Bodies) }})
	}
}

// Forward implements shard.Sender.
func (r trioRaft) Forward(_ uint32, to uint64, parts []msg.Part) {
	r.n.net = append(r.n.net, trioPacket{r.n.id, to, true, nil, func(to *trioNode) { to.sh.Offer(parts) }})
}

// Missing implements shard.Sender.
func (r trioRaft) Missing(_ uint32, link, term, want uint64) {
	r.n.net = append(r.n.net, trioPacket{r.n.id, link >> 32, true, nil, func(to *trioNode) { to.sh.Shard.Missing(term, want) }})
}

func (c *trio) leader() *trioNode {
	for _, n := range c.nodes {
		if n.id != c.mute && n.id != c.off && n.sh.Core().Leading() {
			return n
		}
	}
	return nil
}

func (c *trio) awaitLeader() {
	for k := 0; c.leader() == nil; k++ {
		if k > 1000 {
			c.t.Fatal("nobody leads")
		}
		c.round()
	}
}

// round lets some milliseconds pass.
func (c *trio) round() {
	c.now = c.now.Add(5 * time.Millisecond)
	if c.now.After(c.until) {
		c.mute, c.off, c.dead = 0, 0, 0
	}
	tick := c.now.UnixMilli()/50 != c.now.Add(-5*time.Millisecond).UnixMilli()/50
	for _, n := range c.nodes {
		if tick {
			n.sh.Tick()
		}
		for range 3 {
			n.sh.Step()
			n.eng.WAL().Step()
		}
		n.sh.Step()
	}
	for i := len(c.net); i > 0 && len(c.net) > 0; i-- {
		c.carry()
	}
	if l := c.leader(); l != nil {
		if term, _ := l.sh.Core().Term(); term != c.lastTerm {
			c.lastTerm = term
			c.moves++
		}
	}
}

// carry brings a packet to its node, or loses it.
func (c *trio) carry() {
	k := 0
	if c.faults {
		k = c.rng.IntN(min(len(c.net), 3))
	}
	p := c.net[k]
	c.net = slices.Delete(c.net, k, k+1)
	cut := c.off == p.from || c.off == p.to || p.raft && (c.mute == p.from || c.mute == p.to)
	if cut || c.faults && !p.raft && c.rng.IntN(40) == 0 {
		return
	}
	if p.load != nil {
		if err := p.load(); err != nil {
			c.t.Fatal(err)
		}
	}
	p.arrive(c.nodes[p.to-1])
	if c.faults && !p.raft && c.rng.IntN(40) == 0 {
		p.load = nil
		c.net = append(c.net, p)
	}
}

func (c *trio) fail(format string, args ...any) {
	if c.refuse == "" {
		c.refuse = fmt.Sprintf(format, args...)
	}
}

// Completed implements shard.Completer.
func (c *trio) Completed(_ uint32, _ uint64, res shard.Result) {
	if res.Err != nil {
		c.fail("publish: %v", res.Err)
	}
	c.confirms++
}

// publish sends some messages from a node.
func (c *trio) publish(n *trioNode, log msg.LogID, count int) {
	var b msg.Builder
	for range count {
		c.sent++
		b.Append([]msg.Target{{Log: log}}, &msg.Envelope{}, binary.LittleEndian.AppendUint64(nil, c.sent))
	}
	n.sh.Submit(shard.Sub{Chunk: b.Finish(), Done: c, Token: c.sent})
}
