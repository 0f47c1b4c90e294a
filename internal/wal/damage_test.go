package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sluicemq/sluice/internal/vfs"
)

// soundLog makes a closed log of several files by the workload of the power cut
// test.
func soundLog(t testing.TB, seed uint64) (*vfs.Mem, Report, *history) {
	t.Helper()
	mem, h := vfs.NewMem(), newHistory()
	opts := testOptions(mem)
	opts.Tables = h.tables
	l, _ := mustOpen(t, opts)
	newWorkload(seed, h).run(t, l, 40)
	closeLog(t, l)
	rep, err := Verify(mem, testDir, nil)
	if err != nil || len(rep.Damages) > 0 || rep.Torn != nil {
		t.Fatalf("not sound: %v %v %v", err, rep.Damages, rep.Torn)
	}
	return mem, rep, h
}

// TestEveryFlipIsDamage: no flipped bit in what was synced goes unnoticed, or is
// taken for a torn write: file headers, group headers, records, padding, final
// groups, and the last group of records too, since it was sealed.
func TestEveryFlipIsDamage(t *testing.T) {
	seed := seeds(t, 0)[0]
	mem, rep, _ := soundLog(t, seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	flips := 0
	try := func(f FileReport, bit int64) {
		flips++
		path := filepath.Join(testDir, fileName(f.Seq))
		if err := vfs.FlipBit(mem, path, bit); err != nil {
			t.Fatal(err)
		}
		got, err := Verify(mem, testDir, nil)
		if err != nil || got.Torn != nil || len(got.Damages) == 0 {
			t.Fatalf("seed %d: bit %d of file %d (of %d used bytes): %v, torn %v, damages %v", seed, bit, f.Seq, f.Used, err, got.Torn, got.Damages)
		}
		if err := vfs.FlipBit(mem, path, bit); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range rep.Files {
		end := f.Used
		if i == len(rep.Files)-1 {
			end -= sectorSize // the seal at the very end has no witness
		}
		for sector := range end / sectorSize {
			for range 2 {
				try(f, sector*sectorSize*8+rng.Int64N(sectorSize*8))
			}
		}
		for bit := range int64(fileHeaderFixed * 8) {
			try(f, bit)
		}
	}
	path, groups := groupsOf(t, mem, rep.Files[len(rep.Files)-1].Seq)
	last := groups[len(groups)-2] // the last but the seal, every bit of its header and first record
	for bit := range int64((groupHeaderLen + recordHeaderLen) * 8) {
		try(rep.Files[len(rep.Files)-1], last.at*8+bit)
	}
	t.Logf("%d flips in %d files up to %s", flips, len(rep.Files), path)
}

// TestFlipInRecord: damage names shard and entry, costs no other entry, and Open
// goes on in a new file without touching the damaged one.
func TestFlipInRecord(t *testing.T) {
	for _, sealed := range []bool{true, false} {
		mem := vfs.NewMem()
		l, _ := mustOpen(t, testOptions(mem))
		var pos []Position
		for i := range uint64(6) {
			pos = append(pos, mustPut(t, l, entry(1, 2*i+1, []byte("odd")), entry(1, 2*i+2, []byte("even")), entry(2, i+1))...)
		}
		victim := pos[3*3+1] // shard 1, entry 8
		if !sealed {
			victim = pos[5*3+1] // the last group; entry 12
		} else {
			seal(t, l)
		}
		// The process is killed here: nothing seals the log but what did above.
		disk := mem.CrashClone(nil, vfs.CrashOptions{Data: vfs.KeepAll, Names: vfs.KeepAll})
		closeLog(t, l)
		path := filepath.Join(testDir, fileName(victim.Seq))
		if err := vfs.FlipBit(disk, path, int64(victim.Off)*8+3); err != nil {
			t.Fatal(err)
		}
		before, _ := vfs.ReadFile(disk, path)
		l, rec := mustOpen(t, testOptions(disk))
		s, _ := rec.Shard(1)
		if !sealed {
			// Without a witness this cannot be told from a torn write.
			if rec.Damaged() || rec.Torn == nil || s.LastIndex != 10 {
				t.Fatalf("unsealed: %v %v %+v", rec.Damages, rec.Torn, s)
			}
			closeLog(t, l)
			continue
		}
		d := rec.Damages[0]
		if len(rec.Damages) != 1 || !d.HasShard || d.Shard != 1 || d.First != 8 || d.Last != 8 || d.Seq != 1 || d.Off != int64(victim.Off) || rec.Torn != nil {
			t.Fatalf("damages %v", rec.Damages)
		}
		if s2, _ := rec.Shard(2); !s.Damaged || s2.Damaged {
			t.Fatal("the wrong shard is marked")
		}
		n := 0
		if err := rec.Replay(1, 1, func(e Entry) error {
			n++
			if e.Damaged != (e.Index == 8) || (e.Payload == nil) != e.Damaged {
				return fmt.Errorf("entry %+v", e)
			}
			return nil
		}); err != nil || n != 12 {
			t.Fatalf("replayed %d: %v", n, err)
		}
		if p := mustPut(t, l, entry(1, 13)); p[0].Seq != 2 {
			t.Fatalf("went on in file %d", p[0].Seq)
		}
		closeLog(t, l)
		after, _ := vfs.ReadFile(disk, path)
		rep, _ := Verify(disk, testDir, nil)
		end := rep.Files[0].Used - sectorSize // of the final group, which was added
		if !rep.Files[0].Final || !bytes.Equal(before[:end], after[:end]) || !bytes.Equal(before[end+sectorSize:], after[end+sectorSize:]) {
			t.Fatal("the damaged file was changed")
		}
		l, rec = mustOpen(t, testOptions(disk))
		if len(rec.Damages) != 1 || rec.Torn != nil {
			t.Fatalf("at the next opening: %v %v", rec.Damages, rec.Torn)
		}
		closeLog(t, l)
	}
}

// TestSalvage: with its group header, a record header, or its file header gone, a
// record is still found where its own checksum holds, and what is lost is named.
func TestSalvage(t *testing.T) {
	mem := vfs.NewMem()
	l, _ := mustOpen(t, testOptions(mem))
	pos := mustPut(t, l, entry(1, 1, make([]byte, 600)), entry(1, 2, make([]byte, 600)), entry(1, 3, make([]byte, 600)))
	mustPut(t, l, entry(1, 4), HardState{Term: 1, Commit: 3}.Record(1, 1))
	closeLog(t, l)
	for _, c := range []struct {
		name string
		off  int64
		want string // damages
		seen string
	}{
		{"group header", blockSize + 17, "group header", "1 2 3 4"},
		{"record header", int64(pos[1].Off) - 10, "record header|1: 2 to 2", "1 3 4"},
		{"last record header", int64(pos[2].Off) - 10, "record header|1: 3 to 3", "1 2 4"},
		{"file header", 100, "invalid file header", "1 2 3 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := mem.Clone()
			if err := vfs.FlipBit(disk, filepath.Join(testDir, fileName(1)), c.off*8); err != nil {
				t.Fatal(err)
			}
			l, rec := mustOpen(t, testOptions(disk))
			defer closeLog(t, l)
			var got, seen []string
			for _, d := range rec.Damages {
				s := d.Reason
				if d.HasShard {
					s = fmt.Sprintf("%d: %d to %d", d.Shard, d.First, d.Last)
				}
				got = append(got, s)
			}
			all := strings.Join(got, "|")
			for _, w := range strings.Split(c.want, "|") {
				if !strings.Contains(all, w) {
					t.Errorf("damages %q, want %q", all, w)
				}
			}
			if err := rec.Replay(1, 1, func(e Entry) error {
				seen = append(seen, fmt.Sprint(e.Index))
				return nil
			}); err != nil || strings.Join(seen, " ") != c.seen {
				t.Errorf("saw %v, want %s: %v", seen, c.seen, err)
			}
			if s, _ := rec.Shard(1); s.HardState != (HardState{Term: 1, Commit: 3}) || !s.Damaged {
				t.Errorf("state %+v", s)
			}
		})
	}
}

// TestLostWrite: sectors that a disk claimed to have written, and a file that is
// gone, are damage.
func TestLostWrite(t *testing.T) {
	mem, rep, _ := soundLog(t, 5)
	seq := rep.Files[1].Seq
	path, groups := groupsOf(t, mem, seq)
	lost := mem.Clone()
	f, err := lost.OpenReadWrite(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, groups[3].header.size()), groups[3].at)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Verify(lost, testDir, nil)
	if err != nil || len(got.Damages) == 0 || got.Damages[0].Seq != seq || got.Damages[0].Off != groups[3].at {
		t.Fatalf("%v %v", got.Damages, err)
	}
	gone := mem.Clone()
	if err := gone.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, rec := mustOpen(t, testOptions(gone))
	defer closeLog(t, l)
	if !rec.Damaged() || rec.Damages[0].Seq != seq {
		t.Fatal(rec.Damages)
	}
}

