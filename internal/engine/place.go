package engine

import (
	"slices"
	"sort"
	"sync"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/wal"
)

// Kinds of a queue.Source.
const (
	srcTail uint8 = 1 // Ref: number in the tail, Pos: of the operation in the submission
	srcRun  uint8 = 2 // in a segment; found by log, lane and offset
	srcPeer uint8 = 3 // Ref: of the records that came with the delivery
)

type lane struct {
	log  msg.LogID
	lane uint8
}

// note says that an append operation gave count offsets from first on to a lane.
type note struct {
	first msg.Offset
	sub   uint64 // number in the tail
	count uint32
	op    uint32 // position of the operation in the submission
	bytes uint32 // of its records together
}

// place is where the messages of one lane lie: runs first, then notes, both by offset.
type place struct {
	notes []note
	runs  []store.Run
}

// places is the index of all lanes of a shard. Written by the loop alone, which also
// reads without the lock; readers of other goroutines only look at runs, under it.
type places struct {
	mu    sync.RWMutex // guards runs of each place, the map, and perRuns
	lanes map[lane]*place
	// perRuns[n-1] is how many lanes have n runs. Invariant: the last is not 0.
	perRuns []int
}

// setRuns replaces the runs of a lane. p.mu is held.
func (p *places) setRuns(l *place, runs []store.Run) {
	p.countRuns(len(l.runs), -1)
	p.countRuns(len(runs), 1)
	l.runs = runs
}

// countRuns notes that by more lanes have n runs. p.mu is held.
func (p *places) countRuns(n, by int) {
	if n == 0 {
		return
	}
	for len(p.perRuns) < n {
		p.perRuns = append(p.perRuns, 0)
	}
	p.perRuns[n-1] += by
	for k := len(p.perRuns); k > 0 && p.perRuns[k-1] == 0; k-- {
		p.perRuns = p.perRuns[:k-1]
	}
}

// runsMax returns how many runs the lane with the most of them has; for any goroutine.
func (p *places) runsMax() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.perRuns)
}

func (p *places) of(k lane) *place {
	l := p.lanes[k]
	if l == nil {
		l = &place{}
		p.mu.Lock()
		p.lanes[k] = l
		p.mu.Unlock()
	}
	return l
}

// addRuns inserts runs and keeps them sorted.
func (p *places) addRuns(runs []store.Run) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range runs {
		k := lane{r.Log, r.Lane}
		l := p.lanes[k]
		if l == nil {
			l = &place{}
			p.lanes[k] = l
		}
		i := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].First > r.First })
		p.setRuns(l, slices.Insert(l.runs, i, r))
	}
}

// addSorted is addRuns for runs by ascending (log, lane, first), as the store finds
// them at start.
func (p *places) addSorted(runs []store.Run) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(runs) > 0 {
		n := 1
		for n < len(runs) && runs[n].Log == runs[0].Log && runs[n].Lane == runs[0].Lane {
			n++
		}
		k := lane{runs[0].Log, runs[0].Lane}
		if p.lanes[k] == nil {
			p.lanes[k] = &place{}
		}
		p.setRuns(p.lanes[k], slices.Clone(runs[:n]))
		runs = runs[n:]
	}
}

// removeRuns takes the runs of a segment out; runs are its directory.
func (p *places) removeRuns(runs []store.Run) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range runs {
		if l := p.lanes[lane{r.Log, r.Lane}]; l != nil {
			n := len(l.runs)
			l.runs = slices.DeleteFunc(l.runs, func(x store.Run) bool { return x.Seg == r.Seg && x.First == r.First })
			p.countRuns(n, -1)
			p.countRuns(len(l.runs), 1)
			if len(l.runs) == 0 {
				l.runs = nil
				if len(l.notes) == 0 {
					delete(p.lanes, lane{r.Log, r.Lane})
				}
			}
		}
	}
}

// clear forgets all lanes.
func (p *places) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.lanes)
	p.perRuns = nil
}

// drop forgets a log.
func (p *places) drop(log msg.LogID, lanes []uint8) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range lanes {
		k := lane{log, n}
		if l := p.lanes[k]; l != nil {
			p.setRuns(l, nil)
			delete(p.lanes, k)
		}
	}
}

// run finds the run that holds the first message at or after off; safe for any
// goroutine. Runs of one lane may overlap in range (a merge of survivors), never in
// offsets: so all that could hold it are tried, latest first.
func (p *places) run(k lane, off msg.Offset) (runs []store.Run) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if l := p.lanes[k]; l != nil {
		for _, r := range l.runs {
			if r.First > off {
				break
			}
			if r.Last >= off {
				runs = append(runs, r)
			}
		}
	}
	return runs
}

