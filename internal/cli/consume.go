package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"
)

const (
	// consumeIdle is how long nothing must have arrived before consume asks the
	// broker whether the queue is empty.
	consumeIdle = 100 * time.Millisecond
	// consumeBatch is the greatest number of messages printed between two acks.
	consumeBatch = 100
)

// What --ack-mode says.
const (
	ackAfterPrint = "ack"     // ack what was printed
	ackAuto       = "auto"    // the broker takes delivery for an ack
	ackRequeue    = "requeue" // give everything back at the end
	ackReject     = "reject"  // drop, or dead-letter, what was printed
)

// consumeFlags are the settings of "sluice consume".
type consumeFlags struct {
	url        string
	queue      string
	exchange   string
	routingKey string
	count      int
	ackMode    string
	prefetch   int
	follow     bool
	raw        bool
	asJSON     bool
}

func newConsumeCmd() *cobra.Command {
	var f consumeFlags
	cmd := &cobra.Command{
		Use:   "consume [flags] [QUEUE]",
		Short: "Print messages of a queue of any AMQP 0-9-1 broker",
		Long: `Print messages of a queue of any AMQP 0-9-1 broker.

Bodies are printed one a line; --raw prints them with nothing in between, --json
one object a line with properties and headers. It ends when the queue is empty,
after --count messages, or with --follow at Ctrl-C only.

Messages are acked after they were printed. --ack-mode auto lets the broker take
them for acked when it sends them, requeue gives them back at the end (to look
without taking), reject drops or dead-letters them. No more messages are taken
than --count.

With --exchange in place of a queue, a temporary queue is bound to the exchange
and whatever passes from now on is printed, as with --follow.`,
		Example: `  sluice consume jobs
  sluice consume jobs --count 10 --ack-mode requeue --json
  sluice consume jobs --follow | ./worker
  sluice consume --exchange amq.topic --routing-key 'logs.#'`,
		Args: cobra.MaximumNArgs(1),
		RunE: f.run,
	}
	fl := cmd.Flags()
	fl.StringVar(&f.url, "url", defaultURL, "broker")
	fl.StringVar(&f.queue, "queue", "", "queue, instead of the argument")
	fl.StringVar(&f.exchange, "exchange", "", "consume from this exchange through a temporary queue")
	fl.StringVar(&f.routingKey, "routing-key", "#", "with --exchange: binding key")
	fl.IntVar(&f.count, "count", 0, "end after this many messages (default: no limit)")
	fl.StringVar(&f.ackMode, "ack-mode", ackAfterPrint, "ack, auto, requeue or reject")
	fl.IntVar(&f.prefetch, "prefetch", 200, "unsettled messages at a time")
	fl.BoolVar(&f.follow, "follow", false, "wait for more when the queue is empty")
	fl.BoolVar(&f.raw, "raw", false, "print bodies with nothing in between")
	fl.BoolVar(&f.asJSON, "json", false, "print a JSON object a line, with properties")
	cmd.MarkFlagsMutuallyExclusive("raw", "json")
	return cmd
}

// check reports wrong usage, and settles what follows from other settings.
func (f *consumeFlags) check(args []string) error {
	if len(args) == 1 {
		if f.queue != "" {
			return errors.New("the queue is given twice")
		}
		f.queue = args[0]
	}
	switch {
	case f.queue == "" && f.exchange == "":
		return errors.New("from where? give a queue, or --exchange")
	case f.queue != "" && f.exchange != "":
		return errors.New("give a queue or --exchange, not both")
	case f.count < 0:
		return errors.New("--count must not be negative")
	case f.prefetch < 1 || f.prefetch > 65535:
		return errors.New("--prefetch must be 1 to 65535")
	}
	switch f.ackMode {
	case ackAfterPrint, ackAuto, ackReject:
	case ackRequeue:
		if f.follow || f.exchange != "" {
			return errors.New("--ack-mode requeue gives messages back at the end, and --follow has none")
		}
	default:
		return fmt.Errorf("--ack-mode must be ack, auto, requeue or reject, not %q", f.ackMode)
	}
	f.follow = f.follow || f.exchange != ""
	return nil
}

func (f *consumeFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.check(args); err != nil {
		return usageError{err}
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	conn, ch, err := dialBroker(ctx, f.url, "sluice consume")
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return explain(err, f.url)
	}
	// What is unsettled goes back to the queue when the connection ends.
	defer func() { _ = conn.Close() }()
	out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
	c := &consumeRun{f: f, ch: ch, out: out, closed: ch.NotifyClose(make(chan *amqp.Error, 1))}
	if err := c.subscribe(); err != nil {
		return explain(err, f.url)
	}
	return explain(c.run(ctx), f.url)
}

// consumeRun is one run of "sluice consume".
type consumeRun struct {
	f   *consumeFlags
	ch  *amqp.Channel
	out *bufio.Writer

	deliveries <-chan amqp.Delivery
	closed     <-chan *amqp.Error
	prefetch   int // 0: unlimited

	received int
	printed  uint64 // tag of the last message written to out
	settled  int    // messages that were acked or rejected
}

// consumerTag is the tag of the only consumer.
const consumerTag = "sluice-consume"