// TestUnreadable: a file with a bad sector can be opened; what lies there is
// damage.
func TestUnreadable(t *testing.T) {
	mem, rep, _ := soundLog(t, 6)
	path := filepath.Join(testDir, fileName(rep.Files[0].Seq))
	fsys := vfs.Inject(mem, func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Path == path && op.Off < 9000 && op.Off+op.Len > 8200 {
			return syscall.EIO
		}
		return nil
	})
	l, rec := mustOpen(t, testOptions(fsys))
	defer closeLog(t, l)
	if !rec.Damaged() || !strings.Contains(rec.Damages[0].Reason, "unreadable") || rec.Damages[0].Off != 8192 || rec.Damages[0].Len != blockSize {
		t.Fatal(rec.Damages)
	}
}

// TestForeignRecords: a torn group whose missing sector holds a fitting record of
// the file's former life, or of its own earlier attempt, is still torn.
func TestForeignRecords(t *testing.T) {
	mem := vfs.NewMem()
	l, _ := mustOpen(t, testOptions(mem))
	// Both records begin at a sector of their own.
	group := func(term uint64) []Record {
		a := entry(1, 1, make([]byte, sectorSize-groupHeaderLen-recordHeaderLen))
		b := entry(1, 2, make([]byte, sectorSize-recordHeaderLen))
		a.Term, b.Term = term, term
		return []Record{a, b}
	}
	mustPut(t, l, group(1)...)
	fill(t, l, 2, 1, 1)
	l.Release(1)
	wait(t, l)
	var former []byte
	for _, p := range mem.Paths(testDir) {
		if strings.HasSuffix(p, spareSuffix) {
			if b, _ := vfs.ReadFile(mem, p); b[0] != 0 {
				former = b
			}
		}
	}
	if former == nil {
		t.Fatal("no spare has a former life")
	}
	mustPut(t, l, group(2)...)
	disk := mem.Clone()
	closeLog(t, l)
	path, groups := groupsOf(t, disk, 2)
	last := groups[len(groups)-1]
	if last.header.records != 2 {
		t.Fatalf("%+v", last)
	}
	f, err := disk.OpenReadWrite(path)
	if err != nil {
		t.Fatal(err)
	}
	// The second sector never arrived; there stands the same record of before.
	if _, err := f.WriteAt(former[blockSize+sectorSize:][:sectorSize], last.at+sectorSize); err != nil {
		t.Fatal(err)
	}
	rep, err := Verify(disk, testDir, nil)
	if err != nil || rep.Torn == nil || rep.Torn.Off != last.at || len(rep.Damages) > 0 {
		t.Fatalf("torn %v, damages %v, %v", rep.Torn, rep.Damages, err)
	}
}

