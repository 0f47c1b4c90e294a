package amqp

import (
	"container/list"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// Config is what can be set about a server. The zero value of a field means its
// default.
type Config struct {
	// FrameMax is the largest frame that is accepted and sent, in bytes: at least 4,096,
	// 131,072 by default. A client may choose less.
	FrameMax uint32
	// ChannelMax is how many channels a connection may have, 2,047 by default.
	ChannelMax uint16
	// Heartbeat is what is proposed to clients, in whole seconds; 60 s by default,
	// negative for none.
	Heartbeat time.Duration
	// HandshakeTimeout is how long a client may take until connection.open, 10 s by
	// default.
	HandshakeTimeout time.Duration
	// WriteTimeout is how long a client may read nothing while there is something to
	// send, 5 min by default. A client that is alive but slow isn't a fault.
	WriteTimeout time.Duration
	// CloseTimeout is how long a client may take to answer connection.close, and to
	// read what was sent before it, 5 s by default.
	CloseTimeout time.Duration
	// MaxMessageBytes is the largest body, 128 MiB by default, MaxMessageBytesMax at most.
	MaxMessageBytes uint64
	// MaxConnections refuses connections beyond; 0 is no limit.
	MaxConnections int
	// MaxHandshakes is how many connections may be without a login at a time; the oldest
	// of them is cut off for one more, and for one that would be too many altogether.
	// 1,024 by default.
	MaxHandshakes int

	// CertificateUser says who a client's verified certificate stands for, empty for
	// nobody; nil: mechanism EXTERNAL isn't offered.
	CertificateUser func(*x509.Certificate) string

	// Product, Version, ClusterName and Platform are what server-properties say of the
	// broker. Clients choose their behavior by the first two: "RabbitMQ", "3.13.7".
	Product, Version, ClusterName, Platform string
	// Properties are further server-properties.
	Properties amqpwire.Table

	// Log gets an event per connection opened, closed or refused; none by default.
	Log *slog.Logger
}

func (c *Config) ensureDefaults() {
	setDefault(&c.FrameMax, 131072)
	c.FrameMax = max(c.FrameMax, amqpwire.FrameMinSize)
	setDefault(&c.ChannelMax, 2047)
	setDefault(&c.Heartbeat, 60*time.Second)
	setDefault(&c.HandshakeTimeout, 10*time.Second)
	setDefault(&c.WriteTimeout, 5*time.Minute)
	setDefault(&c.CloseTimeout, 5*time.Second)
	setDefault(&c.MaxHandshakes, 1024)
	setDefault(&c.MaxMessageBytes, 128<<20)
	c.MaxMessageBytes = min(c.MaxMessageBytes, MaxMessageBytesMax)
	setDefault(&c.Product, "RabbitMQ")
	setDefault(&c.Version, "3.13.7")
	setDefault(&c.ClusterName, "sluice")
	setDefault(&c.Platform, "sluice")
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// MaxMessageBytesMax is as large as Config.MaxMessageBytes may be, as with RabbitMQ.
const MaxMessageBytesMax = 512 << 20

// maxSizeName is what RabbitMQ calls the largest size.
func (c *Config) maxSizeName() string {
	if c.MaxMessageBytes >= MaxMessageBytesMax {
		return "max size"
	}
	return "configured max size"
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Server accepts connections and serves them. Its methods are safe for concurrent use.
type Server struct {
	broker   Broker
	cfg      Config
	counters Counters
	unnamed  atomic.Int64  // connections whose addresses don't tell them apart
	done     chan struct{} // closed by Shutdown

	mu        sync.Mutex
	stopping  bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	greeting  list.List // of those, the ones without a login, oldest first
	cuts      int       // how many in conns are cut off and about to go
	cutOff    int       // since the log told of it last
	toldCut   time.Time // when that was
	running   sync.WaitGroup
}

// NewServer returns a server that hands everything to b.
func NewServer(b Broker, cfg Config) *Server {
	cfg.ensureDefaults()
	return &Server{
		broker:    b,
		cfg:       cfg,
		done:      make(chan struct{}),
		listeners: map[net.Listener]struct{}{},
		conns:     map[*conn]struct{}{},
	}
}

// ErrServerClosed is what Serve returns after Shutdown.
var ErrServerClosed = errors.New("amqp: server closed")

// Serve accepts connections from l until Shutdown or until l fails for good. It closes
// l, and returns ErrServerClosed after Shutdown. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	if !s.addListener(l) {
		_ = l.Close()
		return ErrServerClosed
	}
	defer s.removeListener(l)
	delay := time.Duration(0)
	for {
		nc, err := l.Accept()
		if err == nil {
			delay = 0
			s.ServeConn(nc)
			continue
		}
		if s.isStopping() {
			return ErrServerClosed
		}
		if !isTemporary(err) {
			return err
		}
		// Out of file descriptors, mostly: others must end before this can succeed.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		s.cfg.Log.Warn("accepting connections failed", "err", err, "retry_after", delay)
		select {
		case <-time.After(delay):
		case <-s.done:
			return ErrServerClosed
		}
	}
}

// isTemporary says whether accepting may succeed later: everything but a closed
// listener.
func isTemporary(err error) bool {
	var t net.Error
	return errors.As(err, &t) && !errors.Is(err, net.ErrClosed)
}

// ServeConn takes over nc and serves it in the background.
func (s *Server) ServeConn(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	if !s.admitLocked() {
		s.mu.Unlock()
		s.counters.Refused.Add(1)
		s.cfg.Log.Warn("connection refused", "connection", c.id, "reason", "too many connections, or stopping")
		_ = nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	c.greeting = s.greeting.PushBack(c)
	s.running.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.running.Done()
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.greetedLocked(c)
		if c.cut.Load() {
			s.cuts--
		}
		s.mu.Unlock()
	}()
}

// admitLocked says whether there is room for one more connection, and makes it by cutting
// off the one that has been without a login for longest: so half-open connections, as
// many as they may be, keep nobody out who logs in.
func (s *Server) admitLocked() bool {
	full := s.cfg.MaxConnections > 0 && len(s.conns)-s.cuts >= s.cfg.MaxConnections
	if s.stopping || full && s.greeting.Len() == 0 {
		return false
	}
	if full || s.greeting.Len() >= s.cfg.MaxHandshakes {
		c := s.greeting.Front().Value.(*conn)
		s.greetedLocked(c)
		c.cut.Store(true)
		s.cuts++
		_ = c.nc.Close()
		s.cutOff++
	}
	if now := time.Now(); s.cutOff > 0 && now.Sub(s.toldCut) > cutLogEvery {
		s.cfg.Log.Warn("connections without a login cut off", "count", s.cutOff)
		s.cutOff, s.toldCut = 0, now
	}
	return true
}

// cutLogEvery is how often the log tells of connections that were cut off.
const cutLogEvery = 10 * time.Second

// greeted takes c off the list of those without a login.
func (s *Server) greeted(c *conn) {
	s.mu.Lock()
	s.greetedLocked(c)
	s.mu.Unlock()
}

func (s *Server) greetedLocked(c *conn) {
	if c.greeting != nil {
		s.greeting.Remove(c.greeting)
		c.greeting = nil
	}
}

// Counters returns the server's counters, to be read at any time.
func (s *Server) Counters() *Counters { return &s.counters }

// Connections returns how many connections there are, those in handshake included.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Shutdown stops accepting, closes all connections with 320 CONNECTION_FORCED and
// waits until they are gone. When ctx ends before, what is left is cut off and the
// error of ctx returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.stopping {
		s.stopping = true
		close(s.done)
	}
	for l := range s.listeners {
		_ = l.Close()
	}
	for c := range s.conns {
		c.Shutdown("broker forced connection closure with reason 'shutdown'")
	}
	s.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		s.running.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		_ = c.nc.Close()
	}
	s.mu.Unlock()
	// One that waits for the broker ends when the broker does.
	select {
	case <-gone:
	case <-time.After(s.cfg.CloseTimeout):
	}
	return ctx.Err()
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	_ = l.Close()
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
}

func (s *Server) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}
