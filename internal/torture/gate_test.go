package torture

import (
	"context"
	"testing"
	"testing/synctest"
)

// TestGate walks a client and a controller through a kill.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		ctx, cancel := context.WithCancel(t.Context())
		entered, left, emptied := false, false, false
		go func() {
			entered = g.enter(ctx)
		}()
		synctest.Wait()
		if entered {
			t.Fatal("entered a closed gate")
		}
		g.setOpen(true)
		synctest.Wait()
		if !entered || !g.isOpen() {
			t.Fatal("didn't enter an open gate")
		}
		g.setOpen(false)
		go func() { emptied = g.empty(ctx) }()
		synctest.Wait()
		if emptied {
			t.Fatal("empty with a client inside")
		}
		g.leave()
		synctest.Wait()
		if !emptied {
			t.Fatal("not empty though the client left")
		}
		go func() { left = !g.enter(ctx) }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if !left {
			t.Fatal("waits for a gate though the context has ended")
		}
		g.setOpen(true)
		if g.enter(ctx) {
			t.Fatal("enters though the context has ended")
		}
	})
}
