package engine

import (
	"maps"
	"slices"
	"sync"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// gateway is the node's side of its own consumers: they outlive the shard's leaders. While
// this node leads they are in its dispatch directly; while another does, their calls are
// messages to it, and what they hold is only known here.
type gateway struct {
	consumers map[uint64]*Consumer // attached, attaching or with something in flight

	leader  uint64 // node; 0: none known
	term    uint64
	run     uint64 // of this process, over all terms
	in, out uint64 // sequences in the run
	began   int    // tick in which the run began
	again   bool   // another is due: not two in one tick, or each message would cause one
}

// elsewhere is the part of a Consumer that its gateway keeps.
type elsewhere struct {
	wants   bool        // the session wants deliveries
	joining func(error) // Attach has not been answered
	ready   func()
	// granted of the pools to the leader and not used by it.
	grantedMessages, grantedBytes int64
	wantMessages, wantBytes       int64 // the pools had nothing for what the leader asked

	mu      sync.Mutex        // guards records
	records map[uint64][]byte // deliveries that were not read yet
	nextRef uint64
}

// holding returns what c holds, lanes in order.
func (c *Consumer) holding() (claims []Claim) {
	for _, n := range slices.Sorted(maps.Keys(c.inflight)) {
		if rs := c.inflight[n].AppendRanges(nil, 0, queue.NoOffset); len(rs) > 0 {
			claims = append(claims, Claim{Log: c.Log, Lane: n, Ranges: rs})
		}
	}
	return claims
}

func (c *Consumer) spec() Spec {
	return Spec{
		ID: c.ID, Log: c.Log, Prefetch: c.Prefetch, NoAck: c.NoAck, Exclusive: c.Exclusive,
		Attached: c.wants && c.joining == nil, Messages: c.Messages != nil, Bytes: c.Bytes != nil,
	}
}

// feed gives units back to the pools of c, and tells the session if others wait for them.
func (c *Consumer) feed(messages, bytes int64) {
	if messages != 0 && c.Messages != nil {
		c.Messages.Give(messages)
		c.fed()
	}
	if bytes != 0 && c.Bytes != nil {
		c.Bytes.Give(bytes)
		if p, ok := c.Bytes.(interface{ Hungry() bool }); ok && p.Hungry() {
			c.Sink.Hungry(c.Bytes)
		}
	}
}

// ungrant takes back what a leader has not used.
func (c *Consumer) ungrant() {
	m, b := c.grantedMessages, c.grantedBytes
	c.grantedMessages, c.grantedBytes, c.wantMessages, c.wantBytes = 0, 0, 0, 0
	c.feed(m, b)
}

// refuse takes from c what it may not keep.
func (c *Consumer) refuse(n uint8, rs []msg.Range) {
	if _, count := c.letGo(n, rs); count > 0 && !c.NoAck {
		c.feed(int64(count), 0)
	}
}

func (c *Consumer) keep(records []byte) (ref uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records == nil {
		c.records = map[uint64][]byte{}
	}
	c.nextRef++
	c.records[c.nextRef] = records
	return c.nextRef
}

func (c *Consumer) takeRecords(ref uint64) (records []byte, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	records, ok = c.records[ref]
	delete(c.records, ref)
	return records, ok
}

func (c *Consumer) dropRecords() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records = nil
}

// own lists the node's consumers by ID.
func (m *Machine) own() (cs []*Consumer) {
	for _, id := range slices.Sorted(maps.Keys(m.gw.consumers)) {
		cs = append(cs, m.gw.consumers[id])
	}
	return cs
}

func (m *Machine) know(c *Consumer) {
	if m.gw.consumers == nil {
		m.gw.consumers = map[uint64]*Consumer{}
	}
	m.gw.consumers[c.ID] = c
	p, _ := m.ledger.Profile(c.Log)
	c.counts = p.CountDeliveries
}

// attach begins to attach c; done is told on the loop, perhaps later: a leader lets it in
// while its lease holds, for another may lead by now.
func (m *Machine) attach(c *Consumer, ready func(), done func(error)) {
	if !m.leading && m.cluster == nil {
		done(ErrStopped)
		return
	}
	if c.attached || c.joining != nil {
		done(queue.ErrAttached)
		return
	}
	m.know(c)
	c.wants, c.ready, c.joining = true, ready, done
	if m.leading {
		m.joiners = append(m.joiners, c)
	} else {
		m.toLeader(&Message{Kind: MsgAttach, Consumers: []Spec{c.spec()}})
	}
}

// joined ends attach.
func (m *Machine) joined(c *Consumer, err error) {
	ready, done := c.ready, c.joining
	c.ready, c.joining = nil, nil
	if err != nil {
		c.wants = false
		delete(m.gw.consumers, c.ID)
	} else {
		ready()
	}
	done(err)
}

