package amqp

import (
	"container/list"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
	"github.com/sluicemq/sluice/internal/queue"
)

const (
	// outboxRoom is the byte pool of a connection: what may be delivered and not
	// written yet.
	outboxRoom = 256 << 10
	// settleToken marks the tokens of settlements among those of completions.
	settleToken = 1 << 63
)

// conn is one connection.
type conn struct {
	srv *Server
	cfg *Config
	nc  net.Conn
	id  string
	log *slog.Logger

	// Set by the handshake, and constant when the writer starts.
	user, vhost, name string
	loopback          bool
	cancelNotify      bool // the client has the capability consumer_cancel_notify
	blockNotify       bool // connection.blocked
	authFailureClose  bool // authentication_failure_close
	frameMax          uint32
	channelMax        uint16
	heartbeat         time.Duration // 0 is none
	sess              Session
	pub               Publisher

	greeting *list.Element // in Server.greeting, guarded by Server.mu; nil once logged in
	cut      atomic.Bool   // cut off for others

	out   outbox
	bytes *broker.Pool

	w          writer
	writerDone chan struct{} // nil until the writer runs

	// closing: nothing is delivered any more, and the write deadline is final.
	closing atomic.Bool
	// attention: somebody has set the read deadline to the past to make the reader look
	// at the outbox.
	attention atomic.Bool
	// blocked is outbox.blocked, for a quick look.
	blocked atomic.Bool

	// sessMu is held by the writer while it is in the session, and by the reader while
	// it closes it.
	sessMu     sync.Mutex
	sessClosed bool
	// settleMu makes the reader's and the writer's settlements take turns.
	settleMu sync.Mutex

	// attached are the consumers that wait for room in the byte pool. idle are those
	// that nothing refers to any more, for the reader to release.
	attached struct {
		sync.Mutex
		set  map[*consumer]struct{}
		idle []*consumer
	}
	hasIdle atomic.Bool
	keeping keeping

	in       input      // reader
	channels []*channel // reader; by number
	open     int        // reader; how many of channels there are
	batch    batch      // reader
	held     []byte     // reader; frames that wait until the broker takes messages again
	holding  bool       // reader; see hold.go
	scratch  []byte     // reader; frames that are being put together
	tokens   uint64     // reader; last token made for Get and settlements
	t        tally      // reader
}

// batch is what the reader has collected since it last submitted.
type batch struct {
	nowMS     int64       // when its frames were read
	published bool        // the publisher has something to flush
	confirms  *flush      // what is to be confirmed, nil for nothing
	immediate bool        // some of it has nothing to wait for
	dirty     []*consumer // have settlements collected
	requeued  bool        // some of them make messages ready again
	fresh     []*channel  // have a content with views into the read buffer
	partial   int64       // bytes of incomplete contents, of all channels
	publish   publish     // the message that is being published
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, cfg: &s.cfg, nc: nc}
	c.id = nc.RemoteAddr().String() + " -> " + nc.LocalAddr().String()
	if _, ok := nc.RemoteAddr().(*net.TCPAddr); !ok {
		// Others may have no name, and the id must be unique.
		c.id += " #" + strconv.FormatInt(s.unnamed.Add(1), 10)
	}
	c.log = s.cfg.Log.With("connection", c.id)
	c.loopback = isLoopback(nc.RemoteAddr())
	c.bytes = broker.NewPool(outboxRoom)
	c.out.init()
	return c
}

// isLoopback says whether a peer is on this machine.
func isLoopback(a net.Addr) bool {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return a.Network() == "pipe"
}

// serve runs the connection from the protocol header to its end. It is the reader.
func (c *conn) serve() {
	err := c.handshake()
	opened := err == nil
	silent := err != nil && c.t.in == 0 // somebody looks whether the port is open
	if opened {
		c.srv.counters.Opened.Add(1)
		c.log.Info("connection opened", "user", c.user, "vhost", c.vhost, "name", c.name)
		err = c.loop()
	}
	c.end(err)
	switch {
	case opened:
		c.srv.counters.Closed.Add(1)
		c.log.Info("connection closed", "reason", err)
	case c.cut.Load(), c.srv.isStopping():
		c.srv.counters.Refused.Add(1)
		c.log.Debug("connection cut off before its login", "reason", err)
	case silent:
		c.log.Debug("connection closed without a word")
	default:
		c.srv.counters.Refused.Add(1)
		c.log.Warn("connection refused", "reason", err)
	}
}

