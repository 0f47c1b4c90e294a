package amqpwire

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func wantError(t *testing.T, err error, code ReplyCode, text string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error", err)
	}
	if e.Code != code || !strings.Contains(e.Error(), text) {
		t.Fatalf("got %d %q, want %d with %q", e.Code, e.Error(), code, text)
	}
}

func TestParseFrameKnownBytes(t *testing.T) {
	wire := []byte{1, 0, 7, 0, 0, 0, 4, 0, 20, 0, 41, 0xCE}
	rest := append(bytes.Clone(wire), 8, 0, 0)
	for i := range wire {
		if f, n, err := ParseFrame(wire[:i], 4096); n != 0 || err != nil || f.Payload != nil {
			t.Fatalf("prefix of %d bytes: %v %d %v", i, f, n, err)
		}
	}
	f, n, err := ParseFrame(rest, 4096)
	if err != nil || n != len(wire) || f.Type != FrameMethod || f.Channel != 7 || !bytes.Equal(f.Payload, wire[7:11]) {
		t.Fatalf("got %v %d %v", f, n, err)
	}
	if &f.Payload[0] != &rest[7] || cap(f.Payload) != len(f.Payload) {
		t.Fatal("the payload is not a clipped view")
	}
	if got := AppendFrame(nil, f); !bytes.Equal(got, wire) {
		t.Fatalf("AppendFrame: % x", got)
	}
	if got := FrameSize(rest[:7]); got != uint64(len(wire)) {
		t.Fatalf("FrameSize = %d", got)
	}
	if FrameSize(rest[:6]) != 0 {
		t.Fatal("FrameSize of an incomplete header")
	}
}

func TestParseFrameErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		wire []byte
		code ReplyCode
		text string
	}{
		{"unknown type at once", []byte{4}, FrameError, "FRAME_ERROR - type 4, all octets = <<>>: unknown_frame"},
		{"unknown type", []byte{9, 0, 0, 0, 0, 0, 0}, FrameError, "type 9, all octets = <<>>: unknown_frame"},
		{
			"too large before the payload is there",
			[]byte{3, 0, 1, 0, 2, 0, 1},
			FrameError,
			"FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,131073,131064}",
		},
		{
			"wrong end",
			[]byte{3, 0, 1, 0, 0, 0, 2, 5, 255, 0xCD},
			FrameError,
			"FRAME_ERROR - type 3, all octets = <<5,255>>: {invalid_frame_end_marker,205}",
		},
		{"heartbeat with a payload", []byte{8, 0, 0, 0, 0, 0, 1}, FrameError, "type 8, all octets = <<>>: unknown_frame"},
		{"heartbeat on a channel", []byte{8, 0, 1, 0, 0, 0, 0}, UnexpectedFrame, "UNEXPECTED_FRAME - type 8, all octets = <<>>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, n, err := ParseFrame(c.wire, 131072)
			if n != 0 {
				t.Fatalf("n = %d", n)
			}
			wantError(t, err, c.code, c.text)
		})
	}
}

func TestParseFrameLimits(t *testing.T) {
	frame := func(size int) []byte {
		return AppendFrame(nil, Frame{Type: FrameBody, Channel: 1, Payload: make([]byte, size)})
	}
	for _, c := range []struct {
		size     int
		frameMax uint32
		ok       bool
	}{
		{4088, 4096, true},
		{4096, 4096, true}, // RabbitMQ's tolerance
		{4097, 4096, false},
		{1 << 20, 0, true},
	} {
		wire := frame(c.size)
		_, n, err := ParseFrame(wire, c.frameMax)
		if (err == nil) != c.ok || c.ok && n != len(wire) {
			t.Errorf("size %d, frame-max %d: n %d, %v", c.size, c.frameMax, n, err)
		}
	}
	// The largest size there is must not overflow.
	if _, n, err := ParseFrame([]byte{3, 0, 1, 255, 255, 255, 255, 1, 2}, 0); n != 0 || err != nil {
		t.Fatalf("n %d, %v", n, err)
	}
}

func TestHeartbeat(t *testing.T) {
	wire := AppendHeartbeat(nil)
	f, n, err := ParseFrame(wire, 4096)
	if err != nil || n != 8 || f.Type != FrameHeartbeat || len(f.Payload) != 0 {
		t.Fatalf("got %v %d %v", f, n, err)
	}
}

