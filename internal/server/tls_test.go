package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/access"
	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/config"
)

// authority makes certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	cert, key := a.make("authority", nil)
	a.cert, a.key = cert, key
	return a
}

// make returns a certificate, signed by the authority or by itself.
func (a *authority) make(name string, change func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	a.n++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: name, Organization: []string{"tests"}},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<34, 0),
		IsCA: a.cert == nil, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if change != nil {
		change(c)
	}
	parent, signer := c, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return made, key
}

// write puts a certificate and its key into files.
func (a *authority) write(dir, name string) (certFile, keyFile string) {
	a.t.Helper()
	cert, key := a.make(name, nil)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	a.pem(certFile, "CERTIFICATE", cert.Raw)
	a.pem(keyFile, "EC PRIVATE KEY", der)
	return certFile, keyFile
}

func (a *authority) pem(path, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// client is the configuration of a client that trusts the authority, with a certificate
// of that name unless it is empty.
func (a *authority) client(name string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	cfg := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if name != "" {
		cert, key := a.make(name, nil)
		cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
	}
	return cfg
}

// dialTLS connects and closes again.
func dialTLS(s *Server, url string, cfg *tls.Config, sasl ...amqp091.Authentication) (*x509.Certificate, error) {
	c, err := amqp091.DialConfig(fmt.Sprintf(url, s.TLSAddr()), amqp091.Config{TLSClientConfig: cfg, SASL: sasl})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	ch, err := c.Channel()
	if err != nil {
		return nil, err
	}
	if _, err := ch.QueueDeclare("q", true, false, false, false, nil); err != nil {
		return nil, err
	}
	state := c.ConnectionState()
	return state.PeerCertificates[0], nil
}

// TestTLS: with a password and with a certificate.
func TestTLS(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	caFile := filepath.Join(dir, "ca.pem")
	a.pem(caFile, "CERTIFICATE", a.cert.Raw)
	cfg := config.Config{Data: t.TempDir()}
	cfg.AMQP.Listen = "127.0.0.1:0"
	cfg.AMQP.TLS = config.TLS{Listen: "127.0.0.1:0", CAFile: caFile, ClientCertificates: config.ClientCertificatesOptional}
	cfg.AMQP.TLS.CertFile, cfg.AMQP.TLS.KeyFile = a.write(dir, "first")
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := Start(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Stop() }()
	const guest, external = "amqps://guest:guest@%s/", "amqps://%s/"
	cert, err := dialTLS(s, guest, a.client(""))
	if err != nil || cert.Subject.CommonName != "first" {
		t.Fatal(cert, err)
	}
	if _, err := dialTLS(s, guest, newAuthority(t).client("")); err == nil {
		t.Error("a client that doesn't trust the certificate connects")
	}
	auth := &amqp091.ExternalAuth{}
	if _, err := dialTLS(s, external, a.client("device"), auth); err == nil {
		t.Error("a certificate of nobody lets in")
	}
	if err := s.broker.PutUser(broker.NewUser{Name: "device"}); err != nil {
		t.Fatal(err)
	}
	if err := s.broker.SetPermission("/", "device", access.Permission{Configure: ".*", Write: ".*", Read: ".*"}); err != nil {
		t.Fatal(err)
	}
	if _, err := dialTLS(s, external, a.client("device"), auth); err != nil {
		t.Error(err)
	}
	if _, err := dialTLS(s, external, a.client(""), auth); err == nil {
		t.Error("EXTERNAL without a certificate lets in")
	}
	if _, err := dialTLS(s, external, newAuthority(t).client("device"), auth); err == nil {
		t.Error("a certificate of another authority lets in")
	}
}

// TestRenewedCertificate: new files are used without a restart; files that can't be are
// not.
func TestRenewedCertificate(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	cfg := config.TLS{}
	cfg.CertFile, cfg.KeyFile = a.write(dir, "first")
	c := &certificates{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	if err := c.load(); err != nil {
		t.Fatal(err)
	}
	served := func() string {
		t.Helper()
		c.looked = time.Time{}
		leaf, err := x509.ParseCertificate(c.current().Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.Subject.CommonName
	}
	a.write(dir, "the second")
	if got := served(); got != "the second" {
		t.Errorf("serves %q", got)
	}
	if err := os.WriteFile(cfg.CertFile, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := served(); got != "the second" {
		t.Errorf("serves %q with a file that is none", got)
	}
	a.write(dir, "the third one")
	if got := served(); got != "the third one" {
		t.Errorf("serves %q", got)
	}
}
