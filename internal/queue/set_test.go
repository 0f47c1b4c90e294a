package queue

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
)

// checkSet verifies the invariants that Set and chunkData state.
func checkSet(s *Set) error {
	var count, prev uint64
	for i := range s.chunks {
		c := &s.chunks[i]
		if i > 0 && c.key < prev {
			return fmt.Errorf("entry %d overlaps or is out of order", i)
		}
		if i > 0 && c.key == prev && c.full() && s.chunks[i-1].full() {
			return fmt.Errorf("full entries %d and %d are not joined", i-1, i)
		}
		if c.n == 0 || c.span == 0 || c.span > 1 && !c.full() {
			return fmt.Errorf("entry %d: n %d span %d", i, c.n, c.span)
		}
		if !c.full() {
			n, last := uint32(0), -2
			if c.bits != nil {
				n = c.bits.count(0, chunkSize-1)
			} else {
				for _, r := range c.runs {
					if int(r.first) <= last+1 || r.last < r.first {
						return fmt.Errorf("entry %d: runs %v", i, c.runs)
					}
					last = int(r.last)
					n += uint32(r.last-r.first) + 1
				}
			}
			if n != c.n || len(c.runs) > runsMax {
				return fmt.Errorf("entry %d: n %d, has %d in %d runs", i, c.n, n, len(c.runs))
			}
		}
		count += c.span * uint64(c.n)
		prev = c.end()
	}
	if count != s.count {
		return fmt.Errorf("count %d, has %d", s.count, count)
	}
	return nil
}

const modelChunks = 6

// position draws offsets that like the edges of chunks.
func position() *rapid.Generator[uint64] {
	return rapid.Custom(func(t *rapid.T) uint64 {
		if rapid.Bool().Draw(t, "edge") {
			c := rapid.Uint64Range(0, modelChunks).Draw(t, "chunk")
			d := rapid.IntRange(-2, 2).Draw(t, "delta")
			return uint64(min(max(int64(c<<chunkBits)+int64(d), 0), modelChunks<<chunkBits))
		}
		return rapid.Uint64Range(0, modelChunks<<chunkBits).Draw(t, "at")
	})
}

func TestSetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Set
		model := make(byteModel, modelChunks<<chunkBits)
		change := model.set
		span := func(t *rapid.T) (uint64, uint64) {
			a, b := position().Draw(t, "a"), position().Draw(t, "b")
			if rapid.Bool().Draw(t, "short") {
				b = min(a+rapid.Uint64Range(0, 300).Draw(t, "n"), modelChunks<<chunkBits)
			}
			return min(a, b), max(a, b)
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				a, b := span(t)
				if got, want := s.AddRange(a, b), change(a, b, true); got != want {
					t.Fatalf("AddRange(%d, %d) = %d, want %d", a, b, got, want)
				}
			},
			"remove": func(t *rapid.T) {
				a, b := span(t)
				if got, want := s.RemoveRange(a, b), change(a, b, false); got != want {
					t.Fatalf("RemoveRange(%d, %d) = %d, want %d", a, b, got, want)
				}
			},
			"stride": func(t *rapid.T) { // many runs, so that bitmaps come and go
				a, step := position().Draw(t, "a"), rapid.Uint64Range(2, 60).Draw(t, "step")
				add := rapid.Bool().Draw(t, "add")
				for i := a; i < min(a+6_000, uint64(len(model))); i += step {
					if add {
						s.AddRange(i, i+1)
					} else {
						s.RemoveRange(i, i+1)
					}
					model.set(i, i+1, add)
				}
			},
			"trim": func(t *rapid.T) {
				a := rapid.Uint64Range(0, 1<<chunkBits).Draw(t, "a")
				s.TrimBelow(a)
				change(0, a, false)
			},
			"compare": func(t *rapid.T) { compareSet(t, &s, model) },
			"": func(t *rapid.T) {
				if err := checkSet(&s); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}

// byteModel is a set of offsets, a byte for each: 1 for members. The functions of
// package bytes keep it quick under the race detector.
type byteModel []byte

