package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

var (
	cutSeed  = flag.Uint64("powercut.seed", 1, "seed of the power cut test's workload")
	cutAt    = flag.Int64("powercut.at", 0, "replay one cut: the number of the operation before which the power fails")
	cutEvery = flag.Int64("powercut.every", 0, "distance between the operations that are cut; 0 chooses one that takes a few seconds, 1 cuts at each")
)

// client is a session with everything it was told.
type client struct {
	s    *Session
	pub  *Publisher
	mu   sync.Mutex
	done map[uint64]uint32 // token -> slots completed without error
	bad  bool
	wake chan struct{}
	rd   *Reader
	in   []queue.Delivery
	gets chan *queue.Delivery
}

type delivered struct {
	c           *Consumer
	off         msg.Offset
	lane        uint8
	number      uint64
	redelivered bool
}

func newClient(t testing.TB, b *Broker, id string) *client {
	c := &client{done: map[uint64]uint32{}, wake: make(chan struct{}, 1), gets: make(chan *queue.Delivery, 1)}
	s, err := b.Open(Identity{ID: id, VHost: "/", User: "guest"}, c)
	if err != nil {
		t.Fatal(err)
	}
	c.s, c.pub, c.rd = s, s.Publisher(), s.Reader()
	return c
}

func (c *client) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *client) Completed(token uint64, slot uint8, err error) {
	c.mu.Lock()
	if err == nil {
		c.done[token] |= 1 << slot
	} else {
		c.bad = true
	}
	c.mu.Unlock()
	c.poke()
}

func (c *client) Deliver(d *queue.Delivery) {
	c.mu.Lock()
	c.in = append(c.in, *d)
	c.mu.Unlock()
	c.poke()
}

// GetFailed implements Sink.
func (c *client) GetFailed(uint64, error) {}

func (c *client) Got(_ uint64, d *queue.Delivery, _ uint64) {
	if d != nil {
		k := *d
		d = &k
	}
	c.gets <- d
}
func (c *client) Canceled(*Consumer) {}
func (c *client) Blocked(string)     {}
func (c *client) Unblocked()         {}
func (c *client) Shutdown(string)    {}

// read turns what was delivered into messages.
func (c *client) read() (out []delivered, err error) {
	c.mu.Lock()
	in := c.in
	c.in = nil
	c.mu.Unlock()
	for i := range in {
		d := &in[i]
		err = c.rd.Each(d, func(off msg.Offset, rec *msg.Record) error {
			n, err := wholeNumber(c.rd, d, rec)
			out = append(out, delivered{d.Consumer.User.(*Consumer), off, d.Lane, n, d.Redelivered})
			return err
		})
		if err != nil {
			return out, err
		}
	}
	c.rd.Flush()
	return out, nil
}

func number(body []byte) uint64 {
	if len(body) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(body)
}

func body(n uint64, size int) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, n), make([]byte, size)...)
}

// wholeNumber returns the number in a message's body. What lies in parts must be all
// there and the body of that number.
func wholeNumber(rd *Reader, d *queue.Delivery, rec *msg.Record) (uint64, error) {
	if rec.Flags&msg.FlagParts == 0 {
		return number(rec.Body), nil
	}
	var b []byte
	if err := rd.Body(d, rec, func(piece []byte) error { b = append(b, piece...); return nil }); err != nil {
		return 0, err
	}
	n := number(b)
	if !bytes.Equal(b, largeBody(n, len(b)-8)) {
		return n, fmt.Errorf("the body of message %d has other bytes", n)
	}
	return n, nil
}

// largeBody is a body of which each part differs.
func largeBody(n uint64, size int) []byte {
	b := body(n, size)
	for i := 8; i < len(b); i++ {
		b[i] = byte(n) ^ byte(i/100)
	}
	return b
}

var errCut = errors.New("the power is off")

// outcome is what a workload's clients know when the power fails.
type outcome struct {
	mu        sync.Mutex
	published map[string]map[uint64]bool // queue -> number: true once confirmed
	settled   map[string]map[uint64]bool // true: the settlement was confirmed; false: it was sent
	delivered map[string]map[uint64]bool
	declared  map[string]bool
}

