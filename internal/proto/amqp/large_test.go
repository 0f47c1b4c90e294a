package amqp

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	client "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
	"github.com/sluicemq/sluice/internal/queue"
)

// largeRig is a rig whose broker takes bodies of more than 2,000 bytes in parts.
func largeRig(t *testing.T) *rig {
	r := newRig(t, Config{})
	r.broker.mu.Lock()
	r.broker.large = 2000
	r.broker.mu.Unlock()
	return r
}

// pending counts the bodies that no queue has got.
func (b *fakeBroker) pending() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.bodies {
		if !l.published {
			n++
		}
	}
	return n
}

func bigBody(seed byte, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = seed + byte(i/251) + byte(i)
	}
	return b
}

// Large bodies of several channels may be mixed frame by frame; each comes back whole, by
// delivery and by basic.get, and in its place among the others.
func TestLargeBodies(t *testing.T) {
	r := largeRig(t)
	ch := r.channel()
	w := r.raw().open()
	var frames [][]byte
	for n := uint16(1); n <= 3; n++ {
		declare(t, ch, fmt.Sprint("q", n))
		w.method(n, &amqpwire.ChannelOpen{})
		expectMethod[*amqpwire.ChannelOpenOk](w)
		w.method(n, &amqpwire.ConfirmSelect{})
		expectMethod[*amqpwire.ConfirmSelectOk](w)
		frames = append(frames, bytesOf(
			amqpwire.AppendPublish(nil, n, "", fmt.Sprint("q", n), false, false, nil, []byte("before"), 0),
			amqpwire.AppendPublish(nil, n, "", fmt.Sprint("q", n), true, false, nil, bigBody(byte(n), 300_000), 4096+uint32(n)),
			amqpwire.AppendPublish(nil, n, "", fmt.Sprint("q", n), false, false, nil, []byte("after"), 0)))
	}
	for left := true; left; {
		left = false
		for i, b := range frames {
			if len(b) > 0 {
				n := int(amqpwire.FrameSize(b))
				w.send(b[:n])
				frames[i], left = b[n:], true
			}
		}
	}
	for n := range 3 {
		name := fmt.Sprint("q", n+1)
		eventually(t, "three messages", func() bool { return r.broker.counts(name).Ready == 3 })
		want := []string{"before", string(bigBody(byte(n+1), 300_000)), "after"}
		if n == 0 {
			for _, body := range want {
				d, found, err := ch.Get(name, true)
				if err != nil || !found || string(d.Body) != body {
					t.Fatalf("got %d bytes, found %v, %v", len(d.Body), found, err)
				}
			}
			continue
		}
		got, last := bodies(t, consume(t, ch, name), 3)
		wantList(t, got, want...)
		ok(t, last.Ack(true))
	}
}

// A large message that no queue takes comes back before its confirmation.
func TestLargeReturn(t *testing.T) {
	r := largeRig(t)
	w := r.raw().open().openChannel()
	w.method(1, &amqpwire.ConfirmSelect{})
	expectMethod[*amqpwire.ConfirmSelectOk](w)
	body := bigBody(5, 500_000)
	w.send(amqpwire.AppendPublish(nil, 1, "", "nobody", true, false, nil, body, 131072))
	if m := expectMethod[*amqpwire.BasicReturn](w); m.ReplyCode != amqpwire.NoRoute || m.RoutingKey != "nobody" {
		t.Fatalf("got %+v", m)
	}
	if got := w.content(); !bytes.Equal(got, body) {
		t.Fatalf("%d bytes came back", len(got))
	}
	expectMethod[*amqpwire.BasicAck](w)
	w.send(amqpwire.AppendPublish(nil, 1, "", "nobody", false, false, nil, body, 131072))
	expectMethod[*amqpwire.BasicAck](w)
	eventually(t, "the bodies to go", func() bool { return r.broker.pending() == 0 })
	// A client that reads nothing: what waits for it goes with the connection.
	for range 4 {
		w.send(amqpwire.AppendPublish(nil, 1, "", "nobody", true, false, nil, body, 131072))
	}
	w.nc.Close()
	eventually(t, "the bodies to go", func() bool { return r.srv.Connections() == 0 && r.broker.pending() == 0 })
}

