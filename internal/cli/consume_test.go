package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// fill publishes the numbers 1 to n to a new queue.
func fill(t *testing.T, url, queue string, n int) {
	t.Helper()
	if _, err := publish(t, url, numbers(1, n), "--queue", queue, "--declare"); err != nil {
		t.Fatal(err)
	}
}

func numbers(from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// TestConsumeTakesNoMoreThanCount checks counts below, at and above what the
// prefetch allows: what isn't printed must stay, not even marked as redelivered.
func TestConsumeTakesNoMoreThanCount(t *testing.T) {
	url := startBroker(t)
	for _, count := range []int{1, 3, 10, 11, 57, 100} {
		queue := fmt.Sprint("count-", count)
		fill(t, url, queue, 100)
		out, err := consume(t, url, queue, "--count", fmt.Sprint(count), "--prefetch", "10")
		if err != nil || out != numbers(1, count) {
			t.Errorf("count %d: %v, %q", count, err, out)
		}
		out, err = consume(t, url, queue, "--json")
		if err != nil || strings.Count(out, "\n") != 100-count || strings.Contains(out, `"redelivered":true`) {
			t.Errorf("after %d: %v, %d left, redelivered: %v", count, err, strings.Count(out, "\n"), strings.Contains(out, `"redelivered":true`))
		}
	}
}

func TestConsumeAckModes(t *testing.T) {
	url := startBroker(t)
	fill(t, url, "q", 30)
	look := func(args ...string) string {
		t.Helper()
		out, err := consume(t, url, append([]string{"--queue", "q"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := look("--ack-mode", "requeue"); got != numbers(1, 30) {
		t.Errorf("requeue: %q", got)
	}
	if got := look("--ack-mode", "requeue", "--count", "5"); got != numbers(1, 5) {
		t.Errorf("requeue 5: %q", got)
	}
	if got := look("--ack-mode", "reject", "--count", "5"); got != numbers(1, 5) {
		t.Errorf("reject: %q", got)
	}
	if got := look("--count", "5"); got != numbers(6, 10) {
		t.Errorf("ack: %q", got)
	}
	if got := look("--ack-mode", "auto"); got != numbers(11, 30) {
		t.Errorf("auto: %q", got)
	}
	if got := look(); got != "" {
		t.Errorf("the queue still holds %q", got)
	}
}

func TestConsumeJSON(t *testing.T) {
	url := startBroker(t)
	_, err := publish(t, url, "", "--queue", "q", "--declare", "--body", "<text>", "-H", "n:=7", "-H", "s=x",
		"--content-type", "text/plain", "--content-encoding", "none", "--priority", "3", "--correlation-id", "c", "--reply-to", "r",
		"--message-id", "m", "--timestamp", "--type", "t", "--user-id", "guest", "--app-id", "a", "--persistent=false")
	if err != nil {
		t.Fatal(err)
	}
	out, err := consume(t, url, "q", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	at, err := time.Parse(time.RFC3339, fmt.Sprint(got["timestamp"]))
	if err != nil || time.Since(at) > time.Hour || time.Since(at) < -time.Minute {
		t.Errorf("timestamp %v", got["timestamp"])
	}
	delete(got, "timestamp")
	want := map[string]any{
		"exchange": "", "routing_key": "q", "redelivered": false, "content_type": "text/plain", "content_encoding": "none",
		"delivery_mode": 1.0, "priority": 3.0, "correlation_id": "c", "reply_to": "r", "message_id": "m", "type": "t",
		"user_id": "guest", "app_id": "a", "headers": map[string]any{"n": 7.0, "s": "x"}, "body": "<text>",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || !strings.Contains(out, "<text>") {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestJSONValues(t *testing.T) {
	var b bytes.Buffer
	err := writeJSON(&b, &amqp.Delivery{
		Body: []byte{0xff, 0},
		Headers: amqp.Table{
			"bytes": []byte("raw"), "time": time.Unix(1_700_000_000, 0), "nested": amqp.Table{"list": []any{int32(1), amqp.Table{}}},
			"decimal": amqp.Decimal{Scale: 2, Value: -5}, "whole": amqp.Decimal{Value: 12}, "big": amqp.Decimal{Scale: 1, Value: 125},
		},
	})
	want := `{"exchange":"","routing_key":"","redelivered":false,"headers":{"big":12.5,"bytes":"raw","decimal":-0.05,"nested":{"list":[1,{}]},"time":"2023-11-14T22:13:20Z","whole":12},"body_base64":"/wA="}` + "\n"
	if err != nil || b.String() != want {
		t.Errorf("%v\ngot  %swant %s", err, b.String(), want)
	}
}

// output is a standard output that tells when it has a number of lines.
type output struct {
	mu    sync.Mutex
	b     bytes.Buffer
	lines int
	full  func()
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := bytes.Count(o.b.Bytes(), []byte("\n"))
	n, err := o.b.Write(p)
	if before < o.lines && bytes.Count(o.b.Bytes(), []byte("\n")) >= o.lines {
		o.full()
	}
	return n, err
}

// TestConsumeFollows waits for messages that come later, and ends cleanly when it
// is interrupted: what was printed is acked, nothing else is.
func TestConsumeFollows(t *testing.T) {
	url := startBroker(t)
	fill(t, url, "q", 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	printed := make(chan struct{})
	out := &output{lines: 10, full: func() { close(printed) }}
	cmd := newConsumeCmd()
	cmd.SetArgs([]string{"--url", url, "q", "--follow"})
	cmd.SetOut(out)
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	<-printed
	out.mu.Lock()
	more := make(chan struct{})
	out.lines, out.full = 15, func() { close(more) }
	out.mu.Unlock()
	if _, err := publish(t, url, numbers(11, 15), "--queue", "q"); err != nil {
		t.Fatal(err)
	}
	<-more
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
	if got := out.b.String(); got != numbers(1, 15) {
		t.Errorf("printed %q", got)
	}
	if left, err := consume(t, url, "q"); err != nil || left != "" {
		t.Errorf("%v, left %q", err, left)
	}
}

// TestConsumeFromAnExchange taps an exchange through a queue of its own.
func TestConsumeFromAnExchange(t *testing.T) {
	url := startBroker(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := &output{lines: 1, full: cancel}
	cmd := newConsumeCmd()
	cmd.SetArgs([]string{"--url", url, "--exchange", "amq.topic", "--routing-key", "logs.*"})
	cmd.SetOut(out)
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	// The binding is there at some time; until then publishing finds no queue.
	for {
		_, err := publish(t, url, "", "--exchange", "amq.topic", "--routing-key", "logs.app", "--body", "hello", "--quiet")
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "no queue took") {
			t.Fatal(err)
		}
	}
	if err := <-ended; err != nil || out.b.String() != "hello\n" {
		t.Errorf("%v, %q", err, out.b.String())
	}
}

// TestConsumeWriteErrorLosesNothing fails the output: what couldn't be printed
// must not be acked.
func TestConsumeWriteErrorLosesNothing(t *testing.T) {
	url := startBroker(t)
	fill(t, url, "q", 10)
	cmd := newConsumeCmd()
	cmd.SetArgs([]string{"--url", url, "q"})
	cmd.SetOut(brokenPipe{})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.ExecuteContext(t.Context()); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	if left, err := consume(t, url, "q"); err != nil || left != numbers(1, 10) {
		t.Errorf("%v, left %q", err, left)
	}
}

var errBroken = errors.New("broken pipe")

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errBroken }

func TestConsumeUsageAndErrors(t *testing.T) {
	url := startBroker(t)
	for want, args := range map[string][]string{
		"from where?":           {},
		"given twice":           {"q", "--queue", "q"},
		"not both":              {"q", "--exchange", "x"},
		"--count must":          {"q", "--count", "-1"},
		"--prefetch must":       {"q", "--prefetch", "0"},
		"--ack-mode must":       {"q", "--ack-mode", "maybe"},
		"gives messages back":   {"q", "--ack-mode", "requeue", "--follow"},
		"--declare creates":     {"missing"},
		"no exchange 'missing'": {"--exchange", "missing"},
	} {
		_, err := consume(t, url, args...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", args, err, want)
		}
		var usage usageError
		ofBroker := strings.Contains(err.Error(), "NOT_FOUND")
		if isUsage := errors.As(err, &usage); isUsage == ofBroker {
			t.Errorf("%q: counts as wrong usage: %v", args, isUsage)
		}
	}
}

// TestConsumeEndsWhenTheQueueIsDeleted deletes the queue under a follower.
func TestConsumeEndsWhenTheQueueIsDeleted(t *testing.T) {
	url := startBroker(t)
	fill(t, url, "q", 1)
	printed := make(chan struct{})
	cmd := newConsumeCmd()
	cmd.SetArgs([]string{"--url", url, "q", "--follow"})
	cmd.SetOut(&output{lines: 1, full: func() { close(printed) }})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(t.Context()) }()
	<-printed
	conn, ch, err := dialBroker(t.Context(), url, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := ch.QueueDelete("q", false, false, false); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "was deleted") {
		t.Errorf("got %v", err)
	}
}
