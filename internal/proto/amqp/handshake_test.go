package amqp

import (
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

func TestWrongProtocolHeaders(t *testing.T) {
	r := newRig(t, Config{})
	for _, sent := range []string{
		"AMQP\x00\x00\x09\x02", "AMQP\x03\x01\x00\x00", "AMQP\x00\x01\x00\x00", "AMQP\x01\x01\x08\x00",
		"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00", "x",
	} {
		w := r.raw()
		w.send([]byte(sent))
		got := make([]byte, 8)
		ok(t, w.nc.SetReadDeadline(time.Now().Add(waitTime)))
		if _, err := io.ReadFull(w.nc, got); err != nil || string(got) != "AMQP\x00\x00\x09\x01" {
			t.Errorf("%q is answered with %q, %v", sent, got, err)
		}
		w.wantClosed()
	}
}

func TestOldHeaderIsServed(t *testing.T) {
	w := newRig(t, Config{}).raw()
	w.send(amqpwire.Header09.Append(nil))
	expectMethod[*amqpwire.ConnectionStart](w)
}

func TestServerProperties(t *testing.T) {
	w := newRig(t, Config{Properties: amqpwire.Table{{Key: "extra", Value: amqpwire.Int32(1)}}}).raw()
	w.send(amqpwire.Header091.Append(nil))
	start := expectMethod[*amqpwire.ConnectionStart](w)
	if string(start.Mechanisms) != "PLAIN AMQPLAIN" || string(start.Locales) != "en_US" || start.VersionMajor != 0 || start.VersionMinor != 9 {
		t.Errorf("start %+v", start)
	}
	for key, want := range map[string]string{"product": "RabbitMQ", "version": "3.13.7", "extra": "1"} {
		if v, _ := amqpwire.LookupTable(start.ServerProperties, key); v.String() != want {
			t.Errorf("%s is %s", key, v)
		}
	}
	v, _ := amqpwire.LookupTable(start.ServerProperties, "capabilities")
	caps, _ := v.Table()
	for _, name := range []string{"publisher_confirms", "basic.nack", "consumer_cancel_notify", "connection.blocked", "per_consumer_qos"} {
		if v, _ := amqpwire.LookupTable(caps, name); v.String() != "true" {
			t.Errorf("capability %s is %s", name, v)
		}
	}
}

// login sends a start-ok and returns the answer, nil if the socket was closed.
func login(w *raw, props amqpwire.Table, mechanism string, response []byte) amqpwire.Method {
	w.t.Helper()
	w.send(amqpwire.Header091.Append(nil))
	expectMethod[*amqpwire.ConnectionStart](w)
	w.method(0, &amqpwire.ConnectionStartOk{
		ClientProperties: must(props.Raw())(w.t), Mechanism: mechanism, Response: response, Locale: "en_US",
	})
	f, err := w.frame()
	if err != nil {
		return nil
	}
	return must(amqpwire.ParseMethod(f.Payload))(w.t)
}

func TestLogin(t *testing.T) {
	r := newRig(t, Config{})
	amqplain := func(user, password string) []byte {
		return must(amqpwire.Table{
			{Key: "LOGIN", Value: amqpwire.String(user)}, {Key: "PASSWORD", Value: amqpwire.String(password)},
		}.Append(nil))(t)
	}
	const refused = "ACCESS_REFUSED - Login was refused using authentication mechanism "
	for _, c := range []struct {
		name, mechanism string
		response        []byte
		want            string // "" for tune
	}{
		{"plain", "PLAIN", []byte("\x00guest\x00guest"), ""},
		{"plain with authzid", "PLAIN", []byte("guest\x00guest\x00guest"), ""},
		{"amqplain", "AMQPLAIN", amqplain("guest", "guest"), ""},
		{"wrong password", "PLAIN", []byte("\x00guest\x00no"), refused + "PLAIN. For details see the broker logfile."},
		{"amqplain wrong", "AMQPLAIN", amqplain("guest", "no"), refused + "AMQPLAIN. For details see the broker logfile."},
		{"malformed", "PLAIN", []byte("guest"), "SYNTAX_ERROR - response of mechanism PLAIN invalid"},
		{"amqplain malformed", "AMQPLAIN", []byte("\x05"), "SYNTAX_ERROR - AMQPLAIN auth info is missing LOGIN or PASSWORD field"},
		{"unknown", "FOO", nil, "COMMAND_INVALID - unknown authentication mechanism 'FOO'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := r.raw()
			w.t = t
			switch m := login(w, wellBehaved, c.mechanism, c.response).(type) {
			case *amqpwire.ConnectionTune:
				if c.want != "" {
					t.Fatal("let in")
				}
				if m.FrameMax != 131072 || m.ChannelMax != 2047 || m.Heartbeat != 60 {
					t.Fatalf("tune %+v", m)
				}
			case *amqpwire.ConnectionClose:
				if m.ReplyText != c.want {
					t.Fatalf("got %q, want %q", m.ReplyText, c.want)
				}
				w.method(0, &amqpwire.ConnectionCloseOk{})
				w.wantClosed()
			default:
				t.Fatalf("got %+v", m)
			}
		})
	}
}

