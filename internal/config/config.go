// Package config is the broker's configuration: one struct tree whose zero values are
// defaults, read from a YAML file, then from the environment, then from flags; later
// ones win. Validate is called once, at the edge; nothing inside checks again.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// Config is all that can be set.
type Config struct {
	// Data is the data directory; default ./sluice-data.
	Data string `yaml:"data"`
	// LogLevel is debug, info, warn or error; default info.
	LogLevel string `yaml:"log_level"`
	// DefaultUser and DefaultPassword are the account that the first start makes, an
	// administrator; default guest, with the password guest, from loopback only.
	DefaultUser     string  `yaml:"default_user"`
	DefaultPassword string  `yaml:"default_password"`
	AMQP            AMQP    `yaml:"amqp"`
	Storage         Storage `yaml:"storage"`
	Memory          Memory  `yaml:"memory"`
	// DrainTimeout is how long a stop waits for connections to close; default 10 s.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
}

// AMQP configures the AMQP 0-9-1 listener.
type AMQP struct {
	// Listen is host:port; default 127.0.0.1:5672.
	Listen string `yaml:"listen"`
	// Product and Version are what clients are told; many choose their behavior by
	// them. Defaults RabbitMQ and 3.13.7.
	Product string `yaml:"product"`
	Version string `yaml:"version"`
	// Limits offered to clients; defaults 131072 bytes, 2047 channels, 60 s, 128 MiB; a
	// message can't be larger than 512 MiB.
	FrameMax        uint32        `yaml:"frame_max"`
	ChannelMax      uint16        `yaml:"channel_max"`
	Heartbeat       time.Duration `yaml:"heartbeat"`
	MaxMessageBytes uint64        `yaml:"max_message_bytes"`
	// MaxConnections, by default and at most what there are file descriptors for, and
	// MaxHandshakes of them without a login, default 1,024.
	MaxConnections int `yaml:"max_connections"`
	MaxHandshakes  int `yaml:"max_handshakes"`
	// TLS is a second listener.
	TLS TLS `yaml:"tls"`
}

// TLS configures a listener with TLS. The files are read again when they change.
type TLS struct {
	// Listen is host:port, usually :5671; empty for no such listener.
	Listen   string `yaml:"listen"`
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// CAFile holds the certificates by which those of clients are verified.
	CAFile string `yaml:"ca_file"`
	// ClientCertificates is none, optional or required; default none.
	ClientCertificates string `yaml:"client_certificates"`
	// LoginFrom says what of a client's certificate is the user of mechanism EXTERNAL:
	// common_name or distinguished_name; default common_name.
	LoginFrom string `yaml:"login_from"`
}

// Values of TLS.ClientCertificates and TLS.LoginFrom.
const (
	ClientCertificatesNone     = "none"
	ClientCertificatesOptional = "optional"
	ClientCertificatesRequired = "required"

	LoginFromCommonName        = "common_name"
	LoginFromDistinguishedName = "distinguished_name"
)

func (t *TLS) ensureDefaults() {
	if t.ClientCertificates == "" {
		t.ClientCertificates = ClientCertificatesNone
	}
	if t.LoginFrom == "" {
		t.LoginFrom = LoginFromCommonName
	}
}

func (t *TLS) validate() error {
	if t.Listen == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(t.Listen); err != nil {
		return fmt.Errorf("amqp tls listen address %q: %w", t.Listen, err)
	}
	if t.CertFile == "" || t.KeyFile == "" {
		return errors.New("amqp tls: cert_file and key_file are needed")
	}
	switch t.ClientCertificates {
	case ClientCertificatesNone, ClientCertificatesOptional, ClientCertificatesRequired:
	default:
		return fmt.Errorf("amqp tls client_certificates %q: want none, optional or required", t.ClientCertificates)
	}
	switch t.LoginFrom {
	case LoginFromCommonName, LoginFromDistinguishedName:
	default:
		return fmt.Errorf("amqp tls login_from %q: want common_name or distinguished_name", t.LoginFrom)
	}
	return nil
}

// Memory limits what the process uses, beyond which publishers are stopped.
type Memory struct {
	// Share of the control group's memory, or the machine's; default 0.6.
	Share float64 `yaml:"share"`
	// LimitBytes, if set, counts instead.
	LimitBytes int64 `yaml:"limit_bytes"`
}

