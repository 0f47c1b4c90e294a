package amqpwire

// ExchangeDeclare is exchange.declare, from the client.
type ExchangeDeclare struct {
	Exchange, Type                                 string
	Passive, Durable, AutoDelete, Internal, NoWait bool
	Arguments                                      RawTable
}

// ExchangeDeclareOk is exchange.declare-ok, from the server.
type ExchangeDeclareOk struct{}

// ExchangeDelete is exchange.delete, from the client.
type ExchangeDelete struct {
	Exchange         string
	IfUnused, NoWait bool
}

// ExchangeDeleteOk is exchange.delete-ok, from the server.
type ExchangeDeleteOk struct{}

// ExchangeBind is exchange.bind, from the client: what Source routes by
// RoutingKey also goes to the exchange Destination.
type ExchangeBind struct {
	Destination, Source, RoutingKey string
	NoWait                          bool
	Arguments                       RawTable
}

// ExchangeBindOk is exchange.bind-ok, from the server.
type ExchangeBindOk struct{}

// ExchangeUnbind is exchange.unbind, from the client.
type ExchangeUnbind struct {
	Destination, Source, RoutingKey string
	NoWait                          bool
	Arguments                       RawTable
}

// ExchangeUnbindOk is exchange.unbind-ok, from the server.
type ExchangeUnbindOk struct{}

// QueueDeclare is queue.declare, from the client. An empty name asks the server
// to make one up.
type QueueDeclare struct {
	Queue                                           string
	Passive, Durable, Exclusive, AutoDelete, NoWait bool
	Arguments                                       RawTable
}

// QueueDeclareOk is queue.declare-ok, from the server. MessageCount counts
// ready messages only.
type QueueDeclareOk struct {
	Queue                       string
	MessageCount, ConsumerCount uint32
}

// QueueBind is queue.bind, from the client. An empty queue name is the queue
// declared last on the channel.
type QueueBind struct {
	Queue, Exchange, RoutingKey string
	NoWait                      bool
	Arguments                   RawTable
}

// QueueBindOk is queue.bind-ok, from the server.
type QueueBindOk struct{}

// QueuePurge is queue.purge, from the client.
type QueuePurge struct {
	Queue  string
	NoWait bool
}

// QueuePurgeOk is queue.purge-ok, from the server.
type QueuePurgeOk struct{ MessageCount uint32 }

// QueueDelete is queue.delete, from the client.
type QueueDelete struct {
	Queue                     string
	IfUnused, IfEmpty, NoWait bool
}

// QueueDeleteOk is queue.delete-ok, from the server.
type QueueDeleteOk struct{ MessageCount uint32 }

// QueueUnbind is queue.unbind, from the client. It has no no-wait bit.
type QueueUnbind struct {
	Queue, Exchange, RoutingKey string
	Arguments                   RawTable
}

// QueueUnbindOk is queue.unbind-ok, from the server.
type QueueUnbindOk struct{}

// ID implements [Method].
func (*ExchangeDeclare) ID() MethodID { return IDExchangeDeclare }

func (m *ExchangeDeclare) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Exchange)
	c.shortstr(&m.Type)
	c.bits(&m.Passive, &m.Durable, &m.AutoDelete, &m.Internal, &m.NoWait)
	c.table(&m.Arguments)
}

// ID implements [Method].
func (*ExchangeDeclareOk) ID() MethodID { return IDExchangeDeclareOk }

func (*ExchangeDeclareOk) visit(*codec) {}

// ID implements [Method].
func (*ExchangeDelete) ID() MethodID { return IDExchangeDelete }

func (m *ExchangeDelete) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Exchange)
	c.bits(&m.IfUnused, &m.NoWait)
}

// ID implements [Method].
func (*ExchangeDeleteOk) ID() MethodID { return IDExchangeDeleteOk }

func (*ExchangeDeleteOk) visit(*codec) {}

// ID implements [Method].
func (*ExchangeBind) ID() MethodID { return IDExchangeBind }

func (m *ExchangeBind) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Destination)
	c.shortstr(&m.Source)
	c.shortstr(&m.RoutingKey)
	c.bits(&m.NoWait)
	c.table(&m.Arguments)
}

// ID implements [Method].
func (*ExchangeBindOk) ID() MethodID { return IDExchangeBindOk }

func (*ExchangeBindOk) visit(*codec) {}

// ID implements [Method].
func (*ExchangeUnbind) ID() MethodID { return IDExchangeUnbind }

func (m *ExchangeUnbind) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Destination)
	c.shortstr(&m.Source)
	c.shortstr(&m.RoutingKey)
	c.bits(&m.NoWait)
	c.table(&m.Arguments)
}

// ID implements [Method].
func (*ExchangeUnbindOk) ID() MethodID { return IDExchangeUnbindOk }

func (*ExchangeUnbindOk) visit(*codec) {}

// ID implements [Method].
func (*QueueDeclare) ID() MethodID { return IDQueueDeclare }

func (m *QueueDeclare) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Queue)
	c.bits(&m.Passive, &m.Durable, &m.Exclusive, &m.AutoDelete, &m.NoWait)
	c.table(&m.Arguments)
}

// ID implements [Method].
func (*QueueDeclareOk) ID() MethodID { return IDQueueDeclareOk }

func (m *QueueDeclareOk) visit(c *codec) {
	c.shortstr(&m.Queue)
	c.long(&m.MessageCount)
	c.long(&m.ConsumerCount)
}

// ID implements [Method].
func (*QueueBind) ID() MethodID { return IDQueueBind }

func (m *QueueBind) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Queue)
	c.shortstr(&m.Exchange)
	c.shortstr(&m.RoutingKey)
	c.bits(&m.NoWait)
	c.table(&m.Arguments)
}

// ID implements [Method].
func (*QueueBindOk) ID() MethodID { return IDQueueBindOk }

func (*QueueBindOk) visit(*codec) {}

// ID implements [Method].
func (*QueuePurge) ID() MethodID { return IDQueuePurge }

func (m *QueuePurge) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Queue)
	c.bits(&m.NoWait)
}

// ID implements [Method].
func (*QueuePurgeOk) ID() MethodID { return IDQueuePurgeOk }

func (m *QueuePurgeOk) visit(c *codec) { c.long(&m.MessageCount) }

// ID implements [Method].
func (*QueueDelete) ID() MethodID { return IDQueueDelete }

func (m *QueueDelete) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Queue)
	c.bits(&m.IfUnused, &m.IfEmpty, &m.NoWait)
}

// ID implements [Method].
func (*QueueDeleteOk) ID() MethodID { return IDQueueDeleteOk }

func (m *QueueDeleteOk) visit(c *codec) { c.long(&m.MessageCount) }

// ID implements [Method].
func (*QueueUnbind) ID() MethodID { return IDQueueUnbind }

func (m *QueueUnbind) visit(c *codec) {
	c.reservedShort()
	c.shortstr(&m.Queue)
	c.shortstr(&m.Exchange)
	c.shortstr(&m.RoutingKey)
	c.table(&m.Arguments)
}

// ID implements [Method].
func (*QueueUnbindOk) ID() MethodID { return IDQueueUnbindOk }

func (*QueueUnbindOk) visit(*codec) {}
