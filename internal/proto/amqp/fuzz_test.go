package amqp

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// FuzzConnection sends arbitrary bytes over an open connection. Whatever they are, the
// connection ends when the client goes, and the session is closed.
func FuzzConnection(f *testing.F) {
	open := method(1, &amqpwire.ChannelOpen{})
	f.Add([]byte{})
	for _, c := range malformed {
		f.Add(bytesOf(open, c.sent))
	}
	f.Add(bytesOf(open,
		method(1, &amqpwire.QueueDeclare{Queue: "q"}), method(1, &amqpwire.ConfirmSelect{}),
		method(1, &amqpwire.BasicConsume{Queue: "q"}),
		amqpwire.AppendPublish(nil, 1, "", "q", true, false, nil, []byte("body"), 0),
		amqpwire.AppendAck(nil, 1, 1, false), amqpwire.AppendNack(nil, 1, 0, true, true), amqpwire.AppendReject(nil, 1, 2, true),
		method(1, &amqpwire.BasicGet{Queue: "q"}), method(1, &amqpwire.BasicRecover{Requeue: true}),
		method(1, &amqpwire.BasicCancel{ConsumerTag: "t"}), method(1, &amqpwire.QueueDelete{Queue: "q"}),
		method(1, &amqpwire.ChannelClose{}), method(0, &amqpwire.ConnectionClose{})))
	f.Add(bytesOf(open, method(1, &amqpwire.TxSelect{}),
		amqpwire.AppendPublish(nil, 1, "amq.fanout", "q", true, false, nil, []byte("body"), 0),
		method(1, &amqpwire.TxCommit{}), method(1, &amqpwire.TxRollback{})))
	f.Add(bytesOf(open, method(1, &amqpwire.ExchangeDeclare{Exchange: "x", Type: "headers"}),
		method(1, &amqpwire.QueueBind{Queue: "q", Exchange: "x", Arguments: amqpwire.RawTable{1, 'a', 't', 1}}),
		method(1, &amqpwire.BasicQos{PrefetchCount: 3, Global: true}), method(1, &amqpwire.QueuePurge{Queue: "q"})))
	// Large ones: whole, with others in between, given up in the middle, returned.
	big := make([]byte, 400)
	large := func(ch uint16, key string, mandatory bool) []byte {
		return amqpwire.AppendPublish(nil, ch, "", key, mandatory, false, nil, big, 128)
	}
	half := large(1, "q", false)[:300]
	f.Add(bytesOf(open, method(1, &amqpwire.QueueDeclare{Queue: "q"}), method(1, &amqpwire.ConfirmSelect{}),
		method(1, &amqpwire.BasicConsume{Queue: "q"}), large(1, "q", true), large(1, "nobody", true),
		method(2, &amqpwire.ChannelOpen{}), half, large(2, "q", false), method(0, &amqpwire.ConnectionClose{})))
	f.Add(bytesOf(open, method(1, &amqpwire.TxSelect{}), large(1, "q", false), large(1, "nobody", true),
		method(1, &amqpwire.TxCommit{}), large(1, "q", false), method(1, &amqpwire.TxRollback{}), large(1, "q", false)))
	f.Add(bytesOf(open, half, method(1, &amqpwire.ChannelClose{})))
	f.Add(bytesOf(open, publishHead(1), header(1, 60, 2), header(1, 60, 200), rawFrame(amqpwire.FrameBody, 1, big...)))
	f.Add(bytesOf(open, publishHead(1), header(1, 60, 300), rawFrame(amqpwire.FrameBody, 1, big...)))
	f.Fuzz(func(t *testing.T, sent []byte) {
		b := newFakeBroker()
		b.large = 100
		s := NewServer(b, Config{CloseTimeout: time.Millisecond, MaxMessageBytes: 1 << 20})
		mine, theirs := net.Pipe()
		c := newConn(s, theirs)
		ended := make(chan struct{})
		go func() {
			c.serve()
			close(ended)
		}()
		w := &raw{t: t, nc: mine}
		w.open()
		go func() { _, _ = io.Copy(io.Discard, mine) }()
		_, _ = mine.Write(sent)
		mine.Close()
		select {
		case <-ended:
		case <-time.After(waitTime):
			t.Fatal("the connection does not end")
		}
		if len(b.sessions) != 0 {
			t.Fatal("the session is open")
		}
		if n := c.batch.partial; n != 0 {
			t.Fatalf("%d bytes of incomplete contents are lost", n)
		}
		for _, l := range b.bodies {
			if !l.published {
				t.Fatalf("a body of %d bytes is lost", len(l.body))
			}
		}
	})
}
