package amqpwire

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// sampleTable is a raw table with every field type in it.
func sampleTable(t testing.TB) RawTable {
	t.Helper()
	nested, err := TableValue(Table{{"inner", Int64(-5)}, {"void", Void()}})
	if err != nil {
		t.Fatal(err)
	}
	array, err := ArrayValue(String("a"), Int32(-2), nested)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := Table{
		{"t", Bool(true)},
		{"b", Int8(-8)},
		{"B", Uint8(200)},
		{"s", Int16(-300)},
		{"u", Uint16(60000)},
		{"I", Int32(-70000)},
		{"i", Uint32(4_000_000_000)},
		{"l", Int64(-1 << 60)},
		{"f", Float32(1.5)},
		{"d", Float64(-2.25)},
		{"D", Decimal(2, 12345)},
		{"S", String("long string")},
		{"x", Bytes([]byte{0, 1, 2})},
		{"T", Timestamp(1_700_000_000)},
		{"V", Void()},
		{"F", nested},
		{"A", array},
	}.Raw()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// randomMethod fills all fields of the method with values.
func randomMethod(t testing.TB, r *rand.Rand, m Method) {
	t.Helper()
	v := reflect.ValueOf(m).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		switch p := f.Addr().Interface().(type) {
		case *bool:
			*p = r.IntN(2) == 0
		case *uint8:
			*p = uint8(r.Uint32())
		case *uint16:
			*p = uint16(r.Uint32())
		case *uint32:
			*p = r.Uint32()
		case *uint64:
			*p = r.Uint64()
		case *ReplyCode:
			*p = ReplyCode(r.Uint32())
		case *string:
			*p = strings.Repeat("x", r.IntN(256))
		case *[]byte:
			*p = bytes.Repeat([]byte("y"), 1+r.IntN(300))
		case *RawTable:
			*p = sampleTable(t)
		default:
			t.Fatalf("%T has a field of type %v", m, f.Type())
		}
	}
}

func TestEveryMethodRoundTrips(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	if len(methods) != 66 {
		t.Fatalf("%d methods", len(methods))
	}
	for id, spec := range methods {
		t.Run(spec.name, func(t *testing.T) {
			if spec.alloc().ID() != id || id.String() != spec.name {
				t.Fatalf("%v is registered as %v", spec.alloc().ID(), id)
			}
			for range 20 {
				m := spec.alloc()
				randomMethod(t, r, m)
				wire, err := AppendMethodFrame([]byte("before"), 9, m)
				if err != nil {
					t.Fatal(err)
				}
				f, n, err := ParseFrame(wire[6:], 0)
				if err != nil || n != len(wire)-6 || f.Channel != 9 || f.Type != FrameMethod {
					t.Fatalf("%v %d %v", f, n, err)
				}
				got, err := ParseMethod(f.Payload)
				if err != nil || !reflect.DeepEqual(got, m) {
					t.Fatalf("got  %+v, %v\nwant %+v", got, err, m)
				}
				for i := range len(f.Payload) {
					if _, err := ParseMethod(f.Payload[:i]); err == nil {
						t.Fatalf("prefix of %d bytes of %d accepted", i, len(f.Payload))
					}
				}
				_, err = ParseMethod(append(bytes.Clone(f.Payload), 0))
				wantError(t, err, SyntaxError, "cannot decode "+spec.name+": bytes behind")
			}
		})
	}
}

