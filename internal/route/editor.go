package route

// Editor makes the next version of a Table. What it has copied once it changes
// in place until Done, so a batch of edits copies each path only once.
type Editor struct {
	owner *owner
	table Table
}

// Edit begins a new version; t stays as it is.
func (t *Table) Edit() *Editor {
	return &Editor{owner: new(owner), table: *t}
}

// Done returns the new version. The Editor must not be used any more.
func (e *Editor) Done() *Table {
	t := e.table
	*e = Editor{}
	return &t
}

// Clear removes everything, for a table that is built anew.
func (e *Editor) Clear() { e.table.vhosts = pmap[*VHost]{} }

func (e *Editor) next() uint64 {
	e.table.serial++
	return e.table.serial
}

// vhost returns a VHost that the editor may change, or nil.
func (e *Editor) vhost(name string) *VHost {
	v, ok := e.table.vhosts.get(name)
	if !ok || v.owner == e.owner {
		return v
	}
	c := *v
	c.owner = e.owner
	e.table.vhosts = e.table.vhosts.set(e.owner, name, &c)
	return &c
}

// exchange returns an Exchange that the editor may change and its virtual host,
// with their versions advanced, or nil.
func (e *Editor) exchange(vhost, name string) (*VHost, *Exchange) {
	v := e.vhost(vhost)
	if v == nil {
		return nil, nil
	}
	x, ok := v.exchanges.get(name)
	if !ok {
		return v, nil
	}
	if x.router.owner != e.owner {
		c := *x
		c.router.owner = e.owner
		x = &c
		v.exchanges = v.exchanges.set(e.owner, name, x)
	}
	x.router.version = e.next()
	v.graphVersion = x.router.version
	return v, x
}

// PutVHost adds a virtual host with its predeclared exchanges, unless it exists.
func (e *Editor) PutVHost(name string) {
	if _, ok := e.table.vhosts.get(name); ok {
		return
	}
	e.table.vhosts = e.table.vhosts.set(e.owner, name, &VHost{
		Name: name, owner: e.owner, queueVersion: e.next(), graphVersion: e.next(),
	})
	for _, x := range PredeclaredExchanges(name) {
		e.PutExchange(x)
	}
}

// DeleteVHost removes a virtual host with all that is in it.
func (e *Editor) DeleteVHost(name string) {
	e.table.vhosts = e.table.vhosts.remove(e.owner, name)
}

// PutQueue adds q to its virtual host, or replaces the queue of that name; it
// does nothing if there is no such virtual host. Takes ownership of q. Bindings
// still lead to the queue that was replaced until they are bound again.
func (e *Editor) PutQueue(q *Queue) {
	if v := e.vhost(q.VHost); v != nil {
		v.queues = v.queues.set(e.owner, q.Name, q)
		v.queueVersion = e.next()
	}
}

// DeleteQueue removes a queue, whose bindings the caller has removed before.
func (e *Editor) DeleteQueue(vhost, name string) {
	if v := e.vhost(vhost); v != nil {
		v.queues = v.queues.remove(e.owner, name)
		v.queueVersion = e.next()
	}
}

// PutExchange adds an exchange to its virtual host, or replaces its definition
// and keeps its bindings if the type is the same. It does nothing if there is no
// such virtual host.
func (e *Editor) PutExchange(def Exchange) {
	v, old := e.exchange(def.VHost, def.Name)
	if v == nil {
		return
	}
	x := &def
	x.router = router{owner: e.owner, kind: kindOf(x), version: e.next()}
	if old != nil && old.Type == x.Type {
		version := x.router.version
		x.router = old.router
		x.router.version = version
	}
	v.exchanges = v.exchanges.set(e.owner, x.Name, x)
	v.graphVersion = x.router.version
}

// DeleteExchange removes an exchange with the bindings that start there. Those
// that lead to it the caller has removed before; they would match without effect.
func (e *Editor) DeleteExchange(vhost, name string) {
	if v := e.vhost(vhost); v != nil {
		v.exchanges = v.exchanges.remove(e.owner, name)
		v.graphVersion = e.next()
	}
}

// Bind adds a binding, or refreshes the target of an identical one. It returns
// false, without effect, if one of the ends doesn't exist, if the source is the
// default exchange, or if the arguments fail CheckHeaders
// or the key CheckWeight. Takes ownership of b.
func (e *Editor) Bind(b *Binding) bool {
	v := e.vhost(b.VHost)
	if v == nil || b.Source == "" {
		return false
	}
	x := bound{Binding: b}
	if b.Kind == ToQueue {
		x.queue = v.Queue(b.Destination)
		if x.queue == nil {
			return false
		}
	} else if b.Destination == "" || v.Exchange(b.Destination) == nil {
		return false
	}
	source := v.Exchange(b.Source)
	if source == nil {
		return false
	}
	if source.router.kind == kindHeaders {
		m, err := compileHeaders(b.Headers)
		if err != nil {
			return false
		}
		x.match = m
	}
	if source.router.kind == kindConsistent && !x.identify() {
		return false
	}
	_, source = e.exchange(b.VHost, b.Source)
	if !source.router.lookup(b).has(b) {
		source.router.bindings++
		if b.Kind == ToExchange {
			source.router.links++
		}
	}
	source.router.put(e, x)
	return true
}

// Unbind removes the binding identical to b and says whether there was one.
func (e *Editor) Unbind(b *Binding) bool {
	v := e.vhost(b.VHost)
	if v == nil {
		return false
	}
	if x := v.Exchange(b.Source); x == nil || !x.router.lookup(b).has(b) {
		return false
	}
	_, source := e.exchange(b.VHost, b.Source)
	source.router.remove(e, b)
	source.router.bindings--
	if b.Kind == ToExchange {
		source.router.links--
	}
	return true
}
