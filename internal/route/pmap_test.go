package route

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"
)

// collidingHash has three values for all keys.
func collidingHash(key string) uint64 { return uint64(key[0] % 3) }

func checkPmap(t *rapid.T, m pmap[int], want map[string]int, hash func(string) uint64) {
	if m.len() != len(want) {
		t.Fatalf("len %d, want %d", m.len(), len(want))
	}
	for k, v := range want {
		if got, ok := pmapGet(m, hash(k), k); !ok || got != v {
			t.Fatalf("get(%q) = %d, %v, want %d", k, got, ok, v)
		}
		if got, ok := pmapGet(m, hash(k), []byte(k)); !ok || got != v {
			t.Fatalf("getBytes(%q) = %d, %v, want %d", k, got, ok, v)
		}
	}
	n := 0
	m.all(func(k string, v int) bool {
		if want[k] != v {
			t.Fatalf("all: %q = %d", k, v)
		}
		n++
		return true
	})
	if n != len(want) {
		t.Fatalf("all: %d entries, want %d", n, len(want))
	}
}

func testPmap(t *testing.T, hash func(string) uint64) {
	rapid.Check(t, func(t *rapid.T) {
		var m, old pmap[int]
		want, oldWant := map[string]int{}, map[string]int{}
		o := new(owner)
		key := rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprint(rapid.IntRange(0, 200).Draw(t, "n"))
		})
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), rapid.Int().Draw(t, "value")
				m, want[k] = m.setHashed(o, hash(k), k, v), v
			},
			"remove": func(t *rapid.T) {
				k := key.Draw(t, "key")
				m = m.removeHashed(o, hash(k), k)
				delete(want, k)
			},
			"publish": func(*rapid.T) {
				o, old, oldWant = new(owner), m, maps.Clone(want)
			},
			"": func(t *rapid.T) {
				checkPmap(t, m, want, hash)
				checkPmap(t, old, oldWant, hash)
			},
		})
	})
}

func TestPmap(t *testing.T) { testPmap(t, hashString) }

func TestPmapCollisions(t *testing.T) {
	real := rehash
	rehash = collidingHash
	defer func() { rehash = real }()
	testPmap(t, collidingHash)
}

func TestPmapEmptiesOut(t *testing.T) {
	var m pmap[int]
	o := new(owner)
	for i := range 10_000 {
		m = m.set(o, fmt.Sprint(i), i)
	}
	for i := range 10_000 {
		m = m.remove(o, fmt.Sprint(i))
	}
	if m.root != nil || m.n != 0 {
		t.Fatalf("%+v left", m)
	}
}
