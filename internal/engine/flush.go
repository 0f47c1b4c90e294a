package engine

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/wal"
)

// job is what is unsettled of one note.
type job struct {
	k      lane
	n      note
	ranges []msg.Range
}

// flush moves what the shard still needs of the WAL files up to seq into segments. index
// is the last entry there: what is durable but not applied yet has no notes, so it waits
// for that.
func (k *Keeper) flush(s *Shard, seq, index uint64) error {
	applied := uint64(0)
	for ok := false; !ok; ok = applied >= index {
		var failed error
		if !s.Call(func() { applied, failed = s.Core().Applied(), s.Core().Failed() }) {
			return ErrStopped
		}
		if failed != nil {
			return failed
		}
		if applied < index && !k.sleep(time.Millisecond) {
			return ErrStopped
		}
	}
	from, to := s.m.tail.span(seq)
	return k.move(s, from, to, store.Flushed{WALSeq: seq, Index: applied})
}

// spillVolatile moves the older half of the volatile shard's messages to disk when its
// chunks take too much memory.
func (k *Keeper) spillVolatile() {
	if k.volatile == nil {
		return
	}
	t := &k.volatile.m.tail
	if bytes := t.size(); bytes <= k.spill {
		return
	}
	from, to := t.oldest(k.spill / 2)
	if err := k.move(k.volatile, from, to, store.Flushed{}); err != nil {
		k.sleep(upkeepEvery)
	}
}

// oldest returns the numbers of the oldest submissions whose chunks hold all but keep
// bytes of the tail's.
func (t *tail) oldest(keep int64) (from, to uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	left := t.bytes
	to = t.first
	for i := range t.chunks {
		if left <= keep {
			break
		}
		if c := t.chunks[i]; c != nil {
			left -= int64(c.Cap())
		}
		to = t.cached + uint64(i) + 1
	}
	return t.first, to
}

// move writes the survivors of the submissions before number to into segments, installs
// these and forgets the submissions.
func (k *Keeper) move(s *Shard, from, to uint64, done store.Flushed) error {
	begun := time.Now()
	jobs, lanes, ok := s.collect(to)
	if !ok {
		return ErrStopped
	}
	metas, bad, err := k.write(s, jobs, to-from)
	if err != nil {
		return err
	}
	for i := range bad {
		if _, err := bad[i].giveUp(s, nil); err != nil {
			k.store.Discard(metas)
			return err
		}
	}
	var edit store.Edit
	for _, meta := range metas {
		edit.AddSegment(meta)
	}
	if done.WALSeq > 0 {
		// A start that flushes files again may have applied less than the one before it.
		was := k.store.Flushed(s.ID())
		edit.SetFlushed(s.ID(), store.Flushed{WALSeq: max(was.WALSeq, done.WALSeq), Index: max(was.Index, done.Index)})
	}
	if !edit.Empty() {
		if err := k.store.Install(&edit); err != nil {
			k.store.Discard(metas)
			return err
		}
	}
	s.install(metas)
	ok = inSlices(len(lanes), func(a, b int) bool {
		return s.Call(func() {
			for _, key := range lanes[a:b] {
				if l := s.m.places.lanes[key]; l != nil {
					l.cutBefore(to)
				}
			}
		})
	})
	ok = ok && s.Call(func() {
		s.m.tail.popTo(to)
		if !s.m.volatile { // which has no checkpoint
			s.m.cut.flushedTo(from, to)
		}
	})
	if !ok {
		return ErrStopped
	}
	k.flushes.Record(time.Since(begun))
	return nil
}

// cutBefore drops the notes of submissions before number to: they come first.
func (l *place) cutBefore(to uint64) {
	n := 0
	for n < len(l.notes) && l.notes[n].sub < to {
		n++
	}
	l.cutNotes(n)
}

// collect lists what is unsettled in the submissions before number to. Lanes that come
// meanwhile have none of them.
func (s *Shard) collect(to uint64) (jobs []job, lanes []lane, ok bool) {
	next, stop := iter.Pull2(maps.All(s.m.places.lanes)) // only ever advanced by the loop
	defer stop()
	ok = true
	for more := true; more && ok; {
		ok = s.Call(func() {
			for range sliceOfWork {
				var key lane
				var l *place
				if key, l, more = next(); !more {
					return
				}
				if len(l.notes) > 0 && l.notes[0].sub < to {
					lanes = append(lanes, key)
				}
			}
		})
	}
	return jobs, lanes, ok && inSlices(len(lanes), func(a, b int) bool {
		return s.Call(func() {
			for _, key := range lanes[a:b] {
				jobs = s.m.collectLane(jobs, key, to)
			}
		})
	})
}

func (m *Machine) collectLane(jobs []job, key lane, to uint64) []job {
	l := m.places.lanes[key]
	ln, ok := m.ledger.Lane(key.log, key.lane)
	if l == nil || !ok {
		return jobs
	}
	for _, n := range l.notes {
		if n.sub >= to {
			break
		}
		rs := ln.AppendUnsettled(nil, msg.Range{First: n.first, Count: uint64(n.count)})
		if len(rs) > 0 {
			jobs = append(jobs, job{key, n, rs})
		}
	}
	return jobs
}

