package amqpwire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// scriptedServer answers a client with this package's codec: enough of a broker
// to take one publish after the other and hand it back. Owned by the goroutine
// in run; methods is read after that has ended.
type scriptedServer struct {
	conn     net.Conn
	frameMax uint32
	methods  []Method
	props    []RawProps
	bodies   [][]byte
	// publish is the content being read.
	publish *BasicPublish
	left    uint64
	out     []byte
	tag     uint64
}

const clientFrameMax = FrameMinSize

// run reads until the client closes the connection.
func (s *scriptedServer) run() error {
	var in []byte
	buf := make([]byte, 1000) // small, so that frames come in pieces
	started := false
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		in = append(in, buf[:n]...)
		if !started {
			h, n, err := ParseProtocolHeader(in)
			if err != nil || n > 0 && !h.Is091() {
				return fmt.Errorf("header %v, %w", h, err)
			}
			if n == 0 {
				continue
			}
			in, started = in[n:], true
			s.send(0, &ConnectionStart{
				VersionMinor: 9, ServerProperties: RawTable("\x07productS\x00\x00\x00\x08RabbitMQ"),
				Mechanisms: []byte("PLAIN AMQPLAIN"), Locales: []byte("en_US"),
			})
		}
		for {
			f, n, err := ParseFrame(in, s.frameMax)
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
			if err := s.frame(f); err != nil {
				return err
			}
			in = in[n:]
		}
		if err := s.flush(); err != nil {
			return err
		}
	}
}

func (s *scriptedServer) flush() error {
	_, err := s.conn.Write(s.out)
	s.out = s.out[:0]
	return err
}

func (s *scriptedServer) send(channel uint16, m Method) {
	out, err := AppendMethodFrame(s.out, channel, m)
	if err != nil {
		panic(err)
	}
	s.out = out
}

func (s *scriptedServer) frame(f Frame) error {
	switch f.Type {
	case FrameMethod:
		m, err := ParseMethod(f.Payload)
		if err != nil {
			return err
		}
		s.methods = append(s.methods, m)
		return s.method(f.Channel, m)
	case FrameHeader:
		h, err := ParseContentHeader(f.Payload)
		if err != nil {
			return err
		}
		if err := h.Props.Validate(); err != nil {
			return err
		}
		s.props = append(s.props, bytes.Clone(h.Props))
		s.bodies = append(s.bodies, nil)
		s.left = h.BodySize
	case FrameBody:
		last := len(s.bodies) - 1
		s.bodies[last] = append(s.bodies[last], f.Payload...)
		s.left -= uint64(len(f.Payload))
	default:
		return nil
	}
	if s.left == 0 {
		s.finishPublish(f.Channel)
	}
	return nil
}

// finishPublish delivers or returns the message and confirms it.
func (s *scriptedServer) finishPublish(channel uint16) {
	p, props, body := s.publish, s.props[len(s.props)-1], s.bodies[len(s.bodies)-1]
	s.tag++
	if p.Mandatory {
		s.out = AppendReturn(s.out, channel, NoRoute, "NO_ROUTE", p.Exchange, p.RoutingKey, props, body, s.frameMax)
	} else {
		s.out = AppendDeliver(s.out, channel, "consumer", s.tag, true, p.Exchange, p.RoutingKey, props, body, s.frameMax)
	}
	if p.RoutingKey == "nack" {
		s.out = AppendNack(s.out, channel, s.tag, false, false)
	} else {
		s.out = AppendAck(s.out, channel, s.tag, false)
	}
}

