package sim

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// queueRef is a queue as clients see it: the log behind it may be replaced.
type queueRef struct {
	shard uint32
	log   *logRef
}

// bodyOf is the body of a message: its number, and filler that follows from it, of some
// length and now and then a much greater one.
func bodyOf(id uint64, usual, longest int) []byte {
	n := int(id*2654435761>>9) % usual
	if id%23 == 0 {
		n = int(id*2654435761>>7) % longest
	}
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 8+n), id)
	for i := range n {
		b = append(b, byte(id*131+uint64(i)))
	}
	return b
}

func idOf(body []byte) uint64 {
	if len(body) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(body)
}

// intact says whether a record is what a publisher made of a number.
func intact(rec *msg.Record, id uint64) bool {
	if string(rec.Key) != "key" || len(rec.Body) < 8 {
		return false
	}
	for i, b := range rec.Body[8:] {
		if b != byte(id*131+uint64(i)) {
			return false
		}
	}
	return true
}

// identify finds out which message a record is; false if it is none as published.
func (c *checker) identify(raw []byte) (uint64, bool) {
	rec, _, err := msg.ParseRecord(raw)
	if err != nil {
		return 0, false
	}
	id := idOf(rec.Body)
	if id == 0 || id > uint64(len(c.messages)) {
		return 0, false
	}
	return id, string(rec.Body) == string(bodyOf(id, c.w.p.Body, c.w.p.BodyMax)) && intact(&rec, id)
}

// publisher publishes through a node of its choice, as a session per connection.
type publisher struct {
	w       *World
	n       *node
	inc     int
	session uint64
	txs     uint64 // the session's number for transactions, whose way may be longer
	open    int    // messages of the session that are not confirmed
	pause   time.Duration
}

func (b *publisher) run(p *proc) {
	for p.sleep(b.w.between(b.pause/4, b.pause*2)) && !b.w.quieting {
		if b.n == nil || !b.n.up || b.n.inc != b.inc || b.w.chance(0.002) {
			b.connect()
		}
		switch {
		case b.n == nil || b.open >= 200:
		case b.w.p.Shards > 1 && b.w.chance(b.w.p.Tx):
			b.commit()
		default:
			b.publish(1 + b.w.rng.IntN(b.w.p.Burst))
		}
	}
}

func (b *publisher) connect() {
	b.n = b.w.nodes[b.w.rng.IntN(len(b.w.nodes))]
	if !b.n.up {
		b.n = nil
		return
	}
	b.w.lastSession += 2
	b.inc, b.session, b.txs, b.open = b.n.inc, b.w.lastSession, b.w.lastSession-1, 0
}

// batch is a submission of a publisher.
type batch struct {
	b       *publisher
	session uint64
	list    []published
}

type published struct {
	m    *message
	logs []*logRef
}

// Completed implements shard.Completer.
func (t *batch) Completed(_ uint32, _ uint64, res shard.Result) {
	for _, x := range t.list {
		t.b.w.check.confirmed(x.m, x.logs, res)
	}
	if t.b.session == t.session {
		t.b.open -= len(t.list)
	}
}

// publish sends some messages, each to one or several queues.
func (b *publisher) publish(count int) {
	w := b.w
	builders, batches := map[uint32]*msg.Builder{}, map[uint32]*batch{}
	for range count {
		to := b.choose()
		if len(to) == 0 {
			continue
		}
		w.stats.Published++
		m := &message{id: uint64(len(w.check.messages) + 1), session: b.session}
		w.check.messages = append(w.check.messages, m)
		per := map[uint32][]*logRef{}
		for _, q := range to {
			m.targets = append(m.targets, q.log)
			per[q.shard] = append(per[q.shard], q.log)
		}
		for id := uint32(1); id <= uint32(w.p.Shards); id++ {
			logs := per[id]
			if len(logs) == 0 {
				continue
			}
			if builders[id] == nil {
				builders[id], batches[id] = &msg.Builder{}, &batch{b: b, session: b.session}
			}
			w.appendTo(builders[id], m, logs)
			batches[id].list = append(batches[id].list, published{m, logs})
			m.asked++
			b.open++
		}
		w.check.tell(About{Message: m.id}, "published through node %d, session %d", b.n.id, b.session)
	}
	for id := uint32(1); id <= uint32(w.p.Shards); id++ {
		if builders[id] != nil {
			b.n.eng.Shard(id).Submit(shard.Sub{Chunk: builders[id].Finish(), Done: batches[id]})
		}
	}
	b.n.kick()
}

