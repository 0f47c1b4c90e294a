package amqp

import (
	"math/bits"
	"sort"

	"github.com/sluicemq/sluice/internal/msg"
)

// unacked maps delivery tags to what was delivered, for those that are neither
// acknowledged nor returned.
//
// Tags are grouped in pages of 1,024. A page has a bit per tag and a list of runs:
// consecutive tags whose offsets are consecutive too, of one consumer and lane. So an
// undisturbed consumer costs about 300 bytes per 1,024 deliveries, and deliveries that
// alternate between consumers 12 bytes each. Acknowledging a tag costs O(log runs of
// its page), O(1) if it follows the one before.
//
// Invariants: a tag's bit in held is set only if the one in pending is; left is the
// number of bits in pending; a page other than the last is nil once left is 0.
type unacked struct {
	pages []*unackedPage
	first uint64 // number of pages[0]: tag >> unackedPageBits
	count int    // tags that are pending, held ones included
	spare *unackedPage
}

const (
	unackedPageBits = 10
	unackedPageTags = 1 << unackedPageBits
	unackedWords    = unackedPageTags / 64

	// A run packs its first tag within the page and its consumer's slot, and its first
	// offset and lane. A lane of 2^56 messages is out of reach.
	runSlotBits  = 32 - unackedPageBits
	runOffsetMax = 1<<56 - 1
	// maxSlots bounds the consumers of a channel that have something in flight.
	maxSlots = 1 << runSlotBits
)

// unackedPage is 1,024 consecutive tags.
type unackedPage struct {
	pending [unackedWords]uint64
	held    *[unackedWords]uint64 // acknowledged in a transaction that isn't committed; nil for none
	left    int
	last    int      // run that was found last
	heads   []uint32 // of each run: first tag within the page << runSlotBits | slot
	offsets []uint64 // of each run: lane << 56 | offset of the first tag
}

// delivered is a range of consecutive offsets that was delivered to one consumer.
type delivered struct {
	slot  uint32
	lane  uint8
	first msg.Offset
	count uint64
}

// add notes n deliveries with consecutive tags and offsets. Tags only increase; some
// may be left out.
func (u *unacked) add(tag uint64, slot uint32, lane uint8, off msg.Offset, n int) {
	for n > 0 {
		p := u.pageFor(tag >> unackedPageBits)
		at := int(tag & (unackedPageTags - 1))
		k := min(n, unackedPageTags-at)
		p.add(at, slot, lane, off, k)
		u.count += k
		n -= k
		tag += uint64(k)
		off += uint64(k)
	}
}

// pageFor returns the page of that number, which is the last one or a new one.
func (u *unacked) pageFor(number uint64) *unackedPage {
	if k := len(u.pages); k > 0 {
		last := u.pages[k-1]
		if u.first+uint64(k)-1 == number {
			return last
		}
		if last.left == 0 {
			u.drop(k - 1)
		}
	}
	u.trim()
	if len(u.pages) == 0 {
		u.first = number
	}
	for u.first+uint64(len(u.pages)) <= number {
		u.pages = append(u.pages, nil)
	}
	p := u.newPage()
	u.pages[len(u.pages)-1] = p
	return p
}

func (u *unacked) newPage() *unackedPage {
	if p := u.spare; p != nil {
		u.spare = nil
		*p = unackedPage{heads: p.heads[:0], offsets: p.offsets[:0]}
		return p
	}
	return &unackedPage{}
}

// drop forgets page i, which has nothing left.
func (u *unacked) drop(i int) {
	u.spare = u.pages[i]
	u.pages[i] = nil
}

// trim forgets the pages in front that are gone.
func (u *unacked) trim() {
	for len(u.pages) > 0 && u.pages[0] == nil {
		u.pages = u.pages[1:]
		u.first++
	}
}

// page returns the page of a tag, nil if nothing in it is pending.
func (u *unacked) page(tag uint64) (p *unackedPage, at int) {
	i := tag>>unackedPageBits - u.first
	if i >= uint64(len(u.pages)) {
		return nil, 0
	}
	return u.pages[i], int(tag & (unackedPageTags - 1))
}

// has reports whether tag may be acknowledged: pending and not held.
func (u *unacked) has(tag uint64) bool {
	p, at := u.page(tag)
	return p != nil && p.free(at/64)&(1<<(at%64)) != 0
}

// take removes a pending tag, held or not.
func (u *unacked) take(tag uint64) (d delivered, ok bool) {
	p, at := u.page(tag)
	if p == nil || p.pending[at/64]&(1<<(at%64)) == 0 {
		return d, false
	}
	d = p.locate(p.runOf(at), at)
	d.count = 1
	p.clear(at, at+1)
	u.removed(int(tag>>unackedPageBits-u.first), 1)
	u.trim()
	return d, true
}

// hold marks a tag that has: it stays pending, but can't be acknowledged again.
func (u *unacked) hold(tag uint64) {
	p, at := u.page(tag)
	if p.held == nil {
		p.held = new([unackedWords]uint64)
	}
	p.held[at/64] |= 1 << (at % 64)
}

// unhold makes all held tags acknowledgeable again.
func (u *unacked) unhold() {
	for _, p := range u.pages {
		if p != nil {
			p.held = nil
		}
	}
}

