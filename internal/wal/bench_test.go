package wal

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/vfs"
)

// submitter appends records of one shard with a window of 1, and notes how long
// each took. It allocates nothing per append.
type submitter struct {
	l       *Log
	records []Record
	done    chan error
	fn      func(error, []Position)
	taken   []time.Duration
}

func newSubmitter(l *Log, shard uint32, payload []byte) *submitter {
	s := &submitter{l: l, done: make(chan error, 1), taken: make([]time.Duration, 0, 1<<16)}
	s.records = []Record{entry(shard, 1, payload)}
	s.fn = func(err error, _ []Position) { s.done <- err }
	return s
}

func (s *submitter) put() error {
	start := time.Now()
	s.l.Submit(Append{Records: s.records, Done: s.fn})
	err := <-s.done
	s.records[0].Index++
	if len(s.taken) < cap(s.taken) {
		s.taken = append(s.taken, time.Since(start))
	}
	return err
}

// benchLog opens a log on the operating system's files that recycles at once.
func benchLog(b *testing.B) *Log {
	var l *Log
	var begun sync.WaitGroup
	begun.Add(1)
	o := Options{FS: vfs.OS(), Dir: filepath.Join(b.TempDir(), "wal")}
	o.Events.FileSealed = func(f SealedFile) { begun.Wait(); l.Release(f.Seq) }
	l, _ = mustOpen(b, o)
	begun.Done()
	b.Cleanup(func() { closeLog(b, l) })
	return l
}

func report(b *testing.B, l *Log, taken []time.Duration) {
	m, s := l.Metrics(), b.Elapsed().Seconds()
	slices.Sort(taken)
	b.ReportMetric(float64(m.Records)/s, "records/s")
	b.ReportMetric(float64(m.Bytes)/s/1e6, "MB/s")
	b.ReportMetric(float64(m.Records)/float64(m.Syncs), "records/sync")
	if n := len(taken); n > 0 {
		b.ReportMetric(float64(taken[n/2].Microseconds()), "p50-us")
		b.ReportMetric(float64(taken[n*99/100].Microseconds()), "p99-us")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkAppend is one submitter that waits for each record: latency.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			l := benchLog(b)
			s := newSubmitter(l, 1, make([]byte, size))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := s.put(); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			report(b, l, s.taken)
		})
	}
}

// BenchmarkGroupCommit is 64 submitters, each waiting for each of its records.
func BenchmarkGroupCommit(b *testing.B) {
	l := benchLog(b)
	const n = 64
	all := make([]*submitter, n)
	for i := range all {
		all[i] = newSubmitter(l, uint32(i), make([]byte, 1024))
	}
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, s := range all {
		wg.Go(func() {
			for range b.N/n + min(1, b.N%n/(i+1)) {
				if err := s.put(); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	var taken []time.Duration
	for _, s := range all {
		taken = append(taken, s.taken...)
	}
	report(b, l, taken)
}

// flood appends n entries of one shard with a window of outstanding appends, each
// with its own completion made beforehand.
func flood(b *testing.B, l *Log, shard uint32, payload []byte, window, n int) {
	free := make(chan *Append, window)
	for range window {
		a := &Append{Records: []Record{entry(shard, 0, payload)}}
		a.Done = func(err error, _ []Position) {
			if err != nil {
				b.Error(err)
			}
			free <- a
		}
		free <- a
	}
	for i := range n {
		a := <-free
		a.Records[0].Index = uint64(i + 1)
		l.Submit(*a)
	}
	for range window {
		<-free
	}
}

// BenchmarkSaturated keeps many appends outstanding: batches of 64 KiB as shards
// under load have them, and single records of 1 KiB.
func BenchmarkSaturated(b *testing.B) {
	for _, c := range []struct{ submitters, window, size int }{{8, 16, 64 << 10}, {64, 256, 1 << 10}} {
		b.Run(fmt.Sprintf("%dx%dx%dKiB", c.submitters, c.window, c.size>>10), func(b *testing.B) {
			l := benchLog(b)
			payload := make([]byte, c.size)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for id := range uint32(c.submitters) {
				wg.Go(func() { flood(b, l, id, payload, c.window, b.N/c.submitters+1) })
			}
			wg.Wait()
			b.StopTimer()
			report(b, l, nil)
		})
	}
}

// BenchmarkRecover opens a log of 16 MiB in batches of 4 KiB.
func BenchmarkRecover(b *testing.B) {
	o := Options{FS: vfs.OS(), Dir: filepath.Join(b.TempDir(), "wal")}
	l, _ := mustOpen(b, o)
	chunk := make([]byte, 4<<10)
	for i := range uint64(4096) {
		l.Submit(Append{Records: []Record{entry(1, i+1, chunk)}})
	}
	closeLog(b, l)
	b.SetBytes(16 << 20)
	b.ResetTimer()
	for range b.N {
		if _, err := Verify(o.FS, o.Dir, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAppendAllocs: the writer allocates nothing per append.
func TestAppendAllocs(t *testing.T) {
	l, _ := mustOpen(t, testOptions(vfs.Inject(vfs.NewMem(), func(vfs.Op) error { return nil })))
	closeLog(t, l) // the writer goroutine is gone, and its writer ours
	w := &l.w
	small, large := make([]byte, 100), make([]byte, 600)
	batch := []Append{
		{Records: []Record{entry(1, 1, small, large), entry(1, 2, small)}},
		{Records: []Record{HardState{Term: 1, Commit: 1}.Record(1, 1)}},
	}
	w.cur.f = discard{w.cur.f}
	round := func() {
		w.process(batch)
		batch[0].Records[0].Index += 2
		batch[0].Records[1].Index += 2
	}
	round()
	if n := testing.AllocsPerRun(10, round); n > 0 {
		t.Fatalf("%v allocations per round", n)
	}
}

// discard is a file that takes writes without doing anything.
type discard struct{ vfs.File }

func (discard) WriteVAt(bufs [][]byte, _ int64) (int64, error) { return 0, nil }
func (discard) SyncData() error                                { return nil }
