package bench

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// runAgainst runs cfg against b and fails the test on an error.
func runAgainst(t *testing.T, b *fakeBroker, cfg Config) *Result {
	t.Helper()
	cfg.URL = b.url()
	res, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestRunCountsAndVerifies(t *testing.T) {
	for name, cfg := range map[string]Config{
		"one of each":        {Publishers: 1, Consumers: 1, Messages: 5000},
		"many to many":       {Publishers: 3, Consumers: 4, Queues: 5, Messages: 10001, SizeBytes: 64},
		"more than queues":   {Publishers: 4, Consumers: 3, Queues: 2, Messages: 4000, SizeBytes: 24},
		"no confirms":        {Publishers: 2, Consumers: 1, ConfirmWindow: -1, Messages: 5000},
		"auto-ack":           {Publishers: 1, Consumers: 2, AutoAck: true, Messages: 5000},
		"window of one":      {Publishers: 1, Consumers: 1, ConfirmWindow: 1, Messages: 300},
		"single acks":        {Publishers: 1, Consumers: 1, Prefetch: 1, AckEvery: 1, Messages: 300},
		"unlimited prefetch": {Publishers: 1, Consumers: 1, Prefetch: -1, Messages: 5000},
		"paced":              {Publishers: 2, Consumers: 1, Rate: 5000, Messages: 1500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFakeBroker(t)
			res := runAgainst(t, b, cfg)
			if n := res.Verify.Violations(); n != 0 {
				t.Errorf("violations: %+v", res.Verify)
			}
			if res.Totals.Sent != cfg.Messages || res.Totals.Received != cfg.Messages {
				t.Errorf("sent %d, received %d, want both %d", res.Totals.Sent, res.Totals.Received, cfg.Messages)
			}
			if cfg.ConfirmWindow >= 0 && (res.Totals.Confirmed != cfg.Messages || res.Confirm.Count != int64(cfg.Messages)) {
				t.Errorf("confirmed %d, latencies %d, want %d", res.Totals.Confirmed, res.Confirm.Count, cfg.Messages)
			}
			if res.EndToEnd.Count != int64(cfg.Messages) || res.EndToEnd.P50 <= 0 || res.EndToEnd.Max < res.EndToEnd.P99 {
				t.Errorf("end to end %+v", res.EndToEnd)
			}
			if res.PublishRate <= 0 || res.ConsumeRate <= 0 || res.PublisherCPU <= 0 || res.ConsumerCPU <= 0 {
				t.Errorf("a rate or CPU time is missing: %+v", res)
			}
			if res.Broker != "fake 1.2.3" || res.BacklogAfter != 0 || b.queueCount() != 0 {
				t.Errorf("broker %q, backlog %d, queues left %d", res.Broker, res.BacklogAfter, b.queueCount())
			}
		})
	}
}

// TestBodiesOverManyFrames sends bodies of many frames with the smallest frame
// size that AMQP allows.
func TestBodiesOverManyFrames(t *testing.T) {
	b := newFakeBroker(t)
	b.frameMax = 4096
	res := runAgainst(t, b, Config{Publishers: 1, Consumers: 1, SizeBytes: 300_000, Messages: 40})
	if res.Totals.Received != 40 || res.Verify.Violations() != 0 {
		t.Errorf("received %d, %+v", res.Totals.Received, res.Verify)
	}
}

func TestConfirmsOutOfOrder(t *testing.T) {
	b := newFakeBroker(t)
	b.singles = true
	res := runAgainst(t, b, Config{Publishers: 2, Messages: 4000, ConfirmWindow: 50})
	if res.Totals.Confirmed != 4000 || res.Verify.Violations() != 0 {
		t.Errorf("confirmed %d, %+v", res.Totals.Confirmed, res.Verify)
	}
}

// TestPlantedViolations makes the broker break each promise once, and expects
// exactly that to be reported.
func TestPlantedViolations(t *testing.T) {
	for name, tt := range plantedViolations() {
		t.Run(name, func(t *testing.T) {
			b := newFakeBroker(t)
			b.deliver = tt.deliver
			res := runAgainst(t, b, Config{
				Publishers: 1, Consumers: 1, Queues: 2, QueueName: "q", Messages: 2000, Prefetch: -1, DrainTimeout: 300 * time.Millisecond,
			})
			if res.Verify != tt.want {
				t.Errorf("got %+v, want %+v", res.Verify, tt.want)
			}
		})
	}
}

