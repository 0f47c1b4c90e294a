package engine

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/hist"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
	"github.com/sluicemq/sluice/internal/wal"
)

// upkeepEvery is how often the keeper looks for work that nothing announced, and how
// long it waits after a failure.
const upkeepEvery = 500 * time.Millisecond

// Keeper keeps a node's disk in order: see the package comment. It owns no shard; it
// asks their loops for slices of work.
type Keeper struct {
	store    *store.Store
	aside    *quarantine
	log      *slog.Logger
	wal      *wal.Log
	queues   []*Shard       // durable shards of queues
	volatile *Shard         // may be nil
	all      []*shard.Shard // every shard with entries in the WAL
	budget   int            // sealed WAL files that may wait
	spill    int64          // bytes of the volatile shard's chunks

	disk   *disk       // nil if nobody knows
	failed func(error) // told when the store failed for good; may be nil

	cuts struct {
		sync.Mutex
		list []shard.Cut
	}
	done    sync.Map // shard id -> index of the durable checkpoint (uint64)
	cutWake chan struct{}
	cutMade chan struct{}
	cutErr  atomic.Pointer[error] // why the last checkpoint was not written
	wake    chan struct{}
	stop    chan struct{}
	wg      sync.WaitGroup
	// pause is Stepping's; then jobs counts the calls of run and writeCuts.
	pause    func(atMost time.Duration) bool
	jobs     int
	pressure atomic.Bool
	scarce   atomic.Int32 // reasons to think that the disk is nearly full

	// How long it took to move messages into segments, to merge or rewrite segments, and
	// to make a checkpoint durable; and the bytes that merging wrote.
	flushes, merges, checkpoints hist.Histogram
	rewritten                    atomic.Int64
	snaps                        *snapshots
	loads                        map[uint32]*loading
}

func newKeeper(st *store.Store, log *slog.Logger, budget int, spill int64) *Keeper {
	k := &Keeper{
		store: st, log: log, budget: budget, spill: spill,
		cutWake: make(chan struct{}, 1), cutMade: make(chan struct{}, 1),
		wake: make(chan struct{}, 1), stop: make(chan struct{}), loads: map[uint32]*loading{},
	}
	k.snaps = newSnapshots(k, nil)
	return k
}

// noteFailed tells that the store can't note any more what it has: no file of the
// write-ahead log would ever be given back, and publishers would wait for that.
func (k *Keeper) noteFailed(err error) {
	if errors.Is(err, store.ErrFailed) && k.failed != nil {
		k.failed(err)
	}
}

func (k *Keeper) start() {
	if k.snaps.peers != nil {
		k.wg.Add(1)
		go func() { defer k.wg.Done(); k.snaps.fetch() }()
	}
	k.wg.Add(2)
	go func() { defer k.wg.Done(); k.writeCuts() }()
	go func() { defer k.wg.Done(); k.run() }()
}

func (k *Keeper) close() {
	close(k.stop)
	for k.jobs > 0 && k.pause(0) {
	}
	k.wg.Wait()
}

// job runs one of the keeper's two jobs on its caller.
func (k *Keeper) job(run func()) {
	k.jobs++
	defer func() { k.jobs-- }()
	run()
}

// wait returns when something was sent on ch, or after d if that is positive; false
// when the keeper is to end.
func (k *Keeper) wait(ch <-chan struct{}, d time.Duration) bool {
	if k.pause != nil {
		return k.stepped(ch, d)
	}
	var after <-chan time.Time
	if d > 0 {
		after = time.After(d)
	}
	select {
	case <-ch:
		return true
	case <-after:
		return true
	case <-k.stop:
		return false
	}
}

