package queue

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

// bodies is what the ledger knows of large bodies. The parts of one are the messages of a
// parts log, which nothing delivers and nothing settles: it is there as a whole until
// the last message whose body it is has left its queue, or the body was given up before
// it belonged to a message.
//
//	       AppendPart 0           AppendLarge             the last Settle, Delete
//	(none) -----------> unfinished -----------> bound ---------------------------> gone
//	                        |                                                       ^
//	                        +--------------- DropUnbound, SweepParts ---------------+
//
// Invariant: the count of a parts log is the number of entries in bound that name it,
// 0 while it is unfinished. Entries are of unsettled offsets only.
type bodies struct {
	parts   map[msg.LogID]uint32
	bound   map[laneID]*boundLane
	freeing func(log msg.LogID)
}

// boundLane are the offsets of a lane whose bodies lie in parts.
type boundLane struct{ chunks []boundChunk } // by key, none empty

// boundBits: a chunk is 4,096 offsets, written as one key of a checkpoint.
const boundBits = 12

type boundChunk struct {
	key   uint64
	list  []boundBody // by offset
	dirty bool        // changed since a checkpoint took it
}

type boundBody struct {
	off   msg.Offset
	parts msg.LogID
	bytes uint64
}

// OnFreeing has fn called with each parts log that nothing refers to any more, before it
// is removed. fn may read the ledger.
func (l *Ledger) OnFreeing(fn func(log msg.LogID)) { l.freeing = fn }

// AppendPart adds a part to a parts log, which part 0 makes. It reports false, and
// changes nothing, if the part isn't the next one or the body is bound.
func (l *Ledger) AppendPart(log msg.LogID, number uint32) bool {
	g := l.logs[log]
	switch {
	case g != nil:
		if l.parts[log] > 0 || g.lane0.tail != uint64(number) {
			return false
		}
	case number != 0 || !msg.IsParts(log):
		return false
	default:
		g = &logState{id: log, profile: l.profile(nil)}
		l.logs[log] = g
		l.parts[log] = 0
	}
	l.touch(g)
	g.lane0.tail++
	return true
}

// AppendLarge is Append, or with forced AppendForced, of one message whose body lies in
// parts. It is Refused for PartsMissing unless all of them are there. When all targets
// were tried, DropUnbound follows.
func (l *Ledger) AppendLarge(log msg.LogID, lane uint8, c *msg.Cond, ref msg.PartsRef, forced bool) Outcome {
	if p := l.logs[ref.Log]; p == nil || !msg.IsParts(ref.Log) || p.lane0.tail != uint64(ref.Count) {
		return Outcome{Code: Refused, Why: PartsMissing}
	}
	o := l.append(log, lane, 1, c, forced)
	if o.Code == Appended {
		l.parts[ref.Log]++
		l.boundLane(laneID{log, lane}).add(boundBody{o.First, ref.Log, ref.Bytes})
	}
	return o
}

// DropUnbound removes a parts log that no message refers to and reports whether there
// was one.
func (l *Ledger) DropUnbound(parts msg.LogID) bool {
	g := l.logs[parts]
	if g == nil || !msg.IsParts(parts) || l.parts[parts] > 0 {
		return false
	}
	l.free(g)
	return true
}

