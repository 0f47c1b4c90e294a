package shard

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/planted"
	"github.com/sluicemq/sluice/internal/wal"
)

// propose makes batches out of what is waiting; it returns true if something is left
// that could go now.
func (c *Core) propose() (more bool) {
	if !c.leading {
		c.forward()
		return false
	}
	if !c.mayPropose() {
		return false
	}
	own := !c.builder.Empty()
	if !own && len(c.offered) == 0 && !c.pending.due(c.cfg.Now()) {
		return false
	}
	var parts []msg.Part
	var chunks []*buf.Chunk
	size := 0
	add := func(p msg.Part, ch *buf.Chunk) {
		parts, chunks, size = append(parts, p), append(chunks, ch), size+len(p.Sub)
	}
	if own {
		ch := c.builder.Finish()
		add(msg.Part{Sub: ch.Bytes()}, ch)
	}
	room := func(bytes int) bool {
		return len(parts) == 0 || len(parts) < batchPartsMax && c.fits(size+bytes, len(parts)+1)
	}
	c.addOffers(room, add)
	for room(c.pending.nextLen()) {
		s, seq, ok := c.pending.take()
		if !ok {
			break
		}
		if c.expect[c.cfg.Link]+1 != seq {
			continue // proposed in this term already, or applied
		}
		c.expect[c.cfg.Link] = seq
		add(msg.Part{Link: c.cfg.Link, Seq: seq, Sub: s.Chunk.Bytes()}, s.Chunk.Retain())
	}
	if len(parts) == 0 {
		return false
	}
	c.proposeBatch(parts, chunks)
	return (len(c.offered) > 0 || c.pending.next < len(c.pending.subs)) && c.inflight < c.cfg.MaxInflight
}

// fits says whether a batch of so many bytes in so many parts may be proposed.
func (c *Core) fits(size, parts int) bool {
	return size+msg.BatchHeaderLen(parts) <= min(batchBytesMax, c.cfg.Log.MaxPayload())
}

// addOffers adds what other nodes offered, as much as room says fits; the rest waits.
func (c *Core) addOffers(room func(bytes int) bool, add func(msg.Part, *buf.Chunk)) {
	for len(c.offered) > 0 {
		o := c.offered[0]
		switch next := c.expect[o.part.Link] + 1; {
		case o.part.Seq == next, planted.LinkGapAccepted && o.part.Seq > next,
			planted.OutboxSentTwice && o.part.Link&outboxBit != 0 && o.part.Seq+1 == next:
			if !room(len(o.part.Sub)) {
				return
			}
			c.expect[o.part.Link] = o.part.Seq
			delete(c.gaps, o.part.Link)
			ch := buf.Get(len(o.part.Sub))
			ch.SetBytes(append(ch.Bytes(), o.part.Sub...))
			o.part.Sub = ch.Bytes()
			add(o.part, ch)
		case o.part.Seq > next && c.gaps[o.part.Link] != next: // a repeat says nothing
			c.gaps[o.part.Link] = next
			c.missing(o.part.Link, next)
		}
		c.offered[0] = offer{}
		c.offered = c.offered[1:]
	}
	c.offered = nil
}

// missing reports a gap in the offers of a link.
func (c *Core) missing(link, want uint64) {
	if source, ok := OutboxSource(link); !ok {
		c.cfg.Sender.Missing(c.cfg.ID, link, c.term, want)
	} else if c.cfg.Moved != nil {
		c.cfg.Moved(source, true)
	}
}

func (c *Core) proposeBatch(parts []msg.Part, chunks []*buf.Chunk) {
	c.gen++
	p := &payload{chunks: chunks, refs: 1}
	p.header = msg.AppendBatchHeader(make([]byte, 0, msg.BatchHeaderLen(len(parts))), c.clock.read(c.cfg.Now(), c.wall()), c.gen, parts)
	p.crc = msg.CRC(p.header)
	p.vec = append(make([][]byte, 0, len(parts)+1), p.header)
	p.size = len(p.header)
	for _, ch := range chunks {
		p.vec = append(p.vec, ch.Bytes())
		p.size += ch.Len()
	}
	c.parked[c.gen] = p
	if err := c.rn.Propose(appendRef(make([]byte, 0, refLen), c.gen, uint32(p.size))); err != nil {
		// Not leader any more: what is pending is offered to whoever leads next.
		delete(c.parked, c.gen)
		p.release()
		return
	}
	c.inflight++
}

// forwardBytesMax bounds what is offered to a leader elsewhere and not applied.
const forwardBytesMax = 4 << 20

