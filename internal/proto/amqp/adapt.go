package amqp

import (
	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
)

// FromBroker returns b as the Broker of a server.
func FromBroker(b *broker.Broker) Broker { return realBroker{b} }

type realBroker struct{ *broker.Broker }

// Open implements Broker.
func (b realBroker) Open(id broker.Identity, sink Sink) (Session, error) {
	s, err := b.Broker.Open(id, realSink{sink})
	if err != nil {
		return nil, err
	}
	return realSession{s}, nil
}

// realSink is a Sink as package broker wants it.
type realSink struct{ Sink }

// Canceled implements broker.Sink.
func (s realSink) Canceled(c *broker.Consumer) { s.Sink.Canceled(c) }

var _ broker.Sink = realSink{}

// realSession is a broker.Session with the interfaces of this package in the place of
// the broker's types.
type realSession struct{ *broker.Session }

// Publisher implements Session.
func (s realSession) Publisher() Publisher { return realPublisher{s.Session.Publisher()} }

// Reader implements Session.
func (s realSession) Reader() RecordReader { return realReader{s.Session.Reader()} }

// Consume implements Session.
func (s realSession) Consume(spec broker.ConsumeSpec, ready func(Consumer)) (Consumer, error) {
	c, err := s.Session.Consume(spec, func(c *broker.Consumer) { ready(c) })
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Cancel implements Session.
func (s realSession) Cancel(c Consumer) { s.Session.Cancel(c.(*broker.Consumer)) }

// Release implements Session.
func (s realSession) Release(c Consumer) { s.Session.Release(c.(*broker.Consumer)) }

// Kick implements Session.
func (s realSession) Kick(c Consumer) { s.Session.Kick(c.(*broker.Consumer)) }

// Settle implements Session.
func (s realSession) Settle(c Consumer, lane uint8, how broker.Settlement, ranges []msg.Range) {
	s.Session.Settle(c.(*broker.Consumer), lane, how, ranges)
}

type realPublisher struct{ *broker.Publisher }

// Begin implements Publisher.
func (p realPublisher) Begin(exchange []byte, keys [][]byte, h route.HeaderLookup, size uint64, keep bool) (Large, error) {
	l, err := p.Publisher.Begin(exchange, keys, h, size, keep)
	if err != nil {
		return nil, err
	}
	return realLarge{l}, nil
}

type realLarge struct{ *broker.Large }

// Keep implements Large.
func (l realLarge) Keep() (Kept, bool) { return l.Large.Keep() }

type realReader struct{ *broker.Reader }

// Kept implements RecordReader.
func (r realReader) Kept(k Kept, fn func(piece []byte) error) error {
	return r.Reader.Kept(k.(broker.Kept), fn)
}
