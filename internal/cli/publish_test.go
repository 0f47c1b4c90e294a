package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"

	"github.com/sluicemq/sluice/internal/config"
	"github.com/sluicemq/sluice/internal/server"
)

// startBroker starts a sluice of the test's own and returns its URL.
func startBroker(t *testing.T) string {
	t.Helper()
	cfg := config.Config{Data: t.TempDir()}
	cfg.AMQP.Listen = "127.0.0.1:0"
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := server.Start(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return "amqp://guest:guest@" + s.AMQPAddr().String() + "/"
}

// run runs a command with standard input in and returns what it printed.
func run(ctx context.Context, cmd *cobra.Command, in io.Reader, args ...string) (stdout, stderr string, err error) {
	var out, errOut bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetIn(in)
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err = cmd.ExecuteContext(ctx)
	return out.String(), errOut.String(), err
}

func publish(t *testing.T, url, in string, args ...string) (stderr string, err error) {
	t.Helper()
	_, stderr, err = run(t.Context(), newPublishCmd(), strings.NewReader(in), append([]string{"--url", url}, args...)...)
	return stderr, err
}

func consume(t *testing.T, url string, args ...string) (stdout string, err error) {
	t.Helper()
	stdout, _, err = run(t.Context(), newConsumeCmd(), nil, append([]string{"--url", url}, args...)...)
	return stdout, err
}

func TestPublishLines(t *testing.T) {
	url := startBroker(t)
	stderr, err := publish(t, url, "one\n\ntwo\r\nlast without newline", "--queue", "q", "--declare")
	if err != nil || !strings.Contains(stderr, "published 4 messages, 4 confirmed") {
		t.Fatalf("%v, %q", err, stderr)
	}
	out, err := consume(t, url, "q")
	if want := "one\n\ntwo\r\nlast without newline\n"; err != nil || out != want {
		t.Errorf("%v, got %q, want %q", err, out, want)
	}

	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	writeFile(t, a, strings.Repeat("line of a\n", 2000)) // more than the confirm window
	writeFile(t, b, "line of b\n")
	if _, err := publish(t, url, "", "--queue", "q", "--confirm-window", "10", a, b); err != nil {
		t.Fatal(err)
	}
	out, err = consume(t, url, "q")
	if want := strings.Repeat("line of a\n", 2000) + "line of b\n"; err != nil || out != want {
		t.Errorf("%v, %d bytes, want %d", err, len(out), len(want))
	}
	if _, err := publish(t, url, "", "--queue", "q", filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := publish(t, url, "", "--queue", "q", dir); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("a directory: %v", err)
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPublishWholeFilesAndTexts(t *testing.T) {
	url := startBroker(t)
	blob := filepath.Join(t.TempDir(), "blob")
	writeFile(t, blob, "with\nlines\x00and zeros")
	if stderr, err := publish(t, url, "not read", "--queue", "q", "--declare", "--body", "text", "--file", blob, "--repeat", "2", "--confirm=false", "--quiet"); err != nil || stderr != "" {
		t.Fatalf("%v, %q", err, stderr)
	}
	out, err := consume(t, url, "q", "--raw")
	if want := strings.Repeat("textwith\nlines\x00and zeros", 2); err != nil || out != want {
		t.Errorf("%v, got %q, want %q", err, out, want)
	}
	if _, err := publish(t, url, "", "--queue", "q", "--file", blob+"-not"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// TestPublishReportsWhatNobodyTook covers every way in which messages don't
// arrive.
func TestPublishReportsWhatNobodyTook(t *testing.T) {
	url := startBroker(t)
	stderr, err := publish(t, url, strings.Repeat("x\n", 20), "--queue", "nowhere")
	if err == nil || !strings.Contains(err.Error(), "no queue took 20 of 20") {
		t.Errorf("got %v", err)
	}
	if n := strings.Count(stderr, "returned: 312 NO_ROUTE"); n != returnsShown || !strings.Contains(stderr, "20 returned") {
		t.Errorf("%d returns shown, want %d: %q", n, returnsShown, stderr)
	}
	if _, err := publish(t, url, "x\n", "--queue", "nowhere", "--mandatory=false"); err != nil {
		t.Errorf("not mandatory: %v", err)
	}
	_, err = publish(t, url, strings.Repeat("x\n", 20), "--exchange", "nowhere", "--routing-key", "k")
	if err == nil || strings.Count(err.Error(), "no exchange 'nowhere'") != 1 {
		t.Errorf("a missing exchange: %v", err)
	}
	_, err = publish(t, url, "x\n", "--exchange", "nowhere", "--routing-key", "k", "--confirm=false")
	if err == nil || !strings.Contains(err.Error(), "no exchange 'nowhere'") {
		t.Errorf("a missing exchange without confirms: %v", err)
	}
}

func TestPublishErrorsHelp(t *testing.T) {
	url := startBroker(t)
	bad := strings.Replace(url, "guest:guest", "guest:secret", 1)
	_, err := publish(t, bad, "", "--queue", "q")
	if err == nil || !strings.Contains(err.Error(), "refused the login") || strings.Contains(err.Error(), "secret") {
		t.Errorf("a wrong password: %v", err)
	}
	_, err = publish(t, url+"elsewhere", "", "--queue", "q")
	if err == nil || !strings.Contains(err.Error(), "virtual host") {
		t.Errorf("a wrong virtual host: %v", err)
	}
	_, err = publish(t, "amqp://127.0.0.1:1/", "", "--queue", "q")
	if err == nil || !strings.Contains(err.Error(), "sluice serve") {
		t.Errorf("no broker: %v", err)
	}
	if _, err = publish(t, "http://x/", "", "--queue", "q"); err == nil {
		t.Error("an URL of HTTP is accepted")
	}
	if _, err := publish(t, url, "", "--queue", "q", "--declare"); err != nil {
		t.Fatal(err)
	}
	_, err = publish(t, url, "", "--queue", "q", "--declare", "--queue-type", "quorum")
	if err == nil || !strings.Contains(err.Error(), "other settings") {
		t.Errorf("other settings: %v", err)
	}
}

func TestPublishUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"where to?":              {},
		"leave those out":        {"--queue", "q", "--routing-key", "k"},
		"--declare needs":        {"--exchange", "x", "--declare"},
		"--queue-type needs":     {"--queue", "q", "--queue-type", "quorum"},
		"can't be mixed":         {"--queue", "q", "--body", "x", "file"},
		"--repeat must be":       {"--queue", "q", "--body", "x", "--repeat", "0"},
		"--repeat is for":        {"--queue", "q", "--repeat", "2"},
		"--confirm-window must":  {"--queue", "q", "--confirm-window", "0"},
		"is not NAME=TEXT":       {"--queue", "q", "-H", "x"},
		"more than one JSON":     {"--queue", "q", "-H", "x:=1 2"},
		"invalid character":      {"--queue", "q", "-H", "x:=nope"},
		"is longer than 255":     {"--queue", "q", "-H", strings.Repeat("x", 256) + "=1"},
		"invalid argument \"b\"": {"--queue", "q", "--confirm=b"},
	} {
		_, err := publish(t, "amqp://127.0.0.1:1/", "", args...)
		var usage usageError
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", args, err, want)
		} else if !errors.As(err, &usage) && !strings.HasPrefix(want, "invalid argument") { // that one is cobra's
			t.Errorf("%q: %v doesn't count as wrong usage", args, err)
		}
	}
}

// TestPublishEndsWhenInterrupted interrupts a publisher whose input doesn't end.
func TestPublishEndsWhenInterrupted(t *testing.T) {
	url := startBroker(t)
	ctx, cancel := context.WithCancel(t.Context())
	in, feed := io.Pipe()
	go func() {
		for range 10 {
			_, _ = io.WriteString(feed, "x\n")
		}
		cancel()
	}()
	_, stderr, err := run(ctx, newPublishCmd(), in, "--url", url, "--queue", "q", "--declare")
	if !errors.Is(err, errInterrupted) || !strings.Contains(stderr, "published") {
		t.Errorf("%v, %q", err, stderr)
	}
	_ = in.Close()
}

func TestParseHeader(t *testing.T) {
	for in, want := range map[string]any{
		"a=b":                 "b",
		"a=b=c":               "b=c",
		"a=":                  "",
		"a:=5":                int64(5),
		"a:=1.5":              1.5,
		"a:=true":             true,
		"a:=null":             nil,
		`a:="x"`:              "x",
		`a:=[1,{"b":[2.5]}]`:  []any{int64(1), amqp.Table{"b": []any{2.5}}},
		"a:=1e400":            errors.New("out of range"),
		"=x":                  errors.New("is not NAME"),
		"a:=":                 errors.New("EOF"),
		"a:=99999999999999.5": 99999999999999.5,
	} {
		name, got, err := parseHeader(in)
		if wantErr, ok := want.(error); ok {
			if err == nil || !strings.Contains(err.Error(), wantErr.Error()) {
				t.Errorf("%s: got %v, %v, want the error %v", in, got, err, wantErr)
			}
			continue
		}
		if err != nil || name != "a" || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %s %#v, %v, want %#v", in, name, got, err, want)
		}
	}
}
