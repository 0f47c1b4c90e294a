package queue

import (
	"errors"
	"slices"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
)

// The reference of the dispatch: the state of each message, judged after the fact. It
// doesn't say who gets a message next; it says what must never happen, and that what can
// be delivered is delivered.

type simState uint8

const (
	simReady simState = iota
	simInFlight
	simLeaving // settlement submitted, not applied
	simHeld
	simTx // held by a transaction
	simSettled
	simUnclaimed // perhaps delivered by an earlier leader
)

type simMessage struct {
	state    simState
	holder   *simConsumer
	term     int // term of the last delivery, 0 = never delivered
	attempts uint32
}

type simLane struct {
	messages []simMessage
	mark     msg.Offset // reserved when the term began
	asked    bool
	end      msg.Offset // of what may be unclaimed
	last     msg.Offset // after all that was delivered in earlier terms
}

type simConsumer struct {
	Consumer
	inFlight int
	attached bool
	holds    map[laneKey][]msg.Offset // until it has come back from an earlier term
}

type simPool struct {
	room    int64
	starved bool // granted nothing since the last kick
}

func (p *simPool) Take(n int64) int64 {
	if n <= 0 {
		panic("took nothing")
	}
	g := max(min(n, p.room), 0)
	p.room -= g
	p.starved = p.starved || g == 0
	return g
}

func (p *simPool) Give(n int64) { p.room += n }

// simOp is something submitted that has not been applied.
type simOp struct {
	key     laneKey
	ranges  []msg.Range
	reserve msg.Offset // reserve instead of settle
	hold    msg.TxID   // hold instead of settle
	unhold  msg.TxID   // unhold instead of settle
	by      *simConsumer
}

type laneKey struct {
	log  msg.LogID
	lane uint8
}

type dispatchMachine struct {
	l         *Ledger
	d         *Dispatch
	term      int
	lanes     map[laneKey]*simLane
	consumers []*simConsumer // attached, or with messages in flight
	away      []*simConsumer // of an earlier term
	pools     []*simPool
	held      []simOp
	queue     []simOp // in order of submission
	txs       []simOp // holds that are applied and whose end was not submitted
	nextID    uint64
	nextTx    uint64
	delivered int // by the last run
}

const (
	simLogs         = 3
	simMessagesRoom = 10
)

func newDispatchMachine() *dispatchMachine {
	m := &dispatchMachine{l: NewLedger(), term: 1, lanes: map[laneKey]*simLane{}}
	for log := msg.LogID(1); log <= simLogs; log++ {
		m.l.Ensure(log, nil)
		m.lanes[laneKey{log, 0}] = &simLane{}
	}
	m.d = NewDispatch(m.l, m)
	m.pools = []*simPool{{room: simMessagesRoom}, {room: 500}, {room: 4000}}
	return m
}

// Locate makes sources of 10 messages and messages of 1 to 700 bytes.
func (m *dispatchMachine) Locate(log msg.LogID, lane uint8, off msg.Offset, most uint64) (Source, uint64, uint64) {
	n := min(most, 10-off%10)
	return Source{Ref: off / 10}, n, n * simSize(off)
}

func simSize(off msg.Offset) uint64 {
	if off/10%60 == 7 {
		return 300_000 // several turns' worth
	}
	return 1 + off/10*97%700
}

func (m *dispatchMachine) key(t *rapid.T) laneKey {
	return laneKey{rapid.Uint64Range(1, simLogs).Draw(t, "log"), rapid.SampledFrom([]uint8{0, 0, 0, 5, 9}).Draw(t, "lane")}
}

func (m *dispatchMachine) append(t *rapid.T) {
	k := m.key(t)
	n := rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(1, 300), rapid.IntRange(1, 6000)).Draw(t, "n")
	o := m.l.Append(k.log, k.lane, n, nil)
	if o.Code == Unknown {
		return
	}
	s := m.lanes[k]
	if s == nil {
		s = &simLane{}
		m.lanes[k] = s
	}
	if o.First != uint64(len(s.messages)) {
		t.Fatalf("appended at %d, want %d", o.First, len(s.messages))
	}
	s.messages = append(s.messages, make([]simMessage, n)...)
	m.d.Appended(k.log, k.lane, o.First, uint64(n))
}

