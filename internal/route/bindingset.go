package route

import "slices"

// bound is a binding in place, with what was looked up and compiled for it.
type bound struct {
	*Binding
	queue *Queue       // nil for an exchange
	match *headerMatch // only in headers exchanges
	// Only in consistent hash exchanges: what identifies it to hashes, and its share.
	identity uint64
	weight   uint32
}

// setFanout is the number of items or children that a bindingSet node holds at
// most: small enough that copying one is cheap, large enough that a fanout of
// 100 reads four arrays.
const setFanout = 32

// bindingSet is a persistent B+ tree of bindings in the order of
// compareBindings. A nil set is empty. Deleting only takes away empty nodes: a
// tree that never merges keeps its depth bound (splits alone add levels) and
// needs no rebalancing code.
type bindingSet struct {
	owner *owner
	// items are the bindings of a leaf.
	items []bound
	// children and bounds make an inner node: child i has no binding below
	// bounds[i] (for i > 0) and none from bounds[i+1] on.
	children []*bindingSet
	bounds   []*Binding
}

func (s *bindingSet) own(o *owner) *bindingSet {
	if s == nil {
		return &bindingSet{owner: o}
	}
	if s.owner == o {
		return s
	}
	return &bindingSet{
		owner: o, items: slices.Clone(s.items),
		children: slices.Clone(s.children), bounds: slices.Clone(s.bounds),
	}
}

// childFor returns the index of the child that b belongs in.
func (s *bindingSet) childFor(b *Binding) int {
	i, found := slices.BinarySearchFunc(s.bounds[1:], b, compareBindings)
	if found {
		i++
	}
	return i
}

func (s *bindingSet) search(b *Binding) (int, bool) {
	return slices.BinarySearchFunc(s.items, b, func(x bound, b *Binding) int {
		return compareBindings(x.Binding, b)
	})
}

// has says whether a binding identical to b is in the set.
func (s *bindingSet) has(b *Binding) bool {
	if s == nil {
		return false
	}
	for len(s.children) > 0 {
		s = s.children[s.childFor(b)]
	}
	_, found := s.search(b)
	return found
}

// put returns the set with x, in place of an identical binding if there is one.
func (s *bindingSet) put(o *owner, x bound) *bindingSet {
	s, right := s.insert(o, x)
	if right == nil {
		return s
	}
	return &bindingSet{
		owner:    o,
		children: []*bindingSet{s, right},
		bounds:   []*Binding{nil, right.first()},
	}
}

// first returns a lower bound of the set, which isn't empty.
func (s *bindingSet) first() *Binding {
	for len(s.children) > 0 {
		s = s.children[0]
	}
	return s.items[0].Binding
}

// insert returns the changed node and, if it had to be split, its right half.
func (s *bindingSet) insert(o *owner, x bound) (_, right *bindingSet) {
	s = s.own(o)
	if len(s.children) == 0 {
		i, found := s.search(x.Binding)
		if found {
			s.items[i] = x
			return s, nil
		}
		s.items = insertAt(s.items, i, x)
		if len(s.items) <= setFanout {
			return s, nil
		}
		half := len(s.items) / 2
		right = &bindingSet{owner: o, items: slices.Clone(s.items[half:])}
		s.items = slices.Clone(s.items[:half])
		return s, right
	}
	i := s.childFor(x.Binding)
	child, split := s.children[i].insert(o, x)
	s.children[i] = child
	if split == nil {
		return s, nil
	}
	s.children = insertAt(s.children, i+1, split)
	s.bounds = insertAt(s.bounds, i+1, split.first())
	if len(s.children) <= setFanout {
		return s, nil
	}
	half := len(s.children) / 2
	right = &bindingSet{
		owner:    o,
		children: slices.Clone(s.children[half:]),
		bounds:   slices.Clone(s.bounds[half:]),
	}
	s.children = slices.Clone(s.children[:half])
	s.bounds = slices.Clone(s.bounds[:half])
	return s, right
}

// remove returns the set without b; nil if nothing is left.
func (s *bindingSet) remove(o *owner, b *Binding) *bindingSet {
	if !s.has(b) {
		return s
	}
	s = s.cut(o, b)
	for s != nil && len(s.children) == 1 {
		s = s.children[0]
	}
	return s
}

// cut is remove for a b that is known to be there.
func (s *bindingSet) cut(o *owner, b *Binding) *bindingSet {
	s = s.own(o)
	if len(s.children) == 0 {
		i, _ := s.search(b)
		if s.items = slices.Delete(s.items, i, i+1); len(s.items) == 0 {
			return nil
		}
		return s
	}
	i := s.childFor(b)
	if child := s.children[i].cut(o, b); child != nil {
		s.children[i] = child
		return s
	}
	s.children = slices.Delete(s.children, i, i+1)
	s.bounds = slices.Delete(s.bounds, i, i+1)
	if len(s.children) == 0 {
		return nil
	}
	return s
}

// all calls fn for every binding, in order, until it returns false.
func (s *bindingSet) all(fn func(*bound) bool) bool {
	if s == nil {
		return true
	}
	for i := range s.items {
		if !fn(&s.items[i]) {
			return false
		}
	}
	for _, c := range s.children {
		if !c.all(fn) {
			return false
		}
	}
	return true
}
