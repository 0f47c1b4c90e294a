package route

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// Readers hold whatever version they have while the writer makes new ones: the
// race detector sees any node that an Editor changes after it was published.
func TestReadersDontMeetTheWriter(t *testing.T) {
	e := New().Edit()
	e.PutVHost("/")
	var current atomic.Pointer[Table]
	current.Store(e.Done())
	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			cache, key := NewCache(16), []byte("a.b.c")
			for !stop.Load() {
				v := current.Load().VHost("/")
				for x := range v.Exchanges() {
					for _, q := range cache.Route(v, x, key, nil) {
						if q.VHost != "/" {
							t.Errorf("%+v", q)
						}
					}
				}
			}
		})
	}
	for i := range 1000 {
		e := current.Load().Edit()
		for j := range 3 {
			name := fmt.Sprintf("q%d", (i+j*7)%100)
			if i/100%2 == 0 {
				e.PutQueue(&Queue{VHost: "/", Name: name, ID: uint64(i)})
			}
			for _, x := range []string{"amq.direct", "amq.topic", "amq.fanout", "amq.match"} {
				b := &Binding{VHost: "/", Source: x, Destination: name, Key: "a.b.c"}
				if i/100%2 == 0 {
					e.Bind(b)
				} else {
					e.Unbind(b)
				}
			}
			if i/100%2 == 1 {
				e.DeleteQueue("/", name)
			}
		}
		current.Store(e.Done())
	}
	stop.Store(true)
	readers.Wait()
}
