package broker

import (
	"runtime"
	"runtime/metrics"
	"time"
)

const (
	reasonMemory = "low on memory"
	memoryEvery  = 250 * time.Millisecond
	collectEvery = 8 // looks
)

// watchMemory stops publishers while the process uses more than four fifths of its limit,
// and lets them in again below seven tenths. The fifth that is left is for what is on its
// way, for consumers and for the garbage collector, which works harder as the limit
// comes nearer.
func (b *Broker) watchMemory(limit int64, used func() int64) {
	low, looks := false, 0
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	for {
		mark := limit / 5 * 4
		if low {
			mark = limit / 10 * 7
		}
		if n := used(); n > mark != low {
			low = !low
			b.cfg.Log.Warn("memory", "low", low, "used", n, "limit", limit)
			b.setBlocked(reasonMemory, low)
		}
		// With publishers stopped little is allocated, and nothing would find out what
		// consumers have made free.
		if looks++; low && looks%collectEvery == 0 {
			runtime.GC()
		}
		select {
		case <-tick.C:
		case <-b.stop:
			return
		}
	}
}

// memoryUsed returns the bytes that the process needs: what the last garbage collection
// found alive and what isn't collected. Garbage doesn't count: it would stop publishers
// that are not to blame. All that grows with clients is in it: submissions, caches,
// non-durable queues, buffers of connections, queues and consumers themselves.
func memoryUsed() func() int64 {
	s := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/memory/classes/metadata/other:bytes"},
		{Name: "/memory/classes/os-stacks:bytes"},
	}
	return func() (n int64) {
		metrics.Read(s)
		for i := range s {
			if s[i].Value.Kind() == metrics.KindUint64 {
				n += int64(s[i].Value.Uint64())
			}
		}
		return n
	}
}
