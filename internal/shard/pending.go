package shard

import (
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
)

// Sub is a submission handed to a shard. The reference to Chunk passes to the shard.
type Sub struct {
	Chunk *buf.Chunk
	Done  Completer // nil: nobody wants to know
	Token uint64
	// Lazy: nobody waits for it, so it may wait a little for company.
	Lazy bool

	messages bool // brings messages in, so it may be refused

	size    int64         // bytes that count against the sender's bound
	account *atomic.Int64 // where they are counted
}

// Finish gives back what the submission held and tells its Completer.
func (s *Sub) Finish(shard uint32, res Result) {
	s.Chunk.Release()
	if s.account != nil {
		s.account.Add(-s.size)
	}
	if s.Done != nil {
		s.Done.Completed(shard, s.Token, res)
	}
}

func (s *Sub) fail(shard uint32, err error) { s.Finish(shard, Result{Err: err}) }

// pending is the queue of this node's submissions that have not been applied: the
// sender's side of its link. Sequences are consecutive from head on.
type pending struct {
	subs     []Sub
	at       int       // subs[at] has sequence head
	head     uint64    // sequence of the first one; 0 before anything
	urgent   int       // number of submissions not yet proposed that are not lazy
	next     int       // index in subs of the next one to propose
	lazyFrom time.Time // when the oldest unproposed lazy one arrived
	offered  int       // bytes of those that are offered to another node
	sent     uint64    // highest sequence that anybody else was told of
}

func (p *pending) len() int { return len(p.subs) - p.at }

func (p *pending) push(s Sub, now time.Time) {
	if p.head == 0 {
		p.head = 1
	}
	if p.at > 0 && len(p.subs) == cap(p.subs) {
		n := copy(p.subs, p.subs[p.at:])
		clear(p.subs[n:])
		p.subs, p.next, p.at = p.subs[:n], p.next-p.at, 0
	}
	if !s.Lazy {
		p.urgent++
	} else if p.lazyFrom.IsZero() {
		p.lazyFrom = now
	}
	p.subs = append(p.subs, s)
}

// due says whether something should be proposed now.
func (p *pending) due(now time.Time) bool {
	return p.urgent > 0 || !p.lazyFrom.IsZero() && now.Sub(p.lazyFrom) >= settleDelay
}

func (p *pending) lazyUntil() time.Time {
	if p.lazyFrom.IsZero() || p.next >= len(p.subs) {
		return time.Time{}
	}
	return p.lazyFrom.Add(settleDelay)
}

// nextLen returns the length of the next unproposed submission, 0 if there is none.
func (p *pending) nextLen() int {
	if p.next >= len(p.subs) {
		return 0
	}
	return p.subs[p.next].Chunk.Len()
}

// take returns the next unproposed submission and its sequence.
func (p *pending) take() (s *Sub, seq uint64, ok bool) {
	if p.next >= len(p.subs) {
		return nil, 0, false
	}
	s = &p.subs[p.next]
	seq = p.head + uint64(p.next-p.at)
	p.sent = max(p.sent, seq)
	p.next++
	if !s.Lazy {
		p.urgent--
	}
	if p.next == len(p.subs) {
		p.lazyFrom = time.Time{}
	}
	return s, seq, true
}

// pop removes the first one if it has this sequence.
func (p *pending) pop(seq uint64) (Sub, bool) {
	if p.at >= len(p.subs) || p.head != seq {
		return Sub{}, false
	}
	s := p.subs[p.at]
	if p.next == p.at { // applied through another leader before this node proposed it
		p.take()
	} else {
		p.offered = max(0, p.offered-s.Chunk.Len())
	}
	p.subs[p.at] = Sub{}
	p.at++
	p.head++
	if p.at == len(p.subs) {
		p.subs, p.at, p.next = p.subs[:0], 0, 0
	}
	return s, true
}

// rewind makes everything unproposed again, for a new term.
func (p *pending) rewind(now time.Time) {
	p.next, p.urgent, p.offered = p.at, 0, 0
	for _, s := range p.subs[p.at:] {
		if !s.Lazy {
			p.urgent++
		}
	}
	p.lazyFrom = time.Time{}
	if p.len() > 0 {
		p.lazyFrom = now
	}
}

// offer takes what follows what was offered, as the link offers it to another leader:
// at most so many parts, and no more than so many bytes that are offered and not applied,
// but for one part at least.
func (p *pending) offer(link uint64, parts, bytes int) (out []msg.Part) {
	for len(out) < parts && p.next < len(p.subs) {
		if n := p.nextLen(); p.offered > 0 && p.offered+n > bytes {
			break
		}
		s, seq, _ := p.take()
		p.offered += s.Chunk.Len()
		out = append(out, msg.Part{Link: link, Seq: seq, Sub: append(msg.Submission(nil), s.Chunk.Bytes()...)})
	}
	return out
}

// back makes what begins with a sequence unoffered again.
func (p *pending) back(seq uint64) {
	if seq < p.head {
		return // applied: what told so is old
	}
	for at := p.at + int(seq-p.head); p.next > at; {
		p.next--
		s := &p.subs[p.next]
		p.offered = max(0, p.offered-s.Chunk.Len())
		if !s.Lazy {
			p.urgent++
		}
	}
}

// shed takes out what brings messages in and has no sequence yet that anybody knows.
func (p *pending) shed(out func(Sub)) {
	if p.len() == 0 {
		return
	}
	from := p.at
	if p.sent >= p.head {
		from += int(p.sent - p.head + 1)
	}
	from = max(from, p.next)
	n := from
	for i := from; i < len(p.subs); i++ {
		if s := p.subs[i]; s.messages {
			if !s.Lazy {
				p.urgent--
			}
			out(s)
		} else {
			p.subs[n] = s
			n++
		}
	}
	clear(p.subs[n:])
	p.subs = p.subs[:n]
	if p.next >= n {
		p.lazyFrom = time.Time{}
	}
}
