package shard

import (
	"encoding/binary"
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
)

// A leader may act as one only while its lease holds: while it is certain that no other
// node can have been elected. A voter that takes a heartbeat promises to elect nobody
// for an election timeout from then on, and it took it after it was sent. So each
// heartbeat carries when it was sent, the answer brings that back, and the lease counts
// from there, however late the answer is. A voter that starts again has forgotten what
// it promised: it votes for nobody for an election timeout, see mayVote.

// leaseShare is the share of the election timeout for which a quorum's word is good.
const leaseShare = 0.8

// TickEvery is the real time between two calls of Tick.
const TickEvery = 50 * time.Millisecond

// Leading reports whether this node may act as leader now: its term has begun and its
// lease holds.
func (c *Core) Leading() bool { return c.leading && c.leaseHolds() }

// leaseHolds looks for a majority of each configuration, of which there are two while
// one is exchanged for another.
func (c *Core) leaseHolds() bool {
	conf := c.log.conf
	return c.supported(conf.Voters) && c.supported(conf.VotersOutgoing)
}

// supported says whether a majority of the voters has promised to elect nobody yet.
func (c *Core) supported(voters []uint64) bool {
	need := len(voters)/2 + 1
	if len(voters) == 0 || need == 1 && slices.Contains(voters, c.cfg.Node) {
		return true
	}
	limit := time.Duration(leaseShare * float64(c.cfg.ElectionTicks) * float64(TickEvery))
	now := c.cfg.Now()
	for _, v := range voters {
		if v == c.cfg.Node {
			need--
		} else if sent, ok := c.heard[v]; ok && now.Sub(sent) < limit {
			need--
		}
	}
	return need <= 0
}

// stamp writes into a heartbeat when it is sent, as nanoseconds since the start of this
// node: whoever answers in the same term gives it back.
func (c *Core) stamp(m *pb.Message) {
	m.Context = binary.LittleEndian.AppendUint64(nil, uint64(c.cfg.Now().Sub(c.epoch)))
}

// support notes the word of a voter that follows; a call for votes is none. The context
// is not raft's, which must not see it.
func (c *Core) support(m *pb.Message) {
	b := m.GetContext()
	m.Context = nil
	if len(b) != 8 || m.GetTerm() != c.term || c.lead != c.cfg.Node {
		return
	}
	sent := c.epoch.Add(time.Duration(binary.LittleEndian.Uint64(b)))
	if sent.After(c.heard[m.GetFrom()]) && !sent.After(c.cfg.Now()) {
		c.heard[m.GetFrom()] = sent
	}
}

// mayVote says whether the node may vote, which it may not while a leader could rely on
// what was promised before the start.
func (c *Core) mayVote() bool { return c.sworn <= 0 }
