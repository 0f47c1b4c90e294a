package amqpwire

// BasicQos is basic.qos, from the client. PrefetchSize is in bytes,
// PrefetchCount in messages; 0 is no limit.
type BasicQos struct {
	PrefetchSize  uint32
	PrefetchCount uint16
	Global        bool
}

// BasicQosOk is basic.qos-ok, from the server.
type BasicQosOk struct{}

// BasicConsume is basic.consume, from the client. An empty tag asks the server
// to make one up.
type BasicConsume struct {
	Queue, ConsumerTag                string
	NoLocal, NoAck, Exclusive, NoWait bool
	Arguments                         RawTable
}

// BasicConsumeOk is basic.consume-ok, from the server.
type BasicConsumeOk struct{ ConsumerTag string }

// BasicCancel is basic.cancel, from the client, and from the server if the
// client has the capability consumer_cancel_notify.
type BasicCancel struct {
	ConsumerTag string
	NoWait      bool
}

// BasicCancelOk is basic.cancel-ok, the answer to [BasicCancel].
type BasicCancelOk struct{ ConsumerTag string }

// BasicPublish is basic.publish, from the client, with content. The server
// reads it with [ParsePublish].
type BasicPublish struct {
	Exchange, RoutingKey string
	Mandatory, Immediate bool
}

// BasicReturn is basic.return, from the server, with content.
type BasicReturn struct {
	ReplyCode            ReplyCode
	ReplyText            string
	Exchange, RoutingKey string
}

// BasicDeliver is basic.deliver, from the server, with content. The server
// writes it with [AppendDeliver].
type BasicDeliver struct {
	ConsumerTag          string
	DeliveryTag          uint64
	Redelivered          bool
	Exchange, RoutingKey string
}

// BasicGet is basic.get, from the client.
type BasicGet struct {
	Queue string
	NoAck bool
}

// BasicGetOk is basic.get-ok, from the server, with content. MessageCount is
// how many ready messages are left.
type BasicGetOk struct {
	DeliveryTag          uint64
	Redelivered          bool
	Exchange, RoutingKey string
	MessageCount         uint32
}

// BasicGetEmpty is basic.get-empty, from the server.
type BasicGetEmpty struct{}

// BasicAck is basic.ack, from the client, and as a confirm from the server.
// Multiple means all up to DeliveryTag.
type BasicAck struct {
	DeliveryTag uint64
	Multiple    bool
}

// BasicReject is basic.reject, from the client.
type BasicReject struct {
	DeliveryTag uint64
	Requeue     bool
}

// BasicRecoverAsync is basic.recover-async, from the client; it has no answer.
type BasicRecoverAsync struct{ Requeue bool }

// BasicRecover is basic.recover, from the client.
type BasicRecover struct{ Requeue bool }

// BasicRecoverOk is basic.recover-ok, from the server.
type BasicRecoverOk struct{}

// BasicNack is basic.nack, from the client, and as a confirm from the server,
// where Requeue has no meaning.
type BasicNack struct {
	DeliveryTag       uint64
	Multiple, Requeue bool
}

// ID implements [Method].
func (*BasicQos) ID() MethodID { return IDBasicQos }

func (m *BasicQos) visit(c *codec) {
	c.long(&m.PrefetchSize)
	c.short(&m.PrefetchCount)
	c.bits(&m.Global)
}

// ID implements [Method].
func (*BasicQosOk) ID() MethodID { return IDBasicQosOk }

func (*BasicQosOk) visit(*codec) {}

// ID implements [Method].
func (*BasicConsume) ID() MethodID { return IDBasicConsume }

func (m *BasicConsume) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Queue)
	c.shortstr(&m.ConsumerTag)
	c.bits(&m.NoLocal, &m.NoAck, &m.Exclusive, &m.NoWait)
	c.table(&m.Arguments)
}

// ID implements [Method].
func (*BasicConsumeOk) ID() MethodID { return IDBasicConsumeOk }

func (m *BasicConsumeOk) visit(c *codec) { c.shortstr(&m.ConsumerTag) }

// ID implements [Method].
func (*BasicCancel) ID() MethodID { return IDBasicCancel }

func (m *BasicCancel) visit(c *codec) {
	c.shortstr(&m.ConsumerTag)
	c.bits(&m.NoWait)
}

// ID implements [Method].
func (*BasicCancelOk) ID() MethodID { return IDBasicCancelOk }

func (m *BasicCancelOk) visit(c *codec) { c.shortstr(&m.ConsumerTag) }

// ID implements [Method].
func (*BasicPublish) ID() MethodID { return IDBasicPublish }

func (m *BasicPublish) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Exchange)
	c.shortstr(&m.RoutingKey)
	c.bits(&m.Mandatory, &m.Immediate)
}

// ID implements [Method].
func (*BasicReturn) ID() MethodID { return IDBasicReturn }

func (m *BasicReturn) visit(c *codec) {
	c.short((*uint16)(&m.ReplyCode))
	c.shortstr(&m.ReplyText)
	c.shortstr(&m.Exchange)
	c.shortstr(&m.RoutingKey)
}

// ID implements [Method].
func (*BasicDeliver) ID() MethodID { return IDBasicDeliver }

func (m *BasicDeliver) visit(c *codec) {
	c.shortstr(&m.ConsumerTag)
	c.longlong(&m.DeliveryTag)
	c.bits(&m.Redelivered)
	c.shortstr(&m.Exchange)
	c.shortstr(&m.RoutingKey)
}

// ID implements [Method].
func (*BasicGet) ID() MethodID { return IDBasicGet }

func (m *BasicGet) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Queue)
	c.bits(&m.NoAck)
}

// ID implements [Method].
func (*BasicGetOk) ID() MethodID { return IDBasicGetOk }

func (m *BasicGetOk) visit(c *codec) {
	c.longlong(&m.DeliveryTag)
	c.bits(&m.Redelivered)
	c.shortstr(&m.Exchange)
	c.shortstr(&m.RoutingKey)
	c.long(&m.MessageCount)
}

// ID implements [Method].
func (*BasicGetEmpty) ID() MethodID { return IDBasicGetEmpty }

func (*BasicGetEmpty) visit(c *codec) { c.reservedShortstr() } // cluster id

// ID implements [Method].
func (*BasicAck) ID() MethodID { return IDBasicAck }

func (m *BasicAck) visit(c *codec) {
	c.longlong(&m.DeliveryTag)
	c.bits(&m.Multiple)
}

// ID implements [Method].
func (*BasicReject) ID() MethodID { return IDBasicReject }

func (m *BasicReject) visit(c *codec) {
	c.longlong(&m.DeliveryTag)
	c.bits(&m.Requeue)
}

// ID implements [Method].
func (*BasicRecoverAsync) ID() MethodID { return IDBasicRecoverAsync }

func (m *BasicRecoverAsync) visit(c *codec) { c.bits(&m.Requeue) }

// ID implements [Method].
func (*BasicRecover) ID() MethodID { return IDBasicRecover }

func (m *BasicRecover) visit(c *codec) { c.bits(&m.Requeue) }

// ID implements [Method].
func (*BasicRecoverOk) ID() MethodID { return IDBasicRecoverOk }

func (*BasicRecoverOk) visit(*codec) {}

// ID implements [Method].
func (*BasicNack) ID() MethodID { return IDBasicNack }

func (m *BasicNack) visit(c *codec) {
	c.longlong(&m.DeliveryTag)
	c.bits(&m.Multiple, &m.Requeue)
}
