package queue

import (
	"encoding/binary"
	"math"

	"github.com/sluicemq/sluice/internal/msg"
)

// Bounds of what a log remembers of its producers and deduplication ids. Time is that
// of the batches; whatever is beyond goes the oldest first.
const (
	ProducerExpiryMS = 7 * 24 * 3600 * 1000 // since a producer's last append
	ProducersMax     = 4096                 // in a log
	DedupDefaultMax  = 100_000              // ids in a log whose profile says no number

	producerBatches = 5   // appends of each producer whose offsets are known
	dedupBlockSize  = 256 // ids under one key of a checkpoint
)

// repeats finds appends that a log has already. Both tables are state: equal on
// replicas, in checkpoints, and forgotten by batch time alone.
type repeats struct {
	producers producerTable
	dedup     dedupTable
}

// checkRepeats judges an append by its names; Appended means that it may go on.
func (g *logState) checkRepeats(c *msg.Cond, n uint64, now int64) Outcome {
	if g.repeats == nil {
		return Outcome{}
	}
	if c.Producer != 0 {
		if o := g.repeats.producers.check(c, n, now); o.Code != Appended {
			return o
		}
	}
	if window := g.profile.DedupWindowMS; len(c.Dedup) > 0 && window > 0 {
		if e := g.repeats.dedup.find(c.Dedup); e != nil && now-e.timeMS < window {
			return Outcome{Code: Duplicate, First: e.off}
		}
	}
	return Outcome{}
}

// recordRepeats remembers an append that was made.
func (g *logState) recordRepeats(c *msg.Cond, n uint64, first msg.Offset, now int64) {
	dedup := len(c.Dedup) > 0 && g.profile.DedupWindowMS > 0
	if c.Producer == 0 && !dedup {
		return
	}
	if g.repeats == nil {
		g.repeats = &repeats{}
	}
	if c.Producer != 0 {
		g.repeats.producers.record(c, n, first, now)
	}
	if dedup {
		t := &g.repeats.dedup
		t.expire(now-g.profile.DedupWindowMS, g.profile.dedupMax()-1)
		t.add(string(c.Dedup), first, now)
	}
}

// appendOf is one append of a producer.
type appendOf struct {
	first uint64     // sequence of its first message
	n     uint64     // messages
	off   msg.Offset // offset of the first message
}

// producer is what a log knows of one producer: its last appends, so that one that is
// repeated gets the offset of the first time.
type producer struct {
	id           uint64
	epoch        uint32
	wrap         bool // as msg.Cond.Wrap
	known        uint8
	timeMS       int64 // of the last append
	last         [producerBatches]appendOf
	older, newer *producer
}

// producerTable has the producers of a log in the order of their last appends.
type producerTable struct {
	byID           map[uint64]*producer
	oldest, newest *producer
	dirty          bool // changed since a checkpoint took it
	stored         bool // a checkpoint has it
}

func (p *producer) mask() uint64 {
	if p.wrap {
		return math.MaxInt32
	}
	return math.MaxUint64
}

// check judges an append by its sequence. A producer that is not known may begin
// anywhere, a new epoch of a known one at 0.
func (t *producerTable) check(c *msg.Cond, n uint64, now int64) Outcome {
	p := t.byID[c.Producer]
	switch {
	case p == nil || now-p.timeMS >= ProducerExpiryMS:
		return Outcome{}
	case c.Epoch < p.epoch:
		return Outcome{Code: Refused, Why: ProducerEpoch}
	case c.Epoch > p.epoch && c.Seq == 0:
		return Outcome{}
	case c.Epoch > p.epoch:
		return Outcome{Code: Refused, Why: ProducerSeq}
	}
	mask := p.mask()
	for _, a := range p.last[:p.known] {
		if d := (c.Seq - a.first) & mask; d < a.n && n <= a.n-d {
			return Outcome{Code: Duplicate, First: a.off + d}
		}
	}
	newest := p.last[p.known-1]
	next := (newest.first + newest.n) & mask
	behind := (next - c.Seq) & mask
	switch {
	case behind == 0:
		return Outcome{}
	case !p.wrap && c.Seq > next, p.wrap && behind > mask/2, n > behind:
		return Outcome{Code: Refused, Why: ProducerSeq}
	}
	return Outcome{Code: Duplicate, First: NoOffset}
}

