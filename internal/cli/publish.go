package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"
)

// publishWait is how long confirms are waited for after an interruption.
const publishWait = 5 * time.Second

// returnsShown is how many returned messages are reported one by one.
const returnsShown = 5

// publishFlags are the settings of "sluice publish".
type publishFlags struct {
	url        string
	exchange   string
	routingKey string
	queue      string
	declare    bool
	queueType  string
	bodies     []string
	files      []string
	repeat     int
	props      propertyFlags
	confirm    bool
	window     int
	mandatory  bool
	quiet      bool
}

func newPublishCmd() *cobra.Command {
	var f publishFlags
	cmd := &cobra.Command{
		Use:   "publish [flags] [FILE...]",
		Short: "Publish lines or files to any AMQP 0-9-1 broker",
		Long: `Publish lines or files to any AMQP 0-9-1 broker.

Every line of the named files, or of standard input, becomes a message. --body
and --file publish one message each instead, the text itself or the whole file.

Messages are persistent, and each is confirmed by the broker unless --confirm=false.
One that no queue takes is reported, unless --mandatory=false. The exit code is 0
when every message was taken, 1 when not, 2 for wrong usage.`,
		Example: `  seq 1000 | sluice publish --queue jobs --declare
  sluice publish --queue jobs --body '{"id":7}' --content-type application/json
  sluice publish --exchange amq.topic --routing-key logs.app app.log
  sluice publish --queue images --file a.png --file b.png -H source=camera -H seq:=7`,
		RunE: f.run,
	}
	fl := cmd.Flags()
	fl.StringVar(&f.url, "url", defaultURL, "broker")
	fl.StringVar(&f.exchange, "exchange", "", "exchange (default: the default exchange)")
	fl.StringVar(&f.routingKey, "routing-key", "", "routing key")
	fl.StringVar(&f.queue, "queue", "", "publish to this queue: short for its name as routing key of the default exchange")
	fl.BoolVar(&f.declare, "declare", false, "create the queue, durable, if it doesn't exist")
	fl.StringVar(&f.queueType, "queue-type", "", "x-queue-type for --declare")
	fl.StringArrayVar(&f.bodies, "body", nil, "publish this text as a message (repeatable)")
	fl.StringArrayVar(&f.files, "file", nil, "publish this file as one message (repeatable)")
	fl.IntVar(&f.repeat, "repeat", 1, "publish the messages of --body and --file this often")
	f.props.add(cmd)
	fl.BoolVar(&f.confirm, "confirm", true, "wait for the broker's confirms")
	fl.IntVar(&f.window, "confirm-window", 500, "unconfirmed messages at a time")
	fl.BoolVar(&f.mandatory, "mandatory", true, "have messages that no queue takes returned, and report them")
	fl.BoolVar(&f.quiet, "quiet", false, "no progress and no summary")
	return cmd
}

// check reports wrong usage.
func (f *publishFlags) check(args []string) error {
	switch {
	case f.queue != "" && (f.exchange != "" || f.routingKey != ""):
		return errors.New("--queue says exchange and routing key already; leave those out")
	case f.queue == "" && f.exchange == "" && f.routingKey == "":
		return errors.New("where to? give --queue, or --exchange and --routing-key")
	case f.declare && f.queue == "":
		return errors.New("--declare needs --queue")
	case f.queueType != "" && !f.declare:
		return errors.New("--queue-type needs --declare")
	case len(f.bodies)+len(f.files) > 0 && len(args) > 0:
		return errors.New("files of lines can't be mixed with --body and --file")
	case f.repeat < 1:
		return errors.New("--repeat must be at least 1")
	case f.repeat > 1 && len(f.bodies)+len(f.files) == 0:
		return errors.New("--repeat is for --body and --file")
	case f.window < 1:
		return errors.New("--confirm-window must be at least 1")
	}
	return nil
}

func (f *publishFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.check(args); err != nil {
		return usageError{err}
	}
	props, err := f.props.publishing()
	if err != nil {
		return usageError{err}
	}
	src, err := f.source(cmd, args)
	if err != nil {
		return err
	}
	defer src.close()
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	conn, ch, err := dialBroker(ctx, f.url, "sluice publish")
	if err != nil {
		return explain(err, f.url)
	}
	defer func() { _ = conn.Close() }()
	if f.declare {
		var args amqp.Table
		if f.queueType != "" {
			args = amqp.Table{"x-queue-type": f.queueType}
		}
		if _, err := ch.QueueDeclare(f.queue, true, false, false, false, args); err != nil {
			return explain(err, f.url)
		}
	}
	p := newPublishRun(f, props, ch, cmd.ErrOrStderr())
	err = p.run(ctx, src)
	if !f.quiet {
		fmt.Fprintln(cmd.ErrOrStderr(), p.summary())
	}
	return explain(err, f.url)
}

// source returns what is to be published.
func (f *publishFlags) source(cmd *cobra.Command, args []string) (source, error) {
	if len(f.bodies)+len(f.files) > 0 {
		return &wholeSource{bodies: f.bodies, files: f.files, repeat: f.repeat}, nil
	}
	if len(args) == 0 {
		return newLineSource(cmd.InOrStdin()), nil
	}
	return openLineFiles(args)
}

