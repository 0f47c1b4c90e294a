package amqp

import (
	"math/bits"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// What a message and an acknowledgement count for besides their bytes.
const (
	txMessageBytes = 160
	txAckBytes     = 16
)

// tx is what a channel in transaction mode holds until the commit. Owned by the reader.
type tx struct {
	messages []txMessage
	acks     []txAck
	bytes    int
	bytesMax int
}

type txMessage struct {
	exchange, key []byte
	props         amqpwire.RawProps
	body          []byte
	size          uint64
	large         Large // has the body instead
	mandatory     bool
}

// txAck is a delivery tag, held in the channel's list.
type txAck struct {
	tag uint64
	how broker.Settlement
}

func (t *tx) grow(n int) error {
	t.bytes += n
	if t.bytes > t.bytesMax {
		return fault(amqpwire.ResourceError, "transaction is larger than %d bytes", t.bytesMax)
	}
	return nil
}

func (c *conn) newTx() *tx { return &tx{bytesMax: c.sess.TxBytesMax()} }

func (c *conn) txSelect(ch *channel) error {
	if ch.confirm {
		return preconditionFailed("cannot switch from confirm to tx mode")
	}
	if ch.tx == nil {
		ch.tx = c.newTx()
	}
	return c.send(ch.id, &amqpwire.TxSelectOk{})
}

// txPublish holds a message. What is wrong with it the client learns now.
func (c *conn) txPublish(ch *channel, ct *content) error {
	body := 0
	for _, piece := range ct.fresh {
		body += len(piece)
	}
	if err := ch.tx.grow(txMessageBytes + len(ct.exchange) + len(ct.key) + len(ct.props) + body); err != nil {
		return err
	}
	if c.sess.LookupExchange(string(ct.exchange)) == nil {
		return notFound("no exchange '%s' in vhost '%s'", ct.exchange, c.vhost)
	}
	if err := c.checkProps(ct.props); err != nil {
		return err
	}
	own := make([]byte, 0, len(ct.exchange)+len(ct.key)+len(ct.props)+body)
	cut := func(b []byte) []byte {
		from := len(own)
		own = append(own, b...)
		return own[from:len(own):len(own)]
	}
	m := txMessage{
		exchange: cut(ct.exchange), key: cut(ct.key), props: cut(ct.props), mandatory: ct.mandatory,
		size: ct.size, large: ct.large,
	}
	ct.large = nil
	c.countLarge(ct)
	from := len(own)
	for _, piece := range ct.fresh {
		own = append(own, piece...)
	}
	m.body = own[from:]
	ch.tx.messages = append(ch.tx.messages, m)
	return nil
}

// holdAcks holds an acknowledgement of tag, or with multiple of all up to upto. It is
// called with ch.mu held.
func (t *tx) holdAcks(ch *channel, tag, upto uint64, multiple bool, how broker.Settlement) error {
	n := len(t.acks)
	if multiple {
		ch.unacked.eachUpTo(upto, func(tag uint64) { t.acks = append(t.acks, txAck{tag, how}) })
	} else {
		t.acks = append(t.acks, txAck{tag, how})
	}
	for _, a := range t.acks[n:] {
		ch.unacked.hold(a.tag)
	}
	return t.grow((len(t.acks) - n) * txAckBytes)
}

// txCommit does what is held, as a whole, and answers when it is durable.
func (c *conn) txCommit(ch *channel) error {
	t := ch.tx
	if t == nil {
		return preconditionFailed("channel is not transactional")
	}
	// Failures from here on are of this transaction.
	c.submit()
	if alive, _ := c.out.settle(); !alive {
		return c.stopReason()
	}
	ch.tx = nil
	slots, err := c.txApply(ch, t)
	t.drop()
	ch.tx = c.newTx()
	if err != nil {
		return err
	}
	c.out.expect(bits.OnesCount32(slots))
	alive, failure := c.out.settle()
	switch {
	case !alive:
		return c.stopReason()
	case failure != nil:
		return preconditionFailed("partial tx completion")
	}
	return c.send(ch.id, &amqpwire.TxCommitOk{})
}

// txApply hands what a transaction holds to the broker. After an error nothing of it is
// done, and its deliveries are where they were.
func (c *conn) txApply(ch *channel, t *tx) (slots uint32, err error) {
	c.pub.BeginTx()
	for i := range t.messages {
		m := &t.messages[i]
		ct := content{
			mandatory: m.mandatory, exchange: m.exchange, key: m.key, props: m.props,
			size: m.size, have: m.size, large: m.large,
		}
		m.large = nil
		if ct.large == nil {
			ct.fresh = [][]byte{m.body}
		}
		err := c.publishContent(ch, &ct)
		if ct.large != nil {
			ct.large.Drop()
		}
		if err != nil {
			c.pub.RollbackTx()
			c.batch.published = false
			return 0, err
		}
	}
	c.batch.published = false // the commit submits it
	ch.mu.Lock()
	for _, a := range t.acks {
		if d, ok := ch.unacked.take(a.tag); ok {
			c.collect(ch, d, a.how)
		}
	}
	ch.mu.Unlock()
	c.settleMu.Lock()
	defer c.settleMu.Unlock()
	c.handSettlements()
	c.batch.requeued = false
	c.tokens++
	return c.pub.CommitTx(settleToken | c.tokens)
}

// drop gives up the large bodies that are held.
func (t *tx) drop() {
	if t == nil {
		return
	}
	for i := range t.messages {
		if m := &t.messages[i]; m.large != nil {
			m.large.Drop()
			m.large = nil
		}
	}
}

// txRollback forgets what is held; the deliveries can be acknowledged again.
func (c *conn) txRollback(ch *channel) error {
	if ch.tx == nil {
		return preconditionFailed("channel is not transactional")
	}
	ch.tx.drop()
	ch.tx = c.newTx()
	ch.mu.Lock()
	ch.unacked.unhold()
	ch.mu.Unlock()
	return c.send(ch.id, &amqpwire.TxRollbackOk{})
}