// locate implements queue.Locator for the loop.
func (l *place) locate(off msg.Offset, most uint64) (queue.Source, uint64, uint64) {
	i := sort.Search(len(l.notes), func(i int) bool { return l.notes[i].first > off }) - 1
	if i >= 0 && off < l.notes[i].first+uint64(l.notes[i].count) {
		e := &l.notes[i]
		n := min(most, e.first+uint64(e.count)-off)
		return queue.Source{Kind: srcTail, Ref: e.sub | (off-e.first)<<skipShift, Pos: e.op}, n, uint64(e.bytes) * n / uint64(e.count)
	}
	i = sort.Search(len(l.runs), func(i int) bool { return l.runs[i].First > off }) - 1
	for ; i >= 0; i-- {
		if r := &l.runs[i]; r.Last >= off {
			n := min(most, r.Last-off+1)
			return queue.Source{Kind: srcRun}, n, uint64(r.Size) * n / uint64(r.Count)
		}
	}
	return queue.Source{Kind: srcRun}, 1, 1 // reported by the reader
}

// trim drops up to most notes that are wholly below low and returns them through gone;
// false if there are more.
func (l *place) trim(low msg.Offset, most int, gone func(sub uint64)) (done bool) {
	i := 0
	below := func() bool { return i < len(l.notes) && l.notes[i].first+uint64(l.notes[i].count) <= low }
	for ; i < most && below(); i++ {
		gone(l.notes[i].sub)
	}
	done = !below()
	l.cutNotes(i)
	return done
}

func (l *place) cutNotes(n int) {
	switch {
	case n == 0:
	case n == len(l.notes):
		if cap(l.notes) > 64 {
			l.notes = nil
		} else {
			l.notes = l.notes[:0]
		}
	case n > cap(l.notes)/2:
		l.notes = append(make([]note, 0, 2*(len(l.notes)-n)), l.notes[n:]...)
	default:
		l.notes = l.notes[n:]
	}
}

// subRef is an applied submission in the tail.
type subRef struct {
	pos  wal.Position // where it lies; Seq 0 in a volatile shard
	live uint32       // notes that refer to it
}

// tail is the list of applied submissions that are not flushed, and the cache of their
// bytes. The loop writes; readers take the lock.
type tail struct {
	mu     sync.RWMutex
	first  uint64 // number of subs[0]
	subs   []subRef
	cached uint64 // number of chunks[0]
	chunks []*buf.Chunk
	bytes  int64 // capacity of the cached chunks
	budget int64 // 0: keep all (a volatile shard has nothing else)
}

// push adds a submission and returns its number. The chunk, if any, is retained.
func (t *tail) push(pos wal.Position, live uint32, c *buf.Chunk) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.first + uint64(len(t.subs))
	t.subs = append(t.subs, subRef{pos, live})
	if len(t.chunks) == 0 {
		t.cached = n
	}
	if c != nil {
		c.Retain()
		t.bytes += int64(c.Cap())
	}
	t.chunks = append(t.chunks, c)
	if t.budget > 0 {
		k := 0
		for t.bytes > t.budget && k < len(t.chunks) {
			t.releaseLocked(k)
			k++
		}
		t.chunks, t.cached = t.chunks[k:], t.cached+uint64(k)
	}
	return n
}

func (t *tail) releaseLocked(i int) {
	if c := t.chunks[i]; c != nil {
		t.bytes -= int64(c.Cap())
		c.Release()
		t.chunks[i] = nil
	}
}

// unref tells that a note of sub is gone; without readers of the WAL the chunk goes
// with the last one.
func (t *tail) unref(sub uint64, volatile bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if sub < t.first || sub >= t.first+uint64(len(t.subs)) {
		return
	}
	s := &t.subs[sub-t.first]
	if s.live--; s.live > 0 {
		return
	}
	if sub >= t.cached {
		t.releaseLocked(int(sub - t.cached)) // nobody will ask for it again
	}
	if volatile {
		for len(t.subs) > 0 && t.subs[0].live == 0 {
			t.popLocked()
		}
	}
}

func (t *tail) popLocked() {
	if t.cached == t.first && len(t.chunks) > 0 {
		t.releaseLocked(0)
		t.chunks, t.cached = t.chunks[1:], t.cached+1
	}
	t.first++
	t.subs = t.subs[1:]
}

// popTo forgets the submissions before number n.
func (t *tail) popTo(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.first < n && len(t.subs) > 0 {
		t.popLocked()
	}
}

// get returns the chunk of a submission with a reference of its own, or else its
// position in the WAL; ok is false when it is not in the tail.
func (t *tail) get(sub uint64) (c *buf.Chunk, pos wal.Position, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if sub < t.first || sub >= t.first+uint64(len(t.subs)) {
		return nil, pos, false
	}
	if sub >= t.cached && sub-t.cached < uint64(len(t.chunks)) {
		if c = t.chunks[sub-t.cached]; c != nil {
			return c.Retain(), t.subs[sub-t.first].pos, true
		}
	}
	return nil, t.subs[sub-t.first].pos, true
}

// all returns the numbers of all submissions: to is what the next one gets.
func (t *tail) all() (from, to uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.first, t.first + uint64(len(t.subs))
}

// span returns the numbers of the submissions that lie in WAL files up to seq.
func (t *tail) span(seq uint64) (from, to uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	i := sort.Search(len(t.subs), func(i int) bool { return t.subs[i].pos.Seq > seq })
	return t.first, t.first + uint64(i)
}

// size returns the bytes of the cached chunks.
func (t *tail) size() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.bytes
}
