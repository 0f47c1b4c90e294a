package route

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"
)

func newVHost(edit func(e *Editor)) *VHost {
	e := New().Edit()
	e.PutVHost("/")
	edit(e)
	return e.Done().VHost("/")
}

func putQueues(e *Editor, names ...string) {
	for i, n := range names {
		e.PutQueue(&Queue{VHost: "/", Name: n, ID: uint64(i + 1)})
	}
}

func bindQueue(e *Editor, source, queue, key string) {
	e.Bind(&Binding{VHost: "/", Source: source, Destination: queue, Key: key})
}

func bindExchange(e *Editor, source, destination, key string) {
	e.Bind(&Binding{VHost: "/", Source: source, Destination: destination, Key: key, Kind: ToExchange})
}

func routeNames(v *VHost, exchange, key string) []string {
	var names []string
	for _, q := range v.Route(&Scratch{}, v.Exchange(exchange), []byte(key), nil, nil) {
		names = append(names, q.Name)
	}
	slices.Sort(names)
	return names
}

func TestPredeclared(t *testing.T) {
	v := newVHost(func(*Editor) {})
	want := map[string]string{
		"": Direct, "amq.direct": Direct, "amq.fanout": Fanout, "amq.topic": Topic,
		"amq.headers": Headers, "amq.match": Headers, "amq.rabbitmq.trace": Topic,
	}
	for x := range v.Exchanges() {
		if want[x.Name] != x.Type || !x.Durable || !Predeclared(x.Name) || x.Internal != (x.Name == "amq.rabbitmq.trace") {
			t.Errorf("%+v", x)
		}
	}
	if v.ExchangeCount() != len(want) {
		t.Errorf("%d exchanges", v.ExchangeCount())
	}
}

func TestDefaultExchangeCannotBeBound(t *testing.T) {
	newVHost(func(e *Editor) {
		putQueues(e, "q")
		if e.Bind(&Binding{VHost: "/", Source: "", Destination: "q", Key: "k"}) {
			t.Error("bound from the default exchange")
		}
		if e.Bind(&Binding{VHost: "/", Source: "amq.direct", Destination: "", Kind: ToExchange}) {
			t.Error("bound to the default exchange")
		}
	})
}

func TestAlternateExchange(t *testing.T) {
	v := newVHost(func(e *Editor) {
		putQueues(e, "q", "caught")
		put := func(name, alternate string) {
			e.PutExchange(Exchange{VHost: "/", Name: name, Type: Direct, Alternate: alternate})
		}
		put("a", "b")
		put("b", "c") // routes nowhere itself: the chain goes on
		put("c", "a") // and may be a cycle
		put("lost", "nowhere")
		put("dead end", "")
		put("via", "c")
		bindQueue(e, "c", "caught", "k")
		bindQueue(e, "a", "q", "own")
		// A binding to an exchange that routes nowhere is a match (RabbitMQ).
		bindExchange(e, "via", "dead end", "k")
	})
	for _, c := range []struct {
		exchange, key string
		want          []string
	}{
		{"a", "k", []string{"caught"}},
		{"a", "own", []string{"q"}},
		{"a", "neither", nil},
		{"lost", "k", nil},
		{"via", "k", nil},
	} {
		if got := routeNames(v, c.exchange, c.key); !slices.Equal(got, c.want) {
			t.Errorf("%s, %s: %q, want %q", c.exchange, c.key, got, c.want)
		}
	}
	x := v.Explain(v.Exchange("a"), []byte("k"), nil)
	if !slices.Equal(x.Alternates, []string{"b", "c"}) || !slices.Equal(x.Visited, []string{"a", "b", "c"}) ||
		len(x.Bindings) != 1 || x.Bindings[0].Destination != "caught" {
		t.Errorf("explained as %+v", x)
	}
}

// More targets and exchanges than are compared one by one, each reached twice.
func TestManyPathsDeliverOnce(t *testing.T) {
	const n = 500
	v := newVHost(func(e *Editor) {
		for i := range n {
			q := fmt.Sprintf("q%d", i)
			e.PutQueue(&Queue{VHost: "/", Name: q, ID: uint64(i % 7)}) // equal ids must not matter
			x := fmt.Sprintf("x%d", i)
			e.PutExchange(Exchange{VHost: "/", Name: x, Type: Fanout})
			bindExchange(e, "amq.fanout", x, "")
			bindExchange(e, "amq.fanout", x, "again")
			bindExchange(e, x, "amq.fanout", "")
			bindQueue(e, x, q, "")
			bindQueue(e, x, fmt.Sprintf("q%d", i/2), "")
			bindQueue(e, "amq.fanout", q, "a")
			bindQueue(e, "amq.fanout", q, "b")
		}
	})
	var s Scratch
	for range 3 {
		got := v.Route(&s, v.Exchange("amq.fanout"), nil, nil, nil)
		names := map[string]bool{}
		for _, q := range got {
			names[q.Name] = true
		}
		if len(got) != n || len(names) != n {
			t.Fatalf("%d targets, %d different", len(got), len(names))
		}
	}
}

func TestReplacedQueueIsReachedAfterRebinding(t *testing.T) {
	v := newVHost(func(e *Editor) {
		putQueues(e, "q")
		bindQueue(e, "amq.direct", "q", "k")
		e.PutQueue(&Queue{VHost: "/", Name: "q", ID: 9})
		bindQueue(e, "amq.direct", "q", "k")
	})
	got := v.Route(&Scratch{}, v.Exchange("amq.direct"), []byte("k"), nil, nil)
	if len(got) != 1 || got[0].ID != 9 || v.Exchange("amq.direct").BindingCount() != 1 {
		t.Fatalf("%+v", got)
	}
}

