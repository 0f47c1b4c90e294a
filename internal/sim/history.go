package sim

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// What must hold, and the name under which its violation is reported:
//
//	lost          a confirmed message is in its queues until its settlement is committed
//	twice         a message is stored once in each of its queues
//	order         messages of one publisher's session are stored in order, fresh ones
//	              delivered in order
//	ghost         nothing is stored or delivered that nobody published, nowhere else
//	settled       nothing is settled that nobody settled; nothing settled is delivered
//	held          within a term no message is with two consumers
//	flag          what was delivered before is flagged as redelivered
//	leaders       two nodes never act as leader of a shard at once
//	replicas      replicas apply the same commands, and are in equal states at equal indexes
//	unread        what is delivered can be read, and is what was published
//	payload       what a node sends to another is what it has in its log
//	start, shard  nodes start, shards don't fail, whatever was cut off
//	panic         nothing in the product gives up
//	stuck         once all is well again, everything that was asked for is answered

// Violation is what the checker found.
type Violation struct {
	Kind string
	Text string
	At   time.Duration
	About
}

// About names what a violation concerns; zero values are nothing.
type About struct {
	Log     msg.LogID
	Offset  msg.Offset
	Message uint64
}

func (v *Violation) Error() string {
	s := fmt.Sprintf("%s at %.6f s: %s", v.Kind, v.At.Seconds(), v.Text)
	if v.About != (About{}) {
		s += fmt.Sprintf(" (log %d, offset %d, message %d)", v.Log, v.Offset, v.Message)
	}
	return s
}

// message is something that a client published.
type message struct {
	id      uint64
	session uint64 // of the publisher
	targets []*logRef
	stored  int // in how many
	asked   int // shards that were asked to store it
	done    int // of them, how many have confirmed
}

// logRef is what must be in a log.
type logRef struct {
	id      msg.LogID
	shard   uint32
	made    bool
	sealed  bool
	deleted bool
	closing bool // its deletion was asked for
	counts  bool // deliveries are counted
	items   []item
	last    map[uint64]uint64 // per publisher's session, the last message stored

	purges    int    // asked for and not answered
	purgeTerm uint64 // of the latest
	freshTerm uint64
	fresh     msg.Offset // the next one never delivered in freshTerm
}

// item is a message in a log.
type item struct {
	message   uint64
	settledAt uint64 // index of the command that settled it, 0 = none
	asked     uint8  // reasons for which somebody settled it, as bits
	ackTerm   uint64 // term in which its holder settled it
	delivered bool
	attempts  uint32
	holder    *session
	holdTerm  uint64
}

// held says whether a consumer that lives has the message.
func (it *item) held() bool { return it.holder != nil && !it.holder.gone }

// shardRef is what a shard's replicas applied.
type shardRef struct {
	commands map[command]uint32 // checksum of the submission
	last     command
	hashes   map[uint64]uint64 // ledger before the index
}

type command struct {
	index uint64
	part  int
}

// checker is the history of a run, and the judge of it.
type checker struct {
	w        *World
	found    *Violation
	shards   map[uint32]*shardRef
	logs     map[msg.LogID]*logRef
	messages []*message // by id - 1
	op       msg.Op
}

func newChecker(w *World) *checker {
	return &checker{w: w, shards: map[uint32]*shardRef{}, logs: map[msg.LogID]*logRef{}}
}

func (c *checker) fail(kind, format string, args ...any) { c.failAbout(About{}, kind, format, args...) }

func (c *checker) failAbout(a About, kind, format string, args ...any) {
	if c.found == nil {
		c.found = &Violation{Kind: kind, Text: fmt.Sprintf(format, args...), About: a, At: c.w.now}
		c.w.say("found: %v", c.found)
		c.w.say("%s", c.w.describe())
	}
}

func (c *checker) about(l *logRef, off msg.Offset) About {
	a := About{Log: l.id, Offset: off}
	if off < uint64(len(l.items)) {
		a.Message = l.items[off].message
	}
	return a
}

// tell prints what concerns the watched message.
func (c *checker) tell(a About, format string, args ...any) {
	w := c.w
	if w.Say == nil || w.Watch == (About{}) {
		return
	}
	same := a.Message != 0 && a.Message == w.Watch.Message || a.Log == w.Watch.Log && a.Offset == w.Watch.Offset && a.Log != 0
	if same {
		w.say(format, args...)
	}
}

