package route

import (
	"bytes"
	"strings"
)

// topicNode is a node of the persistent trie of a topic exchange. Each edge is
// one word of the pattern; "*" and "#" have edges of their own.
//
// Patterns are put into the trie in a canonical form in which a run of wildcards
// has its stars first and at most one "#" ("#.*.#" is "*.#"). That means the
// same, keeps equivalent patterns together, and guarantees that no "#" edge
// follows another directly.
type topicNode struct {
	owner *owner
	words pmap[*topicNode]
	star  *topicNode
	hash  *topicNode
	// here are the bindings whose pattern ends at this node.
	here *bindingSet
	// id is unique in a table; copies of a node keep it.
	id uint64
}

// canonicalPattern splits a pattern into the words of its trie path. As in
// RabbitMQ the empty pattern (and key) has no word, and "a." has two.
func canonicalPattern(pattern string) []string {
	if pattern == "" {
		return nil
	}
	var path []string
	stars, hash := 0, false
	flush := func() {
		for ; stars > 0; stars-- {
			path = append(path, "*")
		}
		if hash {
			path = append(path, "#")
			hash = false
		}
	}
	for word := range strings.SplitSeq(pattern, ".") {
		switch word {
		case "*":
			stars++
		case "#":
			hash = true
		default:
			flush()
			path = append(path, word)
		}
	}
	flush()
	return path
}

func (n *topicNode) own(e *Editor) *topicNode {
	if n == nil {
		return &topicNode{owner: e.owner, id: e.next()}
	}
	if n.owner == e.owner {
		return n
	}
	c := *n
	c.owner = e.owner
	return &c
}

// put returns the trie with x bound to the pattern that path is the rest of.
func (n *topicNode) put(e *Editor, path []string, x bound) *topicNode {
	n = n.own(e)
	if len(path) == 0 {
		n.here = n.here.put(e.owner, x)
		return n
	}
	switch word := path[0]; word {
	case "*":
		n.star = n.star.put(e, path[1:], x)
	case "#":
		n.hash = n.hash.put(e, path[1:], x)
	default:
		child, _ := n.words.get(word)
		n.words = n.words.set(e.owner, word, child.put(e, path[1:], x))
	}
	return n
}

// remove returns the trie without b, which is there; nil if nothing is left.
func (n *topicNode) remove(e *Editor, path []string, b *Binding) *topicNode {
	n = n.own(e)
	if len(path) == 0 {
		n.here = n.here.remove(e.owner, b)
	} else {
		switch word := path[0]; word {
		case "*":
			n.star = n.star.remove(e, path[1:], b)
		case "#":
			n.hash = n.hash.remove(e, path[1:], b)
		default:
			child, _ := n.words.get(word)
			if child = child.remove(e, path[1:], b); child != nil {
				n.words = n.words.set(e.owner, word, child)
			} else {
				n.words = n.words.remove(e.owner, word)
			}
		}
	}
	if n.here == nil && n.star == nil && n.hash == nil && n.words.len() == 0 {
		return nil
	}
	return n
}

// at returns the set at the end of path; nil if there is none.
func (n *topicNode) at(path []string) *bindingSet {
	for _, word := range path {
		if n == nil {
			return nil
		}
		switch word {
		case "*":
			n = n.star
		case "#":
			n = n.hash
		default:
			n, _ = n.words.get(word)
		}
	}
	if n == nil {
		return nil
	}
	return n.here
}

// all calls fn for every binding until it returns false.
func (n *topicNode) all(fn func(*bound) bool) bool {
	if n == nil {
		return true
	}
	if !n.here.all(fn) || !n.star.all(fn) || !n.hash.all(fn) {
		return false
	}
	more := true
	n.words.all(func(_ string, c *topicNode) bool {
		more = c.all(fn)
		return more
	})
	return more
}

// topicWalk is the working memory of a topic match. It treats the trie as a
// nondeterministic automaton and runs all its states in step, word by word, so
// that several "#" in a pattern cost no backtracking: the work is bounded by
// words x states. A trie node has one parent, so a state can be entered only
// once per step, except for the nodes behind a "#": once entered they stay (the
// "#" may take any further word), and entering again must be noticed.
type topicWalk struct {
	current []*topicNode
	next    []*topicNode
	sticky  distinct[*topicNode]
}

func topicNodeID(n *topicNode) uint64 { return n.id }

func (w *topicWalk) enter(n *topicNode) {
	w.next = append(w.next, n)
	if n.hash != nil {
		w.sticky.add(n.hash, topicNodeID)
	}
}

func (w *topicWalk) step(n *topicNode, hash uint64, word []byte) {
	if n.words.n > 0 {
		if c, ok := pmapGet(n.words, hash, word); ok {
			w.enter(c)
		}
	}
	if n.star != nil {
		w.enter(n.star)
	}
}

// match adds the sets of all patterns that match key to s.
func (w *topicWalk) match(root *topicNode, key []byte, s *Scratch) {
	if root == nil {
		return
	}
	w.sticky.reset(w.sticky.items[:0])
	w.enter(root)
	w.advance()
	for more := len(key) > 0; more && len(w.current)+len(w.sticky.items) > 0; {
		var word []byte
		word, key, more = bytes.Cut(key, dot)
		entered := len(w.sticky.items) // what this word enters starts at the next
		hash := hashBytes(word)
		for _, n := range w.current {
			w.step(n, hash, word)
		}
		for _, n := range w.sticky.items[:entered] {
			w.step(n, hash, word)
		}
		w.advance()
	}
	for _, n := range w.current {
		s.addSet(n.here)
	}
	for _, n := range w.sticky.items {
		s.addSet(n.here)
	}
	clear(w.current)
	w.current = w.current[:0]
	clear(w.sticky.items)
}

// advance makes the states just entered the current ones. What is left is
// cleared: an idle publisher must not keep an old version of the trie alive.
func (w *topicWalk) advance() {
	clear(w.current)
	w.current, w.next = w.next, w.current[:0]
}

var dot = []byte{'.'}
