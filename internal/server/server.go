// Package server is the composition root: it turns a configuration into a running
// broker with its listeners, and stops it in order. It decides nothing else.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/config"
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/proto/amqp"
)

// Server is a running broker.
type Server struct {
	cfg     config.Config
	broker  *broker.Broker
	amqp    *amqp.Server
	ln      net.Listener
	tls     net.Listener // nil without TLS
	control *control
	failed  chan error
}

// Start opens the data directory and listens. cfg is complete and valid.
func Start(cfg config.Config, log *slog.Logger) (*Server, error) {
	failed := make(chan error, 2)
	b, err := broker.Open(broker.Config{
		Dir: cfg.Data, Shards: cfg.Storage.Shards, Log: log, MemoryLimit: limitMemory(cfg.Memory, log),
		DefaultUser: cfg.DefaultUser, DefaultPassword: cfg.DefaultPassword,
		Node: engine.NodeConfig{
			Failed: func(err error) {
				select {
				case failed <- err:
				default:
				}
			},
			WALFileBytes: cfg.Storage.WALFileBytes, WALFiles: cfg.Storage.WALFiles,
			Strict: cfg.Storage.Strict, ScrubBytes: cfg.Storage.ScrubBytes, TailCache: cfg.Storage.TailCacheBytes, VolatileMemory: cfg.Storage.VolatileBytes,
		},
	})
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, broker: b, failed: failed}
	if err := s.listen(log); err != nil {
		return nil, errors.Join(err, s.closeListeners(), b.Close())
	}
	s.control, err = startControl(cfg.Data, b)
	if err != nil {
		return nil, errors.Join(err, s.closeListeners(), b.Close())
	}
	s.amqp = amqp.NewServer(amqp.FromBroker(b), amqp.Config{
		FrameMax: cfg.AMQP.FrameMax, ChannelMax: cfg.AMQP.ChannelMax, Heartbeat: cfg.AMQP.Heartbeat,
		MaxMessageBytes: cfg.AMQP.MaxMessageBytes, MaxConnections: maxConnections(cfg.AMQP.MaxConnections),
		MaxHandshakes: cfg.AMQP.MaxHandshakes,
		Product:       cfg.AMQP.Product, Version: cfg.AMQP.Version, Log: log,
		CertificateUser: certificateUser(cfg.AMQP.TLS),
	})
	for _, ln := range s.listeners() {
		go func() {
			if err := s.amqp.Serve(ln); !errors.Is(err, amqp.ErrServerClosed) {
				s.failed <- fmt.Errorf("amqp: %w", err)
			}
		}()
	}
	return s, nil
}

// listen opens the listeners.
func (s *Server) listen(log *slog.Logger) (err error) {
	if s.ln, err = s.listenOn(s.cfg.AMQP.Listen); err != nil || s.cfg.AMQP.TLS.Listen == "" {
		return err
	}
	t, err := loadCertificates(s.cfg.AMQP.TLS, log)
	if err != nil {
		return err
	}
	ln, err := s.listenOn(s.cfg.AMQP.TLS.Listen)
	if err == nil {
		s.tls = tls.NewListener(ln, t)
	}
	return err
}

func (s *Server) listenOn(addr string) (net.Listener, error) {
	if err := mayListen(addr, s.broker); err != nil {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	return ln, nil
}

func (s *Server) listeners() []net.Listener {
	list := make([]net.Listener, 0, 2)
	for _, ln := range []net.Listener{s.ln, s.tls} {
		if ln != nil {
			list = append(list, ln)
		}
	}
	return list
}

func (s *Server) closeListeners() error {
	var errs []error
	for _, ln := range s.listeners() {
		errs = append(errs, ln.Close())
	}
	return errors.Join(errs...)
}

// mayListen refuses to be reached from elsewhere while everybody knows the password.
func mayListen(addr string, b *broker.Broker) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() || !b.OnlyDefaultAccount() {
		return nil
	}
	return fmt.Errorf("listening on %s: the only account is guest with the password guest, which is for loopback; "+
		"start once with SLUICE_DEFAULT_USER and SLUICE_DEFAULT_PASSWORD set in an empty data directory, or listen on 127.0.0.1", addr)
}

// AMQPAddr returns the address that AMQP is served on.
func (s *Server) AMQPAddr() net.Addr { return s.ln.Addr() }

// TLSAddr returns the address that AMQP is served on with TLS, nil if it isn't.
func (s *Server) TLSAddr() net.Addr {
	if s.tls == nil {
		return nil
	}
	return s.tls.Addr()
}

// Failed delivers an error when the server can't go on.
func (s *Server) Failed() <-chan error { return s.failed }

// Stop drains: no new connections, clients are told to go, what was confirmed is on
// disk, deliveries are recorded exactly.
func (s *Server) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	err := s.amqp.Shutdown(ctx)
	s.control.close()
	return errors.Join(err, s.broker.Close())
}
