package bench

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// peerEnv makes the test binary run as the other side of BenchmarkGenerator, in
// a process of its own so that its CPU time isn't mixed with the generator's.
const peerEnv = "SLUICE_BENCH_TEST_PEER"

func TestMain(m *testing.M) {
	if os.Getenv(peerEnv) != "" {
		runPeer()
		return
	}
	os.Exit(m.Run())
}

// BenchmarkGenerator measures the CPU time that the generator itself takes per
// message, against a peer that does next to nothing.
func BenchmarkGenerator(b *testing.B) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), peerEnv+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		stdin.Close() // ends the peer
		_ = cmd.Wait()
	}()
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	url := "amqp://guest:guest@" + addr[:len(addr)-1] + "/"
	for _, size := range []int{64, 1024} {
		for name, cfg := range map[string]Config{
			"publish": {Publishers: 1},
			"consume": {Consumers: 1, NoDrain: true},
		} {
			b.Run(fmt.Sprintf("%s/%dB", name, size), func(b *testing.B) {
				b.ReportAllocs()
				cfg.URL, cfg.SizeBytes, cfg.Messages, cfg.QueueName = url, size, uint64(b.N), fmt.Sprint(size)
				res, err := Run(b.Context(), cfg)
				if err != nil {
					b.Fatal(err)
				}
				if n := res.Verify.Violations(); n > 0 {
					b.Fatalf("%+v", res.Verify)
				}
				b.ReportMetric(res.PublisherCPU+res.ConsumerCPU, "cpu-us/msg")
			})
		}
	}
}

// runPeer serves until its standard input ends.
func runPeer() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stdout, ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		nc, err := ln.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer nc.Close()
			(&peerConn{nc: nc, in: make([]byte, readBufSize)}).serve()
		}()
	}
}

// peerConn answers set-up methods, confirms what it gets per read, and once
// there is a consumer streams messages to it as far as its prefetch allows.
type peerConn struct {
	nc        net.Conn
	in        []byte
	r, w      int
	out       []byte
	prefetch  uint64
	size      int    // of the bodies to stream; 0 while there is no consumer
	published uint64 // publishes received
	acked     uint64
	confirmed uint64
	sent      uint64
	delivery  []byte // prebuilt frames of one delivery
	tagAt     int
	stampAt   int
}

func (c *peerConn) serve() {
	if _, err := io.ReadFull(c.nc, make([]byte, 8)); err != nil {
		return
	}
	c.out = appendMethod(nil, 0, connectionStart, func(e *encoder) {
		e.u16(9)
		e.table(field{"product", "peer"})
		e.longstr("PLAIN")
		e.longstr("en_US")
	})
	for {
		for more := true; more; {
			more = c.size > 0 && c.stream()
			if _, err := c.nc.Write(c.out); err != nil {
				return
			}
			c.out = c.out[:0]
		}
		if c.r > 0 {
			c.w = copy(c.in, c.in[c.r:c.w])
			c.r = 0
		}
		n, err := c.nc.Read(c.in[c.w:])
		if err != nil {
			return
		}
		c.w += n
		for {
			f, n, err := parseFrame(c.in[c.r:c.w], readBufSize)
			if err != nil {
				return
			}
			if n == 0 {
				break
			}
			c.r += n
			if f.typ == frameMethod && !c.method(f) {
				return
			}
		}
		if c.published > c.confirmed {
			c.out = appendAck(c.out, c.published, true)
			c.confirmed = c.published
		}
	}
}

func (c *peerConn) method(f frame) bool {
	d := decoder{b: f.payload[4:]}
	reply := func(m method, args func(*encoder)) { c.out = appendMethod(c.out, f.channel, m, args) }
	switch f.method() {
	case basicPublish:
		c.published++
	case basicAck:
		c.acked = d.u64()
	case connectionStartOk:
		reply(connectionTune, func(e *encoder) { e.u16(1); e.u32(131072); e.u16(0) })
	case connectionOpen:
		reply(connectionOpenOk, func(e *encoder) { e.shortstr("") })
	case channelOpen:
		reply(channelOpenOk, func(e *encoder) { e.longstr("") })
	case confirmSelect:
		reply(confirmSelectOk, nil)
	case queueDeclare:
		reply(queueDeclareOk, func(e *encoder) { e.shortstr(""); e.u64(0) })
	case queueDelete:
		reply(queueDeleteOk, func(e *encoder) { e.u32(0) })
	case basicQos:
		d.u32()
		c.prefetch = uint64(d.u16())
		reply(basicQosOk, nil)
	case basicConsume:
		d.u16()
		_, _ = fmt.Sscan(d.shortstr(), &c.size) // the queue's name is the size of its messages
		reply(basicConsumeOk, func(e *encoder) { e.shortstr("q0") })
	case channelClose:
		c.size = 0
		reply(channelCloseOk, nil)
	case connectionClose:
		reply(connectionCloseOk, nil)
		_, _ = c.nc.Write(c.out)
		return false
	}
	return true
}

// stream appends deliveries, a write buffer full at most, and reports whether
// the prefetch has room for more.
func (c *peerConn) stream() (more bool) {
	if c.delivery == nil {
		c.delivery = appendMethod(nil, 1, basicDeliver, func(e *encoder) {
			e.shortstr("q0")
			c.tagAt = len(e.b)
			e.u64(0)
			e.u8(0)
			e.shortstr("")
			e.shortstr("q")
		})
		publish := newTemplate("", newFiller(c.size), 131072, true, false)
		method := len(appendMethod(nil, 1, basicPublish, func(e *encoder) { e.u32(0); e.u8(0) }))
		c.stampAt = len(c.delivery) + publish.stampAt - method
		c.delivery = append(c.delivery, publish.frames[method:]...)
	}
	for c.sent-c.acked < c.prefetch && len(c.out) < writeBufSize {
		begin := len(c.out)
		c.out = append(c.out, c.delivery...)
		binary.BigEndian.PutUint64(c.out[begin+c.tagAt:], c.sent+1)
		putStamp(c.out[begin+c.stampAt:], stamp{run: 1, seq: c.sent, timeNanos: time.Now().UnixNano()})
		c.sent++
	}
	return c.sent-c.acked < c.prefetch
}
