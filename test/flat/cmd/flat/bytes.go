package main

import (
	"context"
	"fmt"
	"time"

	"github.com/sluicemq/sluice/internal/bench"
)

// counts are bytes that a broker has written so far.
type counts struct{ wal, segments, all int64 }

func (b *broker) counts(ctx context.Context) (c counts, err error) {
	f, err := b.figures(ctx)
	if err != nil {
		return c, err
	}
	c.wal, c.segments = int64(f.WAL.Bytes), int64(f.Store.WrittenBytes)
	c.all, err = b.written()
	return c, err
}

// fanout: one message to many queues.
func fanout(ctx context.Context, e *env) (err error) {
	b, err := e.newBroker(ctx)
	if err != nil {
		return err
	}
	defer b.close(&err)
	name := func(i int) string { return fmt.Sprintf("fan-%d", i) }
	if err := b.declare(ctx, e.Fanout, name); err != nil {
		return err
	}
	c, ch, err := dial(b.url)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // everything was answered
	if err := ch.ExchangeDeclare("fan", "fanout", true, false, false, false, nil); err != nil {
		return err
	}
	for i := range e.Fanout {
		if err := ch.QueueBind(name(i), "", "fan", false, nil); err != nil {
			return err
		}
	}
	before, err := b.counts(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := publish(ctx, ch, "fan", make([]string, e.FanoutSent), make([]byte, 1024)); err != nil {
		return err
	}
	n := float64(e.FanoutSent)
	e.add(fmt.Sprintf("1 KiB published to %d queues, into queues", e.Fanout), n*float64(e.Fanout)/time.Since(began).Seconds(), "/s", nil)
	after, err := b.counts(ctx)
	if err != nil {
		return err
	}
	wal := float64(after.wal-before.wal) / n
	e.add("write-ahead log per message", wal, "B", nil)
	if err := b.roll(ctx); err != nil {
		return err
	}
	flushed, err := b.counts(ctx)
	if err != nil {
		return err
	}
	e.add("in all after flushing, per message", wal+float64(flushed.segments-after.segments)/n, "B", nil)
	e.add("the same per queue that it went to", (wal+float64(flushed.segments-after.segments)/n-1024)/float64(e.Fanout), "B", nil)
	// The generator didn't publish these messages, so it can only count them.
	res, err := b.anyLoad(ctx, bench.Config{Consumers: 2, Queues: e.Fanout, QueueName: "fan", Prefetch: 2000})
	if err != nil {
		return err
	}
	if want := uint64(e.Fanout * e.FanoutSent); res.Totals.Received != want || res.BacklogAfter != 0 {
		return fmt.Errorf("%d deliveries instead of %d, %d are left", res.Totals.Received, want, res.BacklogAfter)
	}
	e.add("deliveries", res.ConsumeRate, "/s", nil)
	return nil
}

// amplify: bytes written for each byte of a body.
func amplify(ctx context.Context, e *env) (err error) {
	const size = 1024
	if err := e.needSpace(e.Amplify*size*5/2 + 2<<30); err != nil {
		return err
	}
	b, err := e.newBroker(ctx)
	if err != nil {
		return err
	}
	defer b.close(&err)
	if err := b.roll(ctx); err != nil { // the files of the write-ahead log are made
		return err
	}
	body := float64(e.Amplify * size)
	measure := func(what string, cfg bench.Config) error {
		before, err := b.counts(ctx)
		if err != nil {
			return err
		}
		cfg.Publishers, cfg.Messages, cfg.SizeBytes, cfg.ConfirmWindow, cfg.Prefetch = 2, e.Amplify, size, 2000, 2000
		if _, err := b.load(ctx, cfg); err != nil {
			return err
		}
		if err := b.settle(ctx); err != nil {
			return err
		}
		after, err := b.counts(ctx)
		if err != nil {
			return err
		}
		e.add(what+": write-ahead log", float64(after.wal-before.wal)/body, "B/B", nil)
		e.add(what+": segments", float64(after.segments-before.segments)/body, "B/B", nil)
		e.add(what+": in all, as the kernel counts", float64(after.all-before.all)/body, "B/B", nil)
		return nil
	}
	if err := measure("consumed at once", bench.Config{Consumers: 2, QueueName: "consumed"}); err != nil {
		return err
	}
	before, err := b.counts(ctx)
	if err != nil {
		return err
	}
	if err := measure("backlog", bench.Config{QueueName: "kept"}); err != nil {
		return err
	}
	if err := b.roll(ctx); err != nil { // whose own messages are consumed before they are flushed
		return err
	}
	after, err := b.counts(ctx)
	if err == nil {
		e.add("backlog: segments when all of it is flushed", float64(after.segments-before.segments)/body, "B/B", nil)
	}
	return err
}