// forward offers what is pending to the leader on another node, each once: again only
// when the leader changes, finds a gap, or nothing of it is applied for long.
func (c *Core) forward() {
	if c.lead == 0 || c.lead == c.cfg.Node || c.cfg.Sender == nil {
		return
	}
	if parts := c.pending.offer(c.cfg.Link, batchPartsMax, forwardBytesMax); len(parts) > 0 {
		c.cfg.Sender.Forward(c.cfg.ID, c.lead, parts)
	}
}

// ready takes everything out of raft: writes go to the WAL, messages to peers, what is
// committed to the apply queue.
func (c *Core) ready() {
	for c.failed == nil && c.rn.HasReady() {
		rd := c.rn.Ready()
		if rd.SoftState != nil {
			c.leaderChanged(rd.SoftState)
		}
		if !raft.IsEmptyHardState(rd.HardState) {
			c.termChanged(rd.HardState.GetTerm())
		}
		if planted.DispatchBeforeTerm && c.lead == c.cfg.Node && c.lead != 0 && !c.leading {
			c.beginTerm()
		}
		c.deliver(rd.Messages)
	}
}

func (c *Core) deliver(ms []*pb.Message) {
	var out []Outgoing
	for _, m := range ms {
		if m.GetType() == pb.MsgHeartbeat {
			c.stamp(m)
		}
		switch {
		case m.GetTo() == raft.LocalAppendThread:
			c.storageAppend(m)
		case m.GetTo() == raft.LocalApplyThread:
			c.applyQ = append(c.applyQ, m)
		case m.GetTo() == c.cfg.Node:
			_ = c.rn.Step(m)
		case m.GetType() == pb.MsgSnap && !c.sendsSnapshot(m):
		default:
			out = append(out, Outgoing{Msg: m, Bodies: c.bodies(m)})
		}
	}
	if len(out) > 0 && c.cfg.Sender != nil {
		c.cfg.Sender.Send(c.cfg.ID, out)
	}
}

// bodies finds the payloads of a message's entries, in memory or in the WAL.
func (c *Core) bodies(m *pb.Message) []Body {
	if m.GetType() != pb.MsgApp || len(m.GetEntries()) == 0 {
		return nil
	}
	out := make([]Body, len(m.GetEntries()))
	for i, e := range m.GetEntries() {
		gen, _, ok := parseRef(e.GetData())
		if !ok || e.GetType() != pb.EntryNormal {
			continue
		}
		var p *payload
		if s := c.log.slot(e.GetIndex()); s != nil && s.gen == gen && c.log.termOf(e.GetIndex()) == e.GetTerm() {
			p = s.mem
			out[i] = Body{Pos: s.pos, CRC: s.crc}
		} else {
			p = c.parked[gen]
		}
		if p != nil {
			b := make([]byte, 0, p.size)
			for _, v := range p.vec {
				b = append(b, v...)
			}
			out[i] = Body{Bytes: b, CRC: p.crc}
		}
	}
	return out
}

func (c *Core) leaderChanged(s *raft.SoftState) {
	if s.Lead == c.lead && (s.RaftState == raft.StateLeader) == (c.lead == c.cfg.Node) {
		return
	}
	c.lead = s.Lead
	if s.RaftState != raft.StateLeader {
		c.stepDown()
	}
	c.pending.rewind(c.cfg.Now())
}

func (c *Core) termChanged(term uint64) {
	if term != c.term {
		c.term = term
		clear(c.heard)
		c.stepDown()
		c.pending.rewind(c.cfg.Now())
	}
}

func (c *Core) stepDown() {
	c.dropSnapshots()
	if c.leading {
		c.leading = false
		c.builder.Reset()
		c.offered = nil
		c.cfg.Machine.Follow()
	}
}