// SweepParts removes the unfinished parts logs that a node made at starts before the
// given one.
func (l *Ledger) SweepParts(node, before uint32) {
	var ids []msg.LogID
	for id, refs := range l.parts {
		if n, inc := msg.PartsOrigin(id); refs == 0 && n == node && inc < before {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		l.DropUnbound(id)
	}
}

// NextLarge returns the first unsettled message at or after off whose body lies in
// parts, and the length of its body.
func (l *Ledger) NextLarge(log msg.LogID, lane uint8, off msg.Offset) (at msg.Offset, bytes uint64, ok bool) {
	if len(l.bound) == 0 {
		return 0, 0, false
	}
	b := l.bound[laneID{log, lane}]
	if b == nil {
		return 0, 0, false
	}
	i, _ := b.find(off >> boundBits)
	for ; i < len(b.chunks); i++ {
		list := b.chunks[i].list
		if k := searchBody(list, off); k < len(list) {
			return list[k].off, list[k].bytes, true
		}
	}
	return 0, 0, false
}

// EachLarge calls fn with each unsettled message of a lane whose body lies in parts, by
// offset.
func (l *Ledger) EachLarge(log msg.LogID, lane uint8, fn func(off msg.Offset, ref msg.PartsRef)) {
	b := l.bound[laneID{log, lane}]
	if b == nil {
		return
	}
	for i := range b.chunks {
		for _, x := range b.chunks[i].list {
			ref := msg.PartsRef{Log: x.parts, Bytes: x.bytes}
			if g := l.logs[x.parts]; g != nil {
				ref.Count = uint32(g.lane0.tail)
			}
			fn(x.off, ref)
		}
	}
}

// EachOwner calls fn with each message whose body is in a parts log, in no particular
// order. It looks at all large messages of the shard.
func (l *Ledger) EachOwner(parts msg.LogID, fn func(log msg.LogID, lane uint8, off msg.Offset)) {
	for id, b := range l.bound {
		for i := range b.chunks {
			for _, x := range b.chunks[i].list {
				if x.parts == parts {
					fn(id.log, id.lane, x.off)
				}
			}
		}
	}
}

// free removes a parts log.
func (l *Ledger) free(g *logState) {
	if l.freeing != nil {
		l.freeing(g.id)
	}
	delete(l.parts, g.id)
	l.remove(g)
}

func (l *Ledger) unrefParts(id msg.LogID) {
	if l.parts[id]--; l.parts[id] > 0 {
		return
	}
	l.DropUnbound(id)
}

func (l *Ledger) boundLane(id laneID) *boundLane {
	b := l.bound[id]
	if b == nil {
		b = new(boundLane)
		l.bound[id] = b
	}
	return b
}

// releaseBodies takes back the references of the offsets in [from, to), which were
// settled. The caller has touched the log.
func (l *Ledger) releaseBodies(id laneID, from, to msg.Offset) {
	b := l.bound[id]
	if b == nil {
		return
	}
	for _, x := range b.take(from, to) {
		l.unrefParts(x.parts)
	}
	if len(b.chunks) == 0 {
		delete(l.bound, id)
	}
}

func (b *boundLane) find(key uint64) (int, bool) {
	return slices.BinarySearchFunc(b.chunks, key, func(c boundChunk, k uint64) int { return cmp.Compare(c.key, k) })
}

func searchBody(list []boundBody, off msg.Offset) int {
	i, _ := slices.BinarySearchFunc(list, off, func(x boundBody, o msg.Offset) int { return cmp.Compare(x.off, o) })
	return i
}

// add adds an entry at the end.
func (b *boundLane) add(x boundBody) {
	key := x.off >> boundBits
	n := len(b.chunks)
	if n == 0 || b.chunks[n-1].key != key {
		b.chunks = append(b.chunks, boundChunk{key: key})
		n++
	}
	c := &b.chunks[n-1]
	c.list, c.dirty = append(c.list, x), true
}

// take removes the entries in [from, to) and returns them.
func (b *boundLane) take(from, to msg.Offset) (out []boundBody) {
	i, _ := b.find(from >> boundBits)
	first := i
	for ; i < len(b.chunks) && b.chunks[i].key<<boundBits < to; i++ {
		c := &b.chunks[i]
		lo, hi := searchBody(c.list, from), searchBody(c.list, to)
		if lo < hi {
			out = append(out, c.list[lo:hi]...)
			c.list, c.dirty = slices.Delete(c.list, lo, hi), true
		}
	}
	empty := func(c boundChunk) bool { return len(c.list) == 0 }
	rest := slices.DeleteFunc(b.chunks[first:i:i], empty)
	b.chunks = append(b.chunks[:first+len(rest)], b.chunks[i:]...)
	return out
}

// cutBound queues the chunks of a lane that changed for a checkpoint, and the deletion of
// keys that are no longer needed, and returns the chunks that there are.
func (l *Ledger) cutBound(id laneID, stored []uint64, key func(chunk uint64) []byte) (parts []uint64) {
	if b := l.bound[id]; b != nil {
		for i := range b.chunks {
			c := &b.chunks[i]
			parts = append(parts, c.key)
			if c.dirty {
				c.dirty = false
				l.put(key(c.key), c.encode())
			}
		}
	}
	l.dropParts(stored, parts, key)
	return parts
}

func (c *boundChunk) encode() []byte {
	b := binary.AppendUvarint([]byte{formatBound}, uint64(len(c.list)))
	at, last := c.key<<boundBits, msg.LogID(0)
	for _, x := range c.list {
		b = binary.AppendUvarint(b, x.off-at)
		b = binary.AppendVarint(b, int64(x.parts-last))
		b = binary.AppendUvarint(b, x.bytes)
		at, last = x.off+1, x.parts
	}
	return b
}

// bound reads what encode wrote.
func (r *decoder) bound(key uint64) *boundChunk {
	r.format(formatBound)
	c := &boundChunk{key: key}
	at, last := key<<boundBits, msg.LogID(0)
	for range r.count(3) {
		x := boundBody{off: at + r.uv(), parts: last + msg.LogID(r.v()), bytes: r.uv()}
		if x.off < at || x.off>>boundBits != key || !msg.IsParts(x.parts) || x.bytes == 0 {
			r.fail("large body")
			return c
		}
		c.list = append(c.list, x)
		at, last = x.off+1, x.parts
	}
	if len(c.list) == 0 {
		r.fail("no large body")
	}
	return c
}

func (h *hasher) addBound(b *boundLane) {
	if b == nil {
		return
	}
	for i := range b.chunks {
		for _, x := range b.chunks[i].list {
			h.add(x.off)
			h.add(x.parts)
			h.add(x.bytes)
		}
	}
}

// countBodies makes the counts of parts logs anew and checks that what refers to them is
// there, at the end of a restore.
func (l *Ledger) countBodies() error {
	for id := range l.logs {
		if msg.IsParts(id) {
			l.parts[id] = 0
		}
	}
	for id, b := range l.bound {
		_, n := l.at(id.log, id.lane)
		for i := range b.chunks {
			for _, x := range b.chunks[i].list {
				if _, ok := l.parts[x.parts]; !ok {
					return corrupt("large body without parts")
				}
				if n == nil || msg.IsParts(id.log) || x.off >= n.tail || n.IsSettled(x.off) {
					return corrupt("large body of no message")
				}
				l.parts[x.parts]++
			}
		}
	}
	return nil
}
