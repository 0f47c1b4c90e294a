package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
)

var (
	flipSeed  = flag.Uint64("bitflip.seed", 1, "seed of the bit flip test")
	flipLines = flag.Int("bitflip.lines", 0, "how many lines of 64 bytes are flipped in, 0 for 240; all with -1")
	flipAt    = flag.String("bitflip.at", "", "replay one flip: path:bit")
)

// flipWorld is a data directory that a workload made, and what must be in it.
type flipWorld struct {
	disk    *vfs.Mem
	want    map[string][]uint64 // queue -> numbers still there, in order
	all     map[uint64][]byte   // bodies by number
	settles uint64
}

// flipBody is a body that tells from itself whether it is whole.
func flipBody(n uint64, size int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, n)
	rng := rand.New(rand.NewPCG(n, 9))
	for len(b) < 8+size {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b
}

func flipConfig(disk *vfs.Mem) Config {
	cfg := cutConfig(disk)
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.LargeBytes, cfg.PartBytes = 2000, 800
	return cfg
}

// makeFlipWorld makes a directory with everything in it: messages in segments, some of
// them shared by queues, messages in the log, settled ones, a deleted queue. The image
// is what a killed process leaves.
func makeFlipWorld(t *testing.T) *flipWorld {
	w := &flipWorld{disk: vfs.NewMem(), want: map[string][]uint64{}, all: map[uint64][]byte{}}
	b, err := Open(flipConfig(w.disk))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "a")
	defer c.s.Close()
	for _, q := range []string{"one", "two", "old", "gone", "large"} {
		if _, err := c.s.DeclareQueue(QueueSpec{Name: q, Type: route.Classic, Durable: true}); err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range []string{"one", "two", "old"} {
		if err := c.s.Bind(BindingSpec{Source: "amq.fanout", Destination: q}); err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(*flipSeed, 3))
	n := uint64(0)
	for step := range 90 {
		for range 1 + rng.IntN(8) {
			n++
			ex, key, qs, size := "", "one", []string{"one"}, rng.IntN(400)
			switch rng.IntN(8) {
			case 0, 1:
				key, qs = "two", []string{"two"}
			case 2:
				ex, key, qs = "amq.fanout", "", []string{"one", "two", "old"}
			case 3:
				if step < 70 {
					key, qs = "gone", []string{"gone"}
				}
			case 4:
				key, qs, size = "large", []string{"large"}, 2000+3000*(step%2)
			}
			w.all[n] = flipBody(n, size)
			e := msg.Envelope{Format: msg.FormatAMQP091, Exchange: []byte(ex), Key: []byte(key)}
			c.publishAny(t, ex, key, &e, w.all[n])
			for _, q := range qs {
				w.want[q] = append(w.want[q], n)
			}
		}
		token, slots := c.pub.Flush()
		c.await(token, slots)
		if step%9 == 8 {
			w.consume(t, c, "one", rng.IntN(12))
			w.consume(t, c, "two", rng.IntN(9))
			w.consume(t, c, "large", rng.IntN(4))
		}
		if step == 70 {
			if _, err := c.s.DeleteQueue("gone", false, false); err != nil {
				t.Fatal(err)
			}
			delete(w.want, "gone")
		}
	}
	// Only what is written after it tells a damaged write from one that was torn: so the
	// last one is of no interest here.
	for _, q := range []string{"last", "very last"} {
		if _, err := c.s.DeclareQueue(QueueSpec{Name: q, Type: route.Classic, Durable: true}); err != nil {
			t.Fatal(err)
		}
	}
	w.disk = w.disk.Clone()
	return w
}

// await waits until all slots of a token have completed without error.
func (c *client) await(token uint64, slots uint32) {
	for {
		c.mu.Lock()
		ok := c.done[token] == slots
		c.mu.Unlock()
		if ok {
			return
		}
		<-c.wake
	}
}

