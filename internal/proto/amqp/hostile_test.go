package amqp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// bytesOf joins frames.
func bytesOf(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func rawFrame(typ amqpwire.FrameType, ch uint16, payload ...byte) []byte {
	return amqpwire.AppendFrame(nil, amqpwire.Frame{Type: typ, Channel: ch, Payload: payload})
}

// publishHead is basic.publish alone, without its content.
func publishHead(ch uint16) []byte {
	whole := amqpwire.AppendPublish(nil, ch, "", "q", false, false, nil, nil, 0)
	return whole[:amqpwire.FrameSize(whole)]
}

func header(ch uint16, class uint16, size uint64, props ...byte) []byte {
	p := binary.BigEndian.AppendUint16(nil, class)
	p = append(p, 0, 0)
	p = binary.BigEndian.AppendUint64(p, size)
	if len(props) == 0 {
		props = []byte{0, 0}
	}
	return rawFrame(amqpwire.FrameHeader, ch, append(p, props...)...)
}

func method(ch uint16, m amqpwire.Method) []byte {
	b, err := amqpwire.AppendMethodFrame(nil, ch, m)
	if err != nil {
		panic(err)
	}
	return b
}

// malformed are things that a client with channel 1 open may not send, and what the
// connection closes with.
var malformed = []struct {
	name string
	sent []byte
	text string
}{
	{"unknown frame type", rawFrame(4, 1), "FRAME_ERROR - type 4"},
	{"bad frame end", append(method(1, &amqpwire.ChannelFlow{Active: true})[:12:12], 0), "FRAME_ERROR - type 1, "},
	{"frame too large", amqpwire.AppendFrameHeader(nil, amqpwire.FrameBody, 1, 1<<30), "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,1073741824,131064}"},
	{"heartbeat on a channel", rawFrame(amqpwire.FrameHeartbeat, 1), "UNEXPECTED_FRAME - type 8"},
	{"heartbeat with a payload", rawFrame(amqpwire.FrameHeartbeat, 0, 1), "FRAME_ERROR - type 8"},
	{"content on channel 0", header(0, 60, 5), "UNEXPECTED_FRAME - type 2"},
	{"method of nobody", rawFrame(amqpwire.FrameMethod, 1, 0, 99, 0, 1), "COMMAND_INVALID - "},
	{"method cut short", rawFrame(amqpwire.FrameMethod, 1, 0), "FRAME_ERROR - type 1"},
	{"arguments cut short", rawFrame(amqpwire.FrameMethod, 1, 0, 60, 0, 40, 0, 0, 9), "SYNTAX_ERROR - "},
	{"ack cut short", rawFrame(amqpwire.FrameMethod, 1, 0, 60, 0, 80, 0), "SYNTAX_ERROR - "},
	{"answer of a server", method(1, &amqpwire.QueueDeclareOk{Queue: "q"}), "COMMAND_INVALID - unimplemented method"},
	{"deliver from a client", method(1, &amqpwire.BasicDeliver{}), "COMMAND_INVALID - unimplemented method"},
	{"start-ok again", method(0, &amqpwire.ConnectionStartOk{}), "CHANNEL_ERROR - unexpected method in connection state running"},
	{"open again", method(0, &amqpwire.ConnectionOpen{}), "CHANNEL_ERROR - unexpected method in connection state running"},
	{"channel method on channel 0", method(0, &amqpwire.ChannelOpen{}), "CHANNEL_ERROR - unexpected method in connection state running"},
	{"second channel.open", method(1, &amqpwire.ChannelOpen{}), "CHANNEL_ERROR - second 'channel.open' seen"},
	{"method on an unknown channel", method(7, &amqpwire.BasicQos{}), "CHANNEL_ERROR - expected 'channel.open'"},
	{"publish on an unknown channel", publishHead(7), "CHANNEL_ERROR - expected 'channel.open'"},
	{"header on an unknown channel", header(7, 60, 1), "CHANNEL_ERROR - expected 'channel.open'"},
	{"body on an unknown channel", rawFrame(amqpwire.FrameBody, 7, 1), "CHANNEL_ERROR - expected 'channel.open'"},
	{"channel beyond the maximum", method(2048, &amqpwire.ChannelOpen{}), "NOT_ALLOWED - number of channels opened (1) has reached the negotiated channel_max (2047)"},
	{"header without a method", header(1, 60, 1), "UNEXPECTED_FRAME - expected method frame, got non method frame instead"},
	{"body without a method", rawFrame(amqpwire.FrameBody, 1, 1), "UNEXPECTED_FRAME - expected method frame, got non method frame instead"},
	{"body without a header", bytesOf(publishHead(1), rawFrame(amqpwire.FrameBody, 1, 1)), "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead"},
	{"method without a header", bytesOf(publishHead(1), publishHead(1)), "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead"},
	{"header of another class", bytesOf(publishHead(1), header(1, 50, 1)), "UNEXPECTED_FRAME - expected content header for class 60, got one for class 50 instead"},
	{"header cut short", bytesOf(publishHead(1), rawFrame(amqpwire.FrameHeader, 1, 0, 60)), "FRAME_ERROR - type 2"},
	{"second header", bytesOf(publishHead(1), header(1, 60, 5), header(1, 60, 5)), "UNEXPECTED_FRAME - expected content body, got non content body frame instead"},
	{"method in a body", bytesOf(publishHead(1), header(1, 60, 5), publishHead(1)), "UNEXPECTED_FRAME - expected content body, got non content body frame instead"},
	{"body too long", bytesOf(publishHead(1), header(1, 60, 2), rawFrame(amqpwire.FrameBody, 1, 1, 2, 3)), "FRAME_ERROR - content body of 3 bytes is larger than the 2 bytes announced"},
	{"properties cut short", bytesOf(publishHead(1), header(1, 60, 0, 0x80, 0, 200)), "SYNTAX_ERROR - truncated properties"},
	{"bytes behind the properties", bytesOf(publishHead(1), header(1, 60, 0, 0, 0, 1, 2)), "SYNTAX_ERROR - "},
	{"headers that lie", bytesOf(publishHead(1), header(1, 60, 0, 0x20, 0, 0, 0, 0, 5, 1, 'a', 'S', 0xff, 0xff)), "SYNTAX_ERROR - "},
	{"table that lies", rawFrame(amqpwire.FrameMethod, 1, 0, 50, 0, 10, 0, 0, 1, 'q', 0, 0, 0, 0, 3, 1, 'a', 'S'), "SYNTAX_ERROR - "},
}

func TestMalformedInput(t *testing.T) {
	r := newRig(t, Config{})
	for _, c := range malformed {
		t.Run(c.name, func(t *testing.T) {
			w := r.raw()
			w.t = t
			w.open().openChannel()
			w.send(c.sent)
			m := expectMethod[*amqpwire.ConnectionClose](w)
			if !strings.HasPrefix(m.ReplyText, c.text) || !strings.HasPrefix(m.ReplyText, m.ReplyCode.Name()) {
				t.Fatalf("got %d %q, want %q", m.ReplyCode, m.ReplyText, c.text)
			}
			// What comes now is ignored, until the answer.
			w.send(method(5, &amqpwire.ChannelOpen{}))
			w.method(0, &amqpwire.ConnectionCloseOk{})
			if m.ReplyCode == amqpwire.FrameError {
				w.nc.Close() // the server can't understand an answer any more
				return
			}
			w.wantClosed()
		})
	}
	eventually(t, "the connections to end", func() bool { return r.srv.Connections() == 0 })
}

// A channel that the server has closed ignores everything until the answer, then its
// number is free.
func TestClosedChannelIgnores(t *testing.T) {
	w := newRig(t, Config{MaxMessageBytes: 1000}).raw().open().openChannel()
	w.send(bytesOf(publishHead(1), header(1, 60, 1001), rawFrame(amqpwire.FrameBody, 1, make([]byte, 1001)...)))
	w.send(bytesOf(publishHead(1), header(1, 60, 5), method(1, &amqpwire.QueueDeclare{Queue: "q"})))
	m := expectMethod[*amqpwire.ChannelClose](w)
	if m.ReplyCode != 406 || m.ClassID != 60 || m.MethodID != 40 {
		t.Fatalf("got %+v", m)
	}
	w.send(bytesOf(method(1, &amqpwire.ChannelClose{ReplyCode: 200}))) // crossing ours
	expectMethod[*amqpwire.ChannelCloseOk](w)
	w.method(1, &amqpwire.ChannelCloseOk{})
	w.openChannel()
	w.method(1, &amqpwire.QueueDeclare{Queue: "", Exclusive: true})
	expectMethod[*amqpwire.QueueDeclareOk](w)
}

func TestNoWait(t *testing.T) {
	r := newRig(t, Config{})
	w := r.raw().open().openChannel()
	for _, m := range []amqpwire.Method{
		&amqpwire.ExchangeDeclare{Exchange: "x", Type: "topic", NoWait: true},
		&amqpwire.ExchangeDeclare{Exchange: "y", Type: "topic", NoWait: true},
		&amqpwire.QueueDeclare{Queue: "q", Durable: true, NoWait: true},
		&amqpwire.QueueBind{Queue: "q", Exchange: "x", RoutingKey: "#", NoWait: true},
		&amqpwire.ExchangeBind{Source: "y", Destination: "x", RoutingKey: "#", NoWait: true},
		&amqpwire.ConfirmSelect{NoWait: true},
		&amqpwire.BasicConsume{Queue: "q", ConsumerTag: "t", NoWait: true},
	} {
		w.method(1, m)
	}
	w.send(amqpwire.AppendPublish(nil, 1, "y", "k", false, false, nil, []byte("x"), 0))
	seen := map[string]int{}
	for range 4 {
		f, err := w.frame()
		ok(t, err)
		what := fmt.Sprint("frame ", f.Type)
		if f.Type == amqpwire.FrameMethod {
			id, _, _ := amqpwire.SplitMethod(f.Payload)
			what = id.String()
		}
		seen[what]++
	}
	if seen["basic.deliver"] != 1 || seen["frame 2"] != 1 || seen["frame 3"] != 1 || seen["basic.ack"] != 1 {
		t.Fatalf("got %v", seen)
	}
	for _, m := range []amqpwire.Method{
		&amqpwire.BasicCancel{ConsumerTag: "t", NoWait: true},
		&amqpwire.QueuePurge{Queue: "q", NoWait: true},
		&amqpwire.ExchangeUnbind{Source: "y", Destination: "x", RoutingKey: "#", NoWait: true},
		&amqpwire.QueueDelete{Queue: "q", NoWait: true},
		&amqpwire.ExchangeDelete{Exchange: "x", NoWait: true},
		&amqpwire.BasicRecoverAsync{Requeue: true},
	} {
		w.method(1, m)
	}
	w.method(1, &amqpwire.AccessRequest{})
	if m := expectMethod[*amqpwire.AccessRequestOk](w); m.Ticket != 1 {
		t.Fatalf("ticket %d", m.Ticket)
	}
	w.method(1, &amqpwire.ChannelFlow{Active: true})
	if m := expectMethod[*amqpwire.ChannelFlowOk](w); !m.Active {
		t.Fatal("flow is off")
	}
}

func TestReusedConsumerTag(t *testing.T) {
	w := newRig(t, Config{}).raw().open().openChannel()
	w.method(1, &amqpwire.QueueDeclare{Queue: "q"})
	expectMethod[*amqpwire.QueueDeclareOk](w)
	w.method(1, &amqpwire.BasicConsume{ConsumerTag: "t"})
	expectMethod[*amqpwire.BasicConsumeOk](w)
	w.method(1, &amqpwire.BasicConsume{})
	if m := expectMethod[*amqpwire.BasicConsumeOk](w); !strings.HasPrefix(m.ConsumerTag, "amq.ctag-") || len(m.ConsumerTag) != 31 {
		t.Fatalf("tag %q", m.ConsumerTag)
	}
	w.method(1, &amqpwire.BasicConsume{ConsumerTag: "t"})
	if m := expectMethod[*amqpwire.ConnectionClose](w); m.ReplyText != "NOT_ALLOWED - attempt to reuse consumer tag 't'" {
		t.Fatalf("got %+v", m)
	}
}

func TestTooManyChannels(t *testing.T) {
	w := newRig(t, Config{ChannelMax: 2}).raw().open()
	w.openChannel()
	w.method(2, &amqpwire.ChannelOpen{})
	expectMethod[*amqpwire.ChannelOpenOk](w)
	w.method(2, &amqpwire.ChannelClose{})
	expectMethod[*amqpwire.ChannelCloseOk](w)
	w.method(2, &amqpwire.ChannelOpen{})
	expectMethod[*amqpwire.ChannelOpenOk](w)
	w.method(3, &amqpwire.ChannelOpen{})
	if m := expectMethod[*amqpwire.ConnectionClose](w); m.ReplyText != "NOT_ALLOWED - number of channels opened (2) has reached the negotiated channel_max (2)" {
		t.Fatalf("got %+v", m)
	}
}

func TestTooManyConnections(t *testing.T) {
	r := newRig(t, Config{MaxConnections: 1})
	r.raw().open()
	r.raw().wantClosed()
}

// liveHeap returns what is on the heap.
func liveHeap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// flood sends b over and over until the server takes no more for a while, or total
// bytes are sent.
func (w *raw) flood(b []byte, total int) (sent int, stalled bool) {
	w.t.Helper()
	for sent < total {
		ok(w.t, w.nc.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
		n, err := w.nc.Write(b)
		sent += n
		if err != nil {
			return sent, true
		}
	}
	return sent, false
}

// smallSockets makes the kernel take little, so that a stall shows soon.
func smallSockets(t *testing.T, w *raw) *raw {
	t.Helper()
	tcp := w.nc.(*net.TCPConn)
	ok(t, tcp.SetReadBuffer(4096))
	ok(t, tcp.SetWriteBuffer(4096))
	return w
}

// A client that never reads what it asks for must not make the broker keep it.
func TestClientThatNeverReads(t *testing.T) {
	const total = 64 << 20
	for _, c := range []struct {
		name string
		b    []byte
	}{
		{"returns", amqpwire.AppendPublish(nil, 1, "amq.direct", "no", true, false, nil, make([]byte, 1000), 0)},
		{"answers", method(1, &amqpwire.BasicQos{PrefetchCount: 1})},
		{"gets", method(1, &amqpwire.BasicGet{Queue: "q"})},
		{"channels", bytesOf(method(2, &amqpwire.ChannelOpen{}), method(2, &amqpwire.ChannelClose{}))},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{CloseTimeout: 10 * time.Millisecond})
			ch := r.channel()
			declare(t, ch, "q")
			w := smallSockets(t, r.raw()).open().openChannel()
			before := liveHeap()
			_, stalled := w.flood(bytesOf(repeat(c.b, 64<<10/len(c.b)+1)...), total)
			if !stalled {
				t.Fatal("the server takes everything")
			}
			if grown := liveHeap() - before; grown > 8<<20 {
				t.Fatalf("the heap has grown by %d bytes", grown)
			}
		})
	}
}