// Storage sizes what is kept on disk and in memory.
type Storage struct {
	// Shards is the number of durable shards, fixed at first start; default one per
	// core, 2 to 8.
	Shards int `yaml:"shards"`
	// WALFileBytes and WALFiles: the write-ahead log is files of so many bytes, of which
	// so many may wait to be moved into segments; defaults 64 MiB and 8.
	WALFileBytes int64 `yaml:"wal_file_bytes"`
	WALFiles     int   `yaml:"wal_files"`
	// TailCacheBytes of recent messages are kept in memory per shard; default 8 MiB.
	TailCacheBytes int64 `yaml:"tail_cache_bytes"`
	// VolatileBytes of messages in non-durable queues are kept in memory, beyond that
	// they are spilled to disk; default 64 MiB.
	VolatileBytes int64 `yaml:"volatile_bytes"`
	// ScrubBytes a second are read to find damage before a consumer does; default 4 MiB,
	// negative: none.
	ScrubBytes int64 `yaml:"scrub_bytes"`
	// Strict refuses to start where anything on disk is damaged, instead of putting it
	// into quarantine and serving the rest.
	Strict bool `yaml:"strict"`
}

// Read parses a YAML file; unknown keys are errors, so that a typing mistake is not
// taken for a default.
func Read(path string) (c Config, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// FromEnv overrides c by the variables that are set: SLUICE_DATA, SLUICE_LOG_LEVEL,
// SLUICE_AMQP_LISTEN, SLUICE_DEFAULT_USER, SLUICE_DEFAULT_PASSWORD, SLUICE_SHARDS.
func (c *Config) FromEnv(getenv func(string) string) error {
	set := func(key string, to *string) {
		if v := getenv(key); v != "" {
			*to = v
		}
	}
	set("SLUICE_DATA", &c.Data)
	set("SLUICE_LOG_LEVEL", &c.LogLevel)
	set("SLUICE_AMQP_LISTEN", &c.AMQP.Listen)
	set("SLUICE_DEFAULT_USER", &c.DefaultUser)
	set("SLUICE_DEFAULT_PASSWORD", &c.DefaultPassword)
	if v := getenv("SLUICE_SHARDS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return fmt.Errorf("SLUICE_SHARDS: %q is not a number", v)
		}
		c.Storage.Shards = n
	}
	return nil
}

// EnsureDefaults fills what is zero.
func (c *Config) EnsureDefaults() {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Data, "sluice-data")
	def(&c.LogLevel, "info")
	def(&c.AMQP.Listen, "127.0.0.1:5672")
	c.AMQP.TLS.ensureDefaults()
	if c.Storage.Shards == 0 {
		c.Storage.Shards = min(max(runtime.GOMAXPROCS(0), 2), 8)
	}
	if c.AMQP.MaxMessageBytes == 0 {
		c.AMQP.MaxMessageBytes = 128 << 20
	}
	if c.Memory.Share == 0 {
		c.Memory.Share = 0.6
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 10 * time.Second
	}
}

// messageBytesMax is as large as max_message_bytes may be, as with RabbitMQ.
const messageBytesMax = 512 << 20

// Validate says what is wrong with a configuration whose defaults are filled in.
func (c *Config) Validate() error {
	if _, err := c.Level(); err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(c.AMQP.Listen); err != nil {
		return fmt.Errorf("amqp listen address %q: %w", c.AMQP.Listen, err)
	}
	if err := c.AMQP.TLS.validate(); err != nil {
		return err
	}
	if (c.DefaultUser == "") != (c.DefaultPassword == "") {
		return errors.New("default_user and default_password go together")
	}
	if s := c.Storage.Shards; s < 1 || s > 16 {
		return fmt.Errorf("storage shards %d: must be 1 to 16", s)
	}
	if b := c.Storage.WALFileBytes; b != 0 && (b < 1<<20 || b > 1<<30 || b%4096 != 0) {
		return fmt.Errorf("storage wal_file_bytes %d: must be 1 MiB to 1 GiB and a multiple of 4096", b)
	}
	if m := c.AMQP.MaxMessageBytes; m > messageBytesMax {
		return fmt.Errorf("amqp max_message_bytes %d: at most %d", m, messageBytesMax)
	}
	if m := c.Memory; m.Share <= 0 || m.Share > 1 || m.LimitBytes < 0 {
		return fmt.Errorf("memory share %v, limit_bytes %d: must be over 0 to 1, and not negative", m.Share, m.LimitBytes)
	}
	if a := c.AMQP; a.MaxConnections < 0 || a.MaxHandshakes < 0 {
		return fmt.Errorf("amqp max_connections %d, max_handshakes %d: must not be negative", a.MaxConnections, a.MaxHandshakes)
	}
	if f := c.AMQP.FrameMax; f != 0 && f < 4096 {
		return fmt.Errorf("amqp frame_max %d: must be at least 4096", f)
	}
	return nil
}

// Level returns the level of the log.
func (c *Config) Level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return l, fmt.Errorf("log level %q: want debug, info, warn or error", c.LogLevel)
	}
	return l, nil
}
