package store

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// CompactOptions shape one Compact.
type CompactOptions struct {
	// Throttle as in WriterOptions; counts bytes read and written.
	Throttle func(n int) error
	FS       vfs.FS // as in WriterOptions
}

// Compaction is the result of Compact. It pins its inputs, so that whoever still
// has their runs can read them until Close.
type Compaction struct {
	Inputs  []SegID
	Outputs []SegmentMeta // with runs; none if nothing was live

	s      *Store
	inputs []*segment
	closed bool
}

// AddTo adds the exchange of inputs for outputs to an edit.
func (c *Compaction) AddTo(e *Edit) {
	for _, id := range c.Inputs {
		e.DropSegment(id)
	}
	for _, m := range c.Outputs {
		e.AddSegment(m)
	}
}

// Close unpins the inputs; call it when the runs have been swapped. Outputs that
// were not installed are removed.
func (c *Compaction) Close() {
	if c.closed {
		return
	}
	c.closed = true
	for _, g := range c.inputs {
		c.s.release(g)
	}
	if c.s.usable() != nil {
		return // the MANIFEST may list them although it isn't known here
	}
	for _, m := range c.Outputs {
		if c.s.lookup(m.ID) == nil {
			c.s.remove(segmentPath(m.Shard, m.ID), true)
		}
	}
}

// Compact writes the live entries of some segments of one shard, merged by (log,
// lane, offset), to new segments. Shared bodies are kept once per output file, as
// long as a surviving entry refers to them. Damage stops it: the inputs stay as they
// are and the *DamageError says what can't be read.
func (s *Store) Compact(inputs []SegID, live LiveFunc, opts CompactOptions) (*Compaction, error) {
	c := &Compaction{s: s, Inputs: slices.Clone(inputs)}
	w, err := s.compact(c, live, opts)
	if err != nil {
		if w != nil {
			w.Abort()
		}
		c.Close()
		return nil, err
	}
	s.metrics.compactions.Add(1)
	return c, nil
}

func (s *Store) compact(c *Compaction, live LiveFunc, opts CompactOptions) (*Writer, error) {
	for i, id := range c.Inputs {
		g, err := s.acquire(id)
		if err != nil {
			return nil, err
		}
		c.inputs = append(c.inputs, g)
		if g.meta.Shard != c.inputs[0].meta.Shard || slices.Contains(c.Inputs[:i], id) {
			return nil, fmt.Errorf("%w: segments of several shards, or one twice", ErrInvalid)
		}
	}
	if len(c.inputs) == 0 {
		return nil, fmt.Errorf("%w: nothing to compact", ErrInvalid)
	}
	w := s.NewWriter(c.inputs[0].meta.Shard, WriterOptions(opts))
	w.set = c.inputs[0].meta.Set
	for _, g := range c.inputs {
		w.set = min(w.set, g.meta.Set)
	}
	m := &merge{w: w, live: live}
	defer m.close()
	for _, g := range c.inputs {
		src, err := s.openSource(g, opts.Throttle)
		if err != nil {
			return w, err
		}
		m.sources = append(m.sources, src)
	}
	if err := m.run(); err != nil {
		return w, err
	}
	var err error
	c.Outputs, err = w.Finish()
	return w, err
}

// source walks the live entries of one input.
type source struct {
	s      *Store
	g      *segment
	h      *handle
	sc     *scanner
	bodies bodyReader
	err    error // of the throttle

	runs  []Run
	infos []runInfo
	cur   int // the first run that the merge has not come to

	lane []wanted // runs of the current (log, lane), ascending
	at   int      // the next of them
	now  wanted   // the run that is being walked
	live liveSet
	pos  int64 // of the next block
	end  int64
	it   entryIter
	e    entry
}

// wanted is a run with what is wanted of it.
type wanted struct {
	run    Run
	ranges []msg.Range
	// group tells runs apart between which there is, or was, a run of a segment that
	// is not an input. They must not become one run: the runs of a log would overlap.
	group int
}

