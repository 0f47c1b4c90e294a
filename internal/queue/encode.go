package queue

import (
	"encoding/binary"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

// Keys of a checkpoint. Logs and chunks are big endian, so that a log's keys of a
// kind lie together in order.
//
//	'h' u64 log                      head: profile, flags, lanes with what is inline
//	's' u64 log, u8 lane, u64 chunk  settled offsets of 65,536
//	'c' u64 log, u8 lane, u64 chunk  delivery counts of 4,096 offsets
//	'b' u64 log, u8 lane, u64 chunk  of 4,096 offsets those whose bodies lie in parts
//	'p' u64 log                      producers
//	'w' u64 log, u64 block           deduplication ids, 256 of them
//	'x'                              what transactions hold
//	'm'                              tallies, deleted ids
//	'd' u64 chunk                    deleted ids of 65,536
//
// A head names the parts that belong to it. So a stale part does no harm, a missing one
// is noticed, and the order in which keys are replayed does not matter.
//
// Values begin with a format byte; numbers are uvarints. A list of ranges is its
// length, then for each the gap from the end of the previous one and the count.
const (
	keyHead      = 'h'
	keySettled   = 's'
	keyCounts    = 'c'
	keyBound     = 'b'
	keyProducers = 'p'
	keyDedup     = 'w'
	keyHolds     = 'x'
	keyShard     = 'm'
	keyDeleted   = 'd'
)

const (
	formatHead   = 2
	formatRuns   = 1 // of a chunk: ranges relative to its start
	formatBitmap = 2 // of a chunk: 1,024 little-endian words
	formatCounts = 1
	formatTable  = 1 // producers, shard
	formatBound  = 1

	headSealed = 1
)

func headKey(log msg.LogID) []byte {
	return binary.BigEndian.AppendUint64([]byte{keyHead}, log)
}

func producersKey(log msg.LogID) []byte {
	return binary.BigEndian.AppendUint64([]byte{keyProducers}, log)
}

func dedupKey(log msg.LogID, block uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{keyDedup}, log), block)
}

func deletedKey(chunk uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{keyDeleted}, chunk)
}

func partKey(kind byte, log msg.LogID, lane uint8, chunk uint64) []byte {
	k := make([]byte, 0, 18)
	k = binary.BigEndian.AppendUint64(append(k, kind), log)
	return binary.BigEndian.AppendUint64(append(k, lane), chunk)
}

func appendRanges(dst []byte, ranges []msg.Range) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(ranges)))
	prev := uint64(0)
	for _, r := range ranges {
		dst = binary.AppendUvarint(dst, r.First-prev)
		dst = binary.AppendUvarint(dst, r.Count)
		prev = r.First + r.Count
	}
	return dst
}

// keyRanges returns sorted chunk keys as ranges.
func keyRanges(keys []uint64) (ranges []msg.Range) {
	for _, k := range keys {
		ranges = appendRange(ranges, k, k+1)
	}
	return ranges
}

func appendChunk(dst []byte, c *chunkData) []byte {
	if c.bits != nil {
		dst = append(slices.Grow(dst, 1+chunkSize/8), formatBitmap)
		for _, w := range c.bits {
			dst = binary.LittleEndian.AppendUint64(dst, w)
		}
		return dst
	}
	dst = append(dst, formatRuns)
	dst = binary.AppendUvarint(dst, uint64(len(c.runs)))
	prev := uint64(0)
	for _, r := range c.runs {
		dst = binary.AppendUvarint(dst, uint64(r.first)-prev)
		dst = binary.AppendUvarint(dst, uint64(r.last)-uint64(r.first)+1)
		prev = uint64(r.last) + 1
	}
	return dst
}

func appendCounts(dst []byte, p *countPart) []byte {
	dst = append(dst, formatCounts)
	dst = binary.AppendUvarint(dst, uint64(len(p.runs)))
	prev := uint64(0)
	for _, r := range p.runs {
		dst = binary.AppendUvarint(dst, uint64(r.first)-prev)
		dst = binary.AppendUvarint(dst, uint64(r.last)-uint64(r.first)+1)
		dst = binary.AppendUvarint(dst, uint64(r.n))
		prev = uint64(r.last) + 1
	}
	return dst
}

// encodeHead returns the value of a log's head and queues the parts that go with it.
func (l *Ledger) encodeHead(g *logState) []byte {
	b := l.value[:0]
	b = append(b, formatHead)
	flags := byte(0)
	if g.sealed {
		flags |= headSealed
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(len(g.profile.raw)))
	b = append(b, g.profile.raw...)
	lanes := 1
	if g.more != nil {
		lanes += len(g.more.lanes)
	}
	var r repeats
	if g.repeats != nil {
		r = *g.repeats
	}
	b = binary.AppendUvarint(b, uint64(len(r.producers.byID)))
	b = binary.AppendUvarint(b, r.dedup.next)
	b = binary.AppendUvarint(b, r.dedup.next-r.dedup.first)
	b = binary.AppendUvarint(b, uint64(lanes))
	l.Lanes(g.id, func(number uint8, n *Lane) bool {
		b = l.appendLane(append(b, number), g.id, number, n)
		return true
	})
	l.value = b
	return slices.Clone(b)
}

func (l *Ledger) appendLane(b []byte, log msg.LogID, number uint8, n *Lane) []byte {
	b = binary.AppendUvarint(b, n.tail)
	b = binary.AppendUvarint(b, n.tail-n.low)
	b = binary.AppendUvarint(b, n.reserved)
	var was storedParts
	if n.stored != nil {
		was = *n.stored
	}
	key := func(kind byte) func(uint64) []byte {
		return func(chunk uint64) []byte { return partKey(kind, log, number, chunk) }
	}
	var now storedParts
	var inline []msg.Range
	inline, now.settled = l.cutSet(&n.settled, was.settled, key(keySettled))
	now.counts = l.cutCounts(n.counts, was.counts, key(keyCounts))
	now.bound = l.cutBound(laneID{log, number}, was.bound, key(keyBound))
	if now.settled != nil || now.counts != nil || now.bound != nil {
		n.stored = &now
	} else {
		n.stored = nil
	}
	b = appendRanges(b, inline)
	b = appendRanges(b, keyRanges(now.settled))
	b = appendRanges(b, keyRanges(now.counts))
	return appendRanges(b, keyRanges(now.bound))
}

// encodeShard returns the value of the shard's key and queues the parts of the deleted
// ids.
func (l *Ledger) encodeShard() []byte {
	b := binary.AppendUvarint([]byte{formatTable}, uint64(len(l.settledBy)))
	for _, n := range l.settledBy {
		b = binary.AppendUvarint(b, n)
	}
	inline, parts := l.cutSet(&l.deleted, l.shardState.stored, deletedKey)
	l.shardState.stored = parts
	b = appendRanges(b, inline)
	return appendRanges(b, keyRanges(parts))
}
