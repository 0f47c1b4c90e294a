package torture

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// script plays events into a checker with a clock of its own.
type script struct {
	*Checker
	t time.Time
}

func newScript() *script {
	s := &script{t: time.Unix(1000, 0)}
	s.Checker = NewChecker(Limits{Grace: time.Second, Window: 3, InFlight: 2}, func() time.Time { return s.t })
	return s
}

// publish attempts and confirms n messages from publisher 1 to queue 2.
func (s *script) publish(n int) (ids []ID) {
	for range n {
		id := s.Attempt(1, 2)
		s.Confirmed(id)
		ids = append(ids, id)
	}
	return ids
}

func (s *script) get(id ID, redelivered bool) {
	s.Delivered(Delivery{ID: id, From: id.Queue, Redelivered: redelivered})
}

// consume delivers, acks and fences.
func (s *script) consume(ids ...ID) {
	for _, id := range ids {
		s.get(id, false)
		s.Acked(id)
	}
	s.Fenced(ids)
}

// kill kills after d.
func (s *script) kill(d time.Duration) {
	s.t = s.t.Add(d)
	s.Killed(s.t)
}

// TestPlantedViolations breaks one promise at a time and expects that one, and
// nothing else, to be found.
func TestPlantedViolations(t *testing.T) {
	for _, table := range []map[string]planted{plantedBasics, plantedAcks, plantedFlagsAndOrder, plantedDamage} {
		for name, tt := range table {
			t.Run(name, func(t *testing.T) {
				s := newScript()
				tt.play(s)
				got, violations := s.Finish()
				onlyViolations := Counts{
					Lost: got.Lost, Unflagged: got.Unflagged, Resurrected: got.Resurrected, AckedNoKill: got.AckedNoKill,
					OverWindow: got.OverWindow, OutOfOrder: got.OutOfOrder, Damaged: got.Damaged,
					LeftInQueues: got.LeftInQueues, Unsettled: got.Unsettled, CutOff: got.CutOff, HalfTxs: got.HalfTxs,
					RestartFailed: got.RestartFailed,
				}
				if onlyViolations != tt.want {
					t.Errorf("got %+v, want %+v", onlyViolations, tt.want)
				}
				if got.Violations() != tt.want.Violations() || (len(violations) == 0) != (tt.want == Counts{}) {
					t.Errorf("%d violations, in words %q", got.Violations(), violations)
				}
				if !strings.Contains(strings.Join(violations, "\n"), tt.says) {
					t.Errorf("%q not in %q", tt.says, violations)
				}
			})
		}
	}
}

// planted is a course of events and what it is to be judged as.
type planted struct {
	play func(s *script)
	want Counts // the violations only
	says string
}

// plantedBasics: loss and redelivery.
var plantedBasics = map[string]planted{
	"nothing": {func(s *script) {
		s.consume(s.publish(3)...)
	}, Counts{}, ""},
	"unconfirmed and gone": {func(s *script) {
		s.Attempt(1, 2)
		s.consume(s.publish(1)...)
	}, Counts{}, ""},
	"unconfirmed and there": {func(s *script) {
		s.consume(s.Attempt(1, 2))
	}, Counts{}, ""},
	"lost": {func(s *script) {
		s.publish(1)
	}, Counts{Lost: 1}, "queue 2 publisher 1 seq 0 confirmed and never received"},
	"received and not settled": {func(s *script) {
		s.get(s.publish(1)[0], false)
	}, Counts{Unsettled: 1}, "not acked at the end"},
	"received, not confirmed, gone": {func(s *script) {
		s.get(s.Attempt(1, 2), false)
		s.kill(0)
	}, Counts{}, ""},
	"confirmed after it was received": {func(s *script) {
		id := s.Attempt(1, 2)
		s.get(id, false)
		s.Confirmed(id)
	}, Counts{Unsettled: 1}, "not acked at the end"},
	"redelivered with the flag": {func(s *script) {
		id := s.publish(1)[0]
		s.get(id, false)
		s.Requeued(id)
		s.get(id, true)
		s.Acked(id)
	}, Counts{}, ""},
	"redelivered without the flag": {func(s *script) {
		id := s.publish(1)[0]
		s.get(id, false)
		s.kill(time.Second)
		s.get(id, false)
		s.Acked(id)
	}, Counts{Unflagged: 1}, "without the redelivered flag"},
	"ack lost in the last moment": {func(s *script) {
		id := s.publish(1)[0]
		s.consume(id)
		s.kill(time.Second - 1)
		s.get(id, true)
		s.Acked(id)
	}, Counts{}, ""},
	"ack never fenced": {func(s *script) {
		id := s.publish(1)[0]
		s.get(id, false)
		s.Acked(id)
		s.kill(time.Hour)
		s.get(id, true)
		s.Acked(id)
	}, Counts{}, ""},
}