func (s *Store) openSource(g *segment, throttle func(int) error) (*source, error) {
	runs, infos, err := s.directory(g)
	if err != nil {
		return nil, err
	}
	h, err := s.files.acquire(g)
	if err != nil {
		return nil, err
	}
	src := &source{s: s, g: g, h: h, runs: runs, infos: infos, bodies: bodyReader{s: s, g: g}}
	src.sc = newScanner(h.f, g.meta.seal(), int64(g.meta.stats.duePos))
	src.sc.read = func(n int) {
		s.metrics.bytesRead.Add(uint64(n))
		if throttle != nil && src.err == nil {
			src.err = throttle(n)
		}
	}
	return src, nil
}

func (src *source) close() {
	src.sc.close()
	src.bodies.close()
	src.s.files.release(src.h)
}

// next finds the next live entry of the runs in lane; false at their end.
func (src *source) next() (bool, error) {
	for {
		for src.it.next(&src.e) {
			if src.live.has(src.e.off) {
				return true, nil
			}
		}
		if src.it.bad {
			return false, src.damage("contents of entries")
		}
		if len(src.live.ranges) == 0 || src.pos >= src.end {
			if src.at == len(src.lane) {
				return false, nil
			}
			src.now = src.lane[src.at]
			src.at++
			run := &src.now.run
			src.live = liveSet{src.now.ranges}
			src.pos, src.end = int64(run.Pos), int64(run.Pos)+int64(run.Size)
			src.it = entryIter{}
			continue
		}
		if err := src.nextBlock(); err != nil {
			return false, err
		}
	}
}

func (src *source) nextBlock() error {
	b, err := src.sc.at(src.pos)
	if err == nil {
		err = src.err
	}
	if err != nil {
		return err
	}
	if b == nil {
		return src.damage("block")
	}
	src.pos += int64(len(b))
	if kindOf(b) != kindEntries {
		return nil // bodies
	}
	h, ok := parseEntriesHeader(b)
	if !ok || h.log != src.now.run.Log || h.lane != src.now.run.Lane {
		return src.damage("entries of something else")
	}
	src.it.open(b, h)
	return nil
}

func (src *source) damage(reason string) error {
	return src.s.damage(src.g, src.pos, 0, reason, &src.now.run)
}

// merge takes the sources' runs by ascending (log, lane).
type merge struct {
	w       *Writer
	live    LiveFunc
	sources []*source
	lane    []laneRun
	active  []*source // those with a live entry of the current (log, lane) at hand
	group   int       // of the last entry
	from    *source   // of the body that fetch gets
	fetchFn func() ([]byte, error)
}

// laneRun is a run of the current (log, lane).
type laneRun struct {
	src  *source
	run  Run
	info runInfo
}

func (m *merge) close() {
	for _, src := range m.sources {
		src.close()
	}
}

func compareRuns(a, b Run) int {
	return cmp.Or(cmp.Compare(a.Log, b.Log), cmp.Compare(a.Lane, b.Lane))
}

func (m *merge) run() error {
	m.fetchFn = m.fetch
	for {
		var least *source
		for _, src := range m.sources {
			if src.cur < len(src.runs) && (least == nil || compareRuns(src.runs[src.cur], least.runs[least.cur]) < 0) {
				least = src
			}
		}
		if least == nil {
			return nil
		}
		if err := m.mergeLane(least.runs[least.cur]); err != nil {
			return err
		}
	}
}

