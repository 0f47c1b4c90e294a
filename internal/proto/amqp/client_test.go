package amqp

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	client "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/berr"
)

// These tests drive the server with the client library that most Go programs use.

func TestPublishConfirmConsumeAck(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	ok(t, ch.Confirm(false))
	confirms := ch.NotifyPublish(make(chan client.Confirmation, 100))
	for i := range 10 {
		put(t, ch, "", "q", fmt.Sprint(i))
	}
	for i := range 10 {
		c := receive(t, confirms, "confirm")
		if c.DeliveryTag != uint64(i+1) || !c.Ack {
			t.Fatalf("confirm %+v, want ack of %d", c, i+1)
		}
	}
	in := consume(t, ch, "q")
	got, last := bodies(t, in, 10)
	wantList(t, got, "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
	if last.Redelivered || last.RoutingKey != "q" || last.Exchange != "" || last.DeliveryTag != 10 {
		t.Fatalf("delivery %+v", last)
	}
	ok(t, last.Ack(true))
	eventually(t, "acknowledgement", func() bool { return r.broker.counts("q").Unacked == 0 })
	if n := r.broker.counts("q").Ready; n != 0 {
		t.Fatalf("%d messages left", n)
	}
}

func TestPropertiesSurvive(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	sent := client.Publishing{
		Headers:     client.Table{"a": int32(1), "b": "text", "c": client.Table{"d": true}, "e": nil},
		ContentType: "text/plain", ContentEncoding: "x", DeliveryMode: 2, Priority: 5, CorrelationId: "corr",
		ReplyTo: "reply", MessageId: "id", Timestamp: time.Unix(1700000000, 0), Type: "typ", UserId: "guest", AppId: "app",
		Body: []byte("body"),
	}
	ok(t, ch.PublishWithContext(context.Background(), "", "q", false, false, sent))
	d := receive(t, consume(t, ch, "q"), "delivery")
	if d.ContentType != "text/plain" || d.ContentEncoding != "x" || d.DeliveryMode != 2 || d.Priority != 5 ||
		d.CorrelationId != "corr" || d.ReplyTo != "reply" || d.MessageId != "id" || !d.Timestamp.Equal(sent.Timestamp) ||
		d.Type != "typ" || d.UserId != "guest" || d.AppId != "app" || fmt.Sprint(d.Headers) != fmt.Sprint(sent.Headers) {
		t.Fatalf("got %+v", d)
	}
}

func TestNackRequeueKeepsOrder(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	for i := range 5 {
		put(t, ch, "", "q", fmt.Sprint(i))
	}
	ok(t, ch.Qos(5, 0, false))
	in := consume(t, ch, "q")
	var ds []client.Delivery
	for range 5 {
		ds = append(ds, receive(t, in, "delivery"))
	}
	ok(t, ds[3].Nack(false, true))
	ok(t, ds[1].Reject(true))
	got, last := bodies(t, in, 2)
	slices.Sort(got)
	wantList(t, got, "1", "3")
	if !last.Redelivered {
		t.Fatal("not flagged as redelivered")
	}
	ok(t, ds[0].Reject(false))
	ok(t, ds[2].Nack(false, false))
	ok(t, ds[4].Ack(false))
	// All at once: what comes back stands in its old place.
	ok(t, last.Nack(true, true))
	got, last = bodies(t, in, 2)
	wantList(t, got, "1", "3")
	ok(t, last.Ack(true))
	eventually(t, "the queue to be empty", func() bool {
		n := r.broker.counts("q")
		return n.Ready == 0 && n.Unacked == 0
	})
}

func TestUnackedComesBackWhenChannelCloses(t *testing.T) {
	r := newRig(t, Config{})
	conn := r.dial()
	ch := must(conn.Channel())(t)
	declare(t, ch, "q")
	for i := range 3 {
		put(t, ch, "", "q", fmt.Sprint(i))
	}
	in := consume(t, ch, "q")
	bodies(t, in, 3)
	if _, ok, err := ch.Get("q", false); ok || err != nil {
		t.Fatalf("get from an empty queue: %v, %v", ok, err)
	}
	ok(t, ch.Close())
	ch = must(conn.Channel())(t)
	in = consume(t, ch, "q")
	for i := range 3 {
		d := receive(t, in, "delivery")
		if string(d.Body) != fmt.Sprint(i) || !d.Redelivered || d.DeliveryTag != uint64(i+1) {
			t.Fatalf("delivery %d: %q redelivered=%v tag=%d", i, d.Body, d.Redelivered, d.DeliveryTag)
		}
	}
	ok(t, conn.Close())
	eventually(t, "the messages to come back", func() bool { return r.broker.counts("q").Ready == 3 })
}

func TestGet(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	for i := range 4 {
		put(t, ch, "", "q", fmt.Sprint(i))
	}
	// What was just published is there, without a confirm.
	d, found, err := ch.Get("q", false)
	if err != nil || !found || string(d.Body) != "0" || d.MessageCount != 3 || d.DeliveryTag != 1 {
		t.Fatalf("got %+v, %v, %v", d, found, err)
	}
	d2, _, err := ch.Get("q", true)
	if err != nil || string(d2.Body) != "1" {
		t.Fatalf("got %+v, %v", d2, err)
	}
	ok(t, d.Nack(false, true))
	d, _, err = ch.Get("q", false)
	if err != nil || string(d.Body) != "0" || !d.Redelivered {
		t.Fatalf("got %+v, %v", d, err)
	}
	ok(t, d.Ack(false))
	in := consume(t, ch, "q")
	got, _ := bodies(t, in, 2)
	wantList(t, got, "2", "3")
	eventually(t, "counts", func() bool { return r.broker.counts("q").Unacked == 2 })
}

func TestQosPerConsumerAndPerChannel(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	for i := range 20 {
		put(t, ch, "", "q", fmt.Sprint(i))
	}
	ok(t, ch.Qos(2, 0, false))
	a := must(ch.Consume("q", "a", false, false, false, false, nil))(t)
	b := must(ch.Consume("q", "b", false, false, false, false, nil))(t)
	eventually(t, "2 messages each", func() bool { return r.broker.counts("q").Unacked == 4 })
	receive(t, a, "a")
	da := receive(t, a, "a")
	ok(t, ch.Qos(3, 0, true)) // less than what is in flight
	ok(t, da.Ack(false))
	eventually(t, "the acknowledgement", func() bool { return r.broker.counts("q").Unacked == 3 })
	none(t, a)
	receive(t, b, "b")
	db := receive(t, b, "b")
	ok(t, db.Ack(false))
	eventually(t, "3 in flight", func() bool { return r.broker.counts("q").Unacked == 3 && r.broker.counts("q").Ready == 15 })
	ok(t, ch.Qos(0, 0, true)) // no limit but that of the consumers
	eventually(t, "2 messages each again", func() bool { return r.broker.counts("q").Unacked == 4 })
}

func TestReturnBeforeAck(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	ok(t, ch.Confirm(false))
	returns := ch.NotifyReturn(make(chan client.Return, 1))
	confirms := ch.NotifyPublish(make(chan client.Confirmation, 2))
	ok(t, ch.PublishWithContext(context.Background(), "amq.direct", "nowhere", true, false, client.Publishing{
		Body: []byte("lost"), CorrelationId: "c", Headers: client.Table{"h": "v"},
	}))
	ok(t, ch.PublishWithContext(context.Background(), "amq.direct", "nowhere", false, false, client.Publishing{Body: []byte("x")}))
	ret := receive(t, returns, "return")
	if ret.ReplyCode != 312 || ret.ReplyText != "NO_ROUTE" || string(ret.Body) != "lost" || ret.CorrelationId != "c" ||
		ret.Exchange != "amq.direct" || ret.RoutingKey != "nowhere" || ret.Headers["h"] != "v" {
		t.Fatalf("return %+v", ret)
	}
	for i := range 2 {
		if c := receive(t, confirms, "confirm"); !c.Ack || c.DeliveryTag != uint64(i+1) {
			t.Fatalf("confirm %+v", c)
		}
	}
}

func TestNacksWhenTheBrokerFails(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	ok(t, ch.Confirm(false))
	confirms := ch.NotifyPublish(make(chan client.Confirmation, 4))
	r.broker.mu.Lock()
	r.broker.fail = berr.New(berr.Unavailable, "disk failed")
	r.broker.mu.Unlock()
	put(t, ch, "", "q", "x")
	if c := receive(t, confirms, "confirm"); c.Ack || c.DeliveryTag != 1 {
		t.Fatalf("confirm %+v", c)
	}
	r.broker.mu.Lock()
	r.broker.fail, r.broker.refuse = nil, berr.New(berr.Unavailable, "disk full")
	r.broker.mu.Unlock()
	put(t, ch, "", "q", "y")
	if c := receive(t, confirms, "confirm"); c.Ack || c.DeliveryTag != 2 {
		t.Fatalf("confirm %+v", c)
	}
	r.broker.mu.Lock()
	r.broker.refuse = nil
	r.broker.mu.Unlock()
	put(t, ch, "", "q", "z")
	if c := receive(t, confirms, "confirm"); !c.Ack || c.DeliveryTag != 3 {
		t.Fatalf("confirm %+v", c)
	}
}

func TestBigBodies(t *testing.T) {
	r := newRig(t, Config{FrameMax: 8192})
	ch := r.channel()
	declare(t, ch, "q")
	sizes := []int{0, 1, 8184, 8185, 64 << 10, 64<<10 + 1, 300_000, 5 << 20}
	for i, n := range sizes {
		body := bytes.Repeat([]byte{byte('a' + i)}, n)
		ok(t, ch.PublishWithContext(context.Background(), "", "q", false, false, client.Publishing{Body: body}))
	}
	in := consume(t, ch, "q")
	for i, n := range sizes {
		d := receive(t, in, "delivery")
		if len(d.Body) != n || n > 0 && (d.Body[0] != byte('a'+i) || d.Body[n-1] != byte('a'+i)) {
			t.Fatalf("body %d: %d bytes, want %d", i, len(d.Body), n)
		}
		ok(t, d.Ack(false))
	}
	ok(t, ch.PublishWithContext(context.Background(), "amq.direct", "", true, false, client.Publishing{Body: make([]byte, 1<<20)}))
	returns := ch.NotifyReturn(make(chan client.Return, 1))
	ok(t, ch.PublishWithContext(context.Background(), "amq.direct", "", true, false, client.Publishing{Body: make([]byte, 1<<20)}))
	if ret := receive(t, returns, "return"); len(ret.Body) != 1<<20 {
		t.Fatalf("%d bytes returned", len(ret.Body))
	}
}

func TestNoAckConsumer(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	in := must(ch.Consume("q", "", true, false, false, false, nil))(t)
	for i := range 1000 {
		put(t, ch, "", "q", fmt.Sprint(i))
	}
	for i := range 1000 {
		if d := receive(t, in, "delivery"); string(d.Body) != fmt.Sprint(i) {
			t.Fatalf("message %d is %q", i, d.Body)
		}
	}
	eventually(t, "all to be settled", func() bool {
		n := r.broker.counts("q")
		return n.Ready == 0 && n.Unacked == 0
	})
}

func TestCancel(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	in := must(ch.Consume("q", "tag", false, false, false, false, nil))(t)
	put(t, ch, "", "q", "1")
	d := receive(t, in, "delivery")
	ok(t, ch.Cancel("tag", false))
	put(t, ch, "", "q", "2")
	eventually(t, "message to stay", func() bool { return r.broker.counts("q").Ready == 1 })
	ok(t, d.Ack(false)) // still ours
	eventually(t, "acknowledgement", func() bool { return r.broker.counts("q").Unacked == 0 })
	in = must(ch.Consume("q", "tag", false, false, false, false, nil))(t)
	got, _ := bodies(t, in, 1)
	wantList(t, got, "2")
	if err := ch.Cancel("never heard of", false); err != nil {
		t.Fatal(err)
	}
}

func TestCancelNotify(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	cancels := ch.NotifyCancel(make(chan string, 1))
	must(ch.Consume("q", "tag", false, false, false, false, nil))(t)
	must(ch.QueueDelete("q", false, false, false))(t)
	if tag := receive(t, cancels, "cancel"); tag != "tag" {
		t.Fatalf("canceled %q", tag)
	}
	// The tag is free again.
	declare(t, ch, "q")
	must(ch.Consume("q", "tag", false, false, false, false, nil))(t)
}

func TestTx(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	put(t, ch, "", "q", "in")
	ok(t, ch.Tx())
	in := consume(t, ch, "q")
	d := receive(t, in, "delivery")
	ok(t, d.Ack(false))
	put(t, ch, "", "q", "out")
	ok(t, ch.TxRollback())
	if n := r.broker.counts("q"); n.Ready != 0 || n.Unacked != 1 {
		t.Fatalf("after the rollback: %+v", n)
	}
	ok(t, d.Ack(false)) // possible again
	put(t, ch, "", "q", "a")
	put(t, ch, "", "q", "b")
	none(t, in)
	ok(t, ch.TxCommit())
	got, _ := bodies(t, in, 2)
	wantList(t, got, "a", "b")
	if n := r.broker.counts("q"); n.Unacked != 2 {
		t.Fatalf("after the commit: %+v", n)
	}
	r.broker.mu.Lock()
	r.broker.fail = berr.New(berr.Unavailable, "disk failed")
	r.broker.mu.Unlock()
	put(t, ch, "", "q", "c")
	wantCode(t, ch.TxCommit(), 406, "PRECONDITION_FAILED - partial tx completion")
}

func TestRecover(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	put(t, ch, "", "q", "a")
	put(t, ch, "", "q", "b")
	in := consume(t, ch, "q")
	bodies(t, in, 2)
	ok(t, ch.Recover(true)) //nolint:staticcheck // deprecated, not gone
	got, last := bodies(t, in, 2)
	wantList(t, got, "a", "b")
	if !last.Redelivered || last.DeliveryTag != 4 {
		t.Fatalf("redelivered %v with tag %d", last.Redelivered, last.DeliveryTag)
	}
}

func TestQuorumCountsDeliveries(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	must(ch.QueueDeclare("q", true, false, false, false, client.Table{"x-queue-type": "quorum"}))(t)
	ok(t, ch.PublishWithContext(context.Background(), "", "q", false, false, client.Publishing{Headers: client.Table{"h": "v"}}))
	in := consume(t, ch, "q")
	d := receive(t, in, "delivery")
	if _, there := d.Headers["x-delivery-count"]; there {
		t.Fatalf("first delivery has %v", d.Headers)
	}
	for i := range 2 {
		ok(t, d.Nack(false, true))
		d = receive(t, in, "delivery")
		if d.Headers["x-delivery-count"] != int64(i+1) || d.Headers["h"] != "v" {
			t.Fatalf("headers %v", d.Headers)
		}
	}
}

func TestCopies(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	for _, q := range []string{"a", "b", "c"} {
		declare(t, ch, q)
	}
	ok(t, ch.PublishWithContext(context.Background(), "", "a", false, false, client.Publishing{
		Headers: client.Table{"CC": []any{"b", "a", int32(7)}, "BCC": []any{"c"}, "x": "y"},
	}))
	for _, q := range []string{"a", "b", "c"} {
		d, found, err := ch.Get(q, true)
		if err != nil || !found || d.MessageCount != 0 {
			t.Fatalf("queue %s: %v %v %d", q, found, err, d.MessageCount)
		}
		if _, there := d.Headers["BCC"]; there || d.Headers["x"] != "y" || d.Headers["CC"] == nil {
			t.Fatalf("headers %v", d.Headers)
		}
	}
}

func TestHeadersExchangeAndExchangeBindings(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	ok(t, ch.ExchangeDeclare("front", "fanout", true, false, false, false, nil))
	ok(t, ch.ExchangeBind("amq.headers", "", "front", false, nil))
	ok(t, ch.QueueBind("q", "", "amq.headers", false, client.Table{"x-match": "all", "n": int64(5), "a": "b"}))
	for _, h := range []client.Table{{"n": int32(5), "a": "b"}, {"n": int32(6), "a": "b"}, {"a": "b"}} {
		ok(t, ch.PublishWithContext(context.Background(), "front", "k", false, false, client.Publishing{Headers: h}))
	}
	if q := must(ch.QueueDeclarePassive("q", true, false, false, false, nil))(t); q.Messages != 1 {
		t.Fatalf("%d messages", q.Messages)
	}
	// The same arguments in another order and width are the same binding.
	ok(t, ch.QueueUnbind("q", "", "amq.headers", client.Table{"a": "b", "n": int64(5), "x-match": "all"}))
	ok(t, ch.PublishWithContext(context.Background(), "front", "k", false, false, client.Publishing{Headers: client.Table{"n": int32(5), "a": "b"}}))
	if n := must(ch.QueuePurge("q", false))(t); n != 1 {
		t.Fatalf("%d messages purged", n)
	}
	ok(t, ch.ExchangeUnbind("amq.headers", "", "front", false, nil))
}

func TestExclusiveQueueGoesBeforeCloseOk(t *testing.T) {
	r := newRig(t, Config{})
	for range 20 {
		conn := r.dial()
		ch := must(conn.Channel())(t)
		must(ch.QueueDeclare("mine", false, false, true, false, nil))(t)
		consume(t, ch, "mine")
		ok(t, conn.Close())
	}
}

func TestServerNamedQueueIsTheDefault(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	q := must(ch.QueueDeclare("", false, false, true, false, nil))(t)
	if !strings.HasPrefix(q.Name, "amq.gen-") {
		t.Fatalf("name %q", q.Name)
	}
	ok(t, ch.QueueBind("", "", "amq.direct", false, nil))
	put(t, ch, "amq.direct", q.Name, "x")
	d, found, err := ch.Get("", true)
	if err != nil || !found || string(d.Body) != "x" {
		t.Fatalf("%v %v", found, err)
	}
}

func TestBlocked(t *testing.T) {
	r := newRig(t, Config{})
	conn := r.dial()
	ch := must(conn.Channel())(t)
	declare(t, ch, "q")
	put(t, ch, "", "q", "first")
	in := consume(t, ch, "q")
	d := receive(t, in, "delivery")
	blocks := conn.NotifyBlocked(make(chan client.Blocking, 2))
	r.broker.block(true)
	if b := receive(t, blocks, "blocked"); !b.Active || b.Reason != "low on disk" {
		t.Fatalf("%+v", b)
	}
	put(t, ch, "", "q", "second")
	ok(t, d.Ack(false)) // goes past what is held
	eventually(t, "acknowledgement", func() bool { return r.broker.counts("q").Unacked == 0 })
	none(t, in)
	r.broker.block(false)
	if b := receive(t, blocks, "unblocked"); b.Active {
		t.Fatalf("%+v", b)
	}
	got, _ := bodies(t, in, 1)
	wantList(t, got, "second")
	put(t, ch, "", "q", "third")
	got, _ = bodies(t, in, 1)
	wantList(t, got, "third")
}

func TestShutdown(t *testing.T) {
	r := newRig(t, Config{})
	conn := r.dial()
	closes := conn.NotifyClose(make(chan *client.Error, 1))
	ctx, stop := context.WithTimeout(context.Background(), waitTime)
	defer stop()
	ok(t, r.srv.Shutdown(ctx))
	err := receive(t, closes, "close")
	if err.Code != 320 || err.Reason != "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'" {
		t.Fatalf("%+v", err)
	}
	if n := r.srv.Connections(); n != 0 {
		t.Fatalf("%d connections left", n)
	}
}

func TestUpdateSecret(t *testing.T) {
	r := newRig(t, Config{})
	ok(t, r.dial().UpdateSecret("new", "expired"))
}

// wantCode checks an error of the client library.
func wantCode(t testing.TB, err error, code int, reason string) {
	t.Helper()
	e, is := err.(*client.Error) //nolint:errorlint // the client wraps nothing
	if !is || e.Code != code || e.Reason != reason {
		t.Fatalf("got %v\nwant %d %s", err, code, reason)
	}
}