func (t *producerTable) record(c *msg.Cond, n uint64, first msg.Offset, now int64) {
	if t.byID == nil {
		t.byID = make(map[uint64]*producer, 1)
	}
	t.dirty = true
	p := t.byID[c.Producer]
	if p != nil && now-p.timeMS >= ProducerExpiryMS {
		t.remove(p)
		p = nil
	}
	if p == nil {
		p = &producer{id: c.Producer}
		t.byID[p.id] = p
	} else {
		t.unlink(p)
	}
	if c.Epoch != p.epoch {
		p.known = 0
	}
	p.epoch, p.wrap, p.timeMS = c.Epoch, c.Wrap, now
	if p.known == producerBatches {
		copy(p.last[:], p.last[1:])
		p.known--
	}
	p.last[p.known] = appendOf{c.Seq, n, first}
	p.known++
	t.link(p)
	for len(t.byID) > ProducersMax || now-t.oldest.timeMS >= ProducerExpiryMS {
		t.remove(t.oldest)
	}
}

// link makes p the newest.
func (t *producerTable) link(p *producer) {
	p.older, p.newer = t.newest, nil
	if t.newest != nil {
		t.newest.newer = p
	} else {
		t.oldest = p
	}
	t.newest = p
}

func (t *producerTable) unlink(p *producer) {
	if p.older != nil {
		p.older.newer = p.newer
	} else {
		t.oldest = p.newer
	}
	if p.newer != nil {
		p.newer.older = p.older
	} else {
		t.newest = p.older
	}
}

func (t *producerTable) remove(p *producer) {
	t.unlink(p)
	delete(t.byID, p.id)
}

func (t *producerTable) encode() []byte {
	b := binary.AppendUvarint([]byte{formatTable}, uint64(len(t.byID)))
	for p := t.oldest; p != nil; p = p.newer {
		b = binary.AppendUvarint(b, p.id)
		b = binary.AppendUvarint(b, uint64(p.epoch))
		b = binary.AppendUvarint(b, uint64(p.timeMS))
		flags := p.known << 1
		if p.wrap {
			flags |= 1
		}
		b = append(b, flags)
		for _, a := range p.last[:p.known] {
			b = binary.AppendUvarint(b, a.first)
			b = binary.AppendUvarint(b, a.n)
			b = binary.AppendUvarint(b, a.off)
		}
	}
	return b
}

// producers reads what encode wrote.
func (r *decoder) producers() *producerTable {
	r.format(formatTable)
	n := r.count(7)
	t := &producerTable{byID: make(map[uint64]*producer, n), stored: true}
	for range n {
		p := &producer{id: r.uv(), epoch: r.u32(), timeMS: int64(r.uv())}
		flags := r.u8()
		p.wrap, p.known = flags&1 != 0, flags>>1
		if _, twice := t.byID[p.id]; twice || p.known == 0 || p.known > producerBatches || p.timeMS < 0 {
			r.fail("producer")
			return t
		}
		if t.newest != nil && p.timeMS < t.newest.timeMS {
			r.fail("order of producers")
		}
		for i := range p.known {
			a := appendOf{r.uv(), r.uv(), r.uv()}
			if a.n == 0 || a.off > offsetMax {
				r.fail("producer's append")
			}
			p.last[i] = a
		}
		t.byID[p.id] = p
		t.link(p)
	}
	return t
}

// dedupEntry is an append that was made under an id.
type dedupEntry struct {
	id     string
	off    msg.Offset
	timeMS int64
}

