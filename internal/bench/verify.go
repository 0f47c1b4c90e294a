package bench

import "math/bits"

// bitset is a growing set of small integers.
type bitset []uint64

// add puts n into the set and reports whether it was absent.
func (s *bitset) add(n uint64) bool {
	word, mask := int(n>>6), uint64(1)<<(n&63)
	for word >= len(*s) {
		*s = append(*s, 0)
	}
	if (*s)[word]&mask != 0 {
		return false
	}
	(*s)[word] |= mask
	return true
}

func (s bitset) has(n uint64) bool {
	word := int(n >> 6)
	return word < len(s) && s[word]&(1<<(n&63)) != 0
}

// merge adds o to s and returns how many members they had in common.
func (s *bitset) merge(o bitset) (common uint64) {
	for len(*s) < len(o) {
		*s = append(*s, 0)
	}
	for i, w := range o {
		common += uint64(bits.OnesCount64((*s)[i] & w))
		(*s)[i] |= w
	}
	return common
}

func (s bitset) count() (n uint64) {
	for _, w := range s {
		n += uint64(bits.OnesCount64(w))
	}
	return n
}

// gaps counts the integers between the least and the greatest member that are
// not members.
func (s bitset) gaps() uint64 {
	lo, hi := -1, -1
	for i, w := range s {
		if w == 0 {
			continue
		}
		if lo < 0 {
			lo = i<<6 + bits.TrailingZeros64(w)
		}
		hi = i<<6 + 63 - bits.LeadingZeros64(w)
	}
	if lo < 0 {
		return 0
	}
	return uint64(hi-lo+1) - s.count()
}

// stream is what was received of one publisher's messages in one queue.
type stream struct {
	first   bitset // received at least once without the redelivered flag
	flagged bitset // received at least once with it
	next    uint64 // one past the greatest sequence number received unflagged

	outOfOrder uint64 // unflagged deliveries below next, not counting duplicates
	duplicates uint64 // unflagged deliveries of what was received before
	again      uint64 // flagged deliveries of what was received before
}

// receipts is what one consumer received, by stream. Merged, it is what all of
// them did.
type receipts struct {
	streams map[uint64]*stream // by stamp.key

	lastKey uint64 // the stream used last
	last    *stream

	fresh   uint64 // distinct messages
	flagged uint64 // deliveries with the redelivered flag
}

func newReceipts() *receipts { return &receipts{streams: map[uint64]*stream{}} }

// add books a delivery.
func (r *receipts) add(key, seq uint64, redelivered bool) {
	st := r.last
	if st == nil || r.lastKey != key {
		if st = r.streams[key]; st == nil {
			st = &stream{}
			r.streams[key] = st
		}
		r.last, r.lastKey = st, key
	}
	if redelivered {
		r.flagged++
		known := st.first.has(seq)
		if !st.flagged.add(seq) {
			known = true
		}
		if known {
			st.again++
		} else {
			r.fresh++
		}
		return
	}
	if st.flagged.has(seq) || !st.first.add(seq) {
		st.first.add(seq)
		st.duplicates++
		return
	}
	r.fresh++
	if seq < st.next {
		st.outOfOrder++
		return
	}
	st.next = seq + 1
}

// merge adds what another consumer received. The same message unflagged at both
// is a duplicate; flagged at one of them it is a proper redelivery.
func (r *receipts) merge(o *receipts) {
	r.flagged += o.flagged
	for key, os := range o.streams {
		st := r.streams[key]
		if st == nil {
			st = &stream{}
			r.streams[key] = st
		}
		st.outOfOrder += os.outOfOrder
		st.again += os.again
		st.duplicates += os.duplicates + st.first.merge(os.first)
		st.flagged.merge(os.flagged)
	}
	r.last, r.fresh = nil, 0
	for _, st := range r.streams {
		all := append(bitset(nil), st.first...)
		all.merge(st.flagged)
		r.fresh += all.count()
	}
}

// has reports whether a message was received.
func (r *receipts) has(key, seq uint64) bool {
	st := r.streams[key]
	return st != nil && (st.first.has(seq) || st.flagged.has(seq))
}

// Verification is what a run's deliveries were checked for. Everything but
// Redelivered, Flagged and Foreign is a violation when it isn't 0; Gaps is one
// only when the backlog was drained.
type Verification struct {
	Lost        uint64 `json:"lost"`         // confirmed and never received
	Duplicates  uint64 `json:"duplicates"`   // received again without the redelivered flag
	OutOfOrder  uint64 `json:"out_of_order"` // received unflagged after a later one of its publisher and queue, at the same consumer
	Damaged     uint64 `json:"damaged"`      // bodies that are not as published
	Misrouted   uint64 `json:"misrouted"`    // came out of another queue than it was published to
	Gaps        uint64 `json:"gaps"`         // of other runs: missing between the first and the last received of a stream
	BadConfirms uint64 `json:"bad_confirms"` // confirms of what was not open
	Redelivered uint64 `json:"redelivered"`  // deliveries with the flag
	Again       uint64 `json:"again"`        // of these: received before
	Foreign     uint64 `json:"foreign"`      // distinct messages of other runs
}

// Violations counts what a broker must not do.
func (v Verification) Violations() uint64 {
	return v.Lost + v.Duplicates + v.OutOfOrder + v.Damaged + v.Misrouted + v.Gaps + v.BadConfirms
}

// verify merges what the loops have seen. drained says that everything the
// queues held was to be received.
func (r *run) verify(drained bool) Verification {
	var v Verification
	all := newReceipts()
	for _, k := range r.consumers {
		all.merge(k.receipts)
		v.Damaged += k.damage
		v.Misrouted += k.misrouted
	}
	v.Redelivered = all.flagged
	for key, st := range all.streams {
		v.Duplicates += st.duplicates
		v.OutOfOrder += st.outOfOrder
		v.Again += st.again
		if key>>32 == uint64(r.id) {
			continue
		}
		union := append(bitset(nil), st.first...)
		union.merge(st.flagged)
		v.Foreign += union.count()
		if drained {
			v.Gaps += union.gaps()
		}
	}
	for _, p := range r.publishers {
		v.BadConfirms += p.strange
		if drained && len(r.consumers) > 0 && r.cfg.confirms() {
			v.Lost += r.lost(p, all)
		}
	}
	return v
}

// lost counts the publisher's confirmed messages that nobody received.
func (r *run) lost(p *publisher, all *receipts) (n uint64) {
	nq := uint64(len(p.queues))
	for tag := uint64(1); tag <= p.tag; tag++ {
		if _, refused := p.nacked[tag]; refused || p.unsettled(tag) {
			continue
		}
		s := stamp{run: r.id, publisher: uint16(p.index), queue: uint16(p.queues[(tag-1)%nq])}
		if !all.has(s.key(), (tag-1)/nq) {
			n++
		}
	}
	return n
}