func newOutcome() *outcome {
	return &outcome{
		published: map[string]map[uint64]bool{}, settled: map[string]map[uint64]bool{},
		delivered: map[string]map[uint64]bool{}, declared: map[string]bool{},
	}
}

func (o *outcome) mark(m map[string]map[uint64]bool, q string, n uint64, sure bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m[q] == nil {
		m[q] = map[uint64]bool{}
	}
	m[q][n] = m[q][n] || sure
}

// smallNode makes everything happen often: rotations, flushes, checkpoints, merges.
func smallNode() engine.NodeConfig {
	return engine.NodeConfig{
		WALFileBytes: 64 << 10, WALFiles: 2, TailCache: 32 << 10, VolatileMemory: 32 << 10, CheckpointBytes: 40 << 10,
	}
}

// cutConfig makes bodies of more than 4 kB go in parts of 1 kB.
func cutConfig(fsys vfs.FS) Config {
	return Config{Dir: "data", FS: fsys, Shards: 2, Node: smallNode(), LargeBytes: 4000, PartBytes: 1000}
}

// cutWorkload publishes to two queues (and to both through an exchange), consumes and
// settles, until it is done or the power fails. The steps are the same for a seed.
func cutWorkload(t testing.TB, fsys vfs.FS, seed uint64, off *atomic.Bool, o *outcome) {
	b, err := Open(cutConfig(fsys))
	if err != nil {
		if off.Load() {
			return
		}
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	ended := make(chan struct{})
	defer close(ended)
	go func() { // without power nothing moves: whoever waits for the disk is let go
		for {
			select {
			case <-ended:
				return
			case <-time.After(20 * time.Millisecond):
				if off.Load() {
					_ = b.Close()
					return
				}
			}
		}
	}()
	w := &cutRun{c: newClient(t, b, "a"), rng: rand.New(rand.NewPCG(seed, 2)), off: off, o: o}
	defer w.c.s.Close()
	for _, q := range []string{"one", "two"} {
		if _, err := w.c.s.DeclareQueue(QueueSpec{Name: q, Type: route.Classic, Durable: true}); err != nil {
			return
		}
		o.declared[q] = true
		if w.c.s.Bind(BindingSpec{Source: "amq.fanout", Destination: q}) != nil {
			return
		}
	}
	var consumers []*Consumer
	for _, q := range []string{"one", "two"} {
		c, err := w.c.s.Consume(ConsumeSpec{Queue: q, Prefetch: 20}, func(*Consumer) {})
		if err != nil {
			return
		}
		consumers = append(consumers, c)
	}
	for step := range 60 {
		w.publish(step)
		w.settleSome()
		if off.Load() {
			return
		}
	}
	_ = consumers
}

type cutRun struct {
	c    *client
	rng  *rand.Rand
	off  *atomic.Bool
	o    *outcome
	next uint64
	held []delivered
}

// publish sends a batch and waits for its confirms.
func (w *cutRun) publish(step int) {
	type sent struct {
		qs []string
		n  uint64
	}
	var batch []sent
	for range 1 + w.rng.IntN(12) {
		w.next++
		ex, key, qs := "", "one", []string{"one"}
		switch w.rng.IntN(3) {
		case 0:
			key, qs = "two", []string{"two"}
		case 1:
			ex, key, qs = "amq.fanout", "", []string{"one", "two"}
		}
		if !w.send(ex, key, step) {
			return
		}
		for _, q := range qs {
			w.o.mark(w.o.published, q, w.next, false)
		}
		batch = append(batch, sent{qs, w.next})
	}
	token, slots := w.c.pub.Flush()
	if !w.await(token, slots) {
		return
	}
	for _, s := range batch {
		for _, q := range s.qs {
			w.o.mark(w.o.published, q, s.n, true)
		}
	}
}

// send publishes message w.next, some as large ones, of which some are given up first.
func (w *cutRun) send(ex, key string, step int) bool {
	e := msg.Envelope{Format: msg.FormatAMQP091, Exchange: []byte(ex), Key: []byte(key)}
	size := w.rng.IntN(600)
	if step%17 == 0 {
		size = 3500
	}
	if w.rng.IntN(25) > 0 {
		_, err := w.c.pub.Publish([]byte(ex), []byte(key), nil, &e, body(w.next, size))
		return err == nil
	}
	b := largeBody(w.next, 4000+w.rng.IntN(6000))
	for _, drop := range []bool{w.rng.IntN(3) == 0, false} {
		l, err := w.c.pub.Begin([]byte(ex), [][]byte{[]byte(key)}, nil, uint64(len(b)), false)
		if err != nil {
			return false
		}
		if drop {
			l.Write(b[:w.rng.IntN(len(b))])
			if w.rng.IntN(2) == 0 { // else it stays unfinished until the next start
				l.Drop()
			}
			continue
		}
		for rest := b; len(rest) > 0; {
			n := min(len(rest), 1+w.rng.IntN(2000))
			l.Write(rest[:n])
			rest = rest[n:]
		}
		l.Publish(&e)
		break
	}
	return true
}

// await waits until all slots are complete; false when the power failed or a slot did.
func (w *cutRun) await(token uint64, slots uint32) bool {
	for {
		w.c.mu.Lock()
		ok, bad := w.c.done[token] == slots, w.c.bad
		w.c.mu.Unlock()
		if ok {
			return true
		}
		if bad || w.off.Load() {
			return false
		}
		select {
		case <-w.c.wake:
		case <-time.After(time.Millisecond): // the power may be off
		}
	}
}

// settleSome acknowledges or requeues part of what was delivered.
func (w *cutRun) settleSome() {
	got, err := w.c.read()
	if err != nil {
		return
	}
	for _, d := range got {
		w.o.mark(w.o.delivered, d.c.Queue().Name, d.number, true)
	}
	w.held = append(w.held, got...)
	keep := w.held[:0]
	var acked []delivered
	for _, d := range w.held {
		switch w.rng.IntN(4) {
		case 0:
			keep = append(keep, d)
		case 1:
			w.c.s.Settle(d.c, d.lane, Requeue, []msg.Range{{First: d.off, Count: 1}})
		default:
			w.o.mark(w.o.settled, d.c.Queue().Name, d.number, false)
			w.c.s.Settle(d.c, d.lane, Ack, []msg.Range{{First: d.off, Count: 1}})
			acked = append(acked, d)
		}
	}
	w.held = keep
	token := uint64(1)<<61 | w.next
	slots := w.c.s.FlushSettlesWait(token)
	if !w.await(token, slots) {
		return
	}
	for _, d := range acked {
		w.o.mark(w.o.settled, d.c.Queue().Name, d.number, true)
	}
}

// checkAfterCut opens the disk that the power cut left and compares it with what the
// clients knew.
func checkAfterCut(t *testing.T, disk *vfs.Mem, o *outcome) {
	cfg := cutConfig(disk)
	cfg.Node.Strict = true // nothing of it is damage
	b, err := Open(cfg)
	if err != nil {
		t.Fatalf("recovery: %v", err)
	}
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "check")
	defer c.s.Close()
	for _, q := range []string{"one", "two"} {
		if !o.declared[q] {
			continue
		}
		seen := map[uint64]bool{}
		for {
			if err := c.s.Get(q, false, 1, c); err != nil {
				t.Fatalf("queue %s: %v", q, err)
			}
			d := <-c.gets
			if d == nil {
				break
			}
			n := 0
			err := c.rd.Each(d, func(_ msg.Offset, rec *msg.Record) error {
				n++
				found, err := wholeNumber(c.rd, d, rec)
				if err == nil {
					checkFound(t, o, q, found, d.Redelivered, seen)
				}
				return err
			})
			if err != nil || n != 1 {
				t.Fatalf("queue %s offset %d: %d messages, %v", q, d.First, n, err)
			}
		}
		for n, confirmed := range o.published[q] {
			if _, settled := o.settled[q][n]; confirmed && !settled && !seen[n] {
				t.Errorf("queue %s: confirmed message %d is lost", q, n)
			}
		}
	}
	checkParts(t, b)
}

