package shard

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
)

// leaveBehind lets the others compact what a follower needs, and returns the follower;
// it is cut off.
func (c *diskCluster) leaveBehind() *diskNode {
	c.t.Helper()
	c.work(func() bool { return c.leader() != nil })
	c.write(3)
	c.cutOff = int(c.leader().id) % len(c.nodes)
	f := c.nodes[c.cutOff]
	c.work(func() bool { l := c.leader(); return l != nil && l != f })
	for k := 0; c.leader().core.log.first <= f.core.log.last()+1; k++ {
		if k == 400 {
			c.t.Fatalf("nothing compacted: %s", c.describe())
		}
		c.write(1)
	}
	return f
}

// keepBooting restarts a node whenever its power goes, until something is so.
func (c *diskCluster) keepBooting(f *diskNode, until func() bool) {
	c.t.Helper()
	c.work(func() bool {
		if c.crashed(f) {
			c.boot(f)
		}
		return until()
	})
}

// TestCrashWhileCatchingUp: the power of a follower goes before every operation in turn
// that changes its disk while it fetches a snapshot, installs it and goes on. Each time
// it has the old state or the new one, and in the end all.
func TestCrashWhileCatchingUp(t *testing.T) {
	ops := 0
	for whole := false; !whole; ops++ {
		c := newDiskCluster(t, 3, 2, false)
		f := c.leaveBehind()
		c.cutOff = -1
		f.power.arm(ops)
		cuts := c.cuts
		c.keepBooting(f, func() bool {
			l := c.leader()
			if l == nil || c.crashed(f) {
				return false
			}
			all := l.m.list
			if n := min(len(all), len(f.m.list)); !slices.Equal(all[:n], f.m.list[:n]) {
				t.Fatalf("%d operations: a state that never was: %v", ops, f.m.list)
			}
			return f.core.applied == l.core.applied && c.made > 0
		})
		whole = c.cuts == cuts
		c.settle()
		c.check()
		if ops > 500 || whole && ops < 20 {
			t.Fatalf("%d operations", ops)
		}
	}
	t.Logf("%d operations", ops)
}

// TestSnapshotsShareFiles: a follower that comes by a second snapshot fetches only what
// it lacks, and pins are given back when everybody has caught up.
func TestSnapshotsShareFiles(t *testing.T) {
	c := newDiskCluster(t, 3, 2, false)
	bytes := func(n *diskNode) (sum int64) {
		for _, m := range n.files.store.Segments(7) {
			sum += m.Bytes
		}
		return sum
	}
	var copied []int
	var whole int64
	for range 2 {
		f := c.leaveBehind()
		c.copied = 0
		c.cutOff = -1
		c.work(func() bool { return f.core.applied == c.leader().core.applied })
		copied = append(copied, c.copied)
		whole = bytes(c.leader())
	}
	if c.installed != 2 || copied[0] == 0 || int64(copied[1]) > whole*2/3 {
		t.Fatalf("%d installed, copied %v bytes, the last time of %d in segments", c.installed, copied, whole)
	}
	c.work(func() bool {
		for _, n := range c.nodes {
			if len(n.files.pins) > 0 {
				return false
			}
		}
		return true
	})
}

// TestLeaderGoesDuringTransfer: a follower is half way through when its leader goes; the
// pins end with that, and it comes by the next leader's files or log.
func TestLeaderGoesDuringTransfer(t *testing.T) {
	c := newDiskCluster(t, 3, 2, false)
	f := c.leaveBehind()
	old := c.leader()
	c.cutOff = -1
	c.faults = true // a few pieces at a time
	c.work(func() bool { return f.core.CatchingUp() || f.core.applied == old.core.applied })
	c.faults = false
	c.cutOff = int(old.id) - 1
	c.work(func() bool {
		l := c.leader()
		return l != nil && l != old && f.core.applied == l.core.applied && len(old.files.pins) == 0
	})
	c.settle()
	c.check()
}

