package meta

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/route"
)

func exchange(name string, autoDelete bool) DeclareExchange {
	return DeclareExchange{route.Exchange{VHost: "/", Name: name, Type: route.Direct, Durable: true, AutoDelete: autoDelete}}
}

func queue(name string, durable bool) DeclareQueue {
	return DeclareQueue{route.Queue{VHost: "/", Name: name, Type: route.Classic, Durable: durable}}
}

func toQueue(source, queue string) route.Binding {
	return route.Binding{VHost: "/", Source: source, Destination: queue, Key: "k"}
}

func toExchange(source, destination string) route.Binding {
	return route.Binding{VHost: "/", Source: source, Destination: destination, Key: "k", Kind: route.ToExchange}
}

// request applies op as a single node does, what it proposes included.
func (n *node) request(op Op) Result {
	if n.catalog.IsLocal(op) {
		res := n.applyLocal(op)
		for _, next := range res.Propose {
			n.request(next)
		}
		return res
	}
	prepared, refused := n.catalog.Prepare(op)
	if refused != nil {
		return *refused
	}
	return n.apply(prepared)
}

func nodeWith(t *testing.T, ops ...Op) *node {
	t.Helper()
	n := newNode()
	for _, op := range append([]Op{PutVHost{"/"}}, ops...) {
		if res := n.request(op); res.Outcome != Created {
			t.Fatalf("%+v: %+v", op, res)
		}
	}
	return n
}

func TestRefusals(t *testing.T) {
	n := nodeWith(t, exchange("x", false), queue("q", true), Bind{toQueue("x", "q")},
		queue("mine", false), exchange("local use", false), Bind{toQueue("local use", "mine")})
	bad := toQueue("amq.match", "q")
	bad.Headers = []route.HeaderArg{{Key: "x-match", Value: route.Value{Kind: route.String, Bytes: []byte("no")}}}
	unknown := exchange("y", false)
	unknown.Exchange.Type = "x-none"
	elsewhere := queue("q", true)
	elsewhere.Queue.VHost = "v"
	for _, c := range []struct {
		op     Op
		reason berr.Reason
		detail string
	}{
		{unknown, berr.PreconditionFailed, "unknown exchange type 'x-none'"},
		{elsewhere, berr.NotFound, "vhost v not found"},
		{queue("", true), berr.CommandInvalid, "queue name is empty"},
		{DeleteExchange{VHost: "/"}, berr.AccessRefused, "operation not permitted on the default exchange"},
		{DeleteExchange{VHost: "/", Name: "amq.topic"}, berr.AccessRefused, "deletion of system exchange 'amq.topic' in vhost '/' not allowed"},
		{DeleteExchange{VHost: "/", Name: "x", IfUnused: true}, berr.PreconditionFailed, "exchange 'x' in vhost '/' in use"},
		{DeleteExchange{VHost: "/", Name: "local use", IfUnused: true}, berr.PreconditionFailed, "exchange 'local use' in vhost '/' in use"},
		{Bind{toQueue("", "q")}, berr.AccessRefused, "operation not permitted on the default exchange"},
		{Bind{toExchange("x", "")}, berr.AccessRefused, "operation not permitted on the default exchange"},
		{Bind{toQueue("none", "q")}, berr.NotFound, "no exchange 'none' in vhost '/'"},
		{Bind{toExchange("x", "none")}, berr.NotFound, "no exchange 'none' in vhost '/'"},
		{Bind{toQueue("x", "none")}, berr.NotFound, "no queue 'none' in vhost '/'"},
		{Unbind{Binding: toQueue("x", "none")}, berr.NotFound, "no queue 'none' in vhost '/'"},
		{Bind{bad}, berr.PreconditionFailed, `Invalid x-match field value <<"no">>; expected all, any, all-with-x, or any-with-x`},
		{PutUser{}, berr.CommandInvalid, "user name is empty"},
	} {
		hash := n.catalog.Hash()
		res := n.request(c.op)
		if res.Outcome != Refused || res.Err == nil || res.Err.Reason != c.reason || res.Err.Detail != c.detail {
			t.Errorf("%+v: %v", c.op, res.Err)
		}
		if n.catalog.Hash() != hash {
			t.Errorf("%+v was refused but changed something", c.op)
		}
	}
}

