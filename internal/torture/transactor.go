package torture

import (
	"context"
	"math/rand/v2"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// txPrefetch is what a transactor has in flight at the most.
const txPrefetch = 30

// transactor consumes from two queues and publishes to several, all in transactions.
type transactor struct {
	*clients
	index int // as a publisher
	rng   *rand.Rand
	fill  *rand.ChaCha8

	ch     *amqp.Channel
	queues [2]int
	held   []held
}

func (x *transactor) session(ctx context.Context, conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Tx(); err != nil {
		return err
	}
	if err := ch.Qos(txPrefetch/2, 0, false); err != nil { // for each consumer
		return err
	}
	x.ch, x.held = ch, nil
	var from [2]<-chan amqp.Delivery
	for i := range from {
		// Queues with one consumer are for others: their order is judged.
		x.queues[i] = x.rng.IntN(x.cfg.Queues/2)*2 + 1
		if from[i], err = ch.Consume(queueName(x.queues[i]), "", false, false, false, false, nil); err != nil {
			return err
		}
	}
	scopes := [2]uint64{x.clients.scope.Add(1), x.clients.scope.Add(1)}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		i, d, ok := 0, amqp.Delivery{}, false
		select {
		case <-ctx.Done():
			return nil
		case d, ok = <-from[0]:
		case d, ok = <-from[1]:
			i = 1
		case <-tick.C:
			if err := x.transact(); err != nil {
				return err
			}
			continue
		}
		if !ok {
			return amqp.ErrClosed
		}
		if id, ok := x.receive(x.queues[i], &d, scopes[i]); ok {
			x.held = append(x.held, held{id, d.DeliveryTag})
		} else if err := d.Ack(false); err != nil {
			return err
		}
	}
}

// transact acknowledges and publishes something, and commits, now and then after it
// rolled something else back.
func (x *transactor) transact() error {
	x.txs.RLock() // publishing ends between two transactions
	defer x.txs.RUnlock()
	if x.rng.IntN(10) == 0 {
		if err := x.do(x.held, 1, nil); err != nil {
			return err
		}
		if err := x.ch.TxRollback(); err != nil {
			return err
		}
	}
	n := x.rng.IntN(len(x.held) + 1)
	x.rng.Shuffle(len(x.held), func(i, j int) { x.held[i], x.held[j] = x.held[j], x.held[i] })
	acks := x.held[:n]
	publish := 0
	if !x.ended {
		publish = x.rng.IntN(4)
	}
	if n+publish == 0 {
		return nil
	}
	tx := x.check.Begin()
	for _, h := range acks {
		tx.Acked(h.id)
	}
	if err := x.do(acks, publish, tx); err != nil {
		return err
	}
	if err := x.ch.TxCommit(); err != nil {
		return err
	}
	tx.Committed()
	x.held = append(x.held[:0], x.held[n:]...)
	return nil
}

// do acknowledges and publishes; what tx is nil for will be rolled back.
func (x *transactor) do(acks []held, publish int, tx *Tx) error {
	for _, h := range acks {
		if err := x.ch.Ack(h.tag, false); err != nil {
			return err
		}
	}
	for range publish {
		q := x.rng.IntN(x.cfg.Queues)
		id := x.check.Attempt(uint16(x.index), uint16(q))
		if tx != nil {
			tx.Published(id)
		} else {
			x.check.RolledBack(id)
		}
		err := x.ch.PublishWithContext(context.Background(), "", queueName(q), false, false, amqp.Publishing{
			DeliveryMode: amqp.Persistent,
			Body:         EncodeBody(x.run, id, x.rng.IntN(4<<10), x.fill),
		})
		if err != nil {
			return err
		}
	}
	return nil
}
