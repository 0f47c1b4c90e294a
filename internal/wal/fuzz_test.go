package wal

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"github.com/sluicemq/sluice/internal/vfs"
)

// FuzzGroup takes arbitrary bytes for the records of a group. Parsing must stay
// within them, and what it reports must be consistent.
func FuzzGroup(f *testing.F) {
	var g group
	g.reset(recordSeed(1, 2, 3))
	for i, r := range []Record{
		entry(1, 1, []byte("payload")), HardState{Term: 3}.Record(1, 1), entry(1, 2),
	} {
		g.add(&r, r.length())
		if i == 1 {
			f.Add(bytes.Join(g.vecs, nil)[groupHeaderLen:], uint32(2), false)
		}
	}
	whole := bytes.Join(g.vecs, nil)[groupHeaderLen:]
	f.Add(whole, uint32(3), false)
	f.Add(whole, uint32(3), true)
	f.Add(append(bytes.Clone(whole[:50]), whole...), uint32(5), true)
	f.Add([]byte{}, uint32(0), false)
	f.Fuzz(func(t *testing.T, b []byte, records uint32, salvage bool) {
		h := groupHeader{
			fileSeq: 2, groupSeq: 3, salt: 1,
			length: uint32(len(b) / recordAlign * recordAlign), records: records,
		}
		in := make([]byte, h.size())
		putGroupHeader(in, h)
		copy(in[groupHeaderLen:], b)
		got, ok := parseGroupHeader(in)
		if ok && got != h {
			t.Fatalf("header %+v came back as %+v", h, got)
		}
		if !ok && !salvage {
			return // it promises more records than fit
		}
		p := groupParser{verify: verifyCRC32C}
		p.parse(in, h, salvage)
		end := int64(groupHeaderLen)
		for _, r := range p.records {
			if r.at < end || r.at+r.size() > int64(len(in)) || len(r.payload) != int(r.length) {
				t.Fatalf("record %+v at %d after %d", r.recordHeader, r.at, end)
			}
			end = r.at + r.size()
		}
		if !salvage && len(p.defects) == 0 && uint32(len(p.records)) != records {
			t.Fatalf("%d of %d records and no defect", len(p.records), records)
		}
	})
}

// FuzzRecover patches a sound log with arbitrary bytes at arbitrary places, and
// repairs checksums on request so that nonsense gets past them. Opening must
// neither panic nor fail, must agree with Verify, and must leave a log that can be
// written and that the next opening finds without a torn tail.
func FuzzRecover(f *testing.F) {
	sound, _, _ := soundLog(f, 11)
	paths := sound.Paths(testDir)
	f.Add([]byte{})
	f.Add([]byte{0, 0x10, 0, 0, 0, 1, 0xff})
	f.Add([]byte{1, 0x10, 0, 1, 4, 4, 1, 2, 3, 4, 0, 0, 0, 0, 0x30, 2, 9, 9})
	f.Add([]byte{2, 0, 24, 0x81, 2, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, patches []byte) {
		disk := sound.Clone()
		applyPatches(t, disk, paths, patches)
		rep, err := Verify(disk, testDir, nil)
		if errors.Is(err, ErrVersion) { // a sound header of another format: whoever wrote it meant it
			if _, _, err := Open(testOptions(disk)); !errors.Is(err, ErrVersion) {
				t.Fatalf("Verify doesn't know the format, Open says %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		l, rec, err := Open(testOptions(disk))
		if err != nil {
			t.Fatal(err)
		}
		if len(rec.Damages) != len(rep.Damages) || (rec.Torn == nil) != (rep.Torn == nil) {
			t.Fatalf("Verify: %v %v, Open: %v %v", rep.Damages, rep.Torn, rec.Damages, rec.Torn)
		}
		for _, s := range rec.Shards {
			if err := rec.Replay(s.Shard, 0, func(Entry) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := put(l, Record{Type: TypeEntry, Shard: 1 << 30, Incarnation: 1 << 63, Index: 1}); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l, rec = mustOpen(t, testOptions(disk))
		if s, ok := rec.Shard(1 << 30); !ok || s.LastIndex != 1 || rec.Torn != nil {
			t.Fatalf("after appending: %+v, torn %v", s, rec.Torn)
		}
		closeLog(t, l)
	})
}

// applyPatches interprets bytes as: file, offset (24 bits), mode, length, bytes.
// Mode bit 0 repairs the checksum of the group at the offset's sector, bit 1 that
// of the file header, bit 2 cuts the file at the offset.
func applyPatches(t *testing.T, disk *vfs.Mem, paths []string, b []byte) {
	for len(b) >= 6 {
		path := paths[int(b[0])%len(paths)]
		off := int64(b[1])<<8 | int64(b[2]) | int64(b[3]&1)<<16
		mode, n := b[4], min(int(b[5]), len(b)-6)
		patch := b[6 : 6+n]
		b = b[6+n:]
		data, err := vfs.ReadFile(disk, path)
		if err != nil {
			t.Fatal(err)
		}
		if off+int64(n) > int64(len(data)) {
			continue
		}
		copy(data[off:], patch)
		if at := off / sectorSize * sectorSize; mode&1 != 0 && at+groupHeaderLen <= int64(len(data)) {
			le.PutUint32(data[at+44:], checksum(data[at:at+44]))
		}
		if mode&2 != 0 && len(data) >= blockSize {
			le.PutUint32(data[56:], 0)
			le.PutUint32(data[56:], checksum(data[:blockSize]))
		}
		f, err := disk.OpenReadWrite(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(data, 0); err != nil {
			t.Fatal(err)
		}
		if mode&4 != 0 && filepath.Ext(path) == walSuffix {
			if err := f.Truncate(off); err != nil {
				t.Fatal(err)
			}
		}
	}
}
