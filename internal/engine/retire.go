package engine

import (
	"errors"
	"time"

	"github.com/sluicemq/sluice/internal/planted"
	"github.com/sluicemq/sluice/internal/wal"
)

// retireFiles flushes and gives back the oldest WAL files while too many are sealed:
// any at all when the disk is nearly full, since what they hold may be settled.
func (k *Keeper) retireFiles() {
	for {
		sealed, budget := k.wal.Sealed(), k.budget
		k.pressure.Store(len(sealed) > 2*k.budget)
		if k.scarce.Load() > 0 {
			budget = 0
		}
		if len(sealed) <= budget {
			return
		}
		select {
		case <-k.stop:
			return
		default:
		}
		if err := k.retire(sealed[0]); err != nil {
			k.noteFailed(err)
			if !errors.Is(err, ErrStopped) && !errors.Is(err, errNeeded) {
				k.log.Warn("write-ahead log file not flushed, trying again", "file", sealed[0].Seq, "err", err)
			}
			return
		}
	}
}

// retire makes a file superfluous: survivors to segments, a checkpoint over it, raft's
// entries forgotten. Then it is released.
//
// What the log says of the file's entries isn't asked for what has to be flushed: after a
// restart it knows none that a checkpoint covers, but the messages still lie there.
func (k *Keeper) retire(f wal.SealedFile) error {
	for _, r := range f.Shards {
		if yes, err := k.settled(r.Shard, r.Last); err != nil {
			return err
		} else if !yes {
			return errNeeded
		}
	}
	for _, s := range k.queues {
		last := uint64(0)
		for _, r := range f.Shards {
			if r.Shard == s.ID() {
				last = r.Last
			}
		}
		from, to := s.m.tail.span(f.Seq)
		if from == to && (last == 0 || k.store.Flushed(s.ID()).WALSeq >= f.Seq) || planted.RecycleBeforeFlush {
			continue
		}
		if err := k.flush(s, f.Seq, last); err != nil {
			return err
		}
	}
	for _, r := range f.Shards {
		if err := k.checkpointed(r.Shard, r.Last, false); err != nil {
			return err
		}
	}
	needed := false
	for _, r := range f.Shards {
		for _, s := range k.all {
			done, _ := k.done.Load(r.Shard)
			index, _ := done.(uint64)
			if s.ID() == r.Shard && !s.Call(func() { needed = needed || s.Core().Compact(index) < r.Last }) {
				return ErrStopped
			}
		}
	}
	if needed {
		return errNeeded
	}
	k.wal.Release(f.Seq)
	return nil
}

// errNeeded: a file can't be given back yet, since it has entries that are not committed
// or that a follower may ask for.
var errNeeded = errors.New("engine: needed by the group")

// settled says whether everything up to an index is applied; what waits for that with
// other voters may wait for long.
func (k *Keeper) settled(id uint32, index uint64) (yes bool, err error) {
	yes = true
	for _, s := range k.all {
		if s.ID() == id && !s.Call(func() {
			c := s.Core()
			yes = c.Alone() || c.Applied() >= index && !c.CatchingUp()
		}) {
			return false, ErrStopped
		}
	}
	return yes, nil
}

// checkpointed waits until a durable checkpoint of the shard covers index; with once it
// gives up when writing one fails.
func (k *Keeper) checkpointed(id uint32, index uint64, once bool) error {
	for {
		if err := k.cutErr.Load(); err != nil && once {
			return *err
		}
		if v, ok := k.done.Load(id); ok && v.(uint64) >= index {
			return nil
		}
		for _, s := range k.all {
			if s.ID() != id {
				continue
			}
			var failed error
			var behind bool // then it takes no checkpoint, and waits for the keeper
			if !s.Call(func() {
				s.Core().RequestCheckpoint()
				failed, behind = s.Core().Failed(), s.Core().CatchingUp()
			}) {
				return ErrStopped
			}
			if failed != nil {
				return failed
			}
			if behind {
				return errNeeded
			}
		}
		if !k.wait(k.cutMade, 20*time.Millisecond) {
			return ErrStopped
		}
	}
}
