package amqp

import (
	"strconv"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
	"github.com/sluicemq/sluice/internal/route"
)

// publish is the working memory for the message that is being published. It is reused,
// so that publishing doesn't allocate.
type publish struct {
	env     msg.Envelope
	headers headers
	keys    [][]byte
	props   []byte // without BCC
}

// headers gives package route access to the headers of a message.
type headers struct {
	raw   amqpwire.RawTable
	props amqpwire.RawProps
	time  [20]byte
}

// Property implements route.PropertyLookup.
func (h *headers) Property(name string) ([]byte, bool) {
	switch name {
	case "message_id":
		return h.props.MessageID()
	case "correlation_id":
		return h.props.CorrelationID()
	case "timestamp":
		if t, ok := h.props.Timestamp(); ok {
			return strconv.AppendUint(h.time[:0], t, 10), true
		}
	}
	return nil, false
}

// Get implements route.HeaderLookup.
func (h *headers) Get(key string) (route.Value, bool) {
	v, ok := amqpwire.LookupTable(h.raw, key)
	if !ok {
		return route.Value{}, false
	}
	return routeValue(v), true
}

// routeValue translates a header value into what package route compares.
func routeValue(v amqpwire.Value) route.Value {
	switch v.Type() {
	case amqpwire.FieldVoid:
		return route.Value{Kind: route.Void}
	case amqpwire.FieldBool:
		b, _ := v.Bool()
		if b {
			return route.Value{Kind: route.Bool, Int: 1}
		}
		return route.Value{Kind: route.Bool}
	}
	if n, ok := v.Int64(); ok {
		return route.Value{Kind: route.Int, Int: n}
	}
	if f, ok := v.Float64(); ok {
		return route.Value{Kind: route.Float, Float: f}
	}
	if b, ok := v.Bytes(); ok {
		return route.Value{Kind: route.String, Bytes: b}
	}
	return route.Value{Kind: route.Opaque, Bytes: opaque(v)}
}

// opaque returns the type of a value and its content: what makes two of them equal.
func opaque(v amqpwire.Value) []byte {
	b := []byte{byte(v.Type())}
	if t, ok := v.Table(); ok {
		return append(b, t...)
	}
	if a, ok := v.Array(); ok {
		return append(b, a...)
	}
	return append(b, v.String()...)
}

// publishContent handles a message that is complete.
func (c *conn) publishContent(ch *channel, ct *content) error {
	if ch.tx != nil {
		return c.txPublish(ch, ct)
	}
	c.t.published++
	p, err := c.route(ct)
	nack := false
	if err != nil {
		if !c.nackable(ch, err) {
			return err
		}
		nack = true
	}
	if ct.mandatory && !p.Routed && !nack {
		c.returnMessage(ch, ct)
	}
	if ch.confirm {
		ch.published++
		c.noteConfirm(ch, p.Slots, nack)
	}
	return nil
}

// route hands a message to the broker.
func (c *conn) route(ct *content) (broker.Published, error) {
	pub := &c.batch.publish
	e := c.envelope(ct)
	if ct.large != nil || ct.refused != nil {
		return c.publishLarge(ct, e)
	}
	const special = amqpwire.PropUserID | amqpwire.PropExpiration | amqpwire.PropHeaders
	c.batch.published = true
	if ct.props.Flags()&special == 0 {
		pub.headers.raw, pub.headers.props = nil, ct.props
		return c.pub.Publish(ct.exchange, ct.key, &pub.headers, e, ct.fresh...)
	}
	keys, h, err := c.routingKeys(ct)
	if err != nil {
		return broker.Published{}, err
	}
	if e.Props, err = pub.withoutBCC(ct.props); err != nil {
		return broker.Published{}, err
	}
	if len(keys) == 1 {
		return c.pub.Publish(ct.exchange, ct.key, h, e, ct.fresh...)
	}
	return c.pub.PublishTo(ct.exchange, keys, h, e, ct.fresh...)
}

// envelope returns what is stored with the body of a message.
func (c *conn) envelope(ct *content) *msg.Envelope {
	e := &c.batch.publish.env
	*e = msg.Envelope{
		Format:   msg.FormatAMQP091,
		Exchange: ct.exchange,
		Key:      ct.key,
		Props:    ct.props,
		TimeMS:   c.batch.nowMS,
	}
	flags := ct.props.Flags()
	if flags&amqpwire.PropDeliveryMode != 0 {
		if mode, _ := ct.props.DeliveryMode(); mode == amqpwire.Persistent {
			e.Flags |= msg.FlagPersistent
		}
	}
	if flags&amqpwire.PropPriority != 0 {
		e.Priority, _ = ct.props.Priority()
	}
	return e
}

