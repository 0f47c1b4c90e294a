package broker

import (
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/sluicemq/sluice/internal/vfs"
)

// reasons is a client that notes why it is blocked; "" when it isn't any more.
type reasons struct {
	*client
	told chan string
}

func (c *reasons) Blocked(why string) { c.told <- why }
func (c *reasons) Unblocked()         { c.told <- "" }

// TestMemoryLimit: publishers are stopped above four fifths of the limit, and are let in
// only when there is clearly less.
func TestMemoryLimit(t *testing.T) {
	var used atomic.Int64
	looked := make(chan struct{})
	b, err := Open(Config{
		Dir: "data", FS: vfs.NewMem(), Shards: 1, Node: smallNode(), MemoryLimit: 1000,
		MemoryUsed: func() int64 { looked <- struct{}{}; return used.Load() },
	})
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	defer func() { <-closed }()
	defer func() {
		go func() { defer close(closed); _ = b.Close() }()
		for {
			select {
			case <-looked:
			case <-closed:
				return
			}
		}
	}()
	c := &reasons{newClient(t, b, "other"), make(chan string, 8)}
	defer c.client.s.Close()
	s, err := b.Open(Identity{ID: "main", VHost: "/", User: "guest"}, c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	<-looked
	for _, step := range []struct {
		used  int64
		told  bool
		wants string
	}{
		{800, false, ""}, {801, true, reasonMemory}, {750, false, ""}, {700, true, ""}, {790, false, ""}, {900, true, reasonMemory},
	} {
		used.Store(step.used)
		<-looked
		<-looked // what the first look saw has been acted upon
		if step.told {
			await(t, "told", c.told, step.wants)
			continue
		}
		select {
		case why := <-c.told:
			t.Fatalf("told %q with %d used", why, step.used)
		default:
		}
	}
}

// TestMemoryUsed: what is kept is counted, and garbage is not.
func TestMemoryUsed(t *testing.T) {
	used := memoryUsed()
	before := liveAfterGC(used)
	kept := make([]byte, 64<<20)
	for i := 0; i < len(kept); i += 4096 {
		kept[i] = 1
	}
	with := liveAfterGC(used)
	if grown := with - before; grown < 60<<20 || grown > 80<<20 {
		t.Fatalf("%d more for %d", grown, len(kept))
	}
	runtime.KeepAlive(kept)
	if left := liveAfterGC(used) - before; left > 10<<20 {
		t.Fatalf("%d of what is garbage counts", left)
	}
}

func liveAfterGC(used func() int64) int64 {
	runtime.GC()
	return used()
}
