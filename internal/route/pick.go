package route

import (
	"errors"
	"math"
	"strconv"
)

// Exchange types that pick one binding of all.
const (
	// ConsistentHash gives each binding a share by its weight, which is its key, and a
	// message to one by hash: of the routing key, or of what Exchange.HashOn names.
	ConsistentHash = "x-consistent-hash"
	// ModulusHash gives a message to one binding by hash of the routing key.
	ModulusHash = "x-modulus-hash"
	// Random gives each message to any one.
	Random = "x-random"
	// LocalRandom is Random among the queues of this node: of all while there is one.
	LocalRandom = "x-local-random"
)

// HashOn says what of a message a ConsistentHash exchange hashes; the zero value: its
// routing key. A message that lacks it has the hash of an empty value.
type HashOn struct {
	Header   string // the value of this header
	Property string // message_id, correlation_id or timestamp
}

// PropertyLookup is what a HeaderLookup implements if it also knows the properties that
// HashOn may name.
type PropertyLookup interface {
	Property(name string) ([]byte, bool)
}

// maxWeight bounds the share of one binding.
const maxWeight = 1 << 20

// CheckWeight says whether a key can be the weight of a binding to a ConsistentHash
// exchange.
func CheckWeight(key string) error {
	_, err := weightOf(key)
	return err
}

// weightOf reads a weight; its errors are texts that clients know.
func weightOf(key string) (uint32, error) {
	n, err := strconv.Atoi(key)
	switch {
	case err != nil:
		return 0, errors.New("The binding key must be an integer: " + strconv.Quote(key))
	case n < 1 || n > maxWeight:
		return 0, errors.New("The binding key must be an integer between 1 and " + strconv.Itoa(maxWeight) + ": " + key)
	}
	return uint32(n), nil
}

// Seed makes the choices of random exchanges those of a sequence that n begins.
func (s *Scratch) Seed(n uint64) { s.random = n }

// Seed is Scratch.Seed for routes through the cache.
func (c *Cache) Seed(n uint64) { c.scratch.Seed(n) }

// pick adds the one binding of x that the message goes to.
func (s *Scratch) pick(x *Exchange, key []byte, h HeaderLookup) {
	r := &x.router
	if r.bindings == 0 {
		return
	}
	var b *bound
	switch r.kind {
	case kindRandom:
		s.uncacheable = true
		s.random++
		b = r.set.at(int(mix(s.random) % uint64(r.bindings)))
	case kindModulus:
		b = r.set.at(int(stableHash(key) % uint64(r.bindings)))
	case kindConsistent:
		b = r.set.heaviest(s.hashOf(x, key, h))
	}
	s.sets++
	s.addBound(b)
}

// hashOf hashes what a ConsistentHash exchange looks at.
func (s *Scratch) hashOf(x *Exchange, key []byte, h HeaderLookup) uint64 {
	var value []byte
	switch on := x.HashOn; {
	case on.Header != "":
		s.uncacheable = true
		if h == nil {
			break
		}
		v, _ := h.Get(on.Header)
		switch v.Kind {
		case Bool, Int:
			value = strconv.AppendInt(s.number[:0], v.Int, 10)
		case Float:
			value = strconv.AppendFloat(s.number[:0], v.Float, 'g', -1, 64)
		case String, Opaque:
			value = v.Bytes
		case Void:
		}
	case on.Property != "":
		s.uncacheable = true
		if p, ok := h.(PropertyLookup); ok {
			value, _ = p.Property(on.Property)
		}
	default:
		value = key
	}
	return stableHash(value)
}

// stableHash is FNV-1a, finished: the same on every node and after every start.
func stableHash(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return mix(h)
}

// identify fills in what picking needs of a binding; false if its key is no weight.
func (b *bound) identify() bool {
	w, err := weightOf(b.Key)
	b.weight = w
	b.identity = stableHash([]byte{byte(b.Kind)}) ^ stableHash([]byte(b.Destination))
	return err == nil
}

// at returns the i-th binding of the set, which has more.
func (s *bindingSet) at(i int) (found *bound) {
	s.leaves(func(items []bound) bool {
		if i < len(items) {
			found = &items[i]
			return false
		}
		i -= len(items)
		return true
	})
	return found
}

// heaviest returns the binding that wins a hash, by rendezvous: each draws a number from
// the hash and its own identity, and the largest by weight wins. A binding that comes or
// goes moves no other's messages.
func (s *bindingSet) heaviest(hash uint64) (best *bound) {
	top := math.Inf(-1)
	s.leaves(func(items []bound) bool {
		for i := range items {
			b := &items[i]
			u := float64(mix(hash^b.identity)>>11|1) / (1 << 53) // in (0, 1)
			if score := float64(b.weight) / -math.Log(u); score > top {
				top, best = score, b
			}
		}
		return true
	})
	return best
}

// leaves calls fn with the bindings of each leaf, in order, until it returns false.
func (s *bindingSet) leaves(fn func(items []bound) bool) bool {
	if s == nil {
		return true
	}
	if len(s.children) == 0 {
		return fn(s.items)
	}
	for _, c := range s.children {
		if !c.leaves(fn) {
			return false
		}
	}
	return true
}
