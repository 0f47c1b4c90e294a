package amqp

import (
	"sync"
	"sync/atomic"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// unlimited is the room of a channel's message pool while there is no global prefetch.
const unlimited = 1 << 40

// channel is one channel of a connection. Fields belong to the reader where nothing
// else is said.
type channel struct {
	c  *conn
	id uint16
	// closed is set by the reader before channel.close or close-ok is in the outbox.
	// The writer sends nothing for a channel that is closed.
	closed atomic.Bool

	content   content
	confirm   bool
	published uint64 // publish tag given last, in confirm mode
	tx        *tx    // nil outside of transactions

	prefetch  uint32       // of consumers to come
	pool      *broker.Pool // global prefetch; nil before the first consumer
	limit     int64        // what the pool was made with
	consumers map[string]*consumer
	lastQueue string // declared last

	confirms     confirms // writer
	lastDelivery uint64   // writer; delivery tag given last

	// mu guards what reader and writer share.
	mu      sync.Mutex
	unacked unacked
	// slots are the consumers that have something in flight or may get it, by their
	// number in unacked. free are those that are nil.
	slots []*consumer
	free  []uint32

	getters map[Consumer]*consumer // reader; those of basic.get, until they are released
}

// openChannel handles the first frame on a channel number.
func (c *conn) openChannel(f amqpwire.Frame) error {
	if f.Type != amqpwire.FrameMethod {
		return fault(amqpwire.ChannelError, "expected 'channel.open'")
	}
	m, err := amqpwire.ParseMethod(f.Payload)
	if err != nil {
		return err
	}
	if _, ok := m.(*amqpwire.ChannelOpen); !ok {
		return wireError(fault(amqpwire.ChannelError, "expected 'channel.open'"), m.ID())
	}
	if c.open >= int(c.channelMax) || f.Channel > c.channelMax {
		return wireError(fault(amqpwire.NotAllowed, "number of channels opened (%d) has reached the negotiated channel_max (%d)",
			c.open, c.channelMax), m.ID())
	}
	for int(f.Channel) >= len(c.channels) {
		c.channels = append(c.channels, nil)
	}
	c.channels[f.Channel] = &channel{c: c, id: f.Channel}
	c.open++
	c.srv.counters.ChannelsOpen.Add(1)
	return c.send(f.Channel, &amqpwire.ChannelOpenOk{})
}

// closedChannelFrame handles a frame on a channel that the server has closed: all is
// ignored until the client has answered.
func (c *conn) closedChannelFrame(ch *channel, f amqpwire.Frame) error {
	if f.Type != amqpwire.FrameMethod {
		return nil
	}
	switch id, _, _ := amqpwire.SplitMethod(f.Payload); id {
	case amqpwire.IDChannelCloseOk:
		c.forgetChannel(ch)
	case amqpwire.IDChannelClose:
		return c.send(ch.id, &amqpwire.ChannelCloseOk{})
	}
	return nil
}

func (c *conn) forgetChannel(ch *channel) {
	c.channels[ch.id] = nil
	c.open--
	c.srv.counters.ChannelsGone.Add(1)
}

// channelFrame handles a frame on an open channel. Faults of the client that concern
// the channel alone close it; the error is one of the connection.
func (c *conn) channelFrame(ch *channel, f amqpwire.Frame) error {
	switch f.Type {
	case amqpwire.FrameHeader:
		return c.channelFault(ch, amqpwire.IDBasicPublish, c.contentHeader(ch, f))
	case amqpwire.FrameBody:
		return c.channelFault(ch, amqpwire.IDBasicPublish, c.contentBody(ch, f))
	}
	id, args, err := amqpwire.SplitMethod(f.Payload)
	if err != nil {
		return err
	}
	if ch.content.state != contentNone {
		return ch.content.unexpectedMethod(id)
	}
	switch id {
	case amqpwire.IDBasicPublish:
		p, err := amqpwire.ParsePublish(args)
		if err != nil {
			return err
		}
		return c.channelFault(ch, id, c.beginContent(ch, p))
	case amqpwire.IDBasicAck, amqpwire.IDBasicNack, amqpwire.IDBasicReject:
		return c.channelFault(ch, id, c.settleFrame(ch, id, args))
	}
	m, err := amqpwire.ParseMethod(f.Payload)
	if err != nil {
		return err
	}
	return c.channelFault(ch, id, c.method(ch, m))
}

// channelFault closes the channel for err, or returns it if it is one of the
// connection.
func (c *conn) channelFault(ch *channel, id amqpwire.MethodID, err error) error {
	if err == nil {
		return nil
	}
	if err == errStopped || err == errClosedByPeer { //nolint:errorlint // never wrapped
		return err
	}
	e := wireError(err, id)
	if e.Code.Hard() {
		return e
	}
	c.srv.counters.ChannelErrors.Add(1)
	c.log.Debug("channel closed", "channel", ch.id, "code", int(e.Code), "text", e.Explanation)
	c.quitChannel(ch)
	return c.send(ch.id, &amqpwire.ChannelClose{
		ReplyCode: e.Code, ReplyText: e.Error(), ClassID: e.Method.Class(), MethodID: e.Method.Method(),
	})
}

// quitChannel ends what a channel does: consumers go, what is in flight comes back,
// what a transaction holds is forgotten.
func (c *conn) quitChannel(ch *channel) {
	ch.closed.Store(true)
	c.submit()
	ch.content.drop(c)
	ch.tx.drop()
	ch.tx = nil
	ch.mu.Lock()
	slots := ch.slots
	ch.slots, ch.free = nil, nil
	ch.unacked = unacked{}
	ch.mu.Unlock()
	for _, cons := range slots {
		if cons != nil && !cons.get {
			c.detach(cons)
			c.sess.Release(cons.bc)
		}
	}
	for bc := range ch.getters {
		c.sess.Release(bc)
	}
	ch.consumers, ch.getters = nil, nil
}

// method handles what happens seldom on a channel.
func (c *conn) method(ch *channel, m amqpwire.Method) error {
	switch m := m.(type) {
	case *amqpwire.ChannelClose:
		c.quitChannel(ch)
		c.forgetChannel(ch)
		return c.send(ch.id, &amqpwire.ChannelCloseOk{})
	case *amqpwire.ChannelOpen:
		return fault(amqpwire.ChannelError, "second 'channel.open' seen")
	case *amqpwire.ChannelFlow:
		if !m.Active {
			return notImplemented("active=false")
		}
		return c.send(ch.id, &amqpwire.ChannelFlowOk{Active: true})
	case *amqpwire.AccessRequest:
		return c.send(ch.id, &amqpwire.AccessRequestOk{Ticket: 1})
	case *amqpwire.ConfirmSelect:
		return c.confirmSelect(ch, m)
	case *amqpwire.TxSelect:
		return c.txSelect(ch)
	case *amqpwire.TxCommit:
		return c.txCommit(ch)
	case *amqpwire.TxRollback:
		return c.txRollback(ch)
	}
	switch m.ID().Class() {
	case amqpwire.ClassExchange:
		return c.exchangeMethod(ch, m)
	case amqpwire.ClassQueue:
		return c.queueMethod(ch, m)
	case amqpwire.ClassBasic:
		return c.basicMethod(ch, m)
	}
	return fault(amqpwire.CommandInvalid, "unimplemented method")
}

func (c *conn) basicMethod(ch *channel, m amqpwire.Method) error {
	switch m := m.(type) {
	case *amqpwire.BasicQos:
		return c.qos(ch, m)
	case *amqpwire.BasicConsume:
		return c.consume(ch, m)
	case *amqpwire.BasicCancel:
		return c.cancel(ch, m)
	case *amqpwire.BasicGet:
		return c.get(ch, m)
	case *amqpwire.BasicRecover:
		if err := c.recoverAll(ch, m.Requeue); err != nil {
			return err
		}
		return c.send(ch.id, &amqpwire.BasicRecoverOk{})
	case *amqpwire.BasicRecoverAsync:
		return c.recoverAll(ch, m.Requeue)
	}
	return fault(amqpwire.CommandInvalid, "unimplemented method")
}

func (c *conn) confirmSelect(ch *channel, m *amqpwire.ConfirmSelect) error {
	if ch.tx != nil {
		return preconditionFailed("cannot switch from tx to confirm mode")
	}
	ch.confirm = true
	return c.reply(ch, m.NoWait, &amqpwire.ConfirmSelectOk{})
}

// reply sends the answer to a method, unless the client wants none.
func (c *conn) reply(ch *channel, noWait bool, m amqpwire.Method) error {
	if noWait {
		return nil
	}
	return c.send(ch.id, m)
}
