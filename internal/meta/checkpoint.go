package meta

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/sluicemq/sluice/internal/route"
)

// The durable layer as a set of keyed values. A key is a letter for the kind of
// object and its name, counted strings in the order outermost first; a value is
// the rest of its definition, encoded as in an op. The predeclared exchanges are
// implied by their virtual host.
const (
	keyCounter  = 'n' // next log id
	keyVHost    = 'v' // vhost
	keyExchange = 'x' // vhost, name
	keyQueue    = 'q' // vhost, name
	keyBinding  = 'b' // vhost, source, kind, destination, key, arguments
	keyUser     = 'u' // name
	keySetting  = 's' // key
	keyItem     = 'i' // kind, vhost, user, component, name
)

const counterKey = string(keyCounter)

func makeKey(kind byte, names ...string) string {
	b := make([]byte, 0, 64)
	b = append(b, kind)
	for _, n := range names {
		b = appendString(b, n)
	}
	return string(b)
}

func vhostKey(name string) string           { return makeKey(keyVHost, name) }
func exchangeKey(vhost, name string) string { return makeKey(keyExchange, vhost, name) }
func queueKey(vhost, name string) string    { return makeKey(keyQueue, vhost, name) }
func userKey(name string) string            { return makeKey(keyUser, name) }
func settingKey(key string) string          { return makeKey(keySetting, key) }

func bindingKey(b *route.Binding) string {
	return string(appendBindingKey(append(make([]byte, 0, 128), keyBinding), b))
}

// Dirty exports what changed in the durable layer since the last export, in the
// order of keys: fn gets the value that a key has now, nil if it has none any
// more. Key and value are valid during the call only. If fn returns an error, so
// does Dirty, and all of it is exported again the next time.
func (c *Catalog) Dirty(fn func(key, value []byte) error) error {
	var buf []byte
	for _, key := range slices.Sorted(maps.Keys(c.durable.dirty)) {
		value, ok := c.appendValue(buf[:0], key)
		if !ok {
			value = nil
		} else {
			buf = value
		}
		if err := fn([]byte(key), value); err != nil {
			return err
		}
	}
	clear(c.durable.dirty)
	return nil
}

// DirtyLen returns how many keys the next Dirty exports.
func (c *Catalog) DirtyLen() int { return len(c.durable.dirty) }

// Export exports the whole durable layer, like Dirty but without changing what
// that will export.
func (c *Catalog) Export(fn func(key, value []byte) error) error {
	var buf []byte
	for _, key := range c.keys() {
		buf, _ = c.appendValue(buf[:0], key)
		if err := fn([]byte(key), buf); err != nil {
			return err
		}
	}
	return nil
}

