package route

import (
	"fmt"
	"strings"
	"testing"
)

// topicTable has one queue per pattern, bound to amq.topic.
func topicTable(patterns ...string) *VHost {
	e := New().Edit()
	e.PutVHost("/")
	for i, p := range patterns {
		q := fmt.Sprintf("q%d", i)
		e.PutQueue(&Queue{VHost: "/", Name: q, ID: uint64(i + 1)})
		e.Bind(&Binding{VHost: "/", Source: "amq.topic", Destination: q, Key: p})
	}
	return e.Done().VHost("/")
}

func TestTopicMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, key string
		want         bool
	}{
		{"", "", true},
		{"", "a", false},
		{"#", "", true},
		{"*", "", false},
		{"#", "a.b", true},
		{"*", "a", true},
		{"*", "a.b", false},
		{"*.*", "a.", true},
		{"*", ".", false},
		{"*.*", ".", true},
		{"a.", "a.", true},
		{"a.", "a", false},
		{"a.#", "a", true},
		{"a.#", "a.b.c", true},
		{"#.a", "a", true},
		{"#.a", "b.a.a", true},
		{"#.a.#", "b.a.c", true},
		{"#.a.#", "b.c", false},
		{"#.*.#", "", false},
		{"#.*", "a", true},
		{"#.#", "", true},
		{"*.#.*", "a", false},
		{"*.#.*", "a.b", true},
		{"a.*.#.c", "a.c", false},
		{"a.*.#.c", "a.b.c", true},
		{"a.#.b.#.c", "a.b.x.c", true},
		{"a.#.b.#.c", "a.c", false},
		{"a*", "ab", false},
		{"a*", "a*", true},
		{"#.a.#.a.#", "a", false},
		{"#.a.#.a.#", "a.a", true},
	} {
		v := topicTable(c.pattern)
		got := len(v.Route(&Scratch{}, v.Exchange("amq.topic"), []byte(c.key), nil, nil)) == 1
		if got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.key, got)
		}
		if naive := naiveTopic(splitWords(c.pattern), splitWords(c.key)); naive != c.want {
			t.Errorf("reference: %q matches %q: %v", c.pattern, c.key, naive)
		}
	}
}

// A matcher that backtracks needs hours for this one, longer than the test may run.
func TestTopicManyHashesIsLinear(t *testing.T) {
	var patterns []string
	for n := 1; n <= 40; n++ {
		patterns = append(patterns, strings.Repeat("#.a.", n)+"b")
	}
	v := topicTable(patterns...)
	key := []byte(strings.Repeat("a.", 120) + "c")
	if got := v.Route(&Scratch{}, v.Exchange("amq.topic"), key, nil, nil); len(got) != 0 {
		t.Fatalf("%d matches", len(got))
	}
	key = []byte(strings.Repeat("a.", 30) + "b")
	if got := v.Route(&Scratch{}, v.Exchange("amq.topic"), key, nil, nil); len(got) != 30 {
		t.Fatalf("%d matches, want 30", len(got))
	}
}

func FuzzTopicMatch(f *testing.F) {
	f.Add("a.#.b", "*.b", "a.x.b")
	f.Add("#", "", "")
	f.Add("#.*.#.a", "..", ".a")
	f.Fuzz(func(t *testing.T, p, p2, key string) {
		if len(key) > 40 || len(p) > 40 || len(p2) > 40 {
			return // the reference takes exponential time
		}
		v := topicTable(p, p2)
		got := map[string]bool{}
		for _, q := range v.Route(&Scratch{}, v.Exchange("amq.topic"), []byte(key), nil, nil) {
			if got[q.Name] {
				t.Fatalf("%s twice", q.Name)
			}
			got[q.Name] = true
		}
		for i, pattern := range []string{p, p2} {
			want := naiveTopic(splitWords(pattern), splitWords(key))
			if got[fmt.Sprintf("q%d", i)] != want {
				t.Fatalf("%q matches %q: %v, want %v", pattern, key, !want, want)
			}
		}
	})
}