// plantedAcks: acks that didn't last.
var plantedAcks = map[string]planted{
	"resurrected": {func(s *script) {
		id := s.publish(1)[0]
		s.consume(id)
		s.kill(time.Second)
		s.get(id, true)
		s.Acked(id)
	}, Counts{Resurrected: 1}, "acked and fenced 1s before"},
	"resurrected by a later kill": {func(s *script) {
		id := s.publish(1)[0]
		s.consume(id)
		s.kill(time.Millisecond) // may cost the ack, but it didn't show
		s.kill(time.Hour)
		s.get(id, true) // judged by the first kill: it could have been lost there
		s.Acked(id)
	}, Counts{}, ""},
	"acked again and resurrected": {func(s *script) {
		id := s.publish(1)[0]
		s.consume(id)
		s.kill(time.Millisecond)
		s.get(id, true)
		s.Acked(id)
		s.Fenced([]ID{id})
		s.kill(time.Minute)
		s.get(id, true)
		s.Acked(id)
	}, Counts{Resurrected: 1}, "1m0s before"},
	"back after its ack without a kill": {func(s *script) {
		id := s.publish(1)[0]
		s.kill(0)
		s.consume(id)
		s.get(id, true)
		s.Acked(id)
	}, Counts{AckedNoKill: 1}, "no kill since"},
}

// plantedFlagsAndOrder: flags on fresh messages, and order.
var plantedFlagsAndOrder = map[string]planted{
	"flagged afresh within the allowance": {func(s *script) {
		ids := s.publish(10)
		s.kill(0)
		s.kill(0)
		for _, id := range ids { // two kills allow for 2*(3+2)
			s.get(id, true)
			s.Acked(id)
		}
	}, Counts{}, ""},
	"flagged afresh too often": {func(s *script) {
		ids := s.publish(6)
		s.kill(0)
		for _, id := range ids {
			s.get(id, true)
			s.Acked(id)
		}
	}, Counts{OverWindow: 1}, "the 6-th in a stretch after 1 kills"},
	"flagged afresh behind an unflagged one": {func(s *script) {
		ids := s.publish(3)
		s.kill(0)
		for i, id := range ids {
			s.get(id, i != 1)
			s.Acked(id)
		}
	}, Counts{OverWindow: 1}, "seq 2 flagged at its first delivery, the 1-th in a stretch after 0 kills"},
	"of several consumers the end isn't known": {func(s *script) {
		ids := s.publish(3)
		s.kill(0)
		for i, id := range ids {
			s.Delivered(Delivery{ID: id, From: 2, Redelivered: i != 1, Scope: 5})
			s.Acked(id)
		}
	}, Counts{}, ""},
	"flagged afresh without a kill": {func(s *script) {
		id := s.publish(1)[0]
		s.get(id, true)
		s.Acked(id)
	}, Counts{OverWindow: 1}, "after 0 kills"},
	"out of order": {func(s *script) {
		ids := s.publish(3)
		s.consume(ids[0], ids[2], ids[1])
	}, Counts{OutOfOrder: 1}, "seq 1 delivered for the first time after seq 2"},
	"order of several consumers is not known": {func(s *script) {
		ids := s.publish(2)
		s.Delivered(Delivery{ID: ids[1], From: 2, Scope: 1})
		s.Delivered(Delivery{ID: ids[0], From: 2, Scope: 2})
		s.Acked(ids[0])
		s.Acked(ids[1])
	}, Counts{}, ""},
}

