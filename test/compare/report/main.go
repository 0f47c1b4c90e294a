// Command report turns the raw results of compare-amqp.sh into a table of medians
// and ratios, and on request into one file.
//
//	report [-commit C] [-out FILE] DIR
//
// DIR holds, for every run, BROKER.LOAD.ROUND.json as "sluice bench amqp --json"
// prints it, and BROKER.LOAD.ROUND.process with the broker's CPU time in
// milliseconds and its peak memory in KiB.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluicemq/sluice/internal/bench"
)

// Run is one load on one broker.
type Run struct {
	Broker    string       `json:"broker"`
	Load      string       `json:"load"`
	Round     string       `json:"round"`
	CPUMillis float64      `json:"broker_cpu_ms"`   // of the broker during the run
	PeakKiB   float64      `json:"broker_peak_kib"` // resident memory of the broker since its start
	Result    bench.Result `json:"result"`
}

// Machine says what the figures were taken on.
type Machine struct {
	CPU     string `json:"cpu"`
	Cores   int    `json:"cores"`
	Memory  string `json:"memory"`
	Kernel  string `json:"kernel"`
	Go      string `json:"go"`
	Commit  string `json:"commit"`
	Written string `json:"written"`
}

// file is what -out writes.
type file struct {
	Machine Machine `json:"machine"`
	Runs    []Run   `json:"runs"`
}

func main() {
	commit := flag.String("commit", "unknown", "commit of sluice")
	out := flag.String("out", "", "file for the raw results")
	flag.Parse()
	if err := run(os.Stdout, flag.Arg(0), *commit, *out); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, dir, commit, out string) error {
	runs, err := read(dir)
	if err != nil {
		return err
	}
	m := machine(commit)
	if err := table(w, m, runs); err != nil {
		return err
	}
	if out == "" {
		return nil
	}
	text, err := json.MarshalIndent(file{m, runs}, "", " ")
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "raw results:", out)
	return os.WriteFile(out, append(text, '\n'), 0o644)
}

// read reads every run of a directory.
func read(dir string) ([]Run, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no results in %q", dir)
	}
	var runs []Run
	for _, name := range names {
		base := strings.TrimSuffix(name, ".json")
		parts := strings.Split(filepath.Base(base), ".")
		if len(parts) != 3 {
			return nil, fmt.Errorf("%s is not named BROKER.LOAD.ROUND.json", name)
		}
		r := Run{Broker: parts[0], Load: parts[1], Round: parts[2]}
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &r.Result); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		text, err = os.ReadFile(base + ".process")
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Sscan(string(text), &r.CPUMillis, &r.PeakKiB); err != nil {
			return nil, fmt.Errorf("%s.process: %w", base, err)
		}
		runs = append(runs, r)
	}
	return runs, nil
}

// figure is one row of the table.
type figure struct {
	name   string
	of     func(Run) float64
	better float64 // +1: more is better, -1: less is
	format string
}

func figures(load string) []figure {
	rate := []figure{
		{"publish, confirmed/s", func(r Run) float64 { return r.Result.PublishRate }, 1, "%.0f"},
		{"consume, received/s", func(r Run) float64 { return r.Result.ConsumeRate }, 1, "%.0f"},
	}
	latency := []figure{
		{"confirm p50, ms", func(r Run) float64 { return r.Result.Confirm.P50 / 1e3 }, -1, "%.3f"},
		{"confirm p99, ms", func(r Run) float64 { return r.Result.Confirm.P99 / 1e3 }, -1, "%.3f"},
		{"end to end p50, ms", func(r Run) float64 { return r.Result.EndToEnd.P50 / 1e3 }, -1, "%.3f"},
		{"end to end p99, ms", func(r Run) float64 { return r.Result.EndToEnd.P99 / 1e3 }, -1, "%.3f"},
		{"end to end p99.9, ms", func(r Run) float64 { return r.Result.EndToEnd.P999 / 1e3 }, -1, "%.3f"},
	}
	process := []figure{
		{"broker CPU, us/message", func(r Run) float64 { return r.CPUMillis * 1e3 / float64(max(r.Result.Totals.Sent, 1)) }, -1, "%.1f"},
		{"broker peak memory, MiB", func(r Run) float64 { return r.PeakKiB / 1024 }, -1, "%.0f"},
	}
	switch load {
	case "publish":
		return slices.Concat(rate[:1], latency[:2], process)
	case "paced":
		return slices.Concat(latency, process, []figure{
			{"send lag p99, ms", func(r Run) float64 { return r.Result.SendLag.P99 / 1e3 }, 0, "%.3f"},
		})
	}
	return slices.Concat(rate, latency, process)
}