// What is ephemeral can't get into the replicated layer, nor the reverse.
func TestLayersAreKeptApart(t *testing.T) {
	n := nodeWith(t, queue("q", true), queue("mine", false))
	for _, op := range []Op{queue("other", false), DeclareExchange{route.Exchange{VHost: "/", Name: "t", Type: route.Direct}}} {
		if res := n.apply(op); res.Err == nil || res.Err.Reason != berr.CommandInvalid {
			t.Errorf("%+v: %+v", op, res)
		}
	}
	if res := n.apply(Bind{toQueue("amq.direct", "mine")}); res.Err == nil || res.Err.Reason != berr.NotFound {
		t.Errorf("a replicated binding found a local queue: %+v", res)
	}
	for _, op := range []Op{queue("other", true), Bind{toQueue("amq.direct", "q")}, PutVHost{"v"}} {
		if res := n.applyLocal(op); res.Err == nil || res.Err.Reason != berr.CommandInvalid {
			t.Errorf("%+v: %+v", op, res)
		}
	}
	if id := n.catalog.Queue("/", "mine").ID; id&LocalIDBit == 0 {
		t.Errorf("local log id %#x", id)
	}
	if id := n.catalog.Queue("/", "q").ID; id != 1 {
		t.Errorf("log id %#x", id)
	}
}

func TestRedeclarationShowsWhatIsThere(t *testing.T) {
	n := nodeWith(t, exchange("x", true), queue("q", true), queue("mine", false))
	if res := n.request(exchange("x", false)); res.Outcome != Exists || !res.Exchange.AutoDelete {
		t.Errorf("%+v", res)
	}
	if res := n.request(queue("q", false)); res.Outcome != Exists || !res.Queue.Durable {
		t.Errorf("%+v", res)
	}
	if res := n.request(queue("mine", true)); res.Outcome != Exists || res.Queue.Durable {
		t.Errorf("%+v", res)
	}
}

func TestDeleteQueueWantsTheRightOne(t *testing.T) {
	n := nodeWith(t, queue("q", true))
	old := n.catalog.Queue("/", "q").ID
	n.request(DeleteQueue{VHost: "/", Name: "q", ID: old})
	n.request(queue("q", true))
	if res := n.request(DeleteQueue{VHost: "/", Name: "q", ID: old}); res.Outcome != Absent {
		t.Fatalf("%+v", res)
	}
	if q := n.catalog.Queue("/", "q"); q == nil || q.ID == old {
		t.Fatalf("%+v", q)
	}
}

func TestAutoDeleteCycle(t *testing.T) {
	n := nodeWith(t, exchange("a", true), exchange("b", true), exchange("c", true), queue("q", true),
		Bind{toExchange("a", "b")}, Bind{toExchange("b", "c")}, Bind{toExchange("c", "a")}, Bind{toQueue("c", "q")})
	n.request(Unbind{Binding: toExchange("c", "a")})
	if n.catalog.Exchange("/", "c") == nil {
		t.Fatal("c went although it has a binding")
	}
	n.request(Bind{toExchange("c", "a")})
	n.request(Unbind{Binding: toQueue("c", "q")})
	if n.catalog.Exchange("/", "c") == nil {
		t.Fatal("c went although it leads to a")
	}
	n.request(Unbind{Binding: toExchange("a", "b")})
	for _, x := range []string{"a", "b", "c"} {
		if n.catalog.Exchange("/", x) != nil {
			t.Errorf("%s is still there", x)
		}
	}
}

// A durable auto-delete exchange lives as long as either layer binds from it.
func TestAutoDeleteAcrossLayers(t *testing.T) {
	n := nodeWith(t, exchange("x", true), queue("q", true), queue("mine", false),
		Bind{toQueue("x", "q")}, Bind{toQueue("x", "mine")})
	n.request(DeleteQueue{VHost: "/", Name: "q", ID: n.catalog.Queue("/", "q").ID})
	if n.catalog.Exchange("/", "x") == nil {
		t.Fatal("x went with its last durable binding")
	}
	n.request(DeleteQueue{VHost: "/", Name: "mine", ID: n.catalog.Queue("/", "mine").ID})
	if n.catalog.Exchange("/", "x") != nil || n.table.VHost("/").Exchange("x") != nil {
		t.Fatal("x stays without bindings")
	}
}

func TestDurableDeclarationEvictsLocalName(t *testing.T) {
	n := nodeWith(t, exchange("x", false), queue("q", false), Bind{toQueue("x", "q")})
	// Proposed by another node, which doesn't know of this queue.
	if res := n.apply(queue("q", true)); res.Outcome != Created {
		t.Fatalf("%+v", res)
	}
	if q := n.table.VHost("/").Queue("q"); !q.Durable {
		t.Fatalf("%+v", q)
	}
	if got := n.catalog.BindingsTo("/", "q", route.ToQueue); len(got) != 0 {
		t.Fatalf("the new queue inherited %+v", got)
	}
}

