package route

import (
	"hash/maphash"
	"math/bits"
	"slices"
)

// owner marks the nodes that one Editor made and may therefore still change in
// place; it loses them all at Done, when the Editor forgets its token.
type owner struct {
	_ byte // distinct allocations need distinct addresses
}

// hashSeed differs from process to process, so that nobody can choose names that
// collide. Only the order of All depends on it, never the result of a route.
var hashSeed = maphash.MakeSeed()

func hashString(s string) uint64 { return maphash.String(hashSeed, s) }
func hashBytes(b []byte) uint64  { return maphash.Bytes(hashSeed, b) }

const (
	pmapBits = 5
	pmapMask = 1<<pmapBits - 1
	// pmapDepth is where the hash is used up: below, entries with the same 64
	// bits stand in an unsorted list.
	pmapDepth = 64 / pmapBits
)

// pmap is a persistent map from string to V: a compressed hash array mapped
// trie. The zero value is empty. Reads on one version are safe while an owner
// makes the next.
type pmap[V any] struct {
	root *pmapNode[V]
	n    int
}

// pmapNode has its entries and its children packed, each in the order of their
// bits. Invariant: entryBits & childBits == 0; a child holds at least two
// entries, so that equal maps have equal shapes.
type pmapNode[V any] struct {
	owner     *owner
	entries   []pmapEntry[V]
	children  []*pmapNode[V]
	entryBits uint32
	childBits uint32
}

type pmapEntry[V any] struct {
	key   string
	value V
}

// len returns the number of entries.
func (m pmap[V]) len() int { return m.n }

// get returns the value of key.
func (m pmap[V]) get(key string) (V, bool) { return pmapGet(m, hashString(key), key) }

// getBytes is get without making a string of key.
func (m pmap[V]) getBytes(key []byte) (V, bool) { return pmapGet(m, hashBytes(key), key) }

func pmapGet[V any, K string | []byte](m pmap[V], hash uint64, key K) (V, bool) {
	n := m.root
	for depth := 0; n != nil; depth++ {
		if depth == pmapDepth {
			for i := range n.entries {
				if n.entries[i].key == string(key) {
					return n.entries[i].value, true
				}
			}
			break
		}
		bit := uint32(1) << (hash & pmapMask)
		hash >>= pmapBits
		if n.entryBits&bit != 0 {
			e := &n.entries[bits.OnesCount32(n.entryBits&(bit-1))]
			if e.key == string(key) {
				return e.value, true
			}
			break
		}
		if n.childBits&bit == 0 {
			break
		}
		n = n.children[bits.OnesCount32(n.childBits&(bit-1))]
	}
	var none V
	return none, false
}

// set returns m with key bound to value.
func (m pmap[V]) set(o *owner, key string, value V) pmap[V] {
	return m.setHashed(o, hashString(key), key, value)
}

func (m pmap[V]) setHashed(o *owner, hash uint64, key string, value V) pmap[V] {
	root, added := m.root.set(o, hash, 0, pmapEntry[V]{key, value})
	if added {
		m.n++
	}
	m.root = root
	return m
}

// remove returns m without key.
func (m pmap[V]) remove(o *owner, key string) pmap[V] {
	return m.removeHashed(o, hashString(key), key)
}

func (m pmap[V]) removeHashed(o *owner, hash uint64, key string) pmap[V] {
	root, removed := m.root.remove(o, hash, 0, key)
	if !removed {
		return m
	}
	m.n--
	m.root = root
	if m.n == 0 {
		m.root = nil
	}
	return m
}

// all calls fn for every entry, in no particular order, until it returns false.
func (m pmap[V]) all(fn func(key string, value V) bool) { m.root.all(fn) }

func (n *pmapNode[V]) all(fn func(string, V) bool) bool {
	if n == nil {
		return true
	}
	for i := range n.entries {
		if !fn(n.entries[i].key, n.entries[i].value) {
			return false
		}
	}
	for _, c := range n.children {
		if !c.all(fn) {
			return false
		}
	}
	return true
}

