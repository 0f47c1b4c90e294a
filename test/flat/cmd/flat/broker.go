package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sys/unix"

	"github.com/sluicemq/sluice/internal/engine"
)

// startTimeout bounds a start with recovery.
const startTimeout = 2 * time.Minute

// broker is a sluice of our own.
type broker struct {
	binary string
	dir    string // the data directory
	addr   string
	url    string
	log    string // file with what it said since its last start
	cmd    *exec.Cmd
	ended  chan struct{} // closed when it ended, after waitErr was set

	waitErr error
}

// build makes the program.
func build(ctx context.Context, root, binary string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/sluice")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// commit names the state of the sources, empty if git doesn't know.
func commit(ctx context.Context, root string) string {
	cmd := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// repositoryRoot finds the directory of sluice's go.mod from the working directory up.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(b), "module github.com/sluicemq/sluice\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("run it inside sluice's repository")
		}
		dir = parent
	}
}

// newBroker starts a broker with an empty data directory and the default settings. The
// caller ends it with remove.
func (e *env) newBroker(ctx context.Context) (*broker, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		return nil, err
	}
	e.made++
	dir := filepath.Join(e.work, fmt.Sprintf("data-%d", e.made))
	b := &broker{binary: e.binary, dir: dir, log: dir + ".log", addr: addr, url: "amqp://guest:guest@" + addr + "/"}
	_, err = b.start(ctx)
	if err != nil {
		return nil, errors.Join(err, b.remove())
	}
	return b, nil
}

// start starts the broker and returns how long it took until a client had a channel.
func (b *broker) start(ctx context.Context) (time.Duration, error) {
	log, err := os.Create(b.log)
	if err != nil {
		return 0, err
	}
	defer log.Close() //nolint:errcheck // the child has its own descriptor
	// Not bound to ctx: kill ends it.
	b.cmd = exec.CommandContext(context.WithoutCancel(ctx), b.binary, "serve", "--data", b.dir, "--amqp-listen", b.addr)
	b.cmd.Stdout, b.cmd.Stderr = log, log
	b.ended = make(chan struct{})
	began := time.Now()
	if err := b.cmd.Start(); err != nil {
		close(b.ended)
		return 0, err
	}
	go func() {
		b.waitErr = b.cmd.Wait()
		close(b.ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		c, _, err := dial(b.url)
		if err == nil {
			took := time.Since(began)
			return took, c.Close()
		}
		select {
		case <-tick.C:
		case <-b.ended:
			return 0, fmt.Errorf("sluice ended: %w\n%s", errors.Join(b.waitErr, err), b.lastWords())
		case <-ctx.Done():
			b.kill()
			return 0, errors.Join(ctx.Err(), err)
		}
	}
}

// dial returns a connection with a channel.
func dial(url string) (*amqp091.Connection, *amqp091.Channel, error) {
	c, err := amqp091.Dial(url)
	if err != nil {
		return nil, nil, err
	}
	ch, err := c.Channel()
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	return c, ch, nil
}

// restart kills the broker as a crash would and starts it again.
func (b *broker) restart(ctx context.Context) (time.Duration, error) {
	b.kill()
	return b.start(ctx)
}

// kill ends the process with SIGKILL, if it hasn't ended.
func (b *broker) kill() {
	if b.cmd != nil && b.cmd.Process != nil {
		_ = b.cmd.Process.Kill() // it may have ended just now
		<-b.ended
	}
}

// remove kills the broker and removes its data.
func (b *broker) remove() error {
	b.kill()
	return os.RemoveAll(b.dir)
}

// close is remove for a scenario that ends with *err; a broker that ended by itself is
// an error too.
func (b *broker) close(err *error) {
	select {
	case <-b.ended:
		*err = errors.Join(*err, fmt.Errorf("sluice ended: %w\n%s", b.waitErr, b.lastWords()))
	default:
	}
	*err = errors.Join(*err, b.remove())
}

// lastWords returns the end of the broker's log.
func (b *broker) lastWords() string {
	text, err := os.ReadFile(b.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimRight(text, "\n"), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-30):], []byte("\n")))
}

// figures asks the control socket.
func (b *broker) figures(ctx context.Context) (*engine.Figures, error) {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(b.dir, "control.sock"))
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sluice/figures", nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	f := &engine.Figures{}
	return f, json.NewDecoder(res.Body).Decode(f)
}

// rss returns the resident set of the process and its peak, in bytes.
func (b *broker) rss() (now, peak int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	now, err = field(text, "VmRSS")
	if err != nil {
		return 0, 0, err
	}
	peak, err = field(text, "VmHWM")
	return now << 10, peak << 10, err
}

// written returns how many bytes the process caused to be written to storage.
func (b *broker) written() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", b.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return field(text, "write_bytes")
}

// field finds the number of a line "name: 12 kB".
func field(text []byte, name string) (n int64, err error) {
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			if _, err := fmt.Sscan(string(rest), &n); err != nil {
				return 0, fmt.Errorf("%s: %w", bytes.TrimSpace(line), err)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("no line %s", name)
}

// addRSS notes the resident set as a row, in MiB.
func (e *env) addRSS(b *broker, what string, g *goal) error {
	now, _, err := b.rss()
	if err == nil {
		e.add(what, float64(now)/(1<<20), "MiB", g)
	}
	return err
}

// needSpace complains if there isn't as much room for data directories.
func (e *env) needSpace(bytes uint64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(e.work, &st); err != nil {
		return err
	}
	if free := st.Bavail * uint64(st.Bsize); free < bytes {
		return fmt.Errorf("it takes up to %d MiB of disk, and %d are free", bytes>>20, free>>20)
	}
	return nil
}

// dropCaches lets the kernel forget what it holds of the data directory's files, as far
// as it is on disk.
func (b *broker) dropCaches() error {
	return filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed meanwhile
			}
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // nothing was written
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}
