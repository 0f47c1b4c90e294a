package store

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

func diskOptions(b *testing.B) Options {
	return Options{FS: vfs.OS(), Dir: filepath.Join(b.TempDir(), "store")}
}

// dropped times out what removes the segments again.
func dropped(b *testing.B, s *Store, metas []SegmentMeta) {
	b.StopTimer()
	var e Edit
	for _, m := range metas {
		e.DropSegment(m.ID)
	}
	must(b, s.Install(&e))
	b.StartTimer()
}

// evict takes the store's files out of the page cache.
func evict(b *testing.B, s *Store) {
	paths, err := filepath.Glob(filepath.Join(s.opts.Dir, "seg", "*", "*"))
	must(b, err)
	for _, p := range paths {
		f, err := os.Open(p)
		must(b, err)
		must(b, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		must(b, f.Close())
	}
	s.cache.forget(0)
}

// manyLogs flushes each records of size bytes for each of logs.
func manyLogs(b *testing.B, s *Store, logs, each, size int, first msg.Offset) []SegmentMeta {
	rec := record(1, 0, 1, size, 0)
	w := s.NewWriter(0, WriterOptions{})
	for log := range msg.LogID(logs) {
		for off := range msg.Offset(each) {
			if err := w.Add(log, 0, first+off, rec); err != nil {
				b.Fatal(err)
			}
		}
	}
	metas, err := w.Finish()
	must(b, err)
	install(b, s, metas)
	return metas
}

// BenchmarkFlushManyLogs writes 3 records of 300 bytes for each of 100,000 logs, as
// a flush does that finds little of each queue.
func BenchmarkFlushManyLogs(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	b.SetBytes(300_000 * 300)
	b.ReportAllocs()
	for b.Loop() {
		dropped(b, s, manyLogs(b, s, 100_000, 3, 300, 0))
	}
	must(b, s.Close())
}

// BenchmarkFlushOneLog writes 64 MiB of 1 KiB records of one log.
func BenchmarkFlushOneLog(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	b.SetBytes(64 << 20)
	b.ReportAllocs()
	for b.Loop() {
		dropped(b, s, manyLogs(b, s, 1, 64<<10, 1024, 0))
	}
	must(b, s.Close())
}

// BenchmarkFlushFanOut writes 64 records of 1 KiB for each of 10,000 logs.
func BenchmarkFlushFanOut(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	rec := record(1, 0, 1, 1024, 0)
	b.ReportAllocs()
	for b.Loop() {
		w := s.NewWriter(0, WriterOptions{})
		for log := range msg.LogID(10_000) {
			for off := range msg.Offset(64) {
				must(b, w.AddShared(log, 0, off, SharedKey{0, off}, rec))
			}
		}
		metas, err := w.Finish()
		must(b, err)
		install(b, s, metas)
		b.ReportMetric(float64(metas[0].Bytes)/640_000, "B/entry")
		dropped(b, s, metas)
	}
	must(b, s.Close())
}

// scan reads runs from end to end as a consumer that catches up does.
func scan(b *testing.B, s *Store, runs []Run) (n int) {
	var ra ReadAhead
	for _, r := range runs {
		for next := r.First; next <= r.Last; {
			blk, err := ra.Read(s, r, next, MaxReadBytes)
			must(b, err)
			for off, _, ok := blk.Next(); ok; off, _, ok = blk.Next() {
				next = off + 1
				n++
			}
			blk.Release()
		}
	}
	return n
}

// BenchmarkReadSequential reads 256 MiB of one log, from the disk.
func BenchmarkReadSequential(b *testing.B) {
	for _, cold := range []bool{true, false} {
		for _, size := range []int{100, 1024} {
			b.Run(fmt.Sprintf("cold=%v/%dB", cold, size), func(b *testing.B) {
				s, _ := open(b, diskOptions(b))
				runs := runsOf(manyLogs(b, s, 1, 256<<20/size, size, 0))
				b.SetBytes(256 << 20)
				b.ReportAllocs()
				for b.Loop() {
					if cold {
						b.StopTimer()
						evict(b, s)
						b.StartTimer()
					}
					if n := scan(b, s, runs); n != 256<<20/size {
						b.Fatal(n)
					}
				}
				must(b, s.Close())
			})
		}
	}
}

// BenchmarkReadManyLogs reads all of 10,000 logs of which 8 segments each have 3
// records, log by log.
func BenchmarkReadManyLogs(b *testing.B) {
	for _, cold := range []bool{true, false} {
		b.Run(fmt.Sprintf("cold=%v", cold), func(b *testing.B) {
			s, _ := open(b, diskOptions(b))
			logs := make([][]Run, 10_000)
			for i := range 8 {
				for _, r := range runsOf(manyLogs(b, s, 10_000, 3, 300, msg.Offset(3*i))) {
					logs[r.Log] = append(logs[r.Log], r)
				}
			}
			b.ReportAllocs()
			entries := 0
			for b.Loop() {
				if cold {
					b.StopTimer()
					evict(b, s)
					b.StartTimer()
				}
				for _, runs := range logs {
					entries += scan(b, s, runs)
				}
			}
			b.ReportMetric(float64(entries)/b.Elapsed().Seconds(), "records/s")
			must(b, s.Close())
		})
	}
}

// BenchmarkReadRandom reads one record at a random place of 256 MiB, from the page
// cache.
func BenchmarkReadRandom(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	runs := runsOf(manyLogs(b, s, 1, 256<<10, 1024, 0))
	b.ReportAllocs()
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		r := runs[rng.IntN(len(runs))]
		off := r.First + rng.Uint64N(uint64(r.Count))
		blk, err := s.ReadRange(r, off, 1)
		must(b, err)
		if got, _, ok := blk.Next(); !ok || got != off {
			b.Fatal(got)
		}
		blk.Release()
	}
	must(b, s.Close())
}