var memberBytes = [2][]byte{make([]byte, modelChunks<<chunkBits), bytes.Repeat([]byte{1}, modelChunks<<chunkBits)}

func (m byteModel) set(from, to uint64, member bool) (changed uint64) {
	v := 0
	if member {
		v = 1
	}
	changed = to - from - uint64(bytes.Count(m[from:to], memberBytes[v][:1]))
	copy(m[from:to], memberBytes[v])
	return changed
}

// next returns the first offset at or after off that is a member, or isn't.
func (m byteModel) next(off uint64, member byte) (uint64, bool) {
	if i := bytes.IndexByte(m[off:], member); i >= 0 {
		return off + uint64(i), true
	}
	return uint64(len(m)), false
}

func (m byteModel) ranges() (rs []msg.Range) {
	for at := uint64(0); ; {
		from, ok := m.next(at, 1)
		if !ok {
			return rs
		}
		at, _ = m.next(from, 0)
		rs = append(rs, msg.Range{First: from, Count: at - from})
	}
}

func compareSet(t *rapid.T, s *Set, model byteModel) {
	t.Helper()
	if got, want := s.AppendRanges(nil, 0, math.MaxUint64), model.ranges(); !slices.Equal(got, want) {
		t.Fatalf("%d ranges, want %d", len(got), len(want))
	}
	if got, want := s.Count(), uint64(bytes.Count(model, []byte{1})); got != want {
		t.Fatalf("Count = %d, want %d", got, want)
	}
	for range 20 {
		a, b := position().Draw(t, "from"), position().Draw(t, "to")
		want := uint64(0)
		if a < b {
			want = uint64(bytes.Count(model[a:b], []byte{1}))
		}
		if got := s.CountRange(a, b); got != want {
			t.Fatalf("CountRange(%d, %d) = %d, want %d", a, b, got, want)
		}
		wantSet, ok := model.next(a, 1)
		if got, has := s.NextSet(a); has != ok || ok && got != wantSet {
			t.Fatalf("NextSet(%d) = %d, %v, want %d", a, got, has, wantSet)
		}
		if wantClear, _ := model.next(a, 0); s.NextClear(a) != wantClear {
			t.Fatalf("NextClear(%d) = %d, want %d", a, s.NextClear(a), wantClear)
		}
		if a < uint64(len(model)) && s.Contains(a) != (model[a] == 1) {
			t.Fatalf("Contains(%d) = %v", a, model[a] != 1)
		}
	}
}

// A range costs by chunks that exist, not by its length.
func TestSetHugeRange(t *testing.T) {
	var s Set
	if n := s.AddRange(3, 10_000_003); n != 10_000_000 {
		t.Fatal(n)
	}
	if n := s.AddRange(5, 1<<60); n != 1<<60-10_000_003 {
		t.Fatal(n)
	}
	if n := s.RemoveRange(1<<40+5, 1<<50+9); n != 1<<50-1<<40+4 {
		t.Fatal(n)
	}
	if n := s.CountRange(1<<40, 1<<50+10); n != 6 {
		t.Fatal(n)
	}
	if err := checkSet(&s); err != nil || len(s.chunks) > 8 {
		t.Fatal(err, len(s.chunks))
	}
}

// A chunk goes through its forms: bitmap to full, full to runs, bitmap back to runs.
func TestChunkForms(t *testing.T) {
	alternate := func() (s Set) {
		for i := uint64(0); i < chunkSize; i += 2 {
			s.AddRange(i, i+1)
		}
		if s.chunks[0].bits == nil {
			t.Fatal("not a bitmap")
		}
		return s
	}
	s := alternate()
	s.AddRange(1, chunkSize)
	if err := checkSet(&s); err != nil || !s.chunks[0].full() || s.chunks[0].bits != nil {
		t.Fatal("not full", err)
	}
	s.RemoveRange(5, 6)
	if err := checkSet(&s); err != nil || len(s.chunks[0].runs) != 2 {
		t.Fatal("not runs", err)
	}
	s = alternate()
	s.RemoveRange(100, chunkSize-100)
	if err := checkSet(&s); err != nil || s.chunks[0].bits != nil || s.Count() != 100 {
		t.Fatal("not runs", err, s.Count())
	}
}

