package amqp

import (
	"bytes"
	"math"
	"slices"
	"strings"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
	"github.com/sluicemq/sluice/internal/route"
)

const (
	textDefaultExchange = "operation not permitted on the default exchange"
	textLocked          = "cannot obtain exclusive access to locked %s. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration."
)

// object names a thing as error texts do.
func (c *conn) object(kind, name string) string {
	return kind + " '" + name + "' in vhost '" + c.vhost + "'"
}

// stripName removes the line breaks that RabbitMQ removes from names.
func stripName(s string) string {
	return strings.NewReplacer("\r", "", "\n", "").Replace(s)
}

// checkName refuses names that are reserved.
func checkName(kind, name string) error {
	if strings.HasPrefix(name, "amq.") {
		return accessRefused("%s name '%s' contains reserved prefix 'amq.*'", kind, name)
	}
	return nil
}

func inequivalent(arg, object, received, current string) error {
	return preconditionFailed("inequivalent arg '%s' for %s: received '%s' but current is '%s'", arg, object, received, current)
}

// property is something that must be equal when a thing is declared again.
type property struct{ name, received, current string }

func word(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

// assertEquivalent compares what was declared before with what is declared now.
func assertEquivalent(object string, props []property, kind argKinds, current, received amqpwire.RawTable) error {
	for _, p := range props {
		if p.received != p.current {
			return inequivalent(p.name, object, p.received, p.current)
		}
	}
	key, cur, recv, found := amqpwire.FirstMismatch(current, received, comparedArgs(kind))
	if found {
		return preconditionFailed("inequivalent arg '%s' for %s: %s", key, object, amqpwire.DescribeMismatch(recv, cur))
	}
	return nil
}

func (c *conn) exchangeMethod(ch *channel, m amqpwire.Method) error {
	c.submit()
	switch m := m.(type) {
	case *amqpwire.ExchangeDeclare:
		if err := c.declareExchange(m); err != nil {
			return err
		}
		return c.reply(ch, m.NoWait, &amqpwire.ExchangeDeclareOk{})
	case *amqpwire.ExchangeDelete:
		if err := c.deleteExchange(m); err != nil {
			return err
		}
		return c.reply(ch, m.NoWait, &amqpwire.ExchangeDeleteOk{})
	case *amqpwire.ExchangeBind:
		err := c.bind(c.sess.Bind, m.Source, m.Destination, route.ToExchange, m.RoutingKey, m.Arguments)
		if err != nil {
			return err
		}
		return c.reply(ch, m.NoWait, &amqpwire.ExchangeBindOk{})
	case *amqpwire.ExchangeUnbind:
		err := c.bind(c.sess.Unbind, m.Source, m.Destination, route.ToExchange, m.RoutingKey, m.Arguments)
		if err != nil {
			return err
		}
		return c.reply(ch, m.NoWait, &amqpwire.ExchangeUnbindOk{})
	}
	return fault(amqpwire.CommandInvalid, "unimplemented method")
}

func (c *conn) declareExchange(m *amqpwire.ExchangeDeclare) error {
	name := stripName(m.Exchange)
	if !m.Passive && !route.KnownType(m.Type) {
		return preconditionFailed("unknown exchange type '%s'", m.Type)
	}
	if name == "" {
		return accessRefused(textDefaultExchange)
	}
	object := c.object("exchange", name)
	existing := c.sess.LookupExchange(name)
	if m.Passive {
		if existing == nil {
			return notFound("no %s", object)
		}
		return nil
	}
	if err := amqpwire.ValidateTable(m.Arguments); err != nil {
		return err
	}
	if existing == nil {
		if err := checkName("exchange", name); err != nil {
			return err
		}
		alternate, _ := amqpwire.LookupTable(m.Arguments, alternateArg)
		if !alternate.IsZero() && alternate.Type() != amqpwire.FieldString {
			return preconditionFailed("invalid type '%s' for arg '%s' in %s", alternate.Type(), alternateArg, object)
		}
		to, _ := alternate.Bytes()
		hashOn, err := hashOn(m.Type, m.Arguments)
		if err != nil {
			return err
		}
		existing, err = c.sess.DeclareExchange(broker.ExchangeSpec{
			Name: name, Type: m.Type, Durable: m.Durable, AutoDelete: m.AutoDelete, Internal: m.Internal,
			Alternate: string(to), HashOn: hashOn, Args: m.Arguments,
		})
		if err != nil || existing == nil {
			return err
		}
	}
	return assertEquivalent(object, []property{
		{"type", m.Type, existing.Type},
		{"durable", word(m.Durable), word(existing.Durable)},
		{"auto_delete", word(m.AutoDelete), word(existing.AutoDelete)},
		{"internal", word(m.Internal), word(existing.Internal)},
	}, exchangeArg, existing.Args, m.Arguments)
}

// hashOn reads what a consistent hash exchange hashes instead of the routing key.
func hashOn(kind string, args amqpwire.RawTable) (on route.HashOn, err error) {
	if kind != route.ConsistentHash {
		return on, nil
	}
	if v, ok := amqpwire.LookupTable(args, "hash-header"); ok {
		b, _ := v.Bytes()
		on.Header = string(b)
	}
	if v, ok := amqpwire.LookupTable(args, "hash-property"); ok {
		b, _ := v.Bytes()
		on.Property = string(b)
		switch on.Property {
		case "message_id", "correlation_id", "timestamp":
		default:
			return on, preconditionFailed("Unsupported property: %s", on.Property)
		}
	}
	if on.Header != "" && on.Property != "" {
		return on, preconditionFailed("hash-header and hash-property are mutually exclusive")
	}
	return on, nil
}

func (c *conn) deleteExchange(m *amqpwire.ExchangeDelete) error {
	name := stripName(m.Exchange)
	if name == "" {
		return accessRefused(textDefaultExchange)
	}
	if strings.HasPrefix(name, "amq.") {
		return accessRefused("deletion of system %s not allowed", c.object("exchange", name))
	}
	return c.sess.DeleteExchange(name, m.IfUnused)
}

// bind makes or removes a binding, by the given method of the session.
func (c *conn) bind(do func(broker.BindingSpec) error, source, destination string, kind route.DestinationKind, key string, raw amqpwire.RawTable) error {
	source, destination = stripName(source), stripName(destination)
	if source == "" || kind == route.ToExchange && destination == "" {
		return accessRefused(textDefaultExchange)
	}
	args, headers, err := bindingArgs(raw)
	if err != nil {
		return err
	}
	if x := c.sess.LookupExchange(source); x != nil && x.Type == route.Headers {
		if err := route.CheckHeaders(headers); err != nil {
			return preconditionFailed("%s", err.Error())
		}
	}
	return do(broker.BindingSpec{
		Source: source, Destination: destination, Kind: kind, Key: key, Args: args, Headers: headers,
	})
}

// bindingArgs returns the arguments of a binding sorted by name, because they are part
// of its identity, and as package route compares them.
func bindingArgs(raw amqpwire.RawTable) (amqpwire.RawTable, []route.HeaderArg, error) {
	t, err := amqpwire.ParseTable(raw)
	if err != nil || len(t) == 0 {
		return nil, nil, err
	}
	slices.SortStableFunc(t, func(a, b amqpwire.Field) int { return strings.Compare(a.Key, b.Key) })
	headers := make([]route.HeaderArg, 0, len(t))
	for _, f := range t {
		v := routeValue(f.Value)
		v.Bytes = bytes.Clone(v.Bytes)
		headers = append(headers, route.HeaderArg{Key: f.Key, Value: v})
	}
	args, err := t.Raw()
	return args, headers, err
}

func (c *conn) queueMethod(ch *channel, m amqpwire.Method) error {
	switch m := m.(type) {
	case *amqpwire.QueueDeclare:
		// The number of messages is to include what was published before.
		if err := c.barrier(); err != nil {
			return err
		}
		st, err := c.declareQueue(m)
		if err != nil {
			return err
		}
		ch.lastQueue = st.Name
		return c.reply(ch, m.NoWait, &amqpwire.QueueDeclareOk{
			Queue: st.Name, MessageCount: clamp(st.Messages), ConsumerCount: st.Consumers,
		})
	case *amqpwire.QueueBind:
		name, err := ch.queueName(m.Queue)
		if err != nil {
			return err
		}
		key := m.RoutingKey
		if m.Queue == "" && key == "" {
			key = name
		}
		c.submit()
		if err := c.bind(c.sess.Bind, m.Exchange, name, route.ToQueue, key, m.Arguments); err != nil {
			return err
		}
		return c.reply(ch, m.NoWait, &amqpwire.QueueBindOk{})
	case *amqpwire.QueueUnbind:
		name, err := ch.queueName(m.Queue)
		if err != nil {
			return err
		}
		key := m.RoutingKey
		if m.Queue == "" && key == "" {
			key = name
		}
		c.submit()
		if err := c.bind(c.sess.Unbind, m.Exchange, name, route.ToQueue, key, m.Arguments); err != nil {
			return err
		}
		return c.send(ch.id, &amqpwire.QueueUnbindOk{})
	case *amqpwire.QueuePurge:
		return c.purgeQueue(ch, m)
	case *amqpwire.QueueDelete:
		return c.deleteQueue(ch, m)
	}
	return fault(amqpwire.CommandInvalid, "unimplemented method")
}

func (c *conn) purgeQueue(ch *channel, m *amqpwire.QueuePurge) error {
	name, err := ch.queueName(m.Queue)
	if err != nil {
		return err
	}
	if err := c.barrier(); err != nil {
		return err
	}
	n, err := c.sess.PurgeQueue(name)
	if err != nil {
		return err
	}
	return c.reply(ch, m.NoWait, &amqpwire.QueuePurgeOk{MessageCount: clamp(n)})
}

func (c *conn) deleteQueue(ch *channel, m *amqpwire.QueueDelete) error {
	name, err := ch.queueName(m.Queue)
	if err != nil {
		return err
	}
	if err := c.barrier(); err != nil {
		return err
	}
	n, err := c.sess.DeleteQueue(name, m.IfUnused, m.IfEmpty)
	if err != nil {
		return err
	}
	return c.reply(ch, m.NoWait, &amqpwire.QueueDeleteOk{MessageCount: clamp(n)})
}

func clamp(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }

func (c *conn) declareQueue(m *amqpwire.QueueDeclare) (broker.QueueStatus, error) {
	name := stripName(m.Queue)
	object := c.object("queue", name)
	if m.Passive {
		if name == "" {
			return broker.QueueStatus{}, notFound("no %s", object)
		}
		return c.sess.QueueStatus(name)
	}
	kind, typ, rabbit := queueType(m.Arguments)
	if name == "" && kind != classicArg {
		return broker.QueueStatus{}, preconditionFailed("Cannot declare a server-named queue for type %s", rabbit)
	}
	if err := checkName("queue", name); err != nil {
		return broker.QueueStatus{}, err
	}
	if name != "" {
		// What contradicts a queue that exists is said first.
		st, err := c.sess.QueueStatus(name)
		if err == nil {
			return st, c.assertSameQueue(st.Existing, m, object)
		}
		if berr.ReasonOf(err) != berr.NotFound {
			return st, err
		}
	}
	if err := c.checkQueue(m, kind, rabbit, object); err != nil {
		return broker.QueueStatus{}, err
	}
	st, err := c.sess.DeclareQueue(broker.QueueSpec{
		Name: name, Type: typ, Durable: m.Durable, Exclusive: m.Exclusive, AutoDelete: m.AutoDelete, Args: m.Arguments,
	})
	if err == nil && st.Existing != nil {
		err = c.assertSameQueue(st.Existing, m, object)
	}
	return st, err
}

// checkQueue judges the declaration of a queue that isn't there.
func (c *conn) checkQueue(m *amqpwire.QueueDeclare, kind argKinds, rabbit, object string) error {
	if err := checkArgs(kind, rabbit, m.Arguments, object); err != nil {
		return err
	}
	if kind == classicArg {
		return nil
	}
	bad := ""
	switch {
	case m.AutoDelete:
		bad = "auto-delete"
	case m.Exclusive:
		bad = "exclusive-owner"
	case !m.Durable:
		bad = "non-durable"
	case kind == streamArg:
		return notImplemented("queue type 'stream' of %s is not supported", object)
	default:
		return nil
	}
	return preconditionFailed("invalid property '%s' for %s", bad, object)
}

// assertSameQueue compares a queue with its repeated declaration.
func (c *conn) assertSameQueue(q *route.Queue, m *amqpwire.QueueDeclare, object string) error {
	if q == nil {
		return nil
	}
	if q.Exclusive != m.Exclusive {
		return fault(amqpwire.ResourceLocked, textLocked, object)
	}
	if err := amqpwire.ValidateTable(m.Arguments); err != nil {
		return err
	}
	kind := classicArg
	if q.Type == route.Quorum {
		kind = quorumArg
	}
	return assertEquivalent(object, []property{
		{"durable", word(m.Durable), word(q.Durable)},
		{"auto_delete", word(m.AutoDelete), word(q.AutoDelete)},
	}, kind, q.Args, m.Arguments)
}