// checkParts compares the parts logs that there are, after the sweep, with those that
// belong to a message.
func checkParts(t *testing.T, b *Broker) {
	bound := map[msg.LogID]bool{}
	for _, s := range b.node.Queues() {
		s.Call(func() {
			l := s.Machine().Ledger()
			l.Logs(func(id msg.LogID) bool {
				l.Lanes(id, func(lane uint8, _ *queue.Lane) bool {
					l.EachLarge(id, lane, func(_ msg.Offset, ref msg.PartsRef) {
						if !l.Has(ref.Log) {
							t.Errorf("log %d has a body without parts", id)
						}
						bound[ref.Log] = true
					})
					return true
				})
				return true
			})
		})
	}
	give := time.After(10 * time.Second)
	for {
		loose := 0
		for _, s := range b.node.Queues() {
			s.Call(func() {
				s.Machine().Ledger().Logs(func(id msg.LogID) bool {
					if msg.IsParts(id) && !bound[id] {
						loose++
					}
					return true
				})
			})
		}
		if loose == 0 {
			return
		}
		select {
		case <-give:
			t.Fatalf("%d parts logs belong to no message", loose)
		case <-time.After(time.Millisecond):
		}
	}
}

func checkFound(t *testing.T, o *outcome, q string, n uint64, redelivered bool, seen map[uint64]bool) {
	if seen[n] {
		t.Errorf("queue %s: message %d is there twice", q, n)
	}
	seen[n] = true
	if _, ok := o.published[q][n]; !ok {
		t.Errorf("queue %s: message %d was never published", q, n)
	}
	if o.settled[q][n] {
		t.Errorf("queue %s: message %d was settled for sure and came back", q, n)
	}
	if o.delivered[q][n] && !redelivered {
		t.Errorf("queue %s: message %d was delivered before and is not flagged", q, n)
	}
}

