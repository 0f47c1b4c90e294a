package broker

import (
	"errors"
	"slices"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
)

// What a settlement and a submission for another shard take besides their content, at
// the most.
const (
	txRangeBytes  = 20
	txSettleBytes = 32
	txOwedBytes   = 256
)

// tx is a transaction that is being committed: what it does in each shard.
//
// In one durable shard it is one submission. With several, one of them coordinates: its
// submission holds what it does there and, for each other shard, a submission that the
// outbox carries on. That command is the commit point. What the transaction settles in
// other shards is held there before it, so that it can't come to anybody else between
// the commit and its arrival. The volatile shard follows when the durable ones are done.
type tx struct {
	p        *Publisher
	id       msg.TxID
	coord    *txPart // nil if the transaction is in the volatile shard alone
	others   []*txPart
	volatile *txPart   // or nil
	returns  []*txPart // those that only requeue
	large    []*Large
	// publishes: not only acknowledgements, which a full disk doesn't refuse.
	publishes bool
}

// txPart is what a transaction does in one shard.
type txPart struct {
	shard    *engine.Shard
	b        msg.Builder      // publishes
	settles  []engine.Settled // done with
	requeues []engine.Settled
	holds    bool // what is settled was held
}

// sizeMax returns an upper bound of the part's submission.
func (p *txPart) sizeMax() int {
	n := p.b.Len() + txSettleBytes // the end of the hold
	for _, x := range p.settles {
		n += txSettleBytes + len(x.Ranges)*txRangeBytes
	}
	return n
}

// addSettles puts what is settled into the part's submission.
func (p *txPart) addSettles() {
	for _, x := range p.settles {
		if len(x.Ranges) > 0 {
			p.b.Settle(x.Consumer.Log, x.Lane, x.Reason, x.Ranges)
		}
	}
}

// BeginTx makes what is published from here on a transaction's, until CommitTx or
// RollbackTx. Nothing may be waiting for a Flush.
func (p *Publisher) BeginTx() { p.inTx = true }

// RollbackTx drops what was published since BeginTx.
func (p *Publisher) RollbackTx() {
	p.inTx = false
	for n := range p.slots {
		if p.used&(1<<n) != 0 {
			p.slots[n].b.Reset()
		}
	}
	p.used = 0
	dropAll(p.large)
	p.large = nil
}

// dropAll gives up large bodies where no message has them.
func dropAll(list []*Large) {
	for _, l := range list {
		l.drop()
	}
}

// TxBytesMax returns how large a transaction may be: what it publishes, once for each
// shard it goes to, fits into one command.
func (s *Session) TxBytesMax() int { return s.b.node.SubmissionMax() }

// CommitTx commits what was published since BeginTx together with what Session.Settle
// collected: all of it or nothing is done, also after a crash, and it is durable and
// has arrived everywhere when Sink.Completed is called, once for each bit of slots.
// ResourceError: the transaction is larger than TxBytesMax; then it is rolled back, and
// what it settles is still in flight.
func (p *Publisher) CommitTx(token uint64) (slots uint32, err error) {
	parts := p.txParts()
	if len(parts) == 0 {
		p.RollbackTx()
		return 0, nil
	}
	size := 0
	for _, x := range parts {
		size += x.sizeMax() + txOwedBytes
	}
	if limit := p.s.TxBytesMax(); size > limit {
		p.RollbackTx()
		return 0, berr.New(berr.ResourceError, "transaction is larger than %d bytes", limit)
	}
	for _, l := range p.large {
		if l.lost {
			p.RollbackTx()
			return 0, errIncomplete
		}
	}
	t := &tx{p: p, id: p.s.b.node.NewTx(), publishes: p.used != 0, large: p.large}
	p.large = nil
	for _, x := range parts {
		if sl := p.slots[slotOf(x.shard.ID())]; p.used&(1<<slotOf(x.shard.ID())) != 0 {
			x.b, sl.b = sl.b, msg.Builder{}
		}
		t.add(x)
	}
	p.inTx, p.used = false, 0
	slot := uint8(0)
	if t.coord != nil {
		slot = slotOf(t.coord.shard.ID())
	}
	sink := p.s.sink
	go func() { sink.Completed(token, slot, t.commit()) }()
	return 1 << slot, nil
}

// txParts lists what the transaction does by shard, in their order. Its builders are
// only looked at; what was collected of settlements is taken.
func (p *Publisher) txParts() []*txPart {
	var parts []*txPart
	of := func(sh *engine.Shard) *txPart {
		for _, x := range parts {
			if x.shard == sh {
				return x
			}
		}
		parts = append(parts, &txPart{shard: sh})
		return parts[len(parts)-1]
	}
	for n := range p.slots {
		if p.used&(1<<n) != 0 {
			x := of(p.slots[n].shard)
			x.b = p.slots[n].b
		}
	}
	for sh, list := range p.s.settles {
		for _, x := range list {
			part := of(sh)
			if x.Requeue {
				part.requeues = append(part.requeues, x)
			} else {
				part.settles = append(part.settles, x)
			}
		}
		delete(p.s.settles, sh)
	}
	slices.SortFunc(parts, func(a, b *txPart) int { return int(a.shard.ID()) - int(b.shard.ID()) })
	return parts
}

