package broker

import (
	"fmt"
	"sync"
	"testing"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

// TestAutoDeleteMeetsConsume: somebody consumes from an auto-delete queue in the moment
// in which its last consumer leaves. Either that works, or the queue is not found.
func TestAutoDeleteMeetsConsume(t *testing.T) {
	b := openOn(t, vfs.NewMem())
	defer func() { _ = b.Close() }()
	a, c := newClient(t, b, "a"), newClient(t, b, "b")
	defer a.s.Close()
	defer c.s.Close()
	worked := 0
	for i := range 300 {
		q := fmt.Sprint("q", i)
		a.declare(t, QueueSpec{Name: q, Type: route.Classic, AutoDelete: true})
		last, err := a.s.Consume(ConsumeSpec{Queue: q}, func(*Consumer) {})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { a.s.Cancel(last) })
		cons, err := c.s.Consume(ConsumeSpec{Queue: q}, func(*Consumer) {})
		wg.Wait()
		switch st, gone := c.s.QueueStatus(q); {
		case err == nil && (gone != nil || st.Consumers != 1):
			t.Fatalf("a consumer of a deleted queue: %+v, %v", st, gone)
		case err == nil:
			worked++
			c.s.Cancel(cons)
		case berr.ReasonOf(err) != berr.NotFound:
			t.Fatal(err)
		}
		if _, err := c.s.QueueStatus(q); berr.ReasonOf(err) != berr.NotFound {
			t.Fatalf("%s is still there: %v", q, err)
		}
	}
	t.Logf("%d of 300 came in time", worked)
}

// TestExclusiveQueuesGoWithTheirSession: those, and no others.
func TestExclusiveQueuesGoWithTheirSession(t *testing.T) {
	b := openOn(t, vfs.NewMem())
	defer func() { _ = b.Close() }()
	a, c := newClient(t, b, "a"), newClient(t, b, "b")
	defer c.s.Close()
	for _, x := range []struct {
		c    *client
		name string
	}{{a, "a1"}, {a, "a2"}, {a, "a3"}, {c, "b1"}} {
		x.c.declare(t, QueueSpec{Name: x.name, Type: route.Classic, Exclusive: true})
	}
	a.declare(t, QueueSpec{Name: "common", Type: route.Classic, Durable: true})
	if _, err := a.s.DeleteQueue("a2", false, false); err != nil {
		t.Fatal(err)
	}
	if len(a.s.own) != 2 {
		t.Fatalf("the session knows %d queues of its own", len(a.s.own))
	}
	a.s.Close()
	for name, there := range map[string]bool{"a1": false, "a2": false, "a3": false, "b1": true, "common": true} {
		if _, err := c.s.QueueStatus(name); (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
	}
}