// TestPowerCut fails the power before one operation on the disk after another. What the
// disk keeps of unsynced writes is random; after recovery each confirmed message is
// there exactly once unless it was settled, nothing settled for sure comes back, and
// what was delivered before is flagged.
func TestPowerCut(t *testing.T) {
	total := countOps(t)
	every := *cutEvery
	if every == 0 {
		every = max(total/60, 1)
	}
	at := []int64{}
	for n := int64(1); n <= total; n += every {
		at = append(at, n)
	}
	if *cutAt > 0 {
		at = []int64{*cutAt}
	}
	for _, n := range at {
		t.Run(fmt.Sprintf("seed=%d/at=%d", *cutSeed, n), func(t *testing.T) {
			t.Parallel()
			o := newOutcome()
			disk := vfs.NewMem()
			var off atomic.Bool
			var ops atomic.Int64
			var left *vfs.Mem
			rng := rand.New(rand.NewPCG(*cutSeed, uint64(n)))
			opts := []vfs.CrashOptions{{}, {Data: vfs.KeepRandom, Names: vfs.KeepRandom}, {Data: vfs.KeepAll, Names: vfs.KeepAll}}[n%3]
			hook := func(op vfs.Op) error {
				if !op.Kind.Mutates() {
					return nil
				}
				if k := ops.Add(1); k == n {
					o.mu.Lock() // what clients know is fixed at this moment
					off.Store(true)
					left = disk.CrashClone(rng, opts)
					o.mu.Unlock()
				}
				if off.Load() {
					return errCut
				}
				return nil
			}
			cutWorkload(t, vfs.Inject(disk, hook), *cutSeed, &off, o)
			if left == nil {
				left = disk.CrashClone(rng, opts) // it ended before
			}
			checkAfterCut(t, left, o)
		})
	}
}

func countOps(t *testing.T) int64 {
	var ops atomic.Int64
	var off atomic.Bool
	cutWorkload(t, vfs.Inject(vfs.NewMem(), func(op vfs.Op) error {
		if op.Kind.Mutates() {
			ops.Add(1)
		}
		return nil
	}), *cutSeed, &off, newOutcome())
	return ops.Load()
}
