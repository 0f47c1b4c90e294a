package amqp

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// handshakeFrameMax bounds the frames of a client that has not authenticated. It is
// more than the 4,096 bytes of the specification, for long tokens; with the buffer and
// what is parsed from it such a client costs less than 64 KiB.
const handshakeFrameMax = readHandshakeBytes - amqpwire.FrameOverhead

// mechanisms lists how a client may authenticate.
func (c *conn) mechanisms() string {
	if c.certificateUser() != "" {
		return "PLAIN AMQPLAIN EXTERNAL"
	}
	return "PLAIN AMQPLAIN"
}

// certificateUser is whom the client's certificate stands for, empty for nobody.
func (c *conn) certificateUser() string {
	t, ok := c.nc.(*tls.Conn)
	if !ok || c.cfg.CertificateUser == nil {
		return ""
	}
	// The client has sent something, so the handshake of TLS is over.
	chains := t.ConnectionState().VerifiedChains
	if len(chains) == 0 {
		return ""
	}
	return c.cfg.CertificateUser(chains[0][0])
}

// handshake takes the connection from the protocol header to connection.open. Until it
// is over the connection has one goroutine, which writes too.
func (c *conn) handshake() error {
	now := time.Now()
	c.in.end = now.Add(c.cfg.HandshakeTimeout)
	c.in.limit = readHandshakeBytes
	c.frameMax = handshakeFrameMax
	if err := c.nc.SetWriteDeadline(c.in.end); err != nil {
		return err
	}
	if err := c.readHeader(); err != nil {
		return err
	}
	if err := c.authenticate(); err != nil {
		return err
	}
	c.srv.greeted(c)
	if err := c.tune(); err != nil {
		return err
	}
	return c.openVHost()
}

// readHeader reads the protocol header and answers a wrong one.
func (c *conn) readHeader() error {
	for {
		if err := c.fill(); err != nil {
			return c.handshakeFault(err)
		}
		h, n, err := amqpwire.ParseProtocolHeader(c.in.b[c.in.r:c.in.w])
		c.in.r += n
		switch {
		case err != nil:
			return c.refuseHeader(err.Error())
		case n > 0 && !h.Is091():
			return c.refuseHeader(fmt.Sprintf("protocol header %d %d %d %d", h[0], h[1], h[2], h[3]))
		case n > 0:
			return nil
		}
	}
}

// refuseHeader tells a client that speaks something else what is spoken here.
func (c *conn) refuseHeader(why string) error {
	_, _ = c.nc.Write(amqpwire.Header091.Append(nil))
	return &refusal{why: "unsupported protocol: " + why}
}

// handshakeFault replaces the errors of fill that mean nothing here.
func (c *conn) handshakeFault(err error) error {
	if errors.Is(err, errAttention) {
		return c.attend()
	}
	return err
}

// readMethod reads the next method of the handshake.
func (c *conn) readMethod() (amqpwire.Method, error) {
	for {
		f, n, err := amqpwire.ParseFrame(c.in.b[c.in.r:c.in.w], c.frameMax)
		if err != nil {
			return nil, err
		}
		c.in.r += n
		switch {
		case n == 0:
			if err := c.fill(); err != nil {
				if err := c.handshakeFault(err); err != nil {
					return nil, err
				}
			}
		case f.Type == amqpwire.FrameHeartbeat:
		case f.Type != amqpwire.FrameMethod:
			return nil, amqpwire.UnexpectedFrameError(f)
		case f.Channel != 0:
			return nil, fault(amqpwire.ChannelError, "unexpected method in connection state starting")
		default:
			return amqpwire.ParseMethod(f.Payload)
		}
	}
}

// expect reads the next method, which must be a T. connection.close is always allowed.
func expect[T amqpwire.Method](c *conn, state string) (m T, err error) {
	got, err := c.readMethod()
	if err != nil {
		return m, err
	}
	m, ok := got.(T)
	if ok {
		return m, nil
	}
	if _, ok := got.(*amqpwire.ConnectionClose); ok {
		return m, errClosedByPeer
	}
	return m, wireError(fault(amqpwire.ChannelError, "unexpected method in connection state %s", state), got.ID())
}

