package main

import (
	"context"
	"fmt"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// exist: what queues cost that are only there.
func exist(ctx context.Context, e *env) (err error) {
	b, err := e.newBroker(ctx)
	if err != nil {
		return err
	}
	defer b.close(&err)
	if err := e.addRSS(b, "memory without queues", nil); err != nil {
		return err
	}
	name := func(i int) string { return fmt.Sprintf("exist-%06d", i) }
	began := time.Now()
	if err := b.declare(ctx, e.Exist, name); err != nil {
		return err
	}
	e.add(fmt.Sprintf("%s durable queues declared", grouped(int64(e.Exist))), float64(e.Exist)/time.Since(began).Seconds(), "/s", nil)
	if err := e.addRSS(b, "memory with them", atMost(400)); err != nil {
		return err
	}
	if err := b.existRestart(ctx, e, "empty"); err != nil {
		return err
	}
	const each = 3
	body := make([]byte, 1024)
	began = time.Now()
	err = b.inParallel(ctx, 16, e.Exist, func(ch *amqp091.Channel, from, step int) error {
		var keys []string
		for range each { // in rounds, as real messages would come
			for i := from; i < e.Exist; i += step {
				keys = append(keys, name(i))
			}
		}
		return publish(ctx, ch, "", keys, body)
	})
	if err != nil {
		return err
	}
	e.add("3 messages of 1 KiB published to each", each*float64(e.Exist)/time.Since(began).Seconds(), "/s", nil)
	if err := e.addRSS(b, "memory with these", atMost(400)); err != nil {
		return err
	}
	if err := b.roll(ctx); err != nil {
		return err
	}
	f, err := b.figures(ctx)
	if err != nil {
		return err
	}
	e.add("flushes of a file of the write-ahead log", float64(f.Store.Flushes.Count()), "", nil)
	e.add("longest flush", f.Store.Flushes.Max().Seconds(), "s", atMost(1))
	if err := e.addRSS(b, "memory after flushing", atMost(400)); err != nil {
		return err
	}
	if err := b.existRestart(ctx, e, "with messages"); err != nil {
		return err
	}
	_, ch, err := dial(b.url)
	if err != nil {
		return err
	}
	for _, i := range []int{0, e.Exist / 2, e.Exist - 1} {
		q, err := ch.QueueDeclarePassive(name(i), true, false, false, false, nil)
		if err != nil {
			return err
		}
		if q.Messages != each {
			return fmt.Errorf("queue %d has %d messages after the restart", i, q.Messages)
		}
	}
	return nil
}

func (b *broker) existRestart(ctx context.Context, e *env, how string) error {
	took, err := b.restart(ctx)
	if err != nil {
		return err
	}
	e.add("SIGKILL, start to the first channel, "+how, took.Seconds(), "s", atMost(3))
	return e.addRSS(b, "memory after the restart, "+how, atMost(400))
}
