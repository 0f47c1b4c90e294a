package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sluicemq/sluice/internal/bench"
)

// newBenchCmd returns "sluice bench" with one subcommand per protocol.
func newBenchCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a broker under load",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBenchAMQPCmd())
	return cmd
}

// benchFlags are the settings of "bench amqp" that bench.Config words otherwise.
type benchFlags struct {
	cfg         bench.Config
	persistent  bool
	durable     bool
	window      int
	prefetch    int
	drain       bool
	publishOnly bool
	consumeOnly bool
	asJSON      bool
	quiet       bool
}

func newBenchAMQPCmd() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "amqp",
		Short: "Load any AMQP 0-9-1 broker; measure rates and latencies, verify deliveries",
		Long: `Load any AMQP 0-9-1 broker; measure rates and latencies, verify deliveries.

Without --rate the load is a closed loop: every publisher keeps its confirm
window full. With --rate it is an open loop: messages leave on a fixed schedule
and latency counts from the scheduled time, so that a stall is seen by every
message that it delayed.

Messages are checked on arrival: nothing confirmed may be missing, nothing may
come twice without the redelivered flag, out of order or damaged. The exit code
is 1 when something did.

Queues are created as --queue (or --queue-0, -1, …), emptied before and deleted
afterwards, unless --keep is given. --consume-only takes queues as they are and,
without --duration or --messages, ends when they are empty.`,
		Example: `  sluice bench amqp
  sluice bench amqp --rate 5000 --duration 30s
  sluice bench amqp --publishers 4 --queues 4 --consumers 4 --size 64
  sluice bench amqp --publish-only --messages 10000000 --keep
  sluice bench amqp --consume-only
  sluice bench amqp --url amqp://guest:guest@127.0.0.1:5673/ --queue-type quorum --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fl, c := cmd.Flags(), &f.cfg
	fl.StringVar(&c.URL, "url", bench.DefaultURL, "broker")
	fl.IntVar(&c.Publishers, "publishers", 1, "publishing connections")
	fl.IntVar(&c.Consumers, "consumers", 1, "consuming connections")
	fl.BoolVar(&f.publishOnly, "publish-only", false, "no consumers")
	fl.BoolVar(&f.consumeOnly, "consume-only", false, "no publishers; consume what is in the queues")
	fl.IntVar(&c.Queues, "queues", 1, "queues; publishers and consumers are spread over them")
	fl.StringVar(&c.QueueName, "queue", bench.DefaultQueueName, "name of the queue, or prefix of several")
	fl.StringVar(&c.QueueType, "queue-type", "", "x-queue-type of the queues (classic, quorum)")
	fl.IntVar(&c.SizeBytes, "size", bench.DefaultSizeBytes, fmt.Sprintf("body size in bytes, at least %d", bench.MinSizeBytes))
	fl.BoolVar(&f.persistent, "persistent", true, "delivery mode 2")
	fl.BoolVar(&f.durable, "durable", true, "durable queues")
	fl.IntVar(&f.window, "confirm-window", bench.DefaultConfirmWindow, "unconfirmed messages per publisher; 0: no confirms")
	fl.BoolVar(&c.Mandatory, "mandatory", false, "publish with the mandatory flag")
	fl.IntVar(&f.prefetch, "prefetch", bench.DefaultPrefetch, "unacked messages per consumer; 0: unlimited")
	fl.IntVar(&c.AckEvery, "ack-every", 0, "deliveries per basic.ack; 0: a fifth of the prefetch, at most 100")
	fl.BoolVar(&c.AutoAck, "auto-ack", false, "consume without acks")
	fl.Float64Var(&c.Rate, "rate", 0, "messages/s over all publishers, on a fixed schedule; 0: as fast as the window allows")
	fl.DurationVar(&c.Duration, "duration", 0, "measured time after the warm-up (default 10s; unlimited with --messages or --consume-only)")
	fl.DurationVar(&c.Warmup, "warmup", 0, "time before measuring starts (default 2s; none with --messages or --consume-only)")
	fl.Uint64Var(&c.Messages, "messages", 0, "end after this many messages")
	fl.BoolVar(&f.drain, "drain", true, "consume everything that was confirmed before ending")
	fl.DurationVar(&c.DrainTimeout, "drain-timeout", bench.DefaultDrainTimeout, "give up when nothing has arrived for this long")
	fl.BoolVar(&c.Keep, "keep", false, "neither empty the queues before nor delete them afterwards")
	fl.BoolVar(&f.asJSON, "json", false, "print the result as JSON")
	fl.DurationVar(&c.Interval, "interval", 0, "how often progress is printed to standard error (default 1s)")
	fl.BoolVar(&f.quiet, "quiet", false, "no progress")
	cmd.MarkFlagsMutuallyExclusive("publish-only", "consume-only")
	return cmd
}

// config translates the flags.
func (f *benchFlags) config(cmd *cobra.Command) bench.Config {
	cfg := f.cfg
	if f.publishOnly {
		cfg.Consumers = 0
	}
	if f.consumeOnly {
		cfg.Publishers = 0
	}
	cfg.Transient, cfg.NonDurable, cfg.NoDrain = !f.persistent, !f.durable, !f.drain
	cfg.ConfirmWindow, cfg.Prefetch = orNone(f.window), orNone(f.prefetch)
	if cmd.Flags().Changed("warmup") && cfg.Warmup == 0 {
		cfg.Warmup = -1
	}
	if !f.quiet {
		cfg.Progress = cmd.ErrOrStderr()
	}
	return cfg
}

// orNone returns the value that bench.Config has for "none" when v is 0, which
// there means the default.
func orNone(v int) int {
	if v == 0 {
		return -1
	}
	return v
}

func (f *benchFlags) run(cmd *cobra.Command) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cfg := f.config(cmd)
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return usageError{err}
	}
	res, err := bench.Run(ctx, cfg)
	if err != nil {
		return explain(err, cfg.URL)
	}
	if f.asJSON {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		err = enc.Encode(res)
	} else {
		err = res.Print(cmd.OutOrStdout())
	}
	if err != nil {
		return err
	}
	if n := res.Verify.Violations(); n > 0 {
		return fmt.Errorf("%d violation(s) of what the broker promises", n)
	}
	if res.Interrupted {
		return errors.New("interrupted")
	}
	return nil
}
