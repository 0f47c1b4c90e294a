package shard

import (
	"slices"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/sluicemq/sluice/internal/wal"
)

// flip cuts a node's power and damages a bit of a file of its log that was finished,
// unless another node is suspect already: then too few might know what was confirmed.
func (c *diskCluster) flip(n *diskNode) {
	if n.down || len(c.voters) < 3 || c.spares > 0 || slices.ContainsFunc(c.nodes, func(o *diskNode) bool { return o.flipped && o != n }) {
		return
	}
	sealed := n.gate.log.Sealed()
	n.power.cut()
	if !c.crashed(n) || len(sealed) == 0 {
		return
	}
	f := sealed[c.rng.IntN(len(sealed))]
	file, err := n.disk.OpenReadWrite("wal/" + wal.FileName(f.Seq))
	if err != nil {
		return // recycled meanwhile
	}
	at := 4096 + c.rng.Int64N(f.Bytes-4096)
	b := make([]byte, 1)
	if _, err := file.ReadAt(b, at); err != nil {
		c.t.Fatal(err)
	}
	b[0] ^= 1 << c.rng.IntN(8)
	if _, err := file.WriteAt(b, at); err != nil {
		c.t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		c.t.Fatal(err)
	}
	c.flips++
	n.flipped = true
}

// TestSuspectDoesNotVote: a voter that lost what it had acknowledged gives no vote, and
// asks for none, until it has applied something of a term that began after its start.
// Its leader, which counts on what is lost, ends its term.
func TestSuspectDoesNotVote(t *testing.T) {
	c := newDiskCluster(t, 3, 1, false)
	c.work(func() bool { return c.leader() != nil })
	c.write(20)
	old := c.leader()
	term, _ := old.core.Term()
	n := c.nodes[old.id%3]
	sound := n.core.log.last()
	c.work(func() bool { return n.core.log.last() == old.core.log.last() && n.core.durable == n.core.log.last() })
	file := func() bool { return len(n.gate.log.Sealed()) > 0 && n.gate.log.Sealed()[0].Seq == 1 }
	for !file() {
		c.write(1)
	}
	c.damageAll(n)
	if !n.core.Suspect() || n.core.log.last() >= sound && n.saved.Index < sound {
		t.Fatalf("suspect %v with entries up to %d", n.core.Suspect(), n.core.log.last())
	}
	vote := &pb.Message{
		Type: pb.MsgVote.Enum(), From: new(old.id), To: new(n.id), Term: new(term + 5),
		Index: new(uint64(1000)), LogTerm: new(term + 4), Context: []byte("CampaignTransfer"),
	}
	n.core.Receive(vote, nil)
	if got := n.core.log.hs.GetVote(); n.core.term >= term+5 || got == old.id && n.core.term > term {
		t.Fatalf("it votes for %d in term %d", got, n.core.term)
	}
	c.work(func() bool { return !n.core.Suspect() && c.leader() != nil })
	if now, _ := c.leader().core.Term(); now <= term {
		t.Fatalf("trusted in term %d, the one before was %d", now, term)
	}
	c.write(3)
	c.settle()
	c.check()
}

// damageAll flips a bit in each record of the oldest finished file of a node's log.
func (c *diskCluster) damageAll(n *diskNode) {
	c.t.Helper()
	f := n.gate.log.Sealed()[0]
	n.power.cut()
	c.crashed(n)
	file, err := n.disk.OpenReadWrite("wal/" + wal.FileName(f.Seq))
	if err != nil {
		c.t.Fatal(err)
	}
	for at := int64(4096 + 200); at < f.Bytes; at += 512 {
		b := make([]byte, 1)
		if _, err := file.ReadAt(b, at); err != nil {
			c.t.Fatal(err)
		}
		b[0] ^= 4
		if _, err := file.WriteAt(b, at); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := file.Sync(); err != nil {
		c.t.Fatal(err)
	}
	n.flipped = true
	c.boot(n)
}
