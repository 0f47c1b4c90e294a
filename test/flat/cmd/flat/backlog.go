package main

import (
	"context"
	"fmt"
)

// backlog: what messages cost that wait in one queue.
func backlog(ctx context.Context, e *env) (err error) {
	const size = 100
	if err := e.needSpace(e.Backlog*size*5/2 + 2<<30); err != nil {
		return err
	}
	b, err := e.newBroker(ctx)
	if err != nil {
		return err
	}
	defer b.close(&err)
	if err := e.addRSS(b, "memory without messages", nil); err != nil {
		return err
	}
	rate, err := b.fill(ctx, "backlog", e.Backlog, size)
	if err != nil {
		return err
	}
	n := grouped(int64(e.Backlog))
	e.add(n+" messages of 100 B published", rate, "/s", nil)
	if err := e.addRSS(b, "memory with them", atMost(256)); err != nil {
		return err
	}
	if err := b.settle(ctx); err != nil {
		return err
	}
	left, err := e.backlogRates(ctx, b, max(1, min(2_000_000, e.Backlog/4)), size)
	if err != nil {
		return err
	}
	now, peak, err := b.rss()
	if err != nil {
		return err
	}
	e.add("memory after publishing and consuming with them", float64(now)/(1<<20), "MiB", atMost(256))
	e.add("peak of it", float64(peak)/(1<<20), "MiB", nil)
	f, err := b.figures(ctx)
	if err != nil {
		return err
	}
	runs := 0
	for _, s := range f.Shards {
		runs = max(runs, s.RunsMax)
	}
	e.add("runs of the queue", float64(runs), "", nil)
	took, err := b.restart(ctx)
	if err != nil {
		return err
	}
	e.add("SIGKILL, start to the first channel", took.Seconds(), "s", atMost(3))
	if err := e.addRSS(b, "memory after the restart", atMost(256)); err != nil {
		return err
	}
	_, ch, err := dial(b.url)
	if err != nil {
		return err
	}
	q, err := ch.QueueDeclarePassive("backlog", true, false, false, false, nil)
	if err == nil && uint64(q.Messages) != left {
		err = fmt.Errorf("%d messages after the restart instead of %d", q.Messages, left)
	}
	return err
}

// backlogRates publishes and consumes as many messages on an empty queue and on the one
// with the backlog, in turns. It returns how many are left in that.
func (e *env) backlogRates(ctx context.Context, b *broker, n uint64, size int) (left uint64, err error) {
	names := [2]string{"empty", "backlog"}
	var published, consumed [2][]float64
	left = e.Backlog
	for range e.Rounds {
		for i, name := range names {
			rate, err := b.fill(ctx, name, n, size)
			if err != nil {
				return 0, err
			}
			published[i] = append(published[i], rate)
			res, err := b.drain(ctx, name, n, size)
			if err != nil {
				return 0, err
			}
			consumed[i] = append(consumed[i], res.ConsumeRate)
			if i == 1 {
				left += n - res.Totals.Received
			}
		}
	}
	for i, how := range []string{"published to", "consumed from"} {
		rates := [2][2][]float64{published, consumed}[i]
		a := e.addMedian(how+" an empty queue", rates[0], "/s", nil)
		c := e.addMedian(how+" the backlog", rates[1], "/s", nil)
		e.add(how+" the two, compared", c/a, "times", atLeast(0.8))
	}
	return left, nil
}