// planted is a fault in what a broker delivers, and what it counts as.
type planted struct {
	deliver func(n int, m fakeMessage) []fakeMessage
	want    Verification
}

func plantedViolations() map[string]planted {
	const at = 700
	var held fakeMessage
	same := func(m fakeMessage) []fakeMessage { return []fakeMessage{m} }
	return map[string]planted{
		"lost": {func(n int, m fakeMessage) []fakeMessage {
			if n == at {
				return nil
			}
			return same(m)
		}, Verification{Lost: 1}},
		"duplicate without the flag": {func(n int, m fakeMessage) []fakeMessage {
			if n == at {
				return []fakeMessage{m, m}
			}
			return same(m)
		}, Verification{Duplicates: 1}},
		"duplicate with the flag": {func(n int, m fakeMessage) []fakeMessage {
			if n == at {
				again := m
				again.redelivered = true
				return []fakeMessage{m, again}
			}
			return same(m)
		}, Verification{Redelivered: 1, Again: 1}},
		"fresh with the flag": {func(n int, m fakeMessage) []fakeMessage {
			m.redelivered = n == at
			return same(m)
		}, Verification{Redelivered: 1}},
		"out of order": {func(n int, m fakeMessage) []fakeMessage {
			switch n {
			case at:
				held = m
				return nil
			case at + 2: // the next one of the same queue
				return []fakeMessage{m, held}
			}
			return same(m)
		}, Verification{OutOfOrder: 1}},
		"damaged": {func(n int, m fakeMessage) []fakeMessage {
			if n == at {
				m.body = slices.Clone(m.body)
				m.body[len(m.body)-1] ^= 1
			}
			return same(m)
		}, Verification{Damaged: 1, Lost: 1}},
		"cut short": {func(n int, m fakeMessage) []fakeMessage {
			if n == at {
				m.body = m.body[:100]
			}
			return same(m)
		}, Verification{Damaged: 1}},
		"misrouted": {func(n int, m fakeMessage) []fakeMessage {
			if n == at {
				m.queue = "q-0"
				if n%2 == 0 { // queues are served in turn
					m.queue = "q-1"
				}
			}
			return same(m)
		}, Verification{Misrouted: 1}},
	}
}

// TestDuplicateAtAnotherConsumer spreads a duplicate over two consumers, where
// only the merge can see it.
func TestDuplicateAtAnotherConsumer(t *testing.T) {
	b := newFakeBroker(t)
	b.deliver = func(n int, m fakeMessage) []fakeMessage {
		if n == 500 {
			return []fakeMessage{m, m} // consumers take turns
		}
		return []fakeMessage{m}
	}
	res := runAgainst(t, b, Config{Publishers: 1, Consumers: 2, Prefetch: -1, Messages: 1000, DrainTimeout: time.Second})
	if res.Verify.Duplicates != 1 || res.Verify.Lost != 0 {
		t.Errorf("%+v", res.Verify)
	}
}

func TestRefusedMessagesAreNotLost(t *testing.T) {
	b := newFakeBroker(t)
	b.confirm = func(n uint64) method {
		if n%10 == 0 {
			return basicNack
		}
		return basicAck
	}
	b.deliver = func(n int, m fakeMessage) []fakeMessage {
		if (n+1)%10 == 0 {
			return nil
		}
		return []fakeMessage{m}
	}
	res := runAgainst(t, b, Config{Publishers: 1, Consumers: 1, Messages: 1000})
	if res.Totals.Refused != 100 || res.Totals.Confirmed != 900 || res.Totals.Received != 900 || res.Verify.Violations() != 0 {
		t.Errorf("%+v %+v", res.Totals, res.Verify)
	}
}

func TestMissingConfirmsAreAnError(t *testing.T) {
	b := newFakeBroker(t)
	b.confirm = func(n uint64) method {
		if n > 90 {
			return 0
		}
		return basicAck
	}
	_, err := Run(t.Context(), Config{URL: b.url(), Publishers: 1, Messages: 100, DrainTimeout: 100 * time.Millisecond})
	if !errors.Is(err, errUnconfirmed) || !strings.Contains(err.Error(), "10 of 100") {
		t.Errorf("got %v", err)
	}
}