// write sends a method at once.
func (c *conn) write(m amqpwire.Method) error {
	frame, err := amqpwire.AppendMethodFrame(nil, 0, m)
	if err != nil {
		return err
	}
	n, err := c.nc.Write(frame)
	c.t.out += int64(n)
	return err
}

func (c *conn) authenticate() error {
	props, err := c.serverProperties()
	if err != nil {
		return err
	}
	err = c.write(&amqpwire.ConnectionStart{
		VersionMajor: 0, VersionMinor: 9,
		ServerProperties: props,
		Mechanisms:       []byte(c.mechanisms()),
		Locales:          []byte("en_US"),
	})
	if err != nil {
		return err
	}
	m, err := expect[*amqpwire.ConnectionStartOk](c, "starting")
	if err != nil {
		return err
	}
	if err := amqpwire.ValidateTable(m.ClientProperties); err != nil {
		return wireError(err, m.ID())
	}
	c.readClientProperties(m.ClientProperties)
	if user := c.certificateUser(); m.Mechanism == "EXTERNAL" && user != "" {
		c.user = user
		if err := c.srv.broker.AuthenticateExternal(user); err != nil {
			return c.refuseLogin(m.Mechanism, user, err)
		}
		return nil
	}
	user, password, err := credentials(m.Mechanism, m.Response)
	if err != nil {
		return wireError(err, m.ID())
	}
	c.user = user
	if err := c.srv.broker.Authenticate(user, password, c.loopback); err != nil {
		return c.refuseLogin(m.Mechanism, user, err)
	}
	return nil
}

// refuseLogin tells the client that its password is wrong if it can understand, and
// nobody which part of it.
func (c *conn) refuseLogin(mechanism, user string, why error) error {
	c.log.Warn("login refused", "user", user, "mechanism", mechanism, "reason", why)
	if !c.authFailureClose {
		return &refusal{why: "login refused"}
	}
	return accessRefused("Login was refused using authentication mechanism %s. For details see the broker logfile.", mechanism)
}

// credentials extracts user and password from the response of a mechanism.
func credentials(mechanism string, response []byte) (user, password string, err error) {
	switch mechanism {
	case "PLAIN":
		// [authzid] NUL authcid NUL password (RFC 4616)
		parts := strings.SplitN(string(response), "\x00", 3)
		if len(parts) != 3 {
			return "", "", fault(amqpwire.SyntaxError, "response of mechanism PLAIN invalid")
		}
		return parts[1], parts[2], nil
	case "AMQPLAIN":
		login, _ := amqpwire.LookupTable(response, "LOGIN")
		pass, _ := amqpwire.LookupTable(response, "PASSWORD")
		u, ok1 := login.Bytes()
		p, ok2 := pass.Bytes()
		if !ok1 || !ok2 {
			return "", "", fault(amqpwire.SyntaxError, "AMQPLAIN auth info is missing LOGIN or PASSWORD field")
		}
		return string(u), string(p), nil
	}
	return "", "", fault(amqpwire.CommandInvalid, "unknown authentication mechanism '%s'", mechanism)
}

// serverProperties describes the broker. Clients choose their behavior by it: product,
// version and the capabilities decide what they dare to ask for.
func (c *conn) serverProperties() (amqpwire.RawTable, error) {
	yes := amqpwire.Bool(true)
	capabilities, err := amqpwire.TableValue(amqpwire.Table{
		{Key: "publisher_confirms", Value: yes},
		{Key: "exchange_exchange_bindings", Value: yes},
		{Key: "basic.nack", Value: yes},
		{Key: "consumer_cancel_notify", Value: yes},
		{Key: "connection.blocked", Value: yes},
		{Key: "authentication_failure_close", Value: yes},
		{Key: "per_consumer_qos", Value: yes},
	})
	if err != nil {
		return nil, err
	}
	t := amqpwire.Table{
		{Key: "capabilities", Value: capabilities},
		{Key: "product", Value: amqpwire.String(c.cfg.Product)},
		{Key: "version", Value: amqpwire.String(c.cfg.Version)},
		{Key: "cluster_name", Value: amqpwire.String(c.cfg.ClusterName)},
		{Key: "platform", Value: amqpwire.String(c.cfg.Platform)},
		{Key: "copyright", Value: amqpwire.String("The sluice authors")},
		{Key: "information", Value: amqpwire.String("Licensed under the Apache License 2.0")},
	}
	return append(t, c.cfg.Properties...).Raw()
}