// content reads a header frame and the body.
func (w *raw) content() (body []byte) {
	w.t.Helper()
	f := must(w.frame())(w.t)
	h, err := amqpwire.ParseContentHeader(f.Payload)
	if err != nil || f.Type != amqpwire.FrameHeader {
		w.t.Fatalf("frame of type %d: %v", f.Type, err)
	}
	for uint64(len(body)) < h.BodySize {
		f := must(w.frame())(w.t)
		if f.Type != amqpwire.FrameBody {
			w.t.Fatalf("frame of type %d in a body", f.Type)
		}
		body = append(body, f.Payload...)
	}
	return body
}

// What is begun and not ended is given up, however it comes about.
func TestLargeBodyGivenUp(t *testing.T) {
	half := bytesOf(publishHead(1), header(1, 60, 9000), rawFrame(amqpwire.FrameBody, 1, make([]byte, 5000)...))
	whole := amqpwire.AppendPublish(nil, 1, "", "q", false, false, nil, make([]byte, 5000), 0)
	tx := method(1, &amqpwire.TxSelect{})
	for name, sent := range map[string][]byte{
		"channel closed":    bytesOf(half, method(1, &amqpwire.ChannelClose{}), method(0, &amqpwire.ConnectionClose{})),
		"connection closed": bytesOf(half, method(0, &amqpwire.ConnectionClose{})),
		"too long":          bytesOf(half, rawFrame(amqpwire.FrameBody, 1, make([]byte, 4001)...)),
		"second header":     bytesOf(half, header(1, 60, 9000)),
		"no frame":          bytesOf(half, []byte("nonsense")),
		"rollback":          bytesOf(tx, whole, method(1, &amqpwire.TxRollback{}), method(0, &amqpwire.ConnectionClose{})),
		"open transaction":  bytesOf(tx, whole, half, method(0, &amqpwire.ConnectionClose{})),
		"channel closed in a transaction": bytesOf(tx, whole, method(1, &amqpwire.ExchangeDelete{Exchange: "x"}),
			method(1, &amqpwire.ChannelClose{}), method(0, &amqpwire.ConnectionClose{})),
	} {
		t.Run(name, func(t *testing.T) {
			r := largeRig(t)
			declare(t, r.channel(), "q")
			w := r.raw().open().openChannel()
			w.send(sent)
			ok(t, w.nc.(interface{ CloseWrite() error }).CloseWrite())
			w.wantClosed()
			eventually(t, "the session to end", func() bool { return r.srv.Connections() == 1 })
			if n := r.broker.pending(); n != 0 {
				t.Fatalf("%d bodies are left", n)
			}
		})
	}
}

func TestLargeBodyInTransaction(t *testing.T) {
	r := largeRig(t)
	ch := r.channel()
	declare(t, ch, "q")
	ok(t, ch.Tx())
	returns := ch.NotifyReturn(make(chan client.Return, 1))
	body := string(bigBody(9, 100_000))
	put(t, ch, "", "q", "small")
	put(t, ch, "", "q", body)
	ok(t, ch.PublishWithContext(context.Background(), "", "nobody", true, false, client.Publishing{Body: []byte(body)}))
	if n := r.broker.counts("q").Ready; n != 0 {
		t.Fatalf("%d messages before the commit", n)
	}
	ok(t, ch.TxCommit())
	if ret := receive(t, returns, "return"); string(ret.Body) != body {
		t.Fatalf("%d bytes came back", len(ret.Body))
	}
	other := r.channel()
	got, _ := bodies(t, consume(t, other, "q"), 2)
	wantList(t, got, "small", body)
	put(t, ch, "", "q", body)
	ok(t, ch.TxRollback())
	eventually(t, "the bodies to go", func() bool { return r.broker.pending() == 0 })
}

// What is wrong with a large message the client learns when its header has come.
func TestLargeHeaderFaults(t *testing.T) {
	r := newRig(t, Config{MaxMessageBytes: MaxMessageBytesMax})
	w := r.raw().open()
	fault := func(ch uint16, exchange string, size uint64, props []byte) *amqpwire.ChannelClose {
		t.Helper()
		w.method(ch, &amqpwire.ChannelOpen{})
		expectMethod[*amqpwire.ChannelOpenOk](w)
		publish := amqpwire.AppendPublish(nil, ch, exchange, "q", false, false, nil, nil, 0)
		w.send(bytesOf(publish[:amqpwire.FrameSize(publish)], header(ch, 60, size, props...)))
		return expectMethod[*amqpwire.ChannelClose](w)
	}
	for i, c := range []struct {
		exchange string
		size     uint64
		props    []byte
		text     string
	}{
		{"", 512<<20 + 1, nil, "PRECONDITION_FAILED - message size 536870913 is larger than max size 536870912"},
		{"none", 200 << 20, nil, "NOT_FOUND - no exchange 'none' in vhost '/'"},
		{"", 200 << 20, must(amqpwire.AppendPropsWithString(nil, nil, amqpwire.PropUserID, "other"))(t), "PRECONDITION_FAILED - user_id property set to 'other' but authenticated user was 'guest'"},
	} {
		if m := fault(uint16(i+1), c.exchange, c.size, c.props); m.ReplyText != c.text {
			t.Errorf("got %q, want %q", m.ReplyText, c.text)
		}
	}
}

