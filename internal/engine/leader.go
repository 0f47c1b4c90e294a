package engine

import (
	"maps"
	"slices"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
)

// gatherGrace is how long a new leader waits for the consumers of nodes that are alive.
const gatherGrace = time.Second

// pingTicks is every how many ticks both sides say how far they are.
const pingTicks = 10

// grantBytes is what is asked for at least when a consumer has no room.
const grantBytes = queue.TurnBytes

// remoteGateway is the gateway of another node, as the leader sees it. Owned by the loop, for one
// term.
type remoteGateway struct {
	m       *Machine
	link    uint64
	run     uint64 // 0: not heard of
	in, out uint64
	lost    bool // a message is missing: what follows waits for a new run
	told    int  // tick of the last announcement that answers a message
	proxies map[uint64]*proxy
	byLog   map[msg.LogID][]*proxy
	// Hidden from the dispatch: what is settled by a submission that is on its way from
	// there, or returned and counted.
	leaving, returning laneSets
}

func (p *remoteGateway) node() uint64 { return p.link >> 32 }

func (p *remoteGateway) send(x *Message) {
	p.out++
	x.From, x.Term, x.Run, x.Seq = p.m.link, p.m.term, p.run, p.out
	p.m.cluster.Send(p.m.id, p.node(), x)
}

// announce tells a node who leads, and how far this side is.
func (m *Machine) announce(node uint64) {
	x := &Message{Kind: MsgLead, From: m.link, Term: m.term}
	if p := m.peers[node]; p != nil && !p.lost {
		x.Run, x.Seq = p.run, p.out
	}
	m.cluster.Send(m.id, node, x)
}

// remind asks a gateway for a new run, not more than once in a tick.
func (m *Machine) remind(node uint64) {
	p := m.peers[node]
	if p == nil || p.told != m.ticks {
		m.announce(node)
	}
	if p != nil {
		p.told = m.ticks
	}
}

// beginGather announces a term that begins here.
func (m *Machine) beginGather(live []uint64) {
	m.peers = map[uint64]*remoteGateway{}
	m.deadline = m.now().Add(gatherGrace)
	for _, node := range live {
		m.announce(node)
	}
}

// maybeEndGather ends a gathering when all nodes have answered that are alive, or it has
// lasted long enough.
func (m *Machine) maybeEndGather() {
	if !m.dispatch.Gathering() {
		return
	}
	if m.now().Before(m.deadline) {
		for _, node := range m.cluster.Live() {
			if p := m.peers[node]; p == nil || p.lost {
				return
			}
		}
	}
	m.endGather()
}

// endGather lets go on who had to wait.
func (m *Machine) endGather() {
	m.dispatch.EndGather()
	for _, c := range m.own() {
		if c.joining != nil {
			m.joiners = append(m.joiners, c)
		}
	}
	m.runGathered()
}

// whenGathered calls fn when it is known what is in flight.
func (m *Machine) whenGathered(fn func()) {
	if m.leading && m.dispatch.Gathering() {
		m.gathered = append(m.gathered, fn)
	} else {
		fn()
	}
}

func (m *Machine) runGathered() {
	list := m.gathered
	m.gathered = nil
	for _, fn := range list {
		fn()
	}
}

// admit attaches new consumers; only while the lease holds.
func (m *Machine) admit() {
	list := m.joiners
	m.joiners = m.joiners[:0]
	for _, c := range list {
		x, of := c.User.(*proxy)
		switch {
		case of && x.peer.proxies[c.ID] == x && !c.attached:
			err := m.admitOne(c)
			if err != nil {
				x.peer.forget(x)
			}
			x.peer.send(&Message{Kind: MsgAttached, Consumer: c.ID, Code: codeOf(err)})
		case !of && c.joining != nil:
			m.joined(c, m.admitOne(c))
		}
	}
	clear(list)
}

func (m *Machine) admitOne(c *Consumer) error {
	if m.retiring[c.Log] {
		return queue.ErrUnknownLog
	}
	err := m.dispatch.Attach(&c.Consumer)
	c.attached = err == nil
	return err
}

// everyPeer and all list in a fixed order.
func (m *Machine) everyPeer() (ps []*remoteGateway) {
	for _, node := range slices.Sorted(maps.Keys(m.peers)) {
		ps = append(ps, m.peers[node])
	}
	return ps
}

