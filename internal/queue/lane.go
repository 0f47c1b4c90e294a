package queue

import (
	"math"

	"github.com/sluicemq/sluice/internal/msg"
)

// Lane is a sub-log with offsets of its own. Its methods only read.
type Lane struct {
	tail     msg.Offset // the next append's offset
	low      msg.Offset // Invariant: everything below is settled, low itself is not; low <= tail
	reserved msg.Offset // nothing at or beyond it has been delivered; may be beyond tail
	settled  Set        // Invariant: only offsets of (low, tail)
	counts   *counts    // nil while there are none; only unsettled offsets
	stored   *storedParts
}

// storedParts are the parts of a lane that lie in the checkpoint under keys of their own.
type storedParts struct {
	settled, counts, bound []uint64 // chunk keys, sorted
}

// Tail returns the offset that the next message gets.
func (n *Lane) Tail() msg.Offset { return n.tail }

// Low returns the offset below which everything is settled.
func (n *Lane) Low() msg.Offset { return n.low }

// Reserved returns the mark at and beyond which nothing has been delivered.
func (n *Lane) Reserved() msg.Offset { return n.reserved }

// Unsettled returns how many messages are not settled.
func (n *Lane) Unsettled() uint64 { return n.tail - n.low - n.settled.count }

// IsSettled reports whether off was appended and is settled.
func (n *Lane) IsSettled(off msg.Offset) bool { return off < n.low || n.settled.Contains(off) }

// NextUnsettled returns the first unsettled offset at or after off, or Tail.
func (n *Lane) NextUnsettled(off msg.Offset) msg.Offset {
	off = max(off, n.low)
	if n.settled.count > 0 {
		off = n.settled.NextClear(off)
	}
	return min(off, n.tail)
}

// NextSettled returns the first settled offset at or after off, or Tail.
func (n *Lane) NextSettled(off msg.Offset) msg.Offset {
	if off < n.low {
		return off
	}
	if n.settled.count > 0 {
		if s, ok := n.settled.NextSet(off); ok {
			return s
		}
	}
	return n.tail
}

// UnsettledIn returns how many offsets of r are appended and not settled.
func (n *Lane) UnsettledIn(r msg.Range) uint64 {
	from, to := n.clip(r)
	if from >= to {
		return 0
	}
	return to - from - n.settled.CountRange(from, to)
}

// AppendUnsettled appends the unsettled parts of r to dst, in order.
func (n *Lane) AppendUnsettled(dst []msg.Range, r msg.Range) []msg.Range {
	from, to := n.clip(r)
	for from < to {
		from = n.NextUnsettled(from)
		e := min(n.NextSettled(from), to)
		if from >= e {
			break
		}
		dst = append(dst, msg.Range{First: from, Count: e - from})
		from = e
	}
	return dst
}

// Attempts returns the delivery count of off: how often it was returned and counted,
// 65,535 for all that is more.
func (n *Lane) Attempts(off msg.Offset) uint32 {
	a, _ := n.attemptsRun(off)
	return a
}

// attemptsRun also returns the first offset after off that may have another count.
func (n *Lane) attemptsRun(off msg.Offset) (uint32, msg.Offset) {
	if n.counts == nil {
		return 0, math.MaxUint64
	}
	return n.counts.get(off)
}

// rangeEnd returns the offset after r.
func rangeEnd(r msg.Range) msg.Offset {
	if r.Count > math.MaxUint64-r.First {
		return math.MaxUint64
	}
	return r.First + r.Count
}

// clip returns what of r lies between low and tail.
func (n *Lane) clip(r msg.Range) (from, to msg.Offset) {
	return max(r.First, n.low), min(rangeEnd(r), n.tail)
}

func (n *Lane) settle(from, to msg.Offset) (newly uint64) {
	switch {
	case from > n.low:
		newly = n.settled.AddRange(from, to)
	case n.settled.count == 0:
		n.low, newly = to, to-from
	default:
		newly = to - from - n.settled.CountRange(from, to)
		n.low = n.settled.NextClear(to)
		n.settled.TrimBelow(n.low)
	}
	if n.counts != nil && newly > 0 {
		n.counts.remove(from, to)
		if len(n.counts.parts) == 0 {
			n.counts = nil
		}
	}
	return newly
}

func (n *Lane) raise(from, to msg.Offset) {
	for from < to {
		from = n.NextUnsettled(from)
		e := min(n.NextSettled(from), to)
		if from >= e {
			return
		}
		if n.counts == nil {
			n.counts = new(counts)
		}
		n.counts.raise(from, e)
		from = e
	}
}
