package buf

import "testing"

func TestChunkIsRecycledOnceAfterItsLastRelease(t *testing.T) {
	c := Get(100)
	if c.Cap() != classes[0] || c.Len() != 0 {
		t.Fatalf("cap %d len %d", c.Cap(), c.Len())
	}
	c.SetBytes(append(c.Bytes(), "abc"...))
	c.Retain()
	c.Release()
	if string(c.Bytes()) != "abc" {
		t.Fatal("contents lost while a reference was held")
	}
	c.Release()
	d := Get(1)
	if d != c || d.Len() != 0 {
		t.Fatal("released chunk was not recycled empty")
	}
	d.Release()
}

func TestChunkMisuseIsCaught(t *testing.T) {
	mustPanic := func(name string, f func()) {
		defer func() {
			if recover() == nil {
				t.Errorf("%s did not panic", name)
			}
		}()
		f()
	}
	c := Get(2 << 20) // above the largest class: not recycled
	c.Release()
	mustPanic("double release", c.Release)
	d := Get(10)
	mustPanic("foreign memory", func() { d.SetBytes(make([]byte, 3)) })
	d.Release()
	if d.TryRetain() {
		t.Error("TryRetain of a released chunk succeeded")
	}
}