func (m *dispatchMachine) attach(t *rapid.T) {
	if len(m.consumers) > 8 {
		return
	}
	m.nextID++
	c := &simConsumer{Consumer: Consumer{
		ID: m.nextID, Log: rapid.Uint64Range(1, simLogs+1).Draw(t, "log"),
		Prefetch:  rapid.SampledFrom([]uint32{0, 1, 2, 10, 5000}).Draw(t, "prefetch"),
		NoAck:     rapid.IntRange(0, 4).Draw(t, "noack") == 0,
		Exclusive: rapid.IntRange(0, 9).Draw(t, "exclusive") == 0,
	}}
	c.User = c
	switch rapid.IntRange(0, 5).Draw(t, "pools") {
	case 0:
		c.Messages = m.pools[0]
	case 1:
		c.Bytes = m.pools[1]
	case 2:
		c.Messages, c.Bytes = m.pools[0], m.pools[2]
	}
	var want error
	others, exclusive := 0, false
	for _, o := range m.consumers {
		if o.attached && o.Log == c.Log {
			others++
			exclusive = exclusive || o.Exclusive
		}
	}
	switch {
	case !m.l.Has(c.Log):
		want = ErrUnknownLog
	case m.d.Gathering():
		want = ErrGathering
	case exclusive:
		want = ErrExclusive
	case c.Exclusive && others > 0:
		want = ErrInUse
	}
	if err := m.d.Attach(&c.Consumer); !errors.Is(err, want) {
		t.Fatalf("Attach: %v, want %v", err, want)
	}
	if want == nil {
		c.attached = true
		m.consumers = append(m.consumers, c)
		if err := m.d.Attach(&c.Consumer); !errors.Is(err, ErrAttached) {
			t.Fatalf("Attach again: %v", err)
		}
	}
}

func (m *dispatchMachine) consumer(t *rapid.T) *simConsumer {
	if len(m.consumers) == 0 {
		t.Skip("no consumer")
	}
	return rapid.SampledFrom(m.consumers).Draw(t, "consumer")
}

// holding calls fn with each lane of which c holds messages and their offsets.
func (m *dispatchMachine) holding(c *simConsumer, fn func(k laneKey, s *simLane, offs []msg.Offset)) {
	for log := msg.LogID(1); log <= simLogs; log++ {
		for _, lane := range []uint8{0, 5, 9} {
			k := laneKey{log, lane}
			s := m.lanes[k]
			if s == nil {
				continue
			}
			var offs []msg.Offset
			for i := range s.messages {
				if s.messages[i].state == simInFlight && s.messages[i].holder == c {
					offs = append(offs, msg.Offset(i))
				}
			}
			if len(offs) > 0 {
				fn(k, s, offs)
			}
		}
	}
}

// some draws some of offs: the first, the last, every second.
func some(t *rapid.T, offs []msg.Offset) []msg.Offset {
	n := rapid.IntRange(1, len(offs)).Draw(t, "some")
	switch rapid.IntRange(0, 2).Draw(t, "which") {
	case 0:
		return offs[:n]
	case 1:
		return offs[len(offs)-n:]
	}
	var out []msg.Offset
	for i := 0; i < len(offs); i += 2 {
		out = append(out, offs[i])
	}
	return out
}

func toRanges(offs []msg.Offset) (rs []msg.Range) {
	for _, o := range offs {
		rs = appendRange(rs, o, o+1)
	}
	return rs
}

func (m *dispatchMachine) ack(t *rapid.T) {
	c := m.consumer(t)
	m.holding(c, func(k laneKey, s *simLane, offs []msg.Offset) {
		offs = some(t, offs)
		for _, o := range offs {
			s.messages[o].state = simLeaving
		}
		c.inFlight -= len(offs)
		m.d.Acked(&c.Consumer, k.log, k.lane, uint64(len(offs)))
		m.queue = append(m.queue, simOp{key: k, ranges: toRanges(offs), by: c})
	})
}

