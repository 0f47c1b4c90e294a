package queue

import (
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
)

const purged = 10_000_000

// fullQueue returns a queue with many messages, of which every millionth is settled.
func fullQueue() (*Ledger, *Dispatch) {
	l := NewLedger()
	l.Ensure(1, nil)
	l.Append(1, 0, purged, nil)
	for off := uint64(500_000); off < purged; off += 1_000_000 {
		l.Settle(1, 0, msg.Range{First: off, Count: 1}, msg.Acked)
	}
	d := NewDispatch(l, nil)
	d.Start(false)
	return l, d
}

// purge is what a purge does on the loop: it holds what is ready and settles that.
func purge(l *Ledger, d *Dispatch) (ranges int) {
	for _, h := range d.HoldAll(1) {
		for _, r := range h.Ranges {
			d.Settled(1, h.Lane, r, l.Settle(1, h.Lane, r, msg.Purged))
			ranges++
		}
	}
	return ranges
}

// TestPurgeCostsRanges: a purge costs what the queue has gaps, not what it has messages.
func TestPurgeCostsRanges(t *testing.T) {
	l, d := fullQueue()
	if n := purge(l, d); n != 11 {
		t.Fatalf("%d ranges", n)
	}
	if ln, _ := l.Lane(1, 0); ln.Unsettled() != 0 || d.Counts(1).Ready != 0 {
		t.Fatal("not empty")
	}
}

func BenchmarkPurge(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		l, d := fullQueue()
		b.StartTimer()
		purge(l, d)
	}
}