// plantedDamage: everything else.
var plantedDamage = map[string]planted{
	"wrong queue": {func(s *script) {
		id := s.publish(1)[0]
		s.Delivered(Delivery{ID: id, From: 9})
		s.consume(id)
	}, Counts{Damaged: 1}, "came out of queue 9"},
	"never published": {func(s *script) {
		s.get(ID{Publisher: 1, Queue: 2, Seq: 1 << 31}, false)
	}, Counts{Damaged: 1}, "was published: false"},
	"damaged": {func(s *script) {
		s.Damaged(2, errors.New("bad checksum"))
	}, Counts{Damaged: 1}, "bad checksum"},
	"left over": {func(s *script) {
		s.LeftOver(2, 4)
	}, Counts{LeftInQueues: 4}, "holds 4 messages"},
	"cut off": {func(s *script) {
		s.CutOff(errors.New("501 FRAME_ERROR"))
	}, Counts{CutOff: 1}, "501 FRAME_ERROR"},
	"half a transaction": {func(s *script) {
		t := s.Begin()
		a, b := s.Attempt(1, 2), s.Attempt(1, 3)
		t.Published(a)
		t.Published(b)
		s.consume(a)
	}, Counts{HalfTxs: 1, Vanished: 0}, "only 1 are there"},
	"a commit without its acks": {func(s *script) {
		id := s.publish(1)[0]
		s.get(id, false)
		t := s.Begin()
		t.Acked(id)
		out := s.Attempt(1, 3)
		t.Published(out)
		s.consume(out)
		s.kill(0)
		s.get(id, true)
		s.Acked(id)
		s.Fenced([]ID{id})
	}, Counts{HalfTxs: 1}, "only 1 are there"},
	"an answered commit that did not last": {func(s *script) {
		id := s.publish(1)[0]
		s.get(id, false)
		t := s.Begin()
		t.Acked(id)
		t.Committed()
		s.kill(0)
		s.get(id, true)
		s.Acked(id)
		s.Fenced([]ID{id})
	}, Counts{HalfTxs: 1, Resurrected: 1}, "committed: true"},
	"rolled back": {func(s *script) {
		id := s.Attempt(1, 2)
		s.RolledBack(id)
		s.consume(id)
	}, Counts{HalfTxs: 1}, "was rolled back"},
	"didn't come back": {func(s *script) {
		s.RestartFailed(errors.New("exit status 1"))
	}, Counts{RestartFailed: 1}, "exit status 1"},
}

// TestStatistics checks the counts that are no violations.
func TestStatistics(t *testing.T) {
	s := newScript()
	ids := s.publish(5)
	s.consume(ids[0])
	s.get(ids[1], false)
	s.Requeued(ids[1])
	s.kill(0)
	s.get(ids[0], true)
	s.get(ids[1], true)
	s.get(ids[2], true)
	s.get(ids[3], false)
	s.get(s.Attempt(1, 2), false)
	if missing, unacked := s.Open(); missing != 1 || unacked != 4 {
		t.Errorf("%d missing, %d unacked; want 1 and 4", missing, unacked)
	}
	got, _ := s.Finish()
	want := Counts{
		Attempted: 6, Confirmed: 5, Delivered: 7, Distinct: 5, Redelivered: 2, Requeued: 1,
		AcksLost: 1, Vanished: 1, FreshFlagged: 1, FreshFlagMost: 1, Lost: 1, Unsettled: 4,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestOpenMatchesTheStates draws any events and compares the running counts
// with what the states say in the end.
func TestOpenMatchesTheStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newScript()
		var ids []ID
		for range rapid.IntRange(0, 100).Draw(t, "events") {
			if len(ids) == 0 || rapid.IntRange(0, 3).Draw(t, "new") == 0 {
				ids = append(ids, s.Attempt(1, 2))
				continue
			}
			id := rapid.SampledFrom(ids).Draw(t, "id")
			switch rapid.IntRange(0, 4).Draw(t, "event") {
			case 0:
				s.Confirmed(id)
			case 1:
				s.get(id, rapid.Bool().Draw(t, "flag"))
			case 2:
				s.Acked(id)
			case 3:
				s.Fenced([]ID{id})
			case 4:
				s.kill(0)
			}
		}
		var missing, unacked int
		for _, ms := range s.streams {
			for _, m := range ms {
				if m.confirmed && !m.delivered {
					missing++
				}
				if m.confirmed && m.delivered && !m.acked {
					unacked++
				}
			}
		}
		if gotMissing, gotUnacked := s.Open(); gotMissing != missing || gotUnacked != unacked {
			t.Fatalf("open %d and %d, want %d and %d", gotMissing, gotUnacked, missing, unacked)
		}
	})
}

func TestBodyDetectsDamage(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{1})
	rapid.Check(t, func(t *rapid.T) {
		id := ID{rapid.Uint16().Draw(t, "publisher"), rapid.Uint16().Draw(t, "queue"), rapid.Uint32().Draw(t, "seq")}
		b := EncodeBody(77, id, rapid.IntRange(0, 300).Draw(t, "size"), rng)
		if got, err := DecodeBody(77, b); err != nil || got != id {
			t.Fatalf("got %v, %v, want %v", got, err, id)
		}
		if _, err := DecodeBody(78, b); err == nil {
			t.Fatal("a message of another run is accepted")
		}
		b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := DecodeBody(77, b); err == nil {
			t.Fatal("a flipped bit is not found")
		}
		if _, err := DecodeBody(77, b[:len(b)-1]); err == nil {
			t.Fatal("a cut body is accepted")
		}
	})
}
