package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
	"unsafe"

	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sys/unix"
)

const (
	readBufSize  = 256 << 10
	writeBufSize = 64 << 10 // publishes are coalesced up to this much per write

	frameMaxWanted = 131072 // what RabbitMQ offers; every frame fits the read buffer twice

	dialTimeout = 10 * time.Second
	callTimeout = 60 * time.Second // for one answer while setting up; a purge may take its time
)

// BrokerError is a connection or channel that the broker closed.
type BrokerError struct {
	Code uint16
	Text string
}

// Error returns the broker's code and text.
func (e *BrokerError) Error() string { return fmt.Sprintf("the broker closed: %d %s", e.Code, e.Text) }

// conn is one connection with one channel, number 1. It belongs to one
// goroutine.
type conn struct {
	fd int

	in   []byte // read buffer
	r, w int    // in[r:w] is read and not yet parsed

	out []byte // to be written; Invariant: out is empty when everything was
	// written, so that fresh frames can be appended at any time
	outAt int // out[:outAt] is written

	frameMax int // of a whole frame, in bytes
	server   map[string]string

	blockedCount int // connection.blocked seen
}

// dial connects, opens the connection and channel 1.
func dial(ctx context.Context, url, name string) (*conn, error) {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return nil, fmt.Errorf("broker URL: %w", err)
	}
	if uri.Scheme != "amqp" {
		return nil, fmt.Errorf("broker URL: scheme %s isn't supported here; the load generator speaks amqp:// (plain TCP) only", uri.Scheme)
	}
	addr := net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	fd, err := dupFD(nc.(*net.TCPConn))
	_ = nc.Close() // the connection goes on with a descriptor of its own
	if err != nil {
		return nil, err
	}
	c := &conn{fd: fd, in: make([]byte, readBufSize)}
	if err := c.open(uri, name); err != nil {
		c.close()
		return nil, fmt.Errorf("open a connection to %s: %w", addr, err)
	}
	return c, nil
}

// dupFD returns a blocking descriptor of the socket that Go's poller doesn't
// know. A thread that waits in the kernel by itself wakes sooner than a
// goroutine in the poller, with one system call instead of three, and can wait
// with nanosecond instead of millisecond timeouts. What must not block says so
// on each call. A read ends empty-handed after pollMax.
func dupFD(tc *net.TCPConn) (int, error) {
	rc, err := tc.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	err = rc.Control(func(orig uintptr) {
		fd, dupErr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return -1, err
	}
	tv := unix.NsecToTimeval(int64(pollMax))
	err = errors.Join(unix.SetNonblock(fd, false), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// close closes the socket without a word to the broker. It may be called again.
func (c *conn) close() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
		c.fd = -1
	}
}

// open does the handshake, without heartbeats: a loop that stalls for longer
// than one is something to measure, not to cut off.
func (c *conn) open(uri amqp.URI, name string) error {
	c.out = append(c.out, 'A', 'M', 'Q', 'P', 0, 0, 9, 1)
	d, err := c.await(connectionStart)
	if err != nil {
		return err
	}
	d.take(2) // version
	c.server = d.tableStrings()

	c.send(0, connectionStartOk, func(e *encoder) {
		e.table(
			field{"product", "sluice bench"},
			field{"connection_name", name},
			field{"capabilities", []field{
				{"publisher_confirms", true},
				{"basic.nack", true},
				{"consumer_cancel_notify", true},
				{"connection.blocked", true},
				{"authentication_failure_close", true},
			}},
		)
		e.shortstr("PLAIN")
		e.longstr("\x00" + uri.Username + "\x00" + uri.Password)
		e.shortstr("en_US")
	})
	if d, err = c.await(connectionTune); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("the broker hung up at login: wrong user or password?")
		}
		return err
	}
	channelMax, frameMax := d.u16(), d.u32()
	c.frameMax = frameMaxWanted
	if frameMax != 0 && frameMax < frameMaxWanted {
		c.frameMax = int(frameMax)
	}
	c.send(0, connectionTuneOk, func(e *encoder) {
		e.u16(channelMax)
		e.u32(uint32(c.frameMax))
		e.u16(0) // heartbeat
	})
	c.send(0, connectionOpen, func(e *encoder) {
		e.shortstr(uri.Vhost)
		e.shortstr("")
		e.u8(0)
	})
	if _, err = c.await(connectionOpenOk); err != nil {
		return err
	}
	_, err = c.call(channelOpen, channelOpenOk, func(e *encoder) { e.shortstr("") })
	return err
}

// shutdown closes channel and connection in order, which makes sure that the
// broker has taken every ack sent before. Deliveries on the way are dropped.
func (c *conn) shutdown() error {
	defer c.close()
	closeArgs := func(e *encoder) {
		e.u16(200)
		e.shortstr("done")
		e.u32(0)
	}
	if _, err := c.call(channelClose, channelCloseOk, closeArgs); err != nil {
		return err
	}
	c.send(0, connectionClose, closeArgs)
	_, err := c.await(connectionCloseOk)
	return err
}