func (m *dispatchMachine) giveBack(t *rapid.T, c *simConsumer, all bool) {
	m.holding(c, func(k laneKey, s *simLane, offs []msg.Offset) {
		if !all {
			offs = some(t, offs)
		}
		count := rapid.Bool().Draw(t, "count")
		for _, o := range offs {
			s.messages[o].state, s.messages[o].holder = simReady, nil
			if count {
				s.messages[o].attempts++
			}
		}
		c.inFlight -= len(offs)
		rs := toRanges(offs)
		for _, r := range rs {
			m.l.Return(k.log, k.lane, r, count)
		}
		if rapid.Bool().Draw(t, "backwards") {
			slices.Reverse(rs)
		}
		m.d.Return(&c.Consumer, k.log, k.lane, rs)
	})
}

func (m *dispatchMachine) detach(t *rapid.T) {
	c := m.consumer(t)
	m.d.Detach(&c.Consumer)
	c.attached = false
	if rapid.Bool().Draw(t, "return") { // else it is a cancel: the messages stay with the channel
		m.giveBack(t, c, true)
	}
	m.forgetIdle()
}

func (m *dispatchMachine) forgetIdle() {
	m.consumers = slices.DeleteFunc(m.consumers, func(c *simConsumer) bool { return !c.attached && c.inFlight == 0 })
}

func (m *dispatchMachine) get(t *rapid.T) {
	log := rapid.Uint64Range(1, simLogs).Draw(t, "log")
	c := &simConsumer{Consumer: Consumer{ID: ^uint64(0), Log: log, NoAck: rapid.Bool().Draw(t, "noack")}}
	c.User = c
	del, status := m.d.Get(log, &c.Consumer)
	switch status {
	case GetEmpty:
		if n := m.counts(log).Ready + m.counts(log).Unclaimed; n > 0 {
			t.Fatalf("Get found nothing, %d are ready", n)
		}
	case GetFound:
		if !del.Get || del.Count != 1 {
			t.Fatalf("%+v", del)
		}
		m.consumers = append(m.consumers, c)
		m.receive(t, &del)
		m.forgetIdle()
	case GetWait:
		m.ask(t)
		if !m.waiting(log) {
			t.Fatal("Get waits, but no reservation is on its way")
		}
	}
}

// waiting says whether a reservation of a lane of the log is on its way.
func (m *dispatchMachine) waiting(log msg.LogID) bool {
	for k, s := range m.lanes {
		if k.log == log && s.asked {
			return true
		}
	}
	for _, h := range m.held {
		if h.key.log == log {
			return true // the reservation waits for the purge
		}
	}
	return m.counts(log).Unclaimed > 0 || slices.ContainsFunc(m.queue, func(o simOp) bool { return o.key.log == log })
}

// firstReady returns the offset that is to be delivered next from a log.
func (m *dispatchMachine) firstReady(log msg.LogID) (laneKey, msg.Offset, bool) {
	for _, lane := range []uint8{9, 5, 0} {
		k := laneKey{log, lane}
		if s := m.lanes[k]; s != nil {
			for i := range s.messages {
				if s.messages[i].state == simReady {
					return k, msg.Offset(i), true
				}
			}
		}
	}
	return laneKey{}, 0, false
}

