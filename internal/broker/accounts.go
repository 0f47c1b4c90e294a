package broker

import (
	"crypto/rand"
	"encoding/json"
	"slices"

	"github.com/sluicemq/sluice/internal/access"
	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/meta"
	"github.com/sluicemq/sluice/internal/route"
)

// guest is the account of the first start; it may log in from loopback only.
const guest = "guest"

// accounts is who may do what, as all connections read it. Immutable.
type accounts struct {
	users map[string]*meta.User
	table *access.Table
}

var nobody = &accounts{users: map[string]*meta.User{}, table: &access.Table{}}

// pair is whom rows of the table are for.
type pair struct{ user, vhost string }

// accountsOf builds what the catalog says; on the loop of shard 0.
func accountsOf(c *meta.Catalog) (*accounts, error) {
	a := nobody
	pairs := map[pair]bool{}
	for _, kind := range []meta.ItemKind{meta.ItemPermission, meta.ItemTopicPermission} {
		for _, it := range c.Items(kind) {
			pairs[pair{it.User, it.VHost}] = true
		}
	}
	return a.with(c, pairs, true)
}

// with renews the users and the rows of some pairs.
func (a *accounts) with(c *meta.Catalog, pairs map[pair]bool, users bool) (*accounts, error) {
	n := &accounts{users: a.users, table: a.table}
	if users {
		n.users = map[string]*meta.User{}
		for _, u := range c.Users() {
			n.users[u.Name] = u
		}
	}
	for p := range pairs {
		var rows []access.Row
		if it := c.Item(meta.ItemKey{Kind: meta.ItemPermission, VHost: p.vhost, User: p.user}); it != nil {
			var perm access.Permission
			if err := json.Unmarshal([]byte(it.Value), &perm); err != nil {
				return a, err
			}
			rows = perm.Rows(p.user, p.vhost)
		}
		for _, it := range c.ItemsOf(meta.ItemTopicPermission, p.vhost, p.user) {
			topic := access.TopicPermission{}
			if err := json.Unmarshal([]byte(it.Value), &topic); err != nil {
				return a, err
			}
			topic.Exchange = it.Name
			rows = append(rows, topic.Rows(p.user, p.vhost)...)
		}
		t, err := n.table.With(p.user, p.vhost, rows)
		if err != nil {
			return a, err
		}
		n.table = t
	}
	return n, nil
}

// follow brings changes of the catalog into the accounts.
func (m *metaMachine) follow(changes []meta.Change) {
	users, pairs := false, map[pair]bool{}
	for _, ch := range changes {
		switch ch.Kind {
		case meta.UserPut, meta.UserDeleted:
			users = true
		case meta.ItemPut, meta.ItemDeleted:
			if k := ch.Item.Kind; k == meta.ItemPermission || k == meta.ItemTopicPermission {
				pairs[pair{ch.Item.User, ch.Item.VHost}] = true
			}
		}
	}
	if !users && len(pairs) == 0 {
		return
	}
	n, err := m.accounts.Load().with(m.catalog, pairs, users)
	if err != nil { // can't be: what is put is checked before
		m.log.Error("permission can't be used", "err", err)
	}
	m.accounts.Store(n)
}

// Authenticate checks a password. The user guest may only come from loopback.
func (b *Broker) Authenticate(user, password string, loopback bool) error {
	u := b.meta.accounts.Load().users[user]
	if u == nil || !access.Hashing(u.Hashing).Verify(u.PasswordHash, password) {
		return berr.New(berr.AccessRefused, "login of user %q refused", user)
	}
	if user == guest && !loopback {
		return berr.New(berr.AccessRefused, "user %q can only connect from loopback", user)
	}
	return nil
}

// AuthenticateExternal lets a user in who has proved who he is otherwise, by a
// certificate: there must be such a user.
func (b *Broker) AuthenticateExternal(user string) error {
	if b.meta.accounts.Load().users[user] == nil {
		return berr.New(berr.AccessRefused, "login of user %q refused", user)
	}
	return nil
}