func TestCacheFollowsChanges(t *testing.T) {
	e := New().Edit()
	e.PutVHost("/")
	putQueues(e, "q1", "q2")
	for _, x := range []string{"plain", "other"} {
		e.PutExchange(Exchange{VHost: "/", Name: x, Type: Direct})
	}
	e.PutExchange(Exchange{VHost: "/", Name: "front", Type: Fanout, Alternate: "plain"})
	bindQueue(e, "plain", "q1", "k")
	table := e.Done()
	c := NewCache(4)
	check := func(what, exchange, key string, want ...string) {
		t.Helper()
		for range 2 { // a miss, then a hit
			v := table.VHost("/")
			var got []string
			for _, q := range c.Route(v, v.Exchange(exchange), []byte(key), nil) {
				got = append(got, q.Name)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s: %s, %s: %q, want %q", what, exchange, key, got, want)
			}
		}
	}
	change := func(fn func(e *Editor)) {
		e := table.Edit()
		fn(e)
		table = e.Done()
	}
	check("first", "plain", "k", "q1")
	check("same key elsewhere", "other", "k")
	check("alternate", "front", "k", "q1")
	check("default", "", "q3")
	change(func(e *Editor) { e.PutQueue(&Queue{VHost: "/", Name: "q3"}) })
	check("queue declared", "", "q3", "q3")
	change(func(e *Editor) { bindQueue(e, "plain", "q2", "k") })
	check("binding added", "plain", "k", "q1", "q2")
	check("binding added behind the alternate", "front", "k", "q1", "q2")
	change(func(e *Editor) { e.Unbind(&Binding{VHost: "/", Source: "plain", Destination: "q1", Key: "k"}) })
	check("binding removed", "plain", "k", "q2")
	change(func(e *Editor) {
		e.Clear()
		e.PutVHost("/")
		e.PutExchange(Exchange{VHost: "/", Name: "plain", Type: Direct})
	})
	check("started over", "plain", "k")
}

// A working set of a quarter of the entries must nearly all stay, and more keys
// than there are entries must not make the cache grow.
func TestCacheHoldsItsWorkingSet(t *testing.T) {
	v, keys := manyQueues(2000, func(e *Editor, name string, _ int) { bindQueue(e, "amq.direct", name, name) })
	c, ex := NewCache(256), v.Exchange("amq.direct")
	misses := func(keys [][]byte) (n int) {
		for _, k := range keys {
			c.targets = nil
			if got := c.Route(v, ex, k, nil); len(got) != 1 || got[0].Name != string(k) {
				t.Fatalf("%s: %v", k, got)
			}
			if c.targets != nil {
				n++
			}
		}
		return n
	}
	misses(keys[:64])
	if n := misses(keys[:64]); n > 6 {
		t.Errorf("%d of 64 keys are not cached", n)
	}
	if n := misses(keys); n < 1700 {
		t.Errorf("only %d misses for %d keys", n, len(keys))
	}
	if n := len(c.sets) * cacheWays; n != 256 {
		t.Errorf("%d entries", n)
	}
}

func TestCacheNeverHoldsHeaders(t *testing.T) {
	v := newVHost(func(e *Editor) {
		putQueues(e, "q")
		e.PutExchange(Exchange{VHost: "/", Name: "x", Type: Direct})
		bindExchange(e, "x", "amq.match", "k")
		e.Bind(&Binding{
			VHost: "/", Source: "amq.match", Destination: "q",
			Headers: []HeaderArg{{"h", Value{}}},
		})
	})
	c := NewCache(4)
	for i, want := range []int{1, 0, 1} {
		h := headerMap{}
		if want == 1 {
			h["h"] = Value{}
		}
		if got := c.Route(v, v.Exchange("x"), []byte("k"), h); len(got) != want {
			t.Fatalf("message %d: %d targets", i, len(got))
		}
	}
}

// An edit must cost the same whatever the size of the table, in time and memory.
func TestHundredThousandQueues(t *testing.T) {
	n := 100_000
	if raceEnabled {
		n = 10_000
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("tenant.queue.%08d", i)
	}
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / float64(n)
	}
	before := heap()
	e := New().Edit()
	e.PutVHost("/")
	table := e.Done()
	start := time.Now()
	for i, name := range names {
		e := table.Edit()
		e.PutQueue(&Queue{VHost: "/", Name: name, ID: uint64(i), Durable: true, Type: Classic})
		table = e.Done()
	}
	declared := time.Since(start)
	perQueue := heap() - before
	start = time.Now()
	for names := range slices.Chunk(names, 10) {
		e := table.Edit()
		for _, name := range names {
			bindQueue(e, "amq.fanout", name, "")
			bindQueue(e, "amq.topic", name, name)
		}
		table = e.Done()
	}
	bound := time.Since(start)
	t.Logf("%d queues, an edit each: %v, %.0f B a queue; two bindings each: %v, %.0f B a queue in all",
		n, declared, perQueue, bound, heap()-before)
	if perQueue > 600 {
		t.Errorf("a queue takes %.0f B", perQueue)
	}
	if got := len(table.VHost("/").Route(&Scratch{}, table.VHost("/").Exchange("amq.fanout"), nil, nil, nil)); got != n {
		t.Errorf("fanout reaches %d", got)
	}
	runtime.KeepAlive(names)
}
