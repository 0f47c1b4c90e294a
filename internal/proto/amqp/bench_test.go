package amqp

import (
	"net"
	"testing"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
)

// nullSession is a session that costs nothing, so that a benchmark shows the
// connection: it confirms at once and delivers the same record over and over.
type nullSession struct {
	fakeSession
	sink   Sink
	token  uint64
	slots  uint32
	queue  *route.Queue
	record msg.Record
	qc     queue.Consumer
	bytes  *broker.Pool
	user   any
	next   uint64
}

func (s *nullSession) User() any            { return s.user }
func (s *nullSession) Queue() *route.Queue  { return s.queue }
func (s *nullSession) Publisher() Publisher { return s }
func (s *nullSession) Reader() RecordReader { return (*nullReader)(s) }
func (s *nullSession) Token() uint64        { return s.token }

func (s *nullSession) Publish(_, _ []byte, _ route.HeaderLookup, _ *msg.Envelope, _ ...[]byte) (broker.Published, error) {
	s.slots |= 1
	return broker.Published{Routed: true, Slots: 1}, nil
}

func (s *nullSession) PublishTo(_ []byte, _ [][]byte, h route.HeaderLookup, e *msg.Envelope, body ...[]byte) (broker.Published, error) {
	return s.Publish(nil, nil, h, e, body...)
}

func (s *nullSession) IsLarge(uint64) bool { return false }

func (s *nullSession) Begin([]byte, [][]byte, route.HeaderLookup, uint64, bool) (Large, error) {
	return nil, broker.ErrBodyGone // nothing is large here
}

func (*nullSession) BeginTx()                        {}
func (*nullSession) RollbackTx()                     {}
func (*nullSession) CommitTx(uint64) (uint32, error) { return 0, nil }
func (*nullSession) TxBytesMax() int                 { return 1 << 20 }

func (s *nullSession) Flush() (uint64, uint32) {
	token, slots := s.token, s.slots
	s.token, s.slots = token+1, 0
	if slots != 0 {
		s.sink.Completed(token, 0, nil)
	}
	return token, slots
}

func (s *nullSession) Consume(spec broker.ConsumeSpec, ready func(Consumer)) (Consumer, error) {
	s.user, s.bytes = spec.User, spec.Bytes
	s.qc.User = s
	ready(s)
	s.Kick(s)
	return s, nil
}

// Kick delivers what fits the byte pool, in ranges of up to 64, as queue.Dispatch does.
func (s *nullSession) Kick(Consumer) {
	one := int64(len(s.record.Raw))
	for {
		granted := s.bytes.Take(64 * one)
		if granted == 0 {
			return
		}
		n := max(granted/one, 1)
		s.bytes.Give(granted - n*one)
		d := queue.Delivery{Consumer: &s.qc, First: s.next, Count: uint32(n), Bytes: uint64(n * one)}
		s.next += uint64(n)
		s.sink.Deliver(&d)
	}
}

func (s *nullSession) Close()                                                 {}
func (s *nullSession) Release(Consumer)                                       {}
func (s *nullSession) Settle(Consumer, uint8, broker.Settlement, []msg.Range) {}
func (s *nullSession) FlushSettles()                                          {}
func (s *nullSession) QueueStatus(string) (broker.QueueStatus, error) {
	return broker.QueueStatus{Name: "q"}, nil
}
func (s *nullSession) Authenticate(string, string, bool) error { return nil }
func (s *nullSession) AuthenticateExternal(string) error       { return nil }
func (s *nullSession) Open(_ broker.Identity, sink Sink) (Session, error) {
	s.sink = sink
	return s, nil
}

type nullReader nullSession

func (r *nullReader) Flush() {}
func (r *nullReader) Close() {}

func (r *nullReader) Body(*queue.Delivery, *msg.Record, func([]byte) error) error {
	return broker.ErrBodyGone
}
func (r *nullReader) Kept(Kept, func([]byte) error) error { return broker.ErrBodyGone }

func (r *nullReader) Each(d *queue.Delivery, fn func(off msg.Offset, rec *msg.Record) error) error {
	for i := range uint64(d.Count) {
		if err := fn(d.First+i, &r.record); err != nil {
			return err
		}
	}
	return nil
}

