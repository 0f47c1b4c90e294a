package engine

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/vfs"
)

// flaky is a transport that loses, doubles and cuts what it carries.
type flaky struct {
	Transport
	mu   sync.Mutex
	rng  *rand.Rand
	lost int
	calm atomic.Bool
}

func (f *flaky) draw(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calm.Load() {
		return n
	}
	k := f.rng.IntN(n)
	if k == 0 {
		f.lost++
	}
	return k
}

func (f *flaky) Offer(target uint32, parts []msg.Part) {
	switch f.draw(4) {
	case 0:
	case 1:
		f.Transport.Offer(target, slices.Clone(parts))
		f.Transport.Offer(target, parts)
	case 2:
		f.Transport.Offer(target, parts[len(parts)/2:])
	default:
		f.Transport.Offer(target, parts)
	}
}

func (f *flaky) Ask(source, target uint32) {
	if f.draw(4) > 0 {
		f.Transport.Ask(source, target)
	}
}

func (f *flaky) Answer(source, target uint32, applied uint64, again bool) {
	if f.draw(4) > 0 {
		f.Transport.Answer(source, target, applied, again)
	}
}

func openShards(t *testing.T, fsys vfs.FS, shards int, via func(Transport) Transport) *Node {
	t.Helper()
	n, err := Open(NodeConfig{
		FS: fsys, Dir: "data", Shards: shards, Meta: noMeta{}, MetaLoaded: func() error { return nil },
		WALFileBytes: 64 << 10, WALFiles: 2, TailCache: 16 << 10, CheckpointBytes: 48 << 10, transport: via,
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// owe builds what moves a numbered message into a log of another shard.
func owe(b *msg.Builder, target uint32, log msg.LogID, number uint64) {
	var inner msg.Builder
	inner.Forced = true
	inner.Append([]msg.Target{{Log: log}}, &msg.Envelope{}, binary.LittleEndian.AppendUint64(nil, number))
	c := inner.Finish()
	b.Owe(target, c.Bytes())
	c.Release()
}

// collector is a session that keeps the numbers of what it is given.
type collector struct {
	user
	mu   sync.Mutex
	list []queue.Delivery
}

func (c *collector) Base() *Consumer { return c.c }

func (c *collector) Deliver(d *queue.Delivery) {
	c.mu.Lock()
	c.list = append(c.list, *d)
	c.mu.Unlock()
}

// numbers reads all messages of a log in order.
func numbers(t *testing.T, s *Shard, log msg.LogID) (out []uint64) {
	t.Helper()
	u := &collector{}
	u.c = s.NewConsumer(queue.Consumer{Log: log, User: u}, u)
	if err := s.Attach(u.c, func() {}); err != nil {
		t.Fatal(err)
	}
	for ready := uint64(1); ready > 0; { // each round trip is a write, so reservations get on
		if _, err := s.Do(func(b *msg.Builder) { b.TermStart() }); err != nil {
			t.Fatal(err)
		}
		c, err := s.Counts(log)
		if err != nil {
			t.Fatal(err)
		}
		ready = c.Ready
	}
	var r Reader
	defer r.Close()
	u.mu.Lock()
	list := u.list
	u.mu.Unlock()
	for i := range list {
		err := r.Each(&list[i], func(_ msg.Offset, rec *msg.Record) error {
			out = append(out, binary.LittleEndian.Uint64(rec.Body))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Release(u.c)
	return out
}

// arrived waits until a shard has moved all that it owes.
func arrived(t *testing.T, s *Shard) {
	t.Helper()
	done := make(chan error, 1)
	s.Call(func() {
		s.m.out.waitAll(func(err error) { done <- err })
	})
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
			s.LookAfterMoves() // instead of the second that a mover waits
			if !s.Call(func() {}) {
				t.Fatal("stopped")
			}
		}
	}
}

// TestTransfersExactlyOnce moves messages between three shards over a transport that
// loses and doubles, through restarts: each arrives once, in order.
func TestTransfersExactlyOnce(t *testing.T) {
	disk := vfs.NewMem()
	const shards, rounds, each = 3, 4, 60
	lost := 0
	next := uint64(0)
	want := map[uint32][][]uint64{} // by target and source
	for id := uint32(1); id <= shards; id++ {
		want[id] = make([][]uint64, shards+1)
	}
	for round := range rounds {
		f := &flaky{rng: rand.New(rand.NewPCG(uint64(round), 9))}
		n := openShards(t, disk, shards, func(tr Transport) Transport { f.Transport = tr; return f })
		for _, s := range n.Queues() {
			if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
				t.Fatal(err)
			}
		}
		for i := range each {
			s := n.Queues()[i%shards]
			target := uint32((i+1+i/shards%2)%shards) + 1
			if target == s.ID() {
				t.Fatal("a shard owes itself nothing")
			}
			next++
			res, err := s.Do(func(b *msg.Builder) { owe(b, target, 1, next) })
			if err != nil || len(res.Moves) != 1 || res.Moves[0].Target != target {
				t.Fatalf("%+v, %v", res, err)
			}
			want[target][s.ID()] = append(want[target][s.ID()], next)
		}
		if round == rounds-1 { // the earlier ones stop in the middle
			for _, s := range n.Queues() {
				arrived(t, s)
			}
			f.calm.Store(true)
			for _, s := range n.Queues() {
				checkArrived(t, s, want[s.ID()])
			}
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		lost += f.lost
	}
	if lost == 0 {
		t.Error("the transport lost nothing")
	}
}

// checkArrived compares a target's log with what each source sent.
func checkArrived(t *testing.T, s *Shard, want [][]uint64) {
	t.Helper()
	from := map[uint64]int{}
	total := 0
	for source, list := range want {
		total += len(list)
		for _, x := range list {
			from[x] = source
		}
	}
	got := make([][]uint64, len(want))
	all := numbers(t, s, 1)
	for _, x := range all {
		got[from[x]] = append(got[from[x]], x)
	}
	for source := range want {
		if !slices.Equal(got[source], want[source]) {
			t.Errorf("shard %d got %v from %d, want %v", s.ID(), got[source], source, want[source])
		}
	}
	if len(all) != total {
		t.Errorf("%d messages arrived, want %d", len(all), total)
	}
}

// TestIdleOutbox: when everything has arrived, all is settled and nothing is looked
// after.
func TestIdleOutbox(t *testing.T) {
	n := openShards(t, vfs.NewMem(), 2, nil)
	defer func() { _ = n.Close() }()
	s, target := n.Queues()[0], n.Queues()[1]
	if _, err := target.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(2 * moveMessages) {
		if _, err := s.Do(func(b *msg.Builder) { owe(b, 2, 1, i) }); err != nil {
			t.Fatal(err)
		}
	}
	arrived(t, s)
	for busy := true; busy; {
		if _, err := s.Do(func(b *msg.Builder) { b.TermStart() }); err != nil { // behind the settlement
			t.Fatal(err)
		}
		s.Call(func() {
			ln, _ := s.m.ledger.Lane(msg.OutboxLog(2), 0)
			busy = ln.Unsettled() > 0 || s.m.out.moving.Load()
		})
	}
	s.Call(func() {
		if b := s.m.out.to[2]; b.room.room != moveBytes || len(b.sent) > 0 || len(b.waits) > 0 {
			t.Errorf("idle: room %d, %d sent, %d waiting", b.room.room, len(b.sent), len(b.waits))
		}
	})
	if got := numbers(t, target, 1); len(got) != 2*moveMessages {
		t.Errorf("%d arrived", len(got))
	}
}

// acknowledge settles a message of log 1 unless it is settled.
func acknowledge(t *testing.T, s *Shard, off msg.Offset) bool {
	r := []msg.Range{{First: off, Count: 1}}
	res, err := s.Do(func(b *msg.Builder) {
		b.Require(1, 0, r)
		b.Settle(1, 0, msg.Acked, r)
	})
	if err != nil {
		t.Error(err)
	}
	return !res.Refused
}

// purgeAndAppend purges log 1 now and then.
func purgeAndAppend(t *testing.T, s *Shard) {
	for range 20 {
		if _, err := s.Purge(1); err != nil {
			t.Error(err)
		}
		if _, err := s.Do(func(b *msg.Builder) { appendTo(b, 1, 5, 10) }); err != nil {
			t.Error(err)
		}
	}
}

// TestMoveOrAcknowledge moves messages to a queue in another shard while others settle
// them: each one is either moved once or was settled before, never both, never neither.
func TestMoveOrAcknowledge(t *testing.T) {
	n := openShards(t, vfs.NewMem(), 2, nil)
	defer func() { _ = n.Close() }()
	a, b := n.Queues()[0], n.Queues()[1]
	const messages = 400
	if _, err := b.Do(func(b *msg.Builder) { b.Ensure(2, nil) }); err != nil {
		t.Fatal(err)
	}
	_, err := a.Do(func(b *msg.Builder) {
		b.Ensure(1, nil)
		b.Ensure(3, nil) // its own shard: a move within it is the same command
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Do(func(b *msg.Builder) { appendTo(b, 1, messages, 10) }); err != nil {
		t.Fatal(err)
	}
	var acked [messages]atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range uint64(messages / 3) {
			acked[3*i].Store(acknowledge(t, a, 3*i))
		}
	})
	wg.Go(func() { purgeAndAppend(t, a) })
	var moved [messages]bool
	for i := uint64(messages); i > 0; {
		i--
		r := []msg.Range{{First: i, Count: 1}}
		res, err := a.Do(func(b *msg.Builder) {
			b.Require(1, 0, r)
			b.Settle(1, 0, msg.Rejected, r)
			owe(b, 2, 2, i)
			b.Append([]msg.Target{{Log: 3}}, &msg.Envelope{}, binary.LittleEndian.AppendUint64(nil, i))
		})
		if err != nil {
			t.Fatal(err)
		}
		moved[i] = !res.Refused
	}
	wg.Wait()
	arrived(t, a)
	var want []uint64
	for i := range uint64(messages) {
		if moved[messages-1-i] {
			want = append(want, messages-1-i)
		}
		if moved[i] && acked[i].Load() {
			t.Errorf("%d was moved and acknowledged", i)
		}
	}
	if got := numbers(t, b, 2); !slices.Equal(got, want) {
		t.Errorf("moved %v, want %v", got, want)
	}
	if got := numbers(t, a, 3); !slices.Equal(got, want) {
		t.Errorf("moved within the shard %v, want %v", got, want)
	}
	by := func(why msg.Reason) (n uint64) {
		a.Call(func() { n = a.m.ledger.SettledBy(why) })
		return n
	}
	if got := by(msg.Rejected); got != uint64(len(want)) {
		t.Errorf("%d settled by moves, %d moved", got, len(want))
	}
}