// stepped is wait for a keeper that pauses: once, its callers look again.
func (k *Keeper) stepped(ch <-chan struct{}, d time.Duration) bool {
	select {
	case <-k.stop:
		return false
	default:
	}
	select {
	case <-ch:
		return true
	default:
		return k.pause(cmp.Or(d, upkeepEvery))
	}
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Pressure reports that the WAL is so far ahead of the flusher that publishers should
// wait. Once the WAL has failed nothing gets better by waiting.
func (k *Keeper) Pressure() bool { return k.pressure.Load() && k.wal.Err() == nil }

// volatilePressure reports that the volatile shard holds much more in memory than it
// may: its publishers should wait until that is on disk, or consumed.
func (k *Keeper) volatilePressure() bool {
	bytes := k.volatile.m.tail.size()
	if bytes > k.spill {
		poke(k.wake)
	}
	return bytes > 2*k.spill
}

// setScarce notes a reason to think that the disk is nearly full, or its end. While
// there is one, space is given back as soon as possible.
func (k *Keeper) setScarce(yes bool) {
	if yes {
		k.scarce.Add(1)
		poke(k.wake)
		return
	}
	k.scarce.Add(-1)
}

// take receives a cut from a shard's loop.
func (k *Keeper) take(c shard.Cut) {
	k.cuts.Lock()
	k.cuts.list = append(k.cuts.list, c)
	k.cuts.Unlock()
	poke(k.cutWake)
}

// writeCuts makes cuts durable. One that can't be written is tried until it can: the
// next one only holds what changed since.
func (k *Keeper) writeCuts() {
	for {
		k.cuts.Lock()
		list := k.cuts.list
		k.cuts.list = nil
		k.cuts.Unlock()
		for _, c := range list {
			for {
				err := k.writeCut(c)
				if err == nil {
					k.cutErr.Store(nil)
					break
				}
				k.cutErr.Store(&err)
				k.noteFailed(err)
				k.log.Warn("checkpoint not written, trying again", "shard", c.Shard, "err", err)
				if !k.sleep(upkeepEvery) {
					return
				}
			}
		}
		if len(list) > 0 {
			continue
		}
		if !k.wait(k.cutWake, 0) {
			return
		}
	}
}

func (k *Keeper) sleep(d time.Duration) bool { return k.wait(nil, d) }

func (k *Keeper) writeCut(c shard.Cut) error {
	if !k.snaps.mayCut(&c) {
		return nil
	}
	defer k.snaps.cutDone(c.Shard)
	begun := time.Now()
	w, err := k.store.BeginCheckpoint(c.Shard)
	if err != nil {
		return err
	}
	defer w.Abort()
	for _, kv := range c.Keys {
		if err := w.Put(kv.Key, kv.Value); err != nil {
			return err
		}
	}
	if err := w.Commit(c.Index, c.Extra(), nil); err != nil {
		return err
	}
	k.checkpoints.Record(time.Since(begun))
	k.done.Store(c.Shard, c.Index)
	for _, s := range k.all {
		if s.ID() == c.Shard {
			s.Post(s.Core().CheckpointDone)
		}
	}
	poke(k.cutMade)
	return nil
}

func (k *Keeper) run() {
	for {
		k.retireFiles()
		k.spillVolatile()
		k.space()
		k.refill()
		k.snaps.tend()
		if !k.wait(k.wake, upkeepEvery) {
			return
		}
	}
}

// refill takes back what was given up of the reserve for a full disk.
func (k *Keeper) refill() {
	if k.disk == nil {
		return
	}
	if err := k.disk.fs.Fill(k.disk.room.mark); err != nil && !vfs.IsNoSpace(err) {
		k.log.Warn("no space reserved for a full disk, trying again", "err", err)
	}
}

// space drops dead segments and rewrites those that are mostly dead.
func (k *Keeper) space() {
	shards := k.queues
	if k.volatile != nil {
		shards = append(append([]*Shard(nil), shards...), k.volatile)
	}
	for _, s := range shards {
		if k.snaps.beginSpace(s) {
			k.spaceOf(s)
			k.snaps.endSpace()
		}
	}
}

func (k *Keeper) spaceOf(s *Shard) {
	c := k.store.Candidates(s.ID())
	if err := k.dropDead(s, c.Dead); err != nil {
		k.log.Warn("dead segments not dropped", "shard", s.ID(), "err", err)
	}
	for _, id := range c.Measure {
		err := k.measure(s, id)
		var damage *store.DamageError
		if errors.As(err, &damage) {
			err = k.damaged(s, damage)
		}
		if err != nil {
			k.log.Warn("segment not measured", "segment", id, "err", err)
		}
	}
	var groups [][]store.SegID
	for _, g := range c.Rewrite {
		if k.mayRewrite(s.ID(), g) {
			groups = append(groups, g)
		}
	}
	for _, g := range c.Merge {
		if k.mayMerge(s.ID(), g) {
			groups = append(groups, g)
		}
	}
	for _, group := range groups {
		select {
		case <-k.stop:
			return
		default:
		}
		err := k.compact(s, group)
		var damage *store.DamageError
		if errors.As(err, &damage) {
			err = k.damaged(s, damage)
		}
		if err != nil {
			k.log.Warn("segments not compacted", "shard", s.ID(), "segments", group, "err", err)
		}
	}
}

// mayMerge says whether there is space for a merge, which takes as much as its inputs
// before it gives that back, and saves none: half of what is free is not touched.
func (k *Keeper) mayMerge(id uint32, group []store.SegID) bool {
	return k.scarce.Load() == 0 && k.fits(k.bytesOf(id, group), 2)
}

// mayRewrite says whether there is space for a rewrite, which takes at most half of its
// inputs and saves more than that.
func (k *Keeper) mayRewrite(id uint32, group []store.SegID) bool {
	return k.fits(k.bytesOf(id, group)/2, 1)
}

func (k *Keeper) bytesOf(id uint32, group []store.SegID) (bytes uint64) {
	for _, m := range k.store.Segments(id) {
		if slices.Contains(group, m.ID) {
			bytes += uint64(m.Bytes)
		}
	}
	return bytes
}

// fits says whether so many bytes are no more than a part of what is free.
func (k *Keeper) fits(bytes, part uint64) bool {
	if k.disk == nil {
		return true
	}
	sp, err := k.disk.fs.FreeSpace(k.disk.dir)
	return err == nil && k.disk.fs.Missing() == 0 && bytes <= sp.Free/part
}

// measure lets the store find out what a rewrite of a segment would keep.
func (k *Keeper) measure(s *Shard, id store.SegID) error {
	runs, err := k.store.Runs(id)
	if err != nil {
		return err
	}
	live, ok := s.liveOf([]store.SegID{id}, runs)
	if !ok {
		return ErrStopped
	}
	_, err = k.store.Measure(id, live)
	return err
}

// dropDead drops segments of which nothing is unsettled. The store's counts only
// propose: the ledger has the word, since runs of a lane may overlap in range.
func (k *Keeper) dropDead(s *Shard, ids []store.SegID) error {
	var edit store.Edit
	var dropped []store.Run
	for _, id := range ids {
		runs, err := k.store.Runs(id)
		if err != nil {
			return err
		}
		if dead, ok := s.allSettled(runs); !ok {
			return ErrStopped
		} else if dead {
			edit.DropSegment(id)
			dropped = append(dropped, runs...)
		}
	}
	if edit.Empty() {
		return nil
	}
	if err := k.store.Install(&edit); err != nil {
		return err
	}
	s.Call(func() { s.m.places.removeRuns(dropped) })
	return nil
}

// sliceOfWork is how many lanes or runs the keeper asks a loop about at once.
const sliceOfWork = 512

// inSlices calls fn for parts of 0 to n until it returns false.
func inSlices(n int, fn func(from, to int) bool) bool {
	for from := 0; from < n; from += sliceOfWork {
		if !fn(from, min(from+sliceOfWork, n)) {
			return false
		}
	}
	return true
}

// allSettled asks the ledger whether nothing in the runs is unsettled; where there is,
// the store is told how much.
func (s *Shard) allSettled(runs []store.Run) (dead, ok bool) {
	dead = true
	ok = inSlices(len(runs), func(from, to int) bool {
		return s.Call(func() {
			for _, r := range runs[from:to] {
				if n := s.m.liveIn(r); n > 0 {
					dead = false
					s.m.store.SetLive(r, n)
				}
			}
		})
	})
	return dead, ok
}

// liveIn is how many entries of a run may be unsettled; an upper bound where another
// run lies within its range.
func (m *Machine) liveIn(r store.Run) int {
	ln, ok := m.ledger.Lane(r.Log, r.Lane)
	if !ok {
		return 0
	}
	return int(min(uint64(r.Count), ln.UnsettledIn(msg.Range{First: r.First, Count: r.Last - r.First + 1})))
}

// liveOf collects what the store asks about the runs of some segments: the unsettled
// offsets, and whether the lane's run before each is among them too; false if the shard
// has stopped.
func (s *Shard) liveOf(ids []store.SegID, runs []store.Run) (fn store.LiveFunc, ok bool) {
	type key struct {
		seg store.SegID
		dir uint32
	}
	live := make(map[key]store.Live, len(runs))
	ok = inSlices(len(runs), func(from, to int) bool {
		return s.Call(func() {
			for _, r := range runs[from:to] {
				ln, ok := s.m.ledger.Lane(r.Log, r.Lane)
				l := s.m.places.lanes[lane{r.Log, r.Lane}]
				if !ok || l == nil {
					continue
				}
				live[key{r.Seg, r.Dir}] = store.Live{
					Ranges:  ln.AppendUnsettled(nil, msg.Range{First: r.First, Count: r.Last - r.First + 1}),
					Follows: l.follows(r, ids),
				}
			}
		})
	})
	return func(r store.Run) store.Live { return live[key{r.Seg, r.Dir}] }, ok
}

// follows says whether the run before r is in one of the segments.
func (l *place) follows(r store.Run, ids []store.SegID) bool {
	i := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].First >= r.First })
	return i > 0 && slices.Contains(ids, l.runs[i-1].Seg)
}

