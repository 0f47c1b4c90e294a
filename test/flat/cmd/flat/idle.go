package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// idle: what a connection with a channel costs that does nothing.
func idle(ctx context.Context, e *env) (err error) {
	if err := raiseFiles(uint64(e.Idle) + 200); err != nil {
		return err
	}
	b, err := e.newBroker(ctx)
	if err != nil {
		return err
	}
	defer b.close(&err)
	// One client like the others first, so that what is made once isn't counted.
	first, err := openIdle(ctx, b.addr)
	if err != nil {
		return err
	}
	defer first.Close() //nolint:errcheck // nothing was sent
	before, _, err := b.rss()
	if err != nil {
		return err
	}
	began := time.Now()
	conns, err := openMany(ctx, b.addr, e.Idle)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	if err != nil {
		return err
	}
	n := float64(e.Idle)
	e.add(fmt.Sprintf("%s connections opened", grouped(int64(e.Idle))), n/time.Since(began).Seconds(), "/s", nil)
	fresh, _, err := b.rss()
	if err != nil {
		return err
	}
	e.add("memory of each, just opened", float64(fresh-before)/1024/n, "KiB", nil)
	select { // the runtime gives back what the handshakes needed
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	rested, _, err := b.rss()
	if err != nil {
		return err
	}
	e.add("memory of each after 10 s", float64(rested-before)/1024/n, "KiB", atMost(16))
	return nil
}

// raiseFiles allows so many open files, to this process and those that it starts.
func raiseFiles(n uint64) error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	if lim.Cur >= n {
		return nil
	}
	lim.Cur, lim.Max = n, max(lim.Max, n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("%d open files are not allowed (ulimit -n): %w", n, err)
	}
	return nil
}

// openMany opens n connections, some at a time. It returns those that were opened also
// with an error.
func openMany(ctx context.Context, addr string, n int) (conns []net.Conn, err error) {
	conns = make([]net.Conn, n)
	const workers = 32
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += workers {
				conns[i], errs[w] = openIdle(ctx, addr)
			}
		})
	}
	wg.Wait()
	opened := conns[:0]
	for _, c := range conns {
		if c != nil {
			opened = append(opened, c)
		}
	}
	return opened, errors.Join(errs...)
}

// openIdle opens a connection and channel 1, without heartbeats. It needs no goroutine
// and no buffer afterwards.
func openIdle(ctx context.Context, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	in := bufio.NewReaderSize(c, 512)
	steps := []struct {
		send  []byte
		until uint32 // the method that answers
	}{
		{[]byte("AMQP\x00\x00\x09\x01"), 10<<16 | 10},                                                                    // start
		{methodFrame(0, 10<<16|11, "\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x0c\x00guest\x00guest\x05en_US"), 10<<16 | 30}, // start-ok, tune
		{append(methodFrame(0, 10<<16|31, "\x00\x10\x00\x02\x00\x00\x00\x00"), // tune-ok
			methodFrame(0, 10<<16|40, "\x01/\x00\x00")...), 10<<16 | 41}, // open
		{methodFrame(1, 20<<16|10, "\x00"), 20<<16 | 11}, // channel.open
	}
	for _, s := range steps {
		if _, err = c.Write(s.send); err == nil {
			err = await(in, s.until)
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, c.SetDeadline(time.Time{})
}

// methodFrame is a frame with a method (class and method id) and its arguments.
func methodFrame(channel uint16, method uint32, args string) []byte {
	b := []byte{1}
	b = binary.BigEndian.AppendUint16(b, channel)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(args)))
	b = binary.BigEndian.AppendUint32(b, method)
	return append(append(b, args...), 0xCE)
}

// await reads frames up to the one with a method.
func await(in *bufio.Reader, method uint32) error {
	for {
		var head [11]byte
		if _, err := io.ReadFull(in, head[:7]); err != nil {
			return err
		}
		size := binary.BigEndian.Uint32(head[3:])
		if head[0] != 1 || size < 4 {
			return fmt.Errorf("a frame of type %d and %d bytes instead of method %d.%d", head[0], size, method>>16, method&0xffff)
		}
		if _, err := io.ReadFull(in, head[7:]); err != nil {
			return err
		}
		if _, err := in.Discard(int(size) - 4 + 1); err != nil {
			return err
		}
		if got := binary.BigEndian.Uint32(head[7:]); got == method {
			return nil
		} else if got == 10<<16|50 || got == 20<<16|40 {
			return errors.New("the broker closed the connection or channel")
		}
	}
}
