package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sluicemq/sluice/internal/planted"
	"github.com/sluicemq/sluice/internal/vfs"
)

// Store is the open store of a node.
type Store struct {
	opts  Options
	fs    vfs.FS
	cache *blockCache
	files *handles

	// editMu is held while an edit is written; it guards man, and what mu guards may
	// be read under it.
	editMu sync.Mutex
	man    *manifest
	found  []*DamageError // in the MANIFEST when it was opened
	closed bool

	mu    sync.RWMutex // written only while editMu is held, except for segs' removals
	state *manifestState
	segs  map[SegID]*segment // listed ones, and dropped ones that are pinned
	ckpts map[uint32]*checkpointFile

	next    atomic.Uint32 // the id of the next segment
	metrics struct {
		bytesWritten, bytesRead, edits, rewrites, bases, compactions atomic.Uint64
	}
}

// Close releases all handles and the cache. Writers and readers must be done.
func (s *Store) Close() error {
	s.editMu.Lock()
	defer s.editMu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.files.closeAll()
	s.cache.forget(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := []error{s.man.close()}
	for _, c := range s.ckpts {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

func (s *Store) abs(path string) string { return filepath.Join(s.opts.Dir, path) }

func (s *Store) newID() SegID { return SegID(s.next.Add(1) - 1) }

func (s *Store) deferred(what string, err error) {
	if s.opts.Events.Deferred != nil {
		s.opts.Events.Deferred(what, err)
	}
}

// remove unlinks a file that nothing refers to. Failing to is no harm: the next
// Open does it.
func (s *Store) remove(path string, orphan bool) {
	if err := removeIfExists(s.fs, s.abs(path)); err != nil {
		s.deferred("remove "+path, err)
		return
	}
	if s.opts.Events.Removed != nil {
		s.opts.Events.Removed(path, orphan)
	}
}

// Install makes an edit durable (all of it or nothing), then effective. Segments
// that it drops are unlinked when their last pin is gone. When it fails with
// anything but ErrFailed, nothing has changed and the edit may be tried again.
func (s *Store) Install(e *Edit) error { return s.install(e, nil) }

// install is Install with a change of the store's own that happens with it.
func (s *Store) install(e *Edit, effect func()) error {
	if e.Empty() {
		return nil
	}
	dropped, err := s.edit(e, effect)
	// Unlinking takes long: later edits need not wait for it.
	for _, g := range dropped {
		s.release(g)
	}
	return err
}

// edit makes an edit durable and effective and returns the segments that it dropped.
func (s *Store) edit(e *Edit, effect func()) ([]*segment, error) {
	s.editMu.Lock()
	defer s.editMu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if err := s.state.check(e.changes); err != nil {
		return nil, err
	}
	var payload []byte
	for i := range e.changes {
		payload = e.changes[i].append(payload)
	}
	if err := s.man.append(payload); err != nil {
		return nil, err
	}
	s.metrics.edits.Add(1)
	dropped := s.apply(e, effect)
	if s.man.due(s.opts.ManifestBytes) {
		s.metrics.rewrites.Add(1)
		if err := s.man.rewrite(s.state); err != nil {
			s.deferred("rewrite "+manifestName, err) // the edit itself is durable
		}
	}
	return dropped, nil
}

// usable says whether edits can still be made.
func (s *Store) usable() error {
	s.editMu.Lock()
	defer s.editMu.Unlock()
	if s.closed {
		return ErrClosed
	}
	return s.man.failed
}

// apply makes a durable edit effective.
func (s *Store) apply(e *Edit, effect func()) (dropped []*segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.apply(e.changes)
	for i := range e.changes {
		c := &e.changes[i]
		switch c.kind {
		case opAddSegment, opAddCopy:
			s.segs[c.meta.ID] = newSegment(c.meta)
		case opDropSegment:
			g := s.segs[c.meta.ID]
			g.listed = false
			dropped = append(dropped, g)
		}
	}
	if effect != nil {
		effect()
	}
	return dropped
}

// acquire returns a segment with a reference, or ErrGone.
func (s *Store) acquire(id SegID) (*segment, error) {
	s.mu.RLock()
	g := s.segs[id]
	ok := g != nil && g.retain()
	s.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("%w: %d", ErrGone, id)
	}
	return g, nil
}

// release gives up a reference; the last one unlinks the file.
func (s *Store) release(g *segment) {
	if n := g.refs.Add(-1); n > 0 {
		if planted.UnlinkPinned && !g.listed {
			s.files.forget(g.meta.ID)
			s.remove(g.path, false)
		}
		return
	} else if n < 0 {
		panic("store: segment unpinned too often")
	}
	s.mu.Lock()
	delete(s.segs, g.meta.ID)
	s.mu.Unlock()
	s.files.forget(g.meta.ID)
	s.cache.forget(g.meta.ID)
	s.remove(g.path, false)
}

// Pin keeps a segment readable although it may be dropped, until Unpin; false if
// it was dropped already.
func (s *Store) Pin(id SegID) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	g := s.segs[id]
	return g != nil && g.listed && g.retain()
}

// Unpin undoes one Pin. The last one unlinks a dropped file, which takes some 200
// microseconds: not for a shard's loop.
func (s *Store) Unpin(id SegID) {
	s.mu.RLock()
	g := s.segs[id]
	s.mu.RUnlock()
	if g == nil {
		panic("store: segment unpinned too often")
	}
	s.release(g)
}

// Flushed returns what the shard's last SetFlushed stored.
func (s *Store) Flushed(shard uint32) Flushed {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.shards[shard].flushed
}

// Setting returns a copy of a setting's value.
func (s *Store) Setting(key string) ([]byte, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := s.state.settings[key]
	return bytes.Clone(v), ok
}

// Segments lists the segments of a shard by ascending id, without their runs.
func (s *Store) Segments(shard uint32) []SegmentMeta {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var metas []SegmentMeta
	for _, g := range s.listed(shard) {
		metas = append(metas, g.meta)
	}
	return metas
}

// listed returns a shard's listed segments by ascending id; the caller holds mu.
func (s *Store) listed(shard uint32) []*segment {
	var segs []*segment
	for _, g := range s.segs {
		if g.listed && g.meta.Shard == shard {
			segs = append(segs, g)
		}
	}
	slices.SortFunc(segs, func(a, b *segment) int { return cmp.Compare(a.meta.ID, b.meta.ID) })
	return segs
}

// Runs reads the directory of a segment again.
func (s *Store) Runs(id SegID) ([]Run, error) {
	g, err := s.acquire(id)
	if err != nil {
		return nil, err
	}
	defer s.release(g)
	runs, _, err := s.directory(g)
	return runs, err
}

func (s *Store) directory(g *segment) ([]Run, []runInfo, error) {
	if g.salvaged != nil {
		return slices.Clone(g.salvaged.runs), g.salvaged.infos, nil
	}
	h, err := s.files.acquire(g)
	if err != nil {
		return nil, nil, err
	}
	defer s.files.release(h)
	_, runs, infos, reason, err := readDirectory(h.f, g.meta)
	if err != nil {
		return nil, nil, fmt.Errorf("store: %s: %w", g.path, err)
	}
	if reason != "" {
		return nil, nil, s.damage(g, int64(g.meta.stats.dirPos), 0, reason, nil)
	}
	return runs, infos, nil
}

// Snapshot is a pinned version of a shard: immutable files, and a checkpoint
// file that is immutable up to its valid length.
type Snapshot struct {
	Segments   []SegmentMeta // without Runs
	Checkpoint CheckpointInfo
	HasCheck   bool

	s    *Store
	file *checkpointFile
}

// Snapshot pins what a shard consists of now.
func (s *Store) Snapshot(shard uint32) *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &Snapshot{s: s}
	for _, g := range s.listed(shard) {
		g.refs.Add(1) // it is listed: the count is not 0
		v.Segments = append(v.Segments, g.meta)
	}
	sh := s.state.shards[shard]
	v.Checkpoint, v.HasCheck = sh.check, sh.hasCheck
	v.Checkpoint.Extra = bytes.Clone(v.Checkpoint.Extra)
	if v.file = s.ckpts[shard]; v.file != nil {
		v.file.refs.Add(1)
	}
	return v
}

