package hist

import (
	"encoding/json"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestBuckets: each bucket begins where the one before ends, up to the longest
// duration there is, and none is wider than a quarter of its values.
func TestBuckets(t *testing.T) {
	from := int64(0)
	for i := range buckets {
		to := int64(upper(i))
		if bucketOf(from) != i || bucketOf(to) != i {
			t.Fatalf("bucket %d: %d to %d are in %d and %d", i, from, to, bucketOf(from), bucketOf(to))
		}
		if width := to - from; width > from/4 {
			t.Fatalf("bucket %d, %d to %d, is too wide", i, from, to)
		}
		if from = to + 1; i == buckets-1 && to != math.MaxInt64 {
			t.Fatalf("the last bucket ends at %d", to)
		}
	}
}

func durations() *rapid.Generator[[]int64] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) int64 {
		return rapid.Int64Range(0, 1<<rapid.IntRange(0, 62).Draw(t, "bits")).Draw(t, "ns")
	}), 0, 100)
}

func record(ns []int64) Snapshot {
	var h Histogram
	for _, n := range ns {
		h.Record(time.Duration(n))
	}
	return h.Snapshot()
}

// TestQuantiles: against a sorted list, a quantile is never too low and at most a
// quarter too high.
func TestQuantiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ns := durations().Draw(t, "durations")
		s := record(ns)
		if s.Count() != uint64(len(ns)) {
			t.Fatalf("count %d", s.Count())
		}
		if len(ns) == 0 {
			if s.Quantile(0.5) != 0 || s.Max() != 0 {
				t.Fatal("a quantile of nothing")
			}
			return
		}
		slices.Sort(ns)
		if s.Max() != time.Duration(ns[len(ns)-1]) || s.Quantile(1) != s.Max() {
			t.Fatalf("max %d, quantile 1 %d", s.Max(), s.Quantile(1))
		}
		q := rapid.Float64Range(0, 1).Draw(t, "q")
		want := ns[max(0, int(math.Ceil(q*float64(len(ns))))-1)]
		if got := int64(s.Quantile(q)); got < want || got-want > want/4 {
			t.Fatalf("quantile %g is %d, want %d", q, got, want)
		}
	})
}

// TestSinceAndAdd: what came between two snapshots, and two histograms together.
func TestSinceAndAdd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := durations().Draw(t, "before"), durations().Draw(t, "after")
		before, only, all := record(a), record(b), record(append(slices.Clone(a), b...))
		d := all.Since(&before)
		if d.counts != only.counts {
			t.Fatal("the difference isn't what came in between")
		}
		if m := only.Max(); d.Max() < m || d.Max()-m > m/4 {
			t.Fatalf("max %d of the difference, want %d", d.Max(), m)
		}
		before.Add(&only)
		if before != all {
			t.Fatal("the sum isn't the whole")
		}
	})
}

func TestJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := record(rapid.SliceOf(rapid.Int64Range(0, int64(time.Hour))).Draw(t, "durations"))
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Snapshot
		if err := json.Unmarshal(b, &back); err != nil || back != s {
			t.Fatalf("%s: %v", b, err)
		}
	})
	b, err := json.Marshal(record([]int64{1000, 1000, 5_000_000}))
	want := `{"count":3,"p50_us":1.023,"p99_us":5000,"p99_9_us":5000,"max_us":5000,"buckets_ns":[[1023,2],[5242879,1]]}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v", b, err)
	}
	var s Snapshot
	if err := json.Unmarshal([]byte(`{"buckets_ns":[[1000,1]]}`), &s); err == nil {
		t.Error("took a bucket that there isn't")
	}
}

func TestConcurrent(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 1000 {
				h.Record(time.Duration(n*4 + i))
				if n%100 == 0 {
					h.Snapshot()
				}
			}
		})
	}
	wg.Wait()
	if s := h.Snapshot(); s.Count() != 4000 || s.Max() != 3999 {
		t.Errorf("%d, max %d", s.Count(), s.Max())
	}
	h.Record(-time.Second)
	if s := h.Snapshot(); s.counts[0] != 2 {
		t.Error("a negative duration isn't 0")
	}
}

func TestRecordAllocatesNothing(t *testing.T) {
	var h Histogram
	if n := testing.AllocsPerRun(100, func() { h.Record(time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	var h Histogram
	b.ReportAllocs()
	for i := range b.N {
		h.Record(time.Duration(i))
	}
}