// send queues a method frame; await, call and flush write it.
func (c *conn) send(channel uint16, m method, args func(*encoder)) {
	c.out = appendMethod(c.out, channel, m, args)
}

// call sends a method on channel 1 and waits for its answer. Only for setting up
// and shutting down.
func (c *conn) call(m, answer method, args func(*encoder)) (*decoder, error) {
	c.send(1, m, args)
	return c.await(answer)
}

// await writes what is queued and waits for method m, whose arguments it
// returns; they are valid until the next read. Frames that belong to messages
// and confirms are skipped.
func (c *conn) await(m method) (*decoder, error) {
	deadline := time.Now().Add(callTimeout)
	for {
		for {
			f, ok, err := c.next()
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			if f.typ != frameMethod {
				continue
			}
			if got := f.method(); got == m {
				return &decoder{b: f.payload[4:]}, nil
			} else if err := c.control(f); err != nil {
				return nil, err
			}
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil, fmt.Errorf("no answer from the broker within %v", callTimeout)
		}
		done, err := c.flush()
		if err != nil {
			return nil, err
		}
		if _, err := c.poll(!done, left); err != nil {
			return nil, err
		}
		if _, err := c.fill(false); err != nil {
			return nil, err
		}
	}
}

// control handles the methods that a broker sends on its own account. It
// returns an error for those that end the connection's use, and ignores methods
// that it doesn't know.
func (c *conn) control(f frame) error {
	if len(f.payload) < 4 {
		return errMalformed
	}
	d := decoder{b: f.payload[4:]}
	switch f.method() {
	case connectionClose, channelClose:
		e := &BrokerError{Code: d.u16(), Text: d.shortstr()}
		reply := connectionCloseOk
		if f.method() == channelClose {
			reply = channelCloseOk
		}
		c.send(f.channel, reply, nil)
		_, _ = c.flush() // a courtesy; the connection is over either way
		return e
	case basicCancel:
		return fmt.Errorf("the broker canceled consumer %s: its queue is gone", d.shortstr())
	case connectionBlocked:
		c.blockedCount++
	}
	return nil
}

// next returns the next whole frame in the read buffer.
func (c *conn) next() (frame, bool, error) {
	sizeMax := readBufSize - frameOverhead
	if c.frameMax != 0 {
		sizeMax = c.frameMax - frameOverhead
	}
	f, n, err := parseFrame(c.in[c.r:c.w], sizeMax)
	c.r += n
	return f, n > 0, err
}

// fill reads once; block lets it wait up to pollMax for something to come. It
// returns 0 when nothing has.
func (c *conn) fill(block bool) (int, error) {
	if c.r == c.w {
		c.r, c.w = 0, 0
	} else if len(c.in)-c.w < len(c.in)/4 {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	flags := unix.MSG_DONTWAIT
	if block {
		flags = 0
	}
	n, errno := transfer(unix.SYS_RECVFROM, c.fd, c.in[c.w:], flags)
	switch {
	case errno == unix.EAGAIN:
		return 0, nil
	case errno != 0:
		return 0, fmt.Errorf("read: %w", errno)
	case n == 0:
		return 0, io.EOF
	}
	c.w += n
	return n, nil
}

// flush writes what is queued, as far as it goes without waiting, and reports
// whether all of it went.
func (c *conn) flush() (bool, error) {
	for c.outAt < len(c.out) {
		n, errno := transfer(unix.SYS_SENDTO, c.fd, c.out[c.outAt:], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch errno {
		case 0:
		case unix.EAGAIN:
			return false, nil
		default:
			return false, c.closeReason(fmt.Errorf("write: %w", errno))
		}
		c.outAt += n
	}
	c.out, c.outAt = c.out[:0], 0
	return true, nil
}

// transfer is recv or send; the wrappers in package unix allocate or don't
// return the length. b must not be empty.
func transfer(call uintptr, fd int, b []byte, flags int) (int, unix.Errno) {
	for {
		n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(flags), 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// closeReason looks for a close method that arrived before a write failed: it
// says why.
func (c *conn) closeReason(writeErr error) error {
	for {
		if n, err := c.fill(false); err != nil || n == 0 {
			return writeErr
		}
		for {
			f, ok, err := c.next()
			if err != nil || !ok {
				break
			}
			if m := f.method(); f.typ == frameMethod && (m == connectionClose || m == channelClose) {
				d := decoder{b: f.payload[4:]}
				return &BrokerError{Code: d.u16(), Text: d.shortstr()}
			}
		}
	}
}

// poll waits until there is something to read, which it reports, room to write
// when that is asked for, or timeout has passed.
func (c *conn) poll(forWrite bool, timeout time.Duration) (readable bool, err error) {
	fds := [1]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	if forWrite {
		fds[0].Events |= unix.POLLOUT
	}
	ts := unix.NsecToTimespec(int64(max(timeout, 0)))
	if _, err := unix.Ppoll(fds[:], &ts, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("poll: %w", err)
	}
	// Anything but room to write is for a read to find out about.
	return fds[0].Revents&^unix.POLLOUT != 0, nil
}