// appendTo adds a message for some logs of one shard.
func (w *World) appendTo(b *msg.Builder, m *message, logs []*logRef) {
	targets := make([]msg.Target, len(logs))
	for i, l := range logs {
		targets[i].Log = l.id
	}
	e := &msg.Envelope{Format: msg.FormatAMQP091, Key: []byte("key"), TimeMS: int64(m.id)}
	b.Append(targets, e, bodyOf(m.id, w.p.Body, w.p.BodyMax))
}

// commit publishes a message to queues of several shards in one command: one shard gets
// its part, and what it owes the others. Which one is fixed for a session, or its
// transactions would not be in order.
func (b *publisher) commit() {
	w := b.w
	per := map[uint32][]*logRef{}
	m := &message{session: b.txs}
	for _, q := range w.queues {
		if q.log.made && w.chance(0.7) {
			m.targets = append(m.targets, q.log)
			per[q.shard] = append(per[q.shard], q.log)
		}
	}
	if len(m.targets) == 0 {
		return
	}
	m.id = uint64(len(w.check.messages) + 1)
	w.check.messages = append(w.check.messages, m)
	w.stats.Published++
	w.stats.Transactions++
	coord := uint32(b.txs/2%uint64(w.p.Shards)) + 1
	var sub msg.Builder
	for id := uint32(1); id <= uint32(w.p.Shards); id++ {
		switch {
		case len(per[id]) == 0:
		case id == coord:
			w.appendTo(&sub, m, per[id])
		default:
			inner := msg.Builder{Forced: true}
			w.appendTo(&inner, m, per[id])
			c := inner.Finish()
			sub.Owe(id, c.Bytes())
			c.Release()
		}
	}
	m.asked++
	b.open++
	w.check.tell(About{Message: m.id}, "published in a transaction through node %d, session %d", b.n.id, b.txs)
	done := &batch{b: b, session: b.session, list: []published{{m, per[coord]}}}
	b.n.eng.Shard(coord).Submit(shard.Sub{Chunk: sub.Finish(), Done: done})
	b.n.kick()
}

// choose picks distinct queues.
func (b *publisher) choose() []*queueRef {
	qs := b.w.queues
	n := 1
	if b.w.chance(0.2) {
		n = 1 + b.w.rng.IntN(len(qs))
	}
	from := b.w.rng.IntN(len(qs))
	out := make([]*queueRef, 0, n)
	for i := range n {
		if q := qs[(from+i)%len(qs)]; q.log.made {
			out = append(out, q)
		}
	}
	return out
}

// session is a consumer on its connection to the node that leads the queue's shard.
type session struct {
	w     *World
	id    uint64
	n     *node
	inc   int
	q     *queueRef
	log   *logRef
	term  uint64
	noAck bool
	gone  bool // closed, or its node is

	ec     *engine.Consumer
	sh     *engine.Shard
	reader engine.Reader
	inbox  []queue.Delivery
	held   []msg.Offset // read, not settled
	got    bool         // the answer to a get is there
}

// Base implements engine.Based.
func (s *session) Base() *engine.Consumer { return s.ec }