// OnlyDefaultAccount reports whether the only account is guest with the password that it
// has at the first start: then nobody may listen beyond loopback.
func (b *Broker) OnlyDefaultAccount() bool {
	a := b.meta.accounts.Load()
	u := a.users[guest]
	return len(a.users) == 0 || len(a.users) == 1 && u != nil && access.Hashing(u.Hashing).Verify(u.PasswordHash, guest)
}

// NewUser is a user to be made or changed: a password, or what another broker stored
// for it; neither for an account without one.
type NewUser struct {
	Name         string
	Password     string
	PasswordHash string
	Hashing      access.Hashing
	Tags         []string
}

// PutUser makes or replaces a user.
func (b *Broker) PutUser(n NewUser) error {
	u := meta.User{Name: n.Name, PasswordHash: n.PasswordHash, Hashing: string(n.Hashing), Tags: slices.Clone(n.Tags)}
	if n.Password != "" {
		var salt [access.SaltLen]byte
		_, _ = rand.Read(salt[:])
		u.PasswordHash, u.Hashing = access.SHA256.Hash(salt, n.Password), string(access.SHA256)
	}
	if err := access.Hashing(u.Hashing).Check(u.PasswordHash); err != nil {
		return berr.Wrap(berr.CommandInvalid, err, "user '%s': %v", n.Name, err)
	}
	_, err := b.define(meta.PutUser{User: u})
	return err
}

// DeleteUser removes a user with all permissions; NotFound if there is none.
func (b *Broker) DeleteUser(name string) error {
	r, err := b.define(meta.DeleteUser{Name: name})
	if err == nil && r.Outcome == meta.Absent {
		return berr.New(berr.NotFound, "user '%s' not found", name)
	}
	return err
}

// Users lists all users by name.
func (b *Broker) Users() []*meta.User {
	var list []*meta.User
	for _, u := range b.meta.accounts.Load().users {
		list = append(list, u)
	}
	slices.SortFunc(list, func(x, y *meta.User) int {
		if x.Name < y.Name {
			return -1
		}
		return 1
	})
	return list
}

// SetPermission gives a user rights in a virtual host, instead of those it had.
func (b *Broker) SetPermission(vhost, user string, p access.Permission) error {
	for _, text := range []string{p.Configure, p.Write, p.Read} {
		if err := (access.Pattern{Text: text, Matching: access.Regexp}).Check(); err != nil {
			return berr.Wrap(berr.CommandInvalid, err, "%v", err)
		}
	}
	return b.putItem(meta.ItemKey{Kind: meta.ItemPermission, VHost: vhost, User: user}, p)
}

// SetTopicPermission restricts a user's routing keys in an exchange.
func (b *Broker) SetTopicPermission(vhost, user string, p access.TopicPermission) error {
	for _, text := range []string{p.Write, p.Read} {
		if err := (access.Pattern{Text: text, Matching: access.Regexp}).Check(); err != nil {
			return berr.Wrap(berr.CommandInvalid, err, "%v", err)
		}
	}
	return b.putItem(meta.ItemKey{Kind: meta.ItemTopicPermission, VHost: vhost, User: user, Name: p.Exchange}, p)
}

// ClearPermission takes all rights of a user in a virtual host away.
func (b *Broker) ClearPermission(vhost, user string) error {
	return b.deleteItem(meta.ItemKey{Kind: meta.ItemPermission, VHost: vhost, User: user})
}

// ClearTopicPermission lifts the restriction in an exchange.
func (b *Broker) ClearTopicPermission(vhost, user, exchange string) error {
	return b.deleteItem(meta.ItemKey{Kind: meta.ItemTopicPermission, VHost: vhost, User: user, Name: exchange})
}

