package msg

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// TestBuilderKeepsOrderPerLog builds random submissions and reads them back: each log
// must see exactly its messages, in the order of the calls, whatever was grouped.
func TestBuilderKeepsOrderPerLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b Builder
		want := map[Target][]string{}
		n := rapid.IntRange(1, 60).Draw(t, "messages")
		for i := range n {
			var targets []Target
			for range rapid.IntRange(1, 3).Draw(t, "targets") {
				tg := Target{Log: rapid.Uint64Range(1, 4).Draw(t, "log"), Lane: rapid.Uint8Range(0, 1).Draw(t, "lane")}
				dup := false
				for _, x := range targets {
					dup = dup || x == tg
				}
				if !dup {
					targets = append(targets, tg)
				}
			}
			body := fmt.Sprintf("%d-%s", i, bytes.Repeat([]byte("x"), rapid.IntRange(0, 300).Draw(t, "size")))
			e := Envelope{Format: FormatAMQP091, Key: []byte("k"), Exchange: []byte("ex"), Props: []byte{1, 2}}
			if rapid.IntRange(0, 9).Draw(t, "cond") == 0 {
				b.AppendIf(targets, Cond{ExpectTail: true, Tail: 7}, &e, []byte(body))
			} else {
				b.Append(targets, &e, []byte(body[:1]), []byte(body[1:]))
			}
			for _, tg := range targets {
				want[tg] = append(want[tg], body)
			}
		}
		b.Settle(9, 1, Rejected, []Range{{3, 4}, {10, 1}})
		c := b.Finish()
		defer c.Release()
		if !b.Empty() {
			t.Fatal("builder not empty after Finish")
		}
		checkSubmission(t, c.Bytes(), want)
	})
}

func checkSubmission(t *rapid.T, raw []byte, want map[Target][]string) {
	s, err := ParseSubmission(raw)
	if err != nil || !s.Verify() {
		t.Fatalf("parse: %v", err)
	}
	got := map[Target][]string{}
	var op, again Op
	settles := 0
	err = s.Ops(&op, func(_ int, op *Op) bool {
		if op.Kind == OpSettle {
			settles++
			if op.Log != 9 || op.Lane != 1 || op.Reason != Rejected || len(op.Ranges) != 2 || op.Ranges[1] != (Range{10, 1}) {
				t.Fatalf("settle came back as %+v", op)
			}
			return true
		}
		if err := s.OpAt(op.Pos, &again); err != nil || again.N != op.N {
			t.Fatalf("OpAt: %v", err)
		}
		run, total := s.Records(&again), 0
		for {
			raw, err := run.Next()
			if err != nil {
				t.Fatal(err)
			}
			if raw == nil {
				break
			}
			r, n, err := ParseRecord(raw)
			if err != nil || string(r.Exchange) != "ex" || string(r.Key) != "k" {
				t.Fatalf("record %+v: %v", r, err)
			}
			total += n
			for _, tg := range op.Targets {
				got[tg] = append(got[tg], string(r.Body))
			}
		}
		if total != op.Bytes {
			t.Fatalf("bytes %d, records %d", op.Bytes, total)
		}
		return true
	})
	if err != nil || settles != 1 {
		t.Fatalf("walk: %v, settles %d", err, settles)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got  %v\nwant %v", got, want)
	}
}

func TestBatchRoundTripAndDamage(t *testing.T) {
	var b Builder
	var parts []Part
	for i := range 3 {
		b.Append([]Target{{Log: uint64(i + 1)}}, &Envelope{}, []byte("hello"))
		sub, err := ParseSubmission(b.Finish().Bytes())
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, Part{Link: 5, Seq: uint64(i), Sub: sub})
	}
	raw := AppendBatchHeader(nil, 99, 3, parts)
	crc := CRC(raw)
	for _, p := range parts {
		raw = append(raw, p.Sub...)
	}
	if !VerifyBatch(raw, crc) {
		t.Fatal("sound batch refused")
	}
	bt, err := ParseBatch(raw)
	if err != nil || bt.TimeMS != 99 || bt.Len() != 3 || bt.Proposal != 3 {
		t.Fatalf("%+v %v", bt, err)
	}
	for i := range raw {
		raw[i] ^= 4
		if VerifyBatch(raw, crc) {
			t.Fatalf("flipped bit in byte %d not noticed", i)
		}
		raw[i] ^= 4
	}
}

