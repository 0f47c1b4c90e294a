package broker

import (
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

const shortFile = 64 << 10

func openShort(t *testing.T, disk vfs.FS) *Broker {
	t.Helper()
	b, err := Open(Config{Dir: "data", FS: disk, Shards: 1, Node: engine.NodeConfig{
		WALFileBytes: shortFile, WALFiles: 4, TailCache: shortFile, CheckpointBytes: shortFile,
	}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fillDisk takes all space away, as a file of somebody else does.
func fillDisk(t *testing.T, disk *vfs.Mem) {
	t.Helper()
	sp, err := disk.FreeSpace("data")
	if err != nil {
		t.Fatal(err)
	}
	disk.SetLimit(int64(sp.Total-sp.Free) - 1)
}

// drain consumes and acknowledges until all numbers up to last were seen, in order, and
// the settlements are durable.
func drain(t *testing.T, c *client, queue string, first, last uint64) {
	t.Helper()
	consumer, err := c.s.Consume(ConsumeSpec{Queue: queue, Prefetch: 50}, func(*Consumer) {})
	if err != nil {
		t.Fatal(err)
	}
	for seen := first - 1; seen < last; {
		got, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range got {
			if d.number != seen+1 {
				t.Fatalf("message %d after %d", d.number, seen)
			}
			seen = d.number
			c.s.Settle(consumer, d.lane, Ack, []msg.Range{{First: d.off, Count: 1}})
		}
		const token = 1 << 40
		slots := c.s.FlushSettlesWait(token + last + seen)
		if !waitDone(c, token+last+seen, slots) {
			t.Fatalf("settlement of message %d failed", seen)
		}
		if len(got) == 0 {
			select {
			case <-c.wake:
			case <-time.After(20 * time.Second):
				t.Fatalf("nothing came after message %d of %d", seen, last)
			}
		}
	}
	c.s.Cancel(consumer)
}

// publishBoth publishes the numbers from 1 to the queues q and r.
func (c *client) publishBoth(t *testing.T, each uint64) {
	t.Helper()
	for i := uint64(1); i <= each; {
		for range 100 {
			for _, q := range []string{"q", "r"} {
				if _, err := c.pub.Publish(nil, []byte(q), nil, &msg.Envelope{}, body(i, 50)); err != nil {
					t.Fatal(err)
				}
			}
			i++
		}
		if token, slots := c.pub.Flush(); !waitDone(c, token, slots) {
			t.Fatal("refused with an empty disk")
		}
	}
}

// waitDone waits for a flush; false when it was refused.
func waitDone(c *client, token uint64, slots uint32) bool {
	for {
		c.mu.Lock()
		ok, bad := c.done[token] == slots, c.bad
		c.bad = false
		c.mu.Unlock()
		if ok || bad {
			return ok
		}
		<-c.wake
	}
}

// TestDiskFilledByOthers: somebody else takes all the space. Messages are refused, all
// that was confirmed can be consumed and settled, many times more of it than what was
// reserved ahead for deliveries; so it is after a crash; and messages are taken again
// when there is space.
func TestDiskFilledByOthers(t *testing.T) {
	disk := vfs.NewMem()
	disk.SetLimit(100 * shortFile)
	b := openShort(t, disk)
	c := &told{newClient(t, b, "other"), make(chan bool, 64)}
	s, err := b.Open(Identity{ID: "main", VHost: "/", User: "guest"}, c)
	if err != nil {
		t.Fatal(err)
	}
	c.s, c.pub, c.rd = s, s.Publisher(), s.Reader()
	for _, q := range []string{"q", "r"} {
		c.declare(t, QueueSpec{Name: q, Type: route.Classic, Durable: true})
	}
	const each = 10_000
	c.publishBoth(t, each)
	last, blocked := uint64(each), false
	for refused := false; !blocked || !refused; { // as one publishes who isn't told
		fillDisk(t, disk) // again, for merges that were running give space back
		if _, err := c.pub.Publish(nil, []byte("q"), nil, &msg.Envelope{}, body(last+1, 20_000)); err != nil {
			t.Fatal(err)
		}
		token, slots := c.pub.Flush()
		if refused = !waitDone(c.client, token, slots); !refused {
			last++
		}
		select {
		case blocked = <-c.blocked:
		default:
		}
	}
	drain(t, c.client, "q", 1, last)

	crashed := disk.CrashClone(nil, vfs.CrashOptions{Data: vfs.KeepNone, Names: vfs.KeepNone})
	s.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	fillDisk(t, crashed)
	b = openShort(t, crashed)
	defer func() { _ = b.Close() }()
	c = &told{newClient(t, b, "other"), make(chan bool, 64)}
	if s, err = b.Open(Identity{ID: "main", VHost: "/", User: "guest"}, c); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c.s, c.pub, c.rd = s, s.Publisher(), s.Reader()
	drain(t, c.client, "r", 1, each)
	crashed.SetLimit(200 * shortFile)
	deadline := time.Now().Add(20 * time.Second)
	for !c.publishOne(t, "r", each+1) {
		if time.Now().After(deadline) {
			t.Fatal("refused although there is space")
		}
	}
	drain(t, c.client, "r", each+1, each+1)
	for s.toldBlocked() {
		select {
		case <-c.blocked:
		case <-time.After(20 * time.Second):
			t.Fatal("never unblocked")
		}
	}
}

// toldBlocked says what the session was told last.
func (s *Session) toldBlocked() bool {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.blocked
}
