package amqp

import (
	"context"
	"fmt"
	"testing"

	client "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// confirmsOf reads confirmations until n tags are confirmed.
func (w *raw) confirmsOf(n int) (told []string) {
	w.t.Helper()
	confirmed := map[uint64]bool{}
	low := uint64(1)
	for len(confirmed) < n {
		_, m := w.next()
		ack, is := m.(*amqpwire.BasicAck)
		if !is {
			w.t.Fatalf("got %s", m.ID())
		}
		told = append(told, fmt.Sprint(ack.DeliveryTag, ack.Multiple))
		if ack.Multiple {
			for ; low <= ack.DeliveryTag; low++ {
				confirmed[low] = true
			}
		}
		confirmed[ack.DeliveryTag] = true
	}
	return told
}

// Flushes complete in any order; the confirmations are coalesced, and right.
func TestConfirmsOutOfOrder(t *testing.T) {
	r := newRig(t, Config{})
	for _, backwards := range []bool{false, true} {
		setup := r.channel()
		for i := range 3 {
			declare(t, setup, fmt.Sprint("q", i)) // each in another slot
		}
		w := r.raw().open().openChannel()
		w.method(1, &amqpwire.ConfirmSelect{})
		expectMethod[*amqpwire.ConfirmSelectOk](w)
		r.broker.mu.Lock()
		r.broker.withhold = true
		r.broker.mu.Unlock()
		const batches, size = 20, 30
		for range batches {
			var b []byte
			for i := range size {
				b = amqpwire.AppendPublish(b, 1, "", fmt.Sprint("q", i%3), false, false, nil, []byte("x"), 0)
			}
			w.send(b)
			w.method(1, &amqpwire.BasicQos{})
			expectMethod[*amqpwire.BasicQosOk](w) // the batch was read
		}
		r.broker.complete(backwards)
		told := w.confirmsOf(batches * size)
		t.Logf("backwards=%v: %d frames for %d messages", backwards, len(told), batches*size)
		if !backwards && len(told) > 4*batches {
			t.Errorf("%d frames for %d messages in order", len(told), batches*size)
		}
	}
}

// A message that goes nowhere is confirmed although one before it is pending.
func TestUnroutableIsConfirmedAtOnce(t *testing.T) {
	r := newRig(t, Config{})
	declare(t, r.channel(), "q")
	w := r.raw().open().openChannel()
	w.method(1, &amqpwire.ConfirmSelect{})
	expectMethod[*amqpwire.ConfirmSelectOk](w)
	r.broker.mu.Lock()
	r.broker.withhold = true
	r.broker.mu.Unlock()
	w.send(bytesOf(
		amqpwire.AppendPublish(nil, 1, "", "q", false, false, nil, nil, 0),
		amqpwire.AppendPublish(nil, 1, "", "no", false, false, nil, nil, 0),
	))
	if m := expectMethod[*amqpwire.BasicAck](w); m.DeliveryTag != 2 || m.Multiple {
		t.Fatalf("got %+v", m)
	}
	r.broker.complete(false)
	if m := expectMethod[*amqpwire.BasicAck](w); m.DeliveryTag != 1 {
		t.Fatalf("got %+v", m)
	}
}

// What belongs to a channel that has closed is not confirmed to the next one of that
// number.
func TestConfirmsDontOutliveTheirChannel(t *testing.T) {
	r := newRig(t, Config{})
	declare(t, r.channel(), "q")
	w := r.raw().open().openChannel()
	w.method(1, &amqpwire.ConfirmSelect{})
	expectMethod[*amqpwire.ConfirmSelectOk](w)
	r.broker.mu.Lock()
	r.broker.withhold = true
	r.broker.mu.Unlock()
	w.send(amqpwire.AppendPublish(nil, 1, "", "q", false, false, nil, nil, 0))
	w.method(1, &amqpwire.ChannelClose{})
	expectMethod[*amqpwire.ChannelCloseOk](w)
	w.openChannel()
	r.broker.complete(false)
	w.method(1, &amqpwire.ConfirmSelect{})
	expectMethod[*amqpwire.ConfirmSelectOk](w)
	w.send(amqpwire.AppendPublish(nil, 1, "", "q", false, false, nil, nil, 0))
	if m := expectMethod[*amqpwire.BasicAck](w); m.DeliveryTag != 1 {
		t.Fatalf("got %+v", m)
	}
}

// basic.get, purge, delete and declare see what was published before them, and commit
// waits for its own, while the disk is slow.
func TestBarrier(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	r.broker.mu.Lock()
	r.broker.withhold = true
	r.broker.mu.Unlock()
	put(t, ch, "", "q", "x")
	got := make(chan error)
	go func() {
		_, _, err := ch.Get("q", true)
		got <- err
	}()
	eventually(t, "the publish", func() bool {
		r.broker.mu.Lock()
		defer r.broker.mu.Unlock()
		return len(r.broker.kept) > 0
	})
	select {
	case err := <-got:
		t.Fatalf("get did not wait: %v", err)
	default:
	}
	r.broker.complete(false)
	ok(t, receive(t, got, "get"))
}

// basic.get sees what was requeued before it, which takes a commit where deliveries
// are counted.
func TestGetWaitsForRequeue(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	put(t, ch, "", "q", "x")
	d, _, err := ch.Get("q", false)
	ok(t, err)
	r.broker.mu.Lock()
	r.broker.withhold = true
	r.broker.mu.Unlock()
	ok(t, d.Nack(false, true))
	got := make(chan bool)
	go func() {
		_, found, _ := ch.Get("q", false)
		got <- found
	}()
	eventually(t, "the nack", func() bool {
		r.broker.mu.Lock()
		defer r.broker.mu.Unlock()
		return len(r.broker.kept) > 0
	})
	r.broker.complete(false)
	if !receive(t, got, "get") {
		t.Fatal("what was requeued is not there")
	}
}

// What basic.get took comes back when the channel closes, also if it was consumed by
// several channels.
func TestGotMessagesComeBack(t *testing.T) {
	r := newRig(t, Config{})
	conn := r.dial()
	other := must(conn.Channel())(t)
	declare(t, other, "q")
	put(t, other, "", "q", "a")
	put(t, other, "", "q", "b")
	ch := must(conn.Channel())(t)
	for _, c := range []*client.Channel{ch, other} {
		if _, found, err := c.Get("q", false); !found || err != nil {
			t.Fatalf("get: %v, %v", found, err)
		}
	}
	ok(t, ch.Close())
	d, found, err := other.Get("q", false)
	if !found || err != nil || string(d.Body) != "a" || !d.Redelivered {
		t.Fatalf("got %q, %v, %v", d.Body, found, err)
	}
	if n := r.broker.counts("q"); n.Unacked != 2 || n.Ready != 0 {
		t.Fatalf("%+v", n)
	}
}

// The broker forgets consumers that are canceled and have nothing in flight, and all
// but a few of basic.get.
func TestConsumersAreReleased(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	for i := range 2 * gettersMax {
		q := fmt.Sprint("q", i)
		declare(t, ch, q)
		put(t, ch, "", q, "x")
		d, _, err := ch.Get(q, false)
		ok(t, err)
		ok(t, d.Ack(false))
		must(ch.Consume(q, "t", false, false, false, false, nil))(t)
		ok(t, ch.Cancel("t", false))
	}
	eventually(t, "consumers to be forgotten", func() bool {
		declare(t, ch, "q0") // any frame lets the reader clean up
		r.broker.mu.Lock()
		defer r.broker.mu.Unlock()
		consumers, gets := 0, 0
		for s := range r.broker.sessions {
			consumers += len(s.consumers)
			gets += len(s.gets)
		}
		return consumers == 0 && gets <= gettersMax
	})
}

// A connection that dies while its reader waits for the broker ends nevertheless.
func TestDeathWhileWaiting(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	w := r.raw().open().openChannel()
	r.broker.mu.Lock()
	r.broker.withhold = true
	r.broker.mu.Unlock()
	w.send(amqpwire.AppendPublish(nil, 1, "", "q", false, false, nil, nil, 0))
	w.method(1, &amqpwire.BasicGet{Queue: "q"})
	eventually(t, "the publish", func() bool {
		r.broker.mu.Lock()
		defer r.broker.mu.Unlock()
		return len(r.broker.kept) > 0
	})
	ctx, stop := context.WithTimeout(context.Background(), waitTime)
	defer stop()
	done := make(chan error)
	go func() { done <- r.srv.Shutdown(ctx) }()
	if m := expectMethod[*amqpwire.ConnectionClose](w); m.ReplyCode != 320 || m.ClassID != 0 {
		t.Fatalf("got %+v", m)
	}
	w.method(0, &amqpwire.ConnectionCloseOk{})
	ok(t, receive(t, done, "shutdown"))
}

// Messages that vanished between delivery and writing free their credit.
func TestVanishedMessages(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	for i := range 6 {
		put(t, ch, "", "q", fmt.Sprint(i))
	}
	must(ch.QueueDeclarePassive("q", true, false, false, false, nil))(t)
	r.broker.mu.Lock()
	l, _ := r.broker.queue("/", "q")
	l.records[0], l.records[2], l.records[5] = nil, nil, nil
	r.broker.mu.Unlock()
	ok(t, ch.Qos(6, 0, false))
	in := consume(t, ch, "q")
	got, last := bodies(t, in, 3)
	wantList(t, got, "1", "3", "4")
	eventually(t, "credit", func() bool { return r.broker.counts("q").Unacked == 3 })
	ok(t, last.Ack(true))
	eventually(t, "acknowledgement", func() bool { return r.broker.counts("q").Unacked == 0 })
	r.broker.mu.Lock()
	l.records = append(l.records, nil)
	out := r.broker.ledger.Append(l.q.ID, 0, 1, nil)
	r.broker.mu.Unlock()
	ok(t, ch.Cancel("", false))
	other := r.channel()
	ok(t, ch.Close())
	r.broker.mu.Lock()
	r.broker.dispatch.Appended(l.q.ID, 0, out.First, 1)
	r.broker.mu.Unlock()
	if _, found, err := other.Get("q", false); found || err != nil {
		t.Fatalf("got a message that isn't there: %v %v", found, err)
	}
	eventually(t, "credit", func() bool { return r.broker.counts("q").Unacked == 0 })
}

// Requeued messages of several consumers on several queues come back whole when their
// connection is cut, at a random moment of a busy exchange.
func TestCutConnections(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	const total = 2000
	for i := range total {
		put(t, ch, "", "q", fmt.Sprint(i))
	}
	must(ch.QueueDeclarePassive("q", true, false, false, false, nil))(t)
	acked := 0
	for round := range 10 {
		conn := r.dial()
		c := must(conn.Channel())(t)
		ok(t, c.Qos(300, 0, false))
		in := consume(t, c, "q")
		for range 50 + 13*round {
			d := receive(t, in, "delivery")
			if string(d.Body) < "" {
				t.Fatal("unreachable")
			}
			if d.DeliveryTag%3 == 0 {
				ok(t, d.Ack(false))
				acked++
			}
		}
		must(c.QueueDeclarePassive("q", true, false, false, false, nil))(t) // the acks are in
		if round%2 == 0 {
			conn.Close()
		} else {
			ok(t, c.Close())
		}
		eventually(t, "messages to come back", func() bool {
			n := r.broker.counts("q")
			return n.Unacked == 0 && n.Ready == uint64(total-acked)
		})
	}
	in := consume(t, r.channel(), "q")
	last := -1
	for range total - acked {
		d := receive(t, in, "delivery")
		var n int
		_, err := fmt.Sscan(string(d.Body), &n)
		ok(t, err)
		if n <= last {
			t.Fatalf("%d after %d", n, last)
		}
		last = n
	}
}
