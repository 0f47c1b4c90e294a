package shard

import (
	"fmt"
	"testing"
)

// TestRestartKeepsWhatAFollowerNeeds: both voters that have everything restart from
// checkpoints beyond what the third one has. The entries are still in their logs, so
// the third gets them, also if files were recycled since the last one was begun and no
// header tells the term before the first entry.
func TestRestartKeepsWhatAFollowerNeeds(t *testing.T) {
	for _, recycled := range []bool{false, true} {
		t.Run(fmt.Sprint("recycled=", recycled), func(t *testing.T) {
			c := newDiskCluster(t, 3, 1, false)
			c.work(func() bool { return c.leader() != nil })
			for i := 0; recycled && (c.nodes[0].oldest() < 2 || c.nodes[1].oldest() < 2); i++ {
				if i == 400 {
					t.Fatalf("nothing recycled: %s", c.describe())
				}
				c.write(1)
			}
			c.cutOff = 2
			c.work(func() bool { l := c.leader(); return l != nil && l.id != 3 })
			behind := c.nodes[2].core.applied
			c.write(5)
			for _, n := range c.nodes[:2] {
				n.core.RequestCheckpoint()
				c.work(func() bool { return n.saved.Index > behind+2 })
				n.power.cut()
				c.crashed(n)
			}
			c.boot(c.nodes[0])
			c.boot(c.nodes[1])
			c.settle()
			c.check()
		})
	}
}

// oldest returns the sequence of the oldest file in the log.
func (n *diskNode) oldest() uint64 {
	if s := n.gate.log.Sealed(); len(s) > 0 {
		return s[0].Seq
	}
	return 0
}

// leader returns the node that may act as leader among those that are connected.
func (c *diskCluster) leader() *diskNode {
	for i, n := range c.nodes {
		if i != c.cutOff && !n.down && n.core.Leading() {
			return n
		}
	}
	return nil
}

// work lets the cluster go on without faults until something is so.
func (c *diskCluster) work(until func() bool) {
	c.t.Helper()
	for k := 0; !until(); k++ {
		if k == 5000 {
			c.t.Fatalf("waited in vain: %s", c.describe())
		}
		c.round(k)
	}
}

// write puts numbers through the leader, one batch after the other.
func (c *diskCluster) write(n int) {
	c.t.Helper()
	for range n {
		c.publish(c.leader())
		want := c.next
		c.work(func() bool { return c.acks[want] })
	}
}
