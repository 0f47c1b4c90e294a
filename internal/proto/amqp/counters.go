package amqp

import "sync/atomic"

// Counters are what a server has seen since it was made. They only grow, and are
// updated once per batch of frames.
type Counters struct {
	Opened        atomic.Int64 // connections that reached connection.open
	Closed        atomic.Int64 // of those, gone
	Refused       atomic.Int64 // connections that failed in the handshake, or were too many
	ChannelsOpen  atomic.Int64 // channels ever opened
	ChannelsGone  atomic.Int64 // of those, closed
	BytesIn       atomic.Int64
	BytesOut      atomic.Int64
	Published     atomic.Int64 // messages taken from clients
	Returned      atomic.Int64 // of those, unroutable and mandatory
	Confirmed     atomic.Int64 // messages acknowledged to publishers
	Nacked        atomic.Int64 // messages refused to publishers that use confirms
	Delivered     atomic.Int64 // messages sent to consumers
	Got           atomic.Int64 // messages sent as answers to basic.get
	Settled       atomic.Int64 // messages acknowledged, rejected or requeued by clients
	ChannelErrors atomic.Int64 // channels closed by the server
	ConnErrors    atomic.Int64 // connections closed by the server for a fault of the client
}

// tally is what a goroutine of a connection has counted since it last added it to the
// Counters, so that the hot paths touch no shared memory.
type tally struct {
	in, out, published, returned, confirmed, nacked, delivered, got, settled int64
}

// addTo moves t to c.
func (t *tally) addTo(c *Counters) {
	add := func(to *atomic.Int64, n int64) {
		if n != 0 {
			to.Add(n)
		}
	}
	add(&c.BytesIn, t.in)
	add(&c.BytesOut, t.out)
	add(&c.Published, t.published)
	add(&c.Returned, t.returned)
	add(&c.Confirmed, t.confirmed)
	add(&c.Nacked, t.nacked)
	add(&c.Delivered, t.delivered)
	add(&c.Got, t.got)
	add(&c.Settled, t.settled)
	*t = tally{}
}
