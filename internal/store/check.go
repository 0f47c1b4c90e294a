package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// CheckReport says what a store's directory holds and what is wrong with it.
type CheckReport struct {
	Shards   []ShardReport // by ascending Shard
	Orphans  []string      // files that no MANIFEST lists; not an error
	Damages  []*DamageError
	Settings map[string][]byte
}

// ShardReport is what a store holds of a shard.
type ShardReport struct {
	Shard         uint32
	Segments      []SegmentReport // by ascending id
	Flushed       Flushed
	HasCheckpoint bool
	Checkpoint    CheckpointInfo
	Keys          int // live keys of the checkpoint
	// Internal are the runs of logs that belong to no queue, by log, lane and first
	// offset.
	Internal []Run
}

// SegmentReport is what a segment holds.
type SegmentReport struct {
	ID      SegID
	Bytes   int64
	Own     bool
	Runs    int
	Entries uint64 // readable ones, without regard to their bodies
	Due     int
	Bodies  int // shared bodies
	Damaged bool
}

// Sound says whether everything could be read.
func (r *CheckReport) Sound() bool { return len(r.Damages) == 0 }

// Check reads everything in the directory of a store that is not open, verifies all
// checksums and that directories, indexes and due lists agree with the data, and
// changes nothing. The error is for what keeps it from looking (no directory, a
// MANIFEST that can't be read).
func Check(fsys vfs.FS, dir string) (*CheckReport, error) {
	b, err := vfs.ReadFile(fsys, filepath.Join(dir, manifestName))
	if err != nil {
		return nil, err
	}
	mf, err := readManifest(b)
	if err != nil {
		return nil, err
	}
	st := mf.st
	r := &CheckReport{Settings: st.settings, Damages: mf.damages}
	if r.Orphans, err = orphans(fsys, dir, st); err != nil {
		return nil, err
	}
	shards := map[uint32]*ShardReport{}
	shard := func(id uint32) *ShardReport {
		if shards[id] == nil {
			sh := st.shards[id]
			shards[id] = &ShardReport{
				Shard: id, Flushed: sh.flushed, HasCheckpoint: sh.hasCheck, Checkpoint: sh.check,
			}
		}
		return shards[id]
	}
	for id := range st.shards {
		shard(id)
	}
	for _, id := range slices.Sorted(maps.Keys(st.segs)) {
		report, runs, damages := checkSegment(fsys, dir, st.segs[id])
		sh := shard(st.segs[id].Shard)
		for _, x := range runs {
			if msg.IsInternal(x.Log) {
				sh.Internal = append(sh.Internal, x)
			}
		}
		sh.Segments = append(sh.Segments, report)
		r.Damages = append(r.Damages, damages...)
	}
	for _, id := range slices.Sorted(maps.Keys(shards)) {
		sh := shards[id]
		slices.SortFunc(sh.Internal, func(a, b Run) int {
			return cmp.Or(cmp.Compare(a.Log, b.Log), cmp.Compare(a.Lane, b.Lane), cmp.Compare(a.First, b.First))
		})
		if sh.HasCheckpoint {
			var damage *DamageError
			if sh.Keys, damage = checkCheckpoint(fsys, dir, id, sh.Checkpoint); damage != nil {
				r.Damages = append(r.Damages, damage)
			}
		}
		r.Shards = append(r.Shards, *sh)
	}
	return r, nil
}

func orphans(fsys vfs.FS, dir string, st *manifestState) ([]string, error) {
	files, err := listFiles(fsys, dir)
	if err != nil {
		return nil, err
	}
	listed := st.listedPaths()
	return slices.DeleteFunc(files, func(path string) bool { return listed[path] }), nil
}

func checkCheckpoint(fsys vfs.FS, dir string, shard uint32, info CheckpointInfo) (keys int, damage *DamageError) {
	path := checkpointPath(shard, info.File)
	f, err := fsys.Open(filepath.Join(dir, path))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, missingCheckpoint(shard, info)
	}
	if err == nil {
		err = errors.Join(livePairs(f, shard, info, keysAtOnce, func(_, _ []byte) error { keys++; return nil }), f.Close())
	}
	if err != nil && !errors.As(err, &damage) {
		damage = &DamageError{Path: path, Shard: shard, Len: info.Len, Reason: err.Error()}
	}
	return keys, damage
}

// checkSegment reads a whole segment file.
func checkSegment(fsys vfs.FS, dir string, m SegmentMeta) (SegmentReport, []Run, []*DamageError) {
	c := &segmentCheck{m: m, report: SegmentReport{ID: m.ID, Bytes: m.Bytes, Own: m.Own}}
	f, err := fsys.Open(filepath.Join(dir, segmentPath(m.Shard, m.ID)))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.damage(0, m.Bytes, "the file is missing", nil)
	case err != nil:
		c.damage(0, m.Bytes, err.Error(), nil)
	default:
		err = errors.Join(c.check(f), f.Close())
		if err != nil {
			c.damage(0, m.Bytes, fmt.Sprintf("reading: %v", err), nil)
		}
	}
	c.report.Damaged = len(c.damages) > 0
	return c.report, c.runs, c.damages
}

// EachPair calls fn with each key of a shard's checkpoint in the directory of a store that
// is not open; slices are valid during the call.
func (s *ShardReport) EachPair(fsys vfs.FS, dir string, fn func(key, value []byte) error) error {
	if !s.HasCheckpoint {
		return nil
	}
	f, err := fsys.Open(filepath.Join(dir, checkpointPath(s.Shard, s.Checkpoint.File)))
	if err != nil {
		return err
	}
	return errors.Join(livePairs(f, s.Shard, s.Checkpoint, keysAtOnce, fn), f.Close())
}
