package engine

import (
	"flag"
	"log/slog"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
)

var spaceScale = flag.Int("space.scale", 1, "multiplies queues and turnovers of the space tests")

const (
	spaceSegment = 256 << 10
	spaceRecord  = 300 // bytes of a record, about
)

// spaceNode is a node whose flushing and merging the test does itself.
func spaceNode(t *testing.T) *Node {
	n, err := Open(NodeConfig{
		FS: vfs.NewMem(), Dir: "d", Shards: 1, WALFileBytes: 128 << 10, WALFiles: 2, TailCache: 1,
		ScrubBytes: -1, Log: slog.New(slog.DiscardHandler),
		storeOptions: store.Options{SegmentBytes: spaceSegment, OwnRunBytes: 64 << 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	k := n.keeper
	k.close()
	k.stop = make(chan struct{})
	k.wg.Go(k.writeCuts)
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// turnover flushes what the log has too much of and does all upkeep, then holds the
// bounds against what is there. live is what is not settled, in bytes, stubs the
// references to shared bodies among that.
func turnover(t *testing.T, n *Node, live, stubs int64) {
	k := n.keeper
	k.retireFiles()
	for range 20 {
		before := n.store.Metrics().Edits
		k.space()
		if n.store.Metrics().Edits == before {
			break
		}
	}
	bytes := int64(0)
	for _, m := range n.store.Segments(1) {
		bytes += m.Bytes
	}
	if limit := 2*live + 32*stubs + 2*spaceSegment; bytes > limit {
		t.Fatalf("%d bytes in segments, %d live: more than %d", bytes, live, limit)
	}
	if w := len(n.wal.Sealed()); w > n.keeper.budget {
		t.Fatalf("%d sealed files", w)
	}
	runs := 0
	n.Queues()[0].Call(func() {
		for _, l := range n.Queues()[0].m.places.lanes {
			runs = max(runs, len(l.runs))
		}
	})
	if runs >= 16 {
		t.Fatalf("a log with %d runs", runs)
	}
}

// turns calls fill, which returns what is live, until the log has turned over so often.
func turns(t *testing.T, n *Node, times int, fill func() (live, stubs int64)) {
	for range times {
		for len(n.wal.Sealed()) <= n.keeper.budget {
			fill()
		}
		live, stubs := fill()
		turnover(t, n, live, stubs)
	}
}

func spaceDo(t *testing.T, n *Node, fn func(b *msg.Builder)) {
	if _, err := n.Queues()[0].Do(fn); err != nil {
		t.Fatal(err)
	}
}

// TestSpaceOfStragglers: one message in a thousand is never settled. It costs its own
// size.
func TestSpaceOfStragglers(t *testing.T) {
	n := spaceNode(t)
	spaceDo(t, n, func(b *msg.Builder) { b.Ensure(1, nil) })
	next, kept := uint64(0), int64(0)
	turns(t, n, 60**spaceScale, func() (int64, int64) {
		spaceDo(t, n, func(b *msg.Builder) { appendTo(b, 1, 50, spaceRecord-60) })
		r := []msg.Range{{First: next, Count: 50}}
		if next%1000 == 0 {
			r[0].First++
			r[0].Count--
			kept++
		}
		next += 50
		spaceDo(t, n, func(b *msg.Builder) { b.Settle(1, 0, msg.Acked, r) })
		return kept * spaceRecord, 0
	})
}

// TestSpaceOfFanOut: messages go to 1,000 queues, of which one never settles. It costs
// each body once.
func TestSpaceOfFanOut(t *testing.T) {
	n := spaceNode(t)
	const logs = 1000
	var targets []msg.Target
	spaceDo(t, n, func(b *msg.Builder) {
		for log := range msg.LogID(logs) {
			b.Ensure(log+1, nil)
			targets = append(targets, msg.Target{Log: log + 1})
		}
	})
	next := uint64(0)
	turns(t, n, 15**spaceScale, func() (int64, int64) {
		spaceDo(t, n, func(b *msg.Builder) {
			for range 5 {
				b.Append(targets, &msg.Envelope{}, make([]byte, spaceRecord-60))
			}
		})
		spaceDo(t, n, func(b *msg.Builder) {
			for _, x := range targets[1:] {
				b.Settle(x.Log, 0, msg.Acked, []msg.Range{{First: next, Count: 5}})
			}
		})
		next += 5
		return int64(next) * spaceRecord, int64(next)
	})
}

// TestSpaceOfManyQueues: many queues hold 3 messages each while the log turns over.
func TestSpaceOfManyQueues(t *testing.T) {
	n := spaceNode(t)
	logs := msg.LogID(200 * *spaceScale)
	all := func(fn func(b *msg.Builder, log msg.LogID)) { // 200 at a time fit into a file
		for first := msg.LogID(1); first <= logs; first += 200 {
			spaceDo(t, n, func(b *msg.Builder) {
				for log := first; log < first+200; log++ {
					fn(b, log)
				}
			})
		}
	}
	all(func(b *msg.Builder, log msg.LogID) { b.Ensure(log, nil) })
	round := uint64(0)
	turns(t, n, 100, func() (int64, int64) {
		all(func(b *msg.Builder, log msg.LogID) {
			appendTo(b, log, 1, spaceRecord-60)
			if round >= 3 {
				b.Settle(log, 0, msg.Acked, []msg.Range{{First: round - 3, Count: 1}})
			}
		})
		round++
		return int64(min(round, 3)*logs) * spaceRecord, 0
	})
	// Deleting gives the space back at once.
	all(func(b *msg.Builder, log msg.LogID) { b.Delete(log) })
	n.keeper.space()
	if left := n.store.Segments(1); len(left) > 0 {
		t.Fatalf("%d segments of deleted queues", len(left))
	}
}