// publishAny publishes a body as large as it is.
func (c *client) publishAny(t *testing.T, ex, key string, e *msg.Envelope, body []byte) {
	t.Helper()
	if c.pub.IsLarge(uint64(len(body))) {
		c.begin(t, ex, key, body, len(body), false).Publish(e)
	} else if _, err := c.pub.Publish([]byte(ex), []byte(key), nil, e, body); err != nil {
		t.Fatal(err)
	}
}

// consume acknowledges n messages of a queue.
func (w *flipWorld) consume(t *testing.T, c *client, q string, n int) {
	for range n {
		if err := c.s.Get(q, false, 1, c); err != nil {
			t.Fatal(err)
		}
		d := <-c.gets
		if d == nil {
			return
		}
		c.s.Settle(d.Consumer.User.(*Consumer), d.Lane, Ack, []msg.Range{{First: d.First, Count: 1}})
		w.want[q] = w.want[q][1:]
	}
	token := uint64(1)<<61 | w.settles
	w.settles++
	c.await(token, c.s.FlushSettlesWait(token))
}

// flipResult is what came of one damaged image.
type flipResult struct {
	refused  error // Open did not
	reported []string
	lost     []string
	extra    []string // settled messages that are there again
}

func (r *flipResult) exact() bool { return r.refused == nil && len(r.lost)+len(r.extra) == 0 }

// open opens an image, reads all of it, closes it and checks it offline.
func (w *flipWorld) open(t *testing.T, disk *vfs.Mem) (res flipResult) {
	b, err := Open(flipConfig(disk))
	if err != nil {
		res.refused = err
		return res
	}
	c := newClient(t, b, "check")
	for _, vh := range []string{"/"} {
		if b.Table().VHost(vh) == nil {
			res.lost = append(res.lost, "vhost "+vh)
		}
	}
	for _, q := range slices.Sorted(maps.Keys(w.want)) {
		w.drain(t, c, q, &res)
	}
	if b.Table().VHost("/").Queue("gone") != nil {
		res.extra = append(res.extra, "queue gone")
	}
	c.s.Close()
	if err := b.Close(); err != nil {
		t.Fatalf("closing: %v", err)
	}
	r, err := Check(disk, "data")
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	if !r.Sound() {
		res.reported = strings.Split(r.Text(), "\n")
	}
	w.checkReports(t, r, &res)
	return res
}

// checkReports looks whether each loss has a report that names its queue, or one that
// says that not all is known.
func (w *flipWorld) checkReports(t *testing.T, r *engine.CheckReport, res *flipResult) {
	named := map[string]bool{}
	unknown := false
	for _, in := range r.Quarantine {
		unknown = unknown || in.Unknown != ""
		for _, l := range in.Lost {
			named[l.Queue] = true
		}
	}
	for _, x := range res.lost {
		if q, _, _ := strings.Cut(x, "/"); !unknown && !named[q] {
			t.Errorf("%s is lost, and the reports don't say so:\n%s", x, r.Text())
		}
	}
	if len(res.extra) > 0 && !unknown {
		t.Errorf("%v came back, and the reports don't say so:\n%s", res.extra, r.Text())
	}
}

