package queue

import (
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

// checkpoint tells what changed since the last cut and what of the running one is still
// to be emitted.
//
// A cut is an epoch: whatever changes is marked with the number of the epoch in which it
// first changed. BeginCheckpoint opens the next epoch and makes the list of changed logs
// the pending one. A pending log is taken (its head encoded, its changed chunks put
// into the queue by reference) by the first of two: the slicer reaches it, or an
// operation is about to change it. So what is taken is the state at the cut. A chunk that
// the queue refers to is copied before it changes, 8 KiB at the most.
type checkpoint struct {
	epoch   uint32
	running bool
	dirty   []msg.LogID // first changed in this epoch
	pending []msg.LogID // to be taken; some may have been taken or deleted already
	queue   []entry     // taken, to be emitted from index sent on
	sent    int
	dead    [][]byte // keys that the next checkpoint deletes
	value   []byte   // scratch
}

// entry is one key to emit. Exactly one of the values is set, none deletes the key.
type entry struct {
	key    []byte
	value  []byte
	set    *chunk
	counts *countPart
	dedup  []dedupEntry
	bound  *boundChunk // while restoring
}

const (
	inlineRunsMax  = 16  // chunks with more runs get keys of their own
	inlineTotalMax = 256 // runs that a lane's head holds
)

// BeginCheckpoint freezes the cut that the following CheckpointSlice calls emit: what
// changed since the previous checkpoint, as it is now. It costs O(1). A running
// checkpoint must be finished, or given up by MarkAllDirty, before the next.
func (l *Ledger) BeginCheckpoint() {
	if l.running {
		panic("queue: checkpoint begun while one is running")
	}
	l.running = true
	l.epoch++
	l.pending, l.dirty = l.dirty, l.pending[:0]
	for _, k := range l.dead {
		l.queue = append(l.queue, entry{key: k})
	}
	l.dead = nil
}

// CheckpointRunning reports whether a checkpoint was begun and isn't done.
func (l *Ledger) CheckpointRunning() bool { return l.running }

// CheckpointSlice emits up to limit keys of the running checkpoint and reports whether
// that was all. A nil value deletes the key. key and value are valid during the call of
// emit only. Between slices the ledger may change at will. All of a checkpoint must
// become durable at once: half of one is no consistent state.
func (l *Ledger) CheckpointSlice(limit int, emit func(key, value []byte)) (done bool) {
	for range limit {
		e, ok := l.nextEntry()
		if !ok {
			break
		}
		switch {
		case e.set != nil:
			l.value = appendChunk(l.value[:0], &e.set.chunkData)
			emit(e.key, l.value)
		case e.counts != nil:
			l.value = appendCounts(l.value[:0], e.counts)
			emit(e.key, l.value)
		case e.dedup != nil:
			l.value = appendDedup(l.value[:0], e.dedup)
			emit(e.key, l.value)
		default:
			emit(e.key, e.value)
		}
		*e = entry{}
	}
	if l.sent < len(l.queue) || l.takeNext() {
		return false
	}
	l.stop()
	return true
}

// nextEntry returns the next entry to emit; its place is the caller's to clear.
func (l *Ledger) nextEntry() (*entry, bool) {
	if l.sent == len(l.queue) {
		l.queue, l.sent = l.queue[:0], 0
		if !l.takeNext() {
			return nil, false
		}
	}
	l.sent++
	return &l.queue[l.sent-1], true
}

// takeNext puts the next pending state into the queue, if there is one.
func (l *Ledger) takeNext() bool {
	if l.isPending(l.shardState.changedIn) {
		l.takeShard()
		return true
	}
	if l.isPending(l.holds.changedIn) {
		l.takeHolds()
		return true
	}
	for n := len(l.pending); n > 0; n = len(l.pending) {
		g := l.logs[l.pending[n-1]]
		l.pending = l.pending[:n-1]
		if g != nil && l.isPending(g.changedIn) {
			l.take(g)
			return true
		}
	}
	return false
}

func (l *Ledger) stop() {
	l.running = false
	l.queue, l.sent, l.value = nil, 0, nil
}

// isPending says whether something that first changed in this epoch belongs to the
// running checkpoint and has not been taken.
func (l *Ledger) isPending(changedIn uint32) bool {
	return l.running && changedIn != 0 && changedIn != l.epoch
}

// touch is called before each change of a log.
func (l *Ledger) touch(g *logState) {
	if g.changedIn == l.epoch {
		return
	}
	if l.isPending(g.changedIn) {
		l.take(g)
	}
	g.changedIn = l.epoch
	l.dirty = append(l.dirty, g.id)
}

// touchShard is called before each change of the state that belongs to no log.
func (l *Ledger) touchShard() {
	if l.isPending(l.shardState.changedIn) {
		l.takeShard()
	}
	l.shardState.changedIn = l.epoch
}

// take puts a log's state into the queue.
func (l *Ledger) take(g *logState) {
	g.changedIn, g.stored = 0, true
	l.put(headKey(g.id), l.encodeHead(g))
	if r := g.repeats; r != nil {
		if r.producers.dirty {
			r.producers.dirty, r.producers.stored = false, true
			l.put(producersKey(g.id), r.producers.encode())
		}
		l.cutDedup(g.id, &r.dedup)
	}
}

func (l *Ledger) takeShard() {
	l.shardState.changedIn = 0
	l.put([]byte{keyShard}, l.encodeShard())
}

func (l *Ledger) put(key, value []byte) {
	l.queue = append(l.queue, entry{key: key, value: value})
}

// forget notes the keys of a log that is about to be deleted.
func (l *Ledger) forget(g *logState) {
	if l.isPending(g.changedIn) {
		l.take(g)
	}
	if !g.stored {
		return
	}
	l.dead = append(l.dead, headKey(g.id))
	if r := g.repeats; r != nil {
		if r.producers.stored {
			l.dead = append(l.dead, producersKey(g.id))
		}
		for k := r.dedup.stored[0]; k < r.dedup.stored[1]; k++ {
			l.dead = append(l.dead, dedupKey(g.id, k))
		}
	}
	l.Lanes(g.id, func(number uint8, n *Lane) bool {
		if n.stored != nil {
			for _, k := range n.stored.settled {
				l.dead = append(l.dead, partKey(keySettled, g.id, number, k))
			}
			for _, k := range n.stored.counts {
				l.dead = append(l.dead, partKey(keyCounts, g.id, number, k))
			}
			for _, k := range n.stored.bound {
				l.dead = append(l.dead, partKey(keyBound, g.id, number, k))
			}
		}
		return true
	})
}

// MarkAllDirty makes the next checkpoint a complete one, to be written into an empty
// place, and gives up a running one.
func (l *Ledger) MarkAllDirty() {
	l.stop()
	l.pending, l.dirty, l.dead = nil, nil, nil
	l.shardState.changedIn, l.shardState.stored = l.epoch, nil
	l.deleted.markDirty()
	for _, b := range l.bound {
		for i := range b.chunks {
			b.chunks[i].dirty = true
		}
	}
	l.holds.changedIn = 0
	if len(l.holds.txs) > 0 {
		l.holds.changedIn = l.epoch
	}
	for _, g := range l.logs {
		g.changedIn, g.stored = l.epoch, false
		l.dirty = append(l.dirty, g.id)
		if r := g.repeats; r != nil {
			r.producers.dirty, r.producers.stored = len(r.producers.byID) > 0, false
			r.dedup.stored = [2]uint64{}
			for i := range r.dedup.blocks {
				r.dedup.blocks[i].dirty = true
			}
		}
		l.Lanes(g.id, func(_ uint8, n *Lane) bool {
			n.stored = nil
			n.settled.markDirty()
			if n.counts != nil {
				for i := range n.counts.parts {
					n.counts.parts[i].dirty = true
				}
			}
			return true
		})
	}
}

func (s *Set) markDirty() {
	for i := range s.chunks {
		s.chunks[i].dirty = true
	}
}

// cutSet divides a set for a checkpoint: it returns the members that belong inline, into
// the head, and the chunks that have keys of their own. It queues those of them that
// changed, and the deletion of keys that are no longer needed.
func (l *Ledger) cutSet(s *Set, stored []uint64, key func(chunk uint64) []byte) (inline []msg.Range, parts []uint64) {
	total := 0
	for i := range s.chunks {
		c := &s.chunks[i]
		base := c.key << chunkBits
		if c.full() {
			inline = appendRange(inline, base, c.end()<<chunkBits)
			continue
		}
		_, has := slices.BinarySearch(stored, c.key)
		small := c.bits == nil && len(c.runs) <= inlineRunsMax && total+len(c.runs) <= inlineTotalMax
		switch {
		case has && !c.dirty: // lies there as it is
			parts = append(parts, c.key)
		case small:
			for _, r := range c.runs {
				inline = appendRange(inline, base|uint64(r.first), (base|uint64(r.last))+1)
			}
			total += len(c.runs)
			c.dirty = false
		default:
			parts = append(parts, c.key)
			c.dirty, c.shared = false, true
			data := *c
			l.queue = append(l.queue, entry{key: key(c.key), set: &data})
		}
	}
	l.dropParts(stored, parts, key)
	return inline, parts
}

// cutCounts is cutSet for delivery counts, which are never inline.
func (l *Ledger) cutCounts(s *counts, stored []uint64, key func(chunk uint64) []byte) (parts []uint64) {
	if s != nil {
		for i := range s.parts {
			p := &s.parts[i]
			parts = append(parts, p.key)
			if p.dirty {
				p.dirty, p.shared = false, true
				data := *p
				l.queue = append(l.queue, entry{key: key(p.key), counts: &data})
			}
		}
	}
	l.dropParts(stored, parts, key)
	return parts
}

// dropParts queues the deletion of the keys that are in stored and not in parts.
func (l *Ledger) dropParts(stored, parts []uint64, key func(chunk uint64) []byte) {
	for _, k := range stored {
		if _, still := slices.BinarySearch(parts, k); !still {
			l.put(key(k), nil)
		}
	}
}
