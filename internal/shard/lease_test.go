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
	phase  []int                  // of the nodes' ticks, in ms
	delay  func(from, to int) int // ms, at least 1 and less than flightMax
	ms     int
	flying [flightMax][]packet     // a ring by ms of arrival
	drop   func(from, to int) bool // nil: nothing is lost
	sniff  func()                  // sees what was sent in a step; nil: nobody does
}

const flightMax = 1000

func newTimed(t *testing.T, seed uint64, phase []int, delay int) *timed {
	return &timed{cluster: newCluster(t, len(phase), seed), phase: phase, delay: func(int, int) int { return delay }}
}

func (c *timed) step() {
	c.ms++
	c.now = c.now.Add(time.Millisecond)
	for _, r := range c.reps {
		r.log.complete(10)
	}
	arrived := c.flying[c.ms%flightMax]
	c.flying[c.ms%flightMax] = nil
	for _, p := range arrived {
		if c.drop != nil && c.drop(p.from, p.to) {
			continue
		}
		c.net = append([]packet{p}, c.net...)
		c.deliver(0, false)
	}
	for i, r := range c.reps {
		if c.ms%int(TickEvery/time.Millisecond) == c.phase[i] && !r.down {
			r.core.Tick()
		}
	}
	c.turn()
	if c.sniff != nil {
		c.sniff()
	}
	for _, p := range c.net {
		at := (c.ms + c.delay(p.from, p.to)) % flightMax
		c.flying[at] = append(c.flying[at], p)
	}
	c.net = nil
}

// phases spreads the ticks of n nodes.
func phases(n, seed int) (p []int) {
	for i := range n {
		p = append(p, seed*[]int{7, 13, 29, 31, 43}[i]%50)
	}
	return p
}

func (c *timed) leaders() (ids []int) {
	for i, r := range c.reps {
		if r.core.Leading() && !r.down {
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
				c := newTimed(t, seed+1, phases(3+s%2*2, s), 1+s%12)
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

// TestLeaseCountsFromSending: the answers to the leader are on their way for as long as
// a lease, those to the others are not. When the others hear it no more, it must not
// lead on for the time that an answer takes.
func TestLeaseCountsFromSending(t *testing.T) {
	for seed := range uint64(24) {
		n := 3 + int(seed)%2*2
		t.Run(fmt.Sprint("seed=", seed, " voters=", n), func(t *testing.T) {
			c := newTimed(t, seed+1, phases(n, int(seed)), 1+int(seed)%5)
			c.until("a first leader", func() bool { return len(c.leaders()) == 1 })
			old, quick := c.leaders()[0], c.delay
			c.delay = func(from, to int) int {
				if to == old {
					return 150 + 10*int(seed) // both ways together less than a lease
				}
				return quick(from, to)
			}
			for range 2000 {
				c.step()
			}
			c.until("the same leader", func() bool { return len(c.leaders()) == 1 && c.leaders()[0] == old })
			c.drop = func(from, _ int) bool { return from == old }
			c.until("the next leader", func() bool { return len(c.leaders()) == 1 && c.leaders()[0] != old })
		})
	}
}

// TestRestartedVoterKeepsItsWord: a voter that has promised the leader to elect nobody
// starts again, and another one, which does not hear the leader, asks it for its vote.
func TestRestartedVoterKeepsItsWord(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			c := newTimed(t, seed+1, phases(3, int(seed)), 1+int(seed)%5)
			c.until("a first leader", func() bool { return len(c.leaders()) == 1 })
			old := c.leaders()[0]
			faithful, rival := (old+1)%3, (old+2)%3
			c.drop = func(from, to int) bool { return from == old && to == rival || from == rival && to == old }
			for range 1100 + 37*seed { // the rival asks, and is told that there is a leader
				c.step()
			}
			r := c.reps[faithful]
			r.log.queue, r.posts = nil, nil
			c.boot(faithful)
			c.drop = func(from, to int) bool { return from == old || to == old }
			c.until("the next leader", func() bool { return len(c.leaders()) == 1 && c.leaders()[0] != old })
		})
	}
}

// TestTermBarrier: a new leader has what its predecessor confirmed, but does not know
// that it is committed. Until the first entry of its own term is applied it must
// neither count as leader nor drive its machine.
func TestTermBarrier(t *testing.T) {
	c := newTimed(t, 1, []int{0, 17, 31}, 2)
	driven := make([]int, len(c.reps))
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