// toLeader sends something of the current run, if another node leads.
func (m *Machine) toLeader(x *Message) {
	if m.gw.leader == 0 || m.leading {
		return // the next run tells it
	}
	m.gw.out++
	x.From, x.Term, x.Run, x.Seq = m.link, m.gw.term, m.gw.run, m.gw.out
	m.cluster.Send(m.id, m.gw.leader, x)
}

// rejoin brings the node's own consumers into the dispatch of a term that begins here.
func (m *Machine) rejoin() {
	m.gw.leader, m.gw.term = 0, m.term
	if len(m.gw.consumers) == 0 && m.cluster == nil {
		return
	}
	leaving, returning := m.onItsWay()
	for _, h := range leaving {
		m.dispatch.ClaimLeaving(h.Log, h.Lane, h.Ranges)
	}
	m.returning = laneSets{}
	for _, h := range returning {
		m.returning.add(h.Log, h.Lane, without(h.Ranges, m.dispatch.ClaimLeaving(h.Log, h.Lane, h.Ranges)))
	}
	for _, c := range m.own() {
		c.ungrant()
		if c.wants && c.joining == nil {
			if err := m.dispatch.Reattach(&c.Consumer); err != nil {
				m.canceled(c)
			} else {
				c.attached = true
			}
		}
		for _, h := range c.holding() {
			c.refuse(h.Lane, m.claim(c, h.Lane, h.Ranges))
		}
	}
}

// onItsWay lists what this node settles and returns by submissions that are not applied.
func (m *Machine) onItsWay() (leaving, returning []Claim) {
	if m.links != nil {
		m.links.Pending(func(seq uint64, sub msg.Submission) {
			l, r := onItsWay(seq, sub)
			leaving, returning = append(leaving, l...), append(returning, r...)
		})
	}
	for _, k := range m.taken.lanes() {
		leaving = append(leaving, Claim{k.log, k.lane, queue.NoOffset, m.taken[k].AppendRanges(nil, 0, queue.NoOffset)})
	}
	return leaving, returning
}

// canceled ends a consumer against its session's will.
func (m *Machine) canceled(c *Consumer) {
	c.attached = false
	if c.wants {
		c.wants = false
		c.Sink.Canceled(c)
	}
}

// restartRun begins a new run of the same term, since something was lost.
func (m *Machine) restartRun() {
	if m.gw.again = m.gw.began == m.ticks; !m.gw.again {
		m.startRun()
	}
}

// startRun tells the leader everything that it must know of this node's consumers.
func (m *Machine) startRun() {
	g := &m.gw
	g.run++
	g.in, g.out, g.began, g.again = 0, 0, m.ticks, false
	x := &Message{Kind: MsgReattach, From: m.link, Term: g.term, Run: g.run}
	x.Leaving, x.Returning = m.onItsWay()
	var joining []*Consumer
	for _, c := range m.own() {
		c.ungrant()
		s := c.spec()
		s.Claims = c.holding()
		if s.Attached || len(s.Claims) > 0 {
			x.Consumers = append(x.Consumers, s)
		}
		if c.joining != nil {
			joining = append(joining, c)
		}
	}
	m.cluster.Send(m.id, g.leader, x)
	for _, c := range joining {
		m.toLeader(&Message{Kind: MsgAttach, Consumers: []Spec{c.spec()}})
	}
	for _, w := range m.waitingGets {
		m.toLeader(&Message{Kind: MsgGet, Consumers: []Spec{w.c.spec()}, Token: w.token})
	}
}

// fromLeader takes a message of whoever leads.
func (m *Machine) fromLeader(x *Message) {
	g := &m.gw
	node := x.From >> 32
	switch {
	case x.Term < max(g.term, m.term) || m.leading && x.Term == m.term:
		return
	case x.Kind == MsgLead && x.Term > g.term:
		if m.leading { // the Core has not heard of it
			m.Follow()
		}
		g.leader, g.term = node, x.Term
		m.startRun()
		return
	case x.Kind == MsgLead && (x.Run != g.run || x.Seq > g.in || node != g.leader):
		g.leader = node
		m.restartRun()
		return
	case x.Kind == MsgLead || x.Term != g.term || x.Run != g.run || node != g.leader || x.Seq <= g.in:
		return
	case x.Seq != g.in+1:
		m.restartRun()
		return
	}
	g.in++
	c := g.consumers[x.Consumer]
	if c == nil {
		return // it was released; the leader will hear of it
	}
	switch x.Kind {
	case MsgAttached:
		m.attachedElsewhere(c, x)
	case MsgDeliver:
		m.deliverHere(c, x)
	case MsgGot:
		m.gotHere(c, x)
	case MsgWant:
		c.wantMessages, c.wantBytes = x.Messages, x.Bytes
		m.grant(c)
	case MsgRefund:
		c.grantedMessages -= x.Messages
		c.grantedBytes -= x.Bytes
		c.feed(x.Messages, x.Bytes)
	}
}

func (m *Machine) attachedElsewhere(c *Consumer, x *Message) {
	for _, h := range x.Claims {
		c.refuse(h.Lane, h.Ranges)
	}
	switch {
	case c.joining != nil:
		m.joined(c, x.Code.err())
	case x.Code != AttachOK:
		m.canceled(c)
	}
}

