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

// cacheWays is how many places an entry can be in.
const cacheWays = 4

// Cache remembers the routes of one publisher. It belongs to one goroutine and
// is bounded: a full cache forgets, one entry for one.
//
// An entry is valid while what it was computed from is unchanged: the exchange
// alone in the plain case, everything about exchanges and bindings of the virtual
// host if the exchange has an alternate or leads to other exchanges, the set of
// queues for the default exchange. So declaring a queue somewhere doesn't empty
// every publisher's cache. Headers are never cached.
type Cache struct {
	sets    [][cacheWays]cacheEntry // length a power of two
	victim  int                     // the place that a full set gives up next
	scratch Scratch
	targets []*Queue // of a result that isn't cached
}

type cacheEntry struct {
	hash     uint64 // of exchange and key
	exchange uint64 // version of the exchange; 0 in an empty entry
	stamp    uint64 // version of what the result depends on
	key      []byte
	targets  []*Queue
}

// NewCache returns a cache of at least the given number of entries. An unused
// entry costs 72 bytes, one in use up to 2.4 KiB (maxCachedTargets).
func NewCache(entries int) *Cache {
	return &Cache{sets: make([][cacheWays]cacheEntry, ceilPow2((entries+cacheWays-1)/cacheWays))}
}

// Route is VHost.Route through the cache. The result must not be modified and is
// valid until the next call.
func (c *Cache) Route(v *VHost, ex *Exchange, key []byte, h HeaderLookup) []*Queue {
	r := &ex.router
	stamp := r.version
	switch {
	case r.kind == kindHeaders, r.kind == kindRandom, ex.HashOn != HashOn{}:
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
	hash := hashBytes(key) ^ mix(r.version)
	set := &c.sets[hash&uint64(len(c.sets)-1)]
	for i := range set {
		e := &set[i]
		if e.hash == hash && e.exchange == r.version && e.stamp == stamp && bytes.Equal(e.key, key) {
			return e.targets
		}
	}
	targets := c.route(v, ex, key, h)
	if c.scratch.uncacheable || len(targets) > maxCachedTargets {
		return targets
	}
	e := c.replace(set, hash)
	e.hash, e.exchange, e.stamp = hash, r.version, stamp
	e.key = append(e.key[:0], key...)
	clear(e.targets)
	e.targets = append(e.targets[:0], targets...)
	return e.targets
}

// replace returns the entry of set to be overwritten: the outdated one of the
// same key or an empty one if there is any.
func (c *Cache) replace(set *[cacheWays]cacheEntry, hash uint64) *cacheEntry {
	for i := range set {
		if set[i].hash == hash || set[i].exchange == 0 {
			return &set[i]
		}
	}
	c.victim = (c.victim + 1) % cacheWays
	return &set[c.victim]
}

func (c *Cache) route(v *VHost, ex *Exchange, key []byte, h HeaderLookup) []*Queue {
	c.targets = v.Route(&c.scratch, ex, key, h, c.targets[:0])
	return c.targets
}
