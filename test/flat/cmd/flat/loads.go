package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/sluicemq/sluice/internal/bench"
)

// tiny: small messages that nobody confirms and nothing keeps.
func tiny(ctx context.Context, e *env) (err error) {
	b, err := e.newBroker(ctx)
	if err != nil {
		return err
	}
	defer b.close(&err)
	var rates []float64
	for i := range e.Rounds {
		res, err := b.load(ctx, bench.Config{
			Publishers: 1, Consumers: 1, QueueName: fmt.Sprintf("tiny-%d", i), SizeBytes: 64, Transient: true, NonDurable: true,
			ConfirmWindow: -1, AutoAck: true, Duration: e.Duration,
		})
		if err != nil {
			return err
		}
		rates = append(rates, res.ConsumeRate)
	}
	e.addMedian("64 B transient, auto-ack, no confirms, non-durable queue", rates, "/s", atLeast(960_000))
	return e.addRSS(b, "memory afterwards", nil)
}

// paced is a load whose latency is compared: what a publisher with a consumer sees.
func (e *env) paced() bench.Config {
	return bench.Config{Publishers: 1, Consumers: 1, QueueName: "other", Rate: 2000, Duration: e.Duration}
}

// compareP99 notes the confirms' p99 of the load with and without what else happened.
func (e *env) compareP99(without, with []float64, how string) {
	a := e.addMedian("a publisher's p99 at 2,000/s", without, "ms", nil)
	b := e.addMedian("the same "+how, with, "ms", nil)
	e.add("compared", b/a, "times", atMost(1.2))
}

// catchup: a backlog from the disk is consumed while another queue carries a load.
func catchup(ctx context.Context, e *env) (err error) {
	if err := e.needSpace(e.Catchup*1024*5/2 + 2<<30); err != nil {
		return err
	}
	b, err := e.newBroker(ctx)
	if err != nil {
		return err
	}
	defer b.close(&err)
	if _, err := b.fill(ctx, "cold", e.Catchup, 1024); err != nil {
		return err
	}
	if err := b.settle(ctx); err != nil {
		return err
	}
	if _, err := b.restart(ctx); err != nil {
		return err
	}
	var without, with, rates []float64
	for range e.Rounds {
		res, err := b.load(ctx, e.paced())
		if err != nil {
			return err
		}
		without = append(without, res.Confirm.P99/1e3)
		if err := b.dropCaches(); err != nil {
			return err
		}
		p99, rate, err := e.catchUp(ctx, b)
		if err != nil {
			return err
		}
		with, rates = append(with, p99/1e3), append(rates, rate)
	}
	e.addMedian("1 KiB consumed from a cold backlog", rates, "/s", atLeast(100_000))
	e.compareP99(without, with, "during that")
	return e.addRSS(b, "memory afterwards", nil)
}

// catchUp consumes a round's share of the backlog and returns the other load's p99 in
// microseconds.
func (e *env) catchUp(ctx context.Context, b *broker) (p99, rate float64, err error) {
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() {
		var res *bench.Result
		// Not all: what the other rounds took in excess is missing in the last one.
		if res, failed = b.drain(ctx, "cold", e.Catchup*9/10/uint64(e.Rounds), 1024); failed == nil {
			rate = res.ConsumeRate
		}
	})
	res, err := b.load(ctx, e.paced())
	wg.Wait()
	if err := errors.Join(err, failed); err != nil {
		return 0, 0, err
	}
	return res.Confirm.P99, rate, nil
}

// slow: a consumer that never reads its socket, on another queue.
func slow(ctx context.Context, e *env) (err error) {
	b, err := e.newBroker(ctx)
	if err != nil {
		return err
	}
	defer b.close(&err)
	if _, err := b.fill(ctx, "stuck", e.Slow, 1024); err != nil {
		return err
	}
	var without, with []float64
	for range e.Rounds {
		res, err := b.load(ctx, e.paced())
		if err != nil {
			return err
		}
		without = append(without, res.Confirm.P99/1e3)
		if res, err = e.besideSlow(ctx, b); err != nil {
			return err
		}
		with = append(with, res.Confirm.P99/1e3)
	}
	e.compareP99(without, with, "with a consumer that doesn't read")
	return e.addRSS(b, "memory afterwards", nil)
}

// besideSlow runs the paced load while a consumer on another queue takes nothing.
func (e *env) besideSlow(ctx context.Context, b *broker) (*bench.Result, error) {
	c, err := openIdle(ctx, b.addr)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // it is cut off
	// basic.consume without a limit or acknowledgements: the broker may send all it has.
	if _, err := c.Write(methodFrame(1, 60<<16|20, "\x00\x00\x05stuck\x00\x02\x00\x00\x00\x00")); err != nil {
		return nil, err
	}
	return b.load(ctx, e.paced())
}