func repeat(b []byte, n int) (list [][]byte) {
	for range n {
		list = append(list, b)
	}
	return list
}

// A consumer that doesn't read gets no more than the outbox's room.
func TestConsumerThatNeverReads(t *testing.T) {
	r := newRig(t, Config{CloseTimeout: 10 * time.Millisecond})
	ch := r.channel()
	declare(t, ch, "q")
	body := strings.Repeat("x", 10_000)
	for range 2000 {
		put(t, ch, "", "q", body)
	}
	must(ch.QueueDeclarePassive("q", true, false, false, false, nil))(t) // all are there
	w := smallSockets(t, r.raw()).open().openChannel()
	w.method(1, &amqpwire.BasicConsume{Queue: "q", NoWait: true})
	eventually(t, "deliveries", func() bool { return r.broker.counts("q").Unacked > 0 })
	stable, same := uint64(0), 0
	eventually(t, "deliveries to stop", func() bool {
		n := r.broker.counts("q").Unacked
		if same++; n != stable {
			stable, same = n, 0
		}
		return same > 50
	})
	if limit := uint64(3*outboxRoom+8<<20) / 10_000; stable > limit {
		t.Fatalf("%d messages of 10 kB are in flight", stable)
	}
	w.nc.Close()
	eventually(t, "the messages to come back", func() bool { return r.broker.counts("q").Ready == 2000 })
}

