package queue

import (
	"fmt"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
)

// loop is the steady state of a shard: what is delivered is acknowledged and settled
// at once, reservations are committed at once.
type loop struct {
	*fixture
	ops   []Delivery
	out   func(*Delivery)
	res   func(log msg.LogID, lane uint8, upto msg.Offset)
	one   [1]msg.Range
	asked []laneKey
}

func newLoop(logs int) *loop {
	x := &loop{fixture: newFixture(logs, 100)}
	x.out = func(d *Delivery) { x.ops = append(x.ops, *d) }
	x.res = func(log msg.LogID, lane uint8, upto msg.Offset) {
		x.Reserve(log, lane, upto)
		x.asked = append(x.asked, laneKey{log, lane})
	}
	return x
}

func (x *loop) drain() (messages int) {
	for {
		more := x.d.Run(256, x.out)
		for i := range x.ops {
			o := &x.ops[i]
			messages += int(o.Count)
			x.d.Acked(o.Consumer, o.Log, o.Lane, uint64(o.Count))
			x.settle(o.Log, o.Lane, msg.Range{First: o.First, Count: uint64(o.Count)})
		}
		done := len(x.ops) == 0
		x.ops = x.ops[:0]
		x.d.WantReserve(x.res)
		for _, k := range x.asked {
			x.d.Reserved(k.log, k.lane)
		}
		done = done && len(x.asked) == 0 && !more
		x.asked = x.asked[:0]
		if done {
			return messages
		}
	}
}

// Per operation: 100 messages appended, delivered, acknowledged and settled.
func BenchmarkAppendDeliverAck(b *testing.B) {
	for _, consumers := range []int{1, 4} {
		b.Run(fmt.Sprintf("consumers=%d", consumers), func(b *testing.B) {
			x := newLoop(1)
			for range consumers {
				x.attach(b, &Consumer{Log: 1, Prefetch: 1000})
			}
			x.drain()
			b.ReportAllocs()
			for b.Loop() {
				x.publish(1, 0, 100)
				if x.drain() != 100 {
					b.Fatal("lost some")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/msg")
		})
	}
}

// Per operation: one message through a queue, among so many that are all active.
func BenchmarkActiveQueues(b *testing.B) {
	for _, logs := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("queues=%d", logs), func(b *testing.B) {
			x := newLoop(logs)
			for i := 1; i <= logs; i++ {
				x.attach(b, &Consumer{Log: msg.LogID(i), Prefetch: 100})
			}
			x.drain()
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; {
				for i := 0; i < logs && n < b.N; i++ {
					x.publish(msg.LogID(i+1), 0, 1)
					n++
				}
				x.drain()
			}
		})
	}
}

// Per operation: 1 M messages in flight come back in pieces of 10, out of order, and
// are delivered again.
func BenchmarkReturn1M(b *testing.B) {
	const total, piece = 1_000_000, 10
	x := newLoop(1)
	c := x.attach(b, &Consumer{Log: 1})
	x.publish(1, 0, total)
	hold := func() (deliveries int) {
		for {
			more := x.d.Run(1000, func(*Delivery) { deliveries++ })
			x.d.WantReserve(x.res)
			done := len(x.asked) == 0 && !more
			for _, k := range x.asked {
				x.d.Reserved(k.log, k.lane)
			}
			x.asked = x.asked[:0]
			if done {
				return deliveries
			}
		}
	}
	hold()
	b.ReportAllocs()
	for b.Loop() {
		for i := range total / piece {
			at := uint64(i*77_773%(total/piece)) * piece
			x.one[0] = msg.Range{First: at, Count: piece}
			x.d.Return(c, 1, 0, x.one[:])
		}
		if n := hold(); n < total/TurnMessages || x.d.Counts(1).Unacked != total {
			b.Fatal("not delivered again", n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/total, "ns/msg")
}

// Per operation: a purge of 10 M ready messages, from the hold to the settlement.
func BenchmarkPurgeHold10M(b *testing.B) {
	x := newLoop(1)
	x.attach(b, &Consumer{Log: 1, Prefetch: 10})
	b.ReportAllocs()
	for b.Loop() {
		x.publish(1, 0, 10_000_000)
		for _, h := range x.d.HoldAll(1) {
			for _, r := range h.Ranges {
				x.settle(1, h.Lane, r)
			}
		}
		if n := x.d.Counts(1).Ready; n != 0 {
			b.Fatal(n)
		}
	}
}

// The delivery path allocates nothing once it is warm.
func TestDispatchSteadyStateAllocs(t *testing.T) {
	x := newLoop(3)
	for i := range 6 {
		x.attach(t, &Consumer{Log: msg.LogID(i%3 + 1), Prefetch: 10, Bytes: &simPool{room: 1 << 40}})
	}
	step := func() {
		for log := msg.LogID(1); log <= 3; log++ {
			x.publish(log, 0, 100)
		}
		if n := x.drain(); n != 300 {
			t.Fatal(n)
		}
	}
	step()
	if avg := testing.AllocsPerRun(500, step); avg != 0 {
		t.Errorf("%v allocations", avg)
	}
}
