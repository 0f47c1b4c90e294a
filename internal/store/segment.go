package store

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/vfs"
)

// segmentStats is what a segment's trailer and directory say about its space.
type segmentStats struct {
	avg       []uint32 // per run: bytes of an entry on average, with its share of bodies
	total     int64    // bytes of entries and bodies
	minWeight int64    // least bytes that an entry's death can free
	maxWeight int64    // most bytes that an entry's death can free
	duePos    uint32
	dirPos    uint32
	dues      uint32
}

func newStats(t *trailer, runs []Run, infos []runInfo) segmentStats {
	st := segmentStats{
		avg: make([]uint32, len(runs)), total: int64(t.bodyBytes),
		minWeight: int64(t.minWeight), maxWeight: int64(t.maxWeight),
		duePos: t.duePos, dirPos: t.dirPos, dues: t.dues,
	}
	for i, info := range infos {
		st.total += int64(info.own)
		bytes := uint64(info.own)
		if info.stubs > 0 {
			bytes += t.bodyBytes * uint64(info.stubs) / uint64(max(t.stubs, 1))
		}
		st.avg[i] = uint32(bytes / uint64(runs[i].Count))
	}
	return st
}

// segment is a segment that is listed or pinned.
type segment struct {
	meta SegmentMeta // without Runs
	path string      // relative
	refs atomic.Int32
	// listed: the MANIFEST has it, which counts as one reference. Guarded by Store.mu.
	listed bool

	// salvaged is instead of the directory in the file, if that is damaged.
	salvaged *salvaged

	acct account
}

// retain adds a reference unless the last one is gone.
func (g *segment) retain() bool {
	for {
		n := g.refs.Load()
		if n <= 0 {
			return false
		}
		if g.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func newSegment(m SegmentMeta) *segment {
	m.Runs = nil
	g := &segment{meta: m, path: segmentPath(m.Shard, m.ID), listed: true}
	g.refs.Store(1)
	g.acct.init(m.Entries, &m.stats)
	return g
}

// account is what is known about how much of a segment is alive.
type account struct {
	mu      sync.Mutex
	live    []uint32 // per run
	entries uint64
	dead    uint64 // entries
	est     int64  // live bytes, by the average of each run
	// Invariant: lo <= bytes that a rewrite would keep <= hi, as far as the live
	// counts are right.
	lo, hi int64
	// deadAt is dead when the segment was last measured.
	deadAt   uint64
	measured bool
	damaged  bool
	rebuild  bool // its directory is damaged
}

func (a *account) init(entries uint64, st *segmentStats) {
	a.entries = entries
	a.est, a.lo, a.hi = st.total, st.total, st.total
}

// set says that n entries of a run are live; n < 0: that -n more are dead.
func (a *account) set(run Run, n int, relative bool, st *segmentStats) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if int(run.Dir) >= len(st.avg) {
		return // the directory could not be read: nothing is known
	}
	if a.live == nil {
		// Inverted, so that a fresh slice means that everything is live.
		a.live = make([]uint32, len(st.avg))
	}
	was := int64(run.Count) - int64(a.live[run.Dir])
	now := int64(n)
	if relative {
		now = was + int64(n)
	}
	now = min(max(now, 0), int64(run.Count))
	a.live[run.Dir] = uint32(int64(run.Count) - now)
	d := was - now // entries that died; negative when a count is corrected
	a.dead = uint64(int64(a.dead) + d)
	a.est -= d * int64(st.avg[run.Dir])
	if d >= 0 {
		a.lo, a.hi = a.lo-d*st.maxWeight, a.hi-d*st.minWeight
	} else {
		a.lo, a.hi = a.lo-d*st.minWeight, a.hi-d*st.maxWeight
	}
	a.lo = min(max(a.lo, int64(a.entries-a.dead)*st.minWeight), st.total)
	a.hi = min(max(a.hi, a.lo), st.total)
}

// readAt reads n bytes at pos of a segment into a chunk of its own.
func (s *Store) readAt(g *segment, pos int64, n int) (*buf.Chunk, error) {
	h, err := s.files.acquire(g)
	if err != nil {
		return nil, err
	}
	defer s.files.release(h)
	c := buf.Get(n)
	b := c.Bytes()[:n]
	k, err := h.f.ReadAt(b, pos)
	s.metrics.bytesRead.Add(uint64(k))
	if errors.Is(err, syscall.EIO) { // such a sector is damaged: its checksum fails
		clear(b[k:])
		err, k = nil, n
	}
	if k < n && err != nil && !errors.Is(err, io.EOF) {
		c.Release()
		return nil, fmt.Errorf("store: %s at %d: %w", g.path, pos, err)
	}
	c.SetBytes(b[:k])
	return c, nil
}

// damage makes the error for entries of a segment that can't be read and tells the
// hook. The segment is not compacted any more: that would lose them for good.
func (s *Store) damage(g *segment, pos, n int64, reason string, run *Run) *DamageError {
	g.acct.mu.Lock()
	g.acct.damaged = true
	g.acct.mu.Unlock()
	return s.report(g, pos, n, reason, run)
}

// report is damage to something that a compaction would make anew.
func (s *Store) report(g *segment, pos, n int64, reason string, run *Run) *DamageError {
	e := &DamageError{Path: g.path, Seg: g.meta.ID, Shard: g.meta.Shard, Pos: pos, Len: n, Reason: reason}
	if run != nil {
		e.HasRange, e.Log, e.Lane, e.First, e.Last = true, run.Log, run.Lane, run.First, run.Last
	}
	if s.opts.Events.Damaged != nil {
		s.opts.Events.Damaged(e)
	}
	return e
}

// tailRead is how much of a segment's end is read at once: the directory of most.
const tailRead = 64 << 10

// readDirectory reads the trailer and the directory of a segment file; reason is
// not empty if they are damaged.
func readDirectory(f vfs.File, m SegmentMeta) (t trailer, runs []Run, infos []runInfo, reason string, err error) {
	size, err := f.Size()
	if err != nil {
		return t, nil, nil, "", err
	}
	if size != m.Bytes || size < segmentHeaderLen+segmentTrailerLen {
		return t, nil, nil, fmt.Sprintf("the file has %d bytes instead of %d", size, m.Bytes), nil
	}
	c := buf.Get(int(min(size, tailRead)))
	defer c.Release()
	tail := c.Bytes()[:min(size, tailRead)]
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return t, nil, nil, "", err
	}
	t, reason = parseTrailer(tail[len(tail)-segmentTrailerLen:])
	if reason == "" && (uint32(t.id) != m.seal() || t.shard != m.Shard || int64(t.fileLen) != size || t.entries != m.Entries) {
		reason = "the trailer is another segment's"
	}
	if reason != "" {
		return t, nil, nil, reason, nil
	}
	dir := tail[:len(tail)-segmentTrailerLen]
	if n := size - segmentTrailerLen - int64(t.dirPos); n <= int64(len(dir)) {
		dir = dir[int64(len(dir))-n:]
	} else {
		dir = make([]byte, n)
		if _, err := f.ReadAt(dir, int64(t.dirPos)); err != nil {
			return t, nil, nil, "", err
		}
	}
	block := openBlock(dir, kindDirectory, m.seal(), int64(t.dirPos))
	if block == nil {
		return t, nil, nil, "directory", nil
	}
	runs, infos, ok := parseDirectory(block[blockHeaderLen:], m.ID, t.duePos)
	if !ok || len(runs) != int(t.runs) {
		return t, nil, nil, "directory's contents", nil
	}
	return t, runs, infos, "", nil
}
