package route

import (
	"fmt"
	"testing"
)

func benchRoute(b *testing.B, v *VHost, exchange string, keys [][]byte, h HeaderLookup, wantTargets int) {
	b.Helper()
	var s Scratch
	var dst []*Queue
	ex := v.Exchange(exchange)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		dst = v.Route(&s, ex, keys[i], h, dst[:0])
		if len(dst) != wantTargets {
			b.Fatalf("%d targets", len(dst))
		}
		if i++; i == len(keys) {
			i = 0
		}
	}
}

func manyQueues(n int, each func(e *Editor, name string, i int)) (*VHost, [][]byte) {
	var keys [][]byte
	v := newVHost(func(e *Editor) {
		for i := range n {
			name := fmt.Sprintf("queue.%06d", i)
			e.PutQueue(&Queue{VHost: "/", Name: name, ID: uint64(i + 1)})
			keys = append(keys, []byte(name))
			if each != nil {
				each(e, name, i)
			}
		}
	})
	return v, keys
}

func BenchmarkRouteDefault(b *testing.B) {
	v, keys := manyQueues(10_000, nil)
	benchRoute(b, v, "", keys, nil, 1)
}

func BenchmarkRouteDirect(b *testing.B) {
	v, keys := manyQueues(10_000, func(e *Editor, name string, _ int) { bindQueue(e, "amq.direct", name, name) })
	benchRoute(b, v, "amq.direct", keys, nil, 1)
}

func BenchmarkRouteFanout(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			v, keys := manyQueues(n, func(e *Editor, name string, _ int) { bindQueue(e, "amq.fanout", name, "") })
			benchRoute(b, v, "amq.fanout", keys, nil, n)
		})
	}
}

// 10,000 patterns of three words, half of them with wildcards; three match.
func BenchmarkRouteTopic(b *testing.B) {
	v, _ := manyQueues(10_000, func(e *Editor, name string, i int) {
		site, device := i/2/100, i/2%100
		switch {
		case i%2 == 0:
			bindQueue(e, "amq.topic", name, fmt.Sprintf("site%d.device%d.temperature", site, device))
		case device == 0:
			bindQueue(e, "amq.topic", name, fmt.Sprintf("site%d.#", site))
		default:
			bindQueue(e, "amq.topic", name, fmt.Sprintf("site%d.device%d.*", site, device))
		}
	})
	var keys [][]byte
	for i := range 1000 {
		keys = append(keys, fmt.Appendf(nil, "site%d.device%d.temperature", i%50, 1+i%99))
	}
	benchRoute(b, v, "amq.topic", keys, nil, 3)
}

type oneHeader struct{ v Value }

func (h *oneHeader) Get(key string) (Value, bool) { return h.v, key == "h" }

func BenchmarkRouteHeaders(b *testing.B) {
	v, keys := manyQueues(100, func(e *Editor, name string, i int) {
		e.Bind(&Binding{
			VHost: "/", Source: "amq.match", Destination: name,
			Headers: []HeaderArg{{"h", Value{Kind: Int, Int: int64(i)}}},
		})
	})
	benchRoute(b, v, "amq.match", keys, &oneHeader{Value{Kind: Int, Int: 42}}, 1)
}

func BenchmarkCacheHit(b *testing.B) {
	v, keys := manyQueues(64, func(e *Editor, name string, _ int) { bindQueue(e, "amq.topic", name, name) })
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c, ex := NewCache(256), v.Exchange("amq.topic")
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if len(c.Route(v, ex, keys[i], nil)) != 1 {
					b.Fatal("no target")
				}
				if i++; i == n {
					i = 0
				}
			}
		})
	}
}

func BenchmarkEditPutQueue(b *testing.B) {
	e := New().Edit()
	e.PutVHost("/")
	table := e.Done()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e := table.Edit()
		e.PutQueue(&Queue{VHost: "/", Name: fmt.Sprintf("queue.%06d", i%100_000)})
		table = e.Done()
		i++
	}
}

// Routing must not allocate once the scratch has grown.
func TestRouteDoesNotAllocate(t *testing.T) {
	v, keys := manyQueues(100, func(e *Editor, name string, i int) {
		bindQueue(e, "amq.direct", name, name)
		bindQueue(e, "amq.fanout", name, name)
		bindQueue(e, "amq.topic", name, "#."+fmt.Sprint(i%10)+".#")
		bindQueue(e, "amq.topic", name, name)
		e.Bind(&Binding{VHost: "/", Source: "amq.match", Destination: name, Headers: []HeaderArg{{"h", Value{}}}})
		bindExchange(e, "amq.headers", "amq.fanout", name)
	})
	var s Scratch
	var dst []*Queue
	c, h := NewCache(16), &oneHeader{}
	for _, x := range []string{"", "amq.direct", "amq.fanout", "amq.topic", "amq.match", "amq.headers"} {
		ex := v.Exchange(x)
		run := func() {
			for _, k := range keys {
				dst = v.Route(&s, ex, k, h, dst[:0])
			}
			dst = v.Route(&s, ex, []byte("1.2.3.4.5.6.7.8"), h, dst[:0])
			for _, k := range keys {
				c.Route(v, ex, k, h)
			}
		}
		for range 20 {
			run() // the buffers of a cache's entries grow as they are used
		}
		if n := testing.AllocsPerRun(10, run); n > 0 {
			t.Errorf("%q: %v allocations", x, n)
		}
	}
}