// Deliver implements engine.Sink.
func (s *session) Deliver(d *queue.Delivery) {
	s.w.check.delivered(s, d)
	s.inbox = append(s.inbox, *d)
	if s.w.faulty && !d.Redelivered && s.w.chance(s.w.p.Spite) {
		s.n.disk.armed, s.n.disk.left = true, s.w.rng.IntN(3)
	}
}

// GetFailed implements Sink.
func (s *session) GetFailed(uint64, error) {}

// Got implements engine.Sink.
func (s *session) Got(_ uint64, d *queue.Delivery, _ uint64) {
	s.got = true
	if d != nil {
		s.Deliver(d)
	}
}

// Canceled implements engine.Sink.
func (s *session) Canceled(*engine.Consumer) {}

// Hungry implements engine.Sink.
func (s *session) Hungry(queue.Pool) {}

// valid says whether the connection and the leader's term go on.
func (s *session) valid() bool {
	if s.gone || !s.n.up || s.n.inc != s.inc {
		return false
	}
	term, leading := s.sh.Core().Term()
	return leading && term == s.term && !s.log.deleted
}

// sweep leaves out what is gone.
func sweep(list []*session) []*session {
	return slices.DeleteFunc(list, func(s *session) bool { return s.gone })
}

// consume is the life of a consumer: one session after the other.
func (w *World) consume(p *proc) {
	for p.sleep(w.between(time.Millisecond, w.p.Session/20)) && !w.quieting {
		q := w.queues[w.rng.IntN(len(w.queues))]
		n := w.leader(q.shard)
		if n == nil || !q.log.made {
			continue
		}
		s := w.newSession(n, q, w.chance(0.15))
		s.live(p, w.between(50*time.Millisecond, w.p.Session))
	}
}

func (w *World) newSession(n *node, q *queueRef, noAck bool) *session {
	w.lastSession++
	s := &session{w: w, id: w.lastSession, n: n, inc: n.inc, q: q, log: q.log, noAck: noAck, sh: n.eng.Shard(q.shard)}
	s.term, _ = s.sh.Core().Term()
	qc := queue.Consumer{ID: s.id, Log: s.log.id, NoAck: noAck, User: s}
	if !w.draining && w.chance(0.8-0.3*w.p.Scatter) {
		qc.Prefetch = uint32(1 + w.rng.IntN(40))
	}
	s.ec = s.sh.NewConsumer(qc, s)
	w.sessions = append(w.sessions, s)
	return s
}

// live attaches, works for a while, and leaves in one of several ways.
func (s *session) live(p *proc, d time.Duration) {
	w := s.w
	defer s.reader.Close()
	gets := !s.noAck && w.chance(0.15)
	if !gets {
		if err := s.sh.Attach(s.ec, func() { s.term, _ = s.sh.Core().Term() }); err != nil {
			s.close()
			return
		}
		w.stats.Attached++
	}
	pace := w.between(time.Millisecond, 40*time.Millisecond)
	for end := w.now + d; w.now < end && p.sleep(w.between(pace/4, pace*2)) && s.valid(); {
		if gets {
			s.sh.Get(s.ec, 0)
			s.n.kick()
		}
		s.read()
		s.work()
	}
	s.leave(p)
}

// read turns deliveries into messages.
func (s *session) read() {
	for i := range s.inbox {
		d := &s.inbox[i]
		next := d.First
		err := s.reader.Each(d, func(off msg.Offset, rec *msg.Record) error {
			for ; next < off; next++ {
				s.w.check.unread(s.log, next)
			}
			s.w.check.received(s.log, off, rec)
			next = off + 1
			return nil
		})
		if s.n.crashed() {
			return
		}
		if err != nil {
			s.w.check.failAbout(s.w.check.about(s.log, next), "unread", "node %d: %v", s.n.id, err)
		}
		for ; next < d.First+uint64(d.Count); next++ {
			s.w.check.unread(s.log, next)
		}
		for off := d.First; off < d.First+uint64(d.Count); off++ {
			s.held = append(s.held, off)
		}
		s.w.stats.Delivered += int(d.Count)
	}
	s.inbox = s.inbox[:0]
}