func (p *remoteGateway) all() (xs []*proxy) {
	for _, id := range slices.Sorted(maps.Keys(p.proxies)) {
		xs = append(xs, p.proxies[id])
	}
	return xs
}

// Hear takes a message of another node's machine; on the loop.
func (m *Machine) Hear(x *Message) {
	switch {
	case m.cluster == nil:
	case x.Kind < MsgReattach:
		m.fromLeader(x)
	case m.leading && x.Term == m.term:
		m.fromGateway(x)
	}
}

func (m *Machine) fromGateway(x *Message) {
	node := x.From >> 32
	p := m.peers[node]
	if p != nil && p.link > x.From {
		return // of a process that has ended
	}
	if x.Kind == MsgReattach {
		if p != nil && p.link < x.From {
			m.dropPeer(p)
			p = nil
		}
		if p == nil {
			p = &remoteGateway{
				m: m, link: x.From, proxies: map[uint64]*proxy{}, byLog: map[msg.LogID][]*proxy{},
				leaving: laneSets{}, returning: laneSets{},
			}
			m.peers[node] = p
		}
		if x.Run > p.run {
			p.reattach(x)
		}
		return
	}
	if p == nil || p.link != x.From || x.Run > p.run {
		m.remind(node)
		return
	}
	missing := x.Seq > p.in+1 || x.Kind == MsgPing && x.Seq > p.in
	switch {
	case x.Run < p.run || p.lost:
	case missing:
		p.lost = true
		m.remind(node)
	case x.Kind != MsgPing && x.Seq == p.in+1:
		p.in++
		p.take(x)
	}
}

func (p *remoteGateway) take(x *Message) {
	if x.Kind == MsgAttach || x.Kind == MsgGet {
		for _, s := range x.Consumers {
			c := p.proxy(s)
			if x.Kind == MsgAttach {
				p.m.joiners = append(p.m.joiners, c.Consumer)
			} else {
				p.m.waitingGets = append(p.m.waitingGets, &get{c.Consumer, x.Token})
			}
		}
		return
	}
	c := p.proxies[x.Consumer]
	if c == nil {
		return
	}
	switch x.Kind {
	case MsgDetach:
		p.m.detach(c.Consumer)
		p.m.uninvite(c.Consumer)
	case MsgRelease:
		p.release(c, x.Claims)
	case MsgGrant:
		c.messages.free += x.Messages
		c.bytes.free += x.Bytes
		c.asked = false
		p.m.granted = append(p.m.granted, c)
		if c.attached {
			p.m.dispatch.Kick(&c.Consumer.Consumer)
		}
	case MsgReturn:
		for _, h := range x.Claims {
			c.giveBack(h.Lane, h.Ranges)
			p.m.unhide(c.Log, h.Lane, p.leaving.take(c.Log, h.Lane, h.Ranges))
		}
	case MsgReturning:
		p.hideReturning(c, x.Claims)
	case MsgAcked:
		for _, h := range x.Claims {
			c.acked(h.Lane, h.Ranges)
		}
	}
}

// proxy returns the one of a consumer, made if there is none.
func (p *remoteGateway) proxy(s Spec) *proxy {
	x := p.proxies[s.ID]
	if x != nil {
		return x
	}
	x = &proxy{peer: p}
	x.messages.of, x.bytes.of = x, x
	qc := queue.Consumer{ID: s.ID, Log: s.Log, Prefetch: s.Prefetch, NoAck: s.NoAck, Exclusive: s.Exclusive, User: x}
	if s.Messages {
		qc.Messages = &x.messages
	}
	if s.Bytes {
		qc.Bytes = &x.bytes
	}
	x.Consumer = p.m.shard.NewConsumer(qc, x)
	p.proxies[s.ID] = x
	p.byLog[s.Log] = append(p.byLog[s.Log], x)
	return x
}

// uninvite takes c off those that wait for admission.
func (m *Machine) uninvite(c *Consumer) {
	m.joiners = slices.DeleteFunc(m.joiners, func(o *Consumer) bool { return o == c })
}

