package broker

import "sync/atomic"

// Pool is credit that several consumers share, possibly in several shards: a channel's
// global prefetch in messages, a connection's outbox in bytes. Safe for concurrent use.
type Pool struct {
	free    atomic.Int64
	starved atomic.Bool
}

// NewPool returns a pool with n to give.
func NewPool(n int64) *Pool {
	p := &Pool{}
	p.free.Store(n)
	return p
}

// Take grants up to n of what is free, 0 when nothing is. After a 0 the next Give
// reports that consumers wait.
func (p *Pool) Take(n int64) int64 {
	for {
		f := p.free.Load()
		if f <= 0 {
			// Say that somebody waits before looking again: a Give in between then
			// either is seen here or sees the flag.
			p.starved.Store(true)
			if p.free.Load() <= 0 {
				return 0
			}
			continue
		}
		g := min(f, n)
		if p.free.CompareAndSwap(f, f-g) {
			return g
		}
	}
}

// Give puts n back. A negative n is a debt, as after a change of the limit.
func (p *Pool) Give(n int64) { p.free.Add(n) }

// Hungry reports, once, that a Take found nothing and there is something now: the
// session then kicks its consumers.
func (p *Pool) Hungry() bool {
	return p.free.Load() > 0 && p.starved.CompareAndSwap(true, false)
}

// Free returns what is left; negative when overdrawn.
func (p *Pool) Free() int64 { return p.free.Load() }
