package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/bench"
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/hist"
)

// load runs the load generator. Queues and messages are kept: the broker is ours.
func (b *broker) load(ctx context.Context, cfg bench.Config) (*bench.Result, error) {
	res, err := b.anyLoad(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if n := res.Verify.Violations(); n > 0 {
		return nil, fmt.Errorf("%d violations: %+v", n, res.Verify)
	}
	if res.Totals.Refused > 0 {
		return nil, fmt.Errorf("%d messages were refused", res.Totals.Refused)
	}
	return res, nil
}

// anyLoad is load for messages that the generator didn't publish.
func (b *broker) anyLoad(ctx context.Context, cfg bench.Config) (*bench.Result, error) {
	cfg.URL, cfg.Keep = b.url, true
	if cfg.Warmup == 0 && cfg.Duration > 0 {
		cfg.Warmup = cfg.Duration / 4
	}
	res, err := bench.Run(ctx, cfg)
	if err == nil && res.Interrupted {
		err = context.Cause(ctx)
	}
	return res, err
}

// fill publishes n messages of size bytes that stay, and returns how many a second
// were confirmed.
func (b *broker) fill(ctx context.Context, queue string, n uint64, size int) (float64, error) {
	res, err := b.load(ctx, bench.Config{Publishers: 2, QueueName: queue, Messages: n, SizeBytes: size, ConfirmWindow: 2000})
	if err != nil {
		return 0, err
	}
	return res.PublishRate, nil
}

// drain consumes at least n messages, a few more if there are.
func (b *broker) drain(ctx context.Context, queue string, n uint64, size int) (*bench.Result, error) {
	return b.load(ctx, bench.Config{
		Consumers: 2, QueueName: queue, Messages: n, SizeBytes: size, Prefetch: 2000, NoDrain: true,
	})
}

// roll sends so many messages of 1 KiB through a queue that everything published before
// them is flushed to segments: the write-ahead log keeps 8 full files of 64 MiB.
func (b *broker) roll(ctx context.Context) error {
	const messages = 12 * 64 << 10
	_, err := b.load(ctx, bench.Config{
		Publishers: 2, Consumers: 2, QueueName: "roll", Messages: messages, ConfirmWindow: 2000, Prefetch: 2000,
	})
	if err != nil {
		return err
	}
	return b.settle(ctx)
}

// settle waits until the broker's work in the background has come to rest.
func (b *broker) settle(ctx context.Context) error {
	last, same := engine.StoreFigures{}, 0
	for same < 3 {
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		f, err := b.figures(ctx)
		if err != nil {
			return err
		}
		if same++; f.Store != last {
			last, same = f.Store, 0
		}
	}
	return nil
}

// turns returns how long the turns of all shards took.
func turns(f *engine.Figures) (all hist.Snapshot) {
	for i := range f.Shards {
		all.Add(&f.Shards[i].Turns)
	}
	return all
}

// inParallel calls fn for the numbers below n from several goroutines, each of which has
// a channel of its own. It stops at the first error.
func (b *broker) inParallel(ctx context.Context, workers, n int, fn func(ch *amqp091.Channel, from, step int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range min(workers, n) {
		wg.Go(func() {
			c, ch, err := dial(b.url)
			if err != nil {
				cancel(err)
				return
			}
			unhook := context.AfterFunc(ctx, func() { _ = c.Close() }) // ends fn early
			defer unhook()
			if err := fn(ch, i, workers); err != nil {
				cancel(err)
				return
			}
			_ = c.Close() // everything was answered
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// declare makes n durable queues, named by name.
func (b *broker) declare(ctx context.Context, n int, name func(i int) string) error {
	return b.inParallel(ctx, 32, n, func(ch *amqp091.Channel, from, step int) error {
		for i := from; i < n; i += step {
			if _, err := ch.QueueDeclare(name(i), true, false, false, false, nil); err != nil {
				return fmt.Errorf("declare queue %d: %w", i, err)
			}
		}
		return nil
	})
}

// confirmEvery is how many messages publish sends before it waits for their confirms.
const confirmEvery = 500

// publish sends body to exchange with the keys, persistent and confirmed.
func publish(ctx context.Context, ch *amqp091.Channel, exchange string, keys []string, body []byte) error {
	if err := ch.Confirm(false); err != nil {
		return err
	}
	var open []*amqp091.DeferredConfirmation
	for i, key := range keys {
		d, err := ch.PublishWithDeferredConfirmWithContext(ctx, exchange, key, false, false, amqp091.Publishing{DeliveryMode: amqp091.Persistent, Body: body})
		if err != nil {
			return err
		}
		if open = append(open, d); len(open) < confirmEvery && i < len(keys)-1 {
			continue
		}
		for _, d := range open {
			ok, err := d.WaitContext(ctx)
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("a message to %q was refused", key)
			}
		}
		open = open[:0]
	}
	return nil
}
