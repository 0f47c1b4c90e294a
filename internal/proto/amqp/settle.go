package amqp

import (
	"cmp"
	"math"
	"math/bits"
	"slices"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// collected is what a batch of frames settles of one consumer's lane in one way.
type collected struct {
	lane     uint8
	how      broker.Settlement
	unsorted bool
	ranges   []msg.Range
}

// settleFrame handles basic.ack, basic.nack and basic.reject.
func (c *conn) settleFrame(ch *channel, id amqpwire.MethodID, args []byte) error {
	var tag uint64
	var multiple bool
	how := broker.Ack
	requeue := false
	switch id {
	case amqpwire.IDBasicAck:
		m, err := amqpwire.ParseAck(args)
		if err != nil {
			return err
		}
		tag, multiple = m.DeliveryTag, m.Multiple
	case amqpwire.IDBasicNack:
		m, err := amqpwire.ParseNack(args)
		if err != nil {
			return err
		}
		tag, multiple, requeue = m.DeliveryTag, m.Multiple, m.Requeue
		how = broker.Reject
	default:
		m, err := amqpwire.ParseReject(args)
		if err != nil {
			return err
		}
		tag, requeue = m.DeliveryTag, m.Requeue
		how = broker.Reject
	}
	if requeue {
		how = broker.Requeue
	}
	return c.settle(ch, tag, multiple, how)
}

// settle settles a delivery tag, or with multiple all up to it; 0 stands for all.
func (c *conn) settle(ch *channel, tag uint64, multiple bool, how broker.Settlement) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	all := multiple && tag == 0
	if !all && !ch.unacked.has(tag) {
		return preconditionFailed("unknown delivery tag %d", tag)
	}
	upto := tag
	if all {
		upto = math.MaxUint64
	}
	switch {
	case ch.tx != nil:
		return ch.tx.holdAcks(ch, tag, upto, multiple, how)
	case multiple:
		ch.unacked.takeUpTo(upto, func(d delivered) { c.collect(ch, d, how) })
	default:
		d, _ := ch.unacked.take(tag)
		c.collect(ch, d, how)
	}
	return nil
}

// collect adds what a tag was to the settlements of the batch. It is called with ch.mu
// held.
func (c *conn) collect(ch *channel, d delivered, how broker.Settlement) {
	cons := ch.slots[d.slot]
	c.t.settled += int64(d.count)
	if how == broker.Requeue {
		c.batch.requeued = true
	}
	if !cons.dirty {
		cons.dirty = true
		c.batch.dirty = append(c.batch.dirty, cons)
	}
	r := msg.Range{First: d.first, Count: d.count}
	cons.unrefLocked(int(d.count))
	for i := range cons.collected {
		if s := &cons.collected[i]; s.lane == d.lane && s.how == how {
			s.add(r)
			return
		}
	}
	cons.collected = append(cons.collected, collected{lane: d.lane, how: how, ranges: []msg.Range{r}})
}

func (s *collected) add(r msg.Range) {
	if k := len(s.ranges); k > 0 {
		last := &s.ranges[k-1]
		if last.First+last.Count == r.First {
			last.Count += r.Count
			return
		}
		s.unsorted = s.unsorted || r.First < last.First
	}
	s.ranges = append(s.ranges, r)
}

// normalize sorts the ranges and joins neighbors.
func (s *collected) normalize() {
	if !s.unsorted {
		return
	}
	s.unsorted = false
	slices.SortFunc(s.ranges, func(a, b msg.Range) int { return cmp.Compare(a.First, b.First) })
	k := 0
	for _, r := range s.ranges[1:] {
		if last := &s.ranges[k]; last.First+last.Count == r.First {
			last.Count += r.Count
			continue
		}
		k++
		s.ranges[k] = r
	}
	s.ranges = s.ranges[:k+1]
}

// submit hands everything that was collected to the broker.
func (c *conn) submit() {
	c.submitSettlements()
	b := &c.batch
	if f := b.confirms; f != nil {
		// The writer must know of it before the first completion.
		f.token, f.left = c.pub.Token(), len(f.runs)
		c.out.track(f, b.immediate)
		b.confirms, b.immediate = nil, false
	}
	if b.published {
		b.published = false
		_, slots := c.pub.Flush()
		c.out.expect(bits.OnesCount32(slots))
	}
}

// submitSettlements submits what was acknowledged and returned. What becomes ready again
// counts as something that is outstanding: a later basic.get has to see it.
func (c *conn) submitSettlements() {
	b := &c.batch
	if len(b.dirty) == 0 {
		return
	}
	c.settleMu.Lock()
	defer c.settleMu.Unlock()
	c.handSettlements()
	if !b.requeued {
		c.sess.FlushSettles()
		return
	}
	b.requeued = false
	c.tokens++
	slots := c.sess.FlushSettlesWait(settleToken | c.tokens)
	c.out.expect(bits.OnesCount32(slots))
}

// handSettlements gives the session what was collected. It is called with settleMu held.
func (c *conn) handSettlements() {
	b := &c.batch
	for _, cons := range b.dirty {
		cons.dirty = false
		for i := range cons.collected {
			s := &cons.collected[i]
			if len(s.ranges) == 0 {
				continue
			}
			s.normalize()
			c.sess.Settle(cons.bc, s.lane, s.how, s.ranges)
			s.ranges = s.ranges[:0]
			if cap(s.ranges) > maxIdleRuns {
				s.ranges = nil
			}
		}
	}
	clear(b.dirty)
	b.dirty = b.dirty[:0]
}

// recoverAll returns everything that is unacknowledged on the channel.
func (c *conn) recoverAll(ch *channel, requeue bool) error {
	if !requeue {
		return notImplemented("requeue=false")
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.unacked.takeUpTo(math.MaxUint64, func(d delivered) { c.collect(ch, d, broker.Requeue) })
	return nil
}