func (p *remoteGateway) forget(x *proxy) {
	p.m.detach(x.Consumer)
	p.m.forgetGets(func(c *Consumer) bool { return c == x.Consumer })
	delete(p.proxies, x.ID)
	rest := slices.DeleteFunc(p.byLog[x.Log], func(o *proxy) bool { return o == x })
	if p.byLog[x.Log] = rest; len(rest) == 0 {
		delete(p.byLog, x.Log)
	}
}

// dropPeer gives back everything that a gateway's consumers hold, and what they have
// settled if that has not come: it may never.
func (m *Machine) dropPeer(p *remoteGateway) {
	for _, x := range p.all() {
		p.release(x, nil)
	}
	p.leaving.unhide(m)
	p.returning.unhide(m)
	delete(m.peers, p.node())
}

// reattach begins a run: what the gateway says is how it is.
func (p *remoteGateway) reattach(in *Message) {
	m := p.m
	p.run, p.in, p.out, p.lost = in.Run, 0, 0, false
	p.hideAll(in.Leaving, p.leaving)
	p.hideAll(in.Returning, p.returning)
	listed := map[uint64]bool{}
	for _, s := range in.Consumers {
		listed[s.ID] = true
	}
	for _, x := range p.all() {
		if !listed[x.ID] {
			p.release(x, nil)
		}
	}
	for _, s := range in.Consumers {
		p.comeBack(s)
	}
	m.announce(p.node())
	for _, s := range in.Consumers { // the answers begin the sequence
		if x := p.proxies[s.ID]; x != nil {
			p.answer(x, s)
		}
	}
}

// isHere says whether the submission of a claim has been applied: then the claim is old,
// and the message perhaps delivered again.
func (p *remoteGateway) isHere(h Claim) bool {
	return p.m.links != nil && h.Seq <= p.m.links.LinkApplied(p.link)
}

// hideReturning hides what x holds until its counted return is here.
func (p *remoteGateway) hideReturning(x *proxy, claims []Claim) {
	for _, h := range claims {
		if !p.isHere(h) {
			p.returning.add(x.Log, h.Lane, x.hide(h.Lane, h.Ranges))
		}
	}
}

// hideAll hides what is on its way, and not here yet.
func (p *remoteGateway) hideAll(claims []Claim, to laneSets) {
	for _, h := range claims {
		if p.isHere(h) {
			continue
		}
		for _, x := range p.byLog[h.Log] {
			to.add(h.Log, h.Lane, x.hide(h.Lane, h.Ranges))
		}
		refused := p.m.dispatch.ClaimLeaving(h.Log, h.Lane, h.Ranges)
		to.add(h.Log, h.Lane, without(h.Ranges, refused))
	}
}

// comeBack brings a consumer's proxy in line with what its gateway says.
func (p *remoteGateway) comeBack(s Spec) {
	x := p.proxy(s)
	m := p.m
	x.messages.free, x.bytes.free, x.asked = 0, 0, false
	m.uninvite(x.Consumer)
	m.forgetGets(func(c *Consumer) bool { return c == x.Consumer })
	for _, h := range x.holding() {
		x.giveBack(h.Lane, without(h.Ranges, inLane(s.Claims, h.Lane)))
	}
	switch {
	case !s.Attached:
		m.detach(x.Consumer)
	case !x.attached:
		x.attached = m.dispatch.Reattach(&x.Consumer.Consumer) == nil
	}
	for _, h := range s.Claims {
		rs := without(h.Ranges, inLane(x.holding(), h.Lane))
		for _, r := range without(rs, m.claim(x.Consumer, h.Lane, rs)) {
			x.hold(h.Lane, r)
		}
	}
	if x.attached {
		m.dispatch.Kick(&x.Consumer.Consumer)
	}
}

// claim is Dispatch.Claim. A counted return that is on its way doesn't stand against it: it
// is by somebody who was taken for dead, and whose messages were given to others.
func (m *Machine) claim(c *Consumer, n uint8, rs []msg.Range) (refused []msg.Range) {
	refused = m.dispatch.Claim(&c.Consumer, n, rs)
	if len(refused) == 0 {
		return nil
	}
	hidden := m.returning.take(c.Log, n, refused)
	for _, p := range m.everyPeer() {
		hidden = append(hidden, p.returning.take(c.Log, n, refused)...)
	}
	if len(hidden) == 0 {
		return refused
	}
	m.unhide(c.Log, n, hidden)
	return m.dispatch.Claim(&c.Consumer, n, refused)
}

