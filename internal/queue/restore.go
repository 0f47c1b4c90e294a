package queue

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

// offsetMax is beyond any offset that a lane can reach; a larger one is corrupt.
const offsetMax = 1 << 60

// restoring collects the keys of a checkpoint until all are there.
type restoring struct {
	parts     map[partID]*entry      // settled, counts, bound, deleted
	wanted    map[partID][]msg.Range // per kind, log and lane (chunk 0): the parts that its head names
	producers map[msg.LogID]*producerTable
	expect    map[msg.LogID]expected
	dedup     map[msg.LogID]map[uint64][]dedupEntry // by log and block
	lossy     bool                                  // some keys may be missing
}

// expected is what a head says of the keys that belong to it.
type expected struct {
	producers   uint64
	first, next uint64 // ordinals of deduplication ids
}

type partID struct {
	kind  byte
	lane  uint8
	log   msg.LogID
	chunk uint64
}

// Restore takes one key of a checkpoint into an empty ledger. Keys may come in any
// order and repeatedly, the last value counts, nil deletes: a base and its deltas can be
// replayed as they were emitted. Until RestoreDone the ledger can't be used otherwise.
// An error wraps msg.ErrCorrupt; the ledger is useless then. key and value are copied.
func (l *Ledger) Restore(key, value []byte) error {
	l.restoring()
	if len(key) == 0 {
		return corrupt("empty key")
	}
	kind, rest := key[0], key[1:]
	switch {
	case kind == keyHead && len(rest) == 8:
		return l.restoreHead(binary.BigEndian.Uint64(rest), value)
	case kind == keyProducers && len(rest) == 8:
		return l.restoreProducers(binary.BigEndian.Uint64(rest), value)
	case kind == keyDedup && len(rest) == 16:
		return l.restoreDedup(binary.BigEndian.Uint64(rest), binary.BigEndian.Uint64(rest[8:]), value)
	case kind == keyHolds && len(rest) == 0:
		return l.restoreHolds(value)
	case kind == keyShard && len(rest) == 0:
		return l.restoreShard(value)
	case kind == keyDeleted && len(rest) == 8:
		return l.restorePart(partID{kind: kind, chunk: binary.BigEndian.Uint64(rest)}, value)
	case (kind == keySettled || kind == keyCounts || kind == keyBound) && len(rest) == 17:
		return l.restorePart(partID{
			kind: kind, lane: rest[8],
			log: binary.BigEndian.Uint64(rest), chunk: binary.BigEndian.Uint64(rest[9:]),
		}, value)
	}
	return corrupt("key")
}

func (l *Ledger) restoring() *restoring {
	if l.restore == nil {
		l.restore = &restoring{
			parts:     make(map[partID]*entry),
			wanted:    make(map[partID][]msg.Range),
			producers: make(map[msg.LogID]*producerTable),
			expect:    make(map[msg.LogID]expected),
			dedup:     make(map[msg.LogID]map[uint64][]dedupEntry),
		}
	}
	return l.restore
}

// RestoreLossy says that keys of the checkpoint are lost: what they held of a log counts
// as not settled and not known.
func (l *Ledger) RestoreLossy() { l.restoring().lossy = true }

func (l *Ledger) restorePart(id partID, value []byte) error {
	if value == nil {
		delete(l.restore.parts, id)
		return nil
	}
	limit := uint64(offsetMax >> countBits)
	switch id.kind {
	case keySettled:
		limit = offsetMax >> chunkBits
	case keyDeleted:
		limit = 1<<(64-chunkBits) - 1 // the last id is none
	}
	if id.chunk >= limit {
		return corrupt("chunk key")
	}
	r := decoder{b: value}
	e := new(entry)
	switch id.kind {
	case keyCounts:
		e.counts = &countPart{key: id.chunk, runs: r.countRuns()}
	case keyBound:
		e.bound = r.bound(id.chunk)
	default:
		e.set = &chunk{key: id.chunk, span: 1, chunkData: r.chunk()}
	}
	if err := r.end(); err != nil {
		return err
	}
	l.restore.parts[id] = e
	return nil
}