func (c *checker) shard(id uint32) *shardRef {
	s := c.shards[id]
	if s == nil {
		s = &shardRef{commands: map[command]uint32{}, hashes: map[uint64]uint64{}}
		c.shards[id] = s
	}
	return s
}

// watched is a machine under the checker's eyes.
type watched struct {
	shard.Machine
	n      *node
	inc    int
	id     uint32
	index  uint64
	ledger *queue.Ledger
}

// hashEvery is at which indexes replicas are compared.
const hashEvery = 16

// Apply implements shard.Machine.
func (m *watched) Apply(c *shard.Command) shard.Result {
	k := m.n.w.check
	ref := k.shard(m.id)
	if c.Index != m.index && c.Index%hashEvery == 0 {
		k.compare(m, ref, c.Index)
	}
	m.index = c.Index
	first := k.applied(m, ref, c)
	res := m.Machine.Apply(c)
	if first {
		k.tails(m, c)
	}
	return res
}

// Reset implements shard.Machine: a snapshot of another node is loaded next.
func (m *watched) Reset() {
	m.n.w.stats.Snapshots++
	m.index = 0
	m.Machine.Reset()
}

// compare checks the state before a command against that of other replicas.
func (c *checker) compare(m *watched, ref *shardRef, index uint64) {
	h := m.ledger.HashAll()
	if was, ok := ref.hashes[index]; ok && was != h {
		c.fail("replicas", "shard %d: node %d is in another state before entry %d", m.id, m.n.id, index)
	}
	ref.hashes[index] = h
}

// applied follows a command into the history; true if no replica had applied it before.
func (c *checker) applied(m *watched, ref *shardRef, cmd *shard.Command) bool {
	key, crc := command{cmd.Index, cmd.Part}, msg.CRC(cmd.Sub)
	c.w.note(noteApply, uint64(m.id)<<32|m.n.id, cmd.Index, uint64(crc))
	if was, ok := ref.commands[key]; ok {
		if was != crc {
			c.fail("replicas", "shard %d: node %d applies another command %d.%d than was applied before", m.id, m.n.id, key.index, key.part)
		}
		return false
	}
	if key.index < ref.last.index || key.index == ref.last.index && key.part < ref.last.part {
		c.fail("replicas", "shard %d: node %d applies command %d.%d, which others passed over", m.id, m.n.id, key.index, key.part)
		return false
	}
	ref.commands[key], ref.last = crc, key
	err := cmd.Sub.Ops(&c.op, func(_ int, op *msg.Op) bool {
		c.apply(m, cmd, op)
		return true
	})
	if err != nil {
		c.fail("ghost", "shard %d: command %d.%d: %v", m.id, key.index, key.part, err)
	}
	return true
}

func (c *checker) apply(m *watched, cmd *shard.Command, op *msg.Op) {
	l := c.logs[op.Log]
	switch op.Kind {
	case msg.OpAppend:
		c.applyAppend(cmd, op)
		return
	case msg.OpEnsure:
		if l != nil && !l.deleted {
			l.made = true
		}
		return
	}
	if l == nil || !l.made || l.deleted {
		return
	}
	switch op.Kind {
	case msg.OpSettle:
		for _, r := range op.Ranges {
			for off := r.First; off < r.First+r.Count; off++ {
				c.settle(l, off, op.Reason, cmd.Index)
			}
		}
	case msg.OpReturn:
		for _, r := range op.Ranges {
			c.tell(c.about(l, r.First), "returned by command %d", cmd.Index)
		}
	case msg.OpSeal:
		l.sealed = true
	case msg.OpUnseal:
		l.sealed = false
	case msg.OpDelete:
		l.deleted = true
		if !l.closing {
			c.failAbout(About{Log: l.id}, "settled", "shard %d: nobody asked for the deletion of log %d", m.id, l.id)
		}
	}
}

func (c *checker) applyAppend(cmd *shard.Command, op *msg.Op) {
	for _, t := range op.Targets {
		l := c.logs[t.Log]
		if msg.IsOutbox(t.Log) {
			continue // what is owed counts when it arrives
		}
		if l == nil {
			c.failAbout(About{Log: t.Log}, "ghost", "an append to a log that nobody made")
			continue
		}
		if !l.made || l.sealed && !op.Forced || l.deleted {
			continue
		}
		run := cmd.Sub.Records(op)
		for range op.N {
			raw, err := run.Next()
			if err != nil || raw == nil {
				c.failAbout(About{Log: t.Log}, "ghost", "command %d: a record that isn't one: %v", cmd.Index, err)
				return
			}
			c.store(l, raw, cmd.Index)
		}
	}
}