// table prints medians by load, sluice beside RabbitMQ.
func table(w io.Writer, m Machine, runs []Run) error {
	by := map[[2]string][]Run{}
	loads := map[string]bool{}
	for _, r := range runs {
		by[[2]string{r.Broker, r.Load}] = append(by[[2]string{r.Broker, r.Load}], r)
		loads[r.Load] = true
	}
	fmt.Fprintf(w, "%s, %d cores, %s, Linux %s, %s, commit %s\n", m.CPU, m.Cores, m.Memory, m.Kernel, m.Go, m.Commit)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	order := []string{"publish", "both", "paced"}
	for _, load := range slices.SortedFunc(maps.Keys(loads), func(a, b string) int { return slices.Index(order, a) - slices.Index(order, b) }) {
		rabbit, sluice := by[[2]string{"rabbitmq", load}], by[[2]string{"sluice", load}]
		if len(rabbit) == 0 || len(sluice) == 0 {
			return fmt.Errorf("load %s has no runs of one of the brokers", load)
		}
		fmt.Fprintf(tw, "\n%s: %s\n", load, sluice[0].Result.Config.Describe())
		fmt.Fprintf(tw, "median of %d\t%s\tsluice\tsluice is\t\n", len(sluice), rabbit[0].Result.Broker)
		for _, f := range figures(load) {
			a, b := median(rabbit, f.of), median(sluice, f.of)
			fmt.Fprintf(tw, "%s\t"+f.format+"\t"+f.format+"\t%s\t\n", f.name, a, b, ratio(a, b, f.better))
		}
	}
	return errors.Join(tw.Flush(), violations(w, runs))
}

// violations names the runs in which a broker broke a promise.
func violations(w io.Writer, runs []Run) error {
	for _, r := range runs {
		if n := r.Result.Verify.Violations(); n > 0 {
			if _, err := fmt.Fprintf(w, "VIOLATIONS: %s, %s, round %s: %+v\n", r.Broker, r.Load, r.Round, r.Result.Verify); err != nil {
				return err
			}
		}
	}
	return nil
}

// ratio says how b compares to a.
func ratio(a, b, better float64) string {
	if better == 0 || a == 0 || b == 0 {
		return ""
	}
	q := b / a
	if better < 0 {
		q = a / b
	}
	if q >= 1 {
		return fmt.Sprintf("%.1f x better", q)
	}
	return fmt.Sprintf("%.1f x worse", 1/q)
}

func median(runs []Run, of func(Run) float64) float64 {
	vs := make([]float64, 0, len(runs))
	for _, r := range runs {
		vs = append(vs, of(r))
	}
	slices.Sort(vs)
	n := len(vs)
	return (vs[(n-1)/2] + vs[n/2]) / 2
}

func machine(commit string) Machine {
	m := Machine{
		CPU: "unknown CPU", Cores: runtime.NumCPU(), Memory: "unknown memory", Kernel: "?",
		Go: runtime.Version(), Commit: commit, Written: time.Now().UTC().Format(time.RFC3339),
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = fmt.Sprintf("%d GiB", (info.Totalram*uint64(info.Unit)+1<<29)>>30)
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return m
}
