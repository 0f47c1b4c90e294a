package amqp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	client "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// waitTime bounds every wait for something that must happen.
const waitTime = 5 * time.Second

// rig is a server over a fake broker.
type rig struct {
	t      testing.TB
	broker *fakeBroker
	srv    *Server
	addr   string
}

func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	before := runtime.NumGoroutine()
	r := &rig{t: t, broker: newFakeBroker()}
	r.srv = NewServer(r.broker, cfg)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- r.srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), waitTime)
		defer stop()
		if err := r.srv.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
		checkGoroutines(t, before)
	})
	return r
}

// checkGoroutines fails the test if goroutines of a connection outlive it.
func checkGoroutines(t testing.TB, before int) {
	t.Helper()
	eventually(t, "goroutines to end", func() bool {
		if runtime.NumGoroutine() <= before {
			return true
		}
		b := make([]byte, 1<<20)
		return !bytes.Contains(b[:runtime.Stack(b, true)], []byte("amqp.(*conn)"))
	})
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(waitTime)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (r *rig) dial() *client.Connection {
	r.t.Helper()
	c, err := client.DialConfig("amqp://guest:guest@"+r.addr+"/", client.Config{Heartbeat: 10 * time.Second, Vhost: "/"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func (r *rig) channel() *client.Channel {
	r.t.Helper()
	return must(r.dial().Channel())(r.t)
}

// must turns a result and an error into the result.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// receive takes one value from ch.
func receive[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v, open := <-ch:
		if !open {
			t.Fatalf("%s: closed", what)
		}
		return v
	case <-time.After(waitTime):
		t.Fatalf("%s: waited in vain", what)
	}
	panic("unreachable")
}

func put(t testing.TB, ch *client.Channel, exchange, key, body string) {
	t.Helper()
	ok(t, ch.PublishWithContext(context.Background(), exchange, key, false, false, client.Publishing{Body: []byte(body)}))
}

func declare(t testing.TB, ch *client.Channel, name string) {
	t.Helper()
	must(ch.QueueDeclare(name, true, false, false, false, nil))(t)
}

func consume(t testing.TB, ch *client.Channel, queue string) <-chan client.Delivery {
	t.Helper()
	return must(ch.Consume(queue, "", false, false, false, false, nil))(t)
}

// bodies takes n deliveries and returns their bodies.
func bodies(t testing.TB, in <-chan client.Delivery, n int) (got []string, last client.Delivery) {
	t.Helper()
	for range n {
		last = receive(t, in, "delivery")
		got = append(got, string(last.Body))
	}
	return got, last
}

func wantList(t testing.TB, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, ",") != strings.Join(want, ",") {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func none(t testing.TB, in <-chan client.Delivery) {
	t.Helper()
	select {
	case d := <-in:
		t.Fatalf("unexpected delivery %q", d.Body)
	default:
	}
}

// raw is a client that sends what it likes.
type raw struct {
	t   testing.TB
	nc  net.Conn
	buf []byte
	hb  uint16
}

func (r *rig) raw() *raw {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.addr)
	ok(r.t, err)
	r.t.Cleanup(func() { nc.Close() })
	return &raw{t: r.t, nc: nc}
}

func (w *raw) send(b []byte) {
	w.t.Helper()
	if _, err := w.nc.Write(b); err != nil {
		w.t.Fatalf("write: %v", err)
	}
}

func frameOf(t testing.TB, ch uint16, m amqpwire.Method) []byte {
	t.Helper()
	return must(amqpwire.AppendMethodFrame(nil, ch, m))(t)
}

func (w *raw) method(ch uint16, m amqpwire.Method) {
	w.t.Helper()
	w.send(frameOf(w.t, ch, m))
}

// frame reads the next frame that is no heartbeat.
func (w *raw) frame() (amqpwire.Frame, error) {
	for {
		f, n, err := amqpwire.ParseFrame(w.buf, 0)
		if err != nil {
			return f, err
		}
		if n > 0 {
			f.Payload = bytes.Clone(f.Payload)
			w.buf = w.buf[n:]
			if f.Type == amqpwire.FrameHeartbeat {
				continue
			}
			return f, nil
		}
		b := make([]byte, 64<<10)
		n, err = w.nc.Read(b)
		w.buf = append(w.buf, b[:n]...)
		if err != nil {
			return f, err
		}
	}
}

// next reads the next method.
func (w *raw) next() (uint16, amqpwire.Method) {
	w.t.Helper()
	f, err := w.frame()
	if err != nil {
		w.t.Fatalf("read: %v", err)
	}
	if f.Type != amqpwire.FrameMethod {
		w.t.Fatalf("a frame of type %d instead of a method", f.Type)
	}
	return f.Channel, must(amqpwire.ParseMethod(f.Payload))(w.t)
}

// expectMethod reads the next method, which must be a T.
func expectMethod[T amqpwire.Method](w *raw) T {
	w.t.Helper()
	_, m := w.next()
	v, ok := m.(T)
	if !ok {
		w.t.Fatalf("got %s %+v, want %T", m.ID(), m, v)
	}
	return v
}

var wellBehaved = amqpwire.Table{
	{Key: "capabilities", Value: mustTable(amqpwire.Table{
		{Key: "consumer_cancel_notify", Value: amqpwire.Bool(true)},
		{Key: "connection.blocked", Value: amqpwire.Bool(true)},
		{Key: "authentication_failure_close", Value: amqpwire.Bool(true)},
	})},
	{Key: "connection_name", Value: amqpwire.String("test")},
}

func mustTable(t amqpwire.Table) amqpwire.Value {
	v, err := amqpwire.TableValue(t)
	if err != nil {
		panic(err)
	}
	return v
}

// open does the handshake.
func (w *raw) open() *raw {
	w.t.Helper()
	w.send(amqpwire.Header091.Append(nil))
	expectMethod[*amqpwire.ConnectionStart](w)
	w.method(0, &amqpwire.ConnectionStartOk{
		ClientProperties: must(wellBehaved.Raw())(w.t), Mechanism: "PLAIN", Response: []byte("\x00guest\x00guest"), Locale: "en_US",
	})
	tune := expectMethod[*amqpwire.ConnectionTune](w)
	w.method(0, &amqpwire.ConnectionTuneOk{ChannelMax: tune.ChannelMax, FrameMax: tune.FrameMax, Heartbeat: w.hb})
	w.method(0, &amqpwire.ConnectionOpen{VirtualHost: "/"})
	expectMethod[*amqpwire.ConnectionOpenOk](w)
	return w
}

// openChannel opens channel 1.
func (w *raw) openChannel() *raw {
	w.t.Helper()
	w.method(1, &amqpwire.ChannelOpen{})
	expectMethod[*amqpwire.ChannelOpenOk](w)
	return w
}

// wantClosed reads until the server closes the socket.
func (w *raw) wantClosed() {
	w.t.Helper()
	ok(w.t, w.nc.SetReadDeadline(time.Now().Add(waitTime)))
	for {
		_, err := w.frame()
		if err == nil {
			continue
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			w.t.Fatal("the server does not close the socket")
		}
		if !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") && !errors.Is(err, io.ErrClosedPipe) {
			w.t.Fatalf("read: %v", err)
		}
		return
	}
}
