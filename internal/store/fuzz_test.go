package store

import (
	"bytes"
	"errors"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// seeds returns files of every kind.
func seeds(f *testing.F) (manifest, segment, checkpoint []byte) {
	f.Helper()
	disk := vfs.NewMem()
	b := newBroker(f, small(disk), 4)
	b.flush(3, 20, 200)
	b.checkpoint(5)
	b.checkpoint(5)
	must(f, b.s.Close())
	read := func(path string) []byte {
		data, err := vfs.ReadFile(disk, path)
		must(f, err)
		return data
	}
	return read("data/MANIFEST"), read(disk.Paths("data/seg")[0]), read(disk.Paths("data/ckpt")[0])
}

// FuzzManifest: arbitrary bytes give a state or a damage, and a state that was read
// is written again as one that reads the same.
func FuzzManifest(f *testing.F) {
	manifest, _, _ := seeds(f)
	mf, err := readManifest(manifest)
	end := mf.end
	must(f, err)
	f.Add(manifest[:end], []byte{})
	f.Add([]byte{}, manifest[manifestHeaderLen+frameHeaderLen:end])
	f.Fuzz(func(t *testing.T, file, payload []byte) {
		if _, err := readManifest(file); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		// And with valid frames around arbitrary edits, which a fuzzer won't make.
		b := append([]byte(nil), manifest[:manifestHeaderLen]...)
		b = appendFrame(b, frameMagic, payload, manifestHeaderLen, 0)
		mg, err := readManifest(b)
		st := mg.st
		if err != nil {
			return
		}
		again := newManifestState()
		must(t, again.applyEncoded(st.encode()))
		if !bytes.Equal(again.encode(), st.encode()) {
			t.Fatal("a state changes when it is written")
		}
	})
}

// FuzzSegment: a listed segment file of arbitrary bytes never makes the store fail,
// hang or panic: it is opened, read, compacted and checked.
func FuzzSegment(f *testing.F) {
	_, segment, _ := seeds(f)
	f.Add(segment, uint16(3), byte(1), true)
	f.Add(segment, uint16(len(segment)-segmentTrailerLen+40), byte(200), false)
	f.Fuzz(func(t *testing.T, file []byte, at uint16, x byte, seal bool) {
		if len(file) > 1<<16 {
			return
		}
		file = bytes.Clone(file)
		if len(file) > 0 {
			file[int(at)%len(file)] ^= x
		}
		if seal {
			resealed(file)
		}
		disk := vfs.NewMem()
		s, _ := open(t, small(disk))
		path := s.abs(segmentPath(0, 1))
		must(t, disk.MkdirAll(s.abs("seg/0")))
		must(t, vfs.WriteFileAtomic(disk, path, file))
		entries := uint64(1)
		if n := len(file) - segmentTrailerLen; n >= 0 {
			if tr, reason := parseTrailer(file[n:]); reason == "" {
				entries = tr.entries
			}
		}
		install(t, s, []SegmentMeta{{ID: 1, Bytes: int64(len(file)), Entries: entries, Set: 1}})
		must(t, s.Close())
		s, rec := open(t, small(disk))
		for _, sh := range rec.Shards {
			readable(t, s, sh.Runs)
		}
		if c, err := s.Compact([]SegID{1}, all, CompactOptions{}); err == nil {
			c.Close()
		}
		if d, err := s.Due(1); err == nil && d != nil {
			for ok := true; ok && err == nil; {
				_, ok, err = d.Next()
			}
		}
		must(t, s.Close())
		_, err := Check(disk, "data")
		must(t, err)
	})
}

// resealed gives the chain of blocks and the trailer valid checksums again, so that
// what lies behind them is reached.
func resealed(file []byte) {
	for pos := segmentHeaderLen; pos < len(file); {
		n := blockLen(file[pos:])
		if n == 0 || n > len(file)-pos {
			break
		}
		sealBlock(file[pos:pos+n], file[pos+8], 1, int64(pos))
		pos += n
	}
	if n := len(file) - segmentTrailerLen; n >= 0 {
		if tr, _ := parseTrailer(file[n:]); tr.fileLen == 0 {
			h := file[n:]
			crc := msg.CRC(h[:92])
			h[92], h[93], h[94], h[95] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
		}
	}
}

// FuzzCheckpoint: a checkpoint file of arbitrary bytes gives pairs or a damage.
func FuzzCheckpoint(f *testing.F) {
	_, _, checkpoint := seeds(f)
	f.Add(checkpoint, uint16(30), byte(1), uint64(10))
	f.Fuzz(func(t *testing.T, file []byte, at uint16, x byte, pairs uint64) {
		file = bytes.Clone(file)
		if len(file) > 0 {
			file[int(at)%len(file)] ^= x
		}
		for pos := checkpointHeaderLen; pos < len(file); {
			n := blockLen(file[pos:])
			if n == 0 || n > len(file)-pos {
				break
			}
			sealBlock(file[pos:pos+n], file[pos+8], 1, int64(pos))
			pos += n
		}
		disk := vfs.NewMem()
		must(t, vfs.WriteFileAtomic(disk, "f", file))
		h, err := disk.Open("f")
		must(t, err)
		info := CheckpointInfo{File: 1, Len: int64(len(file)), Pairs: pairs % 1000, Index: 2}
		seen := map[string]bool{}
		err = livePairs(h, 0, info, keysAtOnce, func(key, _ []byte) error {
			if seen[string(key)] {
				t.Fatalf("key %q twice", key)
			}
			seen[string(key)] = true
			return nil
		})
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	})
}
