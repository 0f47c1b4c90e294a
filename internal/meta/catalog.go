package meta

import (
	"maps"
	"slices"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/route"
)

// Catalog is the catalog of one node. See the package comment for its layers.
type Catalog struct {
	durable  layer
	local    layer
	users    map[string]*User
	settings map[string]string
	items    map[ItemKey]*Item
	// nextID is the log id that the next durable queue gets, nextLocal (without
	// LocalIDBit) the one of the next local queue.
	nextID    uint64
	nextLocal uint64
}

// New returns an empty catalog. It has no virtual host: the first start
// proposes PutVHost{"/"}.
func New() *Catalog {
	return &Catalog{
		durable: newLayer(false), local: newLayer(true),
		users: map[string]*User{}, settings: map[string]string{}, items: map[ItemKey]*Item{},
		nextID: 1, nextLocal: 1,
	}
}

// Reset forgets the durable layer, for the checkpoint of another node is restored next.
// What only this node has stays.
func (c *Catalog) Reset() {
	fresh := New()
	c.durable, c.users, c.settings, c.nextID = fresh.durable, fresh.users, fresh.settings, fresh.nextID
}

// Apply applies a committed op of shard 0.
func (c *Catalog) Apply(op Op) (Result, []Change) {
	r := run{c: c}
	res := r.apply(op)
	res.Propose = r.propose
	return res, r.changes
}

// ApplyLocal applies an op for which IsLocal said yes.
func (c *Catalog) ApplyLocal(op Op) (Result, []Change) {
	r := run{c: c}
	res := r.applyLocal(op)
	res.Propose = r.propose
	return res, r.changes
}

// run is the work of one op.
type run struct {
	c       *Catalog
	changes []Change
	propose []Op
	// held are auto-delete exchanges that must not go for want of durable
	// bindings.
	held []string
}

func (r *run) emit(ch Change) { r.changes = append(r.changes, ch) }

func (r *run) apply(op Op) Result {
	c := r.c
	switch op := op.(type) {
	case PutVHost:
		return r.putVHost(op.Name)
	case DeleteVHost:
		return r.deleteVHost(op.Name)
	case DeclareExchange:
		if !op.Exchange.Durable {
			return refuse(berr.CommandInvalid, "exchange '%s' is not durable", op.Exchange.Name)
		}
		return r.declareExchange(&c.durable, op.Exchange)
	case DeleteExchange:
		r.held = op.Held
		return r.deleteExchange(&c.durable, op)
	case DeclareQueue:
		if op.Queue.Ephemeral() {
			return refuse(berr.CommandInvalid, "queue '%s' is not durable", op.Queue.Name)
		}
		return r.declareQueue(&c.durable, op.Queue)
	case AdoptQueue:
		return r.adoptQueue(op.Queue)
	case DeleteQueue:
		r.held = op.Held
		return r.deleteQueue(&c.durable, op)
	case Bind:
		return r.bind(&c.durable, op.Binding)
	case Unbind:
		r.held = op.Held
		return r.unbind(&c.durable, op.Binding)
	case PutUser:
		return r.putUser(op.User)
	case DeleteUser:
		return r.deleteUser(op.Name)
	case PutSetting:
		return r.putSetting(op)
	case DeleteSetting:
		return r.deleteSetting(op.Key)
	case PutItem:
		return r.putItem(op.Item)
	case DeleteItem:
		return r.deleteItem(op.Key)
	}
	return refuse(berr.CommandInvalid, "unknown operation %T", op)
}

func refuse(reason berr.Reason, format string, args ...any) Result {
	return Result{Err: berr.New(reason, format, args...)}
}

func (r *run) putVHost(name string) Result {
	s := r.c.durable.space(name)
	if s.exists {
		return Result{Outcome: Exists}
	}
	s.create()
	r.c.durable.touch(vhostKey(name))
	r.emit(Change{Kind: VHostPut, VHost: name})
	return Result{Outcome: Created}
}

// create makes the virtual host exist, with its predeclared exchanges.
func (s *space) create() {
	s.exists = true
	for _, x := range route.PredeclaredExchanges(s.name) {
		s.exchanges[x.Name] = &x
	}
}

func (r *run) deleteVHost(name string) Result {
	s := r.c.vhost(name)
	if s == nil {
		return Result{Outcome: Absent}
	}
	r.clear(&r.c.local, name)
	r.clear(&r.c.durable, name)
	r.dropItems(func(k ItemKey) bool { return k.VHost == name })
	r.c.durable.touch(vhostKey(name))
	r.emit(Change{Kind: VHostDeleted, VHost: name})
	return Result{Outcome: Deleted}
}

// clear removes all that a layer has in a virtual host, in the order of names.
func (r *run) clear(l *layer, vhost string) {
	s := l.spaces[vhost]
	if s == nil {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(s.bindings)) {
		l.touch(key)
		r.emit(Change{Kind: Unbound, Binding: s.bindings[key].binding, Local: l.local})
	}
	for _, name := range slices.Sorted(maps.Keys(s.queues)) {
		l.touch(queueKey(vhost, name))
		r.emit(Change{Kind: QueueDeleted, Queue: s.queues[name], Local: l.local})
	}
	for _, name := range slices.Sorted(maps.Keys(s.exchanges)) {
		if !route.Predeclared(name) {
			l.touch(exchangeKey(vhost, name))
			r.emit(Change{Kind: ExchangeDeleted, Exchange: s.exchanges[name], Local: l.local})
		}
	}
	delete(l.spaces, vhost)
}

