package shard

import (
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/sluicemq/sluice/internal/hist"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/wal"
)

// publishBytesMax bounds the submissions that may block their sender: bytes that are
// in a shard's inbox or ordered but not applied. At the bound SubmitWait blocks, so the
// connection stops reading. Settlements are never refused: they are bounded by what
// was delivered.
const publishBytesMax = 8 << 20

// retryEvery is how often writes refused for lack of space are tried again.
const retryEvery = 50 * time.Millisecond

// Turner is what a Shard runs: a Core, or a machine that orders its commands without
// a log. All methods are called by the loop.
type Turner interface {
	Submit(s Sub)
	// Turn does what there is to do; true: call again without waiting for input.
	Turn() (more bool)
	// Stop fails what is pending.
	Stop()
}

// Shard runs a Turner on a goroutine of its own.
type Shard struct {
	turner Turner
	core   *Core // the turner if it is one, else nil
	id     uint32

	in struct {
		sync.Mutex
		subs  []Sub
		calls []func()
		stop  bool
	}
	wake chan struct{}
	done chan struct{}
	// pause is how others wait for a shard without a loop, see Stepped.
	pause func(atMost time.Duration) bool

	bytes  atomic.Int64 // of submissions not applied
	room   chan struct{}
	blocks atomic.Int32 // senders waiting in SubmitWait
	table  atomic.Pointer[wal.ShardState]
	turns  hist.Histogram // how long turns took

	// The turn: held by whoever runs the Turner, the loop or a caller of runHere. It
	// guards the Turner and what follows.
	turn     sync.Mutex
	subs     []Sub
	calls    []func()
	nextTick time.Time
	asleep   time.Time // until when the loop sleeps unless it is woken; zero: no limit
	more     bool      // the last turn left something to do
}

// New recovers a shard; Start lets it run. cfg.Post and cfg.PostHere are set here.
func New(cfg Config, r Restored) (*Shard, error) {
	s := &Shard{
		id: cfg.ID, wake: make(chan struct{}, 1), done: make(chan struct{}),
		room: make(chan struct{}, 1),
	}
	cfg.Post = func(fn func()) { s.Post(fn) }
	cfg.PostHere = s.postHere
	core, err := NewCore(cfg, r)
	if err != nil {
		return nil, err
	}
	s.core, s.turner = core, core
	s.publishTable()
	return s, nil
}

// NewWith makes a shard around another Turner.
func NewWith(id uint32, t Turner) *Shard {
	return &Shard{
		id: id, turner: t, wake: make(chan struct{}, 1), done: make(chan struct{}), room: make(chan struct{}, 1),
	}
}

// Start begins the loop.
func (s *Shard) Start() { go s.run() }

// Done is closed when the loop has ended.
func (s *Shard) Done() <-chan struct{} { return s.done }

// ID returns the shard's number.
func (s *Shard) ID() uint32 { return s.id }

// Core returns the state machine, for functions that Post or Call runs; nil if the
// shard was made by NewWith.
func (s *Shard) Core() *Core { return s.core }

// Turns returns how long the shard's turns took; those that found nothing to do aren't
// counted. While a turn lasts everything else of the shard waits. Safe for concurrent
// use.
func (s *Shard) Turns() hist.Snapshot { return s.turns.Snapshot() }

// Table returns the last published row for the head of a WAL file; safe for concurrent
// use.
func (s *Shard) Table() wal.ShardState { return *s.table.Load() }

// publishTable makes the row for WAL file headers visible when it has changed. Its
// commit index may lag: the WAL takes that from what it wrote itself.
func (s *Shard) publishTable() {
	if s.core == nil {
		return
	}
	t := s.core.Table(0)
	if old := s.table.Load(); old == nil || old.FirstIndex != t.FirstIndex || old.Term != t.Term || old.Vote != t.Vote {
		s.table.Store(&t)
	}
}

// Submit hands a submission over. It never blocks and never refuses: for settlements,
// and for what is bounded otherwise.
func (s *Shard) Submit(sub Sub) {
	sub.size = int64(sub.Chunk.Len())
	s.bytes.Add(sub.size)
	s.in.Lock()
	if s.in.stop {
		s.in.Unlock()
		s.bytes.Add(-sub.size)
		sub.fail(s.id, ErrStopped)
		return
	}
	s.in.subs = append(s.in.subs, sub)
	s.in.Unlock()
	s.kick()
}