// own returns a node that o may change: n itself or a copy.
func (n *pmapNode[V]) own(o *owner) *pmapNode[V] {
	if n == nil {
		return &pmapNode[V]{owner: o}
	}
	if n.owner == o {
		return n
	}
	c := *n
	c.owner = o
	c.entries = slices.Clone(n.entries)
	c.children = slices.Clone(n.children)
	return &c
}

// insertAt is slices.Insert with exact growth: nodes live long and are many.
func insertAt[T any](s []T, i int, v T) []T {
	if len(s) == cap(s) {
		grown := make([]T, len(s)+1)
		copy(grown, s[:i])
		copy(grown[i+1:], s[i:])
		grown[i] = v
		return grown
	}
	return slices.Insert(s, i, v)
}

func (n *pmapNode[V]) set(o *owner, hash uint64, depth int, e pmapEntry[V]) (_ *pmapNode[V], added bool) {
	n = n.own(o)
	if depth == pmapDepth {
		for i := range n.entries {
			if n.entries[i].key == e.key {
				n.entries[i].value = e.value
				return n, false
			}
		}
		n.entries = append(n.entries, e)
		return n, true
	}
	bit := uint32(1) << (hash >> (depth * pmapBits) & pmapMask)
	at := bits.OnesCount32(n.entryBits & (bit - 1))
	childAt := bits.OnesCount32(n.childBits & (bit - 1))
	switch {
	case n.childBits&bit != 0:
		n.children[childAt], added = n.children[childAt].set(o, hash, depth+1, e)
		return n, added
	case n.entryBits&bit == 0:
		n.entries = insertAt(n.entries, at, e)
		n.entryBits |= bit
		return n, true
	case n.entries[at].key == e.key:
		n.entries[at].value = e.value
		return n, false
	}
	// Two keys for one place: both go one level down.
	old := n.entries[at]
	var child *pmapNode[V]
	child, _ = child.set(o, rehash(old.key), depth+1, old)
	child, _ = child.set(o, hash, depth+1, e)
	n.entries = slices.Delete(n.entries, at, at+1)
	n.entryBits &^= bit
	n.children = insertAt(n.children, childAt, child)
	n.childBits |= bit
	return n, true
}

// rehash returns the hash of a stored key. It is a variable only so that tests
// can make keys collide.
var rehash = hashString

func (n *pmapNode[V]) remove(o *owner, hash uint64, depth int, key string) (_ *pmapNode[V], removed bool) {
	if n == nil {
		return nil, false
	}
	if depth == pmapDepth {
		for i := range n.entries {
			if n.entries[i].key == key {
				n = n.own(o)
				n.entries = slices.Delete(n.entries, i, i+1)
				return n, true
			}
		}
		return n, false
	}
	bit := uint32(1) << (hash >> (depth * pmapBits) & pmapMask)
	at := bits.OnesCount32(n.entryBits & (bit - 1))
	if n.entryBits&bit != 0 {
		if n.entries[at].key != key {
			return n, false
		}
		n = n.own(o)
		n.entries = slices.Delete(n.entries, at, at+1)
		n.entryBits &^= bit
		return n, true
	}
	if n.childBits&bit == 0 {
		return n, false
	}
	childAt := bits.OnesCount32(n.childBits & (bit - 1))
	child, removed := n.children[childAt].remove(o, hash, depth+1, key)
	if !removed {
		return n, false
	}
	n = n.own(o)
	if len(child.entries) == 1 && len(child.children) == 0 {
		// The last entry below moves up to keep the invariant.
		n.children = slices.Delete(n.children, childAt, childAt+1)
		n.childBits &^= bit
		n.entries = insertAt(n.entries, at, child.entries[0])
		n.entryBits |= bit
		return n, true
	}
	n.children[childAt] = child
	return n, true
}
