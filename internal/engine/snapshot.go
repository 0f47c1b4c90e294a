package engine

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
)

// Peers reads the files of other nodes: see Node.ReadFile, which serves them there.
type Peers interface {
	ReadFile(node uint64, shard uint32, pin uint64, f store.FileRef, p []byte, off int64) (int, error)
}

// snapshots makes snapshots of this node's shards for others and takes theirs. It
// implements shard.Snapshots: shards' loops leave their wishes here, the keeper's jobs
// see to them, one at a time.
//
// A snapshot is the last checkpoint with the segments of a little later, when all that
// the WAL still had of it was flushed. What was settled in between has no bytes there: the
// follower's log goes on with that, and it leads only when it has applied it.
type snapshots struct {
	k     *Keeper
	peers Peers
	wake  chan struct{} // of the job that fetches

	mu       sync.Mutex // a leaf
	wanted   map[uint32]uint64
	fetches  map[uint32]fetchJob
	installs map[uint32][]byte
	released []uint64
	pins     map[uint64]*store.Snapshot
	last     uint64          // pin
	cutting  map[uint32]bool // a checkpoint is being written
	closed   map[uint32]bool // none may be
	fetching map[uint32]bool // files come in
	spacing  uint32          // the shard whose segments are being compacted; 0: none
}

type fetchJob struct {
	from uint64
	list []byte
}

func newSnapshots(k *Keeper, peers Peers) *snapshots {
	return &snapshots{
		k: k, peers: peers, wake: make(chan struct{}, 1),
		wanted: map[uint32]uint64{}, fetches: map[uint32]fetchJob{}, installs: map[uint32][]byte{},
		pins: map[uint64]*store.Snapshot{}, cutting: map[uint32]bool{}, closed: map[uint32]bool{}, fetching: map[uint32]bool{},
	}
}

// Make implements shard.Snapshots.
func (s *snapshots) Make(id uint32, index uint64) {
	s.mu.Lock()
	s.wanted[id] = index
	s.mu.Unlock()
	poke(s.k.wake)
}

// Release implements shard.Snapshots. Files that nobody holds any more are unlinked by
// the keeper.
func (s *snapshots) Release(_ uint32, pin uint64) {
	s.mu.Lock()
	s.released = append(s.released, pin)
	s.mu.Unlock()
	poke(s.k.wake)
}

// Fetch implements shard.Snapshots.
func (s *snapshots) Fetch(id uint32, from uint64, list []byte) {
	s.mu.Lock()
	s.fetches[id] = fetchJob{from, list}
	s.mu.Unlock()
	poke(s.wake)
}

// Install implements shard.Snapshots.
func (s *snapshots) Install(id uint32, list []byte) {
	s.mu.Lock()
	s.installs[id] = list
	s.mu.Unlock()
	poke(s.k.wake)
}

// pinned returns a snapshot that is kept for others.
func (s *snapshots) pinned(pin uint64) *store.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pins[pin]
}

// tend does what shards wait for; on the keeper's goroutine.
func (s *snapshots) tend() {
	s.mu.Lock()
	released := s.released
	s.released = nil
	var gone []*store.Snapshot
	for _, pin := range released {
		gone = append(gone, s.pins[pin])
		delete(s.pins, pin)
	}
	s.mu.Unlock()
	for _, v := range gone {
		v.Release()
	}
	for _, sh := range s.k.all {
		id := sh.ID()
		s.mu.Lock()
		list, install := s.installs[id]
		index, make := s.wanted[id]
		delete(s.installs, id)
		delete(s.wanted, id)
		s.mu.Unlock()
		if install {
			s.install(sh, list)
		}
		if make {
			m, err := s.make(sh, index)
			if err != nil && !errors.Is(err, ErrStopped) {
				s.k.log.Warn("snapshot not made", "shard", id, "err", err)
			}
			sh.Post(func() { sh.Core().SnapshotMade(m, err) })
		}
	}
}

