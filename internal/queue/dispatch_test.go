package queue

import (
	"slices"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
)

// flatLocator: sources of any length, messages of one size.
type flatLocator uint64

func (f flatLocator) Locate(_ msg.LogID, _ uint8, _ msg.Offset, most uint64) (Source, uint64, uint64) {
	return Source{}, most, most * uint64(f)
}

// fixture is a ledger and dispatch whose operations commit at once.
type fixture struct {
	*Ledger
	d *Dispatch
}

func newFixture(logs int, size uint64) *fixture {
	f := &fixture{Ledger: NewLedger()}
	for i := 1; i <= logs; i++ {
		f.Ensure(msg.LogID(i), nil)
	}
	f.d = NewDispatch(f.Ledger, flatLocator(size))
	return f
}

func (f *fixture) publish(log msg.LogID, lane uint8, n int) {
	o := f.Append(log, lane, n, nil)
	f.d.Appended(log, lane, o.First, uint64(n))
}

func (f *fixture) settle(log msg.LogID, lane uint8, r msg.Range) {
	f.d.Settled(log, lane, r, f.Settle(log, lane, r, msg.Acked))
}

func (f *fixture) reserve() int {
	var asked []laneKey
	f.d.WantReserve(func(log msg.LogID, lane uint8, upto msg.Offset) {
		f.Reserve(log, lane, upto)
		asked = append(asked, laneKey{log, lane})
	})
	for _, k := range asked {
		f.d.Reserved(k.log, k.lane)
	}
	return len(asked)
}

// collect runs the dispatch to its end, with reservations, and returns the deliveries.
func (f *fixture) collect() (out []Delivery) {
	for {
		more := f.d.Run(1000, func(d *Delivery) { out = append(out, *d) })
		if f.reserve() == 0 && !more {
			return out
		}
	}
}