// While the broker takes no messages a publisher is stopped by its socket.
func TestPublishFloodWhileBlocked(t *testing.T) {
	r := newRig(t, Config{CloseTimeout: 10 * time.Millisecond})
	ch := r.channel()
	declare(t, ch, "q")
	w := smallSockets(t, r.raw()).open().openChannel()
	r.broker.block(true)
	message := amqpwire.AppendPublish(nil, 1, "", "q", false, false, nil, make([]byte, 1000), 0)
	before := liveHeap()
	sent, stalled := w.flood(message, 64<<20)
	if !stalled {
		t.Fatal("the server takes everything")
	}
	if grown := liveHeap() - before; grown > 8<<20 {
		t.Fatalf("the heap has grown by %d bytes", grown)
	}
	r.broker.block(false)
	eventually(t, "what was sent to arrive", func() bool { return r.broker.counts("q").Ready == uint64(sent/len(message)) })
}

// Memory for a body comes as the body does.
func TestAnnouncedBodiesCostNothing(t *testing.T) {
	r := newRig(t, Config{CloseTimeout: 10 * time.Millisecond})
	w := r.raw().open()
	before := liveHeap()
	for ch := uint16(1); ch <= 200; ch++ {
		w.send(method(ch, &amqpwire.ChannelOpen{}))
		expectMethod[*amqpwire.ChannelOpenOk](w)
		w.send(bytesOf(publishHead(ch), header(ch, 60, 128<<20), rawFrame(amqpwire.FrameBody, ch, 1)))
	}
	w.method(201, &amqpwire.ChannelOpen{})
	expectMethod[*amqpwire.ChannelOpenOk](w)
	if grown := liveHeap() - before; grown > 4<<20 {
		t.Fatalf("the heap has grown by %d bytes", grown)
	}
}