func benchConn(b *testing.B) *raw {
	e := msg.Envelope{Format: msg.FormatAMQP091, Key: []byte("q"), Props: []byte{0x10, 0, 2}}
	rec, _, err := msg.ParseRecord(msg.AppendRecord(nil, &e, make([]byte, 1024)))
	if err != nil {
		b.Fatal(err)
	}
	s := &nullSession{token: 1, queue: &route.Queue{Name: "q"}, record: rec}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := NewServer(s, Config{})
	go func() { _ = srv.Serve(l) }()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { nc.Close(); l.Close() })
	w := &raw{t: b, nc: nc}
	return w.open().openChannel()
}

// BenchmarkPublishConfirm is 1 KiB messages through a socket, in a window of 500.
func BenchmarkPublishConfirm(b *testing.B) {
	w := benchConn(b)
	w.method(1, &amqpwire.ConfirmSelect{})
	expectMethod[*amqpwire.ConfirmSelectOk](w)
	const window = 250
	one := amqpwire.AppendPublish(nil, 1, "", "q", false, false, amqpwire.RawProps{0x10, 0, 2}, make([]byte, 1024), 131072)
	var batch []byte
	for range window {
		batch = append(batch, one...)
	}
	in := make([]byte, 64<<10)
	b.SetBytes(int64(len(one)))
	b.ReportAllocs()
	b.ResetTimer()
	sent, confirmed := 0, 0
	rest := []byte(nil)
	for confirmed < b.N {
		for sent < confirmed+2*window {
			if _, err := w.nc.Write(batch); err != nil {
				b.Fatal(err)
			}
			sent += window
		}
		n, err := w.nc.Read(in[len(rest):])
		if err != nil {
			b.Fatal(err)
		}
		got := in[:len(rest)+n]
		for len(got) >= 21 {
			_, args, _ := amqpwire.SplitMethod(got[7:20])
			ack, _ := amqpwire.ParseAck(args)
			confirmed = int(ack.DeliveryTag)
			got = got[21:]
		}
		rest = in[:copy(in, got)]
	}
}

// BenchmarkDeliverAck is 1 KiB messages to a consumer that acknowledges each.
func BenchmarkDeliverAck(b *testing.B) {
	w := benchConn(b)
	w.method(1, &amqpwire.BasicConsume{Queue: "q", NoWait: true})
	in := make([]byte, 256<<10)
	acks := make([]byte, 0, 64<<10)
	have := 0
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; {
		n, err := w.nc.Read(in[have:])
		if err != nil {
			b.Fatal(err)
		}
		have += n
		at := 0
		acks = acks[:0]
		for {
			f, n, err := amqpwire.ParseFrame(in[at:have], 0)
			if err != nil {
				b.Fatal(err)
			}
			if n == 0 {
				break
			}
			at += n
			if f.Type == amqpwire.FrameMethod {
				_, args, _ := amqpwire.SplitMethod(f.Payload)
				d, _ := amqpwire.ParseDeliver(args)
				acks = amqpwire.AppendAck(acks, 1, d.DeliveryTag, false)
				done++
			}
		}
		have = copy(in, in[at:have])
		if _, err := w.nc.Write(acks); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnacked(b *testing.B) {
	var u unacked
	b.ReportAllocs()
	for i := range uint64(b.N) {
		u.add(i+1, 0, 0, i, 1)
		if i >= 1000 {
			if _, ok := u.take(i - 999); !ok {
				b.Fatal("lost")
			}
		}
	}
}

func BenchmarkIdleConnection(b *testing.B) {
	s := &nullSession{token: 1, queue: &route.Queue{Name: "q"}}
	srv := NewServer(s, Config{})
	before := liveHeap()
	for range b.N {
		mine, theirs := net.Pipe()
		srv.ServeConn(theirs)
		b.Cleanup(func() { mine.Close() })
		(&raw{t: b, nc: mine}).open().openChannel()
	}
	b.ReportMetric(float64(liveHeap()-before)/float64(b.N), "heap-B/conn")
}
