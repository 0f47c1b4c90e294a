package shard

import (
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/wal"
)

// swallow finishes what it is given at once.
type swallow struct{ subs []Sub }

func (t *swallow) Submit(s Sub) { t.subs = append(t.subs, s) }
func (t *swallow) Turn() bool {
	for _, s := range t.subs {
		s.Finish(1, Result{})
	}
	t.subs = t.subs[:0]
	return false
}
func (t *swallow) Stop() { t.Turn() }

// TestSubmitWaitMissesNoRoom: a sender that finds no room just when the last of what
// was outstanding goes is let in, though nothing happens any more on the shard.
func TestSubmitWaitMissesNoRoom(t *testing.T) {
	s := NewWith(1, &swallow{})
	s.Start()
	defer s.Stop()
	big := buf.Get(publishBytesMax + 1)
	big.SetBytes(big.Bytes()[:publishBytesMax+1])
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 300_000 {
			s.SubmitWait(Sub{Chunk: big.Retain()}, nil)
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("a sender waits with %d bytes outstanding", s.bytes.Load())
	}
}

// TestNoWakingWhileNothingCanBeProposed: while the WAL is busy, or refuses for want of
// space, a lazy submission that is due must not keep the loop awake.
func TestNoWakingWhileNothingCanBeProposed(t *testing.T) {
	c := newCluster(t, 1, 1)
	r := c.reps[0]
	for range 4 {
		c.turn()
		r.log.complete(10)
	}
	lazy := func() {
		var b msg.Builder
		b.Meta(make([]byte, 8))
		r.core.Submit(Sub{Chunk: b.Finish(), Lazy: true})
	}
	for range 2 {
		c.publish(0, false)
		c.turn()
	}
	lazy()
	c.now = c.now.Add(time.Second)
	c.turn()
	if w := r.core.WaitUntil(); !w.IsZero() {
		t.Fatalf("wakes at %v with the most proposals in flight", w)
	}
	r.log.refuse = wal.ErrNoSpace
	r.log.complete(10)
	c.turn()
	if w := r.core.WaitUntil(); !r.core.Starved() || !w.IsZero() {
		t.Fatalf("wakes at %v on a full disk", w)
	}
	r.log.refuse = nil
	r.core.Retry()
	for range 4 {
		r.log.complete(10)
		c.turn()
	}
	if len(r.m.list) != 3 {
		t.Fatalf("applied %v", r.m.list)
	}
}
