package route

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// model is the reference: lists, searched naively.
type model struct {
	queues    map[string]*Queue
	exchanges map[string]Exchange
	bindings  []*Binding
}

func newModel() *model {
	m := &model{queues: map[string]*Queue{}, exchanges: map[string]Exchange{}}
	for _, x := range PredeclaredExchanges("/") {
		m.exchanges[x.Name] = x
	}
	return m
}

func (m *model) clone() *model {
	return &model{maps.Clone(m.queues), maps.Clone(m.exchanges), slices.Clone(m.bindings)}
}

func sameBinding(a, b *Binding) bool {
	return a.Source == b.Source && compareBindings(a, b) == 0
}

func (m *model) find(b *Binding) int {
	return slices.IndexFunc(m.bindings, func(x *Binding) bool { return sameBinding(x, b) })
}

func splitWords(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ".")
}

func naiveTopic(pattern, words []string) bool {
	switch {
	case len(pattern) == 0:
		return len(words) == 0
	case pattern[0] == "#":
		return naiveTopic(pattern[1:], words) || (len(words) > 0 && naiveTopic(pattern, words[1:]))
	case len(words) == 0:
		return false
	}
	return (pattern[0] == "*" || pattern[0] == words[0]) && naiveTopic(pattern[1:], words[1:])
}

type headerMap map[string]Value

func (h headerMap) Get(key string) (Value, bool) {
	v, ok := h[key]
	return v, ok
}

func naiveHeaders(args []HeaderArg, h headerMap) bool {
	mode := "all"
	for _, a := range args {
		if a.Key == "x-match" {
			mode = string(a.Value.Bytes)
		}
	}
	hits, total := 0, 0
	for _, a := range args {
		if a.Key == "x-match" || (!strings.HasSuffix(mode, "with-x") && strings.HasPrefix(a.Key, "x-")) {
			continue
		}
		total++
		v, ok := h[a.Key]
		if ok && (a.Value.Kind == Void || fmt.Sprint(a.Value) == fmt.Sprint(v)) {
			hits++
		}
	}
	if strings.HasPrefix(mode, "any") {
		return hits > 0
	}
	return hits == total
}

// route returns the names of the queues and the bindings that match.
func (m *model) route(exchange, key string, h headerMap) (queues []string, matched []*Binding) {
	found := map[string]bool{}
	work, seen := []string{exchange}, map[string]bool{exchange: true}
	reach := func(x string) {
		if _, ok := m.exchanges[x]; ok && !seen[x] {
			seen[x] = true
			work = append(work, x)
		}
	}
	for len(work) > 0 {
		x := m.exchanges[work[0]]
		work = work[1:]
		if x.Name == "" {
			if m.queues[key] != nil {
				found[key] = true
			}
			continue
		}
		any := false
		for _, b := range m.bindings {
			if b.Source != x.Name {
				continue
			}
			switch x.Type {
			case Direct:
				if b.Key != key {
					continue
				}
			case Topic:
				if !naiveTopic(splitWords(b.Key), splitWords(key)) {
					continue
				}
			case Headers:
				if !naiveHeaders(b.Headers, h) {
					continue
				}
			}
			any = true
			matched = append(matched, b)
			if b.Kind == ToExchange {
				reach(b.Destination)
			} else {
				found[b.Destination] = true
			}
		}
		if !any && x.Alternate != "" {
			reach(x.Alternate)
		}
	}
	return slices.Sorted(maps.Keys(found)), matched
}

var (
	genQueueName    = rapid.SampledFrom([]string{"q0", "q1", "q2", "q3", "a", "a.b", "b"})
	genExchangeName = rapid.SampledFrom([]string{"x0", "x1", "x2", "x3", "amq.topic", "amq.fanout", "amq.direct", "amq.match"})
	genKey          = rapid.StringOfN(rapid.SampledFrom([]rune("ab..")), 0, 6, -1)
	genPattern      = rapid.StringOfN(rapid.SampledFrom([]rune("ab..*#")), 0, 8, -1)
	genValue        = rapid.SampledFrom([]Value{{Kind: Void}, {Kind: Int, Int: 1}, {Kind: String, Bytes: []byte("1")}, {Kind: Bool, Int: 1}})
	genHeaderKey    = rapid.SampledFrom([]string{"h", "i", "x-j", "x-k"})
	genHeaders      = rapid.MapOfN(genHeaderKey, genValue, 0, 3)
)

