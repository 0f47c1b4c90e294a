package route

import (
	"fmt"
	"math"
	"strconv"
	"testing"
)

// pickTable has an exchange x of a type with queues q0, q1… bound by these keys.
func pickTable(t *testing.T, typ string, on HashOn, keys ...string) (*Table, *VHost, *Exchange) {
	t.Helper()
	e := New().Edit()
	e.PutVHost("/")
	e.PutExchange(Exchange{VHost: "/", Name: "x", Type: typ, HashOn: on})
	for i, key := range keys {
		name := "q" + strconv.Itoa(i)
		e.PutQueue(&Queue{VHost: "/", Name: name, ID: uint64(i + 1)})
		if !e.Bind(&Binding{VHost: "/", Source: "x", Destination: name, Key: key}) {
			t.Fatalf("not bound by %q", key)
		}
	}
	table := e.Done()
	vh := table.VHost("/")
	return table, vh, vh.Exchange("x")
}

// pickAll routes n messages, one target each, through route or cache.
func pickAll(t *testing.T, n int, route func(key []byte) []*Queue) []string {
	t.Helper()
	out := make([]string, n)
	for i := range out {
		got := route([]byte("key" + strconv.Itoa(i)))
		if len(got) != 1 {
			t.Fatalf("%d targets", len(got))
		}
		out[i] = got[0].Name
	}
	return out
}

func shares(names []string) map[string]float64 {
	m := map[string]float64{}
	for _, n := range names {
		m[n] += 1 / float64(len(names))
	}
	return m
}

// Shares follow the weights, and a binding that goes moves only its own messages.
func TestConsistentHash(t *testing.T) {
	table, vh, x := pickTable(t, ConsistentHash, HashOn{}, "1", "2", "5")
	cache := NewCache(64)
	before := pickAll(t, 20000, func(key []byte) []*Queue { return cache.Route(vh, x, key, nil) })
	for name, want := range map[string]float64{"q0": 0.125, "q1": 0.25, "q2": 0.625} {
		if got := shares(before)[name]; math.Abs(got-want) > 0.02 {
			t.Errorf("%s has a share of %.3f, want %.3f", name, got, want)
		}
	}
	e := table.Edit()
	e.Unbind(&Binding{VHost: "/", Source: "x", Destination: "q1", Key: "2"})
	vh = e.Done().VHost("/")
	var s Scratch
	after := pickAll(t, 20000, func(key []byte) []*Queue { return vh.Route(&s, vh.Exchange("x"), key, nil, nil) })
	for i := range before {
		if before[i] != "q1" && after[i] != before[i] || after[i] == "q1" {
			t.Fatalf("message %d went to %s, now to %s", i, before[i], after[i])
		}
	}
	if e := table.Edit(); e.Bind(&Binding{VHost: "/", Source: "x", Destination: "q0", Key: "heavy"}) {
		t.Error("a key that is no weight is bound")
	}
	for _, key := range []string{"", "0", "-1", "x", "99999999"} {
		if CheckWeight(key) == nil {
			t.Errorf("weight %q accepted", key)
		}
	}
}

// The choice is part of what clients rely on: the same on every node and after every
// start.
func TestHashIsStable(t *testing.T) {
	_, vh, x := pickTable(t, ConsistentHash, HashOn{}, "1", "1", "1", "1")
	var s Scratch
	got := fmt.Sprint(pickAll(t, 8, func(key []byte) []*Queue { return vh.Route(&s, x, key, nil, nil) }))
	if want := "[q0 q0 q3 q3 q1 q1 q0 q1]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	_, vh, x = pickTable(t, ModulusHash, HashOn{}, "", "", "", "")
	got = fmt.Sprint(pickAll(t, 8, func(key []byte) []*Queue { return vh.Route(&s, x, key, nil, nil) }))
	if want := "[q0 q0 q1 q3 q3 q1 q3 q0]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

type props map[string]string

func (p props) Get(key string) (Value, bool) {
	v, ok := p["header "+key]
	return Value{Kind: String, Bytes: []byte(v)}, ok
}

func (p props) Property(name string) ([]byte, bool) {
	v, ok := p[name]
	return []byte(v), ok
}

// What is hashed decides alone.
func TestHashOn(t *testing.T) {
	for _, c := range []struct {
		on   HashOn
		name string
	}{{HashOn{Header: "h"}, "header h"}, {HashOn{Property: "message_id"}, "message_id"}} {
		_, vh, x := pickTable(t, ConsistentHash, c.on, "1", "1", "1")
		cache := NewCache(64)
		same := shares(pickAll(t, 100, func(key []byte) []*Queue { return cache.Route(vh, x, key, props{c.name: "v"}) }))
		if len(same) != 1 {
			t.Errorf("%v: one value goes to %v", c.on, same)
		}
		other := shares(pickAll(t, 100, func(key []byte) []*Queue { return cache.Route(vh, x, []byte("k"), props{c.name: string(key)}) }))
		if len(other) != 3 {
			t.Errorf("%v: all values go to %v", c.on, other)
		}
		if got := cache.Route(vh, x, nil, nil); len(got) != 1 {
			t.Errorf("%v: a message without it goes to %v", c.on, got)
		}
	}
}

func TestRandom(t *testing.T) {
	for _, typ := range []string{Random, LocalRandom} {
		_, vh, x := pickTable(t, typ, HashOn{}, "a", "b", "c", "d")
		cache := NewCache(64)
		cache.Seed(1)
		for name, got := range shares(pickAll(t, 20000, func([]byte) []*Queue { return cache.Route(vh, x, []byte("same"), nil) })) {
			if math.Abs(got-0.25) > 0.02 {
				t.Errorf("%s: %s has a share of %.3f", typ, name, got)
			}
		}
	}
}

// Without bindings nothing matches, and the alternate exchange takes over.
func TestPickNothing(t *testing.T) {
	for _, typ := range []string{Random, ModulusHash, ConsistentHash} {
		e := New().Edit()
		e.PutVHost("/")
		e.PutExchange(Exchange{VHost: "/", Name: "x", Type: typ, Alternate: "amq.fanout"})
		e.PutQueue(&Queue{VHost: "/", Name: "q", ID: 1})
		e.Bind(&Binding{VHost: "/", Source: "amq.fanout", Destination: "q"})
		vh := e.Done().VHost("/")
		var s Scratch
		if got := vh.Route(&s, vh.Exchange("x"), []byte("k"), nil, nil); len(got) != 1 {
			t.Errorf("%s: %d targets by the alternate exchange", typ, len(got))
		}
	}
}

// Many bindings: the set has inner nodes.
func TestPickAmongMany(t *testing.T) {
	keys := make([]string, 200)
	for i := range keys {
		keys[i] = "1"
	}
	for _, typ := range []string{Random, ModulusHash, ConsistentHash} {
		_, vh, x := pickTable(t, typ, HashOn{}, keys...)
		var s Scratch
		if got := len(shares(pickAll(t, 20000, func(key []byte) []*Queue { return vh.Route(&s, x, key, nil, nil) }))); got != 200 {
			t.Errorf("%s: %d of 200 queues get something", typ, got)
		}
	}
}