// BenchmarkMerge merges 9 segments of 10,000 logs x 20 records of 300 bytes.
func BenchmarkMerge(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	var ids []SegID
	bytes := int64(0)
	for i := range 9 {
		for _, m := range manyLogs(b, s, 10_000, 20, 300, msg.Offset(20*i)) {
			ids = append(ids, m.ID)
			bytes += m.Bytes
		}
	}
	b.SetBytes(bytes)
	b.ReportAllocs()
	for b.Loop() {
		c, err := s.Compact(ids, all, CompactOptions{})
		must(b, err)
		b.StopTimer()
		c.Close()
		b.StartTimer()
	}
	must(b, s.Close())
}

// BenchmarkRewriteSparse rewrites 64 MiB of 100-byte records of which each 1,000th is
// live.
func BenchmarkRewriteSparse(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	const n = 64 << 20 / 100
	metas := manyLogs(b, s, 1, n, 100, 0)
	var live []msg.Range
	for i := msg.Offset(0); i < n; i += 1000 {
		live = append(live, msg.Range{First: i, Count: 1})
	}
	b.SetBytes(metas[0].Bytes)
	b.ReportAllocs()
	for b.Loop() {
		c, err := s.Compact([]SegID{metas[0].ID}, func(Run) Live { return Live{Ranges: live} }, CompactOptions{})
		must(b, err)
		b.StopTimer()
		c.Close()
		b.StartTimer()
	}
	must(b, s.Close())
}

// BenchmarkOpen opens a store of 200 segments of one log each.
func BenchmarkOpen(b *testing.B) {
	opts := diskOptions(b)
	s, _ := open(b, opts)
	for i := range 200 {
		manyLogs(b, s, 1, 100, 1000, msg.Offset(100*i))
	}
	must(b, s.Close())
	b.ReportAllocs()
	for b.Loop() {
		s, rec, err := Open(opts)
		must(b, err)
		if len(rec.Shards[0].Runs) != 200 {
			b.Fatal(len(rec.Shards[0].Runs))
		}
		b.StopTimer()
		must(b, s.Close())
		b.StartTimer()
	}
}

// BenchmarkOpenManyRuns opens a store of 8 segments of 100,000 logs each.
func BenchmarkOpenManyRuns(b *testing.B) {
	opts := diskOptions(b)
	s, _ := open(b, opts)
	for i := range 8 {
		manyLogs(b, s, 100_000, 1, 60, msg.Offset(i))
	}
	must(b, s.Close())
	b.ReportAllocs()
	for b.Loop() {
		s, rec, err := Open(opts)
		must(b, err)
		if len(rec.Shards[0].Runs) != 800_000 {
			b.Fatal(len(rec.Shards[0].Runs))
		}
		b.StopTimer()
		must(b, s.Close())
		b.StartTimer()
	}
}

// BenchmarkCheckpoint writes a delta of 1,000 of 100,000 keys of 100 bytes, bases
// included.
func BenchmarkCheckpoint(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	value := make([]byte, 100)
	put := func(from, n int) {
		c, err := s.BeginCheckpoint(0)
		must(b, err)
		for i := range n {
			must(b, c.Put(fmt.Appendf(nil, "%08d", (from+i)%100_000), value))
		}
		must(b, c.Commit(1, nil, nil))
	}
	put(0, 100_000)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		put(i*1000, 1000)
		i++
	}
	b.StopTimer()
	b.ReportMetric(float64(s.metrics.bases.Load())/float64(i), "bases/op")
	must(b, s.Close())
}

func BenchmarkLoadCheckpoint(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	value := make([]byte, 100)
	c, err := s.BeginCheckpoint(0)
	must(b, err)
	for i := range 100_000 {
		must(b, c.Put(fmt.Appendf(nil, "%08d", i), value))
	}
	must(b, c.Commit(1, nil, nil))
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		must(b, s.LoadCheckpoint(0, func(_, _ []byte) error { n++; return nil }))
		if n != 100_000 {
			b.Fatal(n)
		}
	}
	must(b, s.Close())
}

// BenchmarkAddDead is what settling costs the loop of a shard here.
func BenchmarkAddDead(b *testing.B) {
	s, _ := open(b, small(vfs.NewMem()))
	runs := runsOf(manyLogs(b, s, 100, 100, 100, 0))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		s.AddDead(runs[i%len(runs)], 1)
		i++
	}
	must(b, s.Close())
}

// BenchmarkInstall is one durable edit.
func BenchmarkInstall(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	b.ReportAllocs()
	for b.Loop() {
		var e Edit
		e.SetFlushed(0, Flushed{1, 2})
		must(b, s.Install(&e))
	}
	must(b, s.Close())
}