func (l *Ledger) restoreHead(log msg.LogID, value []byte) error {
	if old := l.logs[log]; old != nil {
		l.Lanes(log, func(lane uint8, _ *Lane) bool {
			delete(l.restore.wanted, partID{kind: keySettled, log: log, lane: lane})
			delete(l.restore.wanted, partID{kind: keyCounts, log: log, lane: lane})
			delete(l.restore.wanted, partID{kind: keyBound, log: log, lane: lane})
			return true
		})
		l.unrefProfile(old.profile)
		delete(l.logs, log)
		delete(l.restore.expect, log)
	}
	if value == nil {
		return nil
	}
	r := decoder{b: value}
	r.format(formatHead)
	flags := r.u8()
	g := &logState{id: log, sealed: flags&headSealed != 0, stored: true}
	raw := r.bytes(r.count(1))
	x := expected{producers: r.uv(), next: r.uv()}
	window := r.uv()
	if window > x.next || x.next > offsetMax {
		r.fail("window of deduplication ids")
	}
	x.first = x.next - window
	lanes := r.count(8)
	prev := -1
	for range lanes {
		number := r.u8()
		if int(number) <= prev || prev < 0 && number != 0 {
			r.fail("lane number")
		}
		if r.err != nil {
			break
		}
		prev = int(number)
		l.restoreLane(&r, log, number, g.makeLane(number))
	}
	if prev < 0 {
		r.fail("no lane")
	}
	if err := r.end(); err != nil {
		return err
	}
	if x != (expected{}) {
		l.restore.expect[log] = x
	}
	g.profile = l.profile(raw)
	l.logs[log] = g
	return nil
}

func (l *Ledger) restoreLane(r *decoder, log msg.LogID, number uint8, n *Lane) {
	n.tail = r.uv()
	open := r.uv()
	n.reserved = r.uv()
	if n.tail > offsetMax || open > n.tail || n.reserved > offsetMax {
		r.fail("lane")
		return
	}
	n.low = n.tail - open
	for _, x := range r.ranges(n.tail) {
		if x.First <= n.low {
			r.fail("settled range")
			return
		}
		n.settled.AddRange(x.First, x.First+x.Count)
	}
	n.settled.clean()
	for _, kind := range []byte{keySettled, keyCounts, keyBound} {
		if w := r.ranges(offsetMax >> countBits); len(w) > 0 {
			l.restore.wanted[partID{kind: kind, log: log, lane: number}] = w
		}
	}
}

func (s *Set) clean() {
	for i := range s.chunks {
		s.chunks[i].dirty = false
	}
}

func (l *Ledger) restoreProducers(log msg.LogID, value []byte) error {
	if value == nil {
		delete(l.restore.producers, log)
		return nil
	}
	r := decoder{b: value}
	t := r.producers()
	if err := r.end(); err != nil {
		return err
	}
	l.restore.producers[log] = t
	return nil
}

func (l *Ledger) restoreDedup(log msg.LogID, block uint64, value []byte) error {
	blocks := l.restore.dedup[log]
	if blocks == nil {
		blocks = map[uint64][]dedupEntry{}
		l.restore.dedup[log] = blocks
	}
	if value == nil {
		delete(blocks, block)
		return nil
	}
	r := decoder{b: value}
	blocks[block] = r.dedup()
	return r.end()
}

func (l *Ledger) restoreShard(value []byte) error {
	l.shardState = shardState{}
	delete(l.restore.wanted, partID{kind: keyDeleted})
	if value == nil {
		return nil
	}
	r := decoder{b: value}
	r.format(formatTable)
	for i := range r.count(1) {
		n := r.uv()
		if i >= len(l.settledBy) {
			r.fail("tally")
			break
		}
		l.settledBy[i] = n
	}
	for _, x := range r.ranges(math.MaxUint64) {
		l.deleted.AddRange(x.First, x.First+x.Count)
	}
	l.deleted.clean()
	if w := r.ranges(1 << (64 - chunkBits)); len(w) > 0 {
		l.restore.wanted[partID{kind: keyDeleted}] = w
	}
	return r.end()
}

