package sim

import (
	"container/heap"
	"iter"
	"time"
)

// event is something that happens at a time. Those of one time happen in the order in
// which they were made.
type event struct {
	at  time.Duration
	seq uint64
	fn  func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *eventHeap) Push(x any) { *h = append(*h, x.(event)) }

// Pop implements heap.Interface.
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return e
}

// after lets fn happen d from now.
func (w *World) after(d time.Duration, fn func()) {
	w.seq++
	heap.Push(&w.events, event{w.now + max(d, 0), w.seq, fn})
}

// step lets the next event happen; false if there is none before the end.
func (w *World) step(end time.Duration) bool {
	if len(w.events) == 0 || w.events[0].at > end {
		return false
	}
	e := heap.Pop(&w.events).(event)
	w.now = e.at
	w.note(noteEvent, e.seq, uint64(e.at), 0)
	e.fn()
	return true
}

// between draws a duration from [lo, hi).
func (w *World) between(lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)))
}

// chance is true with probability p.
func (w *World) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

// proc is sequential code that waits, as a coroutine.
type proc struct {
	w     *World
	yield func(time.Duration) bool
	next  func() (time.Duration, bool)
	stop  func()
	ended bool
	dying bool // whoever pauses is told to give up
}

// spawn begins a coroutine, at once.
func (w *World) spawn(fn func(p *proc)) *proc {
	p := &proc{w: w}
	p.next, p.stop = iter.Pull(func(yield func(time.Duration) bool) {
		p.yield = yield
		fn(p)
	})
	w.after(0, p.resume)
	return p
}

func (p *proc) resume() {
	if p.ended || p.dying {
		return
	}
	was := p.w.running
	p.w.running = p
	d, more := p.next()
	p.w.running = was
	if !more {
		p.ended = true
		return
	}
	p.w.after(d, p.resume)
}

// sleep lets others go on for d; false: give up. Called by the coroutine.
func (p *proc) sleep(d time.Duration) bool {
	if p.dying {
		return false
	}
	if !p.yield(d) {
		p.dying = true
	}
	return !p.dying
}

// kill ends the coroutine: whatever it waits for fails, and it returns.
func (p *proc) kill() {
	if p.ended || p == p.w.running {
		p.dying = true
		return
	}
	p.dying = true
	was := p.w.running
	p.w.running = p
	p.stop()
	p.w.running = was
	p.ended = true
}