func (r *run) putUser(u User) Result {
	if u.Name == "" {
		return refuse(berr.CommandInvalid, "user name is empty")
	}
	out := Created
	if r.c.users[u.Name] != nil {
		out = Replaced
	}
	u.Tags = slices.Clone(u.Tags)
	r.c.users[u.Name] = &u
	r.c.durable.touch(userKey(u.Name))
	r.emit(Change{Kind: UserPut, User: &u})
	return Result{Outcome: out}
}

func (r *run) deleteUser(name string) Result {
	u := r.c.users[name]
	if u == nil {
		return Result{Outcome: Absent}
	}
	r.dropItems(func(k ItemKey) bool { return k.User == name })
	delete(r.c.users, name)
	r.c.durable.touch(userKey(name))
	r.emit(Change{Kind: UserDeleted, User: u})
	return Result{Outcome: Deleted}
}

func (r *run) putSetting(op PutSetting) Result {
	out := Created
	if _, ok := r.c.settings[op.Key]; ok {
		out = Replaced
	}
	r.c.settings[op.Key] = op.Value
	r.c.durable.touch(settingKey(op.Key))
	r.emit(Change{Kind: SettingPut, Setting: op})
	return Result{Outcome: out}
}

func (r *run) deleteSetting(key string) Result {
	value, ok := r.c.settings[key]
	if !ok {
		return Result{Outcome: Absent}
	}
	delete(r.c.settings, key)
	r.c.durable.touch(settingKey(key))
	r.emit(Change{Kind: SettingDeleted, Setting: PutSetting{key, value}})
	return Result{Outcome: Deleted}
}

// vhost returns the durable part of a virtual host that exists, or nil.
func (c *Catalog) vhost(name string) *space {
	if s := c.durable.spaces[name]; s != nil && s.exists {
		return s
	}
	return nil
}

// HasVHost says whether the virtual host exists.
func (c *Catalog) HasVHost(name string) bool { return c.vhost(name) != nil }

// VHosts returns the names of all virtual hosts, in order.
func (c *Catalog) VHosts() []string {
	var names []string
	for name, s := range c.durable.spaces {
		if s.exists {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Queue returns a queue of either layer, or nil.
func (c *Catalog) Queue(vhost, name string) *route.Queue {
	for _, l := range [...]*layer{&c.durable, &c.local} {
		if s := l.spaces[vhost]; s != nil && s.queues[name] != nil {
			return s.queues[name]
		}
	}
	return nil
}

// Exchange returns the definition (without bindings: those are in the routing
// table) of an exchange of either layer, or nil.
func (c *Catalog) Exchange(vhost, name string) *route.Exchange {
	for _, l := range [...]*layer{&c.durable, &c.local} {
		if s := l.spaces[vhost]; s != nil && s.exchanges[name] != nil {
			return s.exchanges[name]
		}
	}
	return nil
}

// BindingsTo returns all bindings that lead to a queue or exchange, in no
// particular order.
func (c *Catalog) BindingsTo(vhost, name string, kind route.DestinationKind) []*route.Binding {
	var list []*route.Binding
	for _, l := range [...]*layer{&c.durable, &c.local} {
		if s := l.spaces[vhost]; s != nil {
			for e := s.to[end{name, kind}]; e != nil; e = e.nextTo {
				list = append(list, e.binding)
			}
		}
	}
	return list
}

// User returns a user, or nil.
func (c *Catalog) User(name string) *User { return c.users[name] }

// Users returns all users by name.
func (c *Catalog) Users() []*User {
	return slices.SortedFunc(maps.Values(c.users), func(a, b *User) int {
		if a.Name < b.Name {
			return -1
		}
		return 1 // names are unique
	})
}

// Setting returns a named value.
func (c *Catalog) Setting(key string) (string, bool) {
	v, ok := c.settings[key]
	return v, ok
}

// Populate brings the whole catalog into an empty routing table, as the first
// snapshot after a restore.
func (c *Catalog) Populate(e *route.Editor) {
	for name, s := range c.durable.spaces {
		if s.exists {
			e.PutVHost(name)
		}
	}
	layers := [...]*layer{&c.durable, &c.local}
	for _, l := range layers {
		for _, s := range l.spaces {
			for name, x := range s.exchanges {
				if !route.Predeclared(name) {
					e.PutExchange(*x)
				}
			}
			for _, q := range s.queues {
				e.PutQueue(q)
			}
		}
	}
	for _, l := range layers {
		for _, s := range l.spaces {
			for _, b := range s.bindings {
				e.Bind(b.binding)
			}
		}
	}
}

// Lose tells that operations, or a part of the checkpoint, are lost: between Restore and
// Populate, or between two operations. Ids that may have been given out are skipped (2^32
// is more than any loss can have held); a virtual host is there if anything in it is; a
// binding goes if an end of it is not there.
func (c *Catalog) Lose() {
	for _, s := range c.durable.spaces {
		if len(s.queues)+len(s.exchanges) > 0 && !s.exists {
			s.create()
			c.durable.touch(vhostKey(s.name))
		}
		for key, e := range s.bindings {
			if s.exchanges[e.binding.Source] == nil || !s.has(endOf(e.binding)) {
				s.unlink(e)
				c.durable.touch(key)
			}
		}
		for _, q := range s.queues {
			c.nextID = max(c.nextID, q.ID+1)
		}
	}
	c.nextID += 1 << 32
	c.durable.touch(counterKey)
}

func (s *space) has(e end) bool {
	if e.kind == route.ToExchange {
		return s.exchanges[e.name] != nil
	}
	return s.queues[e.name] != nil
}
