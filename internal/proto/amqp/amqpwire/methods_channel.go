package amqpwire

// ChannelOpen is channel.open, from the client.
type ChannelOpen struct{}

// ChannelOpenOk is channel.open-ok, from the server.
type ChannelOpenOk struct{}

// ChannelFlow is channel.flow, from both sides.
type ChannelFlow struct{ Active bool }

// ChannelFlowOk is channel.flow-ok, from both sides.
type ChannelFlowOk struct{ Active bool }

// ChannelClose is channel.close, from both sides. The ids are those of the
// method at fault, or 0.
type ChannelClose struct {
	ReplyCode         ReplyCode
	ReplyText         string
	ClassID, MethodID uint16
}

// ChannelCloseOk is channel.close-ok, from both sides.
type ChannelCloseOk struct{}

// AccessRequest is access.request, from the client: a relic of AMQP 0-8 that
// old clients send. The answer is [AccessRequestOk] with ticket 1.
type AccessRequest struct {
	Realm                                   string
	Exclusive, Passive, Active, Write, Read bool
}

// AccessRequestOk is access.request-ok, from the server.
type AccessRequestOk struct{ Ticket uint16 }

// ConfirmSelect is confirm.select, from the client.
type ConfirmSelect struct{ NoWait bool }

// ConfirmSelectOk is confirm.select-ok, from the server.
type ConfirmSelectOk struct{}

// TxSelect is tx.select, from the client.
type TxSelect struct{}

// TxSelectOk is tx.select-ok, from the server.
type TxSelectOk struct{}

// TxCommit is tx.commit, from the client.
type TxCommit struct{}

// TxCommitOk is tx.commit-ok, from the server.
type TxCommitOk struct{}

// TxRollback is tx.rollback, from the client.
type TxRollback struct{}

// TxRollbackOk is tx.rollback-ok, from the server.
type TxRollbackOk struct{}

// ID implements [Method].
func (*ChannelOpen) ID() MethodID { return IDChannelOpen }

func (*ChannelOpen) visit(c *codec) { c.reservedShortstr() } // out of band

// ID implements [Method].
func (*ChannelOpenOk) ID() MethodID { return IDChannelOpenOk }

func (*ChannelOpenOk) visit(c *codec) {
	var channelID []byte // reserved
	c.longstr(&channelID)
}

// ID implements [Method].
func (*ChannelFlow) ID() MethodID { return IDChannelFlow }

func (m *ChannelFlow) visit(c *codec) { c.bits(&m.Active) }

// ID implements [Method].
func (*ChannelFlowOk) ID() MethodID { return IDChannelFlowOk }

func (m *ChannelFlowOk) visit(c *codec) { c.bits(&m.Active) }

// ID implements [Method].
func (*ChannelClose) ID() MethodID { return IDChannelClose }

func (m *ChannelClose) visit(c *codec) {
	c.short((*uint16)(&m.ReplyCode))
	c.shortstr(&m.ReplyText)
	c.short(&m.ClassID)
	c.short(&m.MethodID)
}

// ID implements [Method].
func (*ChannelCloseOk) ID() MethodID { return IDChannelCloseOk }

func (*ChannelCloseOk) visit(*codec) {}

// ID implements [Method].
func (*AccessRequest) ID() MethodID { return IDAccessRequest }

func (m *AccessRequest) visit(c *codec) {
	c.shortstr(&m.Realm)
	c.bits(&m.Exclusive, &m.Passive, &m.Active, &m.Write, &m.Read)
}

// ID implements [Method].
func (*AccessRequestOk) ID() MethodID { return IDAccessRequestOk }

func (m *AccessRequestOk) visit(c *codec) { c.short(&m.Ticket) }

// ID implements [Method].
func (*ConfirmSelect) ID() MethodID { return IDConfirmSelect }

func (m *ConfirmSelect) visit(c *codec) { c.bits(&m.NoWait) }

// ID implements [Method].
func (*ConfirmSelectOk) ID() MethodID { return IDConfirmSelectOk }

func (*ConfirmSelectOk) visit(*codec) {}

// ID implements [Method].
func (*TxSelect) ID() MethodID { return IDTxSelect }

func (*TxSelect) visit(*codec) {}

// ID implements [Method].
func (*TxSelectOk) ID() MethodID { return IDTxSelectOk }

func (*TxSelectOk) visit(*codec) {}

// ID implements [Method].
func (*TxCommit) ID() MethodID { return IDTxCommit }

func (*TxCommit) visit(*codec) {}

// ID implements [Method].
func (*TxCommitOk) ID() MethodID { return IDTxCommitOk }

func (*TxCommitOk) visit(*codec) {}

// ID implements [Method].
func (*TxRollback) ID() MethodID { return IDTxRollback }

func (*TxRollback) visit(*codec) {}

// ID implements [Method].
func (*TxRollbackOk) ID() MethodID { return IDTxRollbackOk }

func (*TxRollbackOk) visit(*codec) {}