func (s *snapshots) make(sh *shard.Shard, index uint64) (m shard.Made, err error) {
	if err := s.k.checkpointed(sh.ID(), max(index, 1), false); err != nil {
		return m, err
	}
	v := s.k.store.Snapshot(sh.ID())
	defer func() {
		if err != nil {
			v.Release()
		}
	}()
	if q := s.k.queue(sh.ID()); q != nil {
		from, to := q.m.tail.all()
		if err := s.k.move(q, from, to, store.Flushed{}); err != nil {
			return m, err
		}
		v.Replace(s.k.store.Snapshot(sh.ID()))
	}
	s.mu.Lock()
	s.last++
	pin := s.last
	s.mu.Unlock()
	list, err := v.List(pin)
	if err != nil {
		return m, err
	}
	s.mu.Lock()
	s.pins[pin] = v
	s.mu.Unlock()
	return shard.Made{ID: pin, Index: list.Check.Index, Extra: list.Check.Extra, List: list.Append(nil)}, nil
}

// queue returns the shard of queues with this number, nil if it is another one.
func (k *Keeper) queue(id uint32) *Shard {
	for _, q := range k.queues {
		if q.ID() == id {
			return q
		}
	}
	return nil
}

// fetch is the job that fetches files, one shard's after the other's.
func (s *snapshots) fetch() {
	for {
		id, job, ok := s.nextFetch()
		if !ok {
			if !s.k.wait(s.wake, 0) {
				return
			}
			continue
		}
		err := s.fetchList(id, job)
		if errors.Is(err, ErrStopped) {
			return
		}
		if err != nil {
			s.k.log.Warn("snapshot not fetched", "shard", id, "from", job.from, "err", err)
		}
		for _, sh := range s.k.all {
			if sh.ID() == id {
				sh.Post(func() { sh.Core().SnapshotFetched(job.list, err) })
			}
		}
	}
}

func (s *snapshots) nextFetch() (id uint32, job fetchJob, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sh := range s.k.all {
		if job, ok = s.fetches[sh.ID()]; ok {
			delete(s.fetches, sh.ID())
			return sh.ID(), job, true
		}
	}
	return 0, job, false
}

// errReplaced ends the fetching of a list when there is a newer one.
var errReplaced = errors.New("engine: a newer snapshot is fetched instead")

// beginSpace says whether the segments of a shard may be compacted and dropped. Not while
// the list that it fetches may name them, nor as long as it has not applied again what
// it had when it flushed: offsets that are not given yet look as if nobody needed them.
func (s *snapshots) beginSpace(sh *Shard) bool {
	ok := true
	if sh.Core() != nil && !sh.Call(func() {
		c := sh.Core()
		ok = c.Alone() || !c.CatchingUp() && c.Applied() >= s.k.store.Flushed(sh.ID()).Index
	}) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok = ok && !s.fetching[sh.ID()]; ok {
		s.spacing = sh.ID()
	}
	return ok
}

func (s *snapshots) endSpace() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spacing = 0
}

// beginFetch waits until the shard's segments are left alone.
func (s *snapshots) beginFetch(id uint32) bool {
	for {
		s.mu.Lock()
		busy := s.spacing == id
		s.fetching[id] = !busy
		s.mu.Unlock()
		if !busy {
			return true
		}
		if !s.k.sleep(time.Millisecond) {
			return false
		}
	}
}

func (s *snapshots) endFetch(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetching[id] = false
}

