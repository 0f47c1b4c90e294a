package route

// Scratch is the working memory of Route, reused from message to message so that
// routing doesn't allocate. The zero value is ready. It belongs to one goroutine.
type Scratch struct {
	queues distinct[*Queue]
	// exchanges are those that the message has reached, visited in this order.
	exchanges distinct[*Exchange]
	topic     topicWalk
	vhost     *VHost
	explain   *Explanation
	// sets counts the binding sets that added to queues: within one the bindings
	// of a queue are neighbors, so looking for repeats starts with the second.
	sets int
	// matched is whether the exchange being visited has matched any binding.
	matched bool
	random  uint64   // state of random choices
	number  [32]byte // a header's value as text
	// uncacheable is set when the result depends on more than the routing key.
	uncacheable bool
}

func queueHash(q *Queue) uint64       { return q.ID }
func exchangeHash(x *Exchange) uint64 { return x.router.version }

// Route appends to dst the queues that a message published to ex reaches, each
// once, and returns it. ex must be an exchange of v, h may be nil for no headers,
// and neither key nor h is retained.
//
// Exchange bindings are followed, in any graph: every exchange is visited once.
// As in RabbitMQ an exchange hands the message to its alternate exchange when no
// binding of its own matched; a binding to an exchange that in turn routes
// nowhere counts as a match.
func (v *VHost) Route(s *Scratch, ex *Exchange, key []byte, h HeaderLookup, dst []*Queue) []*Queue {
	s.uncacheable = false
	if ex.router.kind == kindDefault && s.explain == nil {
		if q, ok := v.queues.getBytes(key); ok {
			dst = append(dst, q)
		}
		return dst
	}
	s.vhost, s.sets = v, 0
	s.queues.reset(dst)
	s.exchanges.reset(s.exchanges.items[:0])
	s.exchanges.add(ex, exchangeHash)
	for i := 0; i < len(s.exchanges.items); i++ {
		x := s.exchanges.items[i]
		if s.explain != nil {
			s.explain.Visited = append(s.explain.Visited, x.Name)
		}
		s.matched = false
		s.visit(x, key, h)
		if !s.matched && x.Alternate != "" {
			s.toAlternate(x)
		}
	}
	dst = s.queues.items
	// What an idle publisher holds on to would keep old tables alive.
	s.queues.items, s.vhost = nil, nil
	clear(s.exchanges.items)
	return dst
}

// visit adds what the bindings of x match.
func (s *Scratch) visit(x *Exchange, key []byte, h HeaderLookup) {
	switch x.router.kind {
	case kindDirect:
		if set, ok := x.router.direct.getBytes(key); ok {
			s.addSet(set)
		}
	case kindFanout:
		s.addSet(x.router.set)
	case kindTopic:
		s.topic.match(x.router.topic, key, s)
	case kindHeaders:
		s.uncacheable = true
		s.sets++
		s.addMatching(x.router.set, h)
	case kindRandom, kindModulus, kindConsistent:
		s.pick(x, key, h)
	case kindDefault:
		if q, ok := s.vhost.queues.getBytes(key); ok {
			s.sets++
			s.addBound(&bound{
				Binding: &Binding{VHost: s.vhost.Name, Destination: q.Name, Key: q.Name}, queue: q,
			})
		}
	}
}

// addSet adds all of a set.
func (s *Scratch) addSet(set *bindingSet) {
	if set == nil {
		return
	}
	s.sets++
	s.addAll(set)
}

func (s *Scratch) addAll(set *bindingSet) {
	for i := range set.items {
		s.addBound(&set.items[i])
	}
	for _, c := range set.children {
		s.addAll(c)
	}
}

// addMatching adds those of a set whose arguments match the headers.
func (s *Scratch) addMatching(set *bindingSet, h HeaderLookup) {
	if set == nil {
		return
	}
	for i := range set.items {
		if b := &set.items[i]; b.match.matches(h) {
			s.addBound(b)
		}
	}
	for _, c := range set.children {
		s.addMatching(c, h)
	}
}

// addBound adds the target of a binding that matched.
func (s *Scratch) addBound(b *bound) {
	s.matched = true
	if s.explain != nil {
		s.explain.Bindings = append(s.explain.Bindings, b.Binding)
	}
	if b.queue == nil {
		if x, ok := s.vhost.exchanges.get(b.Destination); ok {
			s.exchanges.add(x, exchangeHash)
		}
		return
	}
	if s.sets > 1 {
		s.queues.add(b.queue, queueHash)
		return
	}
	last := len(s.queues.items) - 1
	if last < s.queues.base || s.queues.items[last] != b.queue {
		s.queues.items = append(s.queues.items, b.queue)
	}
}

// toAlternate passes the message on to the alternate exchange of x, if there is
// one by that name.
func (s *Scratch) toAlternate(x *Exchange) {
	alternate, ok := s.vhost.exchanges.get(x.Alternate)
	if !ok {
		return
	}
	if s.exchanges.add(alternate, exchangeHash) && s.explain != nil {
		s.explain.Alternates = append(s.explain.Alternates, alternate.Name)
	}
}

// Explanation says which way a message took.
type Explanation struct {
	// Queues are the targets, as Route returns them.
	Queues []*Queue
	// Bindings are all that matched, in the order of the visit; the default
	// exchange's implicit binding has an empty Source.
	Bindings []*Binding
	// Alternates are the alternate exchanges that were used.
	Alternates []string
	// Visited are the exchanges that the message passed, beginning with the one
	// that it was published to.
	Visited []string
}

// Explain routes like Route, by the same code, and tells which way.
func (v *VHost) Explain(ex *Exchange, key []byte, h HeaderLookup) Explanation {
	var out Explanation
	s := Scratch{explain: &out}
	out.Queues = v.Route(&s, ex, key, h, nil)
	return out
}