// dedupTable is a log's window of deduplication ids in the order of their appends. Ids
// are kept as they came: a collision of hashes would drop a message.
//
// The n-th id ever gets the ordinal n; 256 ordinals are a block, which is written into a
// checkpoint once when it is full, and again for each checkpoint while it isn't.
type dedupTable struct {
	index       map[string]uint64 // ordinal of each id of the window
	blocks      []dedupBlock      // blocks[0] holds the ordinal first
	first, next uint64            // ordinals of the window
	stored      [2]uint64         // numbers of the blocks in the checkpoint: from, up to
}

type dedupBlock struct {
	entries []dedupEntry // only ever appended to, so that a checkpoint may refer to it
	dirty   bool
}

func (t *dedupTable) at(ordinal uint64) *dedupEntry {
	b := &t.blocks[ordinal/dedupBlockSize-t.first/dedupBlockSize]
	return &b.entries[ordinal%dedupBlockSize]
}

func (t *dedupTable) find(id []byte) *dedupEntry {
	if n, ok := t.index[string(id)]; ok {
		return t.at(n)
	}
	return nil
}

func (t *dedupTable) add(id string, off msg.Offset, now int64) {
	if t.index == nil {
		t.index = map[string]uint64{}
	}
	if t.next%dedupBlockSize == 0 {
		t.blocks = append(t.blocks, dedupBlock{})
	}
	b := &t.blocks[len(t.blocks)-1]
	b.entries, b.dirty = append(b.entries, dedupEntry{id, off, now}), true
	t.index[id] = t.next
	t.next++
}

// expire forgets what was appended at a time up to upto, and the oldest while there are
// more than most.
func (t *dedupTable) expire(upto int64, most uint64) {
	for t.first < t.next {
		e := t.at(t.first)
		if e.timeMS > upto && t.next-t.first <= most {
			return
		}
		delete(t.index, e.id)
		if t.first++; t.first%dedupBlockSize == 0 {
			t.blocks[0] = dedupBlock{}
			t.blocks = t.blocks[1:]
		}
	}
}

// clear forgets all ids; ordinals go on.
func (t *dedupTable) clear() { t.expire(math.MaxInt64, 0) }

func appendDedup(dst []byte, entries []dedupEntry) []byte {
	dst = append(dst, formatTable)
	dst = binary.AppendUvarint(dst, uint64(len(entries)))
	for _, e := range entries {
		dst = binary.AppendUvarint(dst, uint64(e.timeMS))
		dst = binary.AppendUvarint(dst, e.off)
		dst = append(dst, byte(len(e.id)))
		dst = append(dst, e.id...)
	}
	return dst
}

// dedup reads what appendDedup wrote.
func (r *decoder) dedup() []dedupEntry {
	r.format(formatTable)
	n := r.count(4)
	out := make([]dedupEntry, 0, n)
	for range n {
		e := dedupEntry{timeMS: int64(r.uv()), off: r.uv()}
		e.id = string(r.bytes(int(r.u8())))
		if e.id == "" || e.timeMS < 0 || e.off > offsetMax {
			r.fail("deduplication id")
		}
		out = append(out, e)
	}
	if n > dedupBlockSize {
		r.fail("block of deduplication ids")
	}
	return out
}

// cutDedup queues the changed blocks of a log's window, and the deletion of those that
// are no longer needed.
func (l *Ledger) cutDedup(log msg.LogID, t *dedupTable) {
	from := t.first / dedupBlockSize
	to := from + uint64(len(t.blocks))
	for k := t.stored[0]; k < min(t.stored[1], from); k++ {
		l.put(dedupKey(log, k), nil)
	}
	for i := range t.blocks {
		if b := &t.blocks[i]; b.dirty {
			b.dirty = false
			l.queue = append(l.queue, entry{key: dedupKey(log, from+uint64(i)), dedup: b.entries})
		}
	}
	t.stored = [2]uint64{from, to}
}