func (f *fixture) attach(t testing.TB, c *Consumer) *Consumer {
	t.Helper()
	if err := f.d.Attach(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRoundRobinOneByOne(t *testing.T) {
	f := newFixture(1, 100)
	a := f.attach(t, &Consumer{ID: 1, Log: 1})
	f.attach(t, &Consumer{ID: 2, Log: 1})
	f.collect()
	f.publish(1, 0, 10)
	out := f.collect()
	if len(out) != 10 {
		t.Fatalf("%d deliveries", len(out))
	}
	for i, d := range out {
		if d.Count != 1 || d.First != uint64(i) || (d.Consumer == a) != (i%2 == 0) {
			t.Errorf("delivery %d: %d of offset %d to %d", i, d.Count, d.First, d.Consumer.ID)
		}
	}
}

// A large backlog goes out in ranges, and still evenly.
func TestRoundRobinBacklog(t *testing.T) {
	f := newFixture(1, 100)
	for i := range 4 {
		f.attach(t, &Consumer{ID: uint64(i), Log: 1})
	}
	f.publish(1, 0, 100_000)
	got := map[uint64]uint32{}
	out := f.collect()
	for _, d := range out {
		got[d.Consumer.ID] += d.Count
	}
	for id, n := range got {
		if n < 24_750 || n > 25_250 {
			t.Errorf("consumer %d got %d", id, n)
		}
	}
	if len(out) > 100_000/30 {
		t.Errorf("%d deliveries", len(out))
	}
}

func TestSingleConsumerGetsRanges(t *testing.T) {
	f := newFixture(1, 10)
	f.attach(t, &Consumer{Log: 1})
	f.publish(1, 0, 640)
	if out := f.collect(); len(out) != 10 {
		t.Errorf("%d deliveries", len(out))
	}
}

// A log with a large backlog, or large messages, gets no more than its turn while others wait.
func TestLogsTakeTurns(t *testing.T) {
	f := newFixture(3, 10<<10)
	for log := msg.LogID(1); log <= 3; log++ {
		f.attach(t, &Consumer{Log: log})
	}
	f.collect()
	f.publish(1, 0, 500)
	f.publish(2, 0, 20)
	f.publish(3, 0, 1)
	bytes := map[msg.LogID]uint64{}
	last := uint64(0) // bytes of log 1 when log 2 was done
	for _, d := range f.collect() {
		bytes[d.Log] += d.Bytes
		if d.Log == 2 {
			last = bytes[1]
		}
		if d.Log == 3 && bytes[1] > TurnBytes+10<<10 {
			t.Errorf("log 3 waited for %d bytes of log 1", bytes[1])
		}
	}
	if last > 20*(10<<10)+2*TurnBytes || bytes[1] != 500*10<<10 {
		t.Errorf("log 1 had %d bytes when log 2 had its %d", last, bytes[2])
	}
}

func TestHighestLaneFirst(t *testing.T) {
	f := newFixture(1, 1)
	c := f.attach(t, &Consumer{Log: 1, Prefetch: 1})
	f.publish(1, 0, 2)
	f.publish(1, 7, 1)
	f.publish(1, 3, 1)
	var lanes []uint8
	for range 4 {
		for _, d := range f.collect() {
			lanes = append(lanes, d.Lane)
			f.d.Acked(c, 1, d.Lane, 1)
			f.settle(1, d.Lane, msg.Range{First: d.First, Count: 1})
		}
	}
	if !slices.Equal(lanes, []uint8{7, 3, 0, 0}) {
		t.Errorf("lanes %v", lanes)
	}
}

// Byte pools: a grant cuts the delivery down, a message larger than the room goes out
// when there is any, and overdraws.
func TestBytesPool(t *testing.T) {
	f := newFixture(1, 1000)
	p := &simPool{room: 3500}
	c := f.attach(t, &Consumer{Log: 1, Bytes: p})
	f.publish(1, 0, 10)
	counts := func() (n []uint32) {
		for _, d := range f.collect() {
			n = append(n, d.Count)
		}
		return n
	}
	if n := counts(); !slices.Equal(n, []uint32{3, 1}) || p.room != -500 {
		t.Fatalf("delivered %v, room %d", n, p.room)
	}
	p.room = 0
	f.d.Kick(c)
	if n := counts(); n != nil {
		t.Fatalf("delivered %v without room", n)
	}
	p.room = 1
	f.d.Kick(c)
	if n := counts(); !slices.Equal(n, []uint32{1}) || p.room != -999 {
		t.Fatalf("delivered %v, room %d", n, p.room)
	}
	p.room = 1 << 20
	f.d.Kick(c)
	if n := counts(); !slices.Equal(n, []uint32{5}) || p.room != 1<<20-5000 {
		t.Fatalf("delivered %v, room %d", n, p.room)
	}
}

// After a crash what was delivered is flagged, and hardly more.
func TestCrashFlags(t *testing.T) {
	f := newFixture(1, 100)
	f.attach(t, &Consumer{Log: 1, Prefetch: 700})
	f.publish(1, 0, 20_000)
	f.collect()
	d := NewDispatch(f.Ledger, flatLocator(100))
	f.d = d
	f.attach(t, &Consumer{Log: 1})
	flagged := 0
	for _, d := range f.collect() {
		if d.First < 700 && !d.Redelivered {
			t.Errorf("%d was delivered before", d.First)
		}
		if d.Redelivered {
			flagged += int(d.Count)
		}
	}
	if flagged > 700+MaxReserveWindow || flagged < 700 {
		t.Errorf("%d flagged", flagged)
	}
}

// After a clean stop exactly what was delivered is flagged.
func TestCleanStopFlags(t *testing.T) {
	f := newFixture(1, 100)
	f.attach(t, &Consumer{Log: 1, Prefetch: 700})
	f.publish(1, 0, 20_000)
	f.collect()
	f.d.ExactReserves(func(log msg.LogID, lane uint8, upto msg.Offset) { f.ReserveExact(log, lane, upto) })
	f.d.Start(false)
	f.attach(t, &Consumer{Log: 1})
	for _, d := range f.collect() {
		if d.Redelivered != (d.First < 700) {
			t.Errorf("%d redelivered: %v", d.First, d.Redelivered)
		}
	}
}

// A hot lane doesn't wait for its reservations, though they take two commits; when it
// cools down its window shrinks.
func TestReserveKeepsUp(t *testing.T) {
	for _, perCommit := range []uint32{100, 300, 600} {
		f := newFixture(1, 10)
		f.attach(t, &Consumer{Log: 1})
		f.publish(1, 0, 1_000_000)
		var pipeline [2][]msg.Offset // a reservation commits two rounds after it was asked for
		starved := 0
		for round := range 500 {
			got := uint32(0)
			for got < perCommit {
				n := uint32(0)
				f.d.Run(1, func(d *Delivery) { n = d.Count })
				if n == 0 {
					break
				}
				got += n
			}
			if got < perCommit && round > 20 {
				starved++
			}
			for _, upto := range pipeline[0] {
				f.Reserve(1, 0, upto)
				f.d.Reserved(1, 0)
			}
			pipeline[0], pipeline[1] = pipeline[1], pipeline[0][:0]
			f.d.WantReserve(func(_ msg.LogID, _ uint8, upto msg.Offset) { pipeline[1] = append(pipeline[1], upto) })
		}
		if starved > 0 {
			t.Errorf("%d per commit: %d rounds of 480 waited", perCommit, starved)
		}
		if w := f.d.lane(1, 0).window; perCommit == 100 && w != ReserveWindow || perCommit == 600 && w != MaxReserveWindow {
			t.Errorf("%d per commit: window %d", perCommit, w)
		}
	}
}

// An idle consumer has its reservation before the first message comes.
func TestReserveAheadOfAppends(t *testing.T) {
	f := newFixture(1, 10)
	f.attach(t, &Consumer{Log: 1})
	f.collect()
	f.publish(1, 0, 1)
	n := 0
	f.d.Run(10, func(*Delivery) { n++ })
	if n != 1 {
		t.Error("the first message waits for a reservation")
	}
}

// A late ack from before a change of leader settles what another consumer holds: when
// that one acknowledges as well, nothing stays counted as leaving.
func TestLateAckCounts(t *testing.T) {
	f := newFixture(1, 10)
	b := f.attach(t, &Consumer{Log: 1})
	f.publish(1, 0, 10)
	f.collect()
	f.settle(1, 0, msg.Range{Count: 4}) // the late ack
	f.d.Acked(b, 1, 0, 10)
	f.settle(1, 0, msg.Range{Count: 10})
	f.d.Detach(b)
	f.publish(1, 0, 3)
	if c := f.d.Counts(1); c != (Counts{Ready: 3}) {
		t.Errorf("%+v", c)
	}
}

// What belongs to a log that is gone changes nothing but the consumer's own credit.
func TestCallsForUnknownLogs(t *testing.T) {
	f := newFixture(1, 10)
	p := &simPool{room: 5}
	c := f.attach(t, &Consumer{Log: 1, Messages: p})
	f.publish(1, 0, 5)
	f.collect()
	f.Delete(1)
	f.d.Drop(1)
	rs := []msg.Range{{First: 0, Count: 2}}
	f.d.Acked(c, 1, 0, 3)
	f.d.Return(c, 1, 0, rs)
	f.d.Release(1, 0, rs)
	f.d.Reserved(1, 0)
	f.d.Settled(1, 0, msg.Range{First: 0, Count: 3}, 3)
	f.d.Appended(1, 0, 5, 1)
	f.d.Kick(c)
	f.d.Detach(c)
	if f.d.HoldAll(1) != nil || f.d.Drop(1) != nil || f.d.Counts(1) != (Counts{}) {
		t.Error("the log is there")
	}
	if _, s := f.d.Get(1, c); s != GetEmpty {
		t.Error("got something")
	}
	if p.room != 5 || c.InFlight() != 0 || len(f.collect()) > 0 {
		t.Errorf("room %d, in flight %d", p.room, c.InFlight())
	}
}

// A consumer of an earlier term can give back what it has, without effect on the counts
// of this one.
func TestConsumerOfEarlierTerm(t *testing.T) {
	f := newFixture(1, 10)
	p := &simPool{room: 5}
	c := f.attach(t, &Consumer{Log: 1, Messages: p})
	f.publish(1, 0, 5)
	f.collect()
	f.d.Start(false)
	f.d.Acked(c, 1, 0, 2)
	f.d.Return(c, 1, 0, []msg.Range{{First: 2, Count: 3}})
	f.d.Detach(c)
	if n := f.d.Counts(1); n != (Counts{Ready: 5}) || p.room != 5 {
		t.Errorf("%+v, room %d", n, p.room)
	}
	f.attach(t, c)
	out := f.collect()
	if len(out) != 1 || out[0].Count != 5 || !out[0].Redelivered {
		t.Errorf("%+v", out)
	}
}

// Held messages that are released are what they were: fresh ones are not flagged, those
// delivered before are, each in ranges of their own and in order.
func TestReleaseKeepsFlags(t *testing.T) {
	f := newFixture(1, 10)
	a := f.attach(t, &Consumer{Log: 1, Prefetch: 10})
	f.publish(1, 0, 30)
	f.collect()
	held := f.d.HoldAll(1) // 10 to 29, never delivered
	f.d.Return(a, 1, 0, []msg.Range{{First: 4, Count: 6}})
	f.d.Detach(a)
	b := f.attach(t, &Consumer{Log: 1})
	f.d.Release(1, 0, held[0].Ranges)
	want := []Delivery{{First: 4, Count: 6, Redelivered: true}, {First: 10, Count: 20}}
	for i, d := range f.collect() {
		if d.Consumer != b || d.First != want[i].First || d.Count != want[i].Count || d.Redelivered != want[i].Redelivered {
			t.Errorf("%+v", d)
		}
	}
	if c := f.d.Counts(1); c.Ready != 0 || c.Unacked != 30 {
		t.Errorf("%+v", c)
	}
}

// Whatever makes something deliverable wakes the log: here the consumer that can take it
// isn't the one that the call is about.
func TestWakeUps(t *testing.T) {
	f := newFixture(1, 10)
	a := f.attach(t, &Consumer{Log: 1})
	f.publish(1, 0, 10)
	f.collect()
	f.attach(t, &Consumer{Log: 1})
	f.d.Detach(a)
	f.collect()
	f.d.Return(a, 1, 0, []msg.Range{{First: 0, Count: 10}})
	if n := len(f.collect()); n == 0 {
		t.Error("what a detached consumer returned stays")
	}
	f.publish(1, 0, 5)
	held := f.d.HoldAll(1)
	if n := len(f.collect()); n != 0 {
		t.Error("held messages are delivered")
	}
	f.d.Release(1, 0, held[0].Ranges)
	if n := len(f.collect()); n == 0 {
		t.Error("released messages stay")
	}
}

// While a purge is not committed its messages count as fresh, so reservations can't pass
// them by more than the window; its commit lets the lane go on.
func TestReserveWaitsForPurge(t *testing.T) {
	f := newFixture(1, 10)
	f.attach(t, &Consumer{Log: 1, Prefetch: 1})
	f.publish(1, 0, 101)
	f.collect()
	held := f.d.HoldAll(1) // 1 to 100
	f.attach(t, &Consumer{Log: 1})
	f.publish(1, 0, 10_000)
	last := msg.Offset(0)
	for _, d := range f.collect() {
		last = d.First + uint64(d.Count) - 1
	}
	if want := uint64(1 + ReserveWindow - 1); last < want || last > 1+MaxReserveWindow {
		t.Errorf("delivered up to %d", last)
	}
	f.settle(1, 0, held[0].Ranges[0])
	for _, d := range f.collect() {
		last = d.First + uint64(d.Count) - 1
	}
	if last != 10_100 {
		t.Errorf("delivered up to %d", last)
	}
}