// store follows one appended message.
func (c *checker) store(l *logRef, raw []byte, index uint64) {
	off := uint64(len(l.items))
	id, ok := c.identify(raw)
	l.items = append(l.items, item{message: id})
	a := c.about(l, off)
	if !ok {
		c.failAbout(a, "ghost", "what is stored was never published so")
		return
	}
	m := c.messages[id-1]
	c.tell(a, "stored by command %d as offset %d of log %d", index, off, l.id)
	found := false
	for _, t := range m.targets {
		found = found || t == l
	}
	if !found {
		c.failAbout(a, "ghost", "stored in a log that it was not published to")
	}
	switch last := l.last[m.session]; {
	case last == id:
		c.failAbout(a, "twice", "stored twice in log %d", l.id)
	case last > id:
		c.failAbout(a, "order", "stored after message %d of the same session", last)
	}
	l.last[m.session] = id
	m.stored++
}

// tails compares the ledger with what the history says of a command's logs.
func (c *checker) tails(m *watched, cmd *shard.Command) {
	err := cmd.Sub.Ops(&c.op, func(_ int, op *msg.Op) bool {
		for _, t := range op.Targets {
			l := c.logs[t.Log]
			if ln, ok := m.ledger.Lane(t.Log, t.Lane); ok && l != nil && ln.Tail() != uint64(len(l.items)) {
				c.failAbout(About{Log: t.Log}, "replicas", "node %d: log ends at %d, not at %d", m.n.id, ln.Tail(), len(l.items))
			}
		}
		return true
	})
	if err != nil {
		c.fail("ghost", "command %d: %v", cmd.Index, err)
	}
}

// settle follows one settlement into the history.
func (c *checker) settle(l *logRef, off msg.Offset, why msg.Reason, index uint64) {
	if off >= uint64(len(l.items)) {
		c.failAbout(c.about(l, off), "settled", "settled before it was stored")
		return
	}
	it := &l.items[off]
	if it.settledAt != 0 {
		return
	}
	it.settledAt = index
	a := c.about(l, off)
	c.tell(a, "settled (reason %d) by command %d", why, index)
	switch {
	case why == msg.Purged && l.purges > 0:
		if it.held() && it.holdTerm == l.purgeTerm {
			c.failAbout(a, "settled", "purged while a consumer had it")
		}
	case it.asked&(1<<why) == 0:
		c.failAbout(a, "settled", "settled for reason %d, which nobody asked for", why)
	}
}

// delivered is called when a shard's loop hands messages to a consumer.
func (c *checker) delivered(s *session, d *queue.Delivery) {
	l, n := s.log, s.n
	core := n.eng.Shard(l.shard).Core()
	term, _ := core.Term()
	for _, o := range c.w.nodes {
		if t, leads := o.leads(l.shard); o != n && leads {
			c.fail("leaders", "nodes %d (term %d) and %d (term %d) lead shard %d", n.id, term, o.id, t, l.shard)
		}
	}
	if l.freshTerm != term {
		l.freshTerm, l.fresh = term, 0
		c.w.stats.Leaders++
	}
	for off := d.First; off < d.First+uint64(d.Count); off++ {
		a := c.about(l, off)
		c.w.note(noteDeliver, l.id, off, s.id)
		if off >= uint64(len(l.items)) {
			c.failAbout(a, "ghost", "delivered before it was stored")
			return
		}
		c.tell(a, "delivered by node %d in term %d to consumer %d, redelivered %v", n.id, term, s.id, d.Redelivered)
		c.deliver(s, &l.items[off], d, a, term, core.Applied())
	}
	if !d.Redelivered {
		if d.First < l.fresh {
			c.failAbout(c.about(l, d.First), "order", "delivered as fresh after offset %d", l.fresh-1)
		}
		l.fresh = d.First + uint64(d.Count)
	}
}

