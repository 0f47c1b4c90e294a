package store

import (
	"path/filepath"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

func diskOptions(b *testing.B) Options {
	return Options{FS: vfs.OS(), Dir: filepath.Join(b.TempDir(), "store")}
}

// BenchmarkFlushManyLogs writes 3 records of 300 bytes for each of 100,000 logs, as
// a flush does that finds little of each queue.
func BenchmarkFlushManyLogs(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	rec := record(1, 0, 1, 300, 0)
	b.SetBytes(300_000 * 300)
	b.ReportAllocs()
	for range b.N {
		w := s.NewWriter(0, WriterOptions{})
		for log := range msg.LogID(100_000) {
			for off := range msg.Offset(3) {
				if err := w.Add(log, 0, off, rec); err != nil {
					b.Fatal(err)
				}
			}
		}
		metas, err := w.Finish()
		must(b, err)
		install(b, s, metas)
		b.StopTimer()
		var e Edit
		for _, m := range metas {
			e.DropSegment(m.ID)
		}
		must(b, s.Install(&e))
		b.StartTimer()
	}
	must(b, s.Close())
}

// BenchmarkFlushOneLog writes 64 MiB of 1 KiB records of one log.
func BenchmarkFlushOneLog(b *testing.B) {
	s, _ := open(b, diskOptions(b))
	rec := record(1, 0, 1, 1024, 0)
	const n = 64 << 10
	b.SetBytes(n * 1024)
	b.ReportAllocs()
	for range b.N {
		w := s.NewWriter(0, WriterOptions{})
		must(b, w.StartRun(1, 0, n*1024))
		for off := range msg.Offset(n) {
			if err := w.Add(1, 0, off, rec); err != nil {
				b.Fatal(err)
			}
		}
		metas, err := w.Finish()
		must(b, err)
		install(b, s, metas)
		b.StopTimer()
		var e Edit
		for _, m := range metas {
			e.DropSegment(m.ID)
		}
		must(b, s.Install(&e))
		b.StartTimer()
	}
	must(b, s.Close())
}
