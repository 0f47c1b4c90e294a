package meta

import (
	"maps"
	"slices"

	"github.com/sluicemq/sluice/internal/berr"
)

// ItemKind says what an Item is. The numbers are a stored format: never reused.
type ItemKind byte

// The kinds of items, each with the fields of ItemKey that name one.
const (
	ItemPermission      ItemKind = 1 // VHost, User
	ItemTopicPermission ItemKind = 2 // VHost, User, Name: the exchange
	ItemPolicy          ItemKind = 3 // VHost, Name
	ItemOperatorPolicy  ItemKind = 4 // VHost, Name
	ItemParameter       ItemKind = 5 // VHost, Component, Name
	ItemGlobalParameter ItemKind = 6 // Name
	ItemVHost           ItemKind = 7 // VHost: what is known of it besides its name
	ItemVHostLimits     ItemKind = 8 // VHost
	ItemUserLimits      ItemKind = 9 // User
)

// ItemKey names an item.
type ItemKey struct {
	Kind                         ItemKind
	VHost, User, Component, Name string
}

// Item is a definition that others interpret: a value with a name that belongs to a
// virtual host, to a user, to both or to neither, and goes with them.
type Item struct {
	ItemKey
	Value string // opaque here, not empty
}

// PutItem creates or replaces an item. Its virtual host and its user must exist.
type PutItem struct{ Item Item }

// DeleteItem removes an item.
type DeleteItem struct{ Key ItemKey }

func (PutItem) op() opCode    { return codePutItem }
func (DeleteItem) op() opCode { return codeDeleteItem }

func (r *run) putItem(it Item) Result {
	switch {
	case it.Value == "":
		return refuse(berr.CommandInvalid, "definition without a value")
	case it.VHost != "" && r.c.vhost(it.VHost) == nil:
		return refuse(berr.NotFound, "vhost %s not found", it.VHost)
	case it.User != "" && r.c.users[it.User] == nil:
		return refuse(berr.NotFound, "user '%s' not found", it.User)
	}
	out := Created
	if r.c.items[it.ItemKey] != nil {
		out = Replaced
	}
	r.c.items[it.ItemKey] = &it
	r.c.durable.touch(itemKey(it.ItemKey))
	r.emit(Change{Kind: ItemPut, Item: &it})
	return Result{Outcome: out}
}

func (r *run) deleteItem(k ItemKey) Result {
	it := r.c.items[k]
	if it == nil {
		return Result{Outcome: Absent}
	}
	delete(r.c.items, k)
	r.c.durable.touch(itemKey(k))
	r.emit(Change{Kind: ItemDeleted, Item: it})
	return Result{Outcome: Deleted}
}

// dropItems removes the items of a virtual host or a user that goes.
func (r *run) dropItems(of func(ItemKey) bool) {
	for _, k := range slices.SortedFunc(maps.Keys(r.c.items), compareItems) {
		if of(k) {
			r.deleteItem(k)
		}
	}
}

func compareItems(a, b ItemKey) int {
	x, y := itemKey(a), itemKey(b)
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// Item returns an item, or nil.
func (c *Catalog) Item(k ItemKey) *Item { return c.items[k] }

// Items returns all items of a kind, in the order of their keys.
func (c *Catalog) Items(kind ItemKind) []*Item {
	var list []*Item
	for k, it := range c.items {
		if k.Kind == kind {
			list = append(list, it)
		}
	}
	slices.SortFunc(list, func(a, b *Item) int { return compareItems(a.ItemKey, b.ItemKey) })
	return list
}

// ItemsOf returns the items of a kind that belong to both a virtual host and a user, in
// the order of their keys.
func (c *Catalog) ItemsOf(kind ItemKind, vhost, user string) []*Item {
	var list []*Item
	for k, it := range c.items {
		if k.Kind == kind && k.VHost == vhost && k.User == user {
			list = append(list, it)
		}
	}
	slices.SortFunc(list, func(a, b *Item) int { return compareItems(a.ItemKey, b.ItemKey) })
	return list
}

func itemKey(k ItemKey) string {
	return string(appendItemKey(append(make([]byte, 0, 64), keyItem), k))
}

func appendItemKey(dst []byte, k ItemKey) []byte {
	dst = append(dst, byte(k.Kind))
	for _, s := range [...]string{k.VHost, k.User, k.Component, k.Name} {
		dst = appendString(dst, s)
	}
	return dst
}

func (r *reader) itemKey() ItemKey {
	return ItemKey{ItemKind(r.byte()), r.string(), r.string(), r.string(), r.string()}
}
