package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	startTimeout = 20 * time.Second
	drainTimeout = 20 * time.Second
)

// broker is a sluice of our own.
type broker struct {
	binary string
	url    string
	cmd    *exec.Cmd
	log    string        // file with all it said
	ended  chan struct{} // closed when it ended, after waitErr was set

	waitErr error
}

// startBroker builds sluice, starts it, and returns when it serves.
func startBroker(ctx context.Context, e *env) (*broker, error) {
	b := &broker{
		binary: filepath.Join(e.work, "bin", "sluice"),
		log:    filepath.Join(e.work, "sluice.log"),
		ended:  make(chan struct{}),
	}
	fmt.Fprintln(e.out, "== building and starting sluice")
	if _, err := output(ctx, e.root, nil, "go", "build", "-o", b.binary, "./cmd/sluice"); err != nil {
		return nil, err
	}
	addr, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	b.url = "amqp://guest:guest@" + addr + "/"
	log, err := os.Create(b.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the child has its own descriptor
	// Not bound to ctx: it is stopped with SIGTERM, as it would be in earnest.
	b.cmd = command(context.WithoutCancel(ctx), e.work, nil, b.binary,
		"serve", "--data", filepath.Join(e.work, "data"), "--amqp-listen", addr)
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := b.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		b.waitErr = b.cmd.Wait()
		close(b.ended)
	}()
	if err := b.await(ctx, addr); err != nil {
		b.kill()
		return nil, fmt.Errorf("sluice doesn't serve: %w\n%s", err, b.lastWords())
	}
	return b, nil
}

// freeAddress returns a loopback address that nobody listens on just now.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// await polls until the broker answers the protocol header.
func (b *broker) await(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		err := handshake(ctx, addr)
		if err == nil {
			tick.Stop()
			return nil
		}
		select {
		case <-tick.C:
		case <-b.ended:
			return fmt.Errorf("it ended: %w", errors.Join(b.waitErr, err))
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// handshake sends the protocol header of AMQP 0-9-1 and wants a method frame.
func handshake(ctx context.Context, addr string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing was promised to the other side
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "AMQP\x00\x00\x09\x01"); err != nil {
		return err
	}
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return err
	}
	const methodFrame = 1
	if first[0] != methodFrame {
		return fmt.Errorf("frame type %d instead of a method", first[0])
	}
	return nil
}

func (b *broker) alive() bool {
	select {
	case <-b.ended:
		return false
	default:
		return true
	}
}

// stop sends SIGTERM and reports whether the broker ends by itself and well.
func (b *broker) stop(ctx context.Context) report {
	r := report{suite: "sluice", client: "SIGTERM"}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	o := outcome{passed, "drains and exits with 0", ""}
	fail := func(why string) { o.status, o.note = failed, why+"\n"+b.lastWords() }
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		fail(err.Error())
	} else {
		select {
		case <-b.ended:
			if b.waitErr != nil {
				fail(b.waitErr.Error())
			}
		case <-ctx.Done():
			fail("still there after " + drainTimeout.String())
		}
	}
	r.outcomes, r.took = []outcome{o}, time.Since(began)
	return r
}

// kill ends the broker at once, if it hasn't ended.
func (b *broker) kill() {
	if b.alive() {
		_ = b.cmd.Cancel() // it may end just now
		<-b.ended
	}
}

// lastWords returns the end of the broker's log.
func (b *broker) lastWords() string {
	text, err := os.ReadFile(b.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(text), 30)
}
