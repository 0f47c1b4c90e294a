package amqpwire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// content is what readContent makes of method, header and body frames.
type content struct {
	method  Method
	props   RawProps
	body    []byte
	bodies  int
	largest int
}

func readContent(t *testing.T, wire []byte, channel uint16) content {
	t.Helper()
	var c content
	var size uint64
	for i := 0; len(wire) > 0; i++ {
		f, n, err := ParseFrame(wire, 0)
		if err != nil || n == 0 || f.Channel != channel {
			t.Fatalf("frame %d: %+v %d %v", i, f, n, err)
		}
		wire = wire[n:]
		switch {
		case i == 0 && f.Type == FrameMethod:
			if c.method, err = ParseMethod(f.Payload); err != nil {
				t.Fatal(err)
			}
			if !c.method.ID().HasContent() {
				t.Fatalf("%v has no content", c.method.ID())
			}
		case i == 1 && f.Type == FrameHeader:
			h, err := ParseContentHeader(f.Payload)
			if err != nil || h.Class != ClassBasic {
				t.Fatalf("%+v %v", h, err)
			}
			c.props, size = h.Props, h.BodySize
		case i > 1 && f.Type == FrameBody:
			c.bodies++
			c.largest = max(c.largest, n)
			c.body = append(c.body, f.Payload...)
		default:
			t.Fatalf("frame %d has type %d", i, f.Type)
		}
	}
	if size != uint64(len(c.body)) {
		t.Fatalf("body of %d bytes, announced as %d", len(c.body), size)
	}
	return c
}

func TestAppendContents(t *testing.T) {
	props := encodeProps(t, allProperties(t))
	body := bytes.Repeat([]byte("0123456789"), 1000)
	exchange, key := []byte("ex"), []byte("key")
	for name, c := range map[string]struct {
		wire, head []byte
		want       Method
	}{
		"deliver": {
			AppendDeliver(nil, 5, "tag", 1<<40, true, exchange, key, props, body, 4096),
			AppendDeliverHead(nil, 5, "tag", 1<<40, true, "ex", "key", props, uint64(len(body))),
			&BasicDeliver{"tag", 1 << 40, true, "ex", "key"},
		},
		"get-ok": {
			AppendGetOk(nil, 5, 7, false, exchange, key, 99, props, body, 4096),
			AppendGetOkHead(nil, 5, 7, false, "ex", "key", 99, props, uint64(len(body))),
			&BasicGetOk{7, false, "ex", "key", 99},
		},
		"return": {
			AppendReturn(nil, 5, NoRoute, "NO_ROUTE", exchange, key, props, body, 4096),
			AppendReturnHead(nil, 5, NoRoute, "NO_ROUTE", "ex", "key", props, uint64(len(body))),
			&BasicReturn{NoRoute, "NO_ROUTE", "ex", "key"},
		},
		"publish": {
			AppendPublish(nil, 5, exchange, key, true, true, props, body, 4096),
			nil,
			&BasicPublish{"ex", "key", true, true},
		},
	} {
		got := readContent(t, c.wire, 5)
		if !reflect.DeepEqual(got.method, c.want) || !bytes.Equal(got.props, props) || !bytes.Equal(got.body, body) {
			t.Errorf("%s: %+v", name, got)
		}
		if got.bodies != 3 || got.largest != 4096 {
			t.Errorf("%s: %d body frames of at most %d bytes", name, got.bodies, got.largest)
		}
		if c.head != nil && !bytes.HasPrefix(c.wire, c.head) {
			t.Errorf("%s: the head differs", name)
		}
		if c.head != nil && len(c.wire)-len(c.head) != BodyFramesSize(len(body), 4096) {
			t.Errorf("%s: BodyFramesSize = %d", name, BodyFramesSize(len(body), 4096))
		}
	}
}