func (s *scriptedServer) method(channel uint16, m Method) error {
	switch m := m.(type) {
	case *ConnectionStartOk:
		s.send(0, &ConnectionTune{ChannelMax: 2047, FrameMax: s.frameMax})
	case *ConnectionOpen:
		s.send(0, &ConnectionOpenOk{})
	case *ConnectionClose:
		s.send(0, &ConnectionCloseOk{})
	case *ConnectionUpdateSecret:
		s.send(0, &ConnectionUpdateSecretOk{})
		s.send(0, &ConnectionBlocked{"low on memory"})
		s.send(0, &ConnectionUnblocked{})
	case *ChannelOpen:
		s.send(channel, &ChannelOpenOk{})
	case *ChannelClose:
		s.send(channel, &ChannelCloseOk{})
	case *ExchangeDeclare:
		s.send(channel, &ExchangeDeclareOk{})
	case *ExchangeDelete:
		s.send(channel, &ExchangeDeleteOk{})
	case *ExchangeBind:
		s.send(channel, &ExchangeBindOk{})
	case *ExchangeUnbind:
		s.send(channel, &ExchangeUnbindOk{})
	case *QueueDeclare:
		s.send(channel, &QueueDeclareOk{"amq.gen-1", 3, 4})
	case *QueueBind:
		s.send(channel, &QueueBindOk{})
	case *QueueUnbind:
		s.send(channel, &QueueUnbindOk{})
	case *QueuePurge:
		s.send(channel, &QueuePurgeOk{5})
	case *QueueDelete:
		s.send(channel, &QueueDeleteOk{6})
	case *BasicQos:
		s.send(channel, &BasicQosOk{})
	case *BasicConsume:
		s.send(channel, &BasicConsumeOk{m.ConsumerTag})
	case *BasicCancel:
		s.send(channel, &BasicCancelOk{m.ConsumerTag})
	case *BasicPublish:
		s.publish = m
	case *BasicGet:
		if m.NoAck {
			s.send(channel, &BasicGetEmpty{})
		} else {
			s.out = AppendGetOk(s.out, channel, 77, true, "gx", "gk", 8, RawProps("\x10\x00\x02"), []byte("got"), s.frameMax)
		}
	case *BasicRecover:
		s.send(channel, &BasicRecoverOk{})
	case *ConfirmSelect:
		s.send(channel, &ConfirmSelectOk{})
	case *TxSelect:
		s.send(channel, &TxSelectOk{})
	case *TxCommit:
		s.send(channel, &TxCommitOk{})
	case *TxRollback:
		s.send(channel, &TxRollbackOk{})
	case *ConnectionTuneOk, *BasicAck, *BasicNack, *BasicReject, *ChannelFlowOk:
	default:
		return fmt.Errorf("no answer to %v", m.ID())
	}
	return nil
}

