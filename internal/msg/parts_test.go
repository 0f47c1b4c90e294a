package msg

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/buf"
)

// A body that is written in pieces of any size comes back whole from its parts, each of
// which is a sound submission.
func TestPartsJoinedAreTheBody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := bytes.Repeat([]byte("0123456789abcdef"), rapid.IntRange(1, 40_000).Draw(t, "blocks"))
		size := rapid.SampledFrom([]int{1 << 10, 5000, 64 << 10, PartBytesMax}).Draw(t, "part")
		log := PartsLog(1, 2, 3)
		var w PartWriter
		var got []byte
		number := uint32(0)
		finish := func() {
			if c := w.Cap(); c > buf.Get(size+partOverhead).Cap() {
				t.Fatalf("a part of up to %d bytes takes %d", size, c)
			}
			c := w.Finish(log, number)
			defer c.Release()
			s, err := ParseSubmission(c.Bytes())
			if err != nil || !s.Verify() || s.NumOps() != 1 {
				t.Fatalf("part %d: %v", number, err)
			}
			var op Op
			it := s.Iter()
			if !it.Next(&op) || op.Kind != OpBodyPart || op.Log != log || op.Number != number || op.N != 1 {
				t.Fatalf("part %d: %+v, %v", number, op, it.Err())
			}
			run := s.Records(&op)
			raw, err := run.Next()
			if err != nil || len(raw) != op.Bytes {
				t.Fatalf("part %d: record of %d bytes, operation says %d: %v", number, len(raw), op.Bytes, err)
			}
			r, _, err := ParseRecord(raw)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r.Body...)
			number++
		}
		for rest := body; len(rest) > 0; {
			piece := rest[:min(len(rest), rapid.IntRange(1, 100_000).Draw(t, "piece"))]
			rest = rest[len(piece):]
			for len(piece) > 0 {
				n := w.Write(piece, size)
				piece = piece[n:]
				if w.Len() == size {
					finish()
				} else if len(piece) > 0 {
					t.Fatalf("a part with %d of %d bytes takes no more", w.Len(), size)
				}
			}
		}
		if w.Len() > 0 {
			finish()
		}
		if !bytes.Equal(got, body) {
			t.Fatalf("%d bytes came back of %d", len(got), len(body))
		}
	})
}

func TestLargeMessageRefersToItsParts(t *testing.T) {
	ref := PartsRef{Log: PartsLog(3, 1<<24-1, PartsLogsMax-1), Count: 512, Bytes: 128 << 20}
	if !IsParts(ref.Log) || !IsInternal(ref.Log) || IsParts(1<<63|5) || IsInternal(77) {
		t.Fatal("kinds of logs are not told apart")
	}
	if node, inc := PartsOrigin(ref.Log); node != 3 || inc != 1<<24-1 {
		t.Fatalf("made by node %d, start %d", node, inc)
	}
	var b Builder
	to := []Target{{Log: 1}}
	b.Append(to, &Envelope{Key: []byte("k")}, []byte("before"))
	b.AppendLarge(to, Cond{}, &Envelope{Key: []byte("k")}, ref)
	b.Append(to, &Envelope{Key: []byte("k")}, []byte("after"))
	c := b.Finish()
	defer c.Release()
	s, err := ParseSubmission(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var op Op
	var seen []string
	err = s.Ops(&op, func(_ int, op *Op) bool {
		run := s.Records(op)
		raw, err := run.Next()
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := ParseRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		if r.Parts != op.Parts {
			t.Fatalf("record refers to %+v, operation to %+v", r.Parts, op.Parts)
		}
		if op.Parts.Count > 0 {
			if op.Parts != ref || r.BodyLen() != ref.Bytes || len(r.Body) != 0 {
				t.Fatalf("parts %+v, body of %d bytes", op.Parts, r.BodyLen())
			}
			seen = append(seen, "large")
			return true
		}
		seen = append(seen, string(r.Body))
		return true
	})
	if err != nil || len(seen) != 3 || seen[0] != "before" || seen[1] != "large" || seen[2] != "after" {
		t.Fatalf("%q, %v", seen, err)
	}
}

// Memory per part and MiB of a body: what the size of a part costs.
func BenchmarkParts(b *testing.B) {
	frame := make([]byte, 131064)
	for _, size := range []int{64<<10 - partOverhead, PartBytesMax, 1<<20 - partOverhead} {
		b.Run(byteName(size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(frame)))
			var w PartWriter
			n := uint32(0)
			for b.Loop() {
				for rest := frame; len(rest) > 0; {
					rest = rest[w.Write(rest, size):]
					if w.Len() == size {
						w.Finish(PartsLog(1, 1, 1), n).Release()
						n++
					}
				}
			}
			w.Reset()
		})
	}
}

func byteName(n int) string {
	switch {
	case n > 512<<10:
		return "1MiB"
	case n > 128<<10:
		return "256KiB"
	}
	return "64KiB"
}
