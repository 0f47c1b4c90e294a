package broker

import (
	"sync/atomic"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
)

// benchSink hands deliveries to its test and counts confirms.
type benchSink struct {
	in   chan queue.Delivery
	done chan struct{}
	bad  atomic.Bool
}

func (s *benchSink) Completed(_ uint64, _ uint8, err error) {
	if err != nil {
		s.bad.Store(true)
	}
	s.done <- struct{}{}
}
func (s *benchSink) Deliver(d *queue.Delivery) { s.in <- *d }

// GetFailed implements Sink.
func (s *benchSink) GetFailed(uint64, error) {}

func (s *benchSink) Got(uint64, *queue.Delivery, uint64) {}
func (s *benchSink) Canceled(*Consumer)                  {}
func (s *benchSink) Blocked(string)                      {}
func (s *benchSink) Unblocked()                          {}
func (s *benchSink) Shutdown(string)                     {}

// BenchmarkMessage takes messages the whole way from the façade on, in flushes of
// benchFlush: publish, confirm, deliver, read, ack. An operation is one message; what is
// allocated per flush (Raft's entry, the batch's vector) shows as a fraction.
func BenchmarkMessage(b *testing.B) {
	for _, c := range []struct {
		name           string
		durable, noAck bool
		size           int
	}{
		{"durable/1KiB", true, false, 1024},
		{"durable/64B", true, false, 64},
		{"transient/64B", false, false, 64},
		{"transient/64B/noack", false, true, 64},
	} {
		b.Run(c.name, func(b *testing.B) { benchMessages(b, c.durable, c.noAck, make([]byte, c.size)) })
	}
}

const benchFlush = 512

func benchMessages(b *testing.B, durable, noAck bool, body []byte) {
	br, err := Open(Config{Dir: b.TempDir(), Shards: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = br.Close() }()
	sink := &benchSink{in: make(chan queue.Delivery, 4096), done: make(chan struct{}, 64)}
	s, err := br.Open(Identity{ID: "bench", VHost: "/", User: "guest"}, sink)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if _, err := s.DeclareQueue(QueueSpec{Name: "q", Durable: durable}); err != nil {
		b.Fatal(err)
	}
	if _, err := s.Consume(ConsumeSpec{Queue: "q", NoAck: noAck, Prefetch: 4 * benchFlush}, func(*Consumer) {}); err != nil {
		b.Fatal(err)
	}
	pub, rd := s.Publisher(), s.Reader()
	defer rd.Close()
	left := 0
	take := func(msg.Offset, *msg.Record) error { left--; return nil }
	env, key := msg.Envelope{}, []byte("q")
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	b.ResetTimer()
	for n := 0; n < b.N; n += benchFlush {
		for range benchFlush {
			if _, err := pub.Publish(nil, key, nil, &env, body); err != nil {
				b.Fatal(err)
			}
		}
		left += benchFlush
		pub.Flush()
		<-sink.done
		for left > 0 {
			d := <-sink.in
			if err := rd.Each(&d, take); err != nil {
				b.Fatal(err)
			}
			if !noAck {
				s.Settle(d.Consumer.User.(*Consumer), d.Lane, Ack, []msg.Range{{First: d.First, Count: uint64(d.Count)}})
			}
		}
		rd.Flush()
		s.FlushSettles()
	}
	if sink.bad.Load() {
		b.Fatal("not confirmed")
	}
}
