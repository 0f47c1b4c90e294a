package amqp

import (
	"cmp"
	"slices"

	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// confirmRun is consecutive publish tags of a channel that went the same way in one
// flush: to the slots whose bits are set.
type confirmRun struct {
	ch    *channel
	first uint64
	count uint32
	slots uint32 // 0: nothing to wait for
	nack  bool   // the broker did not take them
	done  bool
}

// confirmRunBytes is what a confirmRun counts for in the outbox.
const confirmRunBytes = 40

// flush is what one submission of the reader has to confirm. The reader fills it, then
// it is the writer's.
type flush struct {
	token  uint64
	runs   []confirmRun
	done   uint32 // slots that are complete
	failed uint32 // those of them that failed
	left   int    // runs that are not done
}

// settle marks what is complete in f, hands it to the channels, and returns those
// that had no news before.
func (f *flush) settle(dirty []*channel) []*channel {
	for i := range f.runs {
		r := &f.runs[i]
		if r.done || r.slots&^f.done != 0 {
			continue
		}
		r.done = true
		f.left--
		if len(r.ch.confirms.news) == 0 {
			dirty = append(dirty, r.ch)
		}
		r.ch.confirms.add(r.first, uint64(r.count), r.nack || r.slots&f.failed != 0)
	}
	return dirty
}

// tagRun is consecutive publish tags.
type tagRun struct {
	first, end uint64 // end is exclusive
	nack       bool
	sent       bool
}

// confirms turns completions, which come in any order, into as few basic.ack and
// basic.nack as possible. Owned by the writer.
//
// Invariant: all tags below low are confirmed to the client; early is sorted, disjoint,
// beyond low, and confirmed to the client too.
type confirms struct {
	low   uint64 // lowest tag that is pending; 0 before the first news, meaning 1
	early []tagRun
	news  []tagRun // complete, not yet told
}

func (c *confirms) add(first, n uint64, nack bool) {
	if k := len(c.news); k > 0 && c.news[k-1].end == first && c.news[k-1].nack == nack {
		c.news[k-1].end += n
		return
	}
	c.news = append(c.news, tagRun{first: first, end: first + n, nack: nack})
}

// emit calls fn for each confirmation to send, in order: all up to a pending tag with
// multiple, those beyond one by one. It leaves no news.
func (c *confirms) emit(fn func(tag uint64, multiple, nack bool)) {
	if len(c.news) == 0 {
		return
	}
	if c.low == 0 {
		c.low = 1
	}
	all := c.news
	if len(c.early) > 0 {
		all = append(all, c.early...)
	}
	if !slices.IsSortedFunc(all, compareRuns) {
		slices.SortFunc(all, compareRuns)
	}
	k := c.emitLow(all, fn)
	rest := all[k:]
	c.early = c.early[:0]
	for _, r := range rest {
		for tag := r.first; !r.sent && tag < r.end; tag++ {
			fn(tag, false, r.nack)
		}
		if n := len(c.early); n > 0 && c.early[n-1].end == r.first {
			c.early[n-1].end = r.end
			continue
		}
		c.early = append(c.early, tagRun{first: r.first, end: r.end, sent: true})
	}
	c.news = all[:0]
	if cap(c.news) > maxIdleRuns {
		c.news = nil
	}
}

// maxIdleRuns is how many runs of confirmations a channel keeps room for.
const maxIdleRuns = 1024

func compareRuns(a, b tagRun) int { return cmp.Compare(a.first, b.first) }

// emitLow confirms what is below the first pending tag and returns how many runs that
// took. A run that was confirmed early joins the one before it.
func (c *confirms) emitLow(all []tagRun, fn func(tag uint64, multiple, nack bool)) (k int) {
	var from uint64 // first tag of the confirmation that is being put together
	open, nack := false, false
	last := uint64(0) // last tag in it that wasn't told yet
	tell := func() {
		if open {
			fn(last, last > from, nack)
		}
		open = false
	}
	for k < len(all) && all[k].first == c.low {
		r := all[k]
		k++
		c.low = r.end
		if r.sent {
			continue
		}
		if open && r.nack != nack {
			tell()
		}
		if !open {
			open, nack, from = true, r.nack, r.first
		}
		last = r.end - 1
	}
	tell()
	return k
}

// appendConfirm appends one confirmation.
func appendConfirm(dst []byte, ch uint16, tag uint64, multiple, nack bool) []byte {
	if nack {
		return amqpwire.AppendNack(dst, ch, tag, multiple, false)
	}
	return amqpwire.AppendAck(dst, ch, tag, multiple)
}