// storageAppend turns raft's write into WAL records. A changed commit index alone is
// not written: it rides with the next entries.
func (c *Core) storageAppend(m *pb.Message) {
	if c.install != nil {
		c.install.hold(m, c.incoming)
		return
	}
	if !raft.IsEmptySnap(m.GetSnapshot()) && !c.logStart {
		c.beginInstall(m)
		return
	}
	req := &appendReq{resps: m.GetResponses()}
	if c.logStart {
		req.add(c.startRecord(), 0)
		c.logStart = false
	}
	for _, e := range m.GetEntries() {
		c.addEntry(req, e)
	}
	termOrVote := false
	if hs := hardStateOf(m); hs != nil {
		termOrVote = hs.GetTerm() != c.log.hs.GetTerm() || hs.GetVote() != c.log.hs.GetVote()
		c.log.hs = pb.HardState{Term: hs.Term, Vote: hs.Vote, Commit: hs.Commit}
	}
	// What was committed before these entries came must not be forgotten with them: a
	// restarted node whose configuration is two changes old could elect another leader.
	commits := len(req.records) > 0 && !c.Alone() && c.log.hs.GetCommit() > c.savedCommit
	if termOrVote || commits {
		req.add(c.stateRecord(), 0)
		c.savedCommit = min(c.log.hs.GetCommit(), c.log.last())
	}
	if len(req.records) == 0 {
		if len(req.resps) == 0 {
			return
		}
		// Responses wait for all writes before them: an empty write keeps the order.
	}
	c.submit(req)
}

func (r *appendReq) add(rec wal.Record, index uint64) {
	r.records = append(r.records, rec)
	r.indexes = append(r.indexes, index)
}

// stateRecord is the record of the present hard state.
func (c *Core) stateRecord() wal.Record {
	h := wal.HardState{Term: c.log.hs.GetTerm(), Vote: c.log.hs.GetVote(), Commit: min(c.log.hs.GetCommit(), c.log.last())}
	return h.Record(c.cfg.ID, c.cfg.Incarnation)
}

func hardStateOf(m *pb.Message) *pb.HardState {
	if m.Term == nil && m.Vote == nil && m.Commit == nil {
		return nil
	}
	return &pb.HardState{Term: new(m.GetTerm()), Vote: new(m.GetVote()), Commit: new(m.GetCommit())}
}

func (c *Core) addEntry(req *appendReq, e *pb.Entry) {
	s := slot{typ: e.GetType()}
	rec := wal.Record{Type: wal.TypeEntry, Shard: c.cfg.ID, Incarnation: c.cfg.Incarnation, Term: e.GetTerm(), Index: e.GetIndex()}
	if gen, length, ok := parseRef(e.GetData()); ok && e.GetType() == pb.EntryNormal {
		p, own := c.incoming[entryKey{e.GetIndex(), e.GetTerm()}], false
		if p == nil {
			p, own = c.parked[gen], true
			delete(c.parked, gen)
		}
		if p == nil || uint32(p.size) != length {
			c.fail(fmt.Errorf("shard %d: no payload for entry %d of term %d", c.cfg.ID, e.GetIndex(), e.GetTerm()))
			return
		}
		s.gen, s.len, s.crc, s.mem = gen, length, p.crc, p
		rec.Payload, rec.PayloadCRC = p.vec, p.crc
		req.bytes += p.size
		p.refs++
		req.pins = append(req.pins, p)
		if own {
			req.own++
		}
	} else {
		var b []byte
		if s.typ != pb.EntryNormal {
			s.cc = e.GetData()
			b = appendConfPayload(nil, s.cc)
			rec.Payload = [][]byte{b}
		}
		rec.PayloadCRC = msg.CRC(b)
	}
	c.durable = min(c.durable, e.GetIndex()-1)
	c.log.put(e.GetIndex(), e.GetTerm(), s)
	req.add(rec, e.GetIndex())
	req.last = e.GetIndex()
}

func (c *Core) submit(req *appendReq) {
	c.writes++
	req.seq = c.writes
	if len(c.retry) > 0 {
		c.retry = append(c.retry, req)
		return
	}
	c.writing++
	c.cfg.Log.Submit(c.walAppend(req))
}

func (c *Core) walAppend(req *appendReq) wal.Append {
	// Without records it only waits for the writes before it: no sync of its own.
	post := c.cfg.Post
	if c.cfg.PostHere != nil && req.bytes <= hereBytesMax {
		post = c.cfg.PostHere
	}
	return wal.Append{Records: req.records, NoSync: len(req.records) == 0, Done: func(err error, pos []wal.Position) {
		kept := append([]wal.Position(nil), pos...)
		post(func() { c.written(req, err, kept) })
	}}
}

