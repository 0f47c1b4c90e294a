package shard

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
)

// timed runs a cluster in steps of 1 ms: every node ticks in its own phase, every
// message takes some time.
type timed struct {
	*cluster
	phase  [3]int
	delay  int // ms
	ms     int
	flying [][]packet              // by ms until they arrive
	drop   func(from, to int) bool // nil: nothing is lost
}

func newTimed(t *testing.T, seed uint64, phase [3]int, delay int) *timed {
	return &timed{cluster: newCluster(t, 3, seed), phase: phase, delay: delay, flying: make([][]packet, delay)}
}

func (c *timed) step() {
	c.ms++
	c.now = c.now.Add(time.Millisecond)
	for _, r := range c.reps {
		r.log.complete(10)
	}
	arrived := c.flying[0]
	c.flying = append(c.flying[1:], nil)
	for _, p := range arrived {
		if c.drop != nil && c.drop(p.from, p.to) {
			continue
		}
		c.net = append([]packet{p}, c.net...)
		c.deliver(0, false)
	}
	for i, r := range c.reps {
		if c.ms%int(TickEvery/time.Millisecond) == c.phase[i] {
			r.core.Tick()
		}
	}
	c.turn()
	c.flying[c.delay-1] = append(c.flying[c.delay-1], c.net...)
	c.net = nil
}

func (c *timed) leaders() (ids []int) {
	for i, r := range c.reps {
		if r.core.Leading() {
			ids = append(ids, i)
		}
	}
	return ids
}

func (c *timed) until(what string, cond func() bool) {
	c.t.Helper()
	for range 10_000 {
		if cond() {
			return
		}
		c.step()
		if l := c.leaders(); len(l) > 1 {
			c.t.Fatalf("after %d ms %v lead", c.ms, l)
		}
	}
	c.t.Fatalf("in vain: %s", what)
}

// TestLeaseEndsBeforeTheNextLeader: a leader that the others do not hear stops leading
// before another begins, whatever the phases of the clocks, also when it still hears
// the others, whose calls for votes are no sign of support.
func TestLeaseEndsBeforeTheNextLeader(t *testing.T) {
	for seed := range uint64(24) {
		for _, deaf := range []bool{false, true} {
			t.Run(fmt.Sprint("seed=", seed, " hears=", !deaf), func(t *testing.T) {
				s := int(seed)
				c := newTimed(t, seed+1, [3]int{s * 7 % 50, s * 13 % 50, s * 29 % 50}, 1+s%12)
				c.until("a first leader", func() bool { return len(c.leaders()) == 1 })
				for range 300 + 11*s {
					c.step()
				}
				c.until("a leader", func() bool { return len(c.leaders()) == 1 })
				old := c.leaders()[0]
				c.drop = func(from, to int) bool { return from == old || deaf && to == old }
				c.until("the lease's end", func() bool { return len(c.leaders()) == 0 })
				c.until("the next leader", func() bool {
					if c.reps[old].core.Leading() {
						t.Fatal("leads again without anybody's support")
					}
					return len(c.leaders()) == 1
				})
			})
		}
	}
}

// TestTermBarrier: a new leader has what its predecessor confirmed, but does not know
// that it is committed. Until the first entry of its own term is applied it must
// neither count as leader nor drive its machine.
func TestTermBarrier(t *testing.T) {
	c := newTimed(t, 1, [3]int{0, 17, 31}, 2)
	driven := make([]int, 3)
	for i, r := range c.reps {
		r.m.drive = func(*msg.Builder) {
			driven[i]++
			for n := range c.acks {
				if !contains(r.m.list, n) {
					t.Fatalf("node %d drives without confirmed number %d", r.id, n)
				}
			}
		}
	}
	c.until("a leader", func() bool { return len(c.leaders()) == 1 })
	old := c.leaders()[0]
	for range 20 {
		c.publish(old, false)
	}
	c.until("confirms", func() bool { return len(c.acks) == 20 })
	// Confirmed, and the others were not told the commit index yet.
	for i, r := range c.reps {
		if i != old && len(r.m.list) == 20 {
			t.Fatal("the others know already that all is committed: nothing is tested")
		}
	}
	c.drop = func(from, to int) bool { return from == old || to == old }
	next := -1
	hold := &fakeLog{} // keeps the new leader's first entry off its disk
	c.until("an election", func() bool {
		for i, r := range c.reps {
			if i != old && r.core.lead == r.id {
				next = i
			}
		}
		return next >= 0
	})
	r := c.reps[next]
	before := driven[next]
	hold.queue, r.log.queue = r.log.queue, nil
	for range 100 {
		c.step()
		if r.core.Leading() || r.m.leads || driven[next] != before {
			t.Fatal("leads before the first entry of its term is on its disk")
		}
		hold.queue, r.log.queue = append(hold.queue, r.log.queue...), nil
	}
	r.log.queue = hold.queue
	c.until("leading", func() bool { return r.core.Leading() })
	if len(r.m.list) != 20 || driven[next] == before {
		t.Fatalf("leads with %d numbers, driven %d times", len(r.m.list), driven[next]-before)
	}
}

func contains(list []uint64, n uint64) bool {
	for _, x := range list {
		if x == n {
			return true
		}
	}
	return false
}