// work settles some of what the consumer has.
func (s *session) work() {
	w := s.w
	if len(s.held) == 0 {
		return
	}
	if s.noAck {
		s.settle(s.take(len(s.held), false), msg.Acked, false)
		return
	}
	k := 1 + w.rng.IntN(len(s.held))
	if w.chance(w.p.Scatter) {
		k = 1 + k/8
	}
	switch x := w.rng.IntN(20); {
	case x < 11:
		s.settle(s.take(k, w.chance(w.p.Scatter)), msg.Acked, false)
	case x < 13:
		s.settle(s.take(min(k, 3), true), msg.Rejected, false)
	case x < 15:
		s.settle(s.take(min(k, 5), true), 0, true)
	}
}

// take removes k messages from what is held, the oldest or any, sorted.
func (s *session) take(k int, anyOfThem bool) []msg.Offset {
	if anyOfThem {
		s.w.rng.Shuffle(len(s.held), func(i, j int) { s.held[i], s.held[j] = s.held[j], s.held[i] })
	}
	out := slices.Clone(s.held[:k])
	s.held = slices.Delete(s.held, 0, k)
	slices.Sort(out)
	return out
}

func rangesOf(offs []msg.Offset) (rs []msg.Range) {
	for _, o := range offs {
		if n := len(rs); n > 0 && rs[n-1].First+rs[n-1].Count == o {
			rs[n-1].Count++
		} else {
			rs = append(rs, msg.Range{First: o, Count: 1})
		}
	}
	return rs
}

// settle acks, rejects or gives back.
func (s *session) settle(offs []msg.Offset, why msg.Reason, requeue bool) {
	if len(offs) == 0 {
		return
	}
	for _, o := range offs {
		if requeue {
			s.w.check.drop(s, o)
		} else {
			s.w.check.asks(s, o, why, false)
		}
	}
	s.w.stats.Settled += len(offs)
	s.sh.Settle([]engine.Settled{{Consumer: s.ec, Ranges: rangesOf(offs), Requeue: requeue, Reason: why}}, s.w.chance(0.7), &settled{s, offs, requeue}, 0)
	s.n.kick()
}

// settled is a settlement that is on its way.
type settled struct {
	s       *session
	offs    []msg.Offset
	requeue bool
}

// Completed implements shard.Completer.
func (t *settled) Completed(_ uint32, _ uint64, res shard.Result) {
	if res.Err == nil && !t.requeue && !t.s.log.deleted {
		t.s.w.check.settledAll(t.s.log, t.offs)
	}
}

// leave ends the session. Of what it holds when its leader is gone it settles some all
// the same, through another node: it can't know better.
func (s *session) leave(p *proc) {
	w := s.w
	valid := s.valid()
	late := s.held
	if valid && w.chance(0.3) {
		s.sh.Detach(s.ec)
		if p.sleep(w.between(0, 50*time.Millisecond)) && s.valid() {
			s.read()
			s.work()
		}
	}
	up := s.n.up && s.n.inc == s.inc
	s.close()
	if up && s.n.up && s.n.inc == s.inc {
		s.sh.Release(s.ec)
	}
	if valid || len(late) == 0 || w.chance(0.5) || w.quieting {
		return
	}
	if n := w.nodes[w.rng.IntN(len(w.nodes))]; n.up && !s.noAck {
		slices.Sort(late)
		for _, o := range late {
			w.check.asks(s, o, msg.Acked, true)
		}
		var b msg.Builder
		b.Settle(s.log.id, 0, msg.Acked, rangesOf(late))
		n.eng.Shard(s.q.shard).Submit(shard.Sub{Chunk: b.Finish()})
		n.kick()
	}
}

// close forgets the consumer: what it holds is free for others.
func (s *session) close() {
	s.gone = true
	s.w.sessions = sweep(s.w.sessions)
}
