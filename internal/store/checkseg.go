package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// segmentCheck walks the chain of blocks of a segment file and compares what it
// finds with the directory, the indexes and the due list. Behind a damaged block it
// goes on at the next place where the directory or an index knows of one.
type segmentCheck struct {
	m       SegmentMeta
	report  SegmentReport
	damages []*DamageError

	t      trailer
	runs   []Run // nil if the directory is damaged
	known  []int64
	parts  map[int64]Run // single blocks of indexed runs, by position
	holed  bool          // a block was damaged: counts can't agree
	bodies map[uint64]checkedBody

	run    int    // the run that the blocks belong to, -1 before the first
	count  uint64 // entries seen of it
	last   msg.Offset
	index  []byte // what its index should be
	stale  bool   // a block of the run was damaged
	seed   maphash.Seed
	dues   int
	dueSum uint64 // of what the entries say, minus that of what the due list says
}

type checkedBody struct {
	size   uint32
	expiry int64
}

func (c *segmentCheck) damage(pos, n int64, reason string, run *Run) {
	e := &DamageError{
		Path: segmentPath(c.m.Shard, c.m.ID), Seg: c.m.ID, Shard: c.m.Shard, Pos: pos, Len: n, Reason: reason,
	}
	if run != nil {
		e.HasRange, e.Log, e.Lane, e.First, e.Last = true, run.Log, run.Lane, run.First, run.Last
	}
	c.damages = append(c.damages, e)
}

func (c *segmentCheck) check(f vfs.File) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	t, runs, _, reason, err := readDirectory(f, c.m)
	if err != nil {
		return err
	}
	end := size
	if reason != "" {
		c.damage(int64(t.dirPos), 0, reason, nil)
	} else {
		c.t, c.runs, end = t, runs, int64(t.dirPos)
	}
	c.run, c.bodies, c.seed = -1, map[uint64]checkedBody{}, maphash.MakeSeed()
	sc := newScanner(f, c.m.seal(), end)
	defer sc.close()
	h, err := sc.fill(0, segmentHeaderLen)
	if err != nil {
		return err
	}
	if !bytes.Equal(h, appendSegmentHeader(nil, c.m.Shard, SegID(c.m.seal()))) {
		c.damage(0, segmentHeaderLen, "header", nil)
	}
	if err := c.learn(f); err != nil {
		return err
	}
	if err := c.walk(sc, end); err != nil {
		return err
	}
	c.endRun()
	c.compare()
	return nil
}

// learn collects the places of blocks that the directory and the indexes know.
func (c *segmentCheck) learn(f vfs.File) error {
	c.parts = map[int64]Run{}
	c.known = append(c.known, int64(c.t.duePos))
	sc := newScanner(f, c.m.seal(), int64(c.t.duePos))
	defer sc.close()
	for _, r := range c.runs {
		c.known = append(c.known, int64(r.Pos), int64(r.Pos)+int64(r.Size))
		if r.Flags&RunIndexed == 0 {
			continue
		}
		b, err := sc.at(int64(r.Pos) + int64(r.Size))
		if err != nil {
			return err
		}
		if len(b) == 0 || kindOf(b) != kindIndex {
			continue // the walk finds it
		}
		x, ok := parseIndex(b, r)
		for i := 0; ok && i < x.len(); i++ {
			c.known = append(c.known, int64(x.pos(i)))
			c.parts[int64(x.pos(i))] = x.part(i, r)
		}
	}
	slices.Sort(c.known)
	return nil
}

func (c *segmentCheck) walk(sc *scanner, end int64) error {
	for pos := int64(segmentHeaderLen); pos < end; {
		b, err := sc.at(pos)
		if err != nil {
			return err
		}
		if b == nil {
			if c.runs == nil {
				return nil // the directory's damage has been told
			}
			pos = c.skip(pos, end)
			continue
		}
		switch kindOf(b) {
		case kindEntries:
			c.entries(b, pos)
		case kindBodies:
			c.body(b, pos)
		case kindIndex:
			if !c.stale && !bytes.Equal(b[blockHeaderLen:], c.index) {
				c.damage(pos, int64(len(b)), "an index that does not fit its run", c.current())
			}
		case kindDue:
			c.duePage(b, pos)
		case kindDirectory:
			return nil // only without a trailer that says where it is
		default:
			c.damage(pos, int64(len(b)), "unknown kind of block", nil)
		}
		pos += int64(len(b))
	}
	return nil
}

// skip reports the damaged block at pos and returns where to go on.
func (c *segmentCheck) skip(pos, end int64) int64 {
	next := end
	if i, _ := slices.BinarySearch(c.known, pos+1); i < len(c.known) {
		next = c.known[i]
	}
	c.holed = true
	if part, ok := c.parts[pos]; ok {
		c.stale = true
		c.damage(pos, next-pos, "entries", &part)
		return next
	}
	i, found := slices.BinarySearchFunc(c.runs, pos, func(r Run, p int64) int { return cmp.Compare(int64(r.Pos), p) })
	if !found {
		i--
	}
	if i >= 0 && pos < int64(c.runs[i].Pos)+int64(c.runs[i].Size) {
		if i != c.run {
			c.endRun()
			c.beginRun(i)
		}
		c.stale = true
		if found || c.runs[i].Flags&RunShared == 0 {
			c.damage(pos, next-pos, "entries", &c.runs[i])
			return next
		}
	}
	what := "bodies" // which entries that concerns is found when they come
	if pos >= int64(c.t.duePos) {
		what = "due page"
	} else if i >= 0 && pos == int64(c.runs[i].Pos)+int64(c.runs[i].Size) {
		what = "index"
	}
	c.damage(pos, next-pos, what, nil)
	return next
}