// receive judges a delivery.
func (m *dispatchMachine) receive(t *rapid.T, d *Delivery) {
	c := d.Consumer.User.(*simConsumer)
	k, first, ok := m.firstReady(d.Log)
	if !ok || k.lane != d.Lane || first != d.First || d.Count == 0 {
		t.Fatalf("delivered %d of lane %d, first ready is %d of lane %d (%v)", d.First, d.Lane, first, k.lane, ok)
	}
	s := m.lanes[k]
	m.checkOrder(t, s, d.First)
	ln, _ := m.l.Lane(k.log, k.lane)
	for o := d.First; o < d.First+uint64(d.Count); o++ {
		x := &s.messages[o]
		switch {
		case x.state != simReady:
			t.Fatalf("%d is delivered in state %d", o, x.state)
		case d.Redelivered != (x.term == m.term || o < s.mark):
			t.Fatalf("%d redelivered: %v, delivered in term %d of %d, mark %d", o, d.Redelivered, x.term, m.term, s.mark)
		case x.term > 0 && !d.Redelivered:
			t.Fatalf("%d is delivered again without a flag", o)
		case d.Attempts != x.attempts:
			t.Fatalf("attempts of %d: %d, want %d", o, d.Attempts, x.attempts)
		case o >= ln.Reserved():
			t.Fatalf("%d is delivered beyond the reserved mark %d", o, ln.Reserved())
		case d.Src.Ref != o/10:
			t.Fatalf("%d lies in source %d", o, d.Src.Ref)
		}
		x.term = m.term
		if c.NoAck {
			x.state = simLeaving
		} else {
			x.state, x.holder = simInFlight, c
		}
	}
	if c.NoAck {
		m.queue = append(m.queue, simOp{key: k, ranges: []msg.Range{{First: d.First, Count: uint64(d.Count)}}, by: c})
	} else {
		c.inFlight += int(d.Count)
	}
	if d.Bytes != uint64(d.Count)*simSize(d.First) {
		t.Fatalf("%d bytes for %d messages of %d", d.Bytes, d.Count, simSize(d.First))
	}
	if c.Prefetch > 0 && !c.NoAck && c.inFlight > int(c.Prefetch) {
		t.Fatalf("%d in flight with prefetch %d", c.inFlight, c.Prefetch)
	}
	if !c.NoAck && c.InFlight() != uint64(c.inFlight) {
		t.Fatalf("InFlight %d, want %d", c.InFlight(), c.inFlight)
	}
	if p, ok := c.Bytes.(*simPool); ok && p.room < 0 && (d.Count > 1 || p.room <= -int64(d.Bytes)) {
		t.Fatalf("pool overdrawn to %d by %d messages of %d bytes", p.room, d.Count, d.Bytes)
	}
	m.delivered++
}

func (m *dispatchMachine) run(t *rapid.T) {
	m.runFor(t, rapid.IntRange(1, 200).Draw(t, "deliveries"))
}

func (m *dispatchMachine) runFor(t *rapid.T, most int) bool {
	m.delivered = 0
	more := m.d.Run(most, func(d *Delivery) { m.receive(t, d) })
	if m.delivered > most {
		t.Fatalf("%d deliveries, limit %d", m.delivered, most)
	}
	m.forgetIdle()
	return more
}

func (m *dispatchMachine) ask(t *rapid.T) {
	m.d.WantReserve(func(log msg.LogID, lane uint8, upto msg.Offset) {
		s := m.lanes[laneKey{log, lane}]
		if s.asked {
			t.Fatalf("lane %d of log %d is reported twice", lane, log)
		}
		s.asked = true
		m.queue = append(m.queue, simOp{key: laneKey{log, lane}, reserve: upto})
	})
}

// commit applies the oldest operations.
func (m *dispatchMachine) commit(n int) {
	n = min(n, len(m.queue))
	for _, o := range m.queue[:n] {
		s, ok := m.lanes[o.key], m.l.Has(o.key.log)
		if !ok {
			continue
		}
		if o.reserve > 0 {
			m.l.Reserve(o.key.log, o.key.lane, o.reserve)
			s.asked = false
			m.d.Reserved(o.key.log, o.key.lane)
			continue
		}
		if o.hold.N > 0 {
			m.applyHold(o)
			continue
		}
		if o.unhold.N > 0 {
			m.applyUnhold(o.unhold)
			continue
		}
		for _, r := range o.ranges {
			newly := m.l.Settle(o.key.log, o.key.lane, r, msg.Acked)
			for i := r.First; i < r.First+r.Count; i++ {
				s.messages[i].state = simSettled
			}
			m.d.Settled(o.key.log, o.key.lane, r, newly)
		}
	}
	m.queue = slices.Delete(m.queue, 0, n)
}

