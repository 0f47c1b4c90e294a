package shard

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// countingTurner complains when two goroutines use it at the same time.
type countingTurner struct {
	t     *testing.T
	mu    sync.Mutex
	turns int
}

func (c *countingTurner) enter() func() {
	if !c.mu.TryLock() {
		c.t.Error("two goroutines have the turn")
		return func() {}
	}
	return c.mu.Unlock
}

func (c *countingTurner) Submit(s Sub) { defer c.enter()(); s.Finish(0, Result{}) }
func (c *countingTurner) Turn() bool   { defer c.enter()(); c.turns++; return c.turns%3 == 0 }
func (c *countingTurner) Stop()        { c.enter()() }

// Functions run once each, and with the turn, whichever goroutine runs them.
func TestPostHere(t *testing.T) {
	turner := &countingTurner{t: t}
	s := NewWith(1, turner)
	s.Start()
	const senders, each = 4, 500
	ran := 0 // guarded by the turn
	var sent, done sync.WaitGroup
	done.Add(senders * each)
	for n := range senders {
		sent.Go(func() {
			for i := range each {
				fn := func() { ran++; done.Done() }
				if (i+n)%2 == 0 {
					s.postHere(fn)
				} else if !s.Post(fn) {
					t.Error("refused")
				}
			}
		})
	}
	sent.Wait()
	done.Wait()
	s.Call(func() {
		if ran != senders*each {
			t.Errorf("%d of %d functions ran", ran, senders*each)
		}
	})
	s.Stop()
	s.postHere(func() { t.Error("ran after the stop") })
	if s.Post(func() { t.Error("ran after the stop") }) {
		t.Error("taken after the stop")
	}
}

// A turn that was done elsewhere leaves nothing undone: what it makes due is served by
// the loop.
func TestPostHereLeavesTheRestToTheLoop(t *testing.T) {
	s := NewWith(1, &countingTurner{t: t, turns: 1})
	s.Start()
	defer s.Stop()
	for range 300 {
		ran := make(chan struct{})
		s.postHere(func() {
			// Posted from within a turn: that turn has taken its input already.
			s.Post(func() { close(ran) })
		})
		<-ran
	}
}

// slowTurner takes its time for what it was given, and for one turn more after that.
type slowTurner struct{ turns, left int }

func (*slowTurner) Submit(Sub) {}
func (s *slowTurner) Stop()    {}
func (s *slowTurner) Turn() bool {
	if s.left > 0 {
		s.turns, s.left = s.turns+1, s.left-1
		time.Sleep(time.Second)
	}
	return s.left > 0
}

// TestTurnsAreCounted: each turn that had something to do, with its duration; waking up
// for nothing is none.
func TestTurnsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turner := &slowTurner{}
		s := NewWith(1, turner)
		s.Start()
		synctest.Wait()
		for range 5 {
			s.kick() // for nothing
			synctest.Wait()
		}
		s.Call(func() { turner.left = 3 })
		time.Sleep(10 * time.Second)
		if h := s.Turns(); h.Count() != 3 || h.Max() != time.Second || h.Quantile(0) != time.Second {
			t.Errorf("%d turns of %v to %v", h.Count(), h.Quantile(0), h.Max())
		}
		s.postHere(func() { time.Sleep(time.Minute) })
		if h := s.Turns(); h.Count() != 4 || h.Max() != time.Minute {
			t.Errorf("%d turns, at most %v: one on another goroutine is missing", h.Count(), h.Max())
		}
		s.Stop()
	})
}