// write puts the jobs' records into new segments, sorted by lane and offset. What can't
// be read is left out and listed.
func (k *Keeper) write(s *Shard, jobs []job, subs uint64) ([]store.SegmentMeta, []badList, error) {
	if len(jobs) == 0 {
		return nil, nil, nil
	}
	slices.SortFunc(jobs, func(a, b job) int {
		return cmp.Or(cmp.Compare(a.k.log, b.k.log), cmp.Compare(a.k.lane, b.k.lane), cmp.Compare(a.n.first, b.n.first))
	})
	src := subSource{m: s.m}
	defer src.close()
	if uint64(len(jobs)) > 4*subs+16 {
		src.keepAll = true // many lanes in few submissions: each is needed again and again
	}
	w := k.store.NewWriter(s.ID(), store.WriterOptions{})
	for i := 0; i < len(jobs); {
		j, bytes := i, int64(0)
		for ; j < len(jobs) && jobs[j].k == jobs[i].k; j++ {
			bytes += jobs[j].size()
		}
		err := w.StartRun(jobs[i].k.log, jobs[i].k.lane, bytes)
		for ; i < j && err == nil; i++ {
			err = src.copyJob(w, &jobs[i])
		}
		if err != nil {
			w.Abort()
			return nil, nil, err
		}
	}
	metas, err := w.Finish()
	if err != nil {
		w.Abort()
	}
	return metas, src.bad, err
}

func (j *job) size() int64 {
	n := uint64(0)
	for _, r := range j.ranges {
		n += r.Count
	}
	return int64(uint64(j.n.bytes) * n / uint64(j.n.count))
}

// subSource gives the bytes of submissions to the flusher.
type subSource struct {
	m       *Machine
	op      msg.Op
	keepAll bool
	arena   []byte // memory outside of the heap, given back at once
	used    int
	kept    map[uint64]msg.Submission
	sub     uint64
	cur     msg.Submission
	chunk   *buf.Chunk
	bad     []badList // what can't be read
}

func (s *subSource) close() {
	if s.chunk != nil {
		s.chunk.Release()
	}
	if s.arena != nil {
		_ = unix.Munmap(s.arena)
	}
}

// errSettled: the submission of a volatile shard is gone, since nothing in it is
// unsettled any more.
var errSettled = errors.New("engine: settled meanwhile")

// arenaBytes holds the submissions of a whole WAL file; untouched pages cost nothing.
const arenaBytes = 96 << 20

// get returns a submission; valid until the next call, or until close if all are kept.
func (s *subSource) get(sub uint64) (msg.Submission, error) {
	if s.cur != nil && s.sub == sub {
		return s.cur, nil
	}
	if k, ok := s.kept[sub]; ok {
		return k, nil
	}
	c, pos, ok := s.m.tail.get(sub)
	if s.m.volatile && c == nil {
		return nil, errSettled
	}
	if !ok {
		return nil, fmt.Errorf("engine: submission %d left the tail while being flushed", sub)
	}
	if c == nil {
		if s.keepAll && pos.Len <= arenaBytes {
			return s.intoArena(sub, pos)
		}
		var err error
		if c, err = s.m.readBack(pos); c == nil && err == nil {
			err = wal.ErrGone // which only a flush brings about
		}
		if err != nil {
			return nil, err
		}
	}
	if s.chunk != nil {
		s.chunk.Release()
	}
	s.chunk, s.sub, s.cur = c, sub, nil
	p, err := msg.ParseSubmission(c.Bytes())
	if err == nil && !p.Verify() {
		err = walDamage(pos, "payload, in memory")
	}
	if err == nil {
		s.cur = p
	}
	return p, err
}

// leaveOut notes that the messages of a job can't be read.
func (s *subSource) leaveOut(j *job, damage *wal.Damage) {
	n := len(s.bad)
	if n == 0 || s.bad[n-1].log != j.k.log || s.bad[n-1].lane != j.k.lane {
		s.bad = append(s.bad, badList{log: j.k.log, lane: j.k.lane})
		n++
	}
	for _, r := range j.ranges {
		s.bad[n-1].add(r.First, r.First+r.Count-1, ofWAL(s.m.id, damage))
	}
}

func (s *subSource) intoArena(sub uint64, pos wal.Position) (msg.Submission, error) {
	if s.arena == nil {
		a, err := unix.Mmap(-1, 0, arenaBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return nil, err
		}
		s.arena, s.kept = a, map[uint64]msg.Submission{}
	}
	n := int(pos.Len)
	if s.used+n > len(s.arena) { // more than one file: begin again
		s.used = 0
		clear(s.kept)
	}
	c, err := s.m.readBack(pos)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, wal.ErrGone
	}
	defer c.Release()
	b := s.arena[s.used : s.used+n : s.used+n]
	s.used += n
	copy(b, c.Bytes())
	s.kept[sub] = msg.Submission(b)
	return s.kept[sub], nil
}

// copyJob adds the records of one job to the writer; those that several lanes share
// are stored once.
func (s *subSource) copyJob(w *store.Writer, j *job) error {
	sub, err := s.get(j.n.sub)
	if errors.Is(err, errSettled) {
		return nil
	}
	var damage *wal.Damage
	if errors.As(err, &damage) {
		s.leaveOut(j, damage)
		return nil
	}
	if err != nil {
		return err
	}
	if err := sub.OpAt(int(j.n.op), &s.op); err != nil {
		return err
	}
	shared := len(s.op.Targets) > 1
	run := sub.Records(&s.op)
	at := j.n.first
	for _, r := range j.ranges {
		if err := run.Skip(int(r.First - at)); err != nil {
			return err
		}
		for i := range r.Count {
			rec, err := run.Next()
			if err != nil || rec == nil {
				return fmt.Errorf("engine: record %d of submission %d: %w", r.First+i-j.n.first, j.n.sub, err)
			}
			if shared {
				key := store.SharedKey{Hi: j.n.sub, Lo: uint64(j.n.op)<<32 | (r.First + i - j.n.first)}
				err = w.AddShared(j.k.log, j.k.lane, r.First+i, key, rec)
			} else {
				err = w.Add(j.k.log, j.k.lane, r.First+i, rec)
			}
			if err != nil {
				return err
			}
		}
		at = r.First + r.Count
	}
	return nil
}