// lose gives a reservation up.
func (m *dispatchMachine) lose(t *rapid.T) {
	i := slices.IndexFunc(m.queue, func(o simOp) bool { return o.reserve > 0 })
	if i < 0 {
		return
	}
	k := m.queue[i].key
	m.queue = slices.Delete(m.queue, i, i+1)
	m.lanes[k].asked = false
	m.d.Reserved(k.log, k.lane)
}

func (m *dispatchMachine) purge(t *rapid.T) {
	log := rapid.Uint64Range(1, simLogs).Draw(t, "log")
	want := m.counts(log).Ready
	for _, h := range m.d.HoldAll(log) {
		k := laneKey{log, h.Lane}
		for _, r := range h.Ranges {
			for i := r.First; i < r.First+r.Count; i++ {
				if x := &m.lanes[k].messages[i]; x.state != simReady {
					t.Fatalf("held %d in state %d", i, x.state)
				} else {
					x.state = simHeld
				}
			}
			want -= r.Count
		}
		m.held = append(m.held, simOp{key: k, ranges: h.Ranges})
	}
	if want != 0 {
		t.Fatalf("%d were ready and not held", want)
	}
}

func (m *dispatchMachine) endPurge(t *rapid.T) {
	if len(m.held) == 0 {
		return
	}
	h := m.held[0]
	m.held = m.held[1:]
	if rapid.Bool().Draw(t, "settle") {
		m.queue = append(m.queue, h)
		return
	}
	for _, r := range h.ranges {
		for i := r.First; i < r.First+r.Count; i++ {
			m.lanes[h.key].messages[i].state = simReady
		}
	}
	m.d.Release(h.key.log, h.key.lane, h.ranges)
}

func (m *dispatchMachine) room(t *rapid.T) {
	p := rapid.SampledFrom(m.pools[1:]).Draw(t, "pool") // bytes: written by the connection
	p.room = rapid.Int64Range(0, 5000).Draw(t, "room")
	m.kick()
}

// kick does what sessions owe: tell of room after a grant of nothing.
func (m *dispatchMachine) kick() {
	for _, p := range m.pools {
		if !p.starved || p.room <= 0 {
			continue
		}
		p.starved = false
		for _, c := range m.consumers {
			if c.Messages == Pool(p) || c.Bytes == Pool(p) {
				m.d.Kick(&c.Consumer)
			}
		}
	}
}

func (m *dispatchMachine) drop(t *rapid.T) {
	if rapid.IntRange(0, 15).Draw(t, "really") > 0 {
		return
	}
	log := rapid.Uint64Range(1, simLogs).Draw(t, "log")
	want := 0
	for _, c := range m.consumers {
		if c.attached && c.Log == log {
			want++
		}
	}
	m.l.Delete(log)
	for _, c := range m.d.Drop(log) {
		want--
		if c.User.(*simConsumer).Log != log {
			t.Fatal("dropped a consumer of another log")
		}
		c.User.(*simConsumer).attached = false
	}
	if want != 0 {
		t.Fatalf("%d consumers too few", want)
	}
	for _, c := range m.consumers { // the session acknowledges what it has
		m.holding(c, func(k laneKey, _ *simLane, offs []msg.Offset) {
			if k.log == log {
				c.inFlight -= len(offs)
				m.d.Acked(&c.Consumer, k.log, k.lane, uint64(len(offs)))
			}
		})
	}
	for _, lane := range []uint8{0, 5, 9} {
		delete(m.lanes, laneKey{log, lane})
	}
	m.dropAway(log)
	m.held = slices.DeleteFunc(m.held, func(o simOp) bool { return o.key.log == log })
	m.queue = slices.DeleteFunc(m.queue, func(o simOp) bool { return o.key.log == log })
	m.txs = slices.DeleteFunc(m.txs, func(o simOp) bool { return o.key.log == log })
	m.forgetIdle()
}
