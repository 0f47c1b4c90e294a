package cli

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/sluicemq/sluice/internal/bench"
)

func benchAMQP(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return run(t.Context(), newBenchCmd(), nil, append([]string{"amqp"}, args...)...)
}

// TestBenchAgainstABroker runs the generator over a real broker, both formats of
// its result and both halves of a run.
func TestBenchAgainstABroker(t *testing.T) {
	url := startBroker(t)
	out, stderr, err := benchAMQP(t, "--url", url, "--messages", "3000", "--queues", "2", "--json", "--quiet")
	if err != nil || stderr != "" {
		t.Fatalf("%v, %q", err, stderr)
	}
	var res bench.Result
	if err := json.Unmarshal([]byte(out), &res); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if res.Totals.Confirmed != 3000 || res.Totals.Received != 3000 || res.Verify.Violations() != 0 || res.Config.ConfirmWindow != bench.DefaultConfirmWindow {
		t.Errorf("%s", out)
	}

	out, _, err = benchAMQP(t, "--url", url, "--messages", "500", "--publish-only", "--keep", "--size", "64", "--confirm-window", "0")
	if err != nil || !strings.Contains(out, "no confirms") || strings.Contains(out, "end to end") {
		t.Errorf("%v: %s", err, out)
	}
	out, _, err = benchAMQP(t, "--url", url, "--consume-only", "--prefetch", "0", "--quiet")
	if err != nil || !strings.Contains(out, "of other runs 500, left in the queues 0") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestBenchUsage(t *testing.T) {
	var usage usageError
	if _, _, err := benchAMQP(t, "--size", "3"); !errors.As(err, &usage) {
		t.Errorf("a size below the stamp: %v", err)
	}
	if _, _, err := benchAMQP(t, "--publish-only", "--consume-only"); err == nil {
		t.Error("publish-only and consume-only at once")
	}
	if _, _, err := benchAMQP(t, "--url", "amqp://127.0.0.1:1/", "--quiet"); err == nil || !strings.Contains(err.Error(), "sluice serve") {
		t.Errorf("no broker: %v", err)
	}
}

// TestBenchFlagsBecomeConfig checks the settings that zero would turn into
// defaults.
func TestBenchFlagsBecomeConfig(t *testing.T) {
	cmd := newBenchAMQPCmd()
	if err := cmd.ParseFlags([]string{"--warmup", "0"}); err != nil {
		t.Fatal(err)
	}
	f := benchFlags{}
	if cfg := f.config(cmd); cfg.Warmup != -1 || cfg.ConfirmWindow != -1 || cfg.Prefetch != -1 || !cfg.Transient || !cfg.NonDurable || !cfg.NoDrain {
		t.Errorf("%+v", cfg)
	}
}