// TestOperationsComeBack encodes what transactions and preconditions are made of:
// requirements come before the appends, whenever they were added.
func TestOperationsComeBack(t *testing.T) {
	var b Builder
	b.Forced = true
	tx, rs := TxID{Node: 3, Incarnation: 1 << 31, N: 1 << 40}, []Range{{5, 1}, {9, 3}}
	cond := Cond{Producer: 4, Epoch: 2, Seq: 9, Wrap: true, Dedup: []byte("an id")}
	b.Hold(tx, OutboxLog(7), 2, rs)
	b.AppendIf([]Target{{Log: 8}}, cond, &Envelope{}, []byte("x"))
	b.Unhold(tx)
	b.Sweep(3, 17)
	b.Require(8, 1, rs)
	limit := b.Len()
	c := b.Finish()
	defer c.Release()
	if c.Len() > limit {
		t.Errorf("%d bytes, at most %d were announced", c.Len(), limit)
	}
	s, err := ParseSubmission(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var got []Op
	var op Op
	err = s.Ops(&op, func(_ int, op *Op) bool {
		o := *op
		o.Ranges = append([]Range(nil), op.Ranges...)
		got = append(got, o)
		return true
	})
	if err != nil || len(got) != 5 {
		t.Fatalf("%d operations, %v", len(got), err)
	}
	req, app, hold, unhold, sweep := got[0], got[1], got[2], got[3], got[4]
	if req.Kind != OpRequire || req.Log != 8 || req.Lane != 1 || fmt.Sprint(req.Ranges) != fmt.Sprint(rs) {
		t.Errorf("require %+v", req)
	}
	if app.Kind != OpAppend || !app.Forced || fmt.Sprint(app.Cond) != fmt.Sprint(cond) {
		t.Errorf("append %+v", app)
	}
	if hold.Kind != OpHold || hold.Tx != tx || hold.Log != OutboxLog(7) || hold.Lane != 2 || fmt.Sprint(hold.Ranges) != fmt.Sprint(rs) {
		t.Errorf("hold %+v", hold)
	}
	if unhold.Kind != OpUnhold || unhold.Tx != tx || sweep.Kind != OpSweep || sweep.Tx != (TxID{Node: 3, Incarnation: 17}) {
		t.Errorf("unhold %+v, sweep %+v", unhold, sweep)
	}
	if !IsOutbox(hold.Log) || OutboxTarget(hold.Log) != 7 || !IsInternal(hold.Log) || !IsInternal(1<<62|5) || IsInternal(1<<62-1) {
		t.Error("ids of internal logs")
	}
}

// FuzzSubmission feeds arbitrary bytes to everything that reads a submission: it must
// end with an error or without, never panic or read outside.
func FuzzSubmission(f *testing.F) {
	var b Builder
	b.Append([]Target{{Log: 1}}, &Envelope{Key: []byte("a")}, []byte("one"))
	b.Append([]Target{{Log: 2, Lane: 3}, {Log: 1}}, &Envelope{}, []byte("two"))
	b.Append([]Target{{Log: 1}}, &Envelope{}, []byte("three"))
	b.Return(1, 0, true, []Range{{0, 2}})
	b.Reserve(1, 0, 100)
	b.Ensure(1, []byte("profile"))
	b.Seal(1, SealIfEmpty)
	b.Meta([]byte("m"))
	b.AppendIf([]Target{{Log: 5}}, Cond{Dedup: []byte("id"), Producer: 4, Wrap: true}, &Envelope{}, []byte("four"))
	b.AppendLarge([]Target{{Log: 1}}, Cond{}, &Envelope{}, PartsRef{Log: PartsLog(1, 2, 3), Count: 2, Bytes: 9})
	b.Require(1, 0, []Range{{1, 2}})
	b.Hold(TxID{1, 2, 3}, 1, 0, []Range{{1, 2}})
	b.Unhold(TxID{1, 2, 3})
	b.Sweep(1, 4)
	f.Add(b.Finish().Bytes())
	var w PartWriter
	w.Write([]byte("piece"), 5)
	f.Add(w.Finish(PartsLog(1, 2, 3), 1).Bytes())
	f.Fuzz(func(_ *testing.T, raw []byte) {
		if b, err := ParseBatch(raw); err == nil {
			_ = b.Parts(func(p Part, _ int) error { walk(p.Sub); return nil })
		}
		if s, err := ParseSubmission(raw); err == nil {
			walk(s)
		}
	})
}

func walk(s Submission) {
	var op Op
	_ = s.Ops(&op, func(_ int, op *Op) bool {
		if op.Kind == OpAppend || op.Kind == OpBodyPart {
			run := s.Records(op)
			for {
				raw, err := run.Next()
				if err != nil || raw == nil {
					break
				}
				_, _, _ = ParseRecord(raw)
			}
		}
		return true
	})
}

func BenchmarkBuilderAppend(b *testing.B) {
	var bl Builder
	body := make([]byte, 1024)
	tg := []Target{{Log: 1}}
	e := Envelope{Format: FormatAMQP091, Key: []byte("queue"), Props: make([]byte, 16)}
	b.ReportAllocs()
	for b.Loop() {
		bl.Append(tg, &e, body)
		if bl.Full() {
			bl.Finish().Release()
		}
	}
}

func BenchmarkApplyWalk(b *testing.B) {
	var bl Builder
	for range 200 {
		bl.Append([]Target{{Log: 1}}, &Envelope{}, make([]byte, 1024))
	}
	s, _ := ParseSubmission(bl.Finish().Bytes())
	var op Op
	b.ReportAllocs()
	for b.Loop() {
		it := s.Iter()
		for it.Next(&op) {
		}
	}
}