func TestIncompleteBodiesAreBounded(t *testing.T) {
	r := newRig(t, Config{MaxMessageBytes: 1 << 20, CloseTimeout: 10 * time.Millisecond})
	w := r.raw().open()
	piece := rawFrame(amqpwire.FrameBody, 1, make([]byte, 100_000)...)
	for ch := uint16(1); ch <= 100; ch++ {
		b := bytesOf(method(ch, &amqpwire.ChannelOpen{}), publishHead(ch), header(ch, 60, 1<<20))
		for range 10 {
			binary.BigEndian.PutUint16(piece[1:], ch)
			b = append(b, piece...)
		}
		if _, err := w.nc.Write(b); err != nil {
			break
		}
	}
	for {
		_, m := w.next()
		if m, is := m.(*amqpwire.ConnectionClose); is {
			if m.ReplyCode != amqpwire.ResourceError {
				t.Fatalf("got %+v", m)
			}
			return
		}
	}
}

func TestTransactionsAreBounded(t *testing.T) {
	r := newRig(t, Config{CloseTimeout: 10 * time.Millisecond})
	w := r.raw().open().openChannel()
	w.method(1, &amqpwire.TxSelect{})
	expectMethod[*amqpwire.TxSelectOk](w)
	message := amqpwire.AppendPublish(nil, 1, "", "q", false, false, nil, make([]byte, 1<<20), 131072)
	for range 70 {
		if _, err := w.nc.Write(message); err != nil {
			break
		}
	}
	if m := expectMethod[*amqpwire.ConnectionClose](w); m.ReplyCode != amqpwire.ResourceError {
		t.Fatalf("got %+v", m)
	}
}

