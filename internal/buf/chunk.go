// Package buf hands out the reference-counted byte chunks that messages live in
// between the socket and the disk: a chunk is filled once by the connection that
// parsed the messages, then shared, read-only, by the shard's raft ring, the WAL
// writer, the tail cache and the connections that deliver from it.
//
// Contract: the creator holds one reference. Whoever keeps a chunk past a call
// retains it and releases it exactly once; the last release recycles the memory,
// so a slice of a chunk must not be used after the holder's release. Retain and
// Release are safe for concurrent use; writing to Bytes is the creator's alone and
// only before the chunk is shared. A release too many panics: it would hand the
// same memory to two owners.
package buf

import (
	"sync"
	"sync/atomic"
)

// classes are the capacities that are recycled; larger chunks are left to the
// garbage collector.
var classes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20}

// poolBytesMax bounds what the free list of one class keeps. Holders: chunks that
// are between two uses; chunks in use are counted by their holders' budgets.
const poolBytesMax = 4 << 20

type freeList struct {
	mu   sync.Mutex
	free []*Chunk
}

var pools [len(classes)]freeList

// Chunk is a reference-counted buffer.
type Chunk struct {
	b     []byte
	refs  atomic.Int32
	class int8 // index in classes, -1 when not recycled
}

// Get returns an empty chunk with room for at least n bytes and one reference.
func Get(n int) *Chunk {
	for i, size := range classes {
		if n > size {
			continue
		}
		p := &pools[i]
		p.mu.Lock()
		var c *Chunk
		if k := len(p.free); k > 0 {
			c = p.free[k-1]
			p.free[k-1] = nil
			p.free = p.free[:k-1]
		}
		p.mu.Unlock()
		if c == nil {
			c = &Chunk{b: make([]byte, 0, size), class: int8(i)}
		}
		c.refs.Store(1)
		return c
	}
	c := &Chunk{b: make([]byte, 0, n), class: -1}
	c.refs.Store(1)
	return c
}

// Bytes returns the contents; valid while the caller holds a reference.
func (c *Chunk) Bytes() []byte { return c.b }

// Len returns the number of bytes in the chunk.
func (c *Chunk) Len() int { return len(c.b) }

// Cap returns the chunk's capacity, which is what it costs in memory.
func (c *Chunk) Cap() int { return cap(c.b) }

// SetBytes stores the slice that the creator extended; it must be a reslice of
// Bytes within its capacity.
func (c *Chunk) SetBytes(b []byte) {
	if cap(b) != cap(c.b) {
		panic("buf: SetBytes with foreign memory")
	}
	c.b = b
}

// Retain adds a reference.
func (c *Chunk) Retain() *Chunk {
	if c.refs.Add(1) <= 1 {
		panic("buf: Retain of a released chunk")
	}
	return c
}

// TryRetain adds a reference unless the chunk has been released; it is for
// holders of a weak pointer that is cleared under the same lock as the release.
func (c *Chunk) TryRetain() bool {
	for {
		n := c.refs.Load()
		if n <= 0 {
			return false
		}
		if c.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release gives up one reference; the last one recycles the memory.
func (c *Chunk) Release() {
	n := c.refs.Add(-1)
	if n > 0 {
		return
	}
	if n < 0 {
		panic("buf: Release of a released chunk")
	}
	if c.class < 0 {
		c.b = nil
		return
	}
	p := &pools[c.class]
	c.b = c.b[:0]
	p.mu.Lock()
	if len(p.free)*classes[c.class] < poolBytesMax {
		p.free = append(p.free, c)
	}
	p.mu.Unlock()
}