// TestMethodsKnownBytes has bytes worked out by hand from the specification.
func TestMethodsKnownBytes(t *testing.T) {
	args := RawTable("\x0dx-message-ttlI\x00\x00\x03\xe8")
	for _, c := range []struct {
		m    Method
		wire string
	}{
		{&ConnectionTune{2047, 131072, 60}, "\x00\x0a\x00\x1e\x07\xff\x00\x02\x00\x00\x00\x3c"},
		{&ConnectionOpen{"/"}, "\x00\x0a\x00\x28\x01/\x00\x00"},
		{&ConnectionClose{NotAllowed, "no", 10, 40}, "\x00\x0a\x00\x32\x02\x12\x02no\x00\x0a\x00\x28"},
		{&ConnectionBlocked{"low"}, "\x00\x0a\x00\x3c\x03low"},
		{&ConnectionUpdateSecret{[]byte("s"), "r"}, "\x00\x0a\x00\x46\x00\x00\x00\x01s\x01r"},
		{&ChannelOpen{}, "\x00\x14\x00\x0a\x00"},
		{&ChannelOpenOk{}, "\x00\x14\x00\x0b\x00\x00\x00\x00"},
		{&AccessRequest{Realm: "/data", Passive: true, Read: true}, "\x00\x1e\x00\x0a\x05/data\x12"},
		{&AccessRequestOk{1}, "\x00\x1e\x00\x0b\x00\x01"},
		{
			&ExchangeDeclare{Exchange: "e", Type: "topic", Durable: true, Internal: true},
			"\x00\x28\x00\x0a\x00\x00\x01e\x05topic\x0a\x00\x00\x00\x00",
		},
		{&ExchangeUnbindOk{}, "\x00\x28\x00\x33"},
		{
			&QueueDeclare{Queue: "q", Durable: true, NoWait: true, Arguments: args},
			"\x00\x32\x00\x0a\x00\x00\x01q\x12\x00\x00\x00\x13" + string(args),
		},
		{&QueueUnbind{Queue: "q", Exchange: "e"}, "\x00\x32\x00\x32\x00\x00\x01q\x01e\x00\x00\x00\x00\x00"},
		{&QueueDelete{Queue: "q", IfEmpty: true}, "\x00\x32\x00\x28\x00\x00\x01q\x02"},
		{&BasicQos{0, 10, true}, "\x00\x3c\x00\x0a\x00\x00\x00\x00\x00\x0a\x01"},
		{&BasicConsume{Queue: "q", ConsumerTag: "c", NoAck: true}, "\x00\x3c\x00\x14\x00\x00\x01q\x01c\x02\x00\x00\x00\x00"},
		{&BasicPublish{"e", "k", true, false}, "\x00\x3c\x00\x28\x00\x00\x01e\x01k\x01"},
		{&BasicReturn{NoRoute, "NO_ROUTE", "e", "k"}, "\x00\x3c\x00\x32\x01\x38\x08NO_ROUTE\x01e\x01k"},
		{&BasicDeliver{"c", 5, true, "e", "k"}, "\x00\x3c\x00\x3c\x01c\x00\x00\x00\x00\x00\x00\x00\x05\x01\x01e\x01k"},
		{&BasicGetOk{5, false, "e", "k", 9}, "\x00\x3c\x00\x47\x00\x00\x00\x00\x00\x00\x00\x05\x00\x01e\x01k\x00\x00\x00\x09"},
		{&BasicGetEmpty{}, "\x00\x3c\x00\x48\x00"},
		{&BasicNack{7, true, true}, "\x00\x3c\x00\x78\x00\x00\x00\x00\x00\x00\x00\x07\x03"},
		{&BasicReject{7, true}, "\x00\x3c\x00\x5a\x00\x00\x00\x00\x00\x00\x00\x07\x01"},
		{&BasicRecoverAsync{true}, "\x00\x3c\x00\x64\x01"},
		{&BasicRecoverOk{}, "\x00\x3c\x00\x6f"},
		{&ConfirmSelect{true}, "\x00\x55\x00\x0a\x01"},
		{&TxRollbackOk{}, "\x00\x5a\x00\x1f"},
	} {
		got, err := AppendMethod(nil, c.m)
		if err != nil || string(got) != c.wire {
			t.Errorf("%v: got %q, %v, want %q", c.m.ID(), got, err, c.wire)
		}
		m, err := ParseMethod([]byte(c.wire))
		if err != nil || !reflect.DeepEqual(m, c.m) {
			t.Errorf("%v: parsed %+v, %v", c.m.ID(), m, err)
		}
	}
}