// Hash identifies the state of the durable layer: the same on all nodes that
// have applied the same ops, and after a restore. O(all).
func (c *Catalog) Hash() [sha256.Size]byte {
	h := sha256.New()
	var buf []byte
	for _, key := range c.keys() {
		buf = appendString(buf[:0], key)
		value, _ := c.appendValue(nil, key)
		h.Write(appendString(buf, value))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// keys returns all keys in order.
func (c *Catalog) keys() []string {
	keys := []string{counterKey}
	for vhost, s := range c.durable.spaces {
		if s.exists {
			keys = append(keys, vhostKey(vhost))
		}
		for name := range s.exchanges {
			if !route.Predeclared(name) {
				keys = append(keys, exchangeKey(vhost, name))
			}
		}
		for name := range s.queues {
			keys = append(keys, queueKey(vhost, name))
		}
		for key := range s.bindings {
			keys = append(keys, key)
		}
	}
	for name := range c.users {
		keys = append(keys, userKey(name))
	}
	for key := range c.settings {
		keys = append(keys, settingKey(key))
	}
	for k := range c.items {
		keys = append(keys, itemKey(k))
	}
	slices.Sort(keys)
	return keys
}

// appendValue appends the value of a key of this catalog; false if it has none.
// A value is never empty.
func (c *Catalog) appendValue(dst []byte, key string) ([]byte, bool) {
	r := reader{b: []byte(key[1:])}
	switch key[0] {
	case keyCounter:
		return binary.AppendUvarint(dst, c.nextID), true
	case keyVHost:
		return append(dst, 1), c.vhost(r.string()) != nil
	case keyExchange:
		vhost, name := r.string(), r.string()
		if s := c.durable.spaces[vhost]; s != nil && s.exchanges[name] != nil {
			return appendExchange(dst, s.exchanges[name]), true
		}
	case keyQueue:
		vhost, name := r.string(), r.string()
		if s := c.durable.spaces[vhost]; s != nil && s.queues[name] != nil {
			return appendQueue(dst, s.queues[name]), true
		}
	case keyBinding:
		if s := c.durable.spaces[r.string()]; s != nil && s.bindings[key] != nil {
			return appendHeaders(dst, s.bindings[key].binding.Headers), true
		}
	case keyUser:
		if u := c.users[r.string()]; u != nil {
			return appendUser(dst, u), true
		}
	case keySetting:
		if v, ok := c.settings[r.string()]; ok {
			return appendString(dst, v), true
		}
	case keyItem:
		if it := c.items[r.itemKey()]; it != nil {
			return appendString(dst, it.Value), true
		}
	}
	return dst, false
}

// Restore brings back one entry of an export, before anything is applied. Entries
// may come in any order, and repeatedly with older values first; a nil value
// removes the entry. Nothing of key and value is retained. When all are restored,
// Populate fills the routing table.
func (c *Catalog) Restore(key, value []byte) error {
	if len(key) == 0 {
		return fmt.Errorf("%w: empty checkpoint key", ErrMalformed)
	}
	k := reader{b: key[1:]}
	v := reader{b: value}
	var set, remove func() // what to do once both are found to be sound
	switch key[0] {
	case keyCounter:
		id := v.uvarint()
		set, remove = func() { c.nextID = id }, func() { c.nextID = 1 }
	case keyVHost:
		name := k.string()
		v.flags(1)
		set = func() { c.durable.space(name).create() }
		remove = func() { c.durable.space(name).uncreate() }
	case keyExchange:
		x := v.exchange(k.string(), k.string())
		s := func() *space { return c.durable.space(x.VHost) }
		set = func() { x.VHost = s().name; s().exchanges[x.Name] = &x }
		remove = func() { delete(s().exchanges, x.Name) }
	case keyQueue:
		q := v.queue(k.string(), k.string())
		s := func() *space { return c.durable.space(q.VHost) }
		set = func() {
			q.VHost, q.Type = s().name, internType(q.Type)
			s().queues[q.Name] = &q
		}
		remove = func() { delete(s().queues, q.Name) }
	case keyBinding:
		b := k.bindingKey()
		b.Headers = v.headers()
		set = func() { c.durable.space(b.VHost).replace(string(key), &b) }
		remove = func() { c.durable.space(b.VHost).replace(string(key), nil) }
	case keyUser:
		u := v.user(k.string())
		set, remove = func() { c.users[u.Name] = &u }, func() { delete(c.users, u.Name) }
	case keySetting:
		name, text := k.string(), v.string()
		set, remove = func() { c.settings[name] = text }, func() { delete(c.settings, name) }
	case keyItem:
		it := Item{k.itemKey(), v.string()}
		set, remove = func() { c.items[it.ItemKey] = &it }, func() { delete(c.items, it.ItemKey) }
	default:
		return fmt.Errorf("%w: checkpoint key kind %q", ErrMalformed, key[0])
	}
	if k.bad || len(k.b) > 0 {
		return fmt.Errorf("%w: checkpoint key %q", ErrMalformed, key)
	}
	if value == nil {
		remove()
		return nil
	}
	if v.bad || len(v.b) > 0 {
		return fmt.Errorf("%w: checkpoint value of %q", ErrMalformed, key)
	}
	set()
	return nil
}

// uncreate takes back create; the rest of the content has entries of its own.
func (s *space) uncreate() {
	s.exists = false
	for _, x := range route.PredeclaredExchanges(s.name) {
		delete(s.exchanges, x.Name)
	}
}

// replace puts a binding in the place of an identical one, or removes it if b is
// nil.
func (s *space) replace(key string, b *route.Binding) {
	if e := s.bindings[key]; e != nil {
		s.unlink(e)
	}
	if b != nil {
		b.VHost = s.name
		s.link(key, b)
	}
}