func (c *conn) readClientProperties(t amqpwire.RawTable) {
	if v, ok := amqpwire.LookupTable(t, "connection_name"); ok {
		b, _ := v.Bytes()
		c.name = string(b)
	}
	v, _ := amqpwire.LookupTable(t, "capabilities")
	capabilities, _ := v.Table()
	has := func(name string) bool {
		v, _ := amqpwire.LookupTable(capabilities, name)
		b, _ := v.Bool()
		return b
	}
	c.cancelNotify = has("consumer_cancel_notify")
	c.blockNotify = has("connection.blocked")
	c.authFailureClose = has("authentication_failure_close")
}

// tune negotiates the limits: the client may choose less, and 0 leaves ours.
func (c *conn) tune() error {
	seconds := uint16(min(max(c.cfg.Heartbeat, 0)/time.Second, 65535))
	err := c.write(&amqpwire.ConnectionTune{
		ChannelMax: c.cfg.ChannelMax,
		FrameMax:   c.cfg.FrameMax,
		Heartbeat:  seconds,
	})
	if err != nil {
		return err
	}
	m, err := expect[*amqpwire.ConnectionTuneOk](c, "tuning")
	if err != nil {
		return err
	}
	negotiate := func(field string, client, lowest, highest uint32) (uint32, error) {
		refuse := func(how, which string, limit uint32) error {
			e := fault(amqpwire.NotAllowed, "negotiated %s = %d is %s than the %s allowed value (%d)", field, client, how, which, limit)
			return wireError(e, m.ID())
		}
		switch {
		case client == 0:
			return highest, nil
		case client < lowest:
			return 0, refuse("lower", "minimum", lowest)
		case client > highest:
			return 0, refuse("higher", "maximum", highest)
		}
		return client, nil
	}
	frameMax, err := negotiate("frame_max", m.FrameMax, amqpwire.FrameMinSize, c.cfg.FrameMax)
	if err != nil {
		return err
	}
	channelMax, err := negotiate("channel_max", uint32(m.ChannelMax), 1, uint32(c.cfg.ChannelMax))
	if err != nil {
		return err
	}
	c.frameMax, c.channelMax = frameMax, uint16(channelMax)
	c.heartbeat = time.Duration(m.Heartbeat) * time.Second
	c.in.limit = max(readBusyBytes, int(frameMax)+amqpwire.FrameOverhead)
	return nil
}

// openVHost opens the session and starts the writer.
func (c *conn) openVHost() error {
	m, err := expect[*amqpwire.ConnectionOpen](c, "opening")
	if err != nil {
		return err
	}
	c.vhost = m.VirtualHost
	id := broker.Identity{ID: c.id, Name: c.name, User: c.user, VHost: c.vhost, Protocol: "AMQP 0-9-1"}
	c.sess, err = c.srv.broker.Open(id, c)
	if err != nil {
		c.sess = nil
		// Whatever is wrong with a virtual host is 530 here.
		return wireError(fault(amqpwire.NotAllowed, "%s", err.Error()), m.ID())
	}
	c.pub = c.sess.Publisher()
	c.in.end, c.in.stale = time.Time{}, true
	if err := c.nc.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	c.writerDone = make(chan struct{})
	c.w.init(c)
	go c.w.run()
	if err := c.send(0, &amqpwire.ConnectionOpenOk{}); err != nil {
		return err
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.opened = true
	if c.out.blocked {
		c.tellBlockedLocked(&amqpwire.ConnectionBlocked{Reason: c.out.blockedBy})
	}
	return nil
}
