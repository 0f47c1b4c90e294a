package route

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestBindingSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var set, old *bindingSet
		var want, oldWant []*Binding
		o := new(owner)
		binding := func(t *rapid.T) *Binding {
			return &Binding{
				Destination: fmt.Sprint(rapid.IntRange(0, 400).Draw(t, "destination")),
				Key:         rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key"),
			}
		}
		check := func(s *bindingSet, want []*Binding) {
			var got []*Binding
			s.all(func(b *bound) bool { got = append(got, b.Binding); return true })
			if !slices.EqualFunc(got, want, sameBinding) {
				t.Fatalf("%d bindings, want %d", len(got), len(want))
			}
			if (s == nil) != (len(want) == 0) {
				t.Fatal("an empty set must be nil")
			}
		}
		find := func(b *Binding) (int, bool) { return slices.BinarySearchFunc(want, b, compareBindings) }
		put := func(b *Binding) {
			set = set.put(o, bound{Binding: b})
			if i, found := find(b); found {
				want[i] = b
			} else {
				want = slices.Insert(want, i, b)
			}
		}
		remove := func(b *Binding) {
			i, found := find(b)
			if set.has(b) != found {
				t.Fatalf("has(%+v) = %v", b, !found)
			}
			set = set.remove(o, b)
			if found {
				want = slices.Delete(want, i, i+1)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) { put(binding(t)) },
			"put many": func(t *rapid.T) {
				from := rapid.IntRange(0, 400).Draw(t, "from")
				for i := range 150 {
					put(&Binding{Destination: fmt.Sprint((from + i*7) % 400), Key: "a"})
				}
			},
			"remove": func(t *rapid.T) { remove(binding(t)) },
			"remove many": func(t *rapid.T) {
				from := rapid.IntRange(0, 400).Draw(t, "from")
				for i := range 200 {
					remove(&Binding{Destination: fmt.Sprint((from + i) % 400), Key: "a"})
				}
			},
			"publish": func(*rapid.T) { o, old, oldWant = new(owner), set, slices.Clone(want) },
			"": func(*rapid.T) {
				check(set, want)
				check(old, oldWant)
			},
		})
	})
}