// SubmitWait is Submit for messages: it first waits while too much is outstanding, and
// they are refused while there is only room for settling. It returns
// early when stop is closed; the submission is handed over all the same.
func (s *Shard) SubmitWait(sub Sub, stop <-chan struct{}) {
	for s.bytes.Load() > publishBytesMax {
		s.blocks.Add(1)
		if s.bytes.Load() <= publishBytesMax {
			// There was room before the loop could see that somebody waits for it.
			s.blocks.Add(-1)
			break
		}
		select {
		case <-s.room:
		case <-stop:
			s.blocks.Add(-1)
			sub.messages = true
			s.Submit(sub)
			return
		case <-s.done:
		}
		s.blocks.Add(-1)
		if s.stopped() {
			break
		}
	}
	s.signalRoom() // pass the word on to the next one waiting
	sub.messages = true
	s.Submit(sub)
}

func (s *Shard) stopped() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *Shard) signalRoom() {
	if s.blocks.Load() > 0 && s.bytes.Load() <= publishBytesMax {
		select {
		case s.room <- struct{}{}:
		default:
		}
	}
}

// Post runs fn on the loop, later. After Stop it is dropped: false.
func (s *Shard) Post(fn func()) bool {
	s.in.Lock()
	stopped := s.in.stop
	if !stopped {
		s.in.calls = append(s.in.calls, fn)
	}
	s.in.Unlock()
	s.kick()
	return !stopped
}

// Stepped says that nobody calls Start: the owner calls Step, and who waits for the
// shard calls pause over and over, which lets the owner go on for a while; false: give
// up. Called once, before anything else.
func (s *Shard) Stepped(pause func(atMost time.Duration) bool) { s.pause = pause }

// Step is one round of the loop, without its timers. It returns true when it should be
// called again without waiting for input.
func (s *Shard) Step() (more bool) {
	if s.stopped() {
		return false
	}
	more, stop := s.step(false)
	if stop {
		close(s.done)
	}
	return more
}

// await waits for a shard without a loop until something has happened.
func (s *Shard) await(happened func() bool) bool {
	for !happened() {
		if s.stopped() || !s.pause(0) {
			return false
		}
	}
	return true
}

// Await returns the first result that is sent on ch, of a submission's Completer; with
// ErrStopped if the shard has ended without one.
func (s *Shard) Await(ch <-chan Result) (res Result) {
	if s.pause == nil {
		select {
		case res = <-ch:
			return res
		case <-s.done:
		}
		if !arrived(ch, &res) {
			res.Err = ErrStopped
		}
		return res
	}
	if !s.await(func() bool { return arrived(ch, &res) }) {
		res.Err = ErrStopped
	}
	return res
}

func arrived(ch <-chan Result, res *Result) bool {
	select {
	case *res = <-ch:
		return true
	default:
		return false
	}
}

// AwaitFor waits for a result, but not longer than d, and says whether there was one.
func (s *Shard) AwaitFor(ch <-chan Result, d time.Duration) bool {
	var res Result
	if s.pause != nil {
		return arrived(ch, &res) || s.pause(d) && arrived(ch, &res)
	}
	select {
	case <-ch:
		return true
	case <-time.After(d):
		return false
	}
}

// Call runs fn on the loop and waits for it; false when the shard has stopped. Never
// call it from the loop.
func (s *Shard) Call(fn func()) bool {
	if s.pause != nil {
		ran := false
		return s.Post(func() { fn(); ran = true }) && s.await(func() bool { return ran })
	}
	ran := make(chan struct{})
	s.Post(func() { fn(); close(ran) })
	select {
	case <-ran:
		return true
	case <-s.done:
		select {
		case <-ran:
			return true
		default:
			return false
		}
	}
}

// Receive hands over a message of another replica.
func (s *Shard) Receive(m *pb.Message, bodies []Body) {
	s.Post(func() { s.core.Receive(m, bodies) })
}

// Offer hands over submissions of another node's link.
func (s *Shard) Offer(parts []msg.Part) { s.Post(func() { s.core.Offer(parts) }) }

