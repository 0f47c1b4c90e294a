package store

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// record makes a record of about n bytes whose contents name what it is for.
func record(log msg.LogID, lane uint8, off msg.Offset, n int, expiry int64) []byte {
	var key [20]byte
	binary.LittleEndian.PutUint64(key[:], log)
	key[8] = lane
	binary.LittleEndian.PutUint64(key[9:], off)
	e := msg.Envelope{Format: msg.FormatAMQP091, ExpiryMS: expiry, Key: key[:]}
	body := make([]byte, max(n-e.RecordLen(0), 0))
	for i := range body {
		body[i] = byte(off) + byte(i)
	}
	return msg.AppendRecord(nil, &e, body)
}

// small are options that make every kind of block, file and rewrite appear in tests
// with little data.
func small(fsys vfs.FS) Options {
	return Options{
		FS: fsys, Dir: "data", SegmentBytes: 256 << 10, OwnRunBytes: 64 << 10, CacheBytes: 256 << 10,
		OpenFiles: 4, ManifestBytes: 4 << 10, CheckpointBytes: 8 << 10,
	}
}

func open(t testing.TB, opts Options) (*Store, *Recovery) {
	t.Helper()
	s, rec, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s, rec
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// install lists finished segments.
func install(t testing.TB, s *Store, metas []SegmentMeta) {
	t.Helper()
	var e Edit
	for _, m := range metas {
		e.AddSegment(m)
	}
	must(t, s.Install(&e))
}

type named struct {
	log  msg.LogID
	lane uint8
	off  msg.Offset
}

// readAll reads every entry of the runs, in reads of maxBytes.
func readAll(t testing.TB, s *Store, runs []Run, maxBytes int) map[named][]byte {
	t.Helper()
	got := map[named][]byte{}
	for _, r := range runs {
		n := uint32(0)
		for next := r.First; ; {
			b, err := s.ReadRange(r, next, maxBytes)
			must(t, err)
			k := 0
			for {
				off, rec, ok := b.Next()
				if !ok {
					break
				}
				if off < next {
					t.Fatalf("log %d: offset %d after asking for %d", r.Log, off, next)
				}
				next = off + 1
				got[named{r.Log, r.Lane, off}] = bytes.Clone(rec)
				k++
			}
			b.Release()
			if k == 0 {
				break
			}
			n += uint32(k)
		}
		if n != r.Count {
			t.Fatalf("run %+v: %d entries read", r, n)
		}
	}
	return got
}

func runsOf(metas []SegmentMeta) []Run {
	var runs []Run
	for _, m := range metas {
		runs = append(runs, m.Runs...)
	}
	return runs
}