func genBinding(t *rapid.T) *Binding {
	b := &Binding{VHost: "/", Source: genExchangeName.Draw(t, "source"), Key: genPattern.Draw(t, "pattern")}
	if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
		b.Kind, b.Destination = ToExchange, genExchangeName.Draw(t, "destination")
	} else {
		b.Destination = genQueueName.Draw(t, "destination")
	}
	args := genHeaders.Draw(t, "args")
	for _, k := range slices.Sorted(maps.Keys(args)) {
		b.Headers = append(b.Headers, HeaderArg{k, args[k]})
	}
	if mode := rapid.SampledFrom([]string{"", "all", "any", "all-with-x", "any-with-x"}).Draw(t, "mode"); mode != "" {
		b.Headers = append(b.Headers, HeaderArg{"x-match", Value{Kind: String, Bytes: []byte(mode)}})
	}
	b.Args = fmt.Sprint(b.Headers)
	return b
}

type modelTest struct {
	model   *model
	table   *Table
	cache   *Cache
	scratch Scratch
	nextID  uint64
	// An older version with its model: must route as it did.
	oldTable *Table
	oldModel *model
}

func (m *modelTest) edit(t *rapid.T) {
	e := m.table.Edit()
	for range rapid.IntRange(1, 6).Draw(t, "edits") {
		m.editOne(t, e)
	}
	m.table = e.Done()
}

func (m *modelTest) unbind(e *Editor, drop func(*Binding) bool) {
	m.model.bindings = slices.DeleteFunc(m.model.bindings, func(b *Binding) bool {
		if drop(b) {
			e.Unbind(b)
			return true
		}
		return false
	})
}

func (m *modelTest) editOne(t *rapid.T, e *Editor) {
	switch rapid.IntRange(0, 9).Draw(t, "edit") {
	case 0:
		name := genQueueName.Draw(t, "queue")
		if m.model.queues[name] == nil {
			m.nextID++
			q := &Queue{VHost: "/", Name: name, ID: m.nextID}
			e.PutQueue(q)
			m.model.queues[name] = q
		}
	case 1:
		name := genQueueName.Draw(t, "queue")
		m.unbind(e, func(b *Binding) bool { return b.Kind == ToQueue && b.Destination == name })
		e.DeleteQueue("/", name)
		delete(m.model.queues, name)
	case 2:
		x := Exchange{VHost: "/", Name: genExchangeName.Draw(t, "exchange")}
		if old, ok := m.model.exchanges[x.Name]; ok {
			x.Type = old.Type // as for a policy change: bindings stay
		} else {
			x.Type = rapid.SampledFrom([]string{Direct, Fanout, Topic, Headers}).Draw(t, "type")
		}
		if rapid.Bool().Draw(t, "alternate") {
			x.Alternate = genExchangeName.Draw(t, "alternate name")
		}
		e.PutExchange(x)
		m.model.exchanges[x.Name] = x
	case 3:
		name := genExchangeName.Draw(t, "exchange")
		m.unbind(e, func(b *Binding) bool {
			return b.Source == name || (b.Kind == ToExchange && b.Destination == name)
		})
		e.DeleteExchange("/", name)
		delete(m.model.exchanges, name)
	case 4:
		if len(m.model.bindings) > 0 {
			b := rapid.SampledFrom(m.model.bindings).Draw(t, "binding")
			c := *b
			if !e.Unbind(&c) {
				t.Fatalf("binding %+v was not there", b)
			}
			m.model.bindings = slices.Delete(m.model.bindings, m.model.find(b), m.model.find(b)+1)
		}
	default:
		b := genBinding(t)
		_, possible := m.model.exchanges[b.Source]
		if b.Kind == ToQueue {
			possible = possible && m.model.queues[b.Destination] != nil
		} else if _, ok := m.model.exchanges[b.Destination]; !ok {
			possible = false
		}
		if got := e.Bind(b); got != possible {
			t.Fatalf("Bind(%+v) = %v", b, got)
		}
		if possible && m.model.find(b) < 0 {
			m.model.bindings = append(m.model.bindings, b)
		}
	}
}

