package broker

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strings"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

// damagedPart returns a directory in which a part of message 7, between 1 and 2 in queue q,
// is damaged where it lies: in a segment, or in the write-ahead log.
func damagedPart(t *testing.T, where string) *vfs.Mem {
	disk := vfs.NewMem()
	b, err := Open(cutConfig(disk))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	c := newClient(t, b, "a")
	defer c.s.Close()
	c.declare(t, QueueSpec{Name: "q", Type: route.Classic, Durable: true})
	c.publishOne(t, "q", 1)
	body := largeBody(7, 20_000)
	c.begin(t, "", "q", body, len(body), false).Publish(&msg.Envelope{})
	c.publishOne(t, "q", 2)
	c.declare(t, QueueSpec{Name: "other", Type: route.Classic, Durable: true})
	c.publishOne(t, "other", 3) // what is before it is known to be synced
	for where == "seg" && len(holding(t, disk, where, body[10_000:10_400])) == 0 {
		if _, err := c.pub.Publish(nil, []byte("other"), nil, &msg.Envelope{}, body[:4000]); err != nil {
			t.Fatal(err)
		}
		c.flush(t)
	}
	image := disk.Clone() // as a killed process leaves it
	if r, err := Check(image, "data"); err != nil || !r.Sound() {
		t.Fatalf("undamaged: %v\n%s", err, r.Text())
	}
	flipIn(t, image, where, body[10_000:10_400])
	return image
}

// A damaged part of a large body is told by the message: its queue and offset. A consumer
// gets the others.
func TestDamagedPartIsToldByItsMessage(t *testing.T) {
	image := damagedPart(t, "seg")
	r, err := Check(image, "data")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.Text(), `message without its body: queue "q" of "/"`) || len(r.Bodies) != 1 || r.Bodies[0].First != 1 {
		t.Fatalf("report:\n%s", r.Text())
	}
	b, err := Open(cutConfig(image))
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, b, "b")
	var got []uint64
	for range 3 {
		if err := c.s.Get("q", false, 1, c); err != nil {
			t.Fatal(err)
		}
		d := <-c.gets
		if d == nil {
			break
		}
		_ = c.rd.Each(d, func(_ msg.Offset, rec *msg.Record) error {
			n, err := wholeNumber(c.rd, d, rec)
			if err == nil {
				got = append(got, n)
			}
			return err
		})
	}
	if len(got) != 2 || got[0] != 1 || got[1] != 2 {
		t.Fatalf("messages %v", got)
	}
	c.s.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err = Check(image, "data"); err != nil || len(r.Quarantine) == 0 {
		t.Fatalf("nothing in quarantine: %v", err)
	}
	for _, in := range r.Quarantine {
		for _, l := range in.Lost {
			if l.Queue != "q" || l.First != 1 || l.Last != 1 {
				t.Errorf("lost: %+v", l)
			}
		}
	}
}

// What is damaged in the write-ahead log is told by the entry before anything was restored.
func TestDamagedPartInTheLog(t *testing.T) {
	r, err := Check(damagedPart(t, "wal"), "data")
	if err != nil || r.Sound() {
		t.Fatalf("%v: a damaged log is sound", err)
	}
}

// flipIn flips a bit in the middle of some bytes that lie in a directory, at least once.
func flipIn(t *testing.T, disk *vfs.Mem, dir string, b []byte) {
	t.Helper()
	files := holding(t, disk, dir, b)
	for p, at := range files {
		if err := vfs.FlipBit(disk, p, int64(at+len(b)/2)*8); err != nil {
			t.Fatal(err)
		}
	}
	if len(files) == 0 {
		t.Fatalf("the body isn't in %s", dir)
	}
}

// holding returns the files of a directory that hold some bytes, and where.
func holding(t *testing.T, disk *vfs.Mem, dir string, b []byte) map[string]int {
	t.Helper()
	files := map[string]int{}
	for _, p := range disk.Paths("data") {
		if !strings.Contains(path.Dir(p), dir) {
			continue
		}
		raw, err := vfs.ReadFile(disk, p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(raw, b); at >= 0 {
			files[p] = at
		}
	}
	return files
}
