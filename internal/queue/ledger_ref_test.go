package queue

import (
	"maps"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

// The reference: a state per message, nothing clever.

type refMessage struct {
	settled bool
	count   uint32
	tx      msg.TxID     // N is 0 for none
	body    msg.PartsRef // Count is 0 for none of parts
}

type refLane struct {
	messages []refMessage
	reserved msg.Offset
}

func (n *refLane) low() msg.Offset {
	for i, m := range n.messages {
		if !m.settled {
			return msg.Offset(i)
		}
	}
	return msg.Offset(len(n.messages))
}

type refProducer struct {
	epoch  uint32
	timeMS int64
	last   []refAppend // the newest five
}

type refAppend struct {
	first, last uint64
	off         msg.Offset
}

type refDedup struct {
	id     string
	off    msg.Offset
	timeMS int64
}

type refLog struct {
	profile   string
	sealed    bool
	lanes     map[uint8]*refLane
	producers map[uint64]refProducer
	dedup     []refDedup
}

type refLedger struct {
	logs    map[msg.LogID]*refLog
	deleted map[msg.LogID]bool
	parts   map[msg.LogID]uint32 // parts logs with how many parts they have
	settled [8]uint64
	now     int64
}

func (l *refLedger) clone() *refLedger {
	c := &refLedger{logs: map[msg.LogID]*refLog{}, deleted: maps.Clone(l.deleted), parts: maps.Clone(l.parts), settled: l.settled, now: l.now}
	for id, g := range l.logs {
		h := &refLog{profile: g.profile, sealed: g.sealed, lanes: map[uint8]*refLane{}, producers: maps.Clone(g.producers), dedup: slices.Clone(g.dedup)}
		for k, n := range g.lanes {
			h.lanes[k] = &refLane{slices.Clone(n.messages), n.reserved}
		}
		c.logs[id] = h
	}
	return c
}

func (l *refLedger) append(log msg.LogID, lane uint8, n int, c *msg.Cond) Outcome {
	g := l.logs[log]
	if g == nil {
		return Outcome{Code: Unknown}
	}
	if c.Producer != 0 {
		if o := l.repeated(g, n, c); o.Code != Appended {
			return o
		}
	}
	prof, _ := ParseProfile([]byte(g.profile))
	for _, d := range g.dedup {
		if d.id == string(c.Dedup) && prof.DedupWindowMS > 0 && l.now-d.timeMS < prof.DedupWindowMS {
			return Outcome{Code: Duplicate, First: d.off}
		}
	}
	if g.sealed {
		return Outcome{Code: Sealed}
	}
	ln := g.lanes[lane]
	tail := 0
	if ln != nil {
		tail = len(ln.messages)
	}
	if c.ExpectTail && c.Tail != uint64(tail) {
		return Outcome{Code: Refused, Why: TailMoved}
	}
	if ln == nil {
		ln = &refLane{}
		g.lanes[lane] = ln
	}
	ln.messages = append(ln.messages, make([]refMessage, n)...)
	if c.Producer != 0 {
		p := g.producers[c.Producer]
		if p.epoch != c.Epoch || l.now-p.timeMS >= ProducerExpiryMS {
			p = refProducer{epoch: c.Epoch}
		}
		p.timeMS = l.now
		p.last = append(slices.Clone(p.last[max(0, len(p.last)-4):]), refAppend{c.Seq, c.Seq + uint64(n) - 1, uint64(tail)})
		g.producers[c.Producer] = p
	}
	if len(c.Dedup) > 0 && prof.DedupWindowMS > 0 {
		g.dedup = slices.DeleteFunc(g.dedup, func(d refDedup) bool { return l.now-d.timeMS >= prof.DedupWindowMS })
		g.dedup = append(g.dedup, refDedup{string(c.Dedup), uint64(tail), l.now})
		g.dedup = g.dedup[max(0, len(g.dedup)-int(prof.DedupMax)):]
	}
	return Outcome{Code: Appended, First: uint64(tail)}
}

// repeated judges an append by its producer's sequence.
func (l *refLedger) repeated(g *refLog, n int, c *msg.Cond) Outcome {
	p, ok := g.producers[c.Producer]
	switch {
	case !ok || l.now-p.timeMS >= ProducerExpiryMS:
		return Outcome{}
	case c.Epoch < p.epoch:
		return Outcome{Code: Refused, Why: ProducerEpoch}
	case c.Epoch > p.epoch && c.Seq > 0:
		return Outcome{Code: Refused, Why: ProducerSeq}
	case c.Epoch > p.epoch:
		return Outcome{}
	}
	last := c.Seq + uint64(n) - 1
	for _, a := range p.last {
		if c.Seq >= a.first && last <= a.last {
			return Outcome{Code: Duplicate, First: a.off + c.Seq - a.first}
		}
	}
	switch newest := p.last[len(p.last)-1].last; {
	case last <= newest:
		return Outcome{Code: Duplicate, First: NoOffset}
	case c.Seq != newest+1:
		return Outcome{Code: Refused, Why: ProducerSeq}
	}
	return Outcome{}
}