func TestMethodErrors(t *testing.T) {
	_, err := ParseMethod([]byte{0, 60, 0, 41})
	wantError(t, err, CommandInvalid, "COMMAND_INVALID - unimplemented method")
	var e *Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	if c := e.Close(); c.ClassID != 60 || c.MethodID != 41 || c.ReplyCode != CommandInvalid {
		t.Fatalf("%+v", c)
	}
	if s := MethodID(60<<16 | 41).String(); s != "method 60.41" {
		t.Fatal(s)
	}
	_, err = ParseMethod([]byte{0, 60, 0})
	wantError(t, err, FrameError, "type 1, all octets = <<0,60,0>>")

	// A size that exceeds the payload must not be trusted.
	_, err = ParseMethod([]byte{0, 10, 0, 20, 0xff, 0xff, 0xff, 0xff, 1})
	wantError(t, err, SyntaxError, "SYNTAX_ERROR - cannot decode connection.secure: truncated arguments")

	_, err = ParseMethod([]byte("\x00\x32\x00\x0a\x00\x00\x01q\x02\x00\x00\x00\x03\x01aZ"))
	wantError(t, err, SyntaxError, "cannot decode queue.declare: unknown field type 90")

	before := []byte("before")
	got, err := AppendMethodFrame(before, 1, &QueueDeclare{Queue: strings.Repeat("x", 256)})
	wantError(t, err, SyntaxError, "cannot encode queue.declare: short string of more than 255 bytes")
	if !bytes.Equal(got, before) {
		t.Fatalf("dst is %q", got)
	}
	_, err = AppendMethod(nil, &QueueDeclare{Arguments: RawTable("\x01")})
	wantError(t, err, SyntaxError, "truncated field table")
}

func TestParsedMethodOwnsItsMemory(t *testing.T) {
	wire, err := AppendMethod(nil, &ConnectionStartOk{
		ClientProperties: sampleTable(t), Mechanism: "PLAIN", Response: []byte("\x00guest\x00guest"), Locale: "en_US",
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseMethod(wire)
	if err != nil {
		t.Fatal(err)
	}
	clear(wire)
	got := m.(*ConnectionStartOk)
	if got.Mechanism != "PLAIN" || string(got.Response) != "\x00guest\x00guest" || !bytes.Equal(got.ClientProperties, sampleTable(t)) {
		t.Fatalf("%+v", got)
	}
}

func TestContentMethods(t *testing.T) {
	for id, spec := range methods {
		want := false
		switch spec.name {
		case "basic.publish", "basic.return", "basic.deliver", "basic.get-ok":
			want = true
		}
		if id.HasContent() != want {
			t.Errorf("%v: HasContent is %v", id, id.HasContent())
		}
	}
}

func FuzzParseMethod(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, spec := range methods {
		m := spec.alloc()
		randomMethod(f, r, m)
		wire, err := AppendMethod(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMethod(b)
		checkHotParsers(t, b, m, err)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T: %v", err, err)
			}
			_ = e.Close()
			return
		}
		wire, err := AppendMethod(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseMethod(wire)
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}

// checkHotParsers demands that the parsers without allocation agree with
// ParseMethod, whose result for b is m or err.
func checkHotParsers(t *testing.T, b []byte, m Method, err error) {
	t.Helper()
	id, args, splitErr := SplitMethod(b)
	if splitErr != nil {
		return
	}
	var got Method
	var hotErr error
	switch id {
	case IDBasicPublish:
		var v PublishView
		v, hotErr = ParsePublish(args)
		got = &BasicPublish{string(v.Exchange), string(v.RoutingKey), v.Mandatory, v.Immediate}
	case IDBasicDeliver:
		var v DeliverView
		v, hotErr = ParseDeliver(args)
		got = &BasicDeliver{string(v.ConsumerTag), v.DeliveryTag, v.Redelivered, string(v.Exchange), string(v.RoutingKey)}
	case IDBasicAck:
		var v BasicAck
		v, hotErr = ParseAck(args)
		got = &v
	case IDBasicNack:
		var v BasicNack
		v, hotErr = ParseNack(args)
		got = &v
	case IDBasicReject:
		var v BasicReject
		v, hotErr = ParseReject(args)
		got = &v
	default:
		return
	}
	if fmt.Sprint(err) != fmt.Sprint(hotErr) {
		t.Fatalf("%v: %v and %v", id, err, hotErr)
	}
	if err == nil && !reflect.DeepEqual(got, m) {
		t.Fatalf("%v: %+v and %+v", id, m, got)
	}
}
