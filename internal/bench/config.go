package bench

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// Limits and defaults of Config.
const (
	DefaultURL           = "amqp://guest:guest@127.0.0.1:5672/"
	DefaultQueueName     = "sluice-bench"
	DefaultSizeBytes     = 1024
	DefaultConfirmWindow = 500
	DefaultPrefetch      = 500
	DefaultDuration      = 10 * time.Second
	DefaultWarmup        = 2 * time.Second
	DefaultDrainTimeout  = 15 * time.Second

	// MinSizeBytes is the size of the stamp that every body begins with.
	MinSizeBytes = stampSize
	// MaxSizeBytes is the largest message that a broker takes; its frames are in one write
	// buffer of the generator.
	MaxSizeBytes = 512 << 20

	maxClients = 4096 // of each kind: every one is a thread and a connection
	maxQueues  = 1 << 16
)

// Config says what Run does. The zero value of a field means its default;
// EnsureDefaults fills those in, Validate then refuses what makes no sense.
type Config struct {
	URL string `json:"-"` // amqp://user:password@host:port/vhost; not in reports, it holds a password

	Publishers int    `json:"publishers"` // connections that publish
	Consumers  int    `json:"consumers"`  // connections that consume
	Queues     int    `json:"queues"`     // publisher i serves queues i, i+Publishers, …; consumers likewise
	QueueName  string `json:"queue_name"` // the queue's name, or the prefix of "NAME-0", … when there are several
	QueueType  string `json:"queue_type"` // x-queue-type; empty leaves it to the broker

	SizeBytes     int  `json:"size_bytes"`     // of each body
	Transient     bool `json:"transient"`      // delivery mode 1 instead of 2
	NonDurable    bool `json:"non_durable"`    // declare the queues durable=false
	ConfirmWindow int  `json:"confirm_window"` // unconfirmed messages per publisher; below 0: no confirms
	Mandatory     bool `json:"mandatory"`      // publish with mandatory=true

	Prefetch int  `json:"prefetch"`  // basic.qos per channel; below 0: unlimited
	AckEvery int  `json:"ack_every"` // one basic.ack for this many deliveries; default a fifth of Prefetch, at most 100
	AutoAck  bool `json:"auto_ack"`  // consume with no-ack=true

	Rate     float64       `json:"rate"`        // messages/s over all publishers (open loop); 0: as fast as the window allows
	Duration time.Duration `json:"duration_ns"` // measured time after Warmup; unlimited by default when Messages is given or queues are emptied
	Warmup   time.Duration `json:"warmup_ns"`   // below 0: none; none by default when Messages is given
	Messages uint64        `json:"messages"`    // stop after publishing (or, with no publisher, consuming) this many

	// Consumers go on after publishing until they have everything that was
	// confirmed; without publishers, until the queues are empty.
	NoDrain      bool          `json:"no_drain"`
	DrainTimeout time.Duration `json:"drain_timeout_ns"` // how long to wait while nothing arrives
	Keep         bool          `json:"keep"`             // leave queues and their messages: no purge before, no delete after

	// Progress gets a line per Interval while the run lasts; nil: none.
	Progress io.Writer     `json:"-"`
	Interval time.Duration `json:"-"` // default 1 s
}

// EnsureDefaults replaces zero values by defaults.
func (c *Config) EnsureDefaults() {
	def(&c.URL, DefaultURL)
	def(&c.QueueName, DefaultQueueName)
	def(&c.Queues, 1)
	def(&c.SizeBytes, DefaultSizeBytes)
	def(&c.ConfirmWindow, DefaultConfirmWindow)
	def(&c.Prefetch, DefaultPrefetch)
	def(&c.DrainTimeout, DefaultDrainTimeout)
	def(&c.Interval, time.Second)
	if c.AckEvery == 0 {
		c.AckEvery = 100
		if c.Prefetch > 0 {
			c.AckEvery = max(1, min(100, c.Prefetch/5))
		}
	}
	if c.Messages == 0 && !c.untilEmpty() {
		def(&c.Duration, DefaultDuration)
		def(&c.Warmup, DefaultWarmup)
	}
}

// def sets *v to d when it is zero.
func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Validate reports the first setting that can't be run. EnsureDefaults comes
// before it.
func (c *Config) Validate() error {
	switch {
	case c.Publishers < 0 || c.Publishers > maxClients:
		return fmt.Errorf("publishers must be 0 to %d, not %d", maxClients, c.Publishers)
	case c.Consumers < 0 || c.Consumers > maxClients:
		return fmt.Errorf("consumers must be 0 to %d, not %d", maxClients, c.Consumers)
	case c.Publishers == 0 && c.Consumers == 0:
		return errors.New("nothing to do: no publishers and no consumers")
	case c.Queues < 1 || c.Queues > maxQueues:
		return fmt.Errorf("queues must be 1 to %d, not %d", maxQueues, c.Queues)
	case len(c.QueueName) > 240:
		return errors.New("the queue name is longer than 240 bytes")
	case c.SizeBytes < MinSizeBytes || c.SizeBytes > MaxSizeBytes:
		return fmt.Errorf("size must be %d to %d bytes (each body begins with a stamp), not %d", MinSizeBytes, MaxSizeBytes, c.SizeBytes)
	case c.ConfirmWindow > 1<<20:
		return fmt.Errorf("the confirm window must be at most %d, not %d", 1<<20, c.ConfirmWindow)
	case c.Prefetch > 65535:
		return fmt.Errorf("prefetch must be at most 65535, not %d", c.Prefetch)
	case c.AckEvery < 1:
		return fmt.Errorf("ack-every must be at least 1, not %d", c.AckEvery)
	case !c.AutoAck && c.Prefetch > 0 && c.AckEvery > c.Prefetch:
		return fmt.Errorf("ack-every %d is above prefetch %d: consumers would stop for good", c.AckEvery, c.Prefetch)
	case c.Rate < 0 || c.Rate > 1e9:
		return fmt.Errorf("rate must be 0 to 1e9 messages/s, not %g", c.Rate)
	case c.Duration < 0:
		return fmt.Errorf("duration must not be negative, not %v", c.Duration)
	case c.DrainTimeout < 0:
		return fmt.Errorf("drain-timeout must not be negative, not %v", c.DrainTimeout)
	case c.Duration == 0 && c.Messages == 0 && !c.untilEmpty():
		return errors.New("a run needs a duration or a number of messages")
	}
	return nil
}

// untilEmpty reports whether the run is to empty the queues, which ends it.
func (c *Config) untilEmpty() bool { return c.Publishers == 0 && !c.NoDrain }

// confirms reports whether publishers ask for confirms.
func (c *Config) confirms() bool { return c.ConfirmWindow > 0 }

// queueNames returns the name of every queue by its index.
func (c *Config) queueNames() []string {
	if c.Queues == 1 {
		return []string{c.QueueName}
	}
	names := make([]string, c.Queues)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", c.QueueName, i)
	}
	return names
}

// share returns the indices among total that belong to the i-th of n clients:
// i, i+n, i+2n, …; a client whose index is past the last one wraps around.
func share(i, n, total int) []int {
	if i >= total {
		return []int{i % total}
	}
	var s []int
	for ; i < total; i += n {
		s = append(s, i)
	}
	return s
}
