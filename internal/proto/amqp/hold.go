package amqp

import "github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"

// heldMax is how much is held back before the reader stops reading.
const heldMax = 256 << 10

// A broker that takes no messages for now (no disk space) says so by Sink.Blocked. The
// connection then holds back the first publish, or the rest of a large body, and what
// follows it, but goes on with
// acknowledgements: a client that does both would otherwise keep from being freed what
// its acknowledgements would free. When more than heldMax is held the reader waits,
// and the client's messages wait in its socket.

// mustHold says whether f has to wait, while the broker takes no messages or something
// is held.
func (c *conn) mustHold(f amqpwire.Frame) bool {
	if !c.holding {
		if f.Type == amqpwire.FrameBody {
			ch := c.channelOf(f)
			return ch != nil && ch.content.large != nil
		}
		return f.Type == amqpwire.FrameMethod && methodID(f) == amqpwire.IDBasicPublish
	}
	if f.Type != amqpwire.FrameMethod {
		return true
	}
	switch methodID(f) {
	case amqpwire.IDBasicAck, amqpwire.IDBasicNack, amqpwire.IDBasicReject:
		ch := c.channelOf(f)
		return ch == nil || ch.tx != nil || ch.closed.Load() || ch.content.state != contentNone
	}
	return true
}

func methodID(f amqpwire.Frame) amqpwire.MethodID {
	id, _, err := amqpwire.SplitMethod(f.Payload)
	if err != nil {
		return 0
	}
	return id
}

func (c *conn) channelOf(f amqpwire.Frame) *channel {
	if int(f.Channel) < len(c.channels) {
		return c.channels[f.Channel]
	}
	return nil
}

// hold keeps a frame for later, and waits if there are too many.
func (c *conn) hold(f amqpwire.Frame) error {
	c.holding = true
	c.held = amqpwire.AppendFrame(c.held, f)
	if len(c.held) <= heldMax {
		return nil
	}
	c.submit()
	if !c.out.await(func() bool { return !c.out.blocked }) {
		return c.stopReason()
	}
	return c.replay()
}

// replay handles the frames that were held.
func (c *conn) replay() error {
	held := c.held
	c.holding, c.held = false, nil
	for len(held) > 0 {
		f, n, err := amqpwire.ParseFrame(held, 0)
		if err != nil || n == 0 {
			return err // they were parsed before
		}
		held = held[n:]
		if err := c.frame(f); err != nil {
			return err
		}
	}
	return nil
}