// startClient connects amqp091-go with a scripted server over a pipe. stop
// closes the connection and waits for the server.
func startClient(t *testing.T) (c *amqp.Connection, s *scriptedServer, stop func()) {
	t.Helper()
	ours, theirs := net.Pipe()
	s = &scriptedServer{conn: ours, frameMax: clientFrameMax}
	done := make(chan error, 1)
	go func() {
		err := s.run()
		_ = ours.Close() // lets the client end in case of an error
		done <- err
	}()
	c, err := amqp.Open(theirs, amqp.Config{
		SASL:       []amqp.Authentication{&amqp.PlainAuth{Username: "guest", Password: "guest"}},
		Vhost:      "/",
		Properties: amqp.Table{"connection_name": "codec test"},
		Locale:     "en_US",
		FrameSize:  clientFrameMax,
	})
	if err != nil {
		_ = ours.Close()
		t.Fatal(err, <-done)
	}
	return c, s, func() {
		t.Helper()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestClientPublishAndDeliver sends headers of every type that the client has,
// and a body of several frames, and wants the same message back.
func TestClientPublishAndDeliver(t *testing.T) {
	c, s, stop := startClient(t)
	ch, err := c.Channel()
	must(t, err)
	must(t, ch.Confirm(false))
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, 4))
	returns := ch.NotifyReturn(make(chan amqp.Return, 4))
	deliveries, err := ch.Consume("q", "consumer", false, true, false, false, amqp.Table{"x-priority": int32(5)})
	must(t, err)

	now := time.Unix(1_700_000_000, 0)
	headers := amqp.Table{
		"bool": true, "byte": byte(200), "int8": int8(-1), "int16": int16(-2), "uint16": uint16(65535),
		"int32": int32(-3), "uint32": uint32(1 << 31), "int64": int64(-1 << 60),
		"float32": float32(1.5), "float64": 2.5, "decimal": amqp.Decimal{Scale: 2, Value: 314},
		"string": "text", "bytes": []byte{0, 1}, "time": now, "nil": nil,
		"array": []any{int32(1), "two", nil, []any{true}}, "table": amqp.Table{"inner": amqp.Table{"deep": int64(1)}},
	}
	msg := amqp.Publishing{
		Headers: headers, ContentType: "text/plain", ContentEncoding: "utf-8", DeliveryMode: amqp.Persistent,
		Priority: 7, CorrelationId: "corr", ReplyTo: "reply", Expiration: "1000", MessageId: "msg",
		Timestamp: now, Type: "type", UserId: "guest", AppId: "app", Body: bytes.Repeat([]byte("body"), 3000),
	}
	must(t, ch.Publish("ex", "key", false, false, msg))
	d := receive(t, deliveries)
	if !reflect.DeepEqual(d.Headers, headers) {
		t.Errorf("headers came back as %v", d.Headers)
	}
	if !bytes.Equal(d.Body, msg.Body) || d.Exchange != "ex" || d.RoutingKey != "key" || !d.Redelivered || d.DeliveryTag != 1 {
		t.Errorf("delivered %s %s %v %d with %d bytes", d.Exchange, d.RoutingKey, d.Redelivered, d.DeliveryTag, len(d.Body))
	}
	if cf := receive(t, confirms); !cf.Ack || cf.DeliveryTag != 1 {
		t.Errorf("confirm %+v", cf)
	}
	must(t, d.Ack(true))

	must(t, ch.Publish("ex", "nack", true, false, amqp.Publishing{Body: []byte("lost")}))
	if r := receive(t, returns); r.ReplyCode != amqp.NoRoute || r.ReplyText != "NO_ROUTE" || string(r.Body) != "lost" {
		t.Errorf("return %+v", r)
	}
	if cf := receive(t, confirms); cf.Ack || cf.DeliveryTag != 2 {
		t.Errorf("confirm %+v", cf)
	}
	stop()

	p, err := ParseProperties(s.props[0])
	must(t, err)
	raw := p.Headers
	p.Headers = nil
	want := Properties{
		Flags:       0xFFF8, // all but cluster-id
		ContentType: "text/plain", ContentEncoding: "utf-8", DeliveryMode: Persistent, Priority: 7,
		CorrelationID: "corr", ReplyTo: "reply", Expiration: "1000", MessageID: "msg",
		Timestamp: 1_700_000_000, Type: "type", UserID: "guest", AppID: "app",
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("properties came as %+v", p)
	}
	checkClientHeaders(t, raw, len(headers))
	if !hasMethod(s, &BasicAck{1, true}) || !hasMethod(s, &BasicConsume{Queue: "q", ConsumerTag: "consumer", Exclusive: true, Arguments: RawTable("\x0ax-priorityI\x00\x00\x00\x05")}) {
		t.Errorf("the client's methods: %+v", s.methods)
	}
}

func checkClientHeaders(t *testing.T, raw RawTable, count int) {
	t.Helper()
	table, err := ParseTable(raw)
	if err != nil || len(table) != count {
		t.Fatalf("%d headers, %v", len(table), err)
	}
	for key, want := range map[string]Value{
		"bool": Bool(true), "byte": Uint8(200), "int8": Int8(-1), "int16": Int16(-2), "uint16": Uint16(65535),
		"int32": Int32(-3), "uint32": Uint32(1 << 31), "int64": Int64(-1 << 60), "float32": Float32(1.5),
		"float64": Float64(2.5), "decimal": Decimal(2, 314), "string": String("text"),
		"bytes": Bytes([]byte{0, 1}), "time": Timestamp(1_700_000_000), "nil": Void(),
	} {
		if got, ok := LookupTable(raw, key); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("header %s is %v %v, want %v", key, got.Type(), got, want)
		}
	}
	v, _ := LookupTable(raw, "table")
	inner, _ := v.Table()
	v, _ = LookupTable(inner, "inner")
	deep, _ := v.Table()
	if v, ok := LookupTable(deep, "deep"); !ok || !reflect.DeepEqual(v, Int64(1)) {
		t.Errorf("nested table: %v %v", v, ok)
	}
	v, _ = LookupTable(raw, "array")
	content, _ := v.Array()
	if vs, err := ParseArray(content); err != nil || len(vs) != 4 || !reflect.DeepEqual(vs[1], String("two")) {
		t.Errorf("array: %v %v", vs, err)
	}
}

func hasMethod(s *scriptedServer, want Method) bool {
	for _, m := range s.methods {
		if reflect.DeepEqual(m, want) {
			return true
		}
	}
	return false
}