// Missing hands over what Core.Missing takes.
func (s *Shard) Missing(term, want uint64) { s.Post(func() { s.core.Missing(term, want) }) }

func (s *Shard) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Stop ends the loop; what was not applied fails.
func (s *Shard) Stop() {
	s.in.Lock()
	s.in.stop = true
	s.in.Unlock()
	s.kick()
	if s.pause != nil {
		s.Step()
		return
	}
	<-s.done
}

func (s *Shard) run() {
	defer close(s.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		s.turn.Lock()
		more, stop := s.step(false)
		s.asleep = s.dueAt()
		until := s.asleep
		s.turn.Unlock()
		if stop {
			return
		}
		if !more {
			s.sleep(timer, until)
		}
	}
}

// step takes what has come in and does one turn. stop: the Turner was stopped; not on
// another goroutine than the loop's, which is told to look again instead.
func (s *Shard) step(elsewhere bool) (more, stop bool) {
	select {
	case <-s.wake: // taken: what follows sees everything up to here
	default:
	}
	s.in.Lock()
	if s.in.stop && elsewhere {
		s.in.Unlock()
		return true, false
	}
	s.subs, s.in.subs = s.in.subs, s.subs[:0]
	s.calls, s.in.calls = s.in.calls, s.calls[:0]
	stop = s.in.stop
	s.in.Unlock()
	begun := time.Now()
	busy := len(s.calls) > 0 || len(s.subs) > 0 || s.more || !s.asleep.IsZero() && !begun.Before(s.asleep)
	for i, fn := range s.calls {
		fn()
		s.calls[i] = nil
	}
	for i := range s.subs {
		s.subs[i].account = &s.bytes
		s.turner.Submit(s.subs[i])
		s.subs[i] = Sub{}
	}
	if stop {
		s.turner.Stop()
		return false, true
	}
	if s.pause == nil {
		s.nextTick = s.tick(s.nextTick)
	}
	more = s.turner.Turn()
	s.publishTable()
	s.signalRoom()
	if s.more = more; busy || more {
		s.turns.Record(time.Since(begun))
	}
	return more, false
}

// postHere is Post, but runs a turn here and now if nobody else does: for a goroutine
// that has just brought what the shard waits for, and would else have to wake another
// thread to use it. fn must be short, and so must what it makes possible.
func (s *Shard) postHere(fn func()) {
	s.in.Lock()
	stop := s.in.stop
	if !stop {
		s.in.calls = append(s.in.calls, fn)
	}
	s.in.Unlock()
	if stop || s.pause != nil || !s.turn.TryLock() {
		s.kick()
		return
	}
	more, _ := s.step(true)
	until := s.dueAt()
	more = more || !until.IsZero() && (s.asleep.IsZero() || until.Before(s.asleep))
	s.turn.Unlock()
	if more {
		s.kick()
	}
}

// tick serves raft's timer and the retrying of refused writes.
func (s *Shard) tick(next time.Time) time.Time {
	if !s.ticking() {
		return next
	}
	now := time.Now()
	if now.Before(next) {
		return next
	}
	s.Tick()
	return now.Add(TickEvery)
}

// Tick advances raft's timers and tries refused writes again. Called by the loop, or by
// the owner of a shard that is Stepped.
func (s *Shard) Tick() {
	if !s.core.Alone() {
		s.core.Tick()
	} else {
		s.core.Retry()
	}
}

func (s *Shard) ticking() bool { return s.core != nil && (!s.core.Alone() || s.core.Starved()) }

// dueAt tells when there is something to do even if nothing comes in; zero: never.
func (s *Shard) dueAt() (until time.Time) {
	if s.core == nil {
		return until
	}
	until = s.core.WaitUntil()
	if s.ticking() {
		if s.nextTick.IsZero() {
			s.nextTick = time.Now().Add(retryEvery)
		}
		if until.IsZero() || s.nextTick.Before(until) {
			until = s.nextTick
		}
	}
	return until
}

// sleep waits for input or until something is due.
func (s *Shard) sleep(timer *time.Timer, until time.Time) {
	if until.IsZero() {
		<-s.wake
		s.kick() // step takes it
		return
	}
	timer.Reset(time.Until(until))
	select {
	case <-s.wake:
		s.kick()
	case <-timer.C:
	}
}
