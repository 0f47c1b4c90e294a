package amqp

import (
	"errors"
	"os"
	"time"

	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// end takes the connection down in the way that err asks for. Afterwards nothing of it
// runs and the broker has forgotten it.
func (c *conn) end(err error) {
	var wire *amqpwire.Error
	switch {
	case errors.As(err, &wire):
		if wire.Code != amqpwire.ConnectionForced {
			c.srv.counters.ConnErrors.Add(1)
		}
		c.closeWith(wire)
	case errors.Is(err, errClosedByPeer):
		c.sendLast(&amqpwire.ConnectionCloseOk{})
		c.awaitEOF()
	}
	c.out.kill()
	_ = c.nc.Close()
	if c.writerDone != nil {
		<-c.writerDone
	}
	c.closing.Store(true)
	c.endSession()
	c.in.release()
	for _, ch := range c.channels {
		if ch != nil {
			c.srv.counters.ChannelsGone.Add(1)
			ch.content.drop(c)
			ch.tx.drop()
		}
	}
	c.dropKept()
	c.channels = nil
	c.t.addTo(&c.srv.counters)
}

// endSession closes the session, once. The writer is not in it then, and does not
// enter it again.
func (c *conn) endSession() {
	c.sessMu.Lock()
	defer c.sessMu.Unlock()
	if c.sess != nil && !c.sessClosed {
		c.sess.Close()
	}
	c.sessClosed = true
}

// sendLast closes the session and sends a last method after all that waits. What is
// exclusive to the connection is gone before the client reads it.
func (c *conn) sendLast(m amqpwire.Method) {
	c.closing.Store(true)
	_ = c.nc.SetWriteDeadline(time.Now().Add(c.cfg.CloseTimeout))
	c.endSession()
	if c.writerDone == nil {
		_ = c.write(m)
		return
	}
	frame, err := amqpwire.AppendMethodFrame(nil, 0, m)
	if err != nil {
		return
	}
	c.out.final(frame)
	<-c.writerDone
}

// closeWith sends connection.close and waits for the answer, or CloseTimeout.
func (c *conn) closeWith(e *amqpwire.Error) {
	c.sendLast(e.Close())
	deadline := time.Now().Add(c.cfg.CloseTimeout)
	_ = c.nc.SetReadDeadline(deadline)
	// After a fault of framing nothing that follows can be understood: it is read
	// only because closing a socket that has unread data takes back what was sent.
	framed := e.Code != amqpwire.FrameError
	for {
		if framed {
			done, err := c.skimFrames()
			if done {
				return
			}
			framed = err == nil
		}
		if !framed {
			c.in.r, c.in.w = 0, 0
		}
		c.in.makeRoom()
		n, err := c.nc.Read(c.in.b[c.in.w:])
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(deadline) {
			_ = c.nc.SetReadDeadline(deadline) // a late nudge had moved it
		} else if err != nil {
			return
		}
		c.in.w += n
	}
}

// awaitEOF reads and ignores what the peer sends after its connection.close, until it
// hangs up, or CloseTimeout. Clients that queue frames per channel let the close
// overtake them; closing at once would answer those with a reset, which takes the
// close-ok back. The peer is told at once that nothing more comes.
func (c *conn) awaitEOF() {
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	deadline := time.Now().Add(c.cfg.CloseTimeout)
	_ = c.nc.SetReadDeadline(deadline)
	for {
		c.in.r, c.in.w = 0, 0
		c.in.makeRoom()
		_, err := c.nc.Read(c.in.b)
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(deadline) {
			_ = c.nc.SetReadDeadline(deadline) // a late nudge had moved it
		} else if err != nil {
			return
		}
	}
}

// skimFrames ignores all frames in the buffer up to the answer to connection.close.
func (c *conn) skimFrames() (done bool, err error) {
	for {
		f, n, err := amqpwire.ParseFrame(c.in.b[c.in.r:c.in.w], c.frameMax)
		if n == 0 || err != nil {
			return false, err
		}
		c.in.r += n
		if f.Channel != 0 || f.Type != amqpwire.FrameMethod {
			continue
		}
		switch id, _, _ := amqpwire.SplitMethod(f.Payload); id {
		case amqpwire.IDConnectionCloseOk:
			return true, nil
		case amqpwire.IDConnectionClose:
			_ = c.write(&amqpwire.ConnectionCloseOk{})
			return true, nil
		}
	}
}
