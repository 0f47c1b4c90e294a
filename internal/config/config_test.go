package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, text string) string {
	p := filepath.Join(t.TempDir(), "sluice.yaml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFileThenEnvironmentThenDefaults(t *testing.T) {
	c, err := Read(write(t, "data: /var/lib/sluice\namqp:\n  listen: 127.0.0.1:1\n  heartbeat: 30s\nstorage:\n  shards: 3\n"))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"SLUICE_AMQP_LISTEN": "localhost:7", "SLUICE_SHARDS": "4"}
	if err := c.FromEnv(func(k string) string { return env[k] }); err != nil {
		t.Fatal(err)
	}
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Data != "/var/lib/sluice" || c.AMQP.Listen != "localhost:7" || c.Storage.Shards != 4 ||
		c.AMQP.Heartbeat != 30*time.Second || c.LogLevel != "info" || c.AMQP.MaxMessageBytes != 128<<20 {
		t.Fatalf("%+v", c)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	if _, err := Read(write(t, "dta: x\n")); err == nil || !strings.Contains(err.Error(), "dta") {
		t.Errorf("a misspelled key gives %v", err)
	}
	if c, err := Read(write(t, "")); err != nil || c != (Config{}) {
		t.Errorf("an empty file gives %+v, %v", c, err)
	}
	for want, change := range map[string]func(*Config){
		"cert_file":      func(c *Config) { c.AMQP.TLS.Listen = ":5671" },
		"go together":    func(c *Config) { c.DefaultUser = "admin" },
		"listen address": func(c *Config) { c.AMQP.Listen = "nonsense" },
		"log level":      func(c *Config) { c.LogLevel = "loud" },
		"shards":         func(c *Config) { c.Storage.Shards = 99 },
		"wal_file_bytes": func(c *Config) { c.Storage.WALFileBytes = 5000 },
		"frame_max":      func(c *Config) { c.AMQP.FrameMax = 100 },
		"max_message":    func(c *Config) { c.AMQP.MaxMessageBytes = 512<<20 + 1 },
	} {
		c := Config{}
		c.EnsureDefaults()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}
