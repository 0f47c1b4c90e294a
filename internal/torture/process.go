package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// broker is the process under test. Owned by the controller.
type broker struct {
	command []string
	url     string
	log     io.Writer // its output

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone; then err is set
	err    error
}

// start starts the process, in a process group of its own: a kill takes what it
// has started as well.
func (b *broker) start() error {
	// No context: it ends by kill only, so that every death is booked.
	b.cmd = exec.CommandContext(context.Background(), b.command[0], b.command[1:]...)
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		return fmt.Errorf("start the broker: %w", err)
	}
	b.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		b.err = cmd.Wait()
		close(exited)
	}(b.cmd, b.exited)
	return nil
}

// kill sends SIGKILL and waits until the process is gone. It returns the moment
// of the signal.
func (b *broker) kill() time.Time {
	at := time.Now()
	_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL) // ESRCH: it died by itself, which ready or alive reports
	<-b.exited
	return at
}

// alive reports the error of a process that ended by itself.
func (b *broker) alive() error {
	select {
	case <-b.exited:
		if b.err == nil {
			return errors.New("the broker ended by itself, without an error")
		}
		return fmt.Errorf("the broker ended by itself: %w", b.err)
	default:
		return nil
	}
}

// ready waits until a client can open a connection and returns how long that
// took.
func (b *broker) ready(ctx context.Context, timeout time.Duration) (time.Duration, error) {
	begin := time.Now()
	for {
		conn, err := dial(b.url, "torture: ready?")
		if err == nil {
			return time.Since(begin), conn.Close()
		}
		if aliveErr := b.alive(); aliveErr != nil {
			return 0, aliveErr
		}
		if time.Since(begin) > timeout {
			return 0, fmt.Errorf("the broker doesn't serve %v after its start: %w", timeout, err)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// dial opens a connection without retries.
func dial(url, name string) (*amqp.Connection, error) {
	props := amqp.NewConnectionProperties()
	props.SetClientConnectionName(name)
	return amqp.DialConfig(url, amqp.Config{
		Properties: props,
		Heartbeat:  30 * time.Second,
		Dial:       amqp.DefaultDial(10 * time.Second),
	})
}

// FreePort returns a TCP port of loopback that is free now.
func FreePort() (int, error) {
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	addr, ok := ln.Addr().(*net.TCPAddr)
	if err := ln.Close(); err != nil || !ok {
		return 0, errors.Join(errors.New("no free port"), err)
	}
	return addr.Port, nil
}