// TestOpenLoopSeesAStallInFull stalls the broker for a fifth of a second. An
// open loop must show it in every message that was scheduled meanwhile, not in
// the few that happened to be in flight.
func TestOpenLoopSeesAStallInFull(t *testing.T) {
	const stall, rate = 200 * time.Millisecond, 2000
	b := newFakeBroker(t)
	b.onPublish = func(n int) {
		if n == 500 {
			time.Sleep(stall) // the fault itself: a broker that stops
		}
	}
	res := runAgainst(t, b, Config{Publishers: 1, Consumers: 1, ConfirmWindow: 20, Rate: rate, Messages: 2000})
	// 400 of 2000 messages were due during the stall: a fifth of all waited,
	// half of these for more than half of it.
	if res.EndToEnd.P90 < 90_000 || res.Confirm.P90 < 90_000 {
		t.Errorf("the stall is hidden: end to end %+v, confirm %+v", res.EndToEnd, res.Confirm)
	}
	if res.SendLag.Max < 100_000 {
		t.Errorf("with a window of 20, messages must have left late: %+v", res.SendLag)
	}
}

// TestDurationEndsTheRun uses a clock-bound run with warm-up: rates are of the
// measured part only.
func TestDurationEndsTheRun(t *testing.T) {
	b := newFakeBroker(t)
	res := runAgainst(t, b, Config{Publishers: 1, Consumers: 1, Rate: 2000, Duration: 400 * time.Millisecond, Warmup: 200 * time.Millisecond})
	if res.PublishSeconds != 0.4 || res.ConsumeSeconds != 0.4 {
		t.Errorf("measured %g and %g s, want 0.4", res.PublishSeconds, res.ConsumeSeconds)
	}
	if res.Confirm.Count != 800 || res.Totals.Sent != 1200 || res.Totals.Missed != 0 {
		t.Errorf("%d latencies, %d sent, %d missed; want 800, 1200 and none", res.Confirm.Count, res.Totals.Sent, res.Totals.Missed)
	}
}

// TestScheduleBeyondReach asks for more than a window of one can carry: what
// can't leave is reported, and doesn't keep the run from ending.
func TestScheduleBeyondReach(t *testing.T) {
	b := newFakeBroker(t)
	res := runAgainst(t, b, Config{Publishers: 1, ConfirmWindow: 1, Rate: 1e6, Duration: 200 * time.Millisecond, Warmup: -1})
	if res.Totals.Sent+res.Totals.Missed != 200_000 || res.Totals.Missed == 0 {
		t.Errorf("%d sent, %d missed; want 200000 in all", res.Totals.Sent, res.Totals.Missed)
	}
	if res.Confirm.P50 < 50_000 {
		t.Errorf("messages that wait for their turn must show it: %+v", res.Confirm)
	}
}

func TestConsumeOnlyEmptiesTheQueues(t *testing.T) {
	b := newFakeBroker(t)
	first := runAgainst(t, b, Config{Publishers: 2, Queues: 2, Messages: 3000, Keep: true})
	if first.BacklogAfter != 3000 {
		t.Fatalf("backlog %d, want 3000", first.BacklogAfter)
	}
	res := runAgainst(t, b, Config{Consumers: 2, Queues: 2})
	if res.Totals.Received != 3000 || res.Verify.Foreign != 3000 || res.Verify.Violations() != 0 || res.BacklogAfter != 0 {
		t.Errorf("%+v %+v backlog %d", res.Totals, res.Verify, res.BacklogAfter)
	}
	if res.ConsumeRate == 0 || b.queueCount() != 2 {
		t.Errorf("rate %g, %d queues left", res.ConsumeRate, b.queueCount())
	}
}

func TestConsumeOnlyFindsGaps(t *testing.T) {
	b := newFakeBroker(t)
	b.deliver = func(n int, m fakeMessage) []fakeMessage {
		if n == 10 || n == 11 {
			return nil
		}
		return []fakeMessage{m}
	}
	runAgainst(t, b, Config{Publishers: 1, Messages: 100, Keep: true})
	res := runAgainst(t, b, Config{Consumers: 1})
	if res.Verify.Gaps != 2 {
		t.Errorf("%+v, want 2 gaps", res.Verify)
	}
}

func TestBrokerErrorsAreReported(t *testing.T) {
	b := newFakeBroker(t)
	b.refuse = basicConsume
	_, err := Run(t.Context(), Config{URL: b.url(), Publishers: 1, Consumers: 1, Messages: 10_000_000})
	var be *BrokerError
	if !errors.As(err, &be) || be.Code != 406 || !strings.Contains(be.Text, "as the test wants it") {
		t.Errorf("got %v", err)
	}
	b = newFakeBroker(t)
	b.hangUpAtLogin = true
	if _, err = Run(t.Context(), Config{URL: b.url(), Publishers: 1}); err == nil || !strings.Contains(err.Error(), "wrong user or password") {
		t.Errorf("got %v", err)
	}
	b.ln.Close()
	if _, err = Run(t.Context(), Config{URL: b.url(), Publishers: 1}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
}

func TestInterruptedRunReportsWhatRan(t *testing.T) {
	b := newFakeBroker(t)
	ctx, cancel := context.WithCancel(t.Context())
	b.onPublish = func(n int) {
		if n == 2000 {
			cancel()
		}
	}
	res, err := Run(ctx, Config{URL: b.url(), Publishers: 1, Consumers: 1, Duration: time.Hour, Warmup: -1})
	if err != nil {
		t.Fatal(err)
	}
	if !res.Interrupted || res.Totals.Sent < 2000 || res.Verify.Lost != 0 || res.PublishSeconds > 60 {
		t.Errorf("%+v", res)
	}
}

// TestResultFormats checks that both forms of a result hold its figures, and
// neither the password.
func TestResultFormats(t *testing.T) {
	b := newFakeBroker(t)
	var progress strings.Builder
	res := runAgainst(t, b, Config{
		Publishers: 1, Consumers: 1, Rate: 1000, Duration: 300 * time.Millisecond, Warmup: 100 * time.Millisecond,
		Progress: &progress, Interval: 50 * time.Millisecond,
	})
	var table strings.Builder
	if err := res.Print(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"fake 1.2.3", "paced at 1000/s", "publish", "end to end", "send lag", "lost 0"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in:\n%s", want, table.String())
		}
	}
	if n := strings.Count(progress.String(), "\n"); n < 3 || !strings.Contains(progress.String(), "(warm-up)") {
		t.Errorf("progress:\n%s", progress.String())
	}
	js, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	var back Result
	if err := json.Unmarshal(js, &back); err != nil {
		t.Fatal(err)
	}
	if back.Confirm != res.Confirm || back.Config.Rate != 1000 || strings.Contains(string(js), "guest") {
		t.Errorf("JSON: %s", js)
	}
}

func TestConfigIsValidated(t *testing.T) {
	for want, cfg := range map[string]Config{
		"nothing to do":         {},
		"publishers must":       {Publishers: -1},
		"consumers must":        {Publishers: 1, Consumers: 5000},
		"queues must":           {Publishers: 1, Queues: -1},
		"size must":             {Publishers: 1, SizeBytes: 23},
		"the confirm window":    {Publishers: 1, ConfirmWindow: 2 << 20},
		"prefetch must":         {Consumers: 1, Prefetch: 70000},
		"ack-every 6 is above":  {Consumers: 1, Prefetch: 5, AckEvery: 6},
		"rate must":             {Publishers: 1, Rate: -1},
		"duration must":         {Publishers: 1, Duration: -1},
		"needs a duration":      {Consumers: 1, NoDrain: true, Duration: 0, Messages: 0},
		"queue name is longer":  {Publishers: 1, QueueName: strings.Repeat("q", 250)},
		"drain-timeout must":    {Publishers: 1, DrainTimeout: -1},
		"ack-every must be at ": {Consumers: 1, AckEvery: -1},
	} {
		if want != "needs a duration" { // defaults give it one
			cfg.EnsureDefaults()
		} else {
			cfg.Queues, cfg.SizeBytes, cfg.AckEvery = 1, 100, 1
		}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want an error with %q", cfg, err, want)
		}
	}
}
