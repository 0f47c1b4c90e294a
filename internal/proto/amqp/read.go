package amqp

import (
	"errors"
	"os"
	"time"

	"github.com/sluicemq/sluice/internal/buf"
)

const (
	// readIdleBytes is the read buffer of a connection that has nothing to say,
	// readBusyBytes of one that has a lot.
	readIdleBytes = 4 << 10
	readBusyBytes = 256 << 10
	// readHandshakeBytes bounds the buffer until the client has authenticated.
	readHandshakeBytes = 16 << 10
	// idleAfter is when a large buffer is given back.
	idleAfter = time.Second
	// smallReads is after how many reads that left most of the buffer empty it
	// shrinks.
	smallReads = 64
)

// errAttention is what fill returns when the reader was nudged.
var errAttention = errors.New("attention")

// input is the read buffer: b[r:w] was read and is not parsed.
type input struct {
	chunk *buf.Chunk
	b     []byte // all of the chunk's memory
	r, w  int
	limit int  // largest size of b
	full  bool // the last read filled the buffer: there is probably more
	small int  // reads in sequence that left most of the buffer empty

	deadline time.Time // as it was set last; zero for none
	stale    bool      // the deadline has passed or was changed by others
	last     time.Time // when the reader began to wait
	end      time.Time // of the handshake; zero when that is over
}

// makeRoom makes sure that b has room behind w.
func (in *input) makeRoom() {
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
	switch size := len(in.b); {
	case size == 0:
		in.resize(readIdleBytes)
	case in.r == 0 && in.w == size, in.full && size < in.limit:
		in.resize(min(size*4, max(in.limit, size+1)))
	case in.small >= smallReads && size > readIdleBytes && in.w-in.r < size/8:
		in.resize(size / 4)
	case in.r > 0 && in.w > size/2:
		in.w = copy(in.b, in.b[in.r:in.w])
		in.r = 0
	}
	in.full = false
}

// resize moves what is not parsed to a buffer of at least n bytes.
func (in *input) resize(n int) {
	chunk := buf.Get(n)
	b := chunk.Bytes()[:chunk.Cap()]
	in.w = copy(b, in.b[in.r:in.w])
	in.r, in.small = 0, 0
	in.release()
	in.chunk, in.b = chunk, b
}

// release gives the buffer back.
func (in *input) release() {
	if in.chunk != nil {
		in.chunk.Release()
	}
	in.chunk, in.b = nil, nil
}

// idle gives back a large buffer if little or nothing is in it.
func (in *input) idle() {
	if len(in.b) > readIdleBytes && in.w-in.r < readIdleBytes {
		in.resize(readIdleBytes)
	}
}

// wantDeadline returns until when a read that begins now may wait, zero for forever.
func (c *conn) wantDeadline(now time.Time) (want time.Time) {
	in := &c.in
	switch {
	case !in.end.IsZero():
		return in.end
	case c.heartbeat > 0:
		want = in.last.Add(2 * c.heartbeat)
	}
	if len(in.b) > readIdleBytes {
		if idle := now.Add(idleAfter); want.IsZero() || idle.Before(want) {
			want = idle
		}
	}
	return want
}

// armRead sets the read deadline. One that is a little too early stays: when it passes
// nothing is lost but a wake-up, and busy connections needn't set one per read.
func (c *conn) armRead(now time.Time) {
	in := &c.in
	want := c.wantDeadline(now)
	switch {
	case in.stale:
	case want.IsZero() || in.deadline.IsZero():
		if want.Equal(in.deadline) {
			return
		}
	case !in.deadline.After(want) && want.Sub(in.deadline) <= want.Sub(now)/2:
		return
	}
	in.deadline, in.stale = want, false
	_ = c.nc.SetReadDeadline(want)
}

// fill reads at least one byte into the buffer. It returns errAttention, errHeartbeat
// or errHandshakeTimeout when nothing came, or the error of the network.
func (c *conn) fill() error {
	in := &c.in
	in.makeRoom()
	// The time that the reader spent elsewhere is not the client's silence.
	in.last = time.Now()
	for now := in.last; ; now = time.Now() {
		c.armRead(now)
		if c.attention.Load() {
			return errAttention
		}
		n, err := c.nc.Read(in.b[in.w:])
		if n > 0 {
			c.received(n)
			return nil
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		in.stale = true
		switch now = time.Now(); {
		case c.attention.Load():
			return errAttention
		case !in.end.IsZero():
			if !now.Before(in.end) {
				return errHandshakeTimeout
			}
		case c.heartbeat > 0 && now.Sub(in.last) >= 2*c.heartbeat:
			return errHeartbeat
		default:
			in.idle()
			c.scratch, c.batch.publish = nil, publish{}
		}
	}
}

// received accounts for n bytes that were read.
func (c *conn) received(n int) {
	in := &c.in
	in.full = n == len(in.b)-in.w
	if n < len(in.b)/8 {
		in.small++
	} else {
		in.small = 0
	}
	in.w += n
	c.t.in += int64(n)
}
