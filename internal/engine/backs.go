package engine

import (
	"sync"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/wal"
)

// backsMax bounds how many submissions a backs holds.
const backsMax = 128

// backs holds the submissions that a shard's readers last read back from the write-ahead
// log. One of them has messages of as many queues as a publisher had in one flush, and
// each queue's consumer comes for its own: without this, each delivery would read and
// check all of it again. The oldest leaves first: consumers of other queues come soon or
// not at all. For any goroutine.
type backs struct {
	mu   sync.Mutex
	list [backsMax]struct { // a ring
		pos wal.Position // a place is never written again, so what was read there stays true
		c   *buf.Chunk
	}
	from, n int // the oldest, and how many
	bytes   int64
	budget  int64 // of the chunks' capacity; 0: none are held
}

// get returns what lies at a position, with a reference for the caller; nil if it isn't
// held.
func (b *backs) get(pos wal.Position) *buf.Chunk {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := b.find(pos); i >= 0 {
		return b.list[i].c.Retain()
	}
	return nil
}

func (b *backs) find(pos wal.Position) int {
	for k := range b.n {
		if i := (b.from + k) % backsMax; b.list[i].pos == pos {
			return i
		}
	}
	return -1
}

// put takes a reference to what lies at a position, unless it is there or too large.
func (b *backs) put(pos wal.Position, c *buf.Chunk) {
	size := int64(c.Cap())
	b.mu.Lock()
	defer b.mu.Unlock()
	if size > b.budget/8 || b.find(pos) >= 0 {
		return
	}
	for b.n == backsMax || b.bytes+size > b.budget {
		b.drop()
	}
	x := &b.list[(b.from+b.n)%backsMax]
	x.pos, x.c = pos, c.Retain()
	b.n++
	b.bytes += size
}

// drop forgets the oldest.
func (b *backs) drop() {
	x := &b.list[b.from]
	b.bytes -= int64(x.c.Cap())
	x.c.Release()
	x.pos, x.c = wal.Position{}, nil
	b.from, b.n = (b.from+1)%backsMax, b.n-1
}
