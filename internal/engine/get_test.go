package engine

import (
	"testing"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// leased is a loop whose lease holds or doesn't.
type leased struct {
	m     *Machine
	holds bool
	b     msg.Builder
}

func (l *leased) Submit(s shard.Sub) { s.Finish(1, shard.Result{}) }
func (l *leased) Stop()              {}
func (l *leased) Turn() bool {
	if l.holds {
		l.m.Drive(&l.b)
	}
	return false
}

// TestGetNeedsLease: a leader without its lease answers no get, for another may lead by
// now.
func TestGetNeedsLease(t *testing.T) {
	m := New(Config{Shard: 1})
	loop := &leased{m: m}
	s := newShard(shard.NewWith(1, loop), m)
	m.Bind(loop)
	apply := func(build func(b *msg.Builder)) {
		var b msg.Builder
		build(&b)
		c := b.Finish()
		defer c.Release()
		m.Apply(&shard.Command{Sub: mustParse(t, c), Chunk: c})
	}
	apply(func(b *msg.Builder) { b.Ensure(1, nil) })
	apply(func(b *msg.Builder) { appendTo(b, 1, 1, 10) })
	apply(func(b *msg.Builder) { b.Reserve(1, 0, 1) })
	m.Lead(1)
	s.Start()
	defer s.Stop()
	u := newUser(s, queue.Consumer{Log: 1})
	s.Get(u.c, 1)
	s.Call(func() {})
	if u.gets.Load() > 0 {
		t.Fatal("answered without the lease")
	}
	s.Call(func() { loop.holds = true })
	s.Call(func() {})
	if u.gets.Load() != 1 || u.c.inflight[0].Count() != 1 {
		t.Fatal("not answered with the lease")
	}
}

func mustParse(t *testing.T, c *buf.Chunk) msg.Submission {
	t.Helper()
	s, err := msg.ParseSubmission(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return s
}