func (s *snapshots) fetchList(id uint32, job fetchJob) error {
	if !s.beginFetch(id) {
		return ErrStopped
	}
	defer s.endFetch(id)
	list, err := store.ParseCopyList(job.list)
	if err == nil && list.Shard != id {
		err = fmt.Errorf("%w: files of shard %d", store.ErrInvalid, list.Shard)
	}
	if err != nil {
		return err
	}
	return s.k.store.Fetch(list, peer{s.peers, job.from}, store.FetchOptions{Throttle: func(int) error {
		select {
		case <-s.k.stop:
			return ErrStopped
		default:
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, newer := s.fetches[id]; newer {
			return errReplaced
		}
		return nil
	}})
}

// peer is one of Peers.
type peer struct {
	peers Peers
	node  uint64
}

func (p peer) ReadFile(shard uint32, pin uint64, f store.FileRef, b []byte, off int64) (int, error) {
	return p.peers.ReadFile(p.node, shard, pin, f, b, off)
}

// mayCut says whether a cut may be written, and that it is being written. Cuts from
// before a snapshot was installed count no more.
func (s *snapshots) mayCut(c *shard.Cut) bool {
	done, _ := s.k.done.Load(c.Shard)
	index, _ := done.(uint64)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed[c.Shard] || c.Index < index {
		return false
	}
	s.cutting[c.Shard] = true
	return true
}

func (s *snapshots) cutDone(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cutting[id] = false
}

// closeCuts keeps checkpoints of a shard from being written until openCuts.
func (s *snapshots) closeCuts(id uint32) bool {
	for {
		s.mu.Lock()
		s.closed[id] = true
		busy := s.cutting[id]
		s.mu.Unlock()
		if !busy {
			return true
		}
		if !s.k.sleep(time.Millisecond) {
			return false
		}
	}
}

func (s *snapshots) openCuts(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed[id] = false
}

// install makes fetched files a shard's own and loads them.
func (s *snapshots) install(sh *shard.Shard, data []byte) {
	if !s.closeCuts(sh.ID()) {
		return
	}
	defer s.openCuts(sh.ID())
	list, runs, err := s.take(data)
	if errors.Is(err, ErrStopped) {
		return
	}
	var st shard.Loaded
	if err == nil {
		s.k.done.Store(sh.ID(), list.Check.Index)
		st, err = s.load(sh, runs)
	}
	sh.Post(func() { sh.Core().SnapshotInstalled(st, err) })
}

func (s *snapshots) take(data []byte) (*store.CopyList, []store.Run, error) {
	list, err := store.ParseCopyList(data)
	if err != nil {
		return nil, nil, err
	}
	x, err := shard.ParseCheckpointExtra(list.Check.Extra)
	if err != nil {
		return nil, nil, err
	}
	x.Installed = true
	for {
		runs, err := s.k.store.Take(list, x.Encode(), NodeKey)
		if err == nil || !vfs.IsNoSpace(err) {
			return list, runs, err
		}
		s.k.log.Warn("snapshot not installed, trying again", "shard", list.Shard, "err", err)
		if !s.k.sleep(upkeepEvery) {
			return nil, nil, ErrStopped
		}
	}
}

// load fills a machine with the checkpoint that was installed, in slices on its loop.
func (s *snapshots) load(sh *shard.Shard, runs []store.Run) (st shard.Loaded, err error) {
	l := s.k.loads[sh.ID()]
	if !sh.Call(l.machine.Reset) {
		return st, ErrStopped
	}
	var batch []shard.KV
	flush := func() (err error) {
		if !sh.Call(func() {
			for _, kv := range batch {
				if err == nil {
					err = l.machine.Restore(kv.Key, kv.Value)
				}
			}
		}) {
			err = ErrStopped
		}
		batch = batch[:0]
		return err
	}
	err = s.k.store.LoadCheckpoint(sh.ID(), func(key, value []byte) (err error) {
		if string(key) == shard.ShardKey {
			st.TimeMS, st.Links, err = shard.ParseShardState(append([]byte(nil), value...))
			return err
		}
		batch = append(batch, shard.KV{Key: append([]byte(nil), key...), Value: append([]byte{}, value...)})
		if len(batch) == sliceOfWork {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err == nil && !sh.Call(func() { err = l.loaded(runs) }) {
		err = ErrStopped
	}
	return st, err
}

// loading is how a shard's machine is filled from a checkpoint.
type loading struct {
	machine shard.Machine
	loaded  func(runs []store.Run) error
}

// FetchFiles is a third job where there are Replicas with Files, see Upkeep: it fetches
// what shards need of other nodes.
func (n *Node) FetchFiles() { n.keeper.job(n.keeper.snaps.fetch) }

// ReadFile serves other nodes' Peers.ReadFile: part of a file that is kept for them.
func (n *Node) ReadFile(_ uint32, pin uint64, f store.FileRef, p []byte, off int64) (int, error) {
	v := n.keeper.snaps.pinned(pin)
	if v == nil {
		return 0, store.ErrGone
	}
	return v.ReadFile(f, p, off)
}
