package store

import (
	"bytes"
	"testing"

	"github.com/sluicemq/sluice/internal/vfs"
)

func TestWriteInstallReadReopen(t *testing.T) {
	fsys := vfs.NewMem()
	s, _ := open(t, small(fsys))
	w := s.NewWriter(3, WriterOptions{})
	want := map[named][]byte{}
	for log := uint64(1); log <= 40; log++ {
		n := uint64(3)
		if log == 7 || log == 30 {
			n = 400
		}
		if log == 30 {
			must(t, w.StartRun(log, 0, 120<<10))
		}
		for off := uint64(0); off < n; off++ {
			k := named{log, 0, 5 + 2*off}
			want[k] = record(k.log, k.lane, k.off, 300, 0)
			must(t, w.Add(k.log, k.lane, k.off, want[k]))
		}
	}
	metas, err := w.Finish()
	must(t, err)
	install(t, s, metas)
	check := func(s *Store, runs []Run) {
		for _, size := range []int{1, 40 << 10, 1 << 20} {
			got := readAll(t, s, runs, size)
			if len(got) != len(want) {
				t.Fatalf("%d entries, want %d", len(got), len(want))
			}
			for k, r := range want {
				if !bytes.Equal(got[k], r) {
					t.Fatalf("%v differs", k)
				}
			}
		}
	}
	check(s, runsOf(metas))
	must(t, s.Close())
	s, rec := open(t, small(fsys))
	if len(rec.Shards) != 1 || len(rec.Damages) != 0 || rec.Orphans != 0 {
		t.Fatalf("%+v", rec)
	}
	check(s, rec.Shards[0].Runs)
	must(t, s.Close())
	report, err := Check(fsys, "data")
	must(t, err)
	if !report.Sound() || len(report.Orphans) != 0 {
		t.Fatalf("%+v %v", report, report.Damages)
	}
}