// Every 1,000th of 100 M never settled: runs, though the settling was random at first.
func TestSetStragglersMemory(t *testing.T) {
	var s Set
	rnd := rand.New(rand.NewPCG(1, 2))
	const total = 50 << chunkBits // a thirtieth of the case, the rest is alike
	for _, i := range rnd.Perm(total / 4) {
		if i%250 != 0 { // four at a time
			s.AddRange(uint64(i)*4, uint64(i)*4+4)
		}
	}
	bytes := 0
	for i := range s.chunks {
		if s.chunks[i].bits != nil {
			t.Fatalf("chunk %d is a bitmap", i)
		}
		bytes += cap(s.chunks[i].runs) * 4
	}
	t.Logf("%d offsets, %d stragglers: %d bytes of runs", total, total/1000, bytes)
	if bytes > total/1000*10 {
		t.Errorf("%d bytes for %d stragglers", bytes, total/1000)
	}
}

// In the steady state of a queue that settles slightly out of order nothing is allocated.
func TestSetSteadyStateAllocs(t *testing.T) {
	n := Lane{tail: 1 << 40}
	at := uint64(0)
	avg := testing.AllocsPerRun(1000, func() {
		n.settle(at+100, at+200)
		n.settle(at+300, at+400)
		n.settle(at, at+100)
		n.settle(at+200, at+300)
		at += 400
	})
	if avg != 0 || n.low != at {
		t.Errorf("%v allocations, low %d want %d", avg, n.low, at)
	}
}

func TestCountsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s counts
		model := make([]uint32, 4*countChunk)
		span := func(t *rapid.T) (uint64, uint64) {
			a := rapid.Uint64Range(0, uint64(len(model)-1)).Draw(t, "a")
			n := rapid.OneOf(rapid.Uint64Range(1, 20), rapid.Uint64Range(1, 3*countChunk)).Draw(t, "n")
			return a, min(a+n, uint64(len(model)))
		}
		t.Repeat(map[string]func(*rapid.T){
			"raise": func(t *rapid.T) {
				a, b := span(t)
				s.raise(a, b)
				for i := a; i < b; i++ {
					model[i]++
				}
			},
			"remove": func(t *rapid.T) {
				a, b := span(t)
				s.remove(a, b)
				clear(model[a:b])
			},
			"": func(t *rapid.T) {
				for i := uint64(0); i < uint64(len(model)); {
					n, end := s.get(i)
					if end <= i {
						t.Fatalf("get(%d) ends at %d", i, end)
					}
					for ; i < min(end, uint64(len(model))); i++ {
						if model[i] != n {
							t.Fatalf("count of %d is %d, want %d", i, n, model[i])
						}
					}
				}
				for i, p := range s.parts {
					if len(p.runs) == 0 || i > 0 && p.key <= s.parts[i-1].key {
						t.Fatalf("part %d: %+v", i, p)
					}
					for j, r := range p.runs {
						if j > 0 && (r.first <= p.runs[j-1].last || r.n == p.runs[j-1].n && r.first == p.runs[j-1].last+1) {
							t.Fatalf("runs %v", p.runs)
						}
					}
				}
			},
		})
	})
}

func TestCountsSaturate(t *testing.T) {
	var s counts
	for range math.MaxUint16 + 10 {
		s.raise(7, 8)
	}
	if n, _ := s.get(7); n != math.MaxUint16 {
		t.Fatal(n)
	}
}

func BenchmarkSettleOutOfOrder(b *testing.B) {
	const window = 1 << 20
	perm := rand.New(rand.NewPCG(3, 4)).Perm(window)
	n := Lane{}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if i%window == 0 {
			n.tail += window
		}
		at := n.tail - window + uint64(perm[i%window])
		n.settle(at, at+1)
		i++
	}
}

func BenchmarkPurge10M(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		n := Lane{tail: 10_000_001}
		if n.settle(1, 10_000_001) != 10_000_000 { // offset 0 is in flight
			b.Fatal("not settled")
		}
		_ = n.AppendUnsettled(nil, msg.Range{Count: 10_000_001})
	}
}
