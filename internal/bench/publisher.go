package bench

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// pollMax bounds a wait, so that loops notice when they are told to stop.
const pollMax = 100 * time.Millisecond

// lateMax is how long after its end a schedule is still worked off. What hasn't
// left by then is reported as missed.
const lateMax = time.Second

// settledSlot marks a slot of publisher.due whose message is settled.
const settledSlot = -1

// publisher is one publishing connection. Owned by its loop.
type publisher struct {
	run       *run
	c         *conn
	index     int
	queues    []int // indices of the queues that it serves in turn
	templates []template
	limit     uint64 // messages to send; 0 means no limit

	pace pace

	// Tags count from 1. Message tag went to queues[(tag-1)%len(queues)] as
	// number (tag-1)/len(queues).
	tag     uint64 // last one sent
	low     uint64 // lowest unsettled one
	open    int    // sent and unsettled
	window  int
	due     []int64 // ring by tag: intended time in ns since run.base, or settledSlot
	dueMask uint64

	nacked    map[uint64]struct{} // tags
	returned  uint64
	strange   uint64 // confirms for tags that were not open
	finished  bool
	finishAt  int64 // when it stopped publishing
	lastAt    int64 // when the last confirm arrived; without confirms, when the last write ended
	inWindow  uint64
	unwritten bool // the socket's buffer is full

	confirmNanos *hdrhistogram.Histogram
	lagNanos     *hdrhistogram.Histogram
	cpu          cpuMeter

	sentNow      atomic.Uint64 // for progress
	confirmedNow atomic.Uint64
}

// pace is an open-loop schedule: message k is due at first + k*interval.
type pace struct {
	interval float64 // ns; 0: closed loop
	first    int64
}

// dueAt returns when message k (from 0) is to leave.
func (p pace) dueAt(k uint64) int64 { return p.first + int64(float64(k)*p.interval) }

// dueBy returns how many messages are to have left at now.
func (p pace) dueBy(now int64) uint64 {
	if now < p.first {
		return 0
	}
	n := uint64(float64(now-p.first) / p.interval)
	for p.dueAt(n) <= now { // the division may be off by one either way
		n++
	}
	return n
}

func newPublisher(r *run, c *conn, index int) *publisher {
	cfg := r.cfg
	p := &publisher{
		run: r, c: c, index: index,
		queues:       share(index, cfg.Publishers, cfg.Queues),
		low:          1,
		window:       cfg.ConfirmWindow,
		nacked:       map[uint64]struct{}{},
		confirmNanos: newHistogram(),
		lagNanos:     newHistogram(),
	}
	if cfg.Messages > 0 {
		p.limit = cfg.Messages / uint64(cfg.Publishers)
		if uint64(index) < cfg.Messages%uint64(cfg.Publishers) {
			p.limit++
		}
		p.finished = p.limit == 0
	}
	for _, q := range p.queues {
		p.templates = append(p.templates, newTemplate(r.names[q], r.fill, c.frameMax, !cfg.Transient, cfg.Mandatory))
	}
	if cfg.confirms() {
		// Room for confirms out of order: the oldest open message may lag
		// behind the window.
		size := uint64(1) << bits.Len(uint(4*p.window))
		p.due, p.dueMask = make([]int64, size), size-1
	}
	return p
}

// setUp prepares the channel.
func (p *publisher) setUp() error {
	if !p.run.cfg.confirms() {
		return nil
	}
	_, err := p.c.call(confirmSelect, confirmSelectOk, func(e *encoder) { e.u8(0) })
	return err
}

// loop publishes until the run ends and every confirm is in.
func (p *publisher) loop() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sharpenTimers()
	defer func() { p.cpu.end() }()
	if rate := p.run.cfg.Rate; rate > 0 {
		p.pace.interval = 1e9 * float64(p.run.cfg.Publishers) / rate
		p.pace.first = p.run.start + int64(p.pace.interval*float64(p.index)/float64(p.run.cfg.Publishers))
	}
	for turn := 0; ; turn++ {
		now := p.run.now()
		p.cpu.at(now, p.run)
		more := p.fill(now)
		done, err := p.c.flush()
		if err != nil {
			return err
		}
		p.unwritten = !done
		if p.over(p.run.now()) {
			return p.c.shutdown()
		}
		if more && done && turn%64 != 0 {
			continue // the window has room: no need to hear from the broker yet
		}
		if err := p.listen(more, done); err != nil {
			return err
		}
	}
}

// listen waits for the broker, for room in the socket's buffer unless written, or
// until the next message is due, and takes what has come; not at all when there
// are more messages to be sent right away.
func (p *publisher) listen(more, written bool) error {
	wait := p.wait()
	switch {
	case !written:
		wait = pollMax
	case more || wait <= 0:
		return p.read(false)
	case wait == pollMax:
		return p.read(true) // nothing to do but listen: no need to poll first
	}
	readable, err := p.c.poll(!written, wait)
	if err != nil || !readable {
		return err
	}
	return p.read(false)
}

// over reports whether the loop has nothing left to do.
func (p *publisher) over(now int64) bool {
	if p.run.stop.Load() {
		return true
	}
	if !p.finished || p.unwritten {
		return false
	}
	if !p.run.cfg.confirms() {
		p.lastAt = now
		return true
	}
	return p.open == 0 || now-max(p.finishAt, p.lastAt) > int64(p.run.cfg.DrainTimeout)
}

// wait returns how long to sleep for the next message to be due.
func (p *publisher) wait() time.Duration {
	if p.finished || p.pace.interval == 0 || p.room() == 0 {
		return pollMax
	}
	return min(pollMax, time.Duration(p.pace.dueAt(p.tag)-p.run.now()))
}

