package store

import (
	"sync"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/vfs"
)

// blockKey names a block of a segment.
type blockKey struct {
	seg SegID
	pos uint32
}

type cachedBlock struct {
	key        blockKey
	chunk      *buf.Chunk // one reference; exactly one verified block
	prev, next *cachedBlock
}

// blockCache keeps verified blocks within a budget, least recently used ones go
// first. What readers still hold of an evicted block is counted by them.
type blockCache struct {
	budget int64

	mu     sync.Mutex
	blocks map[blockKey]*cachedBlock
	root   cachedBlock  // ring: root.next is the most recent
	free   *cachedBlock // the one evicted last, for the next one
	bytes  int64
	hits   uint64
	misses uint64
}

func newBlockCache(budget int64) *blockCache {
	c := &blockCache{budget: budget, blocks: map[blockKey]*cachedBlock{}}
	c.root.prev, c.root.next = &c.root, &c.root
	return c
}

func (b *cachedBlock) unlink() {
	b.prev.next, b.next.prev = b.next, b.prev
}

func (c *blockCache) pushFront(b *cachedBlock) {
	b.prev, b.next = &c.root, c.root.next
	b.prev.next, b.next.prev = b, b
}

// get returns the block with a reference for the caller, nil if it isn't there.
func (c *blockCache) get(key blockKey) *buf.Chunk {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blocks[key]
	if b == nil {
		c.misses++
		return nil
	}
	c.hits++
	b.unlink()
	c.pushFront(b)
	return b.chunk.Retain()
}

// put offers a block; the cache takes a reference of its own if it keeps it.
func (c *blockCache) put(key blockKey, chunk *buf.Chunk) {
	size := int64(chunk.Cap())
	if size > c.budget/4 {
		return // one block must not drive out everything else
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks[key] != nil {
		return // another reader was faster
	}
	b := c.free
	c.free = nil
	if b == nil {
		b = &cachedBlock{}
	}
	b.key, b.chunk = key, chunk.Retain()
	c.blocks[key] = b
	c.pushFront(b)
	c.bytes += size
	for c.bytes > c.budget {
		c.dropLocked(c.root.prev)
	}
}

func (c *blockCache) dropLocked(b *cachedBlock) {
	b.unlink()
	delete(c.blocks, b.key)
	c.bytes -= int64(b.chunk.Cap())
	b.chunk.Release()
	b.chunk = nil
	c.free = b
}

// forget drops the blocks of a segment, or all of them for 0.
func (c *blockCache) forget(seg SegID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b := c.root.next; b != &c.root; {
		next := b.next
		if seg == 0 || b.key.seg == seg {
			c.dropLocked(b)
		}
		b = next
	}
}

// handle is an open segment file.
type handle struct {
	id         SegID
	f          vfs.File
	refs       int // guarded by handles.mu
	prev, next *handle
	gone       bool // to be closed by the last user
}

// handles keeps segment files open: all that are being read, and idle ones as long
// as there are at most max.
type handles struct {
	s   *Store
	max int

	mu   sync.Mutex
	open map[SegID]*handle
	idle handle // ring of handles without users: idle.next is the most recent
}

func newHandles(s *Store, limit int) *handles {
	hs := &handles{s: s, max: limit, open: map[SegID]*handle{}}
	hs.idle.prev, hs.idle.next = &hs.idle, &hs.idle
	return hs
}

// acquire opens a segment's file or finds it open. The caller holds a reference to
// the segment.
func (hs *handles) acquire(g *segment) (*handle, error) {
	id := g.meta.ID
	hs.mu.Lock()
	h := hs.useLocked(id)
	hs.mu.Unlock()
	if h != nil {
		return h, nil
	}
	f, err := hs.s.fs.Open(hs.s.abs(g.path))
	if err != nil {
		return nil, err
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h := hs.useLocked(id); h != nil { // another reader was faster
		_ = f.Close() // it was only opened
		return h, nil
	}
	h = &handle{id: id, f: f, refs: 1}
	hs.open[id] = h
	return h, nil
}

func (hs *handles) useLocked(id SegID) *handle {
	h := hs.open[id]
	if h == nil {
		return nil
	}
	if h.refs == 0 {
		h.prev.next, h.next.prev = h.next, h.prev
	}
	h.refs++
	return h
}

func (hs *handles) release(h *handle) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h.refs--; h.refs > 0 {
		return
	}
	if h.gone {
		_ = h.f.Close() // it was only read
		return
	}
	h.prev, h.next = &hs.idle, hs.idle.next
	h.prev.next, h.next.prev = h, h
	for len(hs.open) > hs.max && hs.idle.prev != &hs.idle {
		hs.closeLocked(hs.idle.prev)
	}
}

// closeLocked closes an idle handle, or has its last user do it.
func (hs *handles) closeLocked(h *handle) {
	delete(hs.open, h.id)
	if h.refs > 0 {
		h.gone = true
		return
	}
	h.prev.next, h.next.prev = h.next, h.prev
	_ = h.f.Close() // it was only read
}

// forget closes a segment's handle.
func (hs *handles) forget(id SegID) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h := hs.open[id]; h != nil {
		hs.closeLocked(h)
	}
}

func (hs *handles) closeAll() {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for _, h := range hs.open {
		hs.closeLocked(h)
	}
}