// RestoreDone assembles what Restore took and checks that nothing is missing.
func (l *Ledger) RestoreDone() error {
	rs := l.restore
	if rs == nil {
		return nil
	}
	l.restore = nil
	ids := make([]partID, 0, len(rs.parts))
	for id := range rs.parts {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b partID) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.log, b.log),
			cmp.Compare(a.lane, b.lane), cmp.Compare(a.chunk, b.chunk))
	})
	for _, id := range ids {
		head := partID{kind: id.kind, log: id.log, lane: id.lane}
		w := rs.wanted[head]
		i, _ := slices.BinarySearchFunc(w, id.chunk, func(r msg.Range, k uint64) int {
			if r.First+r.Count <= k {
				return -1
			}
			return 1
		})
		if i == len(w) || id.chunk < w[i].First {
			continue // a part from before
		}
		if err := l.attachPart(id, rs.parts[id]); err != nil {
			return err
		}
	}
	for id, w := range rs.wanted {
		if err := l.checkParts(id, w); err != nil && !rs.lossy {
			return err
		}
	}
	if err := l.countBodies(); err != nil {
		return err
	}
	for log, x := range rs.expect {
		err := l.attachRepeats(log, x, rs)
		if err != nil && !rs.lossy {
			return err
		}
		if err != nil {
			l.logs[log].repeats = nil
		}
	}
	return l.holdsRestored()
}

// attachRepeats puts together what a log remembers of its producers and ids.
func (l *Ledger) attachRepeats(log msg.LogID, x expected, rs *restoring) error {
	r := &repeats{}
	l.logs[log].repeats = r
	if x.producers > 0 {
		t := rs.producers[log]
		if t == nil || uint64(len(t.byID)) != x.producers {
			return corrupt("producers of a log")
		}
		r.producers = *t
	}
	t := &r.dedup
	t.first, t.next = x.first, x.next
	from, to := x.first/dedupBlockSize, (x.next+dedupBlockSize-1)/dedupBlockSize
	t.stored = [2]uint64{from, max(from, to)}
	t.index = map[string]uint64{}
	for k := from; k < to; k++ {
		entries := rs.dedup[log][k]
		if uint64(len(entries)) != min(dedupBlockSize, x.next-k*dedupBlockSize) {
			return corrupt("deduplication ids of a log")
		}
		t.blocks = append(t.blocks, dedupBlock{entries: entries})
		for i, e := range entries {
			n := k*dedupBlockSize + uint64(i)
			if n < x.first {
				continue
			}
			if _, twice := t.index[e.id]; twice {
				return corrupt("deduplication id twice")
			}
			t.index[e.id] = n
		}
	}
	return nil
}

// attachPart puts a chunk, which comes after those attached before it, in its place.
func (l *Ledger) attachPart(id partID, e *entry) error {
	if id.kind == keyDeleted {
		l.shardState.stored = append(l.shardState.stored, id.chunk)
		return l.deleted.attach(e.set)
	}
	_, n := l.at(id.log, id.lane)
	if n.stored == nil {
		n.stored = new(storedParts)
	}
	if id.kind == keySettled {
		n.stored.settled = append(n.stored.settled, id.chunk)
		base := id.chunk << chunkBits
		if first := base | uint64(e.set.nextSet(0)); first <= n.low {
			return corrupt("settled chunk below the low-water mark")
		}
		if err := n.settled.attach(e.set); err != nil {
			return err
		}
		if n.settled.CountRange(n.tail, math.MaxUint64) > 0 {
			return corrupt("settled chunk beyond the tail")
		}
		return nil
	}
	if id.kind == keyBound {
		n.stored.bound = append(n.stored.bound, id.chunk)
		b := l.boundLane(laneID{id.log, id.lane})
		b.chunks = append(b.chunks, *e.bound)
		return nil
	}
	n.stored.counts = append(n.stored.counts, id.chunk)
	if n.counts == nil {
		n.counts = new(counts)
	}
	n.counts.parts = append(n.counts.parts, *e.counts)
	return nil
}

// attach inserts a chunk, which must not exist yet.
func (s *Set) attach(c *chunk) error {
	i, ok := s.find(c.key)
	if ok {
		return corrupt("chunk stored twice")
	}
	s.chunks = slices.Insert(s.chunks, i, *c)
	s.count += uint64(c.n)
	return nil
}

