package engine

import (
	"fmt"

	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/wal"
)

// loadShard loads a shard's checkpoint into its machine and says what the WAL has of it.
func (n *Node) loadShard(cfg NodeConfig, id uint32, m shard.Machine, loaded func() error, lose func()) (shard.Restored, error) {
	r := shard.Restored{}
	if info, ok := n.store.Checkpoint(id); ok {
		x, err := shard.ParseCheckpointExtra(info.Extra)
		if err != nil {
			return r, fmt.Errorf("shard %d: %w", id, err)
		}
		if err := n.checkpointDamage(cfg, id, &info, &r); err != nil {
			return r, err
		}
		r.Checkpoint, r.Term, r.Conf, r.Installed = info.Index, x.Term, x.Conf, x.Installed
		n.keeper.done.Store(id, info.Index)
		if q, ok := m.(*Machine); ok && r.Lossy {
			q.lossy = true
			q.ledger.RestoreLossy()
		}
		err = n.store.LoadCheckpoint(id, func(key, value []byte) (err error) {
			if string(key) != shard.ShardKey {
				return m.Restore(key, value)
			}
			r.TimeMS, r.Links, err = shard.ParseShardState(append([]byte(nil), value...))
			return err
		})
		if err != nil {
			return r, fmt.Errorf("shard %d: checkpoint: %w", id, err)
		}
	}
	if r.Lossy && id == MetaShard {
		lose()
	}
	if err := loaded(); err != nil {
		return r, fmt.Errorf("shard %d: checkpoint: %w", id, err)
	}
	if r.Lossy && id != MetaShard {
		lose()
	}
	for i := range n.Recovery.Shards {
		if n.Recovery.Shards[i].Shard == id {
			r.Wal = &n.Recovery.Shards[i]
			r.Replay = func(from uint64, fn func(wal.Entry) error) error {
				return n.Recovery.Replay(id, from, fn)
			}
		}
	}
	return r, nil
}