// drain reads a queue to its end and compares it with what must be there.
func (w *flipWorld) drain(t *testing.T, c *client, q string, res *flipResult) {
	seen := map[uint64]bool{}
	last := uint64(0)
	for {
		if err := c.s.Get(q, false, 1, c); err != nil {
			res.lost = append(res.lost, "queue "+q)
			return
		}
		d := <-c.gets
		if d == nil {
			break
		}
		err := c.rd.Each(d, func(_ msg.Offset, rec *msg.Record) error {
			body := rec.Body
			if rec.Flags&msg.FlagParts != 0 {
				body = nil
				if err := c.rd.Body(d, rec, func(piece []byte) error { body = append(body, piece...); return nil }); err != nil {
					return err
				}
			}
			n := number(body)
			if !bytes.Equal(body, w.all[n]) {
				t.Errorf("queue %s: a wrong body as message %d", q, n)
			}
			if seen[n] || n < last {
				t.Errorf("queue %s: message %d is there twice, or out of order", q, n)
			}
			if !slices.Contains(w.want[q], n) && !d.Redelivered {
				t.Errorf("queue %s: message %d came back and is not flagged", q, n)
			}
			last, seen[n] = n, true
			return nil
		})
		if errors.Is(err, ErrBodyGone) {
			continue // put aside, and settled
		}
		if err != nil {
			t.Errorf("queue %s offset %d: %v", q, d.First, err)
			return
		}
		c.s.Settle(d.Consumer.User.(*Consumer), d.Lane, Ack, []msg.Range{{First: d.First, Count: uint64(d.Count)}})
		c.s.FlushSettles()
	}
	for _, n := range w.want[q] {
		if !seen[n] {
			res.lost = append(res.lost, fmt.Sprintf("%s/%d", q, n))
		}
		delete(seen, n)
	}
	for n := range seen {
		res.extra = append(res.extra, fmt.Sprintf("%s/%d", q, n))
	}
}

// flips lists the bits to flip: one of each line of 64 bytes, or of some lines.
func (w *flipWorld) flips(t *testing.T) []string {
	if *flipAt != "" {
		return []string{*flipAt}
	}
	var all []string
	rng := rand.New(rand.NewPCG(*flipSeed, 4))
	for _, p := range w.disk.Paths("data") {
		st, err := w.disk.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < st.Size; at += 64 {
			bit := at*8 + rng.Int64N(min(64, st.Size-at)*8)
			all = append(all, fmt.Sprintf("%s:%d", p, bit))
		}
	}
	n := *flipLines
	if n == 0 {
		n = 240
	}
	if n < 0 || n >= len(all) {
		return all
	}
	// Each kind of file gets its share, however small it is.
	byKind := map[string][]string{}
	for _, f := range all {
		kind := path.Dir(f)
		byKind[kind] = append(byKind[kind], f)
	}
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		list := byKind[kind]
		rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		out = append(out, list[:min(len(list), 1+n/len(byKind))]...)
	}
	return out
}

// TestBitFlips flips a bit of a data directory, starts the broker on it and reads
// everything. Either all is as it would have been, or it is reported: never a wrong
// message, a loss nobody hears of, something settled that comes back unreported, a panic
// or a hang.
func TestBitFlips(t *testing.T) {
	w := makeFlipWorld(t)
	if res := w.open(t, w.disk.Clone()); !res.exact() || len(res.reported) > 0 {
		t.Fatalf("undamaged: %+v", res)
	}
	var mu sync.Mutex
	refused, reported, exact := map[string]int{}, 0, 0
	t.Run("flips", func(t *testing.T) {
		for _, f := range w.flips(t) {
			p, bitText, _ := strings.Cut(f, ":")
			t.Run(f, func(t *testing.T) {
				t.Parallel()
				disk := w.disk.Clone()
				var bit int64
				if _, err := fmt.Sscan(bitText, &bit); err != nil {
					t.Fatal(err)
				}
				if err := vfs.FlipBit(disk, p, bit); err != nil {
					t.Fatal(err)
				}
				res := w.open(t, disk)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case res.refused != nil:
					if !errors.Is(res.refused, engine.ErrDamaged) && !errors.Is(res.refused, store.ErrDamaged) {
						t.Errorf("refused, but not for damage: %v", res.refused)
					}
					refused[path.Base(path.Dir(p))]++
				case len(res.reported) > 0:
					reported++
				case res.exact():
					exact++
				default:
					t.Errorf("nothing is reported, but: %+v", res)
				}
			})
		}
	})
	t.Logf("%d exact, %d reported, refused to start: %v", exact, reported, refused)
}
