// Package hist counts how long things take: a histogram of durations with fixed
// buckets, four to each power of two of nanoseconds, so that a quantile is at most a
// quarter too high. It takes 2 KiB, whatever it counts.
//
// Recording is a few atomic additions and allocates nothing; any goroutine may record
// and take snapshots. A snapshot taken while others record may lack part of what they
// do just then. The package reads no clock.
package hist

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	subBits = 2 // four buckets to a power of two
	subs    = 1 << subBits
	buckets = (63-subBits)*subs + subs
)

// Histogram counts durations. The zero value is ready. It must not be copied.
type Histogram struct {
	counts [buckets]atomic.Uint64
	max    atomic.Int64
}

// Record counts one duration; a negative one, as clocks that were set back give,
// counts as 0.
func (h *Histogram) Record(d time.Duration) {
	n := max(int64(d), 0)
	h.counts[bucketOf(n)].Add(1)
	for old := h.max.Load(); n > old && !h.max.CompareAndSwap(old, n); {
		old = h.max.Load()
	}
}

// bucketOf returns the index of the bucket that holds n nanoseconds. The first four
// hold one value each.
func bucketOf(n int64) int {
	if n < subs {
		return int(n)
	}
	e := bits.Len64(uint64(n)) - 1 - subBits // how many low bits the bucket leaves open
	return e*subs + int(n>>e)
}

// upper returns the greatest value of a bucket.
func upper(i int) time.Duration {
	if i < subs {
		return time.Duration(i)
	}
	e := i/subs - 1
	return time.Duration((uint64(i%subs+subs)+1)<<e - 1)
}

// Snapshot is what a Histogram counted until some moment.
type Snapshot struct {
	counts [buckets]uint64
	max    time.Duration
}

// Snapshot returns what was counted so far.
func (h *Histogram) Snapshot() Snapshot {
	var s Snapshot
	for i := range h.counts {
		s.counts[i] = h.counts[i].Load()
	}
	s.max = time.Duration(h.max.Load())
	return s
}

// Count returns how many durations were counted.
func (s *Snapshot) Count() (n uint64) {
	for _, c := range s.counts {
		n += c
	}
	return n
}

// Max returns the longest duration, 0 if there is none.
func (s *Snapshot) Max() time.Duration { return s.max }

// Quantile returns a duration that the share q, from 0 to 1, of those counted didn't
// exceed: the upper end of its bucket, at most Max. 0 if nothing was counted.
func (s *Snapshot) Quantile(q float64) time.Duration {
	total := s.Count()
	if total == 0 {
		return 0
	}
	rank := uint64(q * float64(total))
	if float64(rank) < q*float64(total) || rank == 0 {
		rank++
	}
	for i, c := range s.counts {
		if rank <= c {
			return min(upper(i), s.max)
		}
		rank -= c
	}
	return s.max
}

// Since returns what was counted between an earlier snapshot of the same histogram and
// this one. Its Max is exact only if the longest duration came in between; else it is
// the upper end of the highest bucket.
func (s *Snapshot) Since(earlier *Snapshot) Snapshot {
	var d Snapshot
	for i := range s.counts {
		d.counts[i] = s.counts[i] - min(earlier.counts[i], s.counts[i])
		if d.counts[i] > 0 {
			d.max = min(upper(i), s.max)
		}
	}
	return d
}

// Add adds what another histogram counted.
func (s *Snapshot) Add(o *Snapshot) {
	for i := range s.counts {
		s.counts[i] += o.counts[i]
	}
	s.max = max(s.max, o.max)
}

// summary is the JSON form of a Snapshot.
type summary struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p99_9_us"`
	Max   float64 `json:"max_us"`
	// Buckets are pairs: the greatest duration of a bucket in nanoseconds, and how
	// many it holds. Empty buckets are left out.
	Buckets [][2]uint64 `json:"buckets_ns"`
}

// MarshalJSON writes count, p50, p99, p99.9 and max in microseconds, and the buckets
// that are not empty as pairs of upper end in nanoseconds and count.
func (s Snapshot) MarshalJSON() ([]byte, error) {
	us := func(d time.Duration) float64 { return float64(d) / 1e3 }
	o := summary{
		Count: s.Count(), P50: us(s.Quantile(0.5)), P99: us(s.Quantile(0.99)),
		P999: us(s.Quantile(0.999)), Max: us(s.max), Buckets: [][2]uint64{},
	}
	for i, c := range s.counts {
		if c > 0 {
			o.Buckets = append(o.Buckets, [2]uint64{uint64(upper(i)), c})
		}
	}
	return json.Marshal(o)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Snapshot) UnmarshalJSON(b []byte) error {
	var o summary
	if err := json.Unmarshal(b, &o); err != nil {
		return err
	}
	*s = Snapshot{max: time.Duration(o.Max*1e3 + 0.5)}
	for _, p := range o.Buckets {
		if int64(p[0]) < 0 || upper(bucketOf(int64(p[0]))) != time.Duration(p[0]) {
			return fmt.Errorf("hist: %d ns is not the end of a bucket", p[0])
		}
		s.counts[bucketOf(int64(p[0]))] += p[1]
	}
	return nil
}