// compact rewrites the survivors of some segments. The new runs are known before the
// old ones are forgotten, and those are pinned until then.
func (k *Keeper) compact(s *Shard, ids []store.SegID) error {
	begun := time.Now()
	var old []store.Run
	for _, id := range ids {
		runs, err := k.store.Runs(id)
		if err != nil {
			return err
		}
		old = append(old, runs...)
	}
	live, ok := s.liveOf(ids, old)
	if !ok {
		return ErrStopped
	}
	c, err := k.store.Compact(ids, live, k.compaction())
	if err != nil {
		return err
	}
	defer c.Close()
	var edit store.Edit
	c.AddTo(&edit)
	if err := k.store.Install(&edit); err != nil {
		return err
	}
	s.install(c.Outputs)
	s.Call(func() { s.m.places.removeRuns(old) })
	for _, m := range c.Outputs {
		k.rewritten.Add(m.Bytes)
	}
	k.merges.Record(time.Since(begun))
	return nil
}

// compaction keeps compactions from using what is kept for a flush.
func (k *Keeper) compaction() (o store.CompactOptions) {
	if k.disk != nil {
		o.FS = k.disk.fs.FS
	}
	return o
}

// install makes new segments known to the machine.
func (s *Shard) install(metas []store.SegmentMeta) {
	for _, meta := range metas {
		inSlices(len(meta.Runs), func(from, to int) bool {
			runs := meta.Runs[from:to]
			return s.Call(func() {
				s.m.places.addRuns(runs)
				for _, r := range runs {
					if n := s.m.liveIn(r); n < int(r.Count) {
						s.m.store.SetLive(r, n)
					}
				}
			})
		})
	}
}
