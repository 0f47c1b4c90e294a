package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/sluicemq/sluice/internal/vfs"
)

// ensureDefaults fills in what was left out and keeps the sizes consistent.
func (o *Options) ensureDefaults() {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.SegmentBytes, 64<<20)
	def(&o.OwnRunBytes, 4<<20)
	def(&o.CacheBytes, 8<<20)
	def(&o.ManifestBytes, 1<<20)
	def(&o.CheckpointBytes, 1<<20)
	o.SegmentBytes = min(o.SegmentBytes, maxFileBytes)
	o.OwnRunBytes = min(o.OwnRunBytes, o.SegmentBytes)
	if o.OpenFiles <= 0 {
		o.OpenFiles = 256
	}
}

// Open reads the MANIFEST and the directories of the segments, deletes what the
// MANIFEST does not list, and makes the store ready. No data is scanned, but that of
// segments whose directory is damaged. An error means that the store cannot be
// used; in particular a MANIFEST that is damaged before its end, or missing where
// segments are.
func Open(opts Options) (*Store, *Recovery, error) {
	opts.ensureDefaults()
	s := &Store{
		opts: opts, fs: opts.FS, cache: newBlockCache(opts.CacheBytes),
		segs: map[SegID]*segment{}, ckpts: map[uint32]*checkpointFile{},
	}
	s.files = newHandles(s, opts.OpenFiles)
	for _, dir := range []string{"", "seg", "ckpt"} {
		if err := s.fs.MkdirAll(s.abs(dir)); err != nil {
			return nil, nil, err
		}
	}
	if err := s.openManifest(); err != nil {
		return nil, nil, err
	}
	rec, err := s.recover()
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	return s, rec, nil
}

// openManifest opens the MANIFEST, or creates it in a directory without files.
func (s *Store) openManifest() error {
	err := removeIfExists(s.fs, s.abs(manifestName+tmpSuffix))
	if err != nil {
		return err
	}
	var found manifestFile
	s.man, found, err = openManifest(s.fs, s.opts.Dir)
	s.state, s.found = found.st, found.damages
	if errors.Is(err, fs.ErrNotExist) {
		var files []string
		if files, err = listFiles(s.fs, s.opts.Dir); err != nil {
			return err
		}
		if len(files) > 0 {
			return &DamageError{Path: manifestName, Reason: fmt.Sprintf("it is missing, but there is %s", files[0])}
		}
		s.state = newManifestState()
		s.man, _, err = createManifest(s.fs, s.opts.Dir, s.state)
	}
	if err == nil {
		s.next.Store(uint32(s.state.next))
	}
	return err
}

// listFiles returns the paths of all segment and checkpoint files, relative to dir.
func listFiles(fsys vfs.FS, dir string) ([]string, error) {
	var paths []string
	for _, kind := range []string{"seg", "ckpt"} {
		shards, err := fsys.List(filepath.Join(dir, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, shard := range shards {
			if _, err := strconv.ParseUint(shard, 10, 32); err != nil {
				continue // not ours
			}
			names, err := fsys.List(filepath.Join(dir, kind, shard))
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				paths = append(paths, filepath.Join(kind, shard, name))
			}
		}
	}
	return paths, nil
}

// listedPaths returns the paths of the files that the state lists.
func (st *manifestState) listedPaths() map[string]bool {
	paths := make(map[string]bool, len(st.segs))
	for id, m := range st.segs {
		paths[segmentPath(m.Shard, id)] = true
	}
	for shard, sh := range st.shards {
		if sh.hasCheck {
			paths[checkpointPath(shard, sh.check.File)] = true
		}
	}
	return paths
}

// recover loads what the MANIFEST lists and removes the rest.
func (s *Store) recover() (*Recovery, error) {
	rec := &Recovery{Segments: len(s.state.segs), Damages: s.found}
	files, err := listFiles(s.fs, s.opts.Dir)
	if err != nil {
		return nil, err
	}
	listed := s.state.listedPaths()
	for _, path := range files {
		if !listed[path] {
			s.remove(path, true)
			rec.Orphans++
		}
	}
	shards := map[uint32][][]Run{} // by segment
	for shard := range s.state.shards {
		shards[shard] = nil
	}
	for _, id := range slices.Sorted(maps.Keys(s.state.segs)) {
		m := s.state.segs[id]
		rec.Bytes += m.Bytes
		runs, damages, err := s.loadSegment(m)
		if err != nil {
			return nil, err
		}
		rec.Damages = append(rec.Damages, damages...)
		shards[m.Shard] = append(shards[m.Shard], runs)
	}
	for _, shard := range slices.Sorted(maps.Keys(shards)) {
		rec.Shards = append(rec.Shards, RecoveredShard{shard, mergeSorted(shards[shard])})
		damage, err := s.openCheckpoint(shard)
		if err != nil {
			return nil, err
		}
		if damage != nil {
			rec.Damages = append(rec.Damages, damage)
		}
	}
	return rec, nil
}

// mergeSorted merges lists of runs that are sorted by (log, lane, first).
func mergeSorted(lists [][]Run) []Run {
	if len(lists) == 0 {
		return nil
	}
	for len(lists) > 1 {
		half := lists[:0:0]
		for i := 0; i+1 < len(lists); i += 2 {
			half = append(half, mergeTwo(lists[i], lists[i+1]))
		}
		if len(lists)%2 == 1 {
			half = append(half, lists[len(lists)-1])
		}
		lists = half
	}
	return lists[0]
}

func mergeTwo(a, b []Run) []Run {
	out := make([]Run, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		x, y := &a[0], &b[0]
		if x.Log < y.Log || x.Log == y.Log && (x.Lane < y.Lane || x.Lane == y.Lane && x.First <= y.First) {
			out, a = append(out, *x), a[1:]
		} else {
			out, b = append(out, *y), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// loadSegment enters a listed segment and returns its runs: from the directory or,
// if that is damaged, as far as a scan of the blocks finds them. Such a segment is
// rewritten as soon as it may be.
func (s *Store) loadSegment(m SegmentMeta) ([]Run, []*DamageError, error) {
	path := segmentPath(m.Shard, m.ID)
	var x salvaged
	reason := "the file is missing"
	f, err := s.fs.Open(s.abs(path))
	if err == nil {
		x.t, x.runs, x.infos, reason, err = readDirectory(f, m)
		if reason != "" && err == nil {
			x, err = salvage(f, m)
		}
		err = errors.Join(err, f.Close())
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("store: %s: %w", path, err)
	}
	found := uint64(0)
	for i := range x.runs {
		found += uint64(x.runs[i].Count)
	}
	entries := m.Entries
	if reason != "" {
		m.Entries = found // what is lost of it is not in it any more
	}
	m.stats = newStats(&x.t, x.runs, x.infos)
	g := newSegment(m)
	s.segs[m.ID] = g
	if reason == "" {
		return x.runs, nil, nil
	}
	g.salvaged, g.acct.rebuild = &x, true
	reason = fmt.Sprintf("%s (a scan found %d of %d entries)", reason, found, entries)
	damages := []*DamageError{s.report(g, int64(x.t.dirPos), max(m.Bytes-int64(x.t.dirPos), 0), reason, nil)}
	for _, h := range x.holes {
		damages = append(damages, s.report(g, h[0], h[1]-h[0], "blocks", nil))
	}
	return x.runs, damages, nil
}

// ReplaceManifest writes the MANIFEST anew.
func (s *Store) ReplaceManifest() error {
	s.editMu.Lock()
	defer s.editMu.Unlock()
	return s.man.rewrite(s.state)
}
