package sim

import (
	"errors"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
)

// network carries messages between nodes.
type network struct {
	w       *World
	blocked map[[2]int]bool // from, to: nothing gets through
	loss    float64
	repeat  float64
	late    float64       // share of messages that take up to lateness
	latest  time.Duration // see late
}

// port is a node's way into the network, for one of its starts.
type port struct {
	n   *node
	inc int
}

// Send implements shard.Sender.
func (p port) Send(id uint32, out []shard.Outgoing) {
	for _, o := range out {
		o := o.Clone()
		p.n.w.net.carry(p, int(o.To())-1, func() bool { return p.fetch(o) }, func(to *node) {
			to.receive(id, func(s *shard.Shard) { s.Receive(o.Msg, o.Bodies) })
		})
	}
}

// Forward implements shard.Sender.
func (p port) Forward(id uint32, to uint64, parts []msg.Part) {
	p.n.w.net.carry(p, int(to)-1, nil, func(to *node) {
		to.receive(id, func(s *shard.Shard) { s.Offer(parts) })
	})
}

// errNet is what a node gets that asks for files in vain.
var errNet = errors.New("sim: no answer")

// ReadFile implements engine.Peers: one message each way, of which any may be lost.
func (p port) ReadFile(node uint64, id uint32, pin uint64, f store.FileRef, b []byte, off int64) (int, error) {
	w := p.n.w
	to := w.nodes[node-1]
	pause := p.n.pause(p.inc)
	there, back := [2]int{p.n.index, to.index}, [2]int{to.index, p.n.index}
	for _, lane := range [][2]int{there, back} {
		if !pause(w.net.delay()) {
			return 0, errNet
		}
		if !to.up || w.net.blocked[lane] || w.chance(w.net.loss) {
			return 0, errNet
		}
	}
	n, err := to.eng.ReadFile(id, pin, f, b[:min(len(b), 16<<10)], off)
	w.stats.Copied += n
	return n, err
}

// fetch reads the payloads that lie in the write-ahead log, as a sender does beside the
// loop; false if one is not there any more.
func (p port) fetch(o shard.Outgoing) bool {
	for i := range o.Bodies {
		b := &o.Bodies[i]
		if b.Bytes != nil || b.Pos.Len == 0 {
			continue
		}
		if !p.n.up || p.n.inc != p.inc {
			return false
		}
		buf := make([]byte, b.Pos.Len)
		if err := p.n.eng.WAL().ReadAt(b.Pos, 0, buf); err != nil {
			return false
		}
		if !msg.VerifyBatch(buf, b.CRC) {
			p.n.w.check.fail("payload", "node %d sends bytes that are not those of its entry", p.n.id)
		}
		b.Bytes = buf
	}
	return true
}

func (nw *network) delay() time.Duration {
	if nw.w.chance(nw.late) {
		return nw.w.between(0, nw.latest)
	}
	return nw.w.between(50*time.Microsecond, 800*time.Microsecond)
}

// carry brings something to a node: load makes it complete as it leaves.
func (nw *network) carry(p port, to int, load func() bool, arrive func(to *node)) {
	w := nw.w
	lane := [2]int{p.n.index, to}
	if to < 0 || to >= len(w.nodes) || nw.cut(lane) || w.chance(nw.loss) {
		return
	}
	land := func() {
		if n := w.nodes[to]; n.up && !nw.cut(lane) {
			arrive(n)
		}
	}
	w.after(w.between(0, 50*time.Microsecond), func() {
		if load != nil && !load() {
			return
		}
		w.after(nw.delay(), land)
		if w.chance(nw.repeat) {
			w.after(nw.delay()+w.between(0, 20*time.Millisecond), land)
		}
	})
}

// cut says whether nothing gets through; what stays on a node always does.
func (nw *network) cut(lane [2]int) bool { return lane[0] != lane[1] && nw.blocked[lane] }

// Offer implements engine.Transport: to who leads, as far as the sender can know.
func (p port) Offer(target uint32, parts []msg.Part) {
	p.toLeader(target, func(to *node) {
		to.receive(target, func(s *shard.Shard) { s.Offer(parts) })
	})
}

// Ask implements engine.Transport.
func (p port) Ask(source, target uint32) {
	p.toLeader(target, func(to *node) {
		to.eng.Shard(target).Asked(source)
		to.kick()
	})
}

// Answer implements engine.Transport.
func (p port) Answer(source, target uint32, applied uint64, again bool) {
	p.toLeader(source, func(to *node) {
		to.eng.Shard(source).Answered(target, applied, again)
		to.kick()
	})
}

// toLeader brings something to a shard's leader, now and then to another node.
func (p port) toLeader(id uint32, arrive func(to *node)) {
	w := p.n.w
	to := w.rng.IntN(len(w.nodes))
	if n := w.leader(id); n != nil && !(w.faulty && w.chance(0.05)) {
		to = n.index
	}
	w.net.carry(p, to, nil, arrive)
}

// split cuts some of the nodes off from the others, or single directions.
func (nw *network) split() {
	w := nw.w
	nw.heal()
	if w.chance(0.4) { // one direction of one pair, or of one node
		a, b := w.rng.IntN(len(w.nodes)), w.rng.IntN(len(w.nodes))
		if w.chance(0.5) {
			nw.blocked[[2]int{a, b}] = true
			return
		}
		for i := range w.nodes {
			nw.blocked[[2]int{a, i}] = true
		}
		return
	}
	side := make([]bool, len(w.nodes))
	side[w.rng.IntN(len(side))] = true
	if len(side) > 3 {
		side[w.rng.IntN(len(side))] = true
	}
	for i := range side {
		for j := range side {
			if side[i] != side[j] {
				nw.blocked[[2]int{i, j}] = true
			}
		}
	}
}

func (nw *network) heal() { clear(nw.blocked) }

// Missing implements shard.Sender. The upper half of a link's id is its node.
func (p port) Missing(id uint32, link, term, want uint64) {
	p.n.w.net.carry(p, int(link>>32)-1, nil, func(to *node) {
		if to.eng.Link() == link {
			to.receive(id, func(s *shard.Shard) { s.Missing(term, want) })
		}
	})
}