// Contents of several channels may be mixed, and come byte by byte.
func TestInterleavedContents(t *testing.T) {
	r := newRig(t, Config{})
	ch := r.channel()
	declare(t, ch, "q")
	w := r.raw().open().openChannel()
	w.method(2, &amqpwire.ChannelOpen{})
	expectMethod[*amqpwire.ChannelOpenOk](w)
	b := bytesOf(publishHead(1), publishHead(2), header(2, 60, 4), header(1, 60, 6),
		rawFrame(amqpwire.FrameBody, 1, 'a', 'b'), rawFrame(amqpwire.FrameBody, 2, '1'), rawFrame(amqpwire.FrameBody, 1, 'c', 'd', 'e'),
		rawFrame(amqpwire.FrameBody, 2, '2', '3', '4'), rawFrame(amqpwire.FrameBody, 1, 'f'))
	for i := range b {
		w.send(b[i : i+1])
	}
	in := consume(t, ch, "q")
	got, _ := bodies(t, in, 2)
	wantList(t, got, "1234", "abcdef")
}

// A server that is told to stop cuts off clients that don't answer.
func TestShutdownWithDeafClients(t *testing.T) {
	r := newRig(t, Config{})
	r.raw().open()
	r.raw() // in the handshake
	ctx, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer stop()
	if err := r.srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if n := r.srv.Connections(); n != 0 {
		t.Fatalf("%d connections left", n)
	}
}