func (b *Broker) putItem(k meta.ItemKey, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return berr.Wrap(berr.Internal, err, "definition")
	}
	_, err = b.define(meta.PutItem{Item: meta.Item{ItemKey: k, Value: string(text)}})
	return err
}

// deleteItem removes an item; one that doesn't exist is fine.
func (b *Broker) deleteItem(k meta.ItemKey) error {
	_, err := b.define(meta.DeleteItem{Key: k})
	return err
}

// right remembers that a publisher may write to an exchange, for as long as the table
// of permissions is the same.
type right struct {
	table    *access.Table
	exchange string
	topics   bool // topic rows restrict its routing keys
}

// mayPublish refuses to publish to an exchange without the right to.
func (p *Publisher) mayPublish(ex *route.Exchange, keys ...[]byte) error {
	t := p.s.b.meta.accounts.Load().table
	if p.right.table != t || p.right.exchange != ex.Name {
		if err := p.s.may(access.Write, access.Exchange, ex.Name); err != nil {
			return err
		}
		topics := ex.Type == route.Topic && t.Restricts(p.s.id.User, p.s.id.VHost, ex.Name)
		p.right = right{t, ex.Name, topics}
	}
	if p.right.topics {
		for _, key := range keys {
			if err := p.s.mayTopic(access.Write, ex.Name, string(key)); err != nil {
				return err
			}
		}
	}
	return nil
}

// may refuses an operation on an object that the session's user has no right for.
func (s *Session) may(op access.Op, kind access.Kinds, name string) error {
	if s.b.meta.accounts.Load().table.Allowed(s.id.User, s.id.VHost, kind, name, op) {
		return nil
	}
	what := "queue"
	if kind == access.Exchange {
		what = "exchange"
		if name == "" {
			name = "amq.default"
		}
	}
	return berr.New(berr.AccessRefused, "%s access to %s '%s' in vhost '%s' refused for user '%s'", opNames[op], what, name, s.id.VHost, s.id.User)
}

// lookupFor finds a queue that this session may use in this way.
func (s *Session) lookupFor(op access.Op, name string) (*route.Queue, error) {
	if err := s.may(op, access.Queue, name); err != nil {
		return nil, err
	}
	return s.lookup(name)
}

// mayDeclare checks the rights for an exchange and its alternate.
func (s *Session) mayDeclare(spec ExchangeSpec) error {
	err := s.may(access.Configure, access.Exchange, spec.Name)
	if err == nil && spec.Alternate != "" {
		if err = s.may(access.Read, access.Exchange, spec.Name); err == nil {
			err = s.may(access.Write, access.Exchange, spec.Alternate)
		}
	}
	return err
}

// mayBind checks the rights at both ends, and for the key of a topic exchange.
func (s *Session) mayBind(b BindingSpec) error {
	kind := access.Queue
	if b.Kind == route.ToExchange {
		kind = access.Exchange
	}
	if err := s.may(access.Write, kind, b.Destination); err != nil {
		return err
	}
	if err := s.may(access.Read, access.Exchange, b.Source); err != nil {
		return err
	}
	if ex := s.LookupExchange(b.Source); ex != nil && ex.Type == route.Topic {
		return s.mayTopic(access.Read, b.Source, b.Key)
	}
	return nil
}

var opNames = map[access.Op]string{access.Configure: "configure", access.Write: "write", access.Read: "read"}

// mayTopic refuses a routing key of a topic exchange.
func (s *Session) mayTopic(op access.Op, exchange, key string) error {
	v := access.Vars{Username: s.id.User, VHost: s.id.VHost, ClientID: s.id.Client}
	if s.b.meta.accounts.Load().table.TopicAllowed(s.id.User, s.id.VHost, exchange, key, op, v) {
		return nil
	}
	return berr.New(berr.AccessRefused, "%s access to topic '%s' in exchange '%s' in vhost '%s' refused for user '%s'", opNames[op], key, exchange, s.id.VHost, s.id.User)
}