// publishRun is one run of "sluice publish".
type publishRun struct {
	f     *publishFlags
	props amqp.Publishing
	ch    *amqp.Channel
	out   io.Writer // for reports
	bar   progress

	closed <-chan *amqp.Error

	published int
	mu        sync.Mutex // guards what the confirm and return goroutines count
	confirmed int
	refused   int
	returned  int
}

func newPublishRun(f *publishFlags, props amqp.Publishing, ch *amqp.Channel, out io.Writer) *publishRun {
	return &publishRun{f: f, props: props, ch: ch, out: out, closed: ch.NotifyClose(make(chan *amqp.Error, 1))}
}

// run publishes everything that src has and waits for the broker's word on it.
func (p *publishRun) run(ctx context.Context, src source) error {
	exchange, key := p.f.exchange, p.f.routingKey
	if p.f.queue != "" {
		key = p.f.queue
	}
	if p.f.confirm {
		if err := p.ch.Confirm(false); err != nil {
			return err
		}
	}
	var watchers sync.WaitGroup
	returns := p.ch.NotifyReturn(make(chan amqp.Return, 64))
	watchers.Go(func() { p.watchReturns(returns) })
	open := make(chan *amqp.DeferredConfirmation, p.f.window)
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		p.watchConfirms(open)
	}()
	if !p.f.quiet {
		p.bar = newProgress(p.out, src.size(), "publishing")
	}

	err := p.publishAll(ctx, src, exchange, key, open)
	close(open)
	if waitErr := p.awaitConfirms(ctx, settled); err == nil {
		err = waitErr
	}
	p.bar.finish()
	// Closing the channel is a round trip: everything before it is handled, and
	// the channel of returns ends.
	if closeErr := p.ch.Close(); err == nil && closeErr != nil && !errors.Is(closeErr, amqp.ErrClosed) {
		err = closeErr
	}
	watchers.Wait()
	if err != nil {
		return err
	}
	return p.verdict()
}

// publishAll publishes until src ends, ctx ends or the channel breaks.
func (p *publishRun) publishAll(ctx context.Context, src source, exchange, key string, open chan<- *amqp.DeferredConfirmation) error {
	for body := range src.messages(ctx) {
		if body.err != nil {
			return body.err
		}
		msg := p.props
		msg.Body = body.data
		confirm, err := p.ch.PublishWithDeferredConfirm(exchange, key, p.f.mandatory, false, msg)
		if err != nil {
			return p.reason(err)
		}
		p.published++
		p.bar.add(body.read)
		if confirm == nil {
			continue
		}
		select {
		case open <- confirm:
		case <-ctx.Done():
			return errInterrupted
		}
	}
	if ctx.Err() != nil {
		return errInterrupted
	}
	return nil
}

var errInterrupted = errors.New("interrupted")

// watchConfirms waits for one confirm after the other. Those of a broken channel
// come out as refused.
func (p *publishRun) watchConfirms(open <-chan *amqp.DeferredConfirmation) {
	for confirm := range open {
		acked := confirm.Wait()
		p.mu.Lock()
		if acked {
			p.confirmed++
		} else {
			p.refused++
		}
		p.mu.Unlock()
	}
}

// awaitConfirms waits until every message is settled; after an interruption, for
// a while only.
func (p *publishRun) awaitConfirms(ctx context.Context, settled <-chan struct{}) error {
	select {
	case <-settled:
		return p.brokenBy()
	case <-ctx.Done():
	}
	select {
	case <-settled:
		return p.brokenBy()
	case <-time.After(publishWait):
		return fmt.Errorf("no confirms within %v", publishWait)
	}
}

// brokenBy returns why the channel was closed, nil if it is open.
func (p *publishRun) brokenBy() error {
	select {
	case err, ok := <-p.closed:
		if ok && err != nil {
			return err
		}
		return amqp.ErrClosed
	default:
		return nil
	}
}

// reason returns why a publish failed: what the broker said, if it did.
func (p *publishRun) reason(err error) error {
	if !errors.Is(err, amqp.ErrClosed) {
		return err
	}
	select {
	case why, ok := <-p.closed:
		if ok && why != nil {
			return why
		}
	case <-time.After(time.Second):
	}
	return err
}

func (p *publishRun) watchReturns(returns <-chan amqp.Return) {
	for r := range returns {
		p.mu.Lock()
		p.returned++
		n := p.returned
		p.mu.Unlock()
		if n <= returnsShown {
			p.bar.clear()
			fmt.Fprintf(p.out, "returned: %d %s (exchange %q, routing key %q)\n", r.ReplyCode, r.ReplyText, r.Exchange, r.RoutingKey)
		}
	}
}

// verdict returns an error unless every message was taken.
func (p *publishRun) verdict() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.returned > 0:
		return fmt.Errorf("no queue took %d of %d messages", p.returned, p.published)
	case p.refused > 0:
		return fmt.Errorf("the broker refused %d of %d messages", p.refused, p.published)
	}
	return nil
}

func (p *publishRun) summary() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := fmt.Sprintf("published %d messages", p.published)
	if p.f.confirm {
		s += fmt.Sprintf(", %d confirmed", p.confirmed)
	}
	if p.refused > 0 {
		s += fmt.Sprintf(", %d not", p.refused)
	}
	if p.returned > 0 {
		s += fmt.Sprintf(", %d returned", p.returned)
	}
	return s
}
