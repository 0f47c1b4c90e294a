package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"
)

// Config says what Run does. EnsureDefaults fills in zero values.
type Config struct {
	// Command starts the broker in the foreground, serving AMQP on
	// 127.0.0.1:Port. Empty: no broker is started and nothing is killed; URL is
	// the broker to use, for Duration.
	Command []string
	Port    int
	URL     string
	Log     io.Writer // gets the broker's output; nil: dropped

	Kills    int
	Duration time.Duration // of the load when nothing is killed
	MinUp    time.Duration // between a start and the next kill
	MaxUp    time.Duration
	Seed     uint64

	Publishers    int
	Transactors   int // clients that consume and publish in transactions; -1 for none
	Queues        int // those with odd numbers have two consumers and a getter
	Rate          int // messages/s of each publisher
	ConfirmWindow int
	Prefetch      int // the greatest that consumers draw

	Grace        time.Duration // see Limits
	Window       int
	StartTimeout time.Duration // for the broker to serve after a start
	DrainTimeout time.Duration // how long the drain waits while nothing arrives

	Progress io.Writer // gets a line per kill; nil: none
}

// EnsureDefaults replaces zero values by defaults.
func (c *Config) EnsureDefaults() {
	def(&c.Kills, 30)
	def(&c.Duration, 10*time.Second)
	def(&c.MinUp, 200*time.Millisecond)
	def(&c.MaxUp, 2*time.Second)
	def(&c.Publishers, 4)
	def(&c.Transactors, 3)
	def(&c.Queues, 6)
	def(&c.Rate, 1000)
	def(&c.ConfirmWindow, 200)
	def(&c.Prefetch, 300)
	def(&c.Grace, 500*time.Millisecond)
	def(&c.Window, 4096) // queue.MaxReserveWindow: the bound that the broker states
	def(&c.StartTimeout, 30*time.Second)
	def(&c.DrainTimeout, 15*time.Second)
	if c.Log == nil {
		c.Log = io.Discard
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	if c.Seed == 0 {
		c.Seed = rand.Uint64()
	}
	if c.URL == "" {
		c.URL = "amqp://guest:guest@" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port)) + "/"
	}
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Validate reports a setting that can't be run.
func (c *Config) Validate() error {
	switch {
	case c.Kills < 0 || c.Publishers < 1 || c.Queues < 1 || c.Rate < 1 || c.ConfirmWindow < 1 || c.Prefetch < 1:
		return errors.New("kills, publishers, queues, rate, confirm window and prefetch must be positive")
	case c.Publishers+max(c.Transactors, 0) > 1<<15 || c.Queues > 1<<15 || c.Prefetch > 1<<16-1:
		return errors.New("too many publishers or queues, or too great a prefetch")
	case c.MinUp > c.MaxUp:
		return fmt.Errorf("the least time up, %v, is above the greatest, %v", c.MinUp, c.MaxUp)
	}
	return nil
}

// Report is the outcome of a run.
type Report struct {
	Seed       uint64
	Kills      int
	EarlyKills int // of these: before the broker served
	Elapsed    time.Duration
	Recovery   []time.Duration // from a start to the first connection, sorted
	Counts     Counts
	Violations []string
}

// Run tortures a broker. An error means that the test itself couldn't be done;
// what the broker did wrong is in the report.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rng := rand.New(rand.NewPCG(cfg.Seed, 0))
	inFlight := 2*cfg.Prefetch + 1 + max(cfg.Transactors, 0)*txPrefetch // two consumers, a getter, transactors
	r := &runner{
		cfg: &cfg, rng: rng, begin: time.Now(),
		check:  NewChecker(Limits{Grace: cfg.Grace, Window: cfg.Window, InFlight: inFlight}, time.Now),
		report: Report{Seed: cfg.Seed},
	}
	r.clients = &clients{cfg: &cfg, run: rng.Uint32(), url: cfg.URL, check: r.check}
	fmt.Fprintf(cfg.Progress, "seed %d\n", cfg.Seed)
	err := r.run(ctx)
	cancel()
	r.clients.gate.setOpen(false)
	r.clients.publishing.Wait()
	r.clients.wg.Wait()
	if err != nil {
		return nil, err
	}
	r.report.Counts, r.report.Violations = r.check.Finish()
	r.report.Elapsed = time.Since(r.begin)
	slices.Sort(r.report.Recovery)
	return &r.report, nil
}