// mergeLane merges all runs of the (log, lane) of run.
func (m *merge) mergeLane(run Run) error {
	m.lane = m.lane[:0]
	for _, src := range m.sources {
		src.lane, src.at = src.lane[:0], 0
		for src.cur < len(src.runs) && compareRuns(src.runs[src.cur], run) == 0 {
			m.lane = append(m.lane, laneRun{src, src.runs[src.cur], src.infos[src.cur]})
			src.cur++
		}
	}
	slices.SortStableFunc(m.lane, func(a, b laneRun) int { return cmp.Compare(a.run.First, b.run.First) })
	m.group = 0
	group, bytes, entries, stubs := 0, int64(0), int64(0), int64(0)
	for i, l := range m.lane {
		live := m.live(l.run)
		if i > 0 && !live.Follows {
			group++
		}
		ranges := clip(live.Ranges, l.run.First, l.run.Last)
		n := liveCount(l.run, ranges)
		if n == 0 {
			continue
		}
		bytes += int64(l.info.own) * n / int64(l.run.Count)
		entries += n
		stubs += int64(l.info.stubs) * n / int64(l.run.Count)
		l.src.lane = append(l.src.lane, wanted{l.run, ranges, group})
	}
	m.active = m.active[:0]
	for _, src := range m.sources {
		if len(src.lane) == 0 {
			continue
		}
		ok, err := src.next()
		if err != nil {
			return err
		}
		if ok {
			m.active = append(m.active, src)
		}
	}
	if len(m.active) == 0 {
		return nil
	}
	if 4*stubs > entries {
		bytes = 0
	}
	if err := m.w.StartRun(run.Log, run.Lane, bytes); err != nil {
		return err
	}
	for len(m.active) > 0 {
		if err := m.step(); err != nil {
			return err
		}
	}
	return nil
}

// step copies the entries of the source that has the least offset, up to the least
// of the others. What two sources both have is copied once.
func (m *merge) step() error {
	least, limit := 0, msg.Offset(maxOffset)
	for i, src := range m.active {
		if off := src.e.off; off < m.active[least].e.off {
			limit, least = m.active[least].e.off, i
		} else if i != least {
			limit = min(limit, off)
		}
	}
	src := m.active[least]
	for src.e.off <= limit {
		if len(m.active) == 1 || src.e.off < limit {
			if err := m.copy(src); err != nil {
				return err
			}
		}
		ok, err := src.next()
		if err != nil {
			return err
		}
		if !ok {
			m.active = slices.Delete(m.active, least, least+1)
			return nil
		}
	}
	return nil
}

func (m *merge) copy(src *source) error {
	if src.now.group != m.group {
		m.group = src.now.group
		if err := m.w.breakRun(); err != nil {
			return err
		}
	}
	e := &src.e
	if !e.shared {
		return m.w.Add(src.now.run.Log, src.now.run.Lane, e.off, e.record)
	}
	m.from = src
	key := SharedKey{Hi: uint64(src.g.meta.ID), Lo: uint64(e.ref.block)<<32 | uint64(e.ref.at)}
	return m.w.addShared(src.now.run.Log, src.now.run.Lane, e.off, key, m.fetchFn)
}

// fetch reads the body that the current entry of m.from refers to.
func (m *merge) fetch() ([]byte, error) {
	src := m.from
	record, err := src.bodies.get(src.e.ref)
	if err == nil && record == nil {
		err = src.damage("shared bodies")
	}
	return record, err
}

// Measure finds out how many bytes a rewrite of the segment would keep, by reading
// the runs that are neither wholly live nor wholly dead.
func (s *Store) Measure(id SegID, live LiveFunc) (int64, error) {
	g, err := s.acquire(id)
	if err != nil {
		return 0, err
	}
	defer s.release(g)
	src, err := s.openSource(g, nil)
	if err != nil {
		return 0, err
	}
	defer src.close()
	total := int64(0)
	bodies := map[bodyRef]struct{}{}
	for _, run := range src.runs {
		ranges := clip(live(run).Ranges, run.First, run.Last)
		n := liveCount(run, ranges)
		if n == 0 {
			continue
		}
		if n == int64(run.Count) && run.Flags&RunShared == 0 && len(ranges) == 1 {
			total += int64(run.Size)
			continue
		}
		src.lane, src.at = append(src.lane[:0], wanted{run: run, ranges: ranges}), 0
		for {
			ok, err := src.next()
			if err != nil {
				return 0, err
			}
			if !ok {
				break
			}
			total += int64(src.e.size)
			if src.e.shared {
				bodies[src.e.ref] = struct{}{}
			}
		}
	}
	for ref := range bodies {
		total += int64(ref.size)
	}
	g.acct.measuredAs(total, g.meta.stats.total)
	return total, nil
}

func (a *account) measuredAs(bytes, total int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.measured, a.deadAt = true, a.dead
	a.lo, a.hi = min(bytes, total), min(bytes, total)
}