// A client without the capability could take connection.close for a fault of the server.
func TestRefusedLoginWithoutCapability(t *testing.T) {
	w := newRig(t, Config{}).raw()
	if m := login(w, nil, "PLAIN", []byte("\x00guest\x00no")); m != nil {
		t.Fatalf("got %+v", m)
	}
}

func TestTune(t *testing.T) {
	r := newRig(t, Config{})
	for _, c := range []struct {
		tune amqpwire.ConnectionTuneOk
		want string
	}{
		{amqpwire.ConnectionTuneOk{}, ""},
		{amqpwire.ConnectionTuneOk{FrameMax: 4096, ChannelMax: 1}, ""},
		{amqpwire.ConnectionTuneOk{FrameMax: 131072, ChannelMax: 2047, Heartbeat: 65535}, ""},
		{amqpwire.ConnectionTuneOk{FrameMax: 4095}, "NOT_ALLOWED - negotiated frame_max = 4095 is lower than the minimum allowed value (4096)"},
		{amqpwire.ConnectionTuneOk{FrameMax: 131073}, "NOT_ALLOWED - negotiated frame_max = 131073 is higher than the maximum allowed value (131072)"},
		{amqpwire.ConnectionTuneOk{ChannelMax: 2048}, "NOT_ALLOWED - negotiated channel_max = 2048 is higher than the maximum allowed value (2047)"},
	} {
		w := r.raw()
		login(w, wellBehaved, "PLAIN", []byte("\x00guest\x00guest"))
		w.method(0, &c.tune)
		w.method(0, &amqpwire.ConnectionOpen{VirtualHost: "/"})
		switch _, m := w.next(); m := m.(type) {
		case *amqpwire.ConnectionOpenOk:
			if c.want != "" {
				t.Errorf("%+v is accepted", c.tune)
			}
		case *amqpwire.ConnectionClose:
			if m.ReplyText != c.want {
				t.Errorf("%+v: %s", c.tune, m.ReplyText)
			}
		}
	}
}

func TestOpenVHost(t *testing.T) {
	w := newRig(t, Config{}).raw()
	login(w, wellBehaved, "PLAIN", []byte("\x00guest\x00guest"))
	w.method(0, &amqpwire.ConnectionTuneOk{})
	w.method(0, &amqpwire.ConnectionOpen{VirtualHost: "no"})
	if m := expectMethod[*amqpwire.ConnectionClose](w); m.ReplyText != "NOT_ALLOWED - vhost no not found" || m.ClassID != 10 || m.MethodID != 40 {
		t.Fatalf("got %+v", m)
	}
	w.method(0, &amqpwire.ConnectionCloseOk{})
	w.wantClosed()
}

func TestMethodsOutOfOrderInHandshake(t *testing.T) {
	r := newRig(t, Config{})
	for _, m := range []amqpwire.Method{
		&amqpwire.ConnectionOpen{VirtualHost: "/"}, &amqpwire.ConnectionTuneOk{}, &amqpwire.ChannelOpen{},
	} {
		w := r.raw()
		w.send(amqpwire.Header091.Append(nil))
		expectMethod[*amqpwire.ConnectionStart](w)
		w.method(0, m)
		got := expectMethod[*amqpwire.ConnectionClose](w)
		if got.ReplyText != "CHANNEL_ERROR - unexpected method in connection state starting" {
			t.Errorf("%s: %s", m.ID(), got.ReplyText)
		}
	}
	w := r.raw()
	w.send(amqpwire.Header091.Append(nil))
	expectMethod[*amqpwire.ConnectionStart](w)
	w.method(0, &amqpwire.ConnectionClose{ReplyCode: 200})
	expectMethod[*amqpwire.ConnectionCloseOk](w)
	w.wantClosed()
}

// inBubble runs fn with a connection over net.Pipe in virtual time.
func inBubble(t *testing.T, cfg Config, fn func(t *testing.T, b *fakeBroker, w *raw)) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBroker()
		s := NewServer(b, cfg)
		mine, theirs := net.Pipe()
		s.ServeConn(theirs)
		fn(t, b, &raw{t: t, nc: mine})
		mine.Close()
		ok(t, s.Shutdown(t.Context()))
	})
}