func TestBindingsTo(t *testing.T) {
	n := nodeWith(t, exchange("x", false), queue("q", true), Bind{toQueue("x", "q")}, Bind{toQueue("amq.direct", "q")},
		DeclareExchange{route.Exchange{VHost: "/", Name: "t", Type: route.Fanout}}, Bind{toQueue("t", "q")})
	var sources []string
	for _, b := range n.catalog.BindingsTo("/", "q", route.ToQueue) {
		sources = append(sources, b.Source)
	}
	slices.Sort(sources)
	if !slices.Equal(sources, []string{"amq.direct", "t", "x"}) {
		t.Fatalf("%q", sources)
	}
}

func TestUsersAndSettings(t *testing.T) {
	n := newNode()
	for _, c := range []struct {
		op   Op
		want Outcome
	}{
		{PutUser{User{Name: "b", PasswordHash: "h"}}, Created},
		{PutUser{User{Name: "a"}}, Created},
		{PutUser{User{Name: "b", PasswordHash: "h2", Tags: []string{"administrator"}}}, Replaced},
		{PutUser{User{Name: "c"}}, Created},
		{DeleteUser{"c"}, Deleted},
		{DeleteUser{"c"}, Absent},
		{PutSetting{"id", "1"}, Created},
		{PutSetting{"id", "2"}, Replaced},
		{PutSetting{"x", ""}, Created},
		{DeleteSetting{"x"}, Deleted},
		{DeleteSetting{"x"}, Absent},
	} {
		if res := n.apply(c.op); res.Outcome != c.want {
			t.Fatalf("%+v: %+v", c.op, res)
		}
	}
	point := map[string][]byte{}
	if err := n.catalog.Dirty(func(k, v []byte) error {
		if v != nil {
			point[string(k)] = slices.Clone(v)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	restored := New()
	for k, v := range point {
		if err := restored.Restore([]byte(k), v); err != nil {
			t.Fatal(err)
		}
	}
	if restored.Hash() != n.catalog.Hash() {
		t.Fatal("restored catalog differs")
	}
	users := restored.Users()
	if len(users) != 2 || users[0].Name != "a" || users[1].PasswordHash != "h2" || !slices.Equal(users[1].Tags, []string{"administrator"}) {
		t.Fatalf("%+v", users)
	}
	if v, ok := restored.Setting("id"); v != "2" || !ok {
		t.Fatalf("%q", v)
	}
	if restored.User("c") != nil {
		t.Fatal("deleted user restored")
	}
}

// An export that fails is repeated as a whole.
func TestDirtyKeepsWhatFailed(t *testing.T) {
	n := nodeWith(t, queue("q", true))
	full := errors.New("disk full")
	calls := 0
	if err := n.catalog.Dirty(func(_, _ []byte) error {
		if calls++; calls == 2 {
			return full
		}
		return nil
	}); !errors.Is(err, full) {
		t.Fatal(err)
	}
	var first, all int
	if err := n.catalog.Dirty(func(_, _ []byte) error { first++; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := n.catalog.Export(func(_, _ []byte) error { all++; return nil }); err != nil {
		t.Fatal(err)
	}
	if first != all || n.catalog.DirtyLen() != 0 {
		t.Fatalf("%d of %d keys exported", first, all)
	}
}

func TestHundredThousandDeclares(t *testing.T) {
	n := 100_000
	if raceEnabled {
		n = 10_000
	}
	ops := make([][]byte, n)
	for i := range ops {
		op := queue(fmt.Sprintf("tenant.queue.%08d", i), true)
		op.Queue.Args = []byte("\x00\x00\x00\x10some arguments..")
		ops[i] = AppendOp(nil, op)
	}
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / float64(n)
	}
	before := heap()
	home := nodeWith(t)
	start := time.Now()
	for _, b := range ops {
		op, _, err := ParseOp(b)
		if err != nil {
			t.Fatal(err)
		}
		home.apply(op)
	}
	applied := time.Since(start)
	start = time.Now()
	keys := 0
	if err := home.catalog.Dirty(func(_, _ []byte) error { keys++; return nil }); err != nil {
		t.Fatal(err)
	}
	exported := time.Since(start)
	perQueue := heap() - before
	t.Logf("%d declares with a table version each: %v; export of %d keys: %v; %.0f B a queue in catalog and table",
		n, applied, keys, exported, perQueue)
	if perQueue > 600 {
		t.Errorf("a queue takes %.0f B", perQueue)
	}
	runtime.KeepAlive(ops)
	runtime.KeepAlive(home)
}
