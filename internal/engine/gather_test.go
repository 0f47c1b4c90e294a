package engine

import (
	"errors"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// pair is a leader whose only other node is this test.
type pair struct {
	t    *testing.T
	m    *Machine
	now  time.Time
	sent []*Message
	b    msg.Builder
}

// Live implements Cluster.
func (p *pair) Live() []uint64 { return []uint64{2} }

// Send implements Cluster.
func (p *pair) Send(_ uint32, _ uint64, x *Message) { p.sent = append(p.sent, x) }

// Submit implements Submitter.
func (p *pair) Submit(s shard.Sub) { s.Finish(1, shard.Result{}) }

// newPair begins a term in which two messages may have been delivered by an earlier one.
func newPair(t *testing.T) *pair {
	p := &pair{t: t, now: time.Unix(1_700_000_000, 0)}
	p.m = New(Config{Shard: 1, Cluster: p, Link: shard.LinkID(1, 1), Now: func() time.Time { return p.now }})
	p.m.Bind(p)
	p.apply(func(b *msg.Builder) { b.Ensure(1, nil) })
	p.apply(func(b *msg.Builder) { appendTo(b, 1, 2, 10) })
	p.apply(func(b *msg.Builder) { b.Reserve(1, 0, 2) })
	p.m.Lead(7)
	return p
}

func (p *pair) apply(build func(b *msg.Builder)) {
	var b msg.Builder
	build(&b)
	c := b.Finish()
	defer c.Release()
	p.m.Apply(&shard.Command{Sub: mustParse(p.t, c), Chunk: c})
}

// consumer attaches one of this node; err is errWaits until there is an answer.
func (p *pair) consumer() (u *user, err *error) {
	answer := errWaits
	u = newUser(p.m.shard, queue.Consumer{Log: 1})
	p.m.attach(u.c, func() {}, func(err error) { answer = err })
	return u, &answer
}

var errWaits = errors.New("no answer")

func (p *pair) drive(after time.Duration) {
	p.now = p.now.Add(after)
	p.m.Drive(&p.b)
}

func (p *pair) reattach(s ...Spec) {
	p.m.Hear(&Message{Kind: MsgReattach, From: shard.LinkID(2, 1), Term: 7, Run: 1, Consumers: s})
}

// A node that is alive and doesn't answer is waited for, for a second and no longer.
func TestGatherGrace(t *testing.T) {
	p := newPair(t)
	u, err := p.consumer()
	p.drive(gatherGrace - 1)
	if !errors.Is(*err, errWaits) || u.got.Load() > 0 {
		t.Fatalf("attached before the grace: %v, %d messages", *err, u.got.Load())
	}
	p.drive(1)
	if *err != nil || u.got.Load() != 2 {
		t.Fatalf("after the grace: %v, %d messages", *err, u.got.Load())
	}
	// It comes late and keeps nothing, since all is another's.
	p.sent = nil
	p.reattach(Spec{ID: 5, Log: 1, Attached: true, Claims: []Claim{{Log: 1, Ranges: []msg.Range{{First: 0, Count: 1}}}}})
	refused := 0
	for _, x := range p.sent {
		if x.Kind == MsgAttached && x.Consumer == 5 {
			refused = int(rangesCount(x.Claims[0].Ranges))
		}
	}
	if refused != 1 {
		t.Fatalf("%d refused", refused)
	}
}

// The gathering ends when everybody has answered, and an exclusive consumer that comes
// back has the queue before anybody new.
func TestExclusiveComesBack(t *testing.T) {
	p := newPair(t)
	u, err := p.consumer()
	p.drive(0)
	p.reattach(Spec{ID: 5, Log: 1, Exclusive: true, Attached: true, Claims: []Claim{{Log: 1, Ranges: []msg.Range{{First: 1, Count: 1}}}}})
	p.drive(0)
	if !errors.Is(*err, queue.ErrExclusive) || u.got.Load() > 0 {
		t.Fatalf("%v, %d messages", *err, u.got.Load())
	}
	if n := p.m.Counts(1); n != (queue.Counts{Unacked: 2, Consumers: 1}) { // the other one went to it
		t.Fatalf("%+v", n)
	}
}

// A message of an earlier term or run changes nothing.
func TestStaleMessages(t *testing.T) {
	p := newPair(t)
	p.reattach(Spec{ID: 5, Log: 1, Attached: true, Prefetch: 1, Claims: []Claim{{Log: 1, Ranges: []msg.Range{{First: 0, Count: 2}}}}})
	p.drive(0)
	claim := []Claim{{Log: 1, Ranges: []msg.Range{{First: 0, Count: 1}}}}
	for _, x := range []Message{
		{Term: 6, Run: 1, Seq: 1},
		{Term: 8, Run: 1, Seq: 1},
		{Term: 7, Run: 0, Seq: 1},
		{Term: 7, Run: 2, Seq: 1},
	} {
		x.Kind, x.From, x.Consumer, x.Claims = MsgReturn, shard.LinkID(2, 1), 5, claim
		p.m.Hear(&x)
		if n := p.m.Counts(1); n.Unacked != 2 {
			t.Fatalf("%+v after %+v", n, x)
		}
	}
	x := Message{Kind: MsgReturn, From: shard.LinkID(2, 1), Term: 7, Run: 1, Seq: 1, Consumer: 5, Claims: claim}
	p.m.Hear(&x)
	if n := p.m.Counts(1); n.Unacked != 1 || n.Ready != 1 {
		t.Fatalf("%+v", n)
	}
	x.Seq = 3 // one is missing
	x.Claims = []Claim{{Log: 1, Ranges: []msg.Range{{First: 1, Count: 1}}}}
	p.m.Hear(&x)
	p.m.Tick() // it was reminded in this tick already
	last := p.sent[len(p.sent)-1]
	if n := p.m.Counts(1); n.Unacked != 1 || last.Kind != MsgLead || last.Run != 0 {
		t.Fatalf("%+v, answered %+v", n, last)
	}
}
