package main

import (
	"context"
	"fmt"

	"github.com/sluicemq/sluice/internal/bench"
)

// queues: the same load over more and more queues.
func queues(ctx context.Context, e *env) (err error) {
	brokers := make([]*broker, 0, len(e.Queues))
	defer func() {
		for _, b := range brokers {
			b.close(&err)
		}
	}()
	for range e.Queues {
		b, err := e.newBroker(ctx)
		if err != nil {
			return err
		}
		brokers = append(brokers, b)
	}
	rates := make([][]float64, len(e.Queues))
	for range e.Rounds {
		for i, n := range e.Queues {
			res, err := brokers[i].load(ctx, bench.Config{
				Publishers: 4, Consumers: 4, Queues: n, QueueName: "queues", ConfirmWindow: 1000, Prefetch: 2000, Duration: e.Duration,
			})
			if err != nil {
				return fmt.Errorf("%d queues: %w", n, err)
			}
			rates[i] = append(rates[i], res.ConsumeRate)
		}
	}
	for i, n := range e.Queues {
		what := fmt.Sprintf("1 KiB published and consumed over %s queues", grouped(int64(n)))
		m := e.addMedian(what, rates[i], "/s", nil)
		if i == 0 {
			continue
		}
		var g *goal
		if i == len(e.Queues)-1 {
			g = atLeast(0.8)
		}
		e.add(fmt.Sprintf("the same compared with %d queues", e.Queues[0]), m/median(rates[0]), "times", g)
	}
	return nil
}
