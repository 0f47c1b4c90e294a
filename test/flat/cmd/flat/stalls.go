package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/bench"
	"github.com/sluicemq/sluice/internal/engine"
)

// stalls: how long the turns of the shards' loops take while the broker does what is
// more than a message at a time.
func stalls(ctx context.Context, e *env) error {
	phases := []struct {
		what string
		run  func(ctx context.Context, e *env, b *broker, begin func() error) error
		work func(f *engine.Figures) float64 // what went on beside, nil: nothing to count
		unit string
	}{
		{
			fmt.Sprintf("load over %s queues, checkpoints", grouped(int64(e.Many))), stallCheckpoints,
			func(f *engine.Figures) float64 { return float64(f.Store.Checkpoints.Count()) }, "checkpoints",
		},
		{fmt.Sprintf("purge of %s messages", grouped(int64(e.Purge))), stallPurge, nil, ""},
		{
			fmt.Sprintf("backlog of %s x 1 KiB, merges", grouped(int64(e.Merge))), stallMerges,
			func(f *engine.Figures) float64 { return float64(f.Store.Merges.Count()) }, "merges",
		},
		{"largest messages", stallLarge, nil, ""},
	}
	for _, p := range phases {
		if err := e.stallPhase(ctx, p.what, p.run, p.work, p.unit); err != nil {
			return fmt.Errorf("%s: %w", p.what, err)
		}
	}
	return nil
}

// stallPhase runs one phase on a broker of its own. What came before begin isn't counted.
func (e *env) stallPhase(ctx context.Context, what string, run func(context.Context, *env, *broker, func() error) error,
	work func(*engine.Figures) float64, unit string,
) (err error) {
	b, err := e.newBroker(ctx)
	if err != nil {
		return err
	}
	defer b.close(&err)
	var before *engine.Figures
	begin := func() (err error) {
		before, err = b.figures(ctx)
		return err
	}
	if err := run(ctx, e, b, begin); err != nil {
		return err
	}
	f, err := b.figures(ctx)
	if err != nil {
		return err
	}
	was, now := turns(before), turns(f)
	d := now.Since(&was)
	if work != nil {
		e.add(what, work(f)-work(before), unit, nil)
	}
	e.add(what+": turns", float64(d.Count()), "", nil)
	e.add(what+": p99.9 of a turn", float64(d.Quantile(0.999))/1e6, "ms", atMost(5))
	e.add(what+": longest turn", float64(d.Max())/1e6, "ms", nil)
	return nil
}

func stallCheckpoints(ctx context.Context, e *env, b *broker, begin func() error) error {
	if err := b.declare(ctx, e.Many, func(i int) string { return fmt.Sprintf("many-%d", i) }); err != nil {
		return err
	}
	if err := begin(); err != nil {
		return err
	}
	_, err := b.load(ctx, bench.Config{
		Publishers: 4, Consumers: 4, Queues: e.Many, QueueName: "many", ConfirmWindow: 1000, Prefetch: 2000, Duration: 3 * e.Duration,
	})
	return err
}

func stallPurge(ctx context.Context, e *env, b *broker, begin func() error) error {
	if _, err := b.fill(ctx, "purged", e.Purge, 100); err != nil {
		return err
	}
	if err := b.settle(ctx); err != nil {
		return err
	}
	if err := begin(); err != nil {
		return err
	}
	_, ch, err := dial(b.url)
	if err != nil {
		return err
	}
	n, err := ch.QueuePurge("purged", false)
	if err != nil {
		return err
	}
	if uint64(n) != e.Purge {
		return fmt.Errorf("%d messages were purged", n)
	}
	return b.settle(ctx) // the segments go
}

func stallMerges(ctx context.Context, e *env, b *broker, begin func() error) error {
	if err := e.needSpace(e.Merge*1024*5/2 + 2<<30); err != nil {
		return err
	}
	if err := begin(); err != nil {
		return err
	}
	// Over many queues: segments with one queue's messages alone are never merged.
	_, err := b.load(ctx, bench.Config{
		Publishers: 2, Queues: 1000, QueueName: "merged", Messages: e.Merge, ConfirmWindow: 2000,
	})
	if err != nil {
		return err
	}
	return b.settle(ctx)
}

// largeMax is the largest message that is tried.
const largeMax = 128 << 20

// stallLarge sends and receives messages of the largest size that the broker takes.
func stallLarge(ctx context.Context, e *env, b *broker, begin func() error) error {
	size := largeMax
	for ; size > 1<<20; size /= 2 {
		err := largeMessage(ctx, b, size)
		if err == nil {
			break
		}
		var closed *amqp091.Error
		if !errors.As(err, &closed) && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	e.add("largest message that was taken", float64(size)/(1<<20), "MiB", nil)
	if err := begin(); err != nil {
		return err
	}
	for range 10 * e.Rounds {
		if err := largeMessage(ctx, b, size); err != nil {
			return err
		}
	}
	return nil
}

// largeMessage publishes one message and gets it back.
func largeMessage(ctx context.Context, b *broker, size int) error {
	c, ch, err := dial(b.url)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // everything was answered
	if _, err := ch.QueueDeclare("large", true, false, false, false, nil); err != nil {
		return err
	}
	refused := ch.NotifyClose(make(chan *amqp091.Error, 1))
	sent := make(chan error, 1)
	go func() { sent <- publish(ctx, ch, "", []string{"large"}, make([]byte, size)) }()
	select {
	case err = <-sent:
	case why := <-refused:
		_ = c.Close() // ends the publishing
		if err = <-sent; why != nil {
			err = why
		}
		return errors.Join(net.ErrClosed, err)
	}
	if err != nil {
		return err
	}
	d, ok, err := ch.Get("large", true)
	if err == nil && (!ok || len(d.Body) != size) {
		err = fmt.Errorf("a message of %d bytes came back instead of %d", len(d.Body), size)
	}
	return err
}
