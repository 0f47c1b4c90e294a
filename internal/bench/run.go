package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// settle is how long a drain goes on after the last expected message when
	// there were redeliveries, to catch duplicates that are still on their way.
	settle = 200 * time.Millisecond
	// emptyCheck is how long nothing must have arrived before a consume-only
	// run asks the broker whether the queues are empty.
	emptyCheck = 300 * time.Millisecond
	tick       = 5 * time.Millisecond
)

// run is one run. Its fields don't change while loops run, but for the atomics.
type run struct {
	cfg   *Config
	id    uint32
	names []string // of the queues
	fill  filler

	// Times are nanoseconds since base.
	base        time.Time
	baseUnix    int64
	start       int64
	measureFrom int64
	measureTo   int64 // MaxInt64 when the run ends by a number of messages

	publishers []*publisher
	consumers  []*consumer

	stop          atomic.Bool // everybody ends at once
	stopConsumers atomic.Bool // consumers ack and end
	interrupted   bool

	mu struct {
		sync.Mutex
		err error // the first failure
	}
}

func (r *run) now() int64 { return int64(time.Since(r.base)) }

// measured reports whether t lies in the measured part of the run.
func (r *run) measured(t int64) bool { return t >= r.measureFrom && t < r.measureTo }

// fail keeps the first error and ends the run.
func (r *run) fail(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.err == nil && !r.stop.Load() {
		r.mu.err = err
	}
	r.stop.Store(true)
}

// Run runs one load test and returns what it measured. When ctx ends early, it
// returns what was measured until then, marked as interrupted. Violations of
// the broker's promises are in the result and are no error.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &run{
		cfg:   &cfg,
		id:    rand.Uint32() | 1,
		names: cfg.queueNames(),
		fill:  newFiller(cfg.SizeBytes),
	}
	admin, err := dial(ctx, cfg.URL, "sluice bench: set-up")
	if err != nil {
		return nil, err
	}
	defer admin.close()
	backlog, err := r.declare(admin)
	if err != nil {
		return nil, err
	}
	defer r.closeAll()
	if err := r.connect(ctx); err != nil {
		return nil, err
	}
	drained := r.drive(ctx, admin, backlog)
	if r.mu.err != nil {
		return nil, r.mu.err
	}
	res := r.result(admin.server, drained)
	if res.BacklogAfter, err = r.cleanUp(admin); err != nil {
		return nil, err
	}
	return res, nil
}

// declare makes sure that the queues exist and returns how many messages they
// hold. Only a run that publishes creates and, without Keep, empties them.
func (r *run) declare(admin *conn) (backlog uint64, err error) {
	passive := r.cfg.Publishers == 0
	for _, name := range r.names {
		n, err := r.declareOne(admin, name, passive)
		if err != nil {
			return 0, fmt.Errorf("declare queue %s: %w", name, err)
		}
		if n > 0 && !passive && !r.cfg.Keep {
			_, err := admin.call(queuePurge, queuePurgeOk, func(e *encoder) {
				e.u16(0)
				e.shortstr(name)
				e.u8(0)
			})
			if err != nil {
				return 0, fmt.Errorf("purge queue %s: %w", name, err)
			}
			n = 0
		}
		backlog += n
	}
	return backlog, nil
}

// declareOne returns the number of messages that are ready.
func (r *run) declareOne(admin *conn, name string, passive bool) (uint64, error) {
	d, err := admin.call(queueDeclare, queueDeclareOk, func(e *encoder) {
		e.u16(0)
		e.shortstr(name)
		e.u8(bit(passive, 0) | bit(!r.cfg.NonDurable, 1))
		if r.cfg.QueueType == "" {
			e.table()
		} else {
			e.table(field{"x-queue-type", r.cfg.QueueType})
		}
	})
	if err != nil {
		return 0, err
	}
	d.shortstr()
	return uint64(d.u32()), nil
}

// ready returns the number of messages that wait in all queues.
func (r *run) ready(admin *conn) (n uint64, err error) {
	for _, name := range r.names {
		one, err := r.declareOne(admin, name, true)
		if err != nil {
			return 0, fmt.Errorf("ask for queue %s: %w", name, err)
		}
		n += one
	}
	return n, nil
}

// cleanUp deletes the queues that the run made, and returns what they held.
func (r *run) cleanUp(admin *conn) (backlog uint64, err error) {
	if backlog, err = r.ready(admin); err != nil || r.cfg.Keep || r.cfg.Publishers == 0 {
		return backlog, err
	}
	for _, name := range r.names {
		_, err := admin.call(queueDelete, queueDeleteOk, func(e *encoder) {
			e.u16(0)
			e.shortstr(name)
			e.u8(0)
		})
		if err != nil {
			return backlog, fmt.Errorf("delete queue %s: %w", name, err)
		}
	}
	return backlog, admin.shutdown()
}

