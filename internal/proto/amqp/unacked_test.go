package amqp

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// unackedModel is unacked beside a map.
type unackedModel struct {
	u    unacked
	next uint64
	tags map[uint64]delivered
	held map[uint64]bool
}

func (m *unackedModel) sorted(upto uint64) (tags []uint64) {
	for tag := range m.tags {
		if tag <= upto && !m.held[tag] {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

func TestUnackedAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &unackedModel{tags: map[uint64]delivered{}, held: map[uint64]bool{}, next: 1}
		t.Repeat(map[string]func(*rapid.T){
			"add": m.add, "take": m.take, "takeUpTo": m.takeUpTo, "hold": m.hold,
			"unhold": func(*rapid.T) {
				m.u.unhold()
				clear(m.held)
			},
			"": m.check,
		})
	})
}

// tag draws one, mostly one that is pending.
func (m *unackedModel) tag(t *rapid.T) uint64 {
	if tags := m.sorted(math.MaxUint64); len(tags) > 0 && rapid.IntRange(0, 9).Draw(t, "known") > 0 {
		return rapid.SampledFrom(tags).Draw(t, "tag")
	}
	return rapid.Uint64Range(0, m.next+2000).Draw(t, "any tag")
}

func (m *unackedModel) add(t *rapid.T) {
	m.next += rapid.SampledFrom([]uint64{0, 0, 0, 1, 5, 1024, 5000}).Draw(t, "gap")
	n := rapid.SampledFrom([]int{1, 1, 2, 3, 64, 1500}).Draw(t, "n")
	slot := rapid.Uint32Range(0, 2).Draw(t, "slot")
	lane := rapid.Uint8Range(0, 1).Draw(t, "lane")
	off := rapid.SampledFrom([]uint64{0, m.next, m.next + 1, runOffsetMax - 5000}).Draw(t, "offset")
	m.u.add(m.next, slot, lane, off, n)
	for i := range uint64(n) {
		m.tags[m.next+i] = delivered{slot, lane, off + i, 1}
	}
	m.next += uint64(n)
}

func (m *unackedModel) take(t *rapid.T) {
	x := m.tag(t)
	want, there := m.tags[x]
	got, ok := m.u.take(x)
	if ok != there || ok && got != want {
		t.Fatalf("take(%d) = %v, %v, want %v, %v", x, got, ok, want, there)
	}
	delete(m.tags, x)
	delete(m.held, x)
}

func (m *unackedModel) takeUpTo(t *rapid.T) {
	x := m.tag(t)
	var got, want []delivered
	m.u.takeUpTo(x, func(d delivered) {
		for i := range d.count {
			got = append(got, delivered{d.slot, d.lane, d.first + i, 1})
		}
	})
	for _, y := range m.sorted(x) {
		want = append(want, m.tags[y])
		delete(m.tags, y)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("takeUpTo(%d) = %v, want %v", x, got, want)
	}
}

func (m *unackedModel) hold(t *rapid.T) {
	if x := m.tag(t); m.u.has(x) {
		m.u.hold(x)
		m.held[x] = true
	}
}

func (m *unackedModel) check(t *rapid.T) {
	if m.u.count != len(m.tags) {
		t.Fatalf("count %d, want %d", m.u.count, len(m.tags))
	}
	for range 3 {
		x := m.tag(t)
		if _, there := m.tags[x]; m.u.has(x) != (there && !m.held[x]) {
			t.Fatalf("has(%d) = %v", x, m.u.has(x))
		}
	}
	var all []uint64
	m.u.eachUpTo(m.next, func(tag uint64) { all = append(all, tag) })
	if !slices.Equal(all, m.sorted(m.next)) {
		t.Fatalf("eachUpTo: %v, want %v", all, m.sorted(m.next))
	}
}

// A million deliveries that alternate between consumers are the worst case.
func TestUnackedMemory(t *testing.T) {
	const n = 1_000_000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	worst := &unacked{}
	for i := range uint64(n) {
		worst.add(i+1, uint32(i&1), 0, i, 1)
	}
	if used := heap() - before; used > 14<<20 {
		t.Errorf("%d bytes for a million alternating deliveries", used)
	}
	runtime.KeepAlive(worst)
	before = heap()
	usual := &unacked{}
	for i := range uint64(n / 10) {
		usual.add(i*10+1, 0, 0, i*10, 10)
	}
	if used := heap() - before; used > 512<<10 {
		t.Errorf("%d bytes for a million deliveries in order", used)
	}
	for tag := uint64(n); tag > 0; tag-- {
		if _, ok := usual.take(tag); !ok {
			t.Fatalf("tag %d is lost", tag)
		}
	}
	if usual.count != 0 {
		t.Fatalf("%d left", usual.count)
	}
}

func TestConfirmsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c confirms
		next := uint64(1)
		pending := map[uint64]bool{} // told to nobody, and whether it was complete
		nacks := map[uint64]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "n") {
					pending[next] = false
					next++
				}
			},
			"complete": func(t *rapid.T) {
				if next == 1 {
					t.Skip()
				}
				for range rapid.IntRange(1, 5).Draw(t, "runs") {
					first := rapid.Uint64Range(1, next-1).Draw(t, "first")
					nack := rapid.IntRange(0, 5).Draw(t, "nack") == 0
					n := uint64(0)
					for limit := rapid.Uint64Range(1, 10).Draw(t, "count"); n < limit; n++ {
						done, there := pending[first+n]
						if !there || done {
							break
						}
						pending[first+n] = true
						nacks[first+n] = nack
					}
					if n > 0 {
						c.add(first, n, nack)
					}
				}
				emitAndCheck(t, &c, pending, nacks)
			},
		})
	})
}

// emitAndCheck plays a client: each confirmation must be about tags that are complete
// and not told yet, and afterwards none such is left.
func emitAndCheck(t *rapid.T, c *confirms, pending, nacks map[uint64]bool) {
	c.emit(func(tag uint64, multiple, nack bool) {
		first := tag
		if multiple {
			first = 1
		}
		told := false
		for x := first; x <= tag; x++ {
			done, there := pending[x]
			if !there {
				continue
			}
			if !done || nacks[x] != nack {
				t.Fatalf("tag %d multiple=%v nack=%v speaks of %d, complete %v", tag, multiple, nack, x, done)
			}
			delete(pending, x)
			told = true
		}
		if !told {
			t.Fatalf("tag %d multiple=%v says nothing new", tag, multiple)
		}
	})
	for x, done := range pending {
		if done {
			t.Fatalf("nobody was told of %d", x)
		}
	}
}

// All up to the first pending tag are confirmed by one frame.
func TestConfirmsCoalesce(t *testing.T) {
	var c confirms
	var got []string
	tell := func(tag uint64, multiple, nack bool) { got = append(got, fmt.Sprint(tag, multiple, nack)) }
	c.add(501, 2, false)
	c.emit(tell)
	c.add(1, 100, false)
	c.add(101, 1, true)
	c.add(102, 399, false)
	c.emit(tell)
	c.add(503, 1, false)
	c.emit(tell)
	wantList(t, got, "501 false false", "502 false false", "100 true false", "101 false true", "500 true false", "503 false false")
	if len(c.early) != 0 || c.low != 504 {
		t.Fatalf("%+v", c)
	}
}