func TestHandshakeTimeout(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, _ *fakeBroker, w *raw) {
		start := time.Now()
		w.send([]byte("AMQP"))
		w.wantClosedAfter(start, 10*time.Second)
	})
	// One byte now and then doesn't help.
	inBubble(t, Config{}, func(t *testing.T, _ *fakeBroker, w *raw) {
		start := time.Now()
		w.send(amqpwire.Header091.Append(nil))
		expectMethod[*amqpwire.ConnectionStart](w)
		frame := frameOf(t, 0, &amqpwire.ConnectionStartOk{Mechanism: "PLAIN", Response: []byte("\x00guest\x00guest"), Locale: "en_US"})
		for _, b := range frame {
			time.Sleep(2 * time.Second)
			if _, err := w.nc.Write([]byte{b}); err != nil {
				break
			}
		}
		w.wantClosedAfter(start, 10*time.Second)
	})
}

// wantClosedAfter reads to the end and checks when that was.
func (w *raw) wantClosedAfter(start time.Time, want time.Duration) {
	w.t.Helper()
	for {
		if _, err := w.nc.Read(make([]byte, 1024)); err != nil {
			break
		}
	}
	if got := time.Since(start); got < want || got > want+2*time.Second {
		w.t.Fatalf("closed after %v, want %v", got, want)
	}
}

func TestHeartbeats(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, _ *fakeBroker, w *raw) {
		w.hb = 10
		w.open()
		start := time.Now()
		w.buf = nil
		beats := 0
		b := make([]byte, 64)
		for time.Since(start) < 60*time.Second {
			n, err := w.nc.Read(b)
			if err != nil || n != 8 || b[0] != byte(amqpwire.FrameHeartbeat) {
				t.Fatalf("read %v, %v", b[:n], err)
			}
			beats++
			w.send(amqpwire.AppendHeartbeat(nil))
		}
		if beats < 6 || beats > 13 {
			t.Fatalf("%d heartbeats in a minute at 10 s", beats)
		}
		// A client that has gone silent is dead after twice the heartbeat.
		w.wantClosedAfter(time.Now(), 20*time.Second)
	})
}

// The time that the broker itself doesn't read is not counted as the client's silence.
func TestHeartbeatsWhileBlocked(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, b *fakeBroker, w *raw) {
		w.hb = 10
		w.open().openChannel()
		go func() {
			for {
				if _, err := w.nc.Read(make([]byte, 4096)); err != nil {
					return
				}
			}
		}()
		b.block(true)
		written := make(chan struct{})
		go func() {
			message := amqpwire.AppendPublish(nil, 1, "", "q", false, false, nil, make([]byte, 1000), 0)
			for range 2000 {
				w.send(message)
			}
			close(written)
		}()
		time.Sleep(10 * time.Minute)
		b.block(false)
		<-written
		time.Sleep(15 * time.Second)
		w.send(amqpwire.AppendHeartbeat(nil))
	})
}

// A client learns after connection.open-ok that the broker takes no messages.
func TestBlockedFromTheBeginning(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, b *fakeBroker, w *raw) {
		b.blocked = true
		w.open()
		if m := expectMethod[*amqpwire.ConnectionBlocked](w); m.Reason != "low on disk" {
			t.Fatalf("got %+v", m)
		}
	})
}

func TestNoHeartbeats(t *testing.T) {
	inBubble(t, Config{}, func(_ *testing.T, _ *fakeBroker, w *raw) {
		w.open()
		time.Sleep(24 * time.Hour)
		w.openChannel()
	})
}

func TestCloseTimeout(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, _ *fakeBroker, w *raw) {
		w.open()
		w.send([]byte{9, 9, 9, 9, 9, 9, 9, 9})
		start := time.Now()
		if m := expectMethod[*amqpwire.ConnectionClose](w); m.ReplyCode != amqpwire.FrameError || !strings.HasPrefix(m.ReplyText, "FRAME_ERROR - type 9") {
			t.Fatalf("got %+v", m)
		}
		w.wantClosedAfter(start, 5*time.Second)
	})
}

// The read buffer grows while there is much to read and is small again when nothing
// comes any more.
func TestReadBufferShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine, theirs := net.Pipe()
		c := newConn(NewServer(newFakeBroker(), Config{}), theirs)
		c.in.limit = readBusyBytes
		go func() {
			_, _ = mine.Write(make([]byte, 4<<20))
			time.Sleep(2 * idleAfter)
			_, _ = mine.Write([]byte{1})
		}()
		most, total := 0, 0
		for total <= 4<<20 {
			ok(t, c.fill())
			most = max(most, len(c.in.b))
			total += c.in.w - c.in.r
			c.in.r = c.in.w
		}
		if most != readBusyBytes || len(c.in.b) != readIdleBytes {
			t.Fatalf("buffer of %d bytes when busy, %d when idle", most, len(c.in.b))
		}
		mine.Close()
	})
}