// eachUpTo calls fn with each tag up to upto that can be acknowledged, in order; fn may
// hold it, not take it.
func (u *unacked) eachUpTo(upto uint64, fn func(tag uint64)) {
	for i := 0; i < len(u.pages); i++ {
		p, base := u.pages[i], (u.first+uint64(i))<<unackedPageBits
		if p == nil {
			continue
		}
		if base > upto {
			return
		}
		for w := range unackedWords {
			for set := p.free(w); set != 0; set &= set - 1 {
				tag := base + uint64(w*64+bits.TrailingZeros64(set))
				if tag > upto {
					return
				}
				fn(tag)
			}
		}
	}
}

// takeUpTo removes all tags up to upto that are pending and not held, and calls fn
// with what they were, in order of tags.
func (u *unacked) takeUpTo(upto uint64, fn func(delivered)) {
	for i := 0; i < len(u.pages); i++ {
		p, base := u.pages[i], (u.first+uint64(i))<<unackedPageBits
		if p == nil {
			continue
		}
		if base > upto {
			break
		}
		end := unackedPageTags
		if upto-base < unackedPageTags-1 {
			end = int(upto-base) + 1
		}
		if n := p.takeBelow(end, fn); n > 0 {
			u.removed(i, n)
		}
	}
	u.trim()
}

// removed accounts for n tags less in page i.
func (u *unacked) removed(i, n int) {
	u.count -= n
	if u.pages[i].left == 0 && i < len(u.pages)-1 {
		u.drop(i)
	}
}

func (p *unackedPage) add(at int, slot uint32, lane uint8, off msg.Offset, n int) {
	where := uint64(lane)<<56 | off&runOffsetMax
	if k := len(p.heads); k == 0 || p.heads[k-1]&(maxSlots-1) != slot ||
		p.offsets[k-1]+uint64(at)-uint64(p.heads[k-1]>>runSlotBits) != where {
		if k == cap(p.heads) || k == cap(p.offsets) {
			p.grow()
		}
		p.heads = append(p.heads, uint32(at)<<runSlotBits|slot)
		p.offsets = append(p.offsets, where)
	}
	for end := at + n; at < end; {
		w := at / 64
		k := min(end-at, 64-at%64)
		p.pending[w] |= (1<<k - 1) << (at % 64)
		at += k
	}
	p.left += n
}

// grow doubles the room for runs, up to one per tag: append would go beyond.
func (p *unackedPage) grow() {
	n := min(max(2*len(p.heads), 4), unackedPageTags)
	p.heads = append(make([]uint32, 0, n), p.heads...)
	p.offsets = append(make([]uint64, 0, n), p.offsets...)
}

// free returns the tags of a word that can be acknowledged.
func (p *unackedPage) free(word int) uint64 {
	if p.held == nil {
		return p.pending[word]
	}
	return p.pending[word] &^ p.held[word]
}

// runOf returns the run that tag at belongs to.
func (p *unackedPage) runOf(at int) int {
	holds := func(i int) bool {
		return i < len(p.heads) && int(p.heads[i]>>runSlotBits) <= at &&
			(i+1 == len(p.heads) || int(p.heads[i+1]>>runSlotBits) > at)
	}
	switch {
	case holds(p.last):
	case holds(p.last + 1):
		p.last++
	default:
		p.last = sort.Search(len(p.heads), func(i int) bool { return int(p.heads[i]>>runSlotBits) > at }) - 1
	}
	return p.last
}

// locate says what tag at of a run was.
func (p *unackedPage) locate(run, at int) delivered {
	where := p.offsets[run] + uint64(at) - uint64(p.heads[run]>>runSlotBits)
	return delivered{
		slot:  p.heads[run] & (maxSlots - 1),
		lane:  uint8(where >> 56),
		first: where & runOffsetMax,
	}
}

func (p *unackedPage) clear(from, to int) {
	for at := from; at < to; {
		w := at / 64
		k := min(to-at, 64-at%64)
		p.pending[w] &^= (1<<k - 1) << (at % 64)
		at += k
	}
	p.left -= to - from
}

// takeBelow removes the tags below end that can be acknowledged and returns how many
// there were.
func (p *unackedPage) takeBelow(end int, fn func(delivered)) (n int) {
	for run := range p.heads {
		from := int(p.heads[run] >> runSlotBits)
		if from >= end {
			break
		}
		to := end
		if run+1 < len(p.heads) {
			to = min(to, int(p.heads[run+1]>>runSlotBits))
		}
		for {
			var k int
			if from, k = p.nextFree(from, to); k == 0 {
				break
			}
			d := p.locate(run, from)
			d.count = uint64(k)
			p.clear(from, from+k)
			from += k
			n += k
			fn(d)
		}
	}
	return n
}

// nextFree returns the first tag in [from, to) that can be acknowledged and how many
// follow each other from there on; 0 for none.
func (p *unackedPage) nextFree(from, to int) (at, n int) {
	for from < to {
		set := p.free(from/64) >> (from % 64)
		if set == 0 {
			from = (from/64 + 1) * 64
			continue
		}
		from += bits.TrailingZeros64(set)
		at = from
		for from < to {
			ones := bits.TrailingZeros64(^(p.free(from/64) >> (from % 64)))
			ones = min(ones, 64-from%64)
			from += ones
			if from%64 != 0 || ones == 0 {
				break
			}
		}
		from = min(from, to)
		return at, max(from-at, 0)
	}
	return to, 0
}