// written is the WAL's answer.
func (c *Core) written(req *appendReq, err error, pos []wal.Position) {
	c.writing--
	switch {
	case c.failed != nil:
		return
	case errors.Is(err, wal.ErrNoSpace), errors.Is(err, wal.ErrGap), err == nil && len(c.retry) > 0:
		// After a refused write nothing counts, even if it was taken: the responses of
		// each speak of all before it. It is written again, in order.
		c.retry = append(c.retry, req)
		c.starve(true)
		return
	case err != nil:
		c.fail(err)
		return
	}
	if len(c.retry) == 0 {
		c.starve(false)
	}
	c.inflight -= req.own
	req.unpin()
	for i, index := range req.indexes {
		if s := c.log.slot(index); index > 0 && s != nil && c.log.termOf(index) == req.records[i].Term {
			s.pos = pos[i]
		}
	}
	if req.last > c.durable && req.last <= c.log.last() && c.log.termOf(req.last) == lastTerm(req) {
		c.durable = req.last
	}
	for _, m := range req.resps {
		if m.GetTo() == c.cfg.Node {
			_ = c.rn.Step(m)
		} else if c.cfg.Sender != nil {
			c.cfg.Sender.Send(c.cfg.ID, []Outgoing{{Msg: m}})
		}
	}
}

func lastTerm(req *appendReq) uint64 {
	for i := len(req.indexes) - 1; i >= 0; i-- {
		if req.indexes[i] == req.last {
			return req.records[i].Term
		}
	}
	return 0
}

// Retry submits again what the WAL refused for lack of space.
func (c *Core) Retry() {
	if len(c.retry) > 0 {
		c.resubmit()
	}
}

// resubmit waits for the answers to all that was submitted: only then is the order of
// what was refused known.
func (c *Core) resubmit() {
	if c.writing > 0 {
		return
	}
	again := c.retry
	c.retry = nil
	slices.SortFunc(again, func(a, b *appendReq) int { return cmp.Compare(a.seq, b.seq) })
	appends := make([]wal.Append, len(again))
	for i, req := range again {
		c.renew(req)
		appends[i] = c.walAppend(req)
	}
	c.writing += len(again)
	c.cfg.Log.Submit(appends...)
}

// renew brings a refused write up to date: entries that were replaced meanwhile are left
// out, for what replaced them may be in the WAL already, and a hard state tells the
// newest term and vote, for a later write of them may be.
func (c *Core) renew(req *appendReq) {
	n := 0
	req.last = 0
	for i, r := range req.records {
		switch index := req.indexes[i]; {
		case r.Type == wal.TypeLogStart:
		case index == 0:
			r.Term, r.Aux = c.log.hs.GetTerm(), c.log.hs.GetVote()
		case c.log.slot(index) == nil || c.log.termOf(index) != r.Term:
			continue
		default:
			req.last = index
		}
		req.records[n], req.indexes[n] = r, req.indexes[i]
		n++
	}
	req.records, req.indexes = req.records[:n], req.indexes[:n]
}

// starve tells about a change of whether writes wait for disk space.
func (c *Core) starve(yes bool) {
	if c.starved != yes {
		c.starved = yes
		if c.cfg.Blocked != nil {
			c.cfg.Blocked(yes)
		}
	}
}

// Starved reports whether writes wait for disk space.
func (c *Core) Starved() bool { return c.starved }

// fail stops the shard for good: the outcome of what is pending is unknown, so its
// submitters are told that it failed.
func (c *Core) fail(err error) {
	if c.failed != nil {
		return
	}
	c.failed = err
	c.cfg.Logger.Error("shard failed", "shard", c.cfg.ID, "err", err)
	c.drop()
	c.cfg.Machine.Follow()
}

// Stop fails what is pending. Nothing else may be called afterwards but Submit, which
// then fails at once.
func (c *Core) Stop() {
	c.stopped = true
	c.drop()
}

func (c *Core) drop() {
	for c.pending.len() > 0 {
		s, _ := c.pending.pop(c.pending.head)
		s.fail(c.cfg.ID, c.failure())
	}
}

// quietLogger drops raft's chatter; what an operator must know the shard says itself.
type quietLogger struct{ log *slog.Logger }

func (quietLogger) Debug(...any)            {}
func (quietLogger) Debugf(string, ...any)   {}
func (quietLogger) Info(...any)             {}
func (quietLogger) Infof(string, ...any)    {}
func (quietLogger) Warning(...any)          {}
func (quietLogger) Warningf(string, ...any) {}
func (q quietLogger) Error(v ...any)        { q.log.Error("raft", "msg", fmt.Sprint(v...)) }
func (q quietLogger) Errorf(f string, v ...any) {
	q.log.Error("raft", "msg", fmt.Sprintf(f, v...))
}
func (quietLogger) Fatal(v ...any)            { panic(fmt.Sprint(v...)) }
func (quietLogger) Fatalf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }
func (quietLogger) Panic(v ...any)            { panic(fmt.Sprint(v...)) }
func (quietLogger) Panicf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }
