package bench

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// Result is what a run measured. Rates and latencies are of its measured part,
// counts under Totals of the whole.
type Result struct {
	Broker      string    `json:"broker"` // product and version, as the broker says
	Started     time.Time `json:"started"`
	Config      Config    `json:"config"`
	Interrupted bool      `json:"interrupted,omitempty"`

	PublishSeconds float64 `json:"publish_seconds"`
	PublishRate    float64 `json:"publish_rate"` // confirmed/s; without confirms written/s
	ConsumeSeconds float64 `json:"consume_seconds"`
	ConsumeRate    float64 `json:"consume_rate"` // received/s

	Confirm  Latency `json:"confirm"`    // from the intended send time to the confirm
	EndToEnd Latency `json:"end_to_end"` // from the intended send time to the arrival
	SendLag  Latency `json:"send_lag"`   // how late messages left; open loop only

	Totals Totals       `json:"totals"`
	Verify Verification `json:"verify"`

	BacklogAfter uint64 `json:"backlog_after"` // ready in the queues at the end

	// CPU time of the generator's own threads per message, in microseconds.
	PublisherCPU float64 `json:"publisher_cpu_us"`
	ConsumerCPU  float64 `json:"consumer_cpu_us"`
}

// Totals counts messages over the whole run, warm-up and drain included.
type Totals struct {
	Sent        uint64 `json:"sent"`
	Confirmed   uint64 `json:"confirmed"`
	Refused     uint64 `json:"refused"`     // basic.nack
	Returned    uint64 `json:"returned"`    // basic.return
	Unconfirmed uint64 `json:"unconfirmed"` // neither confirmed nor refused
	Missed      uint64 `json:"missed"`      // in the schedule and never sent
	Received    uint64 `json:"received"`
	Blocked     uint64 `json:"blocked"` // connection.blocked notices
}

// Latency summarizes a histogram, in microseconds.
type Latency struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean_us"`
	P50   float64 `json:"p50_us"`
	P90   float64 `json:"p90_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p99_9_us"`
	Max   float64 `json:"max_us"`
}

// latencyMax is the greatest latency that is told apart.
const latencyMax = 10 * time.Minute

// newHistogram returns a histogram of nanoseconds with three digits from one
// microsecond up.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(time.Microsecond), int64(latencyMax), 3)
}

// record books one latency; clocks of two processes may disagree below zero.
func record(h *hdrhistogram.Histogram, nanos int64) {
	_ = h.RecordValue(min(max(nanos, 0), int64(latencyMax)))
}

func summarize(h *hdrhistogram.Histogram) Latency {
	if h.TotalCount() == 0 {
		return Latency{}
	}
	us := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1e3 }
	return Latency{
		Count: h.TotalCount(), Mean: h.Mean() / 1e3,
		P50: us(50), P90: us(90), P99: us(99), P999: us(99.9), Max: float64(h.Max()) / 1e3,
	}
}

// cpuMeter measures the CPU time that its thread takes in the measured part of
// a run. Owned by the loop, which is locked to its thread.
type cpuMeter struct {
	begun, ended bool
	from, nanos  int64
}

// at is called with the time of every turn of the loop.
func (m *cpuMeter) at(now int64, r *run) {
	switch {
	case !m.begun && now >= r.measureFrom:
		m.begun, m.from = true, threadCPU()
	case m.begun && !m.ended && now >= r.measureTo:
		m.end()
	}
}

// end ends the measurement if it hasn't.
func (m *cpuMeter) end() {
	if m.begun && !m.ended {
		m.ended, m.nanos = true, threadCPU()-m.from
	}
}

// threadCPU returns the CPU time of the calling thread in nanoseconds.
func threadCPU() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// sharpenTimers lets the calling thread's timeouts end within a microsecond
// instead of the default 50: a schedule of one message per 200 us needs that.
// Where it is refused, pacing is coarser, which the send lag shows.
func sharpenTimers() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0) }

// result sums up. All loops have ended.
func (r *run) result(server map[string]string, drained bool) *Result {
	res := &Result{
		Broker:      fmt.Sprintf("%s %s", server["product"], server["version"]),
		Started:     r.base,
		Config:      *r.cfg,
		Interrupted: r.interrupted,
		Verify:      r.verify(drained),
	}
	confirm, lag, e2e := newHistogram(), newHistogram(), newHistogram()
	var published, consumed uint64
	var publishedAt, consumedAt, cpu int64
	for _, p := range r.publishers {
		confirm.Merge(p.confirmNanos)
		lag.Merge(p.lagNanos)
		published += p.inWindow
		publishedAt = max(publishedAt, p.lastAt)
		cpu += p.cpu.nanos
		res.Totals.Sent += p.tag
		res.Totals.Confirmed += p.confirmed()
		res.Totals.Refused += uint64(len(p.nacked))
		res.Totals.Returned += p.returned
		res.Totals.Missed += p.missed()
		res.Totals.Blocked += uint64(p.c.blockedCount)
		if r.cfg.confirms() {
			res.Totals.Unconfirmed += uint64(p.open)
		}
	}
	res.PublishSeconds, res.PublishRate = r.rate(published, publishedAt, r.cfg.Messages > 0)
	res.PublisherCPU = perMessage(cpu, published)
	cpu = 0
	for _, k := range r.consumers {
		e2e.Merge(k.e2eNanos)
		consumed += k.inWindow
		consumedAt = max(consumedAt, k.lastAt)
		cpu += k.cpu.nanos
		res.Totals.Received += k.received
	}
	res.ConsumeSeconds, res.ConsumeRate = r.rate(consumed, consumedAt, r.cfg.Messages > 0 || r.cfg.Publishers == 0)
	res.ConsumerCPU = perMessage(cpu, consumed)
	res.Confirm, res.EndToEnd, res.SendLag = summarize(confirm), summarize(e2e), summarize(lag)
	res.Verify.Lost -= min(res.Verify.Lost, res.Totals.Returned) // returned messages are confirmed as well
	return res
}