// TestCutIsZeroed: groups behind a torn one do not come back when the log has
// grown up to them again.
func TestCutIsZeroed(t *testing.T) {
	mem := vfs.NewMem()
	l, _ := mustOpen(t, testOptions(mem))
	mustPut(t, l, entry(1, 1), entry(1, 2), entry(1, 3), HardState{Term: 1}.Record(1, 1))
	for commit := uint64(1); commit <= 2; commit++ {
		if _, err := putAppend(l, Append{NoSync: true, Records: []Record{HardState{Term: 1, Commit: commit}.Record(1, 1)}}); err != nil {
			t.Fatal(err)
		}
	}
	disk := mem.CrashClone(nil, vfs.CrashOptions{Data: vfs.KeepAll, Names: vfs.KeepAll})
	closeLog(t, l)
	path, groups := groupsOf(t, disk, 1)
	f, err := disk.OpenReadWrite(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, sectorSize), groups[1].at); err != nil { // commit 1 was lost, commit 2 not
		t.Fatal(err)
	}
	l, rec := mustOpen(t, testOptions(disk))
	if s, _ := rec.Shard(1); rec.Torn == nil || rec.Damaged() || s.Commit != 0 {
		t.Fatalf("%v %v %+v", rec.Torn, rec.Damages, s)
	}
	mustPut(t, l, HardState{Term: 1, Commit: 3}.Record(1, 1))
	disk = disk.CrashClone(nil, vfs.CrashOptions{Data: vfs.KeepAll, Names: vfs.KeepAll})
	closeLog(t, l)
	l, rec = mustOpen(t, testOptions(disk))
	defer closeLog(t, l)
	if s, _ := rec.Shard(1); s.Commit != 3 {
		t.Fatalf("commit %d came back from a group that was cut", s.Commit)
	}
}

// TestCommitBeyondLog: a hard state that commits entries which are not there.
func TestCommitBeyondLog(t *testing.T) {
	x := newIndex()
	aux := make([]byte, auxLen)
	for i := range uint64(5) {
		x.record(&parsedRecord{recordHeader: recordHeader{typ: TypeEntry, shard: 1, index: i + 1}, payloadOK: true}, 0, 0)
	}
	x.record(&parsedRecord{recordHeader: recordHeader{typ: TypeHardState, shard: 1, index: 7}, payload: aux, payloadOK: true}, 0, 0)
	d := x.finish()
	if len(d) != 1 || d[0].First != 6 || d[0].Last != 7 || !d[0].HasShard {
		t.Fatal(d)
	}
}

// TestVerifyChangesNothing: also not on a log with a torn tail.
func TestVerifyChangesNothing(t *testing.T) {
	mem, _, _ := soundLog(t, 7)
	fsys := vfs.Inject(mem, func(op vfs.Op) error {
		if op.Kind.Mutates() {
			return errors.New("Verify wrote")
		}
		return nil
	})
	rep, err := Verify(fsys, testDir, nil)
	if err != nil || len(rep.Files) < 2 || !rep.Files[0].Final || rep.Files[0].Records == 0 || len(rep.Shards) == 0 {
		t.Fatalf("%+v %v", rep, err)
	}
}