// answer tells a gateway which of a consumer's claims failed.
func (p *remoteGateway) answer(x *proxy, s Spec) {
	out := &Message{Kind: MsgAttached, Consumer: x.ID}
	if s.Attached && !x.attached {
		out.Code = AttachInUse
	}
	for _, h := range s.Claims {
		if rs := without(h.Ranges, inLane(x.holding(), h.Lane)); len(rs) > 0 {
			out.Claims = append(out.Claims, Claim{Log: h.Log, Lane: h.Lane, Ranges: rs})
		}
	}
	if out.Code != AttachOK || len(out.Claims) > 0 {
		p.send(out)
	}
}

// askWants asks for the credit that consumers of other nodes lack, and gives back what
// they don't use; after a run of the dispatch.
func (m *Machine) askWants(more bool) {
	list := m.wanting
	m.wanting = m.wanting[:0]
	for _, x := range list {
		x.wanting = false
		if x.asked || x.peer.proxies[x.ID] != x {
			continue
		}
		out := &Message{Kind: MsgWant, Consumer: x.ID}
		if x.Messages != nil && x.messages.free == 0 {
			out.Messages = max(x.messages.want, 1)
		}
		if x.Bytes != nil && x.bytes.free == 0 {
			out.Bytes = max(x.bytes.want, grantBytes)
		}
		x.messages.want, x.bytes.want, x.asked = 0, 0, true
		x.peer.send(out)
	}
	clear(list)
	if more {
		return
	}
	for _, x := range m.granted {
		x.refund()
	}
	clear(m.granted)
	m.granted = m.granted[:0]
}

func (x *proxy) refund() {
	if x.asked || x.messages.free == 0 && x.bytes.free == 0 || x.peer.proxies[x.ID] != x {
		return
	}
	x.peer.send(&Message{Kind: MsgRefund, Consumer: x.ID, Messages: x.messages.free, Bytes: x.bytes.free})
	x.messages.free, x.bytes.free = 0, 0
}

// elsewhere finds the gateway that a submission comes from, nil if there is none.
func (m *Machine) elsewhere(c *shard.Command) *remoteGateway {
	if !m.leading || len(m.peers) == 0 || c.Local {
		return nil
	}
	if p := m.peers[c.Link>>32]; p != nil && p.link == c.Link {
		return p
	}
	return nil
}

// settledBy keeps the accounts of those who told of a settlement, or a transaction's hold,
// before it was applied.
func (m *Machine) settledBy(c *shard.Command, op *msg.Op) {
	if c.Local && len(m.taken) > 0 {
		m.taken.take(op.Log, op.Lane, op.Ranges)
	}
	if p := m.elsewhere(c); p != nil {
		p.settled(op.Log, op.Lane, op.Ranges)
	}
}

// settled frees the credit of what a submission of the gateway settles, if its message
// about that has not come.
func (p *remoteGateway) settled(log msg.LogID, n uint8, rs []msg.Range) {
	for _, x := range p.byLog[log] {
		x.acked(n, rs)
	}
	p.leaving.take(log, n, rs)
}

// returned makes ready again what a counted return of the gateway names.
func (p *remoteGateway) returned(log msg.LogID, n uint8, rs []msg.Range) {
	for _, x := range p.byLog[log] {
		x.giveBack(n, rs)
	}
	p.m.unhide(log, n, p.returning.take(log, n, rs))
}

// Tick tells the others how far this side is, now and then, so that a lost message is
// noticed. On the loop, at each tick of the shard.
func (m *Machine) Tick() {
	if m.cluster == nil {
		return
	}
	m.ticks++
	ping := m.ticks%pingTicks == 0
	if !m.leading {
		if m.gw.again {
			m.startRun()
		}
		if ping && m.gw.leader != 0 {
			m.cluster.Send(m.id, m.gw.leader, &Message{Kind: MsgPing, From: m.link, Term: m.gw.term, Run: m.gw.run, Seq: m.gw.out})
		}
		return
	}
	live := m.cluster.Live()
	for _, p := range m.everyPeer() {
		if !slices.Contains(live, p.node()) {
			m.dropPeer(p)
		}
	}
	for _, node := range live {
		if p := m.peers[node]; ping || p != nil && p.lost || p == nil && m.dispatch.Gathering() {
			m.announce(node)
		}
	}
}