// rate returns over how many seconds n messages were counted, and how many that
// is in one. counted says that the run was to end by their number rather than
// by the clock; then, as after an interruption, the last of them is the end.
func (r *run) rate(n uint64, lastAt int64, counted bool) (seconds, rate float64) {
	end := r.measureTo
	if counted || r.interrupted {
		end = min(end, lastAt)
	}
	if n == 0 || end <= r.measureFrom || end == math.MaxInt64 {
		return 0, 0
	}
	seconds = float64(end-r.measureFrom) / 1e9
	return seconds, float64(n) / seconds
}

func perMessage(nanos int64, n uint64) float64 {
	if n == 0 {
		return 0
	}
	return float64(nanos) / 1e3 / float64(n)
}

// Describe says in one line what kind of load the settings are.
func (c *Config) Describe() string {
	mode := "persistent"
	if c.Transient {
		mode = "transient"
	}
	queues := fmt.Sprintf("%d queue(s)", c.Queues)
	if c.QueueType != "" {
		queues += " of type " + c.QueueType
	}
	if c.NonDurable {
		queues += ", not durable"
	}
	s := fmt.Sprintf("%d publisher(s), %d consumer(s), %s, %d B %s", c.Publishers, c.Consumers, queues, c.SizeBytes, mode)
	if c.Publishers > 0 {
		if c.confirms() {
			s += fmt.Sprintf(", confirm window %d", c.ConfirmWindow)
		} else {
			s += ", no confirms"
		}
		if c.Rate > 0 {
			s += fmt.Sprintf(", paced at %g/s", c.Rate)
		} else {
			s += ", saturated"
		}
	}
	if c.Consumers > 0 {
		if c.AutoAck {
			s += ", auto-ack"
		} else {
			s += fmt.Sprintf(", prefetch %d, ack every %d", max(c.Prefetch, 0), c.AckEvery)
		}
	}
	return s
}

// Print writes the result as a table for people.
func (r *Result) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	p := func(format string, args ...any) { fmt.Fprintf(tw, format, args...) }
	fmt.Fprintf(w, "%s: %s\n", r.Broker, r.Config.Describe())
	if r.Interrupted {
		fmt.Fprintln(w, "interrupted: figures are of the part that ran")
	}
	size := float64(r.Config.SizeBytes) / (1 << 20)
	p("\tmessages/s\tMiB/s\tseconds\ttotal\tCPU us/message\t\n")
	if r.Config.Publishers > 0 {
		p("publish\t%.0f\t%.1f\t%.1f\t%d\t%.2f\t\n", r.PublishRate, r.PublishRate*size, r.PublishSeconds, r.Totals.Sent, r.PublisherCPU)
	}
	if r.Config.Consumers > 0 {
		p("consume\t%.0f\t%.1f\t%.1f\t%d\t%.2f\t\n", r.ConsumeRate, r.ConsumeRate*size, r.ConsumeSeconds, r.Totals.Received, r.ConsumerCPU)
	}
	p("\nlatency, ms\tp50\tp90\tp99\tp99.9\tmax\t\n")
	for _, l := range []struct {
		name string
		Latency
	}{{"confirm", r.Confirm}, {"end to end", r.EndToEnd}, {"send lag", r.SendLag}} {
		if l.Count > 0 {
			p("%s\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t\n", l.name, l.P50/1e3, l.P90/1e3, l.P99/1e3, l.P999/1e3, l.Max/1e3)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	t, v := r.Totals, r.Verify
	fmt.Fprintf(w, "\nconfirmed %d, refused %d, returned %d, unconfirmed %d, missed by the schedule %d, blocked notices %d\n",
		t.Confirmed, t.Refused, t.Returned, t.Unconfirmed, t.Missed, t.Blocked)
	_, err := fmt.Fprintf(w, "lost %d, unflagged duplicates %d, out of order %d, damaged %d, misrouted %d, gaps %d, bad confirms %d; redelivered %d, of other runs %d, left in the queues %d\n",
		v.Lost, v.Duplicates, v.OutOfOrder, v.Damaged, v.Misrouted, v.Gaps, v.BadConfirms, v.Redelivered, v.Foreign, r.BacklogAfter)
	return err
}
