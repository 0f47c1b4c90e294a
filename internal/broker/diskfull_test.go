package broker

import (
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

// told is a client that notes what it is told about blocking.
type told struct {
	*client
	blocked chan bool
}

func (c *told) Blocked(string) { c.blocked <- true }
func (c *told) Unblocked()     { c.blocked <- false }

func await[T comparable](t *testing.T, what string, ch <-chan T, want T) {
	t.Helper()
	select {
	case got := <-ch:
		if got != want {
			t.Fatalf("%s: %v", what, got)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: nothing happened", what)
	}
}

// TestFullDisk fills the disk with a backlog: publishers are told to stop before
// settling becomes impossible, consumers go on, and when they have made room the
// publishers are let in again, without help.
func TestFullDisk(t *testing.T) {
	t.Run("flushing", func(t *testing.T) { fullDisk(t, 4) })
	t.Run("never full of write-ahead log", func(t *testing.T) { fullDisk(t, 1000) })
}

func fullDisk(t *testing.T, walFiles int) {
	disk := vfs.NewMem()
	const file = 64 << 10
	disk.SetLimit(60 * file)
	b, err := Open(Config{Dir: "data", FS: disk, Shards: 1, Node: engine.NodeConfig{
		WALFileBytes: file, WALFiles: walFiles, TailCache: file, CheckpointBytes: file,
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	c := &told{newClient(t, b, "other"), make(chan bool, 64)}
	s, err := b.Open(Identity{ID: "main", VHost: "/", User: "guest"}, c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pub := s.Publisher()
	if _, err := s.DeclareQueue(QueueSpec{Name: "q", Type: route.Classic, Durable: true}); err != nil {
		t.Fatal(err)
	}
	stopped, sent := false, uint64(0)
	for deadline := time.Now().Add(20 * time.Second); !stopped && time.Now().Before(deadline); {
		for range 16 {
			sent++
			if _, err := pub.Publish(nil, []byte("q"), nil, &msg.Envelope{}, body(sent, 2000)); err != nil {
				t.Fatal(err)
			}
		}
		token, slots := pub.Flush()
		if stopped = !c.confirmed(token, slots, c.blocked); stopped && !waitDone(c.client, token, slots) {
			sent -= 16 // told and refused
		}
	}
	if !stopped {
		t.Fatalf("%d messages of 2 KB fit on a disk of %d", sent, 60*file)
	}
	consumer, err := s.Consume(ConsumeSpec{Queue: "q", Prefetch: 100}, func(*Consumer) {})
	if err != nil {
		t.Fatal(err)
	}
	rd, seen := s.Reader(), uint64(0)
	for deadline := time.Now().Add(20 * time.Second); seen < sent && time.Now().Before(deadline); {
		c.rd = rd
		got, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range got {
			if d.number != seen+1 {
				t.Fatalf("message %d after %d", d.number, seen)
			}
			seen = d.number
			s.Settle(consumer, d.lane, Ack, []msg.Range{{First: d.off, Count: 1}})
		}
		s.FlushSettles()
		select {
		case <-c.wake:
		case <-time.After(time.Millisecond):
		}
	}
	if seen != sent {
		t.Fatalf("consumed %d of %d on a full disk", seen, sent)
	}
	await(t, "unblocked", c.blocked, false)
}

// confirmed waits for a flush; false when the session was told that it is blocked.
func (c *client) confirmed(token uint64, slots uint32, blocked chan bool) bool {
	for {
		select { // first: a client that is told to stop stops, though it is confirmed
		case yes := <-blocked:
			if yes {
				return false
			}
		default:
		}
		c.mu.Lock()
		ok := c.done[token] == slots
		c.mu.Unlock()
		if ok {
			return true
		}
		select {
		case yes := <-blocked:
			if yes {
				return false
			}
		case <-c.wake:
		case <-time.After(20 * time.Second):
			return false
		}
	}
}
