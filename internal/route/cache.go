package route

import "bytes"

const (
	// maxCachedTargets is the longest result that is cached; copying a longer one
	// costs more than finding it anyway.
	maxCachedTargets = 256
	// maxCachedKey is the longest routing key that is cached, and the longest
	// that AMQP 0-9-1 has.
	maxCachedKey = 255
)

// Cache remembers the routes of one publisher. It belongs to one goroutine and
// is bounded: a full cache forgets, one entry for one.
//
// An entry is valid while what it was computed from is unchanged: the exchange
// alone in the plain case, everything about exchanges and bindings of the virtual
// host if the exchange has an alternate or leads to other exchanges, the set of
// queues for the default exchange. So declaring a queue somewhere doesn't empty
// every publisher's cache. Headers are never cached.
type Cache struct {
	entries []cacheEntry // length a power of two
	scratch Scratch
	targets []*Queue // of a result that isn't cached
}

type cacheEntry struct {
	exchange uint64 // version of the exchange; 0 in an empty entry
	stamp    uint64 // version of what the result depends on
	key      []byte
	targets  []*Queue
}

// NewCache returns a cache of at least the given number of entries. An unused
// entry costs 64 bytes, one in use up to 2.4 KiB (maxCachedTargets).
func NewCache(entries int) *Cache {
	return &Cache{entries: make([]cacheEntry, ceilPow2(max(entries, 2)))}
}

// Route is VHost.Route through the cache. The result must not be modified and is
// valid until the next call.
func (c *Cache) Route(v *VHost, ex *Exchange, key []byte, h HeaderLookup) []*Queue {
	r := &ex.router
	stamp := r.version
	switch {
	case r.kind == kindHeaders:
		return c.route(v, ex, key, h)
	case r.kind == kindDefault:
		stamp = v.queueVersion
	case r.links > 0 || ex.Alternate != "":
		stamp = v.graphVersion
	case r.kind == kindFanout:
		key = nil
	}
	if len(key) > maxCachedKey {
		return c.route(v, ex, key, h)
	}
	// Two places for each key; the second is its neighbor.
	i := (hashBytes(key) ^ mix(r.version)) & uint64(len(c.entries)-1)
	first, second := &c.entries[i], &c.entries[i^1]
	if first.exchange == r.version && first.stamp == stamp && bytes.Equal(first.key, key) {
		return first.targets
	}
	if second.exchange == r.version && second.stamp == stamp && bytes.Equal(second.key, key) {
		return second.targets
	}
	targets := c.route(v, ex, key, h)
	if c.scratch.uncacheable || len(targets) > maxCachedTargets {
		return targets
	}
	// The newest takes the first place; what was there gets the second.
	*first, *second = *second, *first
	first.exchange, first.stamp = r.version, stamp
	first.key = append(first.key[:0], key...)
	clear(first.targets)
	first.targets = append(first.targets[:0], targets...)
	return first.targets
}

func (c *Cache) route(v *VHost, ex *Exchange, key []byte, h HeaderLookup) []*Queue {
	c.targets = v.Route(&c.scratch, ex, key, h, c.targets[:0])
	return c.targets
}