// TestHalfOpenConnectionsKeepNobodyOut: many connections that never log in, more than
// there may be in all; whoever logs in is served, and who is logged in stays.
func TestHalfOpenConnectionsKeepNobodyOut(t *testing.T) {
	r := newRig(t, Config{MaxConnections: 8, MaxHandshakes: 4})
	first := r.raw().open()
	var idle []net.Conn
	for range 40 {
		nc, err := net.Dial("tcp", r.addr)
		ok(t, err)
		t.Cleanup(func() { _ = nc.Close() })
		_, _ = nc.Write([]byte("AMQP")) // it may be cut off already
		idle = append(idle, nc)
	}
	for range 5 { // 6 that are logged in leave room for 2 that aren't
		r.raw().open()
	}
	_, err := idle[0].Read(make([]byte, 1)) // the oldest was cut off
	for err == nil {
		_, err = idle[0].Read(make([]byte, 1))
	}
	first.send(amqpwire.AppendHeartbeat(nil))
	eventually(t, "the half-open ones to be cut off", func() bool { return r.srv.Connections() <= 8 })
}

// flakyListener fails a few times for want of file descriptors.
type flakyListener struct {
	net.Listener
	left int
}

func (l *flakyListener) Accept() (net.Conn, error) {
	if l.left > 0 {
		l.left--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// TestAcceptWithoutDescriptors: errors of accept end the waiting, not the server.
func TestAcceptWithoutDescriptors(t *testing.T) {
	srv := NewServer(newFakeBroker(), Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(&flakyListener{l, 5}) }()
	nc, err := net.Dial("tcp", l.Addr().String())
	ok(t, err)
	defer nc.Close()
	_, err = nc.Write([]byte("AMQP\x00\x00\x09\x01"))
	ok(t, err)
	_, err = nc.Read(make([]byte, 8)) // connection.start
	ok(t, err)
	ok(t, srv.Shutdown(t.Context()))
	if err := <-served; !errors.Is(err, ErrServerClosed) {
		t.Fatal(err)
	}
}