func (c *segmentCheck) current() *Run {
	if c.run < 0 || c.run >= len(c.runs) {
		return nil
	}
	return &c.runs[c.run]
}

func (c *segmentCheck) beginRun(i int) {
	c.run, c.count, c.last, c.stale = i, 0, 0, false
	c.index = c.index[:0]
}

// endRun compares what was seen of a run with the directory.
func (c *segmentCheck) endRun() {
	r := c.current()
	if r == nil {
		return
	}
	c.report.Runs++
	if !c.stale && (c.count != uint64(r.Count) || c.last != r.Last) {
		c.damage(int64(r.Pos), int64(r.Size), "another number of entries than the directory says", r)
	}
}

func (c *segmentCheck) entries(b []byte, pos int64) {
	h, ok := parseEntriesHeader(b)
	if !ok {
		c.damage(pos, int64(len(b)), "head of entries", nil)
		return
	}
	if c.runs != nil {
		i, found := slices.BinarySearchFunc(c.runs, pos, func(r Run, p int64) int { return cmp.Compare(int64(r.Pos), p) })
		if found {
			c.endRun()
			c.beginRun(i)
		}
		r := c.current()
		if r == nil || r.Log != h.log || r.Lane != h.lane || found && r.First != h.first || !found && c.count > 0 && h.first <= c.last {
			c.damage(pos, int64(len(b)), "entries that the directory does not know", nil)
			return
		}
	}
	c.index = binary.LittleEndian.AppendUint64(c.index, h.first)
	c.index = binary.LittleEndian.AppendUint32(c.index, uint32(pos))
	var it entryIter
	var e entry
	lost := Run{Log: h.log, Lane: h.lane} // entries whose bodies are damaged
	it.open(b, h)
	for it.next(&e) {
		c.count++
		c.report.Entries++
		c.last = e.off
		expiry := int64(0)
		if !e.shared {
			expiry = expiryOf(e.record)
		} else if body, ok := c.bodies[bodyKey(e.ref.block, e.ref.at)]; ok && body.size == e.ref.size {
			expiry = body.expiry
		} else {
			if lost.Count == 0 {
				lost.First = e.off
			}
			lost.Count, lost.Last = lost.Count+1, e.off
		}
		if expiry != 0 {
			c.dues++
			c.dueSum += c.dueHash(expiry, h.log, h.lane, e.off)
		}
	}
	if it.bad {
		c.damage(pos, int64(len(b)), "contents of entries", c.current())
	}
	if lost.Count > 0 {
		c.holed = true
		c.damage(pos, int64(len(b)), "bodies that entries refer to", &lost)
	}
}

func bodyKey(block, at uint32) uint64 { return uint64(block)<<32 | uint64(at) }

func (c *segmentCheck) body(b []byte, pos int64) {
	for at := blockHeaderLen; at < len(b); {
		n := msg.RecordSize(b[at:])
		if n == 0 {
			c.damage(pos, int64(len(b)), "contents of bodies", nil)
			return
		}
		c.bodies[bodyKey(uint32(pos), uint32(at))] = checkedBody{uint32(n), expiryOf(b[at:])}
		c.report.Bodies++
		at += n
	}
}

func (c *segmentCheck) dueHash(time int64, log msg.LogID, lane uint8, off msg.Offset) uint64 {
	return maphash.Comparable(c.seed, dueRecord{time, log, off, lane})
}

func (c *segmentCheck) duePage(b []byte, pos int64) {
	page := b[blockHeaderLen:]
	time := int64(0)
	for len(page) > 0 {
		dt, n := binary.Varint(page)
		v := varints{b: page[max(n, 0):], bad: n <= 0}
		log, lane, off := v.u64(), v.u8(), v.u64()
		if v.bad || time > 0 && dt < 0 {
			c.damage(pos, int64(len(b)), "contents of a due page", nil)
			return
		}
		time += dt
		page = v.b
		c.report.Due++
		c.dueSum -= c.dueHash(time, log, lane, off)
	}
}

// compare checks the totals, which can only agree if nothing was damaged.
func (c *segmentCheck) compare() {
	if c.holed || c.runs == nil || len(c.damages) > 0 {
		return
	}
	switch {
	case c.report.Runs != len(c.runs) || c.report.Entries != c.t.entries || c.report.Bodies != int(c.t.bodies):
		c.damage(int64(c.t.dirPos), 0, "totals of the trailer", nil)
	case c.report.Due != c.dues || c.report.Due != int(c.t.dues) || c.dueSum != 0:
		c.damage(int64(c.t.duePos), int64(c.t.dirPos-c.t.duePos), "a due list that does not fit the entries", nil)
	}
}