// subscribe starts consuming.
func (c *consumeRun) subscribe() error {
	if c.f.exchange != "" {
		q, err := c.ch.QueueDeclare("", false, true, true, false, nil)
		if err != nil {
			return err
		}
		if err := c.ch.QueueBind(q.Name, c.f.routingKey, c.f.exchange, false, nil); err != nil {
			return err
		}
		c.f.queue = q.Name
	}
	c.prefetch = c.f.prefetch
	if c.f.count > 0 {
		c.prefetch = min(c.prefetch, c.f.count)
	}
	if c.f.ackMode == ackRequeue {
		// All of it is unsettled at once, up to what the protocol can say.
		c.prefetch = 0
		if c.f.count <= 65535 {
			c.prefetch = c.f.count
		}
	}
	if err := c.ch.Qos(c.prefetch, 0, false); err != nil {
		return err
	}
	var err error
	c.deliveries, err = c.ch.Consume(c.f.queue, consumerTag, c.f.ackMode == ackAuto, false, false, false, nil)
	return err
}

// run prints until the end, and settles what it printed.
func (c *consumeRun) run(ctx context.Context) error {
	err := c.print(ctx)
	if flushErr := c.out.Flush(); err == nil {
		err = flushErr
	}
	if err != nil {
		return err
	}
	// No longer a consumer when the last acks make room: nothing is sent that
	// would only go back, marked as redelivered.
	if err := c.ch.Cancel(consumerTag, false); err != nil {
		return err
	}
	if err := c.settle(true); err != nil {
		return err
	}
	// A round trip: the broker has taken the acks.
	return c.ch.Close()
}

// print prints deliveries until there are enough, no more, or ctx ends.
func (c *consumeRun) print(ctx context.Context) error {
	idle := time.NewTimer(consumeIdle)
	defer idle.Stop()
	for c.f.count == 0 || c.received < c.f.count {
		d, ok, waiting := c.next()
		if !waiting {
			// Nothing waits: the reader of our output gets what there is.
			if err := c.settle(false); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case d, ok = <-c.deliveries:
			case <-idle.C:
				if end, err := c.atEnd(); end || err != nil {
					return err
				}
				idle.Reset(consumeIdle)
				continue
			}
		}
		if !ok {
			return c.whyEnded()
		}
		if err := c.take(&d); err != nil {
			return err
		}
		idle.Reset(consumeIdle)
		if ctx.Err() != nil {
			return nil
		}
	}
	return nil
}

// next returns a delivery if one is waiting; ok is false at the end of all.
func (c *consumeRun) next() (d amqp.Delivery, ok, waiting bool) {
	select {
	case d, ok = <-c.deliveries:
		return d, ok, true
	default:
		return d, false, false
	}
}

// take prints one delivery, and settles when enough have come together.
func (c *consumeRun) take(d *amqp.Delivery) error {
	c.received++
	if err := c.write(d); err != nil {
		return err
	}
	c.printed = d.DeliveryTag
	batch := consumeBatch
	if c.prefetch > 0 {
		batch = min(batch, max(1, c.prefetch/2))
	}
	if c.received-c.settled < batch {
		return nil
	}
	return c.settle(false)
}

// atEnd reports whether the queue is empty and that is the end. Everything that
// was on its way is printed by then; run may cancel the consumer again.
func (c *consumeRun) atEnd() (bool, error) {
	if c.f.follow {
		return false, nil
	}
	q, err := c.ch.QueueDeclarePassive(c.f.queue, false, false, false, false, nil)
	if err != nil || q.Messages > 0 {
		return false, err
	}
	if err := c.ch.Cancel(consumerTag, false); err != nil {
		return false, err
	}
	for d := range c.deliveries {
		if err := c.take(&d); err != nil {
			return false, err
		}
	}
	return true, nil
}

// settle flushes what was printed and then acks or rejects it. Before the end it
// leaves some unsettled when there is a count: the broker sends at most prefetch
// messages more than were settled, and so never more than count.
func (c *consumeRun) settle(end bool) error {
	if err := c.out.Flush(); err != nil {
		return err
	}
	n := c.received - c.settled
	if n == 0 || c.f.ackMode == ackAuto {
		return nil
	}
	tag := c.printed
	if !end {
		if c.f.count > 0 {
			over := max(0, c.settled+n+c.prefetch-c.f.count)
			n, tag = n-over, tag-uint64(over)
		}
		if n <= 0 || c.f.ackMode == ackRequeue {
			return nil
		}
	}
	c.settled += n
	switch c.f.ackMode {
	case ackRequeue:
		return c.ch.Nack(tag, true, true)
	case ackReject:
		return c.ch.Nack(tag, true, false)
	default:
		return c.ch.Ack(tag, true)
	}
}

// whyEnded returns why the deliveries ended without being asked to.
func (c *consumeRun) whyEnded() error {
	select {
	case err, ok := <-c.closed:
		if ok && err != nil {
			return err
		}
		return amqp.ErrClosed
	case <-time.After(consumeIdle):
		return fmt.Errorf("the broker ended the consumer: queue %s was deleted", c.f.queue)
	}
}

// write prints one message.
func (c *consumeRun) write(d *amqp.Delivery) error {
	switch {
	case c.f.asJSON:
		return writeJSON(c.out, d)
	case c.f.raw:
		_, err := c.out.Write(d.Body)
		return err
	default:
		return writeLine(c.out, d.Body)
	}
}

func writeLine(w io.Writer, body []byte) error {
	if _, err := w.Write(body); err != nil {
		return err
	}
	_, err := w.Write([]byte{'\n'})
	return err
}