// A broker that takes no large message says so by basic.nack, when the body has come.
func TestLargeBodyRefused(t *testing.T) {
	r := largeRig(t)
	r.broker.mu.Lock()
	r.broker.refuse = berr.New(berr.ResourceError, "no more")
	r.broker.mu.Unlock()
	w := r.raw().open().openChannel()
	w.method(1, &amqpwire.ConfirmSelect{})
	expectMethod[*amqpwire.ConfirmSelectOk](w)
	w.send(amqpwire.AppendPublish(nil, 1, "", "q", true, false, nil, make([]byte, 100_000), 4096))
	if m := expectMethod[*amqpwire.BasicNack](w); m.DeliveryTag != 1 {
		t.Fatalf("got %+v", m)
	}
}

// While the broker takes no messages a large body stops in the middle, and
// acknowledgements behind it get through.
func TestLargeBodyWhileBlocked(t *testing.T) {
	r := largeRig(t)
	ch := r.channel()
	declare(t, ch, "q")
	put(t, ch, "", "q", "x")
	eventually(t, "a message", func() bool { return r.broker.counts("q").Ready == 1 })
	w := r.raw().open().openChannel()
	w.method(1, &amqpwire.BasicConsume{Queue: "q", ConsumerTag: "t"})
	expectMethod[*amqpwire.BasicConsumeOk](w)
	expectMethod[*amqpwire.BasicDeliver](w)
	w.content()
	w.method(2, &amqpwire.ChannelOpen{})
	expectMethod[*amqpwire.ChannelOpenOk](w)
	w.send(bytesOf(publishHead(2), header(2, 60, 9000), rawFrame(amqpwire.FrameBody, 2, make([]byte, 3000)...)))
	w.method(1, &amqpwire.BasicQos{})
	expectMethod[*amqpwire.BasicQosOk](w) // the body's beginning was read
	r.broker.block(true)
	expectMethod[*amqpwire.ConnectionBlocked](w)
	w.send(bytesOf(rawFrame(amqpwire.FrameBody, 2, make([]byte, 6000)...), amqpwire.AppendAck(nil, 1, 1, false)))
	eventually(t, "the acknowledgement", func() bool { return r.broker.counts("q") == queue.Counts{Consumers: 1} })
	r.broker.mu.Lock()
	for _, l := range r.broker.bodies {
		if len(l.body) != 3000 {
			t.Errorf("%d bytes were taken while blocked", len(l.body))
		}
	}
	r.broker.mu.Unlock()
	r.broker.block(false)
	expectMethod[*amqpwire.ConnectionUnblocked](w)
	expectMethod[*amqpwire.BasicDeliver](w)
	if got := w.content(); len(got) != 9000 {
		t.Fatalf("a body of %d bytes", len(got))
	}
}

// A body that is gone before it was begun is left out; later the connection ends.
func TestLargeBodyGone(t *testing.T) {
	for _, lasts := range []int{0, 3} {
		r := largeRig(t)
		ch := r.channel()
		declare(t, ch, "q")
		put(t, ch, "", "q", string(bigBody(1, 100_000)))
		put(t, ch, "", "q", "next")
		eventually(t, "messages", func() bool { return r.broker.counts("q").Ready == 2 })
		r.broker.mu.Lock()
		for _, l := range r.broker.bodies {
			l.lasts = lasts
		}
		r.broker.mu.Unlock()
		other := r.dial()
		closed := other.NotifyClose(make(chan *client.Error, 1))
		in := consume(t, must(other.Channel())(t), "q")
		if lasts == 0 {
			got, last := bodies(t, in, 1)
			wantList(t, got, "next")
			ok(t, last.Ack(false))
			eventually(t, "nothing in flight", func() bool { return r.broker.counts("q").Unacked == 0 })
			continue
		}
		if err := receive(t, closed, "end of the connection"); err == nil {
			t.Fatal("closed without a reason")
		}
	}
}
