package torture

import (
	"context"
	"sync"
)

// gate lets clients in while it is open and tells when all have left. Its zero
// value is closed.
type gate struct {
	mu      sync.Mutex
	open    bool
	inside  int
	changed chan struct{} // closed and replaced at every change; nil until somebody waits
}

// enter waits until the gate is open and goes in. It reports false when ctx has
// ended.
func (g *gate) enter(ctx context.Context) bool {
	return ctx.Err() == nil && g.wait(ctx, func() bool {
		if g.open {
			g.inside++
		}
		return g.open
	})
}

func (g *gate) leave() { g.set(func() { g.inside-- }) }

// setOpen opens or closes the gate. Who is inside stays.
func (g *gate) setOpen(open bool) { g.set(func() { g.open = open }) }

func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// empty waits until nobody is inside and reports false when ctx ended first.
func (g *gate) empty(ctx context.Context) bool {
	return g.wait(ctx, func() bool { return g.inside == 0 })
}

func (g *gate) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// wait calls cond with the lock held, now and after every change, until it
// returns true.
func (g *gate) wait(ctx context.Context, cond func() bool) bool {
	for {
		g.mu.Lock()
		if cond() {
			g.mu.Unlock()
			return true
		}
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
