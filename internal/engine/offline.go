package engine

import (
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sort"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
	"github.com/sluicemq/sluice/internal/wal"
)

// Names tells a check what logs are called.
type Names struct {
	Meta   shard.Machine // the machine of shard 0, empty
	Loaded func() error  // as NodeConfig.MetaLoaded
	// QueueOf names the queue of a log, once Meta is restored; empty if there is none.
	QueueOf func(shard uint32, log msg.LogID) (vhost, queue string)
}

// LostBody is a message of which a part of the large body is missing or damaged.
type LostBody struct {
	Shard  uint32 `json:"shard"`
	Loss          // of one message
	Part   uint32 `json:"part"` // the first such part
	Reason string `json:"reason"`
}

// offline restores shards from a data directory that is not open, without changing it.
type offline struct {
	fs    vfs.FS
	dir   string
	store *store.CheckReport
	wal   *wal.Recovery
}

// restore brings an empty machine to the last state that the directory holds.
func (o *offline) restore(id uint32, m shard.Machine, loaded func() error) error {
	r := shard.Restored{}
	if sh := o.shard(id); sh != nil && sh.HasCheckpoint {
		x, err := shard.ParseCheckpointExtra(sh.Checkpoint.Extra)
		if err != nil {
			return err
		}
		r.Checkpoint, r.Term, r.Conf, r.Installed = sh.Checkpoint.Index, x.Term, x.Conf, x.Installed
		err = sh.EachPair(o.fs, o.dir, func(key, value []byte) (err error) {
			if string(key) != shard.ShardKey {
				return m.Restore(key, value)
			}
			r.TimeMS, r.Links, err = shard.ParseShardState(append([]byte(nil), value...))
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := loaded(); err != nil {
		return err
	}
	if w, ok := o.wal.Shard(id); ok {
		r.Wal = &w
		r.Replay = func(from uint64, fn func(wal.Entry) error) error { return o.wal.Replay(id, from, fn) }
	}
	_, err := shard.NewCore(shard.Config{
		ID: id, Incarnation: 1, Node: 1, Voters: []uint64{1}, Log: noLog{}, Machine: m,
		Logger: slog.New(slog.DiscardHandler),
	}, r)
	return err
}

func (o *offline) shard(id uint32) *store.ShardReport {
	for i := range o.store.Shards {
		if o.store.Shards[i].Shard == id {
			return &o.store.Shards[i]
		}
	}
	return nil
}

// ids returns the durable shards of queues.
func (o *offline) ids() (ids []uint32) {
	seen := map[uint32]bool{MetaShard: true, VolatileShard: true}
	add := func(id uint32) {
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	for _, s := range o.store.Shards {
		add(s.Shard)
	}
	for _, s := range o.wal.Shards {
		add(s.Shard)
	}
	slices.Sort(ids)
	return ids
}

// bodies looks for all parts of all large messages. Where damage keeps a shard from being
// restored, which is reported elsewhere, it doesn't look.
func (o *offline) bodies(names *Names) (list []LostBody, err error) {
	damaged := len(o.store.Damages)+len(o.wal.Damages) > 0
	for _, id := range o.ids() {
		m := New(Config{Shard: id, Log: slog.New(slog.DiscardHandler)})
		if sh := o.shard(id); sh != nil {
			m.flushed = sh.Flushed.WALSeq
		}
		if err := o.restore(id, m, func() error { return m.RestoreDone(nil) }); err != nil {
			if damaged {
				continue
			}
			return nil, fmt.Errorf("shard %d: %w", id, err)
		}
		list = o.lost(list, m)
	}
	if names == nil || len(list) == 0 {
		return list, nil
	}
	if err := o.restore(MetaShard, names.Meta, names.Loaded); err != nil {
		if damaged {
			return list, nil
		}
		return nil, fmt.Errorf("shard %d: %w", MetaShard, err)
	}
	for i := range list {
		list[i].VHost, list[i].Queue = names.QueueOf(list[i].Shard, list[i].Log)
	}
	return list, nil
}

func (o *offline) lost(list []LostBody, m *Machine) []LostBody {
	var logs []msg.LogID
	m.ledger.Logs(func(log msg.LogID) bool { logs = append(logs, log); return true })
	slices.Sort(logs)
	for _, log := range logs {
		for n := range 256 {
			m.ledger.EachLarge(log, uint8(n), func(off msg.Offset, ref msg.PartsRef) {
				for part := range ref.Count {
					if why := o.fault(m, ref.Log, msg.Offset(part)); why != "" {
						list = append(list, LostBody{
							Shard: m.id, Loss: Loss{Log: log, Lane: uint8(n), First: off, Last: off}, Part: part, Reason: why,
						})
						return
					}
				}
			})
		}
	}
	return list
}

// fault says what is wrong with a part, "" for nothing. Everything was read before: where
// it is not damaged it is sound.
func (o *offline) fault(m *Machine, log msg.LogID, part msg.Offset) string {
	for _, d := range o.store.Damages {
		if d.HasRange && d.Shard == m.id && d.Log == log && d.First <= part && part <= d.Last {
			return d.Error()
		}
	}
	if l := m.places.lanes[lane{log, 0}]; l != nil {
		i := sort.Search(len(l.notes), func(i int) bool { return l.notes[i].first > part }) - 1
		if i >= 0 && part < l.notes[i].first+uint64(l.notes[i].count) {
			return o.walFault(m.tail.subs[l.notes[i].sub-m.tail.first].pos)
		}
	}
	if sh := o.shard(m.id); sh != nil {
		for _, r := range sh.Internal {
			if r.Log == log && r.First <= part && part <= r.Last {
				return ""
			}
		}
	}
	return "it is in no file"
}

func (o *offline) walFault(pos wal.Position) string {
	for _, d := range o.wal.Damages {
		if d.Seq == pos.Seq && d.Off < int64(pos.Off)+int64(pos.Len) && int64(pos.Off) < d.Off+d.Len {
			return d.Error()
		}
	}
	f, err := o.fs.Stat(filepath.Join(o.dir, "wal", wal.FileName(pos.Seq)))
	if err != nil || f.Size < int64(pos.Off)+int64(pos.Len) {
		return fmt.Sprintf("file %d of the write-ahead log: %v", pos.Seq, fs.ErrNotExist)
	}
	return ""
}

// noLog is the log of a shard that is only looked at.
type noLog struct{}

// Submit implements shard.Log.
func (noLog) Submit(...wal.Append) { panic("engine: BUG: a shard that is only looked at writes") }

// MaxPayload implements shard.Log.
func (noLog) MaxPayload() int { return 0 }
