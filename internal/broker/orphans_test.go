package broker

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

// fill makes two queues with messages each and returns the disk as a kill leaves it.
func fill(t *testing.T, first, second string) *vfs.Mem {
	disk := vfs.NewMem()
	b, err := Open(Config{Dir: "data", FS: disk, Shards: 2, Node: smallNode(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "a")
	defer c.s.Close()
	for i, q := range []string{first, second, "later"} {
		if _, err := c.s.DeclareQueue(QueueSpec{Name: q, Type: route.Classic, Durable: true}); err != nil {
			t.Fatal(err)
		}
		for n := range uint64(3) {
			e := msg.Envelope{Format: msg.FormatAMQP091, Key: []byte("k")}
			if _, err := c.pub.Publish(nil, []byte(q), nil, &e, body(100*uint64(i)+n, 10)); err != nil {
				t.Fatal(err)
			}
		}
		c.await(c.pub.Flush())
	}
	return disk.Clone()
}

// flipAfter flips a bit behind the first place where a file has some bytes.
func flipAfter(t *testing.T, disk *vfs.Mem, prefix, text string) {
	for _, p := range disk.Paths(prefix) {
		raw, err := vfs.ReadFile(disk, p)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(raw, []byte(text)); at >= 0 {
			if err := vfs.FlipBit(disk, p, int64(at+len(text)-1)*8); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no file has %q", text)
}

// numbers reads a queue to its end.
func numbers(t *testing.T, c *client, q string) (out []uint64) {
	for {
		if err := c.s.Get(q, false, 1, c); err != nil {
			t.Fatalf("queue %s: %v", q, err)
		}
		d := <-c.gets
		if d == nil {
			return out
		}
		if err := c.rd.Each(d, func(_ msg.Offset, rec *msg.Record) error {
			out = append(out, number(rec.Body))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLostDefinitions damages the entry that defined a queue: its messages, and those of
// queues that were defined afterwards, are in queues of other names, and no queue has the
// messages of another; also after the next start.
func TestLostDefinitions(t *testing.T) {
	disk := fill(t, "unlucky-queue", "other")
	flipAfter(t, disk, "data/wal", "unlucky-queue")
	for range 2 {
		b, err := Open(Config{Dir: "data", FS: disk, Shards: 2, Node: smallNode(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, b, "check")
		var all []uint64
		for q := range b.Table().VHost("/").Queues() {
			got := numbers(t, c, q.Name)
			if len(got) > 0 && !strings.HasPrefix(q.Name, engine.LostQueuePrefix) {
				t.Errorf("queue %s has %v", q.Name, got)
			}
			all = append(all, got...)
		}
		slices.Sort(all)
		if !slices.Equal(all, []uint64{0, 1, 2, 100, 101, 102, 200, 201, 202}) {
			t.Errorf("%v", all)
		}
		if b.Table().VHost("/").Queue("unlucky-queue") != nil || b.Table().VHost("/").Queue("other") == nil {
			t.Error("other definitions than those that are not lost")
		}
		c.s.Close()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStrictRefuses: who asks for it gets no broker where something is damaged.
func TestStrictRefuses(t *testing.T) {
	disk := fill(t, "unlucky-queue", "other")
	flipAfter(t, disk, "data/wal", "unlucky-queue")
	node := smallNode()
	node.Strict = true
	cfg := Config{Dir: "data", FS: disk, Shards: 2, Node: node, Log: slog.New(slog.DiscardHandler)}
	if _, err := Open(cfg); err == nil {
		t.Fatal("started")
	}
	if len(disk.Paths("data/"+engine.QuarantineDir)) > 0 {
		t.Fatal("something was changed")
	}
}