// checkParts says whether all parts that a head named were attached.
func (l *Ledger) checkParts(id partID, want []msg.Range) error {
	n := uint64(0)
	for _, r := range want {
		n += r.Count
	}
	var have []uint64
	if id.kind == keyDeleted {
		have = l.shardState.stored
	} else if _, ln := l.at(id.log, id.lane); ln != nil && ln.stored != nil {
		switch id.kind {
		case keyCounts:
			have = ln.stored.counts
		case keyBound:
			have = ln.stored.bound
		default:
			have = ln.stored.settled
		}
	}
	if n != uint64(len(have)) {
		return corrupt("part missing")
	}
	return nil
}

// decoder reads a value; the first error sticks and later reads give zeros.
type decoder struct {
	b   []byte
	err error
}

func (r *decoder) fail(what string) {
	if r.err == nil {
		r.err = corrupt(what)
	}
	r.b = nil
}

func (r *decoder) end() error {
	if len(r.b) > 0 {
		r.fail("bytes left over")
	}
	return r.err
}

func (r *decoder) u8() uint8 {
	if len(r.b) == 0 {
		r.fail("short value")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *decoder) format(want uint8) {
	if r.u8() != want {
		r.fail("format")
	}
}

func (r *decoder) uv() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("varint")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *decoder) u32() uint32 {
	v := r.uv()
	if v > math.MaxUint32 {
		r.fail("number")
	}
	return uint32(v)
}

func (r *decoder) v() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("varint")
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads a number of things of which each takes at least size bytes.
func (r *decoder) count(size int) int {
	v := r.uv()
	if v > uint64(len(r.b)/size) {
		r.fail("count")
		return 0
	}
	return int(v)
}

func (r *decoder) bytes(n int) []byte {
	if n > len(r.b) {
		r.fail("short value")
		return nil
	}
	s := r.b[:n]
	r.b = r.b[n:]
	return s
}

// ranges reads sorted, disjoint, non-empty ranges that end at limit or below.
func (r *decoder) ranges(limit uint64) []msg.Range {
	n := r.count(2)
	out := make([]msg.Range, 0, n)
	at := uint64(0)
	for range n {
		gap, count := r.uv(), r.uv()
		if count == 0 || gap > limit-at || count > limit-at-gap {
			r.fail("range")
			return nil
		}
		out = append(out, msg.Range{First: at + gap, Count: count})
		at += gap + count
	}
	return out
}

// chunk reads what appendChunk wrote.
func (r *decoder) chunk() (c chunkData) {
	switch r.u8() {
	case formatRuns:
		for i, x := range r.ranges(chunkSize) {
			if n := len(c.runs); i > 0 && uint64(c.runs[n-1].last)+1 == x.First {
				r.fail("runs that touch")
			}
			c.runs = append(c.runs, run{uint16(x.First), uint16(x.First + x.Count - 1)})
			c.n += uint32(x.Count)
		}
	case formatBitmap:
		b := r.bytes(chunkSize / 8)
		if r.err != nil {
			return c
		}
		c.bits = new(bitmap)
		for i := range c.bits {
			c.bits[i] = binary.LittleEndian.Uint64(b[i*8:])
			c.n += uint32(bits.OnesCount64(c.bits[i]))
		}
	default:
		r.fail("chunk format")
	}
	if c.n == 0 || c.full() {
		r.fail("chunk without a gap or a member")
	}
	return c
}

// countRuns reads what appendCounts wrote.
func (r *decoder) countRuns() (runs []countRun) {
	r.format(formatCounts)
	at := uint64(0)
	for i := range r.count(3) {
		gap, count, n := r.uv(), r.uv(), r.uv()
		if count == 0 || gap > countChunk-at || count > countChunk-at-gap || n == 0 || n > math.MaxUint16 {
			r.fail("delivery counts")
			return nil
		}
		if i > 0 && gap == 0 && uint64(runs[i-1].n) == n {
			r.fail("delivery counts that touch")
			return nil
		}
		runs = append(runs, countRun{uint16(at + gap), uint16(at + gap + count - 1), uint16(n)})
		at += gap + count
	}
	if len(runs) == 0 {
		r.fail("no delivery counts")
	}
	return runs
}
