package shard

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/sluicemq/sluice/internal/planted"
)

// LinkID makes the id of a link out of the node and the number of its start.
func LinkID(node uint32, incarnation uint32) uint64 {
	return uint64(node)<<32 | uint64(incarnation)
}

// outboxBit marks the links that are no node's: what one shard owes another. They have no
// incarnation. Nodes have numbers below 2^31.
const outboxBit = 1 << 63

// OutboxLink returns the id of the link on which a shard sends what it owes another one.
func OutboxLink(source uint32) uint64 { return outboxBit | uint64(source) }

// OutboxSource returns the shard whose outbox a link is, ok=false for a node's link.
func OutboxSource(id uint64) (source uint32, ok bool) { return uint32(id), id&outboxBit != 0 }

func linkNode(id uint64) uint32 { return uint32(id >> 32) }

// links is the replicated table of links: the last accepted sequence of each. One
// incarnation a node, and one for each shard that owes this one something: O(nodes and
// shards).
type links struct {
	last map[uint64]uint64
	// jump accepts gaps: in a replay, what fills them is lost.
	jump bool
}

type verdict uint8

const (
	linkAccept verdict = iota
	linkDuplicate
	linkGap
	linkStale // of an incarnation that a newer one has ended
)

// check says what accept would, without changing anything.
func (l *links) check(id, seq uint64) verdict {
	for other := range l.last {
		if id&outboxBit == 0 && linkNode(other) == linkNode(id) && other > id {
			return linkStale
		}
	}
	switch last := l.last[id]; {
	case seq == last && planted.OutboxSentTwice && id&outboxBit != 0:
		return linkAccept
	case seq <= last:
		return linkDuplicate
	case seq != last+1 && !l.jump && !planted.LinkGapAccepted:
		return linkGap
	}
	return linkAccept
}

// accept records the sequence if it is the next one of its link.
func (l *links) accept(id, seq uint64) verdict {
	v := l.check(id, seq)
	if v != linkAccept {
		return v
	}
	if _, known := l.last[id]; !known && id&outboxBit == 0 {
		for other := range l.last {
			if linkNode(other) == linkNode(id) {
				delete(l.last, other)
			}
		}
	}
	l.last[id] = seq
	return linkAccept
}

// encode gives the table's bytes, equal for equal tables.
func (l *links) encode() []byte {
	ids := make([]uint64, 0, len(l.last))
	for id := range l.last {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	b := make([]byte, 0, 16*len(ids))
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint64(b, id)
		b = binary.LittleEndian.AppendUint64(b, l.last[id])
	}
	return b
}

func (l *links) decode(b []byte) error {
	if len(b)%16 != 0 {
		return fmt.Errorf("shard: link table of %d bytes", len(b))
	}
	l.last = make(map[uint64]uint64, len(b)/16)
	for ; len(b) > 0; b = b[16:] {
		l.last[binary.LittleEndian.Uint64(b)] = binary.LittleEndian.Uint64(b[8:])
	}
	return nil
}
