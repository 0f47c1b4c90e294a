package store

import (
	"slices"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

func TestBlocksAreBoundToTheirPlace(t *testing.T) {
	b := append(make([]byte, blockHeaderLen), "contents"...)
	sealBlock(b, kindBodies, 1, 100)
	if openBlock(b, kindBodies, 1, 100) == nil {
		t.Fatal("not recognized")
	}
	if openBlock(b, kindBodies, 1, 200) != nil || openBlock(b, kindBodies, 2, 100) != nil || openBlock(b, kindDue, 1, 100) != nil {
		t.Fatal("recognized in another place, or as another kind")
	}
}

func TestReadAheadGrowsOnlyWhenReadingOn(t *testing.T) {
	disk := vfs.NewMem()
	var reads []int64
	fsys := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind == vfs.OpRead {
			reads = append(reads, op.Len)
		}
		return nil
	})
	s, _ := open(t, Options{FS: fsys, Dir: "data"})
	m := flushOne(t, s, 1, 0, 16<<10, 1000)[0]
	var ra ReadAhead
	next := msg.Offset(0)
	read := func(part int) (size int64) {
		reads = reads[:0]
		b, err := ra.Read(s, m.Runs[0], next, MaxReadBytes)
		must(t, err)
		for i := 0; i != part; i++ {
			off, _, ok := b.Next()
			if !ok {
				break
			}
			next = off + 1
		}
		b.Release()
		return slices.Max(append(reads, 0))
	}
	read(-1)
	for want := int64(128 << 10); want <= 1<<20; want *= 2 {
		if got := read(-1); got > want || got < want*8/10 {
			t.Fatalf("read of %d, want about %d", got, want)
		}
	}
	if got := read(3); got < 800<<10 {
		t.Fatalf("a read of %d", got)
	}
	if got := read(-1); got > 64<<10 {
		t.Fatalf("a read of %d by a consumer that left most of the last one", got)
	}
	next = 15 << 10
	if got := read(-1); got > 64<<10 {
		t.Fatalf("a read of %d after a jump", got)
	}
	must(t, s.Close())
}

func TestCachesKeepTheirBudgets(t *testing.T) {
	b := newBroker(t, small(vfs.NewMem()), 1)
	for range 12 {
		b.flush(30, 60, 700)
	}
	for range 3 {
		readAll(t, b.s, b.runs, 1)
		x := b.s.Metrics()
		if x.CacheBytes > b.opts.CacheBytes || x.OpenFiles > b.opts.OpenFiles || x.CacheHits == 0 || x.CacheMisses == 0 {
			t.Fatalf("%+v", x)
		}
	}
	before := b.s.Metrics().BytesRead
	r := b.runs[0]
	for range 10 {
		blk, err := b.s.ReadRange(r, r.First, 1)
		must(t, err)
		blk.Release()
	}
	if n := b.s.Metrics().BytesRead - before; n > uint64(2*blockTarget) {
		t.Fatalf("%d bytes read for the same block", n)
	}
	must(t, b.s.Close())
}

func TestDueListOfManyPages(t *testing.T) {
	s, _ := open(t, Options{FS: vfs.NewMem(), Dir: "data"})
	w := s.NewWriter(0, WriterOptions{})
	const n = 40_000
	for i := range msg.Offset(n) {
		expiry := int64(i*7919%n) + 1
		if i%10 == 0 {
			expiry = 0
		}
		must(t, w.Add(1, 2, i, record(1, 2, i, 60, expiry)))
	}
	metas, err := w.Finish()
	must(t, err)
	install(t, s, metas)
	d, err := s.Due(metas[0].ID)
	must(t, err)
	before := s.Metrics().BytesRead
	prev, count := int64(0), 0
	for {
		e, ok, err := d.Next()
		must(t, err)
		if !ok {
			break
		}
		if count == 0 && s.Metrics().BytesRead-before > 64<<10 {
			t.Fatal("more than a page was read for the first entry")
		}
		if e.TimeMS < prev || e.Log != 1 || e.Lane != 2 || int64(e.Offset*7919%n)+1 != e.TimeMS {
			t.Fatalf("%+v after %d", e, prev)
		}
		prev = e.TimeMS
		count++
	}
	if count != n*9/10 || d.Len() != count {
		t.Fatalf("%d entries", count)
	}
	if st := s.segs[metas[0].ID].meta.stats; st.dirPos-st.duePos < 3*duePageTarget {
		t.Fatal("too few pages for this test")
	}
	must(t, s.Close())
}
