package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicemq/sluice/internal/bench"
)

// write writes a run into dir.
func write(t *testing.T, dir, name string, r bench.Result, process string) {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, text := range map[string]string{".json": string(text), ".process": process} {
		if err := os.WriteFile(filepath.Join(dir, name+suffix), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMediansAndRatios lays out three rounds whose medians are known.
func TestMediansAndRatios(t *testing.T) {
	dir := t.TempDir()
	for i, rate := range []float64{10_000, 30_000, 20_000} {
		round := fmt.Sprint(i + 1)
		write(t, dir, "rabbitmq.both."+round, bench.Result{
			Broker: "RabbitMQ 3", PublishRate: rate, EndToEnd: bench.Latency{P99: 20_000}, Totals: bench.Totals{Sent: 1000},
		}, "50 204800")
		write(t, dir, "sluice.both."+round, bench.Result{
			PublishRate: 12 * rate, EndToEnd: bench.Latency{P99: 40_000}, Totals: bench.Totals{Sent: 1000}, Verify: bench.Verification{Lost: uint64(i)},
		}, "5 20480")
	}
	out := filepath.Join(dir, "out")
	var b strings.Builder
	if err := run(&b, dir, "abc123", out); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{
		"commit abc123", "median of 3 RabbitMQ 3 sluice", "publish, confirmed/s 20000 240000 12.0 x better",
		"end to end p99, ms 20.000 40.000 2.0 x worse", "broker CPU, us/message 50.0 5.0 10.0 x better",
		"broker peak memory, MiB 200 20 10.0 x better", "VIOLATIONS: sluice, both, round 2", "round 3", "raw results: " + out,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var f file
	if err := json.Unmarshal(text, &f); err != nil || len(f.Runs) != 6 || f.Runs[0].Result.PublishRate != 10_000 || f.Machine.Commit != "abc123" {
		t.Errorf("%v: %s", err, text)
	}
}

func TestIncompleteResultsAreErrors(t *testing.T) {
	dir := t.TempDir()
	if err := run(&strings.Builder{}, dir, "", ""); err == nil || !strings.Contains(err.Error(), "no results") {
		t.Errorf("an empty directory: %v", err)
	}
	write(t, dir, "sluice.both.1", bench.Result{}, "1 1")
	if err := run(&strings.Builder{}, dir, "", ""); err == nil || !strings.Contains(err.Error(), "no runs of one") {
		t.Errorf("one broker: %v", err)
	}
	write(t, dir, "rabbitmq.both.1", bench.Result{}, "nonsense")
	if err := run(&strings.Builder{}, dir, "", ""); err == nil || !strings.Contains(err.Error(), ".process") {
		t.Errorf("a broken file: %v", err)
	}
	write(t, dir, "odd", bench.Result{}, "1 1")
	if err := run(&strings.Builder{}, dir, "", ""); err == nil || !strings.Contains(err.Error(), "is not named") {
		t.Errorf("an odd name: %v", err)
	}
}

func TestRatio(t *testing.T) {
	for want, v := range map[string][3]float64{"2.0 x better": {1, 2, 1}, "4.0 x better": {4, 1, -1}, "3.0 x worse": {3, 1, 1}, "": {1, 2, 0}, "1.0 x better": {1, 1, 1}} {
		if got := ratio(v[0], v[1], v[2]); got != want {
			t.Errorf("ratio%v = %q, want %q", v, got, want)
		}
	}
}