// Path returns where a segment of the snapshot lies, relative to the store.
func (v *Snapshot) Path(m SegmentMeta) string { return segmentPath(m.Shard, m.ID) }

// CheckpointPath returns where the checkpoint lies, empty if there is none.
func (v *Snapshot) CheckpointPath() string {
	if v.file == nil {
		return ""
	}
	return v.file.path
}

// Release unpins the version. Calls after the first do nothing.
func (v *Snapshot) Release() {
	s := v.s
	if s == nil {
		return
	}
	v.s = nil
	for _, m := range v.Segments {
		s.Unpin(m.ID)
	}
	if v.file != nil {
		s.releaseCheckpoint(v.file)
	}
}

// Metrics returns counters and gauges.
func (s *Store) Metrics() Metrics {
	m := Metrics{
		BytesWritten: s.metrics.bytesWritten.Load(), BytesRead: s.metrics.bytesRead.Load(),
		Edits: s.metrics.edits.Load(), ManifestRewrites: s.metrics.rewrites.Load(),
		BaseRewrites: s.metrics.bases.Load(), Compactions: s.metrics.compactions.Load(),
	}
	s.mu.RLock()
	for _, g := range s.segs {
		if g.listed {
			m.Segments++
			m.SegmentBytes += g.meta.Bytes
			live := g.acct.estimate()
			m.LiveBytes += live
			m.DeadBytes += g.meta.stats.total - live
		} else {
			m.Pinned++
		}
	}
	s.mu.RUnlock()
	s.cache.mu.Lock()
	m.CacheHits, m.CacheMisses, m.CacheBytes = s.cache.hits, s.cache.misses, s.cache.bytes
	s.cache.mu.Unlock()
	s.files.mu.Lock()
	m.OpenFiles = len(s.files.open)
	s.files.mu.Unlock()
	return m
}
