package meta

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/route"
)

// model is the reference: one layer, as if nothing were ephemeral, and a deletion
// repeated until nothing more has to go.
type model struct {
	vhosts    map[string]bool
	queues    map[string]bool // vhost/name
	exchanges map[string]bool // vhost/name: auto-delete?
	bindings  map[string]route.Binding
}

func (m *model) removeBindings(drop func(b *route.Binding) bool) {
	for more := true; more; {
		more = false
		sources := map[string]bool{}
		for k, b := range m.bindings {
			if drop(&b) {
				delete(m.bindings, k)
				sources[b.VHost+"/"+b.Source] = true
			}
		}
		for _, b := range m.bindings {
			delete(sources, b.VHost+"/"+b.Source)
		}
		gone := map[string]bool{}
		for x := range sources {
			if m.exchanges[x] {
				delete(m.exchanges, x)
				gone[x] = true
				more = true
			}
		}
		drop = func(b *route.Binding) bool {
			return gone[b.VHost+"/"+b.Source] || (b.Kind == route.ToExchange && gone[b.VHost+"/"+b.Destination])
		}
	}
}

func (m *model) has(vhost, name string, kind route.DestinationKind) bool {
	if kind == route.ToQueue {
		return m.queues[vhost+"/"+name]
	}
	_, ok := m.exchanges[vhost+"/"+name]
	return ok || (m.vhosts[vhost] && route.Predeclared(name) && name != "")
}

func (m *model) apply(op Op) Outcome {
	switch op := op.(type) {
	case PutVHost:
		if m.vhosts[op.Name] {
			return Exists
		}
		m.vhosts[op.Name] = true
		return Created
	case DeleteVHost:
		if !m.vhosts[op.Name] {
			return Absent
		}
		delete(m.vhosts, op.Name)
		inside := func(k string, _ bool) bool { return strings.HasPrefix(k, op.Name+"/") }
		maps.DeleteFunc(m.queues, inside)
		maps.DeleteFunc(m.exchanges, inside)
		maps.DeleteFunc(m.bindings, func(_ string, b route.Binding) bool { return b.VHost == op.Name })
		return Deleted
	case DeclareExchange:
		x := op.Exchange
		if !m.vhosts[x.VHost] {
			return Refused
		}
		if m.has(x.VHost, x.Name, route.ToExchange) {
			return Exists
		}
		m.exchanges[x.VHost+"/"+x.Name] = x.AutoDelete
		return Created
	case DeclareQueue:
		q := op.Queue
		if !m.vhosts[q.VHost] {
			return Refused
		}
		if m.has(q.VHost, q.Name, route.ToQueue) {
			return Exists
		}
		m.queues[q.VHost+"/"+q.Name] = true
		return Created
	}
	return m.applyRemoval(op)
}

func (m *model) applyRemoval(op Op) Outcome {
	switch op := op.(type) {
	case DeleteExchange:
		if route.Predeclared(op.Name) || !m.vhosts[op.VHost] {
			return Refused
		}
		if !m.has(op.VHost, op.Name, route.ToExchange) {
			return Absent
		}
		for _, b := range m.bindings {
			if op.IfUnused && b.VHost == op.VHost && b.Source == op.Name {
				return Refused
			}
		}
		delete(m.exchanges, op.VHost+"/"+op.Name)
		m.removeBindings(func(b *route.Binding) bool {
			return b.VHost == op.VHost && (b.Source == op.Name || (b.Kind == route.ToExchange && b.Destination == op.Name))
		})
		return Deleted
	case DeleteQueue:
		if !m.vhosts[op.VHost] {
			return Refused
		}
		if !m.queues[op.VHost+"/"+op.Name] || op.ID == 0 { // the test uses id 0 for a wrong one
			return Absent
		}
		delete(m.queues, op.VHost+"/"+op.Name)
		m.removeBindings(func(b *route.Binding) bool {
			return b.VHost == op.VHost && b.Kind == route.ToQueue && b.Destination == op.Name
		})
		return Deleted
	case Bind, Unbind:
		return m.applyBinding(op)
	}
	panic(fmt.Sprintf("%T", op))
}