func TestAppendDeliverKnownBytes(t *testing.T) {
	got := AppendDeliver(nil, 1, "c", 2, false, "e", "k", RawProps("\x10\x00\x02"), []byte("hi"), 4096)
	want := "\x01\x00\x01\x00\x00\x00\x13\x00\x3c\x00\x3c\x01c\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01e\x01k\xce" +
		"\x02\x00\x01\x00\x00\x00\x0f\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x10\x00\x02\xce" +
		"\x03\x00\x01\x00\x00\x00\x02hi\xce"
	if string(got) != want {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
}

func TestBodyFrames(t *testing.T) {
	for _, c := range []struct {
		size     int
		frameMax uint32
		frames   int
	}{
		{0, 4096, 0},
		{1, 4096, 1},
		{4088, 4096, 1},
		{4089, 4096, 2},
		{8176, 4096, 2},
		{1 << 20, 0, 1},
		{5, 3, 5}, // nonsense, but finite
	} {
		body := bytes.Repeat([]byte{7}, c.size)
		wire := AppendBodyFrames(nil, 2, body, c.frameMax)
		if len(wire) != c.size+c.frames*FrameOverhead || len(wire) != BodyFramesSize(c.size, c.frameMax) {
			t.Errorf("%d bytes, frame-max %d: %d on the wire, BodyFramesSize %d",
				c.size, c.frameMax, len(wire), BodyFramesSize(c.size, c.frameMax))
		}
	}
	// A body that is streamed in pieces is the same content.
	wire := AppendDeliverHead(nil, 2, "c", 1, false, "", "q", nil, 6000)
	for range 3 {
		wire = AppendBodyFrames(wire, 2, make([]byte, 2000), 4096)
	}
	if c := readContent(t, wire, 2); c.bodies != 3 || string(c.props) != "\x00\x00" {
		t.Errorf("%+v", c)
	}
}

// TestLongNamesAreCut: other protocols have longer names than a short string.
func TestLongNamesAreCut(t *testing.T) {
	long := strings.Repeat("x", 254) + "é" + strings.Repeat("x", 1000)
	c := readContent(t, AppendDeliver(nil, 1, long, 1, false, []byte(long), []byte(long), nil, nil, 4096), 1)
	m := c.method.(*BasicDeliver)
	for _, s := range []string{m.ConsumerTag, m.Exchange, m.RoutingKey} {
		if len(s) != 254 || !utf8.ValidString(s) {
			t.Fatalf("%d bytes: %q", len(s), s)
		}
	}
	full := strings.Repeat("x", 255)
	head := AppendDeliverHead(nil, 1, full, 1, false, full, full, nil, 0)
	if len(head) > MaxHeadSize {
		t.Fatalf("head of %d bytes, MaxHeadSize is %d", len(head), MaxHeadSize)
	}
	if head := AppendReturnHead(nil, 1, 312, full, full, full, nil, 0); len(head) > MaxHeadSize {
		t.Fatalf("head of %d bytes, MaxHeadSize is %d", len(head), MaxHeadSize)
	}
}

func TestSettleFrames(t *testing.T) {
	for _, c := range []struct {
		wire []byte
		want Method
	}{
		{AppendAck(nil, 4, 77, true), &BasicAck{77, true}},
		{AppendAck(nil, 4, 77, false), &BasicAck{77, false}},
		{AppendNack(nil, 4, 77, true, false), &BasicNack{77, true, false}},
		{AppendNack(nil, 4, 77, false, true), &BasicNack{77, false, true}},
		{AppendReject(nil, 4, 77, true), &BasicReject{77, true}},
	} {
		want, err := AppendMethodFrame(nil, 4, c.want)
		if err != nil || !bytes.Equal(c.wire, want) {
			t.Errorf("%v: % x, want % x", c.want.ID(), c.wire, want)
		}
		f, _, err := ParseFrame(c.wire, 4096)
		if err != nil {
			t.Fatal(err)
		}
		m, err := ParseMethod(f.Payload)
		checkHotParsers(t, f.Payload, m, err)
	}
}

func TestHotParserErrors(t *testing.T) {
	for _, m := range []Method{
		&BasicPublish{"exchange", "key", true, false},
		&BasicDeliver{"tag", 7, true, "exchange", "key"},
		&BasicAck{1, true},
		&BasicNack{1, true, true},
		&BasicReject{1, true},
	} {
		payload, err := AppendMethod(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		payload = append(payload, 0)
		for i := 4; i <= len(payload); i++ {
			want, err := ParseMethod(payload[:i])
			checkHotParsers(t, payload[:i], want, err)
			if (err == nil) != (i == len(payload)-1) {
				t.Fatalf("%v: %d bytes of %d: %v", m.ID(), i, len(payload), err)
			}
		}
	}
}

func TestContentHeaderErrors(t *testing.T) {
	wire := AppendContentHeader(nil, 1, RawProps{0, 0}, 1<<40)
	payload := wire[FrameHeaderSize : len(wire)-1]
	h, err := ParseContentHeader(payload)
	if err != nil || h.BodySize != 1<<40 || h.Class != ClassBasic || len(h.Props) != 2 {
		t.Fatalf("%+v %v", h, err)
	}
	_, err = ParseContentHeader(payload[:13])
	wantError(t, err, FrameError, "type 2, all octets = <<0,60,0,0,0,0,1,0,0,0,0,0,0>>: unknown_frame")
	payload[3] = 1
	_, err = ParseContentHeader(payload)
	wantError(t, err, UnexpectedFrame, "got non content header frame instead")
}

func TestUnexpectedFrameText(t *testing.T) {
	e := UnexpectedFrameError(Frame{Type: FrameBody, Payload: bytes.Repeat([]byte{1}, 20)})
	want := "UNEXPECTED_FRAME - type 3, first 16 octets = <<1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1>>"
	if e.Error() != want {
		t.Fatal(e)
	}
}

// hotPublish is one message as a client sends it: three frames.
func hotPublish(t testing.TB, body int) []byte {
	props := encodeProps(t, Properties{ContentType: "text/plain", DeliveryMode: Persistent, MessageID: "0123456789"})
	return AppendPublish(nil, 1, "", "orders", false, false, props, make([]byte, body), 131072)
}

// parsePublish reads the three frames as a connection does; it returns how many
// bytes they have.
func parsePublish(wire []byte) (read int, err error) {
	for read < len(wire) {
		f, n, err := ParseFrame(wire[read:], 131072)
		if err != nil || n == 0 {
			return read, err
		}
		switch f.Type {
		case FrameMethod:
			id, args, err := SplitMethod(f.Payload)
			if err != nil {
				return read, err
			}
			if id == IDBasicPublish {
				if _, err = ParsePublish(args); err != nil {
					return read, err
				}
			}
		case FrameHeader:
			h, err := ParseContentHeader(f.Payload)
			if err != nil {
				return read, err
			}
			if err := h.Props.Validate(); err != nil {
				return read, err
			}
		}
		read += n
	}
	return read, nil
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	publish := hotPublish(t, 100)
	ack := AppendAck(nil, 1, 9, true)
	table := sampleTable(t)
	all := encodeProps(t, allProperties(t))
	body := make([]byte, 10000)
	exchange, key := []byte("exchange"), []byte("key")
	dst := make([]byte, 0, 1<<16)
	sum := uint64(0)
	for name, fn := range map[string]func(){
		"publish": func() {
			if n, err := parsePublish(publish); err != nil || n != len(publish) {
				t.Error(n, err)
			}
		},
		"ack": func() {
			f, _, _ := ParseFrame(ack, 4096)
			_, args, _ := SplitMethod(f.Payload)
			m, _ := ParseAck(args)
			sum += m.DeliveryTag
		},
		"deliver":        func() { dst = AppendDeliver(dst[:0], 1, "tag", 9, false, exchange, key, all, body, 4096) },
		"return":         func() { dst = AppendReturn(dst[:0], 1, NoRoute, "NO_ROUTE", exchange, key, all, body, 4096) },
		"confirm":        func() { dst = AppendNack(AppendAck(dst[:0], 1, 9, true), 1, 10, false, false) },
		"validate table": func() { _ = ValidateTable(table) },
		"range table": func() {
			_ = RangeTable(table, func(k []byte, v Value) bool { sum += uint64(len(k)); return true })
		},
		"lookup": func() {
			v, _ := LookupTable(table, "T")
			n, _ := v.Int64()
			sum += uint64(n)
		},
		"props": func() {
			_ = all.Validate()
			v, _ := all.UserID()
			h, _ := all.Headers()
			sum += uint64(len(v) + len(h))
		},
		"set header": func() { dst, _ = AppendPropsWithHeader(dst[:0], all, "x-delivery-count", Int64(1)) },
		"compare":    func() { _ = SameValue(Int64(1), Float64(1)) },
	} {
		if n := testing.AllocsPerRun(100, fn); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	_ = sum
}

func BenchmarkParsePublish(b *testing.B) {
	wire := hotPublish(b, 1024)
	b.ReportAllocs()
	b.SetBytes(int64(len(wire)))
	for b.Loop() {
		if n, err := parsePublish(wire); err != nil || n != len(wire) {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkAppendDeliver(b *testing.B) {
	props := encodeProps(b, Properties{ContentType: "text/plain", DeliveryMode: Persistent, MessageID: "0123456789"})
	exchange, key, body := []byte("exchange"), []byte("key"), make([]byte, 1024)
	dst := AppendDeliver(nil, 1, "tag", 1, false, exchange, key, props, body, 131072)
	b.ReportAllocs()
	b.SetBytes(int64(len(dst)))
	for b.Loop() {
		dst = AppendDeliver(dst[:0], 1, "tag", 1, false, exchange, key, props, body, 131072)
	}
}

func BenchmarkParseAck(b *testing.B) {
	wire := AppendAck(nil, 1, 9, true)
	b.ReportAllocs()
	for b.Loop() {
		f, _, err := ParseFrame(wire, 131072)
		if err != nil {
			b.Fatal(err)
		}
		_, args, _ := SplitMethod(f.Payload)
		if m, err := ParseAck(args); err != nil || !m.Multiple {
			b.Fatal(m, err)
		}
	}
}

func BenchmarkAppendAck(b *testing.B) {
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendAck(dst[:0], 1, 9, true)
	}
}

func BenchmarkSetDeliveryCount(b *testing.B) {
	props := encodeProps(b, Properties{DeliveryMode: Persistent, Headers: RawTable("\x01ab\x01\x01kb\x02")})
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = AppendPropsWithHeader(dst[:0], props, "x-delivery-count", Int64(1))
	}
}

func BenchmarkLookupTable(b *testing.B) {
	table := sampleTable(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := LookupTable(table, "CC"); ok {
			b.Fatal("found")
		}
	}
}
