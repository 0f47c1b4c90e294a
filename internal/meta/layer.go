package meta

import "github.com/sluicemq/sluice/internal/route"

// layer is the objects of one class, by virtual host.
type layer struct {
	spaces map[string]*space
	// dirty are the checkpoint keys changed since the last export; nil in the
	// local layer, which isn't exported.
	dirty map[string]struct{}
	local bool
}

// space is a layer's part of one virtual host.
type space struct {
	name      string
	queues    map[string]*route.Queue
	exchanges map[string]*route.Exchange
	// bindings is by checkpoint key, which is their identity.
	bindings map[string]*edge
	// from and to are the heads of the lists of edges that start at an exchange
	// or lead to an end. The ends needn't be in this layer; during a restore
	// they needn't be there yet.
	from map[string]*edge
	to   map[end]*edge
	// exists is whether the virtual host does; only used in the durable layer,
	// where a restore may bring the content first.
	exists bool
}

// end is a destination.
type end struct {
	name string
	kind route.DestinationKind
}

// edge is a binding in its two lists.
type edge struct {
	binding            *route.Binding
	nextFrom, prevFrom *edge
	nextTo, prevTo     *edge
	key                string
}

func newLayer(local bool) layer {
	l := layer{spaces: map[string]*space{}, local: local}
	if !local {
		l.dirty = map[string]struct{}{}
	}
	return l
}

// space returns the part of a virtual host, made if need be.
func (l *layer) space(vhost string) *space {
	s := l.spaces[vhost]
	if s == nil {
		s = &space{
			name: vhost, queues: map[string]*route.Queue{}, exchanges: map[string]*route.Exchange{},
			bindings: map[string]*edge{}, from: map[string]*edge{}, to: map[end]*edge{},
		}
		l.spaces[vhost] = s
	}
	return s
}

// touch notes that the value of a checkpoint key changed.
func (l *layer) touch(key string) {
	if l.dirty != nil {
		l.dirty[key] = struct{}{}
	}
}

func endOf(b *route.Binding) end { return end{b.Destination, b.Kind} }

// link adds a binding, which isn't there yet.
func (s *space) link(key string, b *route.Binding) {
	e := &edge{binding: b, key: key}
	s.bindings[key] = e
	if head := s.from[b.Source]; head != nil {
		e.nextFrom, head.prevFrom = head, e
	}
	s.from[b.Source] = e
	if head := s.to[endOf(b)]; head != nil {
		e.nextTo, head.prevTo = head, e
	}
	s.to[endOf(b)] = e
}

// unlink removes an edge from both lists.
func (s *space) unlink(e *edge) {
	delete(s.bindings, e.key)
	switch {
	case e.prevFrom != nil:
		e.prevFrom.nextFrom = e.nextFrom
	case e.nextFrom != nil:
		s.from[e.binding.Source] = e.nextFrom
	default:
		delete(s.from, e.binding.Source)
	}
	if e.nextFrom != nil {
		e.nextFrom.prevFrom = e.prevFrom
	}
	switch {
	case e.prevTo != nil:
		e.prevTo.nextTo = e.nextTo
	case e.nextTo != nil:
		s.to[endOf(e.binding)] = e.nextTo
	default:
		delete(s.to, endOf(e.binding))
	}
	if e.nextTo != nil {
		e.nextTo.prevTo = e.prevTo
	}
	e.nextFrom, e.prevFrom, e.nextTo, e.prevTo = nil, nil, nil, nil
}
