// Package access is the one table of permissions that every protocol's rules are views
// of: rows that allow or deny a principal operations on the objects of a virtual host
// whose names match a pattern. RabbitMQ's permissions are three rows of regular
// expressions, its topic permissions rows within an exchange.
//
// Evaluation: any row that denies, else any that allows, else no. What a protocol asks
// for is authorized at the edge, by the session: a publisher on the exchange it names,
// whoever binds on both ends, never along the route.
//
// A Table is immutable and may be read by any goroutine.
package access

import "strings"

// Op is a set of operations.
type Op uint8

// The operations. A row may name several.
const (
	Configure Op = 1 << iota // declare, delete, alter
	Write                    // publish to, bind to
	Read                     // consume, get, purge, bind from
	Describe                 // look at
	Manage                   // of a virtual host or the cluster
)

// Kinds is a set of kinds of objects.
type Kinds uint16

// The kinds of objects.
const (
	Exchange Kinds = 1 << iota
	Queue
	Stream
	Topic // a routing key or topic within an exchange
	Group
	Txn
	Cluster
)

// Resource is what RabbitMQ's permissions are about.
const Resource = Exchange | Queue | Stream

// Matching says how a pattern matches names.
type Matching uint8

// The kinds of patterns. Regular expressions match anywhere in a name unless they are
// anchored; the empty one matches the empty name only, as in RabbitMQ.
const (
	Literal Matching = iota
	Prefix
	Regexp
)

// Pattern is a set of names.
type Pattern struct {
	Text     string
	Matching Matching
}

// Row is one rule.
type Row struct {
	User    string // the principal's name
	VHost   string
	Within  string // for Topic: the exchange
	Pattern Pattern
	Kinds   Kinds
	Ops     Op
	Deny    bool
}

// Vars are what a pattern of a topic row may refer to: {username}, {vhost} and
// {client_id} in its text stand for them, literally.
type Vars struct{ Username, VHost, ClientID string }

// expand puts the variables into a pattern's text.
func (v Vars) expand(p Pattern) string {
	quote := func(s string) string { return s }
	if p.Matching == Regexp {
		quote = quoteMeta
	}
	return strings.NewReplacer(
		"{username}", quote(v.Username), "{vhost}", quote(v.VHost), "{client_id}", quote(v.ClientID),
	).Replace(p.Text)
}

type key struct{ user, vhost string }

// rule is a row ready to be evaluated.
type rule struct {
	Row
	match matcher // nil: the text has variables and is compiled when they are known
}

// Table is a set of rows. The zero value refuses everything.
type Table struct{ rules map[key][]rule }

// With returns a table that has these rows for a user in a virtual host, instead of
// those it had there; none takes them away. Rows of others are an error, as is a
// pattern that can't be compiled.
func (t *Table) With(user, vhost string, rows []Row) (*Table, error) {
	n := &Table{rules: make(map[key][]rule, len(t.rules)+1)}
	for k, r := range t.rules {
		n.rules[k] = r
	}
	k := key{user, vhost}
	delete(n.rules, k)
	var list []rule
	for _, row := range rows {
		if row.User != user || row.VHost != vhost {
			return nil, errForeign
		}
		r := rule{Row: row}
		m, err := compile(row.Pattern)
		if err != nil {
			return nil, err
		}
		if row.Kinds != Topic || !strings.Contains(row.Pattern.Text, "{") {
			r.match = m
		}
		list = append(list, r)
	}
	if len(list) > 0 {
		n.rules[k] = list
	}
	return n, nil
}

// VHost reports whether the user may open a session in a virtual host: whether there
// is any row for it.
func (t *Table) VHost(user, vhost string) bool { return len(t.rules[key{user, vhost}]) > 0 }

// defaultExchange is the name under which patterns see the exchange without a name.
const defaultExchange = "amq.default"

// Allowed evaluates the rows for one object and one operation.
func (t *Table) Allowed(user, vhost string, kind Kinds, name string, op Op) bool {
	if kind == Exchange && name == "" {
		name = defaultExchange
	}
	allowed := false
	for _, r := range t.rules[key{user, vhost}] {
		if r.Kinds&kind == 0 || r.Ops&op == 0 || r.match == nil || !r.match(name) {
			continue
		}
		if r.Deny {
			return false
		}
		allowed = true
	}
	return allowed
}

// TopicAllowed evaluates topic rows: where there is none for the exchange, nothing is
// restricted.
func (t *Table) TopicAllowed(user, vhost, exchange, topic string, op Op, v Vars) bool {
	found, allowed := false, false
	for _, r := range t.rules[key{user, vhost}] {
		if r.Kinds&Topic == 0 || r.Within != exchange {
			continue
		}
		found = true
		if r.Ops&op == 0 || !r.matches(topic, v) {
			continue
		}
		if r.Deny {
			return false
		}
		allowed = true
	}
	return allowed || !found
}

// Restricts reports whether topic rows exist for the exchange, so that a session may
// skip asking for each message.
func (t *Table) Restricts(user, vhost, exchange string) bool {
	for _, r := range t.rules[key{user, vhost}] {
		if r.Kinds&Topic != 0 && r.Within == exchange {
			return true
		}
	}
	return false
}

func (r *rule) matches(name string, v Vars) bool {
	if r.match != nil {
		return r.match(name)
	}
	m, err := compile(Pattern{v.expand(r.Pattern), r.Pattern.Matching})
	return err == nil && m(name)
}