func TestProtocolHeader(t *testing.T) {
	wire := []byte("AMQP\x00\x00\x09\x01rest")
	for i := range ProtocolHeaderSize {
		if _, n, err := ParseProtocolHeader(wire[:i]); n != 0 || err != nil {
			t.Fatalf("prefix of %d bytes: %d %v", i, n, err)
		}
	}
	h, n, err := ParseProtocolHeader(wire)
	if err != nil || n != 8 || h != Header091 || !h.Is091() {
		t.Fatalf("got %v %d %v", h, n, err)
	}
	if got := h.Append(nil); !bytes.Equal(got, wire[:8]) {
		t.Fatalf("Append: % x", got)
	}
	h, _, err = ParseProtocolHeader([]byte("AMQP\x03\x01\x00\x00"))
	if err != nil || h != Header10SASL || h.Is091() {
		t.Fatalf("got %v %v", h, err)
	}
	if !Header09.Is091() {
		t.Fatal("0-9 is served as 0-9-1")
	}
	for _, bad := range []string{"G", "AMX", "GET / HTTP/1.1\r\n", "\x16\x03\x01"} {
		if _, _, err := ParseProtocolHeader([]byte(bad)); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestReplyText(t *testing.T) {
	if got := ReplyText(NotFound, "no queue 'q' in vhost '/'"); got != "NOT_FOUND - no queue 'q' in vhost '/'" {
		t.Fatal(got)
	}
	prefix := "NOT_FOUND - "
	exact := strings.Repeat("x", 255-len(prefix))
	if got := ReplyText(NotFound, exact); got != prefix+exact {
		t.Fatal("a text of 255 bytes was cut")
	}
	if got := ReplyText(NotFound, exact+"x"); len(got) != 255 || !strings.HasSuffix(got, "x...") {
		t.Fatalf("%d bytes: %s", len(got), got)
	}
	for shift := range 4 {
		got := ReplyText(NotFound, strings.Repeat("a", shift)+strings.Repeat("𝄞", 100))
		if len(got) > 255 || len(got) < 252 || !utf8.ValidString(got) {
			t.Fatalf("%d bytes: %q", len(got), got)
		}
	}
	if got := ReplyText(NotFound, strings.Repeat("\x80", 300)); len(got) != 255 {
		t.Fatalf("%d bytes", len(got))
	}
}

func TestReplyCodes(t *testing.T) {
	soft := []ReplyCode{ContentTooLarge, NoRoute, NoConsumers, AccessRefused, NotFound, ResourceLocked, PreconditionFailed}
	hard := []ReplyCode{
		ConnectionForced, InvalidPath, FrameError, SyntaxError, CommandInvalid, ChannelError,
		UnexpectedFrame, ResourceError, NotAllowed, NotImplemented, InternalError,
	}
	for _, c := range soft {
		if c.Hard() || strings.ContainsAny(c.Name(), "0123456789") {
			t.Errorf("%v: hard %v", c, c.Hard())
		}
	}
	for _, c := range hard {
		if !c.Hard() || strings.ContainsAny(c.Name(), "0123456789") {
			t.Errorf("%v: hard %v", c, c.Hard())
		}
	}
	if s := ReplyCode(599).String(); s != "599 599" {
		t.Error(s)
	}
	if s := PreconditionFailed.String(); s != "406 PRECONDITION_FAILED" {
		t.Error(s)
	}
}

func FuzzParseFrame(f *testing.F) {
	method, _ := AppendMethodFrame(nil, 1, &ChannelOpen{})
	deliver := AppendDeliver(nil, 3, "tag", 1, false, "ex", "key", RawProps{0, 0}, []byte("body"), 4096)
	for _, seed := range [][]byte{method, deliver, AppendHeartbeat(nil), deliver[:9]} {
		f.Add(seed, uint32(4096))
		f.Add(seed, uint32(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, frameMax uint32) {
		frame, n, err := ParseFrame(b, frameMax)
		if err != nil || n == 0 {
			if n != 0 || frame.Payload != nil {
				t.Fatalf("n %d and a payload with %v", n, err)
			}
			return
		}
		if again := AppendFrame(nil, frame); !bytes.Equal(again, b[:n]) {
			t.Fatalf("% x became % x", b[:n], again)
		}
		if uint64(n) != FrameSize(b) {
			t.Fatalf("n %d, FrameSize %d", n, FrameSize(b))
		}
		// A prefix must never be judged differently, only as incomplete.
		if _, m, err := ParseFrame(b[:n-1], frameMax); m != 0 || err != nil {
			t.Fatalf("prefix: %d %v", m, err)
		}
	})
}
