package amqpwire

// ConnectionStart is connection.start, from the server.
type ConnectionStart struct {
	VersionMajor, VersionMinor uint8
	ServerProperties           RawTable
	// Mechanisms and Locales are lists with spaces between the names.
	Mechanisms, Locales []byte
}

// ConnectionStartOk is connection.start-ok, from the client.
type ConnectionStartOk struct {
	ClientProperties RawTable
	Mechanism        string
	// Response is the initial SASL response; for AMQPLAIN a raw table.
	Response []byte
	Locale   string
}

// ConnectionSecure is connection.secure, from the server: a SASL challenge.
type ConnectionSecure struct{ Challenge []byte }

// ConnectionSecureOk is connection.secure-ok, from the client.
type ConnectionSecureOk struct{ Response []byte }

// ConnectionTune is connection.tune, from the server: the limits it proposes.
type ConnectionTune struct {
	ChannelMax uint16 // highest channel number, 0 is no limit
	FrameMax   uint32 // bytes, 0 is no limit
	Heartbeat  uint16 // seconds, 0 is none
}

// ConnectionTuneOk is connection.tune-ok, from the client: the limits it has
// chosen. The units are those of [ConnectionTune].
type ConnectionTuneOk struct {
	ChannelMax uint16
	FrameMax   uint32
	Heartbeat  uint16
}

// ConnectionOpen is connection.open, from the client.
type ConnectionOpen struct{ VirtualHost string }

// ConnectionOpenOk is connection.open-ok, from the server.
type ConnectionOpenOk struct{}

// ConnectionClose is connection.close, from both sides. The ids are those of
// the method at fault, or 0.
type ConnectionClose struct {
	ReplyCode         ReplyCode
	ReplyText         string
	ClassID, MethodID uint16
}

// ConnectionCloseOk is connection.close-ok, from both sides.
type ConnectionCloseOk struct{}

// ConnectionBlocked is connection.blocked, from the server: publishes are not
// read for now.
type ConnectionBlocked struct{ Reason string }

// ConnectionUnblocked is connection.unblocked, from the server.
type ConnectionUnblocked struct{}

// ConnectionUpdateSecret is connection.update-secret, from the client: a fresh
// token for a session that goes on.
type ConnectionUpdateSecret struct {
	NewSecret []byte
	Reason    string
}

// ConnectionUpdateSecretOk is connection.update-secret-ok, from the server.
type ConnectionUpdateSecretOk struct{}

// ID implements [Method].
func (*ConnectionStart) ID() MethodID { return IDConnectionStart }

func (m *ConnectionStart) visit(c *codec) {
	c.octet(&m.VersionMajor)
	c.octet(&m.VersionMinor)
	c.table(&m.ServerProperties)
	c.longstr(&m.Mechanisms)
	c.longstr(&m.Locales)
}

// ID implements [Method].
func (*ConnectionStartOk) ID() MethodID { return IDConnectionStartOk }

func (m *ConnectionStartOk) visit(c *codec) {
	c.table(&m.ClientProperties)
	c.shortstr(&m.Mechanism)
	c.longstr(&m.Response)
	c.shortstr(&m.Locale)
}

// ID implements [Method].
func (*ConnectionSecure) ID() MethodID { return IDConnectionSecure }

func (m *ConnectionSecure) visit(c *codec) { c.longstr(&m.Challenge) }

// ID implements [Method].
func (*ConnectionSecureOk) ID() MethodID { return IDConnectionSecureOk }

func (m *ConnectionSecureOk) visit(c *codec) { c.longstr(&m.Response) }

// ID implements [Method].
func (*ConnectionTune) ID() MethodID { return IDConnectionTune }

func (m *ConnectionTune) visit(c *codec) {
	c.short(&m.ChannelMax)
	c.long(&m.FrameMax)
	c.short(&m.Heartbeat)
}

// ID implements [Method].
func (*ConnectionTuneOk) ID() MethodID { return IDConnectionTuneOk }

func (m *ConnectionTuneOk) visit(c *codec) {
	c.short(&m.ChannelMax)
	c.long(&m.FrameMax)
	c.short(&m.Heartbeat)
}

// ID implements [Method].
func (*ConnectionOpen) ID() MethodID { return IDConnectionOpen }

func (m *ConnectionOpen) visit(c *codec) {
	c.shortstr(&m.VirtualHost)
	c.reservedShortstr() // capabilities
	c.bits()             // insist
}

// ID implements [Method].
func (*ConnectionOpenOk) ID() MethodID { return IDConnectionOpenOk }

func (*ConnectionOpenOk) visit(c *codec) { c.reservedShortstr() } // known hosts

// ID implements [Method].
func (*ConnectionClose) ID() MethodID { return IDConnectionClose }

func (m *ConnectionClose) visit(c *codec) {
	c.short((*uint16)(&m.ReplyCode))
	c.shortstr(&m.ReplyText)
	c.short(&m.ClassID)
	c.short(&m.MethodID)
}

// ID implements [Method].
func (*ConnectionCloseOk) ID() MethodID { return IDConnectionCloseOk }

func (*ConnectionCloseOk) visit(*codec) {}

// ID implements [Method].
func (*ConnectionBlocked) ID() MethodID { return IDConnectionBlocked }

func (m *ConnectionBlocked) visit(c *codec) { c.shortstr(&m.Reason) }

// ID implements [Method].
func (*ConnectionUnblocked) ID() MethodID { return IDConnectionUnblocked }

func (*ConnectionUnblocked) visit(*codec) {}

// ID implements [Method].
func (*ConnectionUpdateSecret) ID() MethodID { return IDConnectionUpdateSecret }

func (m *ConnectionUpdateSecret) visit(c *codec) {
	c.longstr(&m.NewSecret)
	c.shortstr(&m.Reason)
}

// ID implements [Method].
func (*ConnectionUpdateSecretOk) ID() MethodID { return IDConnectionUpdateSecretOk }

func (*ConnectionUpdateSecretOk) visit(*codec) {}