// loop reads and handles frames until the connection has to end.
func (c *conn) loop() error {
	for {
		err := c.fill()
		c.batch.nowMS = time.Now().UnixMilli()
		if err == errAttention { //nolint:errorlint // never wrapped, and once per batch
			err = c.attend()
		} else if err == nil {
			err = c.parse()
		}
		// What came before a fault counts.
		if e := c.keepContents(); err == nil {
			err = e
		}
		c.submit()
		c.releaseIdle()
		c.t.addTo(&c.srv.counters)
		if err != nil {
			return err
		}
		if err := c.waitForRoom(); err != nil {
			return err
		}
	}
}

// parse handles all frames that are in the buffer.
func (c *conn) parse() error {
	for {
		b := c.in.b[c.in.r:c.in.w]
		f, n, err := amqpwire.ParseFrame(b, c.frameMax)
		if err != nil {
			c.skipFrame(b, err)
			return err
		}
		if n == 0 {
			return nil
		}
		c.in.r += n
		if err := c.frame(f); err != nil {
			return err
		}
	}
}

// skipFrame passes over a frame that is well formed but may not come, so that the
// answer to connection.close can be found behind it.
func (c *conn) skipFrame(b []byte, err error) {
	var e *amqpwire.Error
	if errors.As(err, &e) && e.Code == amqpwire.UnexpectedFrame {
		c.in.r += int(min(amqpwire.FrameSize(b), uint64(len(b))))
	}
}

// frame handles one frame. The error ends the connection.
func (c *conn) frame(f amqpwire.Frame) error {
	switch {
	case f.Type == amqpwire.FrameHeartbeat:
		return nil
	case (c.holding || c.blocked.Load()) && c.mustHold(f):
		return c.hold(f)
	case f.Channel == 0:
		return c.connectionFrame(f)
	}
	var ch *channel
	if int(f.Channel) < len(c.channels) {
		ch = c.channels[f.Channel]
	}
	if ch == nil {
		return c.openChannel(f)
	}
	if ch.closed.Load() {
		return c.closedChannelFrame(ch, f)
	}
	return c.channelFrame(ch, f)
}

// connectionFrame handles a frame on channel 0 of an open connection.
func (c *conn) connectionFrame(f amqpwire.Frame) error {
	if f.Type != amqpwire.FrameMethod {
		return amqpwire.UnexpectedFrameError(f)
	}
	m, err := amqpwire.ParseMethod(f.Payload)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *amqpwire.ConnectionClose:
		c.log.Debug("client closes", "code", int(m.ReplyCode), "text", m.ReplyText)
		return errClosedByPeer
	case *amqpwire.ConnectionUpdateSecret:
		return c.send(0, &amqpwire.ConnectionUpdateSecretOk{})
	}
	return wireError(fault(amqpwire.ChannelError, "unexpected method in connection state running"), m.ID())
}

// send puts a method into the outbox.
func (c *conn) send(ch uint16, m amqpwire.Method) error {
	var err error
	c.scratch, err = amqpwire.AppendMethodFrame(c.scratch[:0], ch, m)
	if err != nil {
		return err
	}
	c.out.control(c.scratch)
	return nil
}

// waitForRoom blocks while too much waits for the writer.
func (c *conn) waitForRoom() error {
	c.out.mu.Lock()
	full := c.out.fullLocked()
	c.out.mu.Unlock()
	if full && !c.out.await(func() bool { return !c.out.fullLocked() }) {
		return c.stopReason()
	}
	return nil
}

// barrier submits what was collected and waits until it is done, so that what follows
// sees it.
func (c *conn) barrier() error {
	c.submit()
	if !c.out.await(func() bool { return c.out.waiting == 0 }) {
		return c.stopReason()
	}
	return nil
}

