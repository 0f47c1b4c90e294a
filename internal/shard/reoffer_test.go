package shard

import (
	"fmt"
	"testing"
)

// TestReofferedInOrder: leaders are cut off again and again in the midst of what every
// node submits, so that proposals and offers are dropped on the way. No node restarts,
// hence nothing may be missing: each link's numbers are applied once, in order and
// without a gap, and all are confirmed.
func TestReofferedInOrder(t *testing.T) {
	changes := 0
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			c := newTimed(t, seed+1, []int{0, 17, 31}, 1+int(seed)%7)
			owner := map[uint64]int{}
			put := func(i, n int) {
				for range n {
					c.publish(i, c.rng.IntN(5) == 0)
					owner[c.next] = i
				}
			}
			put(1, 2500) // before there is a leader: more than one message of offers
			for range 8 {
				c.until("a leader", func() bool { return len(c.leaders()) == 1 })
				changes += c.depose(c.leaders()[0], put)
			}
			c.drop = nil
			c.until("confirms", func() bool { return len(c.acks) == len(owner) })
			c.until("rest", func() bool { return c.level() })
			for _, r := range c.reps {
				checkLinks(t, r.m.list, owner)
			}
		})
	}
	if changes < 50 {
		t.Fatalf("%d changes of leader: little is proved", changes)
	}
}

// depose submits at all nodes while the leader's messages do not get through, in one
// direction or both, until another leads; it returns 1 when the old one had proposals
// on their way.
func (c *timed) depose(old int, put func(i, n int)) (dropped int) {
	for i := range c.reps {
		put(i, 1+c.rng.IntN(40))
	}
	for range c.rng.IntN(6) {
		c.step()
	}
	deaf := c.rng.IntN(2) == 0
	c.drop = func(from, to int) bool { return from == old || deaf && to == old }
	put(old, 1+c.rng.IntN(40))
	c.step()
	last := c.reps[old].core.log.last()
	c.until("another leader", func() bool {
		if c.ms%40 == 0 {
			put(c.rng.IntN(3), 1)
		}
		l := c.leaders()
		return len(l) == 1 && l[0] != old
	})
	if last > c.reps[old].core.applied {
		dropped = 1
	}
	c.drop = nil
	for range c.rng.IntN(400) {
		c.step()
	}
	return dropped
}

// level says whether all have applied the same.
func (c *timed) level() bool {
	for _, r := range c.reps {
		if r.core.applied != c.reps[0].core.log.last() {
			return false
		}
	}
	return true
}

func checkLinks(t *testing.T, list []uint64, owner map[uint64]int) {
	t.Helper()
	last, seen := map[int]uint64{}, map[uint64]bool{}
	for _, n := range list {
		i, ok := owner[n]
		if !ok || seen[n] || n <= last[i] {
			t.Fatalf("number %d of node %d after %d (repeated: %v)", n, i, last[i], seen[n])
		}
		seen[n], last[i] = true, n
	}
	if len(list) != len(owner) {
		t.Fatalf("%d of %d numbers", len(list), len(owner))
	}
}

// TestOffersGoOutOnce: what a follower submits is offered once while it is on its way,
// within a bound of bytes; what is lost is asked for by the leader, or offered again
// when nothing of it is applied for long.
func TestOffersGoOutOnce(t *testing.T) {
	c := newTimed(t, 1, []int{0, 17, 31}, 20)
	c.until("a leader", func() bool { return len(c.leaders()) == 1 })
	f := (c.leaders()[0] + 1) % 3
	offers, bytes, gaps := map[uint64]int{}, 0, 0
	lose := func(uint64) bool { return false }
	c.sniff = func() {
		kept := c.net[:0]
		for _, p := range c.net {
			lost := false
			for _, part := range p.parts {
				offers[part.Seq]++
				bytes += len(part.Sub)
				lost = lost || lose(part.Seq)
			}
			if p.gap != nil {
				gaps++
			}
			if !lost {
				kept = append(kept, p)
			}
		}
		c.net = kept
	}
	put := func(n, size int) {
		for range n {
			c.publishSized(f, size)
		}
	}
	done := func() bool { return c.reps[f].core.pending.len() == 0 }
	for range 40 { // a trickle, while earlier ones are on their way
		put(3, 100)
		c.step()
		c.step()
	}
	c.until("confirms", done)
	for seq, n := range offers {
		if n != 1 {
			t.Fatalf("number %d of the link was offered %d times", seq, n)
		}
	}
	bytes = 0
	put(200, 100<<10)
	for range 10 {
		c.step()
	}
	if bytes == 0 || bytes > forwardBytesMax {
		t.Fatalf("%d bytes offered at once", bytes)
	}
	c.until("confirms", done)
	clear(offers)
	first := c.reps[f].core.pending.head
	lose = func(seq uint64) bool { return seq == first+1 && offers[seq] == 1 }
	for range 5 {
		put(1, 100)
		c.step()
	}
	began := c.ms
	c.until("confirms", done)
	if offers[first+1] != 2 || gaps == 0 || c.ms-began > 200 {
		t.Fatalf("a lost offer went out %d times, %d gaps were reported, confirmed after %d ms", offers[first+1], gaps, c.ms-began)
	}
	first, gaps = c.reps[f].core.pending.head, 0
	lose = func(seq uint64) bool { return seq == first && offers[seq] == 1 }
	put(1, 100)
	c.until("confirms", done)
	if offers[first] != 2 || gaps != 0 {
		t.Fatalf("the last offer was lost and went out %d times, %d gaps were reported", offers[first], gaps)
	}
}