// TestClientMethods calls everything else that the client offers and looks at
// both ends.
func TestClientMethods(t *testing.T) {
	c, s, stop := startClient(t)
	blocked := c.NotifyBlocked(make(chan amqp.Blocking, 2))
	must(t, c.UpdateSecret("token", "expires"))
	if b := receive(t, blocked); !b.Active || b.Reason != "low on memory" {
		t.Errorf("blocked: %+v", b)
	}
	if b := receive(t, blocked); b.Active {
		t.Errorf("unblocked: %+v", b)
	}

	ch, err := c.Channel()
	must(t, err)
	callObjectMethods(t, ch)
	callBasicMethods(t, ch)
	must(t, ch.Tx())
	must(t, ch.TxCommit())
	must(t, ch.TxRollback())
	must(t, ch.Close())
	stop()

	for _, want := range []Method{
		&ConnectionUpdateSecret{[]byte("token"), "expires"},
		&ConnectionTuneOk{2047, clientFrameMax, 0},
		&ConnectionOpen{"/"},
		&ExchangeDeclare{
			Exchange: "x", Type: "topic", Durable: true, Internal: true,
			Arguments: RawTable("\x12alternate-exchangeS\x00\x00\x00\x02ae"),
		},
		&ExchangeBind{Destination: "dst", Source: "src", RoutingKey: "key"},
		&ExchangeUnbind{Destination: "dst", Source: "src", RoutingKey: "key"},
		&ExchangeDelete{"x", true, false},
		&QueueDeclare{Exclusive: true, AutoDelete: true},
		&QueueBind{Queue: "q", Exchange: "x", RoutingKey: "k"},
		&QueueUnbind{Queue: "q", Exchange: "x", RoutingKey: "k"},
		&QueuePurge{"q", false},
		&QueueDelete{"q", true, true, false},
		&BasicQos{0, 10, true},
		&BasicGet{"q", false},
		&BasicNack{77, true, true},
		&BasicReject{77, true},
		&TxSelect{}, &TxCommit{}, &TxRollback{},
		&ChannelClose{ReplyCode: 200, ReplyText: ""},
	} {
		if !hasMethod(s, want) {
			t.Errorf("the client sent no %v as %+v", want.ID(), want)
		}
	}
	start, ok := s.methods[0].(*ConnectionStartOk)
	if !ok || start.Mechanism != "PLAIN" || string(start.Response) != "\x00guest\x00guest" {
		t.Fatalf("start-ok: %+v", s.methods[0])
	}
	if v, ok := LookupTable(start.ClientProperties, "connection_name"); !ok || v.String() != "codec test" {
		t.Errorf("connection_name is %v", v)
	}
}

// callObjectMethods calls the exchange and queue classes.
func callObjectMethods(t *testing.T, ch *amqp.Channel) {
	t.Helper()
	must(t, ch.ExchangeDeclare("x", "topic", true, false, true, false, amqp.Table{"alternate-exchange": "ae"}))
	must(t, ch.ExchangeBind("dst", "key", "src", false, nil))
	must(t, ch.ExchangeUnbind("dst", "key", "src", false, nil))
	must(t, ch.ExchangeDelete("x", true, false))
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	must(t, err)
	if q.Name != "amq.gen-1" || q.Messages != 3 || q.Consumers != 4 {
		t.Errorf("queue %+v", q)
	}
	must(t, ch.QueueBind("q", "k", "x", false, nil))
	must(t, ch.QueueUnbind("q", "k", "x", nil))
	if n, err := ch.QueuePurge("q", false); err != nil || n != 5 {
		t.Error(n, err)
	}
	if n, err := ch.QueueDelete("q", true, true, false); err != nil || n != 6 {
		t.Error(n, err)
	}
}

// callBasicMethods calls what the basic class has besides publish and consume.
func callBasicMethods(t *testing.T, ch *amqp.Channel) {
	t.Helper()
	must(t, ch.Qos(10, 0, true))
	d, ok, err := ch.Get("q", false)
	if err != nil || !ok || d.DeliveryTag != 77 || d.MessageCount != 8 || string(d.Body) != "got" || d.DeliveryMode != 2 {
		t.Errorf("get: %+v %v %v", d, ok, err)
	}
	must(t, d.Nack(true, true))
	must(t, d.Reject(true))
	if _, ok, err := ch.Get("q", true); ok || err != nil {
		t.Error(ok, err)
	}
}