// routingKeys checks the properties and returns what a message is routed by.
func (c *conn) routingKeys(ct *content) (keys [][]byte, h route.HeaderLookup, err error) {
	pub := &c.batch.publish
	pub.headers.raw, pub.headers.props = nil, ct.props
	if err := c.checkProps(ct.props); err != nil {
		return nil, nil, err
	}
	raw, ok := ct.props.Headers()
	if !ok {
		pub.keys = append(pub.keys[:0], ct.key)
		return pub.keys, &pub.headers, nil
	}
	pub.headers.raw = raw
	keys, err = pub.copies(ct.key, raw)
	return keys, &pub.headers, err
}

// checkProps judges the properties that mean something to the broker.
func (c *conn) checkProps(props amqpwire.RawProps) error {
	if user, ok := props.UserID(); ok && string(user) != c.user {
		return preconditionFailed("user_id property set to '%s' but authenticated user was '%s'", user, c.user)
	}
	expiration, ok := props.Expiration()
	if !ok {
		return nil
	}
	if why := badExpiration(string(expiration)); why != "" {
		return preconditionFailed("invalid expiration '%s': %s", expiration, why)
	}
	return notImplemented("property 'expiration' is not supported")
}

// badExpiration says what is wrong with an expiration, in RabbitMQ's words; "" for
// nothing.
func badExpiration(s string) string {
	digits := 0
	if s != "" && (s[0] == '-' || s[0] == '+') {
		digits = 1
	}
	end := digits
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	if end == digits {
		return "no_integer"
	}
	if end < len(s) {
		return `{leftover_string,"` + s[end:] + `"}`
	}
	if n, err := strconv.ParseInt(s, 10, 64); err != nil || n < 0 {
		if s[0] == '-' {
			return "{value_negative," + s + "}"
		}
		return "{value_too_large," + s + "}"
	}
	return ""
}

// copies returns the keys that a message is routed by: its own, and those of the
// headers CC and BCC.
func (p *publish) copies(key []byte, raw amqpwire.RawTable) ([][]byte, error) {
	p.keys = append(p.keys[:0], key)
	for _, name := range [...]string{"CC", "BCC"} {
		v, ok := amqpwire.LookupTable(raw, name)
		if !ok {
			continue
		}
		list, ok := v.Array()
		if !ok {
			return nil, preconditionFailed(`invalid message: {unacceptable_type_in_header,"%s",%s}`, name, v.Type())
		}
		err := amqpwire.RangeArray(list, func(v amqpwire.Value) bool {
			if b, ok := v.Bytes(); ok && v.Type() == amqpwire.FieldString {
				p.keys = append(p.keys, b)
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return p.keys, nil
}

// withoutBCC returns the properties without the header BCC, which nobody may see.
func (p *publish) withoutBCC(props amqpwire.RawProps) ([]byte, error) {
	raw, ok := props.Headers()
	if ok {
		_, ok = amqpwire.LookupTable(raw, "BCC")
	}
	if !ok {
		return props, nil
	}
	var err error
	p.props, err = amqpwire.AppendPropsWithoutHeader(p.props[:0], props, "BCC")
	return p.props, err
}

// returnMessage sends basic.return for a message that no queue took.
func (c *conn) returnMessage(ch *channel, ct *content) {
	c.t.returned++
	b := amqpwire.AppendReturnHead(c.scratch[:0], ch.id, amqpwire.NoRoute, "NO_ROUTE",
		ct.exchange, ct.key, ct.props, ct.size)
	if ct.large != nil {
		c.returnLarge(ch, ct, b)
		c.scratch = b
		return
	}
	for _, piece := range ct.fresh {
		b = amqpwire.AppendBodyFrames(b, ch.id, piece, c.frameMax)
	}
	c.out.control(b)
	if c.scratch = b; cap(b) > 64<<10 {
		c.scratch = nil
	}
}

// noteConfirm adds the publish tag of ch that was given last to what is to be
// confirmed.
func (c *conn) noteConfirm(ch *channel, slots uint32, nack bool) {
	b := &c.batch
	if b.confirms == nil {
		b.confirms = c.out.newFlush()
	}
	if slots == 0 {
		b.immediate = true
	}
	f := b.confirms
	if k := len(f.runs); k > 0 {
		last := &f.runs[k-1]
		if last.ch == ch && last.slots == slots && last.nack == nack && last.first+uint64(last.count) == ch.published {
			last.count++
			return
		}
	}
	f.runs = append(f.runs, confirmRun{ch: ch, first: ch.published, count: 1, slots: slots, nack: nack})
}
