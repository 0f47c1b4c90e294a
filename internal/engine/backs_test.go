package engine

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
	"github.com/sluicemq/sluice/internal/wal"
)

// TestBacks: what is held is what was put last, within the budget, and every reference
// is given back.
func TestBacks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const budget = 1 << 20
		b := backs{budget: budget}
		type held struct {
			pos wal.Position
			c   *buf.Chunk
		}
		var want []held // oldest first
		bytes := int64(0)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				pos := wal.Position{Seq: 1, Off: uint32(rapid.IntRange(0, 300).Draw(t, "place"))}
				c := buf.Get(rapid.SampledFrom([]int{10, 5_000, 60_000, 120_000, 500_000}).Draw(t, "size"))
				b.put(pos, c)
				size := int64(c.Cap())
				for _, h := range want {
					if h.pos == pos {
						size = budget // not again
					}
				}
				if size <= budget/8 {
					for len(want) == backsMax || bytes+size > budget {
						bytes -= int64(want[0].c.Cap())
						want = want[1:]
					}
					want, bytes = append(want, held{pos, c}), bytes+size
				}
				c.Release() // the caller's
			},
			"get": func(t *rapid.T) {
				pos := wal.Position{Seq: 1, Off: uint32(rapid.IntRange(0, 300).Draw(t, "place"))}
				var c *buf.Chunk
				for _, h := range want {
					if h.pos == pos {
						c = h.c
					}
				}
				got := b.get(pos)
				if got != c {
					t.Fatalf("at %v: %p, want %p", pos, got, c)
				}
				if got != nil {
					got.Release()
				}
			},
			"": func(t *rapid.T) {
				if b.n != len(want) || b.bytes != bytes || bytes > budget {
					t.Fatalf("%d of %d bytes, want %d of %d", b.n, b.bytes, len(want), bytes)
				}
			},
		})
		for b.n > 0 {
			b.drop()
		}
		if b.bytes != 0 || b.list != (backs{}).list {
			t.Fatal("something is left")
		}
	})
}

// TestReadBackOnce: what one reader read back from the write-ahead log serves the others.
func TestReadBackOnce(t *testing.T) {
	n, err := Open(NodeConfig{
		FS: vfs.NewMem(), Dir: "data", Shards: 1, Meta: noMeta{}, MetaLoaded: func() error { return nil },
		WALFileBytes: 4 << 20, WALFiles: 2, TailCache: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	s := n.Queues()[0]
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil) }); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err := s.Do(func(b *msg.Builder) { appendTo(b, 1, 1, 20_000) }); err != nil {
			t.Fatal(err)
		}
	}
	sub := s.m.places.lanes[lane{1, 0}].notes[0].sub
	if c, _, ok := s.m.tail.get(sub); c != nil || !ok {
		t.Fatal("the first message is still in memory, or nowhere")
	}
	var readers [2]Reader
	var got [2]*buf.Chunk
	for i := range readers {
		if got[i], err = readers[i].submission(s.m, sub); err != nil || got[i] == nil {
			t.Fatal(got[i], err)
		}
	}
	if got[0] != got[1] {
		t.Error("it was read twice")
	}
	for i := range readers {
		got[i].Release()
		readers[i].Close()
	}
}

// TestBacksAllocateNothing: in the steady state.
func TestBacksAllocateNothing(t *testing.T) {
	b := backs{budget: 1 << 20}
	c := buf.Get(20_000)
	defer c.Release()
	at := uint32(0)
	if n := testing.AllocsPerRun(1000, func() {
		at++
		b.put(wal.Position{Seq: 1, Off: at}, c)
		b.get(wal.Position{Seq: 1, Off: at}).Release()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