// TestMembership: a node that begins with nothing learns by a snapshot, votes, and the
// group goes on without the one it replaces; all of that survives a restart of all.
func TestMembership(t *testing.T) {
	c := newDiskCluster(t, 3, 4, false)
	c.work(func() bool { return c.leader() != nil })
	c.write(20)
	l := c.leader()
	other := c.nodes[int(l.id)%3]
	if err := other.core.ProposeConf(ConfChange{Learn: []uint64{4}}); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("a follower's proposal: %v", err)
	}
	if err := l.core.ProposeConf(ConfChange{Vote: []uint64{4}}); !errors.Is(err, ErrBehind) {
		t.Fatalf("a vote for nobody: %v", err)
	}
	if err := l.core.ProposeConf(ConfChange{Remove: []uint64{1, 2}}); !errors.Is(err, ErrConf) {
		t.Fatalf("two at a time: %v", err)
	}
	if err := l.core.ProposeConf(ConfChange{Remove: []uint64{1, 2, 3}}); !errors.Is(err, ErrConf) {
		t.Fatalf("nobody left: %v", err)
	}
	must := func(ch ConfChange, done func() bool) {
		t.Helper()
		if err := c.leader().core.ProposeConf(ch); err != nil {
			t.Fatal(err)
		}
		if err := c.leader().core.ProposeConf(ch); !errors.Is(err, ErrConfPending) {
			t.Fatalf("a second change at once: %v", err)
		}
		c.work(func() bool { return c.leader() != nil && done() })
	}
	conf := func(v, l []uint64) func() bool {
		return func() bool {
			for _, id := range append(slices.Clone(v), l...) {
				voters, learners := c.nodes[id-1].core.Conf()
				if !slices.Equal(voters, v) || !slices.Equal(learners, l) {
					return false
				}
			}
			return true
		}
	}
	must(ConfChange{Learn: []uint64{4}}, conf([]uint64{1, 2, 3}, []uint64{4}))
	c.work(func() bool { return c.leader() != nil && c.leader().core.CaughtUp(4) })
	if c.installed == 0 {
		t.Fatal("the learner came without a snapshot")
	}
	must(ConfChange{Vote: []uint64{4}}, conf([]uint64{1, 2, 3, 4}, nil))
	gone := c.nodes[c.leader().id%4]
	rest := slices.DeleteFunc([]uint64{1, 2, 3, 4}, func(id uint64) bool { return id == gone.id })
	must(ConfChange{Remove: []uint64{gone.id}}, conf(rest, nil))
	c.write(3)
	for _, n := range c.nodes[:4] {
		n.power.cut()
		c.crashed(n)
		c.boot(n)
	}
	c.work(conf(rest, nil))
	c.work(func() bool { return c.leader() != nil && c.leader() != gone })
	term, _ := c.leader().core.Term()
	for k := range 2000 { // the removed node asks for votes, in vain
		c.round(k)
	}
	if now, _ := c.leader().core.Term(); now != term || gone.core.Leading() {
		t.Fatalf("a removed node disturbs: term %d, was %d", now, term)
	}
	c.write(3)
	c.settle()
	c.check()
}

// TestOneVoterGrows: a single voter takes others in. From then on what only its own disk
// has counts for nothing, also in its recovery.
func TestOneVoterGrows(t *testing.T) {
	c := newDiskCluster(t, 1, 4, false)
	c.work(func() bool { return c.leader() != nil })
	c.write(20)
	one := c.nodes[0]
	for id := uint64(2); id <= 3; id++ {
		if err := one.core.ProposeConf(ConfChange{Learn: []uint64{id}}); err != nil {
			t.Fatal(err)
		}
		c.work(func() bool { return one.core.CaughtUp(id) })
		c.work(func() bool { return one.core.ProposeConf(ConfChange{Vote: []uint64{id}}) == nil })
		c.work(func() bool { v, _ := one.core.Conf(); return len(v) == int(id) && one.core.Leading() })
	}
	c.write(5)
	c.cutOff = 0 // alone, it orders what nobody else gets
	lost := c.next + 1
	c.publish(one)
	for k := range 20 {
		c.round(k)
	}
	one.power.cut()
	c.crashed(one)
	c.boot(one)
	if slices.Contains(one.m.list, lost) {
		t.Fatal("applied at the start what two others never had")
	}
	c.settle()
	c.check()
}

// TestBehindButNear: what a follower within the bound lacks is kept, also when it is not
// heard of, and one entry more in the WAL.
func TestBehindButNear(t *testing.T) {
	c := newDiskCluster(t, 3, 2, false)
	for _, n := range c.nodes {
		n.core.cfg.LagEntries = 1 << 20
	}
	c.work(func() bool { return c.leader() != nil })
	c.cutOff = int(c.leader().id) % 3
	f := c.nodes[c.cutOff]
	for range 300 {
		c.write(1)
	}
	for _, n := range c.nodes {
		if n == f {
			continue
		}
		if n.saved.Index == 0 || n.core.log.first > f.core.log.last()+1 {
			t.Fatalf("node %d: checkpoint %d, log from %d, the follower has %d", n.id, n.saved.Index, n.core.log.first, f.core.log.last())
		}
		if free := n.core.Compact(n.saved.Index); free >= n.core.log.first-1 && free > 0 {
			t.Fatalf("node %d: the WAL may forget up to %d, the log begins at %d", n.id, free, n.core.log.first)
		}
	}
	c.cutOff = -1
	c.work(func() bool { return f.core.applied == c.leader().core.applied })
	if c.made > 0 {
		t.Fatal("it came by a snapshot")
	}
	c.settle()
	c.check()
}

// TestConfStateBytes: the configuration beside a checkpoint reads as it was written, and
// what older versions wrote is read.
func TestConfStateBytes(t *testing.T) {
	for _, x := range []CheckpointExtra{{Term: 7}, {Term: 1 << 60, Installed: true}, {Term: 3, Conf: []byte{1, 2}}, {Installed: true, Conf: []byte{9}}} {
		got, err := ParseCheckpointExtra(x.Encode())
		if err != nil || fmt.Sprint(got) != fmt.Sprint(x) {
			t.Fatalf("%v became %v, %v", x, got, err)
		}
	}
	if b := (CheckpointExtra{Term: 7}).Encode(); len(b) != 8 {
		t.Fatalf("a single voter's takes %d bytes", len(b))
	}
	if _, err := ParseCheckpointExtra(make([]byte, 7)); err == nil {
		t.Fatal("7 bytes were read")
	}
	conf := &pb.ConfState{Voters: []uint64{1}}
	if _, err := changeConf(conf, ConfChange{Remove: []uint64{1}}.encode(), 5); !errors.Is(err, ErrConf) {
		t.Fatal(err)
	}
}