func (c *checker) deliver(s *session, it *item, d *queue.Delivery, a About, term, applied uint64) {
	switch {
	case it.settledAt != 0 && it.settledAt <= applied:
		c.failAbout(a, "settled", "delivered after command %d settled it", it.settledAt)
	case it.ackTerm == term:
		c.failAbout(a, "settled", "delivered after its holder settled it in the same term")
	case it.held() && it.holdTerm == term:
		c.failAbout(a, "held", "delivered to consumer %d while consumer %d has it", s.id, it.holder.id)
	case it.delivered && !d.Redelivered:
		c.failAbout(a, "flag", "delivered again without the flag")
	case d.Attempts < it.attempts:
		c.failAbout(a, "flag", "delivered with count %d after %d", d.Attempts, it.attempts)
	}
	it.delivered, it.attempts = true, d.Attempts
	if it.holder, it.holdTerm = s, term; s.noAck {
		it.holder = nil
	}
}

// received is called when a consumer has read a message.
func (c *checker) received(l *logRef, off msg.Offset, rec *msg.Record) {
	a := c.about(l, off)
	if id := idOf(rec.Body); !intact(rec, id) || id != a.Message {
		c.failAbout(a, "unread", "what was read is not what was published, but message %d or none", id)
	}
}

// unread is called when a consumer found nothing where a delivery was.
func (c *checker) unread(l *logRef, off msg.Offset) {
	if it := &l.items[off]; it.settledAt == 0 && !l.deleted && !l.closing {
		c.failAbout(c.about(l, off), "unread", "delivered, but nowhere to be found")
	}
}

// asks notes that a consumer settles something, before it does.
func (c *checker) asks(s *session, off msg.Offset, why msg.Reason, late bool) {
	it := &s.log.items[off]
	it.asked |= 1 << why
	if !late && it.holder == s {
		it.ackTerm = it.holdTerm
	}
	c.drop(s, off)
	c.tell(c.about(s.log, off), "consumer %d settles it, reason %d, late %v", s.id, why, late)
}

// settledAll is called when a settlement was answered.
func (c *checker) settledAll(l *logRef, offs []msg.Offset) {
	for _, off := range offs {
		if l.items[off].settledAt == 0 {
			c.failAbout(c.about(l, off), "settled", "its settlement was answered, but never applied")
		}
	}
}

// drop notes that a consumer has a message no more.
func (c *checker) drop(s *session, off msg.Offset) {
	if it := &s.log.items[off]; it.holder == s {
		it.holder = nil
	}
}

// confirmed is called when a shard answers a publisher.
func (c *checker) confirmed(m *message, logs []*logRef, res shard.Result) {
	if res.Err != nil {
		c.tell(About{Message: m.id}, "refused: %v", res.Err)
		return
	}
	c.w.stats.Confirms++
	c.tell(About{Message: m.id}, "confirmed")
	m.done++
	for _, l := range logs {
		if l.last[m.session] < m.id && !l.closing {
			c.failAbout(About{Log: l.id, Message: m.id}, "lost", "confirmed without being stored in log %d", l.id)
		}
	}
}

// nodeDown ends the consumers of a node's process.
func (c *checker) nodeDown(n *node) {
	for _, s := range c.w.sessions {
		if s.n == n {
			s.gone = true
		}
	}
	c.w.sessions = sweep(c.w.sessions)
}

// lane0 compares a replica with the history, once everything is quiet.
func (c *checker) lane0(n *node, sh *engine.Shard, l *logRef) {
	ln, ok := sh.Machine().Ledger().Lane(l.id, 0)
	if ok != (l.made && !l.deleted) {
		c.failAbout(About{Log: l.id}, "replicas", "node %d: log exists: %v", n.id, ok)
	}
	if !ok {
		return
	}
	if ln.Tail() != uint64(len(l.items)) {
		c.failAbout(About{Log: l.id}, "lost", "node %d: log ends at %d, not at %d", n.id, ln.Tail(), len(l.items))
	}
	for off := range l.items {
		if ln.IsSettled(uint64(off)) != (l.items[off].settledAt != 0) {
			c.failAbout(c.about(l, uint64(off)), "replicas", "node %d: settled: %v", n.id, ln.IsSettled(uint64(off)))
		}
	}
}

// handler is where a node's log messages go.
func (c *checker) handler(n *node) slog.Handler { return &logHandler{w: c.w, n: n} }

type logHandler struct {
	w *World
	n *node
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(context.Context, slog.Level) bool { return h.w.Say != nil }

// Handle implements slog.Handler.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	s := r.Message
	r.Attrs(func(a slog.Attr) bool { s += " " + a.String(); return true })
	h.w.say("node %d logs: %s", h.n.id, s)
	return nil
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(string) slog.Handler { return h }