// room returns how many messages the window takes.
func (p *publisher) room() int {
	if p.due == nil {
		return 1 << 30
	}
	return max(0, min(p.window-p.open, len(p.due)-int(p.tag+1-p.low)))
}

// fill appends the messages that may leave now, up to a write buffer full, and
// reports whether there are more.
func (p *publisher) fill(now int64) (more bool) {
	if p.finished || p.unwritten {
		return false
	}
	if p.ended(now) {
		p.finish(now)
		return false
	}
	n := p.room()
	if p.pace.interval > 0 {
		n = int(min(uint64(n), p.pace.dueBy(min(now, p.run.measureTo-1))-p.tag))
	}
	if p.limit > 0 {
		n = int(min(uint64(n), p.limit-p.tag))
	}
	for ; n > 0 && len(p.c.out) < writeBufSize; n-- {
		p.append(now)
	}
	p.sentNow.Store(p.tag)
	if p.limit > 0 && p.tag == p.limit {
		p.finish(now)
		return false
	}
	return n > 0
}

// ended reports whether the clock has ended publishing. What the schedule had
// before that may still leave for a while: without it, a stall at the end would
// not be seen in the latencies.
func (p *publisher) ended(now int64) bool {
	if now < p.run.measureTo {
		return false
	}
	return p.pace.interval == 0 || now >= p.run.measureTo+int64(lateMax) || p.pace.dueAt(p.tag) >= p.run.measureTo
}

func (p *publisher) finish(now int64) { p.finished, p.finishAt = true, now }

// append queues the next message.
func (p *publisher) append(now int64) {
	at := now
	if p.pace.interval > 0 {
		at = p.pace.dueAt(p.tag)
		if p.run.measured(at) {
			record(p.lagNanos, now-at)
		}
	}
	nq := uint64(len(p.queues))
	i := p.tag % nq
	t := &p.templates[i]
	begin := len(p.c.out)
	p.c.out = append(p.c.out, t.frames...)
	putStamp(p.c.out[begin+t.stampAt:], stamp{
		run:       p.run.id,
		publisher: uint16(p.index),
		queue:     uint16(p.queues[i]),
		seq:       p.tag / nq,
		timeNanos: p.run.baseUnix + at,
	})
	p.tag++
	if p.due != nil {
		p.due[p.tag&p.dueMask] = at
		p.open++
	} else if p.run.measured(now) {
		p.inWindow++
	}
}

// read takes what the broker has sent; block lets it wait for that.
func (p *publisher) read(block bool) error {
	n, err := p.c.fill(block)
	if err != nil || n == 0 {
		return err
	}
	return p.frames(p.run.now())
}

// frames takes every whole frame in the read buffer.
func (p *publisher) frames(now int64) error {
	for {
		f, ok, err := p.c.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if f.typ != frameMethod {
			continue
		}
		switch m := f.method(); m {
		case basicAck, basicNack:
			tag, multiple, ok := parseConfirm(f.payload)
			if !ok {
				return errMalformed
			}
			p.confirm(tag, multiple, m == basicNack, now)
		case basicReturn:
			p.returned++
		default:
			if err := p.c.control(f); err != nil {
				return err
			}
		}
	}
	p.confirmedNow.Store(p.tag - uint64(p.open))
	return nil
}

// confirm settles one tag, or all open ones up to it.
func (p *publisher) confirm(tag uint64, multiple, nack bool, now int64) {
	if multiple && tag == 0 {
		tag = p.tag // "all so far"
	}
	if p.due == nil || tag < p.low || tag > p.tag {
		p.strange++
		return
	}
	from := tag
	if multiple {
		from = p.low
	}
	for t := from; t <= tag; t++ {
		slot := &p.due[t&p.dueMask]
		if *slot == settledSlot {
			if !multiple {
				p.strange++
			}
			continue
		}
		if p.run.measured(*slot) {
			record(p.confirmNanos, now-*slot)
		}
		if p.run.measured(now) && !nack {
			p.inWindow++
		}
		if nack {
			p.nacked[t] = struct{}{}
		}
		*slot = settledSlot
		p.open--
	}
	p.lastAt = now
	for p.low <= p.tag && p.due[p.low&p.dueMask] == settledSlot {
		p.low++
	}
}

// unsettled reports whether a message was sent but neither confirmed nor
// refused. Only after the loop.
func (p *publisher) unsettled(tag uint64) bool {
	if p.due == nil {
		return true
	}
	return tag >= p.low && p.due[tag&p.dueMask] != settledSlot
}

// confirmed returns the number of messages that the broker took charge of.
func (p *publisher) confirmed() uint64 {
	if p.due == nil {
		return 0
	}
	return p.tag - uint64(p.open) - uint64(len(p.nacked))
}

// missed returns how many messages the schedule had for the run that never left.
func (p *publisher) missed() uint64 {
	if p.pace.interval == 0 || p.limit > 0 {
		return 0
	}
	return p.pace.dueBy(p.run.measureTo-1) - p.tag
}

// errUnconfirmed is wrapped by the error of a run that waited in vain.
var errUnconfirmed = errors.New("confirms are missing")

// check reports what the loop leaves open.
func (p *publisher) check() error {
	if p.open > 0 && !p.run.stop.Load() {
		return fmt.Errorf("publisher %d: %w: %d of %d messages after %v",
			p.index, errUnconfirmed, p.open, p.tag, p.run.cfg.DrainTimeout)
	}
	return nil
}