// delivery makes the local form of one from elsewhere, and holds it.
func (m *Machine) delivery(c *Consumer, x *Message) queue.Delivery {
	c.hold(x.Lane, msg.Range{First: x.First, Count: uint64(x.Count)})
	return queue.Delivery{
		Consumer: &c.Consumer, Log: c.Log, Lane: x.Lane, Redelivered: x.Redelivered, Attempts: x.Attempts,
		First: x.First, Count: x.Count, Bytes: uint64(x.Bytes), Get: x.Kind == MsgGot,
		Src: queue.Source{Kind: srcPeer, Ref: c.keep(x.Records)},
	}
}

func (m *Machine) deliverHere(c *Consumer, x *Message) {
	if !c.NoAck {
		c.grantedMessages -= int64(x.Count)
	}
	c.grantedBytes -= x.Bytes
	if c.grantedMessages < 0 || c.Messages == nil {
		c.grantedMessages = 0
	}
	if b := c.grantedBytes; b < 0 || c.Bytes == nil {
		c.grantedBytes = 0
		c.feed(0, b) // one that was larger than the room
	}
	if !c.wants { // sent before the leader heard that it was canceled
		if !c.NoAck {
			c.feed(int64(x.Count), 0)
		}
		c.feed(0, x.Bytes)
		m.toLeader(&Message{Kind: MsgReturn, Consumer: c.ID, Claims: []Claim{{Log: c.Log, Lane: x.Lane, Ranges: []msg.Range{{First: x.First, Count: uint64(x.Count)}}}}})
		return
	}
	d := m.delivery(c, x)
	c.Sink.Deliver(&d)
}

func (m *Machine) gotHere(c *Consumer, x *Message) {
	i := slices.IndexFunc(m.waitingGets, func(g *get) bool { return g.c == c && g.token == x.Token })
	if i < 0 {
		return
	}
	m.waitingGets = slices.Delete(m.waitingGets, i, i+1)
	if x.Count == 0 {
		c.Sink.Got(x.Token, nil, 0)
		return
	}
	d := m.delivery(c, x)
	c.Sink.Got(x.Token, &d, x.Left)
}

// grant gives the leader what it asked for, if both pools have something.
func (m *Machine) grant(c *Consumer) {
	if c.wantMessages == 0 && c.wantBytes == 0 {
		return
	}
	var messages, bytes int64
	if c.wantMessages > 0 && c.Messages != nil {
		if messages = c.Messages.Take(c.wantMessages); messages == 0 {
			return // the session kicks c
		}
	}
	if c.wantBytes > 0 && c.Bytes != nil {
		if bytes = c.Bytes.Take(c.wantBytes); bytes == 0 {
			c.feed(messages, 0)
			return
		}
	}
	c.grantedMessages += messages
	c.grantedBytes += bytes
	c.wantMessages, c.wantBytes = 0, 0
	m.toLeader(&Message{Kind: MsgGrant, Consumer: c.ID, Messages: messages, Bytes: bytes})
}

// settleElsewhere is settleSoft for a consumer whose log another node leads, or nobody.
func (m *Machine) settleElsewhere(c *Consumer, x *Settled, held []msg.Range, n uint64) {
	claims := []Claim{{Log: c.Log, Lane: x.Lane, Ranges: held}}
	switch {
	case !x.Requeue:
		m.toLeader(&Message{Kind: MsgAcked, Consumer: c.ID, Claims: claims})
	case c.counts && !c.NoAck:
		claims[0].Seq = m.submitReturn(c.Log, x.Lane, held)
		m.toLeader(&Message{Kind: MsgReturning, Consumer: c.ID, Claims: claims})
	default:
		m.toLeader(&Message{Kind: MsgReturn, Consumer: c.ID, Claims: claims})
	}
	if !c.NoAck {
		c.feed(int64(n), 0)
	}
}

// submitReturn submits a counted return and tells its sequence in the link.
func (m *Machine) submitReturn(log msg.LogID, lane uint8, rs []msg.Range) (seq uint64) {
	var b msg.Builder
	b.Return(log, lane, true, rs)
	m.core.Submit(shard.Sub{Chunk: b.Finish()})
	if m.links != nil {
		seq = m.links.LastSeq()
	}
	return seq
}

// releaseElsewhere gives everything back that c holds.
func (m *Machine) releaseElsewhere(c *Consumer) {
	x := &Message{Kind: MsgRelease, Consumer: c.ID}
	for _, h := range c.holding() {
		if c.counts && !c.NoAck {
			h.Seq = m.submitReturn(h.Log, h.Lane, h.Ranges)
			x.Claims = append(x.Claims, h)
		}
		if !c.NoAck {
			c.feed(int64(rangesCount(h.Ranges)), 0)
		}
	}
	m.toLeader(x)
	c.ungrant()
}