// add gives a part its role: the durable one that publishes most coordinates.
func (t *tx) add(x *txPart) {
	switch {
	case x.b.Empty() && len(x.settles) == 0:
		t.returns = append(t.returns, x)
	case x.shard.ID() == engine.VolatileShard:
		t.volatile = x
	case t.coord == nil:
		t.coord = x
	case x.b.Len() > t.coord.b.Len():
		t.others = append(t.others, t.coord)
		t.coord = x
	default:
		t.others = append(t.others, x)
	}
}

func (t *tx) parts() []*txPart {
	var all []*txPart
	if t.coord != nil {
		all = append(append(all, t.coord), t.others...)
	}
	if t.volatile != nil {
		all = append(all, t.volatile)
	}
	return append(all, t.returns...)
}

// commit carries the transaction out.
func (t *tx) commit() error {
	for _, x := range t.parts() {
		if len(x.settles) > 0 {
			x.shard.Take(x.settles)
		}
	}
	if err := t.hold(); err != nil {
		t.abort()
		return err
	}
	switch err := t.decide(); {
	case errors.Is(err, shard.ErrNoRoom), errors.Is(err, shard.ErrTooLarge): // it was not even proposed
		t.abort()
		return err
	case err != nil:
		return err
	}
	if x := t.volatile; x != nil {
		if err := t.submit(x); err != nil {
			return err
		}
	}
	dropAll(t.large) // does nothing, unless a queue is gone
	for _, x := range t.parts() {
		if len(x.requeues) > 0 {
			w := newTxWait()
			x.shard.Settle(x.requeues, false, w, 0)
			if err := <-w; err != nil {
				return err
			}
		}
	}
	return nil
}

// hold makes what is settled in other shards than the coordinator's the transaction's,
// and waits until the parts of large bodies are there: it comes behind them.
func (t *tx) hold() error {
	var waits []txWait
	for _, x := range t.others {
		var b msg.Builder
		for _, s := range x.settles {
			if len(s.Ranges) > 0 {
				b.Hold(t.id, s.Consumer.Log, s.Lane, s.Ranges)
			}
		}
		x.holds = !b.Empty()
		if !x.holds {
			if len(t.large) == 0 {
				continue
			}
			b.TermStart()
		}
		w := newTxWait()
		x.shard.Submit(shard.Sub{Chunk: b.Finish(), Done: w})
		waits = append(waits, w)
	}
	var first error
	for _, w := range waits {
		if err := <-w; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// decide submits the command that is the commit point and waits until it is durable
// and has arrived in the other shards. After an error it is not known whether it is
// committed: then holds stay, until the node's next start tells.
func (t *tx) decide() error {
	if t.coord == nil {
		return nil
	}
	for _, x := range t.others {
		if x.holds {
			x.b.Unhold(t.id)
		}
		x.addSettles()
		if x.b.Empty() { // what it settles is not in flight any more
			continue
		}
		c := x.b.Finish()
		t.coord.b.Owe(x.shard.ID(), c.Bytes())
		c.Release()
	}
	return t.submit(t.coord)
}

// submit submits a part and waits until it is applied and what it owes other shards has
// arrived.
func (t *tx) submit(x *txPart) error {
	x.addSettles()
	if x.b.Empty() {
		return nil
	}
	w := &arrival{shard: x.shard, w: newTxWait()}
	sub := shard.Sub{Chunk: x.b.Finish(), Done: w}
	switch {
	case !t.publishes || x == t.volatile: // nothing refuses it
		x.shard.Submit(sub)
	case t.p.waitPressure(x.shard.ID()):
		x.shard.SubmitWait(sub, t.p.s.b.stop)
	default:
		sub.Finish(x.shard.ID(), shard.Result{Err: shard.ErrNoRoom})
	}
	return <-w.w
}

// abort gives back what was taken.
func (t *tx) abort() {
	for _, x := range t.parts() {
		if x.holds {
			var b msg.Builder
			b.Unhold(t.id)
			x.shard.Submit(shard.Sub{Chunk: b.Finish()})
			continue
		}
		x.shard.GiveBack(x.settles)
		x.b.Reset()
	}
	dropAll(t.large)
}

// txWait takes the error of one submission.
type txWait chan error

func newTxWait() txWait { return make(txWait, 1) }

// Completed implements shard.Completer.
func (w txWait) Completed(_ uint32, _ uint64, res shard.Result) { w <- res.Err }

// arrival is a Completer that waits for what the submission moved to other shards.
type arrival struct {
	shard *engine.Shard
	w     txWait
}

// Completed implements shard.Completer.
func (a *arrival) Completed(_ uint32, _ uint64, res shard.Result) {
	if res.Err != nil || len(res.Moves) == 0 {
		a.w <- res.Err
		return
	}
	a.shard.AwaitMoved(res.Moves, func(err error) { a.w <- err })
}