// connect opens every connection and readies it.
func (r *run) connect(ctx context.Context) error {
	r.base = time.Now()
	r.baseUnix = r.base.UnixNano()
	for i := range r.cfg.Publishers {
		c, err := dial(ctx, r.cfg.URL, fmt.Sprintf("sluice bench: publisher %d", i))
		if err != nil {
			return fmt.Errorf("publisher %d: %w", i, err)
		}
		p := newPublisher(r, c, i)
		r.publishers = append(r.publishers, p)
		if err := p.setUp(); err != nil {
			return fmt.Errorf("publisher %d: %w", i, err)
		}
	}
	for i := range r.cfg.Consumers {
		c, err := dial(ctx, r.cfg.URL, fmt.Sprintf("sluice bench: consumer %d", i))
		if err != nil {
			return fmt.Errorf("consumer %d: %w", i, err)
		}
		r.consumers = append(r.consumers, newConsumer(r, c, i))
	}
	// Subscribed last, when all is ready: from here messages flow.
	r.start = r.now()
	r.measureFrom = r.start + int64(max(r.cfg.Warmup, 0))
	r.measureTo = math.MaxInt64
	if r.cfg.Duration > 0 {
		r.measureTo = r.measureFrom + int64(r.cfg.Duration)
	}
	for i, k := range r.consumers {
		if err := k.setUp(); err != nil {
			return fmt.Errorf("consumer %d: %w", i, err)
		}
	}
	return nil
}

// closeAll closes the sockets of loops that failed or never ran.
func (r *run) closeAll() {
	for _, p := range r.publishers {
		p.c.close()
	}
	for _, k := range r.consumers {
		k.c.close()
	}
}

// drive starts the loops and ends them again. It reports whether all that was
// to be received could be.
func (r *run) drive(ctx context.Context, admin *conn, backlog uint64) (drained bool) {
	unhook := context.AfterFunc(ctx, func() {
		r.stop.Store(true)
	})
	defer unhook()
	defer func() { r.interrupted = ctx.Err() != nil }()

	var publishing, consuming sync.WaitGroup
	for _, k := range r.consumers {
		consuming.Go(func() { r.fail(wrapLoop("consumer", k.index, k.loop())) })
	}
	for _, p := range r.publishers {
		publishing.Go(func() {
			r.fail(wrapLoop("publisher", p.index, p.loop()))
			r.fail(p.check())
		})
	}
	stopProgress := r.progress()
	defer stopProgress()

	if len(r.publishers) > 0 {
		publishing.Wait()
		drained = r.drain()
	} else {
		drained = r.consumeOnly(admin, backlog)
	}
	r.stopConsumers.Store(true)
	consuming.Wait()
	return drained && ctx.Err() == nil
}

func wrapLoop(kind string, index int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %d: %w", kind, index, err)
}

// received returns how many distinct messages all consumers have.
func (r *run) received() (fresh, all uint64) {
	for _, k := range r.consumers {
		fresh += k.freshNow.Load()
		all += k.receivedNow.Load()
	}
	return fresh, all
}

// drain waits until consumers have what was published. Publishers have ended.
func (r *run) drain() bool {
	if r.cfg.NoDrain || len(r.consumers) == 0 {
		return false
	}
	var expected, returned uint64
	for _, p := range r.publishers {
		if r.cfg.confirms() {
			expected += p.confirmed()
		} else {
			expected += p.tag
		}
		returned += p.returned
	}
	expected -= min(expected, returned)
	last, lastAt := uint64(0), r.now()
	for !r.stop.Load() {
		fresh, all := r.received()
		now := r.now()
		if all != last {
			last, lastAt = all, now
		}
		if fresh >= expected && (fresh == all || now-lastAt > int64(settle)) {
			return true
		}
		if now-lastAt > int64(r.cfg.DrainTimeout) {
			return true // what is missing now is lost
		}
		time.Sleep(tick)
	}
	return false
}

// consumeOnly waits until the run has consumed what it was asked to.
func (r *run) consumeOnly(admin *conn, backlog uint64) (drained bool) {
	last, lastAt := uint64(0), r.now()
	for !r.stop.Load() {
		_, all := r.received()
		now := r.now()
		if all != last {
			last, lastAt = all, now
		}
		switch {
		case now >= r.measureTo:
			return false
		case r.cfg.Messages > 0 && all >= r.cfg.Messages:
			return false
		case !r.cfg.NoDrain && (all >= backlog || now-lastAt > int64(emptyCheck)):
			n, err := r.ready(admin)
			if err != nil {
				r.fail(err)
				return false
			}
			// Nothing is ready, and what was on its way has had time to arrive.
			if n == 0 && now-lastAt > int64(emptyCheck) {
				return true
			}
			if all < backlog {
				if now-lastAt > int64(r.cfg.DrainTimeout) {
					r.fail(fmt.Errorf("%d messages are ready, but none arrived for %v", n, r.cfg.DrainTimeout))
					return false
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(tick)
	}
	return false
}

// progress prints a line per interval until the returned function is called.
func (r *run) progress() (stop func()) {
	if r.cfg.Progress == nil {
		return func() {}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(r.cfg.Interval)
		defer t.Stop()
		var sent0, confirmed0, received0 uint64
		at0 := r.now()
		for {
			select {
			case <-done:
				return
			case <-t.C:
			}
			var sent, confirmed uint64
			for _, p := range r.publishers {
				sent += p.sentNow.Load()
				confirmed += p.confirmedNow.Load()
			}
			_, received := r.received()
			now := r.now()
			secs := float64(now-at0) / 1e9
			_, err := fmt.Fprintf(r.cfg.Progress, "%6.1fs  sent %8.0f/s  confirmed %8.0f/s  consumed %8.0f/s%s\n",
				float64(now-r.start)/1e9, float64(sent-sent0)/secs, float64(confirmed-confirmed0)/secs,
				float64(received-received0)/secs, r.phase(now))
			if errors.Is(err, os.ErrClosed) {
				return
			}
			sent0, confirmed0, received0, at0 = sent, confirmed, received, now
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

func (r *run) phase(now int64) string {
	switch {
	case now < r.measureFrom:
		return "  (warm-up)"
	case now >= r.measureTo:
		return "  (draining)"
	}
	return ""
}
