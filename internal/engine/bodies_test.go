package engine

import (
	"strings"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
)

// part submits a body of one part.
func part(s *Shard, log msg.LogID, body string) msg.PartsRef {
	var w msg.PartWriter
	w.Write([]byte(body), len(body))
	s.Submit(shard.Sub{Chunk: w.Finish(log, 0)})
	return msg.PartsRef{Log: log, Count: 1, Bytes: uint64(len(body))}
}

func (s *Shard) has(t *testing.T, log msg.LogID) (has bool) {
	t.Helper()
	if !s.Call(func() { has = s.m.ledger.Has(log) && s.m.places.lanes[lane{log, 0}] != nil }) {
		t.Fatal("the shard has stopped")
	}
	return has
}

// A submission whose requirement does not hold appends nothing, and the body that went
// ahead of it goes; one that holds moves a message with its body from queue to queue.
func TestBodyOfARefusedSubmission(t *testing.T) {
	s, _ := volatileShard(t)
	to := func(log msg.LogID) []msg.Target { return []msg.Target{{Log: log}} }
	one := []msg.Range{{First: 0, Count: 1}}
	body := part(s, msg.PartsLog(1, 1, 1), "first")
	_, err := s.Do(func(b *msg.Builder) {
		b.AppendLarge(to(1), msg.Cond{}, &msg.Envelope{}, body)
		b.Ensure(1, nil)
		b.Ensure(2, nil)
	})
	if err != nil || s.has(t, body.Log) {
		t.Fatalf("a body is there whose queue was not: %v", err)
	}
	body = part(s, msg.PartsLog(1, 1, 2), "second")
	if _, err := s.Do(func(b *msg.Builder) { b.AppendLarge(to(1), msg.Cond{}, &msg.Envelope{}, body) }); err != nil || !s.has(t, body.Log) {
		t.Fatalf("not appended: %v", err)
	}
	move := func(from, into msg.LogID, ref msg.PartsRef) shard.Result {
		res, err := s.Do(func(b *msg.Builder) {
			b.Require(from, 0, one)
			b.AppendLarge(to(into), msg.Cond{}, &msg.Envelope{}, ref)
			b.Settle(from, 0, msg.Acked, one)
		})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if move(1, 2, body).Refused || !s.has(t, body.Log) {
		t.Fatal("not moved with its body")
	}
	other := part(s, msg.PartsLog(1, 1, 3), "third")
	if !move(1, 2, other).Refused || s.has(t, other.Log) || !s.has(t, body.Log) {
		t.Fatal("moved twice, or the body of what was refused is left")
	}
	if _, err := s.Do(func(b *msg.Builder) { b.Delete(body.Log) }); err != nil || !s.has(t, body.Log) {
		t.Fatal("a body went while a message has it")
	}
	if _, err := s.Do(func(b *msg.Builder) { b.Settle(2, 0, msg.Rejected, one) }); err != nil || s.has(t, body.Log) {
		t.Fatal("a body is there without its message")
	}
	s.Call(func() {
		if s.m.ledger.Len() != 2 {
			t.Errorf("%d logs are left", s.m.ledger.Len())
		}
	})
}

// A large message is delivered alone and counts for its whole size.
func TestLargeMessageCountsWhole(t *testing.T) {
	s, _ := volatileShard(t)
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	var b msg.Builder
	appendTo(&b, 1, 3, 10)
	s.Submit(shard.Sub{Chunk: b.Finish()})
	body := part(s, msg.PartsLog(1, 1, 1), strings.Repeat("x", 5000))
	_, err := s.Do(func(b *msg.Builder) {
		b.AppendLarge([]msg.Target{{Log: 1}}, msg.Cond{}, &msg.Envelope{}, body)
		appendTo(b, 1, 2, 10)
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Call(func() {
		at := func(off msg.Offset) (uint64, uint64) {
			_, n, bytes := s.m.Locate(1, 0, off, 100)
			return n, bytes
		}
		if n, bytes := at(0); n != 3 || bytes > 1000 {
			t.Errorf("%d messages of %d bytes from 0 on", n, bytes)
		}
		if n, bytes := at(3); n != 1 || bytes < 5000 || bytes > 6000 {
			t.Errorf("%d messages of %d bytes from 3 on", n, bytes)
		}
		if n, bytes := at(4); n != 2 || bytes > 1000 {
			t.Errorf("%d messages of %d bytes from 4 on", n, bytes)
		}
	})
}