// attend does what others asked the reader for by means of nudge.
func (c *conn) attend() error {
	c.attention.Store(false)
	c.in.stale = true
	c.out.mu.Lock()
	closing := c.out.closing
	c.out.mu.Unlock()
	if closing != nil {
		return closing.reason()
	}
	if c.holding && !c.blocked.Load() {
		return c.replay()
	}
	return nil
}

// stopReason says why a wait ended early.
func (c *conn) stopReason() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.closing != nil {
		return c.out.closing.reason()
	}
	return errStopped
}

// nudge makes the reader call attend soon.
func (c *conn) nudge() {
	c.attention.Store(true)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// Completed implements Sink.
func (c *conn) Completed(token uint64, slot uint8, err error) {
	c.out.complete(completion{token: token, slot: slot, failed: err != nil}, err)
}

// Deliver implements Sink.
func (c *conn) Deliver(d *queue.Delivery) {
	if !c.closing.Load() {
		c.out.put(item{kind: itemDeliver, d: *d})
	}
}

// Got implements Sink.
func (c *conn) Got(token uint64, d *queue.Delivery, left uint64) {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got, o.gotFailed, o.gotFound, o.gotToken, o.gotLeft = true, nil, d != nil, token, left
	if d != nil {
		o.gotAnswer = *d
	}
	o.wakeReaderLocked()
}

// GetFailed implements Sink.
func (c *conn) GetFailed(token uint64, err error) {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got, o.gotFailed, o.gotFound, o.gotToken = true, err, false, token
	o.wakeReaderLocked()
}

// Canceled implements Sink.
func (c *conn) Canceled(bc Consumer) {
	cons, ok := bc.User().(*consumer)
	if !ok {
		return // of basic.get: nothing to tell
	}
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dead || cons.ch.closed.Load() || !cons.gone.CompareAndSwap(false, true) {
		return
	}
	o.canceled = append(o.canceled, cons)
	if c.cancelNotify {
		frame, err := amqpwire.AppendMethodFrame(nil, cons.ch.id, &amqpwire.BasicCancel{ConsumerTag: cons.tag, NoWait: true})
		if err == nil { // a tag that came in a short string fits one
			o.controlLocked(itemControl, frame)
		}
	}
	o.mail.items = append(o.mail.items, item{kind: itemDetached, cons: cons})
	o.mail.bytes += itemBytes
	o.wakeWriter()
}

// Blocked implements Sink.
func (c *conn) Blocked(reason string) {
	c.setBlocked(true, reason, &amqpwire.ConnectionBlocked{Reason: reason})
}

// Unblocked implements Sink.
func (c *conn) Unblocked() {
	c.setBlocked(false, "", &amqpwire.ConnectionUnblocked{})
	c.nudge()
}

func (c *conn) setBlocked(blocked bool, why string, m amqpwire.Method) {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.blocked == blocked {
		return
	}
	o.blocked, o.blockedBy = blocked, why
	c.blocked.Store(blocked)
	o.wakeReaderLocked()
	if o.opened {
		c.tellBlockedLocked(m)
	}
}

// tellBlockedLocked sends connection.blocked or unblocked to a client that understands
// it.
func (c *conn) tellBlockedLocked(m amqpwire.Method) {
	if !c.blockNotify {
		return
	}
	if frame, err := amqpwire.AppendMethodFrame(nil, 0, m); err == nil {
		c.out.controlLocked(itemControl, frame)
		c.out.wakeWriter()
	}
}

// Shutdown implements Sink: the connection is closed with 320 and the reason as text.
func (c *conn) Shutdown(reason string) {
	c.requestClose(&closeRequest{text: reason})
}

func (c *conn) requestClose(r *closeRequest) {
	if c.out.requestClose(r) {
		c.nudge()
	}
}

func (r *closeRequest) reason() error {
	if r.err != nil {
		return r.err
	}
	return fault(amqpwire.ConnectionForced, "%s", r.text)
}