func (m *model) applyBinding(op Op) Outcome {
	var b route.Binding
	remove := false
	switch op := op.(type) {
	case Bind:
		b = op.Binding
	case Unbind:
		b, remove = op.Binding, true
	}
	if !m.has(b.VHost, b.Source, route.ToExchange) || !m.has(b.VHost, b.Destination, b.Kind) {
		return Refused
	}
	k := bindingKey(&b)
	_, have := m.bindings[k]
	switch {
	case remove && !have:
		return Absent
	case remove:
		m.removeBindings(func(x *route.Binding) bool { return bindingKey(x) == k })
		return Deleted
	case have:
		return Exists
	}
	m.bindings[k] = b
	return Created
}

// dump lists what is in a table.
func dump(t *route.Table) []string {
	var list []string
	for v := range t.VHosts() {
		list = append(list, "vhost "+v.Name)
		for q := range v.Queues() {
			list = append(list, fmt.Sprintf("queue %+v", *q))
		}
		for x := range v.Exchanges() {
			list = append(list, fmt.Sprintf("exchange %s/%s %s %v %v %v", x.VHost, x.Name, x.Type, x.Durable, x.AutoDelete, x.Internal))
			for b := range x.Bindings() {
				list = append(list, fmt.Sprintf("binding %+v", *b))
			}
		}
	}
	slices.Sort(list)
	return list
}

func (m *model) dump() []string {
	var list []string
	for v := range m.vhosts {
		list = append(list, "vhost "+v)
		for _, x := range route.PredeclaredExchanges(v) {
			list = append(list, "exchange "+v+"/"+x.Name)
		}
	}
	for q := range m.queues {
		list = append(list, "queue "+q)
	}
	for x := range m.exchanges {
		list = append(list, "exchange "+x)
	}
	for _, b := range m.bindings {
		list = append(list, fmt.Sprintf("binding %+v", b))
	}
	slices.Sort(list)
	return list
}

// names is dump without the attributes that the model doesn't have.
func names(t *route.Table) []string {
	list := dump(t)
	for i, s := range list {
		if strings.HasPrefix(s, "exchange ") {
			list[i] = strings.Join(strings.Fields(s)[:2], " ")
		}
	}
	for v := range t.VHosts() {
		for q := range v.Queues() {
			i := slices.Index(list, fmt.Sprintf("queue %+v", *q))
			list[i] = "queue " + v.Name + "/" + q.Name
		}
	}
	slices.Sort(list)
	return list
}

// node is a catalog with the routing table that its changes make.
type node struct {
	catalog *Catalog
	table   *route.Table
}

func newNode() *node { return &node{New(), route.New()} }

func (n *node) changed(changes []Change) {
	e := n.table.Edit()
	for _, c := range changes {
		ApplyChange(e, c)
	}
	n.table = e.Done()
}

func (n *node) apply(op Op) Result {
	res, changes := n.catalog.Apply(op)
	n.changed(changes)
	return res
}

func (n *node) applyLocal(op Op) Result {
	res, changes := n.catalog.ApplyLocal(op)
	n.changed(changes)
	return res
}