// runner is the controller of one run.
type runner struct {
	cfg     *Config
	rng     *rand.Rand
	begin   time.Time
	check   *Checker
	clients *clients
	broker  *broker // nil when nothing is to be killed
	report  Report
}

// errBroker ends a run whose broker failed: it is booked as a violation.
var errBroker = errors.New("the broker failed")

func (r *runner) run(ctx context.Context) error {
	if len(r.cfg.Command) > 0 {
		r.broker = &broker{command: r.cfg.Command, url: r.cfg.URL, log: r.cfg.Log}
		if err := r.broker.start(); err != nil {
			return err
		}
		defer r.broker.kill()
		if _, err := r.broker.ready(ctx, r.cfg.StartTimeout); err != nil {
			return fmt.Errorf("first start: %w", err)
		}
	}
	if err := declareAll(r.cfg.URL, r.cfg.Queues); err != nil {
		return fmt.Errorf("declare: %w", err)
	}
	r.clients.start(ctx)
	r.clients.gate.setOpen(true)
	err := r.load(ctx)
	r.clients.endPublishing()
	if err == nil {
		err = r.finish(ctx)
	}
	if errors.Is(err, errBroker) {
		return nil
	}
	return err
}

// load lets clients work and kills the broker meanwhile.
func (r *runner) load(ctx context.Context) error {
	if r.broker == nil {
		return sleep(ctx, r.cfg.Duration)
	}
	isReady := true
	for n := 1; n <= r.cfg.Kills; n++ {
		up := r.cfg.MinUp + time.Duration(r.rng.Int64N(int64(r.cfg.MaxUp-r.cfg.MinUp)+1))
		// Now and then the broker doesn't get to serve: recovery is killed too.
		early := !isReady && r.rng.IntN(6) == 0
		if early {
			up = time.Duration(r.rng.Int64N(int64(300 * time.Millisecond)))
			r.report.EarlyKills++
		} else if !isReady {
			if err := r.awaitReady(ctx); err != nil {
				return err
			}
		}
		if err := sleep(ctx, up); err != nil {
			return err
		}
		if err := r.kill(ctx, true); err != nil {
			return err
		}
		isReady = false
		confirmed, delivered := r.check.Progress()
		fmt.Fprintf(r.cfg.Progress, "%6.1fs  kill %d of %d after %v up  confirmed %d  delivered %d\n",
			time.Since(r.begin).Seconds(), n, r.cfg.Kills, up.Round(time.Millisecond), confirmed, delivered)
	}
	if !isReady {
		return r.awaitReady(ctx)
	}
	return nil
}

// kill kills the broker and starts it again; clients come back at once when
// reopen is set. No client is connected when the kill is booked.
func (r *runner) kill(ctx context.Context, reopen bool) error {
	if err := r.broker.alive(); err != nil {
		return r.brokerFailed(err)
	}
	r.clients.gate.setOpen(false)
	at := r.broker.kill()
	if !r.clients.gate.empty(ctx) {
		return ctx.Err()
	}
	r.check.Killed(at)
	r.report.Kills++
	if err := r.broker.start(); err != nil {
		return err
	}
	r.clients.gate.setOpen(reopen)
	return nil
}

func (r *runner) awaitReady(ctx context.Context) error {
	took, err := r.broker.ready(ctx, r.cfg.StartTimeout)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return r.brokerFailed(err)
	}
	r.report.Recovery = append(r.report.Recovery, took)
	return nil
}

func (r *runner) brokerFailed(err error) error {
	r.check.RestartFailed(err)
	return errBroker
}

