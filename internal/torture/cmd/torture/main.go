// Command torture starts a sluice binary, loads it over several connections,
// kills it at random moments and checks that it kept its promises. See package
// torture for what is checked.
//
//	go run ./internal/torture/cmd/torture -kills 30
//	go run ./internal/torture/cmd/torture -binary ./sluice -kills 100 -seed 42
//	go run ./internal/torture/cmd/torture -url amqp://guest:guest@127.0.0.1:5672/ -duration 30s
//
// It exits with 0 when the broker kept its promises, 1 when it broke one, and 2
// when the test couldn't be done.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/sluicemq/sluice/internal/torture"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
	}
	os.Exit(code)
}

type options struct {
	cfg     torture.Config
	binary  string
	command string
	dir     string
}

func parse(args []string) (*options, error) {
	var o options
	c := &o.cfg
	fs := flag.NewFlagSet("torture", flag.ContinueOnError)
	fs.StringVar(&o.binary, "binary", "", "sluice binary (default: built from ./cmd/sluice)")
	fs.StringVar(&o.command, "command", "", "shell command instead of -binary; {addr}, {port} and {data} are replaced")
	fs.StringVar(&c.URL, "url", "", "use this broker and kill nothing")
	fs.StringVar(&o.dir, "data", "", "directory for data and log (default: a temporary one, removed when all is well)")
	fs.IntVar(&c.Port, "port", 0, "port for the broker (default: a free one)")
	fs.IntVar(&c.Kills, "kills", 30, "how often the broker is killed")
	fs.DurationVar(&c.Duration, "duration", 0, "length of the load with -url (default 10s)")
	fs.DurationVar(&c.MinUp, "min-up", 0, "least time between start and kill (default 200ms)")
	fs.DurationVar(&c.MaxUp, "max-up", 0, "greatest time between start and kill (default 2s)")
	fs.Uint64Var(&c.Seed, "seed", 0, "seed of kill times and of what clients do (default: random)")
	fs.IntVar(&c.Publishers, "publishers", 0, "publishing connections (default 4)")
	fs.IntVar(&c.Transactors, "transactors", 0, "connections that consume and publish in transactions (default 3, -1 for none)")
	fs.IntVar(&c.Queues, "queues", 0, "queues; each has a consumer, those with odd numbers two and a getter (default 6)")
	fs.IntVar(&c.Rate, "rate", 0, "messages/s of each publisher (default 1000)")
	fs.IntVar(&c.ConfirmWindow, "confirm-window", 0, "unconfirmed messages of each publisher (default 200)")
	fs.IntVar(&c.Prefetch, "prefetch", 0, "greatest prefetch of a consumer (default 300)")
	fs.DurationVar(&c.Grace, "grace", 0, "age at the kill from which a fenced ack must last (default 500ms)")
	fs.IntVar(&c.Window, "window", 0, "reservation window: fresh messages per queue and kill that may be flagged (default 4096)")
	fs.DurationVar(&c.StartTimeout, "start-timeout", 0, "time for the broker to serve after a start (default 30s)")
	fs.DurationVar(&c.DrainTimeout, "drain-timeout", 0, "how long the drain waits while nothing arrives (default 15s)")
	err := fs.Parse(args)
	if err == nil && fs.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
		fmt.Fprintln(fs.Output(), err)
	}
	return &o, err
}

// run returns the exit code.
func run(args []string) (int, error) {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 2, nil // the flag package has said why
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	o.cfg.Progress = os.Stderr
	cleanUp := func(bool) {}
	if o.cfg.URL == "" {
		if cleanUp, err = o.prepare(ctx); err != nil {
			return 2, err
		}
	}
	report, err := torture.Run(ctx, o.cfg)
	if err != nil {
		cleanUp(false)
		return 2, err
	}
	ok := report.Counts.Violations() == 0
	cleanUp(ok)
	if err := report.Print(os.Stdout); err != nil {
		return 2, err
	}
	if !ok {
		return 1, fmt.Errorf("%d violation(s)", report.Counts.Violations())
	}
	return 0, nil
}

// prepare builds the binary when none is given, and lays out the directory. The
// returned function closes the log, and removes a temporary directory unless
// there is something to look at in it.
func (o *options) prepare(ctx context.Context) (cleanUp func(ok bool), err error) {
	temporary := o.dir == ""
	if temporary {
		if o.dir, err = os.MkdirTemp("", "sluice-torture-"); err != nil {
			return nil, err
		}
	} else if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.dir, "broker.log"))
	if err != nil {
		return nil, err
	}
	o.cfg.Log = log
	if o.cfg.Port == 0 {
		if o.cfg.Port, err = torture.FreePort(); err != nil {
			return nil, err
		}
	}
	if o.cfg.Command, err = o.brokerCommand(ctx); err != nil {
		return nil, err
	}
	return func(ok bool) {
		_ = log.Close()
		if temporary && ok {
			_ = os.RemoveAll(o.dir)
		} else {
			fmt.Fprintln(os.Stderr, "data and log of the broker:", o.dir)
		}
	}, nil
}

func (o *options) brokerCommand(ctx context.Context) ([]string, error) {
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(o.cfg.Port))
	data := filepath.Join(o.dir, "data")
	if o.command != "" {
		r := strings.NewReplacer("{addr}", addr, "{port}", strconv.Itoa(o.cfg.Port), "{data}", data)
		return []string{"/bin/sh", "-c", r.Replace(o.command)}, nil
	}
	binary := o.binary
	if binary == "" {
		binary = filepath.Join(o.dir, "sluice")
		build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/sluice")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("build ./cmd/sluice: %w", err)
		}
	}
	return []string{binary, "serve", "--data", data, "--amqp-listen", addr}, nil
}