// check compares the table with the catalog.
func (n *node) check(t *rapid.T) {
	e := route.New().Edit()
	n.catalog.Populate(e)
	if want, got := dump(e.Done()), dump(n.table); !slices.Equal(got, want) {
		t.Fatalf("changes made\n%s\nthe catalog has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

type catalogTest struct {
	model *model
	// home proposes what clients ask; other has local objects of its own and
	// only applies; both must agree on what is durable.
	home, other *node
	checkpoint  map[string][]byte // of home
	otherPoint  map[string][]byte
	lastID      uint64
}

var (
	genVHost    = rapid.SampledFrom([]string{"/", "/", "/", "v"})
	genQueue    = rapid.SampledFrom([]string{"q0", "q1", "q2"})
	genExchange = rapid.SampledFrom([]string{"x0", "x1", "x2", "x3", "amq.topic"})
)

func genBinding(t *rapid.T) route.Binding {
	b := route.Binding{
		VHost: genVHost.Draw(t, "vhost"), Source: genExchange.Draw(t, "source"),
		Key: rapid.SampledFrom([]string{"", "q0", "k"}).Draw(t, "key"),
	}
	if rapid.Bool().Draw(t, "e2e") {
		b.Kind, b.Destination = route.ToExchange, genExchange.Draw(t, "destination")
	} else {
		b.Destination = genQueue.Draw(t, "destination")
	}
	if rapid.IntRange(0, 3).Draw(t, "args") == 0 {
		b.Args = "args"
		b.Headers = []route.HeaderArg{{Key: "h", Value: route.Value{Kind: route.String, Bytes: []byte("v")}}}
	}
	return b
}

func (m *catalogTest) genOp(t *rapid.T) Op {
	vhost := genVHost.Draw(t, "vhost")
	switch rapid.IntRange(0, 20).Draw(t, "op") {
	case 0:
		return PutVHost{vhost}
	case 1:
		if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
			return DeleteVHost{vhost}
		}
		return PutVHost{vhost}
	case 2, 3, 4:
		return DeclareExchange{route.Exchange{
			VHost: vhost, Name: genExchange.Draw(t, "name"), Type: route.Topic,
			Durable: rapid.Bool().Draw(t, "durable"), AutoDelete: rapid.Bool().Draw(t, "auto-delete"),
			Args: []byte("args"),
		}}
	case 5, 6:
		return DeclareQueue{route.Queue{
			VHost: vhost, Name: genQueue.Draw(t, "name"), Type: route.Classic, Shard: 3, Args: []byte("args"),
			Durable: rapid.Bool().Draw(t, "durable"), Exclusive: rapid.IntRange(0, 3).Draw(t, "exclusive") == 0,
		}}
	case 7:
		return DeleteExchange{VHost: vhost, Name: genExchange.Draw(t, "name"), IfUnused: rapid.Bool().Draw(t, "if-unused")}
	case 8, 9:
		op := DeleteQueue{VHost: vhost, Name: genQueue.Draw(t, "name")}
		if q := m.home.catalog.Queue(vhost, op.Name); q != nil && rapid.IntRange(0, 4).Draw(t, "wrong id") > 0 {
			op.ID = q.ID
		}
		return op
	case 10, 11, 12, 13:
		if len(m.model.bindings) > 0 && rapid.IntRange(0, 2).Draw(t, "existing") > 0 {
			keys := slices.Sorted(maps.Keys(m.model.bindings))
			b := m.model.bindings[rapid.SampledFrom(keys).Draw(t, "binding")]
			b.Headers = nil
			return Unbind{Binding: b}
		}
		b := genBinding(t)
		b.Headers = nil
		return Unbind{Binding: b}
	}
	return Bind{genBinding(t)}
}

// reparse sends an op through its encoding.
func reparse(t *rapid.T, op Op) Op {
	enc := AppendOp([]byte{'x'}, op)
	got, n, err := ParseOp(append(enc, "tail"...)[1:])
	if err != nil || n != len(enc)-1 || !reflect.DeepEqual(got, op) {
		t.Fatalf("%+v came back as %+v, %d of %d bytes, %v", op, got, n, len(enc)-1, err)
	}
	return got
}

// request is what a client's request goes through at home.
func (m *catalogTest) request(t *rapid.T, op Op) Result {
	var res Result
	if m.home.catalog.IsLocal(op) {
		res = m.home.applyLocal(op)
	} else {
		prepared, refused := m.home.catalog.Prepare(op)
		if refused != nil {
			return *refused
		}
		prepared = reparse(t, prepared)
		res = m.home.apply(prepared)
		there := m.other.apply(prepared)
		if there.Outcome != res.Outcome || (there.Err == nil) != (res.Err == nil) {
			t.Fatalf("%+v: %v at home, %v elsewhere", prepared, res, there)
		}
		if a, b := m.home.catalog.Hash(), m.other.catalog.Hash(); a != b {
			t.Fatalf("%+v: nodes differ", prepared)
		}
	}
	for _, next := range res.Propose {
		m.request(t, next)
	}
	return res
}

func (m *catalogTest) step(t *rapid.T) {
	op := m.genOp(t)
	want := m.model.apply(op)
	got := m.request(t, op)
	if got.Outcome != want || (got.Err != nil) != (want == Refused) {
		t.Fatalf("%+v: outcome %d (%v), want %d", op, got.Outcome, got.Err, want)
	}
	if d, ok := op.(DeclareQueue); ok && got.Outcome == Created && !d.Queue.Ephemeral() {
		if got.Queue.ID <= m.lastID {
			t.Fatalf("log id %d after %d", got.Queue.ID, m.lastID)
		}
		m.lastID = got.Queue.ID
	}
}

func (m *catalogTest) elsewhere(t *rapid.T) {
	if op := m.genOp(t); m.other.catalog.IsLocal(op) {
		m.other.applyLocal(op)
	}
}

func export(t *rapid.T, n *node, point map[string][]byte) {
	err := n.catalog.Dirty(func(k, v []byte) error {
		if v == nil {
			delete(point, string(k))
		} else {
			point[string(k)] = bytes.Clone(v)
		}
		return nil
	})
	if err != nil || n.catalog.DirtyLen() != 0 {
		t.Fatal(err)
	}
}

// restart gives a node what its checkpoint has, in any order.
func restart(t *rapid.T, point map[string][]byte) *node {
	n := newNode()
	keys := slices.Sorted(maps.Keys(point))
	if rapid.Bool().Draw(t, "reverse") {
		slices.Reverse(keys)
	}
	for _, k := range keys {
		// An older value, and one that was removed, must leave no trace.
		if err := n.catalog.Restore([]byte(k), point[k]); err != nil {
			t.Fatal(err)
		}
		if k[0] != keyCounter && rapid.IntRange(0, 3).Draw(t, "twice") == 0 {
			if err := n.catalog.Restore([]byte(k), nil); err != nil {
				t.Fatal(err)
			}
			if err := n.catalog.Restore([]byte(k), point[k]); err != nil {
				t.Fatal(err)
			}
		}
	}
	e := n.table.Edit()
	n.catalog.Populate(e)
	n.table = e.Done()
	if n.catalog.DirtyLen() != 0 {
		t.Fatal("a restored catalog is dirty")
	}
	return n
}

func TestCatalogAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &catalogTest{
			model: &model{map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]route.Binding{}},
			home:  newNode(), other: newNode(),
			checkpoint: map[string][]byte{}, otherPoint: map[string][]byte{},
		}
		m.model.apply(PutVHost{"/"})
		m.request(t, PutVHost{"/"})
		t.Repeat(map[string]func(*rapid.T){
			"step":      m.step,
			"step2":     m.step,
			"step3":     m.step,
			"step4":     m.step,
			"elsewhere": m.elsewhere,
			"export":    func(t *rapid.T) { export(t, m.home, m.checkpoint) },
			"restart elsewhere": func(t *rapid.T) {
				export(t, m.other, m.otherPoint)
				hash := m.other.catalog.Hash()
				m.other = restart(t, m.otherPoint)
				if m.other.catalog.Hash() != hash {
					t.Fatal("restored catalog differs")
				}
			},
			"": func(t *rapid.T) {
				m.home.check(t)
				m.other.check(t)
				if got, want := names(m.home.table), m.model.dump(); !slices.Equal(got, want) {
					t.Fatalf("have\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			},
		})
		export(t, m.home, m.checkpoint)
		if restart(t, m.checkpoint).catalog.Hash() != m.home.catalog.Hash() {
			t.Fatal("restored catalog differs")
		}
	})
}
