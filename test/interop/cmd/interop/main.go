// Command interop runs unmodified AMQP 0-9-1 clients against a broker and counts
// what works: the integration tests that amqp091-go ships, our own programs over
// pika and amqplib, and the code that the documents show.
//
// Without -url it builds sluice, starts it on a free loopback port with an empty
// data directory, and stops it with SIGTERM at the end. With -url (or AMQP_URL) it
// uses the broker there, any broker, so that a failure can be told from a wrong
// expectation.
//
// It needs Go, Python 3 with venv, and Node 18 with npm. What it installs stays
// below .bin/interop, for the next run. The last line counts the tests; the exit
// code is 0 only if none failed and every suite ran something.
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
	"slices"
	"strings"
	"syscall"
	"time"
)

// suiteTimeout is how long a suite may take: amqp091-go's, the longest, takes
// about a minute.
const suiteTimeout = 8 * time.Minute

// env is what the suites share.
type env struct {
	root   string // of the repository
	cache  string // kept from run to run
	work   string // removed at the end
	url    string // of the broker
	binary string // sluice, "" with a broker that we didn't start
	out    io.Writer

	failed map[string]error // installations that failed
}

// suite is one set of tests. run returns its outcomes, and an error if it could
// not be run at all.
type suite struct {
	name string
	run  func(ctx context.Context, e *env) (client string, outcomes []outcome, err error)
}

var suites = []suite{
	{"amqp091-go", runGo},
	{"pika", runPython},
	{"amqplib", runNode},
	{"documents", runDocuments},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	url := flag.String("url", os.Getenv("AMQP_URL"), "a running broker, instead of an own sluice")
	only := flag.String("only", "", "suites to run, separated by commas (default all)")
	flag.Parse()
	ok, err := run(ctx, os.Stdout, *url, *only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
	}
	if err != nil || !ok {
		stop()
		os.Exit(1) //nolint:gocritic // exitAfterDefer: stop was called
	}
}

// run runs the chosen suites and reports whether all is well.
func run(ctx context.Context, out io.Writer, url, only string) (ok bool, err error) {
	chosen, err := choose(only)
	if err != nil {
		return false, err
	}
	e := &env{url: url, out: out, failed: map[string]error{}}
	if e.root, err = repositoryRoot(); err != nil {
		return false, err
	}
	e.cache = filepath.Join(e.root, ".bin", "interop")
	if e.work, err = os.MkdirTemp("", "sluice-interop-"); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(e.work)) }()

	var b *broker
	if url == "" {
		if b, err = startBroker(ctx, e); err != nil {
			return false, err
		}
		defer b.kill()
		e.url, e.binary = b.url, b.binary
	}
	reports := runSuites(ctx, e, chosen, b)
	if b != nil {
		reports = append(reports, b.stop(ctx))
	}
	return printReports(out, reports), ctx.Err()
}

func runSuites(ctx context.Context, e *env, chosen []suite, b *broker) (reports []report) {
	for _, s := range chosen {
		fmt.Fprintf(e.out, "== %s\n", s.name)
		sctx, cancel := context.WithTimeout(ctx, suiteTimeout)
		began := time.Now()
		r := report{suite: s.name}
		var err error
		r.client, r.outcomes, err = s.run(sctx, e)
		switch {
		case err != nil:
			r.outcomes = append(r.outcomes, outcome{failed, "running the suite", err.Error()})
		case !slices.ContainsFunc(r.outcomes, func(o outcome) bool { return o.status != skipped }):
			r.outcomes = append(r.outcomes, outcome{failed, "running the suite", "no test was run"})
		}
		cancel()
		if b != nil && !b.alive() {
			r.outcomes = append(r.outcomes, outcome{failed, "the broker lives on", b.lastWords()})
		}
		r.took = time.Since(began)
		r.printFailures(e.out)
		reports = append(reports, r)
	}
	return reports
}

// choose picks suites by name.
func choose(only string) ([]suite, error) {
	if only == "" {
		return suites, nil
	}
	var chosen []suite
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(suites, func(s suite) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no suite %q", name)
		}
		chosen = append(chosen, suites[i])
	}
	return chosen, nil
}

// repositoryRoot finds the directory of sluice's go.mod from the working directory up.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(b), "module github.com/sluicemq/sluice\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("run it inside sluice's repository")
		}
		dir = parent
	}
}
