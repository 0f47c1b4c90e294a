package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/sluicemq/sluice/internal/config"
)

// certificatesEvery is how old a look at the certificate files may be when a client
// connects.
const certificatesEvery = time.Second

// certificates is a TLS configuration that follows its files: a certificate that was
// renewed is used for the next connection, without a restart. Files that can't be used
// leave the old one in place, and are reported.
type certificates struct {
	cfg config.TLS
	log *slog.Logger

	mu     sync.Mutex
	looked time.Time
	stamp  [3]fileStamp
	cur    *tls.Config
}

// fileStamp tells two versions of a file apart.
type fileStamp struct {
	size int64
	at   time.Time
}

func loadCertificates(cfg config.TLS, log *slog.Logger) (*tls.Config, error) {
	c := &certificates{cfg: cfg, log: log}
	if err := c.load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil },
	}, nil
}

func (c *certificates) stamps() (s [3]fileStamp) {
	for i, path := range []string{c.cfg.CertFile, c.cfg.KeyFile, c.cfg.CAFile} {
		if st, err := os.Stat(path); path != "" && err == nil {
			s[i] = fileStamp{st.Size(), st.ModTime()}
		}
	}
	return s
}

// load reads the files.
func (c *certificates) load() error {
	stamp := c.stamps()
	pair, err := tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if c.cfg.CAFile != "" {
		pem, err := os.ReadFile(c.cfg.CAFile)
		if err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("tls: no certificate in %s", c.cfg.CAFile)
		}
	}
	switch c.cfg.ClientCertificates {
	case config.ClientCertificatesOptional:
		t.ClientAuth = tls.VerifyClientCertIfGiven
	case config.ClientCertificatesRequired:
		t.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if t.ClientAuth != tls.NoClientCert && t.ClientCAs == nil {
		return errors.New("tls: client certificates need ca_file")
	}
	c.cur, c.stamp = t, stamp
	return nil
}

// current returns the configuration of the files as they are.
func (c *certificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.looked) >= certificatesEvery {
		c.looked = now
		if stamp := c.stamps(); stamp != c.stamp {
			if err := c.load(); err != nil {
				c.log.Error("certificate not renewed, the old one stays", "err", err)
				c.stamp = stamp // said once
			} else {
				c.log.Info("certificate renewed", "file", c.cfg.CertFile)
			}
		}
	}
	return c.cur
}

// certificateUser returns whom a client's verified certificate stands for.
func certificateUser(cfg config.TLS) func(*x509.Certificate) string {
	return func(c *x509.Certificate) string {
		if cfg.LoginFrom == config.LoginFromDistinguishedName {
			return c.Subject.String()
		}
		return c.Subject.CommonName
	}
}
