package server

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/config"
	"github.com/sluicemq/sluice/internal/engine"
)

func start(t *testing.T, dir string) *Server {
	t.Helper()
	cfg := config.Config{Data: dir, AMQP: config.AMQP{Listen: "127.0.0.1:0"}}
	cfg.EnsureDefaults()
	s, err := Start(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dial(t *testing.T, s *Server) (*amqp091.Connection, *amqp091.Channel) {
	t.Helper()
	c, err := amqp091.Dial(fmt.Sprintf("amqp://guest:guest@%s/", s.AMQPAddr()))
	if err != nil {
		t.Fatal(err)
	}
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return c, ch
}

func publish(t *testing.T, ch *amqp091.Channel, exchange, key string, bodies ...string) {
	t.Helper()
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	for _, b := range bodies {
		d, err := ch.PublishWithDeferredConfirm(exchange, key, true, false, amqp091.Publishing{Body: []byte(b), DeliveryMode: 2})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		ok, err := d.WaitContext(ctx)
		cancel()
		if err != nil || !ok {
			t.Fatalf("confirm of %q: %v %v", b, ok, err)
		}
	}
}

func next(t *testing.T, in <-chan amqp091.Delivery) amqp091.Delivery {
	t.Helper()
	select {
	case d, ok := <-in:
		if !ok {
			t.Fatal("consumer ended")
		}
		return d
	case <-time.After(10 * time.Second):
		t.Fatal("nothing delivered")
	}
	return amqp091.Delivery{}
}

// TestCleanRestart: definitions and messages survive; what was delivered and not
// acknowledged comes back flagged, what was never delivered comes unflagged.
func TestCleanRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	s := start(t, dir)
	c, ch := dial(t, s)
	if err := ch.ExchangeDeclare("logs", "topic", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDeclare("q", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind("q", "a.#", "logs", false, nil); err != nil {
		t.Fatal(err)
	}
	publish(t, ch, "logs", "a.b", "one", "two", "three")
	if err := ch.Qos(2, 0, false); err != nil {
		t.Fatal(err)
	}
	in, err := ch.Consume("q", "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := next(t, in).Ack(false); err != nil {
		t.Fatal(err)
	}
	next(t, in) // "two" stays unacknowledged
	next(t, in) // "three" as well
	publish(t, ch, "logs", "a", "four")
	_ = c.Close()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}

	s = start(t, dir)
	defer func() { _ = s.Stop() }()
	c, ch = dial(t, s)
	defer c.Close()
	publish(t, ch, "logs", "a.c.d", "five")
	in, err = ch.Consume("q", "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"two true", "three true", "four false", "five false"} {
		d := next(t, in)
		if got := fmt.Sprint(string(d.Body), " ", d.Redelivered); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		_ = d.Ack(false)
	}
}

// TestVolatileQueuesDoNotSurvive: a non-durable queue works like another and is gone
// after a restart.
func TestVolatileQueuesDoNotSurvive(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	c, ch := dial(t, s)
	q, err := ch.QueueDeclare("", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, ch, "", q.Name, "x")
	if d, ok, err := ch.Get(q.Name, true); err != nil || !ok || string(d.Body) != "x" {
		t.Fatalf("%q %v %v", d.Body, ok, err)
	}
	_ = c.Close()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir)
	defer func() { _ = s.Stop() }()
	c, ch = dial(t, s)
	defer c.Close()
	if _, err := ch.QueueDeclarePassive(q.Name, false, false, false, false, nil); err == nil {
		t.Fatal("a non-durable queue survived")
	}
}

// TestControlSocketListsQueues asks as the command line does.
// ask gets a path of the control socket and decodes the JSON that it answers.
func ask(t *testing.T, dir, path string, into any) {
	t.Helper()
	socket, done, err := SocketPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		t.Fatal(err)
	}
}

func TestControlSocketGivesFigures(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	defer func() { _ = s.Stop() }()
	c, ch := dial(t, s)
	defer c.Close()
	if _, err := ch.QueueDeclare("q", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	publish(t, ch, "", "q", "x", "y")
	var f engine.Figures
	ask(t, dir, "/figures", &f)
	logs, turns := 0, uint64(0)
	for _, s := range f.Shards {
		logs += s.Logs
		turns += s.Turns.Count()
	}
	if logs != 1 || turns < 3 || f.WAL.Syncs < 3 || f.WAL.SyncTime.Max() <= 0 {
		t.Errorf("%+v", f)
	}
}

func TestControlSocketListsQueues(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	defer func() { _ = s.Stop() }()
	c, ch := dial(t, s)
	defer c.Close()
	if _, err := ch.QueueDeclare("q", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	publish(t, ch, "", "q", "x", "y")
	var list []broker.QueueFigure
	ask(t, dir, "/queues", &list)
	if len(list) != 1 || list[0].Name != "q" || list[0].Ready != 2 {
		t.Fatalf("%+v", list)
	}
}

// TestListeningBeyondLoopback needs an account of one's own.
func TestListeningBeyondLoopback(t *testing.T) {
	cfg := config.Config{Data: t.TempDir()}
	cfg.EnsureDefaults()
	cfg.AMQP.Listen = "0.0.0.0:0"
	if s, err := Start(cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "SLUICE_DEFAULT_USER") {
		if s != nil {
			_ = s.Stop()
		}
		t.Fatalf("listens for guest: %v", err)
	}
	cfg.Data, cfg.DefaultUser, cfg.DefaultPassword = t.TempDir(), "admin", "secret"
	s, err := Start(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Stop() }()
	port := s.AMQPAddr().(*net.TCPAddr).Port
	c, err := amqp091.Dial(fmt.Sprintf("amqp://admin:secret@127.0.0.1:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if c, err := amqp091.Dial(fmt.Sprintf("amqp://guest:guest@127.0.0.1:%d/", port)); err == nil {
		_ = c.Close()
		t.Error("guest exists besides the account that was asked for")
	}
}