func queueNames(t *rapid.T, m *model, queues []*Queue) []string {
	names := []string{}
	for _, q := range queues {
		if m.queues[q.Name] != q {
			t.Fatalf("routed to a queue %q that is not the current one", q.Name)
		}
		names = append(names, q.Name)
	}
	slices.Sort(names)
	return names
}

func (m *modelTest) check(t *rapid.T, table *Table, ref *model) {
	v := table.VHost("/")
	names := slices.Sorted(maps.Keys(ref.exchanges))
	name := rapid.SampledFrom(names).Draw(t, "publish to")
	key, h := genKey.Draw(t, "key"), headerMap(genHeaders.Draw(t, "headers"))
	ex := v.Exchange(name)
	want, wantBindings := ref.route(name, key, h)

	sentinel := &Queue{Name: "stays"}
	got := v.Route(&m.scratch, ex, []byte(key), h, []*Queue{sentinel})
	if got[0] != sentinel {
		t.Fatal("Route overwrote what was in dst")
	}
	if g := queueNames(t, ref, got[1:]); !slices.Equal(g, want) {
		t.Fatalf("Route(%q, %q, %v) = %q, want %q", name, key, h, g, want)
	}
	if g := queueNames(t, ref, m.cache.Route(v, ex, []byte(key), h)); !slices.Equal(g, want) {
		t.Fatalf("Cache.Route(%q, %q, %v) = %q, want %q", name, key, h, g, want)
	}
	explained := v.Explain(ex, []byte(key), h)
	if g := queueNames(t, ref, explained.Queues); !slices.Equal(g, want) {
		t.Fatalf("Explain: queues %q, want %q", g, want)
	}
	if name != "" {
		if len(explained.Bindings) != len(wantBindings) {
			t.Fatalf("Explain: %d bindings, want %d", len(explained.Bindings), len(wantBindings))
		}
		for _, b := range wantBindings {
			if !slices.ContainsFunc(explained.Bindings, func(x *Binding) bool { return sameBinding(x, b) }) {
				t.Fatalf("Explain leaves out %+v", b)
			}
		}
	}
}

func (m *modelTest) checkLists(t *rapid.T) {
	v := m.table.VHost("/")
	total := 0
	for x := range v.Exchanges() {
		n := 0
		for b := range x.Bindings() {
			if b.Source != x.Name || m.model.find(b) < 0 {
				t.Fatalf("%q lists %+v", x.Name, b)
			}
			n++
		}
		if n != x.BindingCount() {
			t.Fatalf("%q: %d bindings listed, %d counted", x.Name, n, x.BindingCount())
		}
		total += n
	}
	if total != len(m.model.bindings) || v.QueueCount() != len(m.model.queues) || v.ExchangeCount() != len(m.model.exchanges) {
		t.Fatalf("%d bindings, %d queues, %d exchanges", total, v.QueueCount(), v.ExchangeCount())
	}
}

func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := New().Edit()
		e.PutVHost("/")
		m := &modelTest{model: newModel(), table: e.Done(), cache: NewCache(8)}
		m.oldTable, m.oldModel = m.table, m.model.clone()
		t.Repeat(map[string]func(*rapid.T){
			"edit":  m.edit,
			"edit2": m.edit,
			"keep":  func(*rapid.T) { m.oldTable, m.oldModel = m.table, m.model.clone() },
			"route": func(t *rapid.T) { m.check(t, m.table, m.model) },
			"route old": func(t *rapid.T) {
				m.check(t, m.oldTable, m.oldModel)
			},
			"": m.checkLists,
		})
	})
}