// finish consumes what is left and sees whether it stays consumed.
func (r *runner) finish(ctx context.Context) error {
	fmt.Fprintf(r.cfg.Progress, "%6.1fs  publishing has ended, draining\n", time.Since(r.begin).Seconds())
	drained, err := r.drain(ctx)
	if err != nil {
		return err
	}
	if r.broker == nil {
		r.clients.gate.setOpen(false)
		return deleteAll(r.cfg.URL, r.cfg.Queues)
	}
	if !drained {
		return nil // what is missing is a violation already
	}
	// Every ack was fenced at the next tick of its consumer; Grace later they
	// must all last.
	if err := sleep(ctx, r.cfg.Grace+100*time.Millisecond); err != nil {
		return err
	}
	if err := r.killIdle(ctx); err != nil {
		return err
	}
	left, err := ready(r.cfg.URL, r.cfg.Queues)
	if err != nil {
		return r.brokerFailed(err)
	}
	for q, n := range left {
		if n > 0 {
			r.check.LeftOver(q, n)
		}
	}
	return nil
}

// killIdle kills the broker while nothing happens, and keeps clients away when
// it is back.
func (r *runner) killIdle(ctx context.Context) error {
	if err := r.kill(ctx, false); err != nil {
		return err
	}
	return r.awaitReady(ctx)
}

// drain waits until everything confirmed is received, everything received is
// acked, and the queues are empty. It reports false when nothing moves any more
// before that.
func (r *runner) drain(ctx context.Context) (bool, error) {
	last, since := -1, time.Now()
	for {
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return false, err
		}
		if r.broker != nil {
			if err := r.broker.alive(); err != nil {
				return false, r.brokerFailed(err)
			}
		}
		missing, unacked := r.check.Open()
		if missing == 0 && unacked == 0 {
			left, err := ready(r.cfg.URL, r.cfg.Queues)
			if err != nil {
				return false, r.brokerFailed(err)
			}
			if !slices.ContainsFunc(left, func(n int) bool { return n > 0 }) {
				return true, nil
			}
		}
		if _, delivered := r.check.Progress(); delivered != last {
			last, since = delivered, time.Now()
		}
		if time.Since(since) > r.cfg.DrainTimeout {
			return false, nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Print writes the report as a table for people, violations in words first.
func (r *Report) Print(w io.Writer) error {
	for _, v := range r.Violations {
		fmt.Fprintln(w, "VIOLATION:", v)
	}
	c := r.Counts
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name string, value any, note string) { fmt.Fprintf(tw, "%s\t%v\t%s\n", name, value, note) }
	row("seed", r.Seed, "")
	row("kills", r.Kills, fmt.Sprintf("%d of them before the broker served", r.EarlyKills))
	row("time", r.Elapsed.Round(time.Millisecond), "")
	if n := len(r.Recovery); n > 0 {
		row("start to first connection", r.Recovery[n/2].Round(time.Millisecond),
			fmt.Sprintf("median; longest %v", r.Recovery[n-1].Round(time.Millisecond)))
	}
	row("published", c.Attempted, "")
	row("confirmed", c.Confirmed, "")
	row("deliveries", c.Delivered, fmt.Sprintf("%d distinct messages", c.Distinct))
	row("redeliveries", c.Redelivered, fmt.Sprintf("after %d nacks and rejects with requeue", c.Requeued))
	row("transactions", c.Committed, "whose commit was answered")
	row("acks lost in the last moment", c.AcksLost, "legitimate")
	row("vanished", c.Vanished, "received, but gone before their ack and their confirm; legitimate")
	row("fresh messages flagged", c.FreshFlagged, fmt.Sprintf("at most %d in one queue per kill", c.FreshFlagMost))
	fmt.Fprintln(tw, "\t\t")
	row("lost", c.Lost, "confirmed and never received")
	row("duplicates without the flag", c.Unflagged, "")
	row("settled ones that came back", c.Resurrected+c.AckedNoKill+c.LeftInQueues, "")
	row("flagged beyond the window", c.OverWindow, "")
	row("half transactions", c.HalfTxs, "")
	row("out of order", c.OutOfOrder, "")
	row("damaged or misplaced", c.Damaged, "")
	row("unsettled at the end", c.Unsettled, "")
	row("connections broken without a kill", c.CutOff, "")
	row("failed restarts", c.RestartFailed, "")
	return tw.Flush()
}
