package route

// linearMax is up to how many items distinct compares one by one.
const linearMax = 16

// distinct is a list without repeats that is reused without allocating: a linear
// scan while it is short, an open-addressed index from then on. Slots are emptied
// by counting generations.
type distinct[T comparable] struct {
	// items is the list; what stands before base isn't ours.
	items []T
	base  int
	// indexed says how many of items (from base on) are in slots.
	indexed    int
	slots      []distinctSlot // length a power of two, at most half full
	generation uint32
}

type distinctSlot struct {
	hash       uint64
	generation uint32
	index      int32 // into items, from base on
}

// reset begins a new list behind what items holds already.
func (d *distinct[T]) reset(items []T) {
	d.items, d.base, d.indexed = items, len(items), 0
}

// add appends item unless it is in the list, and says whether it did. The hash
// need not be unique.
func (d *distinct[T]) add(item T, hash func(T) uint64) bool {
	own := d.items[d.base:]
	if len(own) <= linearMax {
		for _, have := range own {
			if have == item {
				return false
			}
		}
		d.items = append(d.items, item)
		return true
	}
	d.catchUp(own, hash)
	if !d.insert(own, item, mix(hash(item)), len(own)) {
		return false
	}
	d.indexed++
	d.items = append(d.items, item)
	return true
}

// catchUp brings all of own into the slots and has room for one more.
func (d *distinct[T]) catchUp(own []T, hash func(T) uint64) {
	if 2*(len(own)+1) > len(d.slots) {
		d.slots = make([]distinctSlot, ceilPow2(4*len(own)))
		d.indexed = 0
	}
	if d.indexed == 0 {
		if d.generation++; d.generation == 0 {
			clear(d.slots)
			d.generation = 1
		}
	}
	for ; d.indexed < len(own); d.indexed++ {
		d.insert(own, own[d.indexed], mix(hash(own[d.indexed])), d.indexed)
	}
}

// insert records item as number index unless an equal one is there.
func (d *distinct[T]) insert(own []T, item T, hash uint64, index int) bool {
	mask := uint64(len(d.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		slot := &d.slots[i]
		if slot.generation != d.generation {
			*slot = distinctSlot{hash, d.generation, int32(index)}
			return true
		}
		if slot.hash == hash && own[slot.index] == item {
			return false
		}
	}
}

// mix spreads consecutive numbers over all bits.
func mix(x uint64) uint64 {
	x *= 0x9E3779B97F4A7C15
	return x ^ x>>32
}

func ceilPow2(n int) int {
	p := 1
	for p < n {
		p *= 2
	}
	return p
}
