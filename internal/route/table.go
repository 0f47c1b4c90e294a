package route

import "iter"

// Table is one version of the routing table.
type Table struct {
	vhosts pmap[*VHost]
	// serial numbers every change of a table and its successors, so that a
	// version number is never used twice.
	serial uint64
}

// New returns an empty table. All versions that a process publishes should
// descend from one New, because a Cache tells them apart by number; to start
// over, use Editor.Clear.
func New() *Table { return &Table{} }

// VHost returns the virtual host of that name, or nil.
func (t *Table) VHost(name string) *VHost {
	v, _ := t.vhosts.get(name)
	return v
}

// VHosts ranges over all virtual hosts, in no particular order.
func (t *Table) VHosts() iter.Seq[*VHost] { return values(t.vhosts) }

func values[V any](m pmap[V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		m.all(func(_ string, v V) bool { return yield(v) })
	}
}

// VHost is one version of a virtual host.
type VHost struct {
	Name string

	owner     *owner
	queues    pmap[*Queue]
	exchanges pmap[*Exchange]
	// queueVersion changes with the set of queues, graphVersion with anything
	// about exchanges and bindings.
	queueVersion uint64
	graphVersion uint64
}

// Queue returns the queue of that name, or nil.
func (v *VHost) Queue(name string) *Queue {
	q, _ := v.queues.get(name)
	return q
}

// QueueBytes is Queue for a name that is still in a frame; it doesn't allocate.
func (v *VHost) QueueBytes(name []byte) *Queue {
	q, _ := v.queues.getBytes(name)
	return q
}

// Exchange returns the exchange of that name, or nil.
func (v *VHost) Exchange(name string) *Exchange {
	x, _ := v.exchanges.get(name)
	return x
}

// ExchangeBytes is Exchange for a name that is still in a frame; it doesn't
// allocate.
func (v *VHost) ExchangeBytes(name []byte) *Exchange {
	x, _ := v.exchanges.getBytes(name)
	return x
}

// Queues ranges over all queues, in no particular order.
func (v *VHost) Queues() iter.Seq[*Queue] { return values(v.queues) }

// Exchanges ranges over all exchanges, the default one included, in no
// particular order.
func (v *VHost) Exchanges() iter.Seq[*Exchange] { return values(v.exchanges) }

// QueueCount returns the number of queues.
func (v *VHost) QueueCount() int { return v.queues.len() }

// ExchangeCount returns the number of exchanges, the default one included.
func (v *VHost) ExchangeCount() int { return v.exchanges.len() }

// router is what an exchange matches with; which field is used depends on the
// type.
type router struct {
	owner  *owner
	direct pmap[*bindingSet] // by key
	topic  *topicNode
	set    *bindingSet // of fanout and headers
	// version is another one after every change.
	version  uint64
	bindings int
	// links is how many of the bindings lead to an exchange.
	links int
	kind  exchangeKind
}

// exchangeKind is Type as a number.
type exchangeKind uint8

const (
	kindDirect exchangeKind = iota
	kindFanout
	kindTopic
	kindHeaders
	kindDefault
	kindRandom
	kindModulus
	kindConsistent
)

func kindOf(x *Exchange) exchangeKind {
	switch {
	case x.Name == "":
		return kindDefault
	case x.Type == Fanout:
		return kindFanout
	case x.Type == Topic:
		return kindTopic
	case x.Type == Headers:
		return kindHeaders
	case x.Type == Random, x.Type == LocalRandom:
		return kindRandom
	case x.Type == ModulusHash:
		return kindModulus
	case x.Type == ConsistentHash:
		return kindConsistent
	}
	return kindDirect
}

// BindingCount returns the number of bindings that have x as their source.
func (x *Exchange) BindingCount() int { return x.router.bindings }

// Bindings ranges over the bindings that have x as their source, in no
// particular order. The implicit bindings of the default exchange aren't listed.
func (x *Exchange) Bindings() iter.Seq[*Binding] {
	return func(yield func(*Binding) bool) {
		each := func(b *bound) bool { return yield(b.Binding) }
		switch x.router.kind {
		case kindTopic:
			x.router.topic.all(each)
		case kindFanout, kindHeaders, kindRandom, kindModulus, kindConsistent:
			x.router.set.all(each)
		case kindDirect:
			x.router.direct.all(func(_ string, s *bindingSet) bool { return s.all(each) })
		case kindDefault:
		}
	}
}

// lookup returns the set that a binding identical to b would be in.
func (r *router) lookup(b *Binding) *bindingSet {
	switch r.kind {
	case kindTopic:
		return r.topic.at(canonicalPattern(b.Key))
	case kindFanout, kindHeaders, kindRandom, kindModulus, kindConsistent:
		return r.set
	case kindDirect:
		set, _ := r.direct.get(b.Key)
		return set
	case kindDefault:
	}
	return nil
}

func (r *router) put(e *Editor, x bound) {
	switch r.kind {
	case kindTopic:
		r.topic = r.topic.put(e, canonicalPattern(x.Key), x)
	case kindFanout, kindHeaders, kindRandom, kindModulus, kindConsistent:
		r.set = r.set.put(e.owner, x)
	case kindDirect:
		set, _ := r.direct.get(x.Key)
		r.direct = r.direct.set(e.owner, x.Key, set.put(e.owner, x))
	case kindDefault:
	}
}

func (r *router) remove(e *Editor, b *Binding) {
	switch r.kind {
	case kindTopic:
		r.topic = r.topic.remove(e, canonicalPattern(b.Key), b)
	case kindFanout, kindHeaders, kindRandom, kindModulus, kindConsistent:
		r.set = r.set.remove(e.owner, b)
	case kindDirect:
		set, _ := r.direct.get(b.Key)
		if set = set.remove(e.owner, b); set != nil {
			r.direct = r.direct.set(e.owner, b.Key, set)
		} else {
			r.direct = r.direct.remove(e.owner, b.Key)
		}
	case kindDefault:
	}
}
