// Command flat shows which costs of a broker stay flat as something grows: queues,
// messages waiting, idle connections, targets of a fan-out. Each scenario builds on a
// sluice of its own, in a temporary data directory on a free loopback port, and gives
// rows with a goal and whether it was met.
//
// Rates and latencies that are compared are medians of -rounds runs, taken in turns, so
// that what else the machine does hits all sides. The load generator checks what it
// measures: a run in which something confirmed was lost, doubled or disordered is an
// error, not a result. The exit code is 0 if every scenario ran, whether or not it met
// its goals; all values go to a JSON file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// settings are the flags.
type settings struct {
	Rounds     int           `json:"rounds"`
	Duration   time.Duration `json:"duration_ns"` // of one load
	Queues     sizes         `json:"queues"`
	Exist      int           `json:"exist"`
	Backlog    uint64        `json:"backlog"`
	Idle       int           `json:"idle"`
	Fanout     int           `json:"fanout"`
	FanoutSent int           `json:"fanout_messages"`
	Amplify    uint64        `json:"amplify"`
	Slow       uint64        `json:"slow"`
	Catchup    uint64        `json:"catchup"`
	Many       int           `json:"stalls_queues"`
	Purge      uint64        `json:"stalls_purge"`
	Merge      uint64        `json:"stalls_merge"`
}

// sizes is a flag of several numbers, separated by commas.
type sizes []int

// String returns the form that Set takes.
func (s *sizes) String() string {
	parts := make([]string, len(*s))
	for i, n := range *s {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, ",")
}

// Set parses "10,1000".
func (s *sizes) Set(text string) error {
	*s = nil
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is not a number above 0", part)
		}
		*s = append(*s, n)
	}
	return nil
}

// env is what the scenarios share. Rows are of the scenario that runs.
type env struct {
	settings
	out    io.Writer
	binary string // sluice
	work   string // removed at the end
	rows   []row
	name   string // of the scenario
	made   int    // brokers so far
}

// scenario is one cost. run adds rows to the env.
type scenario struct {
	name string
	run  func(ctx context.Context, e *env) error
}

var scenarios = []scenario{
	{"exist", exist},
	{"queues", queues},
	{"idle", idle},
	{"tiny", tiny},
	{"catchup", catchup},
	{"backlog", backlog},
	{"stalls", stalls},
	{"slow", slow},
	{"fanout", fanout},
	{"amplify", amplify},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e := &env{out: os.Stdout, settings: settings{Queues: sizes{10, 1000, 10_000}}}
	only := flag.String("only", "", "scenarios to run, separated by commas (default all)")
	results := flag.String("results", "bench/results", "directory for the JSON file, below the repository; empty: none")
	tmp := flag.String("tmp", "", "where the data directories are made (default the system's place for temporary files)")
	e.flags()
	flag.Parse()
	if err := run(ctx, e, *only, *tmp, *results); err != nil {
		fmt.Fprintln(os.Stderr, "flat:", err)
		stop()
		os.Exit(1) //nolint:gocritic // exitAfterDefer: stop was called
	}
}

func (e *env) flags() {
	flag.IntVar(&e.Rounds, "rounds", 3, "runs of each load that is compared; the median counts")
	flag.DurationVar(&e.Duration, "duration", 4*time.Second, "of one load")
	flag.Var(&e.Queues, "queues", "queues: how many, the first is what the others are compared with")
	flag.IntVar(&e.Exist, "exist", 100_000, "exist: queues")
	flag.Uint64Var(&e.Backlog, "backlog", 10_000_000, "backlog: messages of 100 bytes; the goals are meant for 100,000,000")
	flag.IntVar(&e.Idle, "idle", 10_000, "idle: connections")
	flag.IntVar(&e.Fanout, "fanout", 1000, "fanout: queues")
	flag.IntVar(&e.FanoutSent, "fanout-messages", 2000, "fanout: messages of 1 KiB to all of them")
	flag.Uint64Var(&e.Amplify, "amplify", 1_000_000, "amplify: messages of 1 KiB")
	flag.Uint64Var(&e.Slow, "slow", 200_000, "slow: messages of 1 KiB for the consumer that doesn't read")
	flag.Uint64Var(&e.Catchup, "catchup", 3_000_000, "catchup: messages of 1 KiB")
	flag.IntVar(&e.Many, "stalls-queues", 20_000, "stalls: queues while checkpoints run")
	flag.Uint64Var(&e.Purge, "stalls-purge", 5_000_000, "stalls: messages of 100 bytes that are purged")
	flag.Uint64Var(&e.Merge, "stalls-merge", 3_000_000, "stalls: messages of 1 KiB that stay")
}

// run runs the chosen scenarios. One that fails doesn't keep the others from running.
func run(ctx context.Context, e *env, only, tmp, results string) (err error) {
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	if e.Rounds < 1 || e.Duration <= 0 {
		return errors.New("rounds and duration must be above 0")
	}
	root, err := repositoryRoot()
	if err != nil {
		return err
	}
	if e.work, err = os.MkdirTemp(tmp, "sluice-flat-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(e.work)) }()
	e.binary = filepath.Join(e.work, "sluice")
	if err := build(ctx, root, e.binary); err != nil {
		return err
	}
	doc := document{Started: time.Now().UTC(), Commit: commit(ctx, root), Cores: runtime.NumCPU(), Settings: e.settings}
	var errs []error
	for _, s := range chosen {
		fmt.Fprintf(e.out, "== %s\n", s.name)
		e.name, e.rows = s.name, nil
		began := time.Now()
		err := s.run(ctx, e)
		fmt.Fprintf(e.out, "   %.0f s\n", time.Since(began).Seconds())
		doc.Rows = append(doc.Rows, e.rows...)
		if err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
			doc.Errors = append(doc.Errors, err.Error())
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	printTable(e.out, doc.Rows)
	if results != "" {
		name, err := doc.write(filepath.Join(root, results))
		errs = append(errs, err)
		fmt.Fprintf(e.out, "\nall values: %s\n", name)
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// choose picks scenarios by name, in their own order.
func choose(only string) ([]scenario, error) {
	if only == "" {
		return scenarios, nil
	}
	names := strings.Split(only, ",")
	var chosen []scenario
	for _, s := range scenarios {
		if i := slices.Index(names, s.name); i >= 0 {
			chosen = append(chosen, s)
			names = slices.Delete(names, i, i+1)
		}
	}
	if len(names) > 0 {
		return nil, fmt.Errorf("no scenario %q", names[0])
	}
	return chosen, nil
}
