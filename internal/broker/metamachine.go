package broker

import (
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/meta"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/shard"
)

// metaMachine is shard 0: the catalog of definitions. Owned by that shard's loop, but
// for table, which everybody reads.
type metaMachine struct {
	catalog  *meta.Catalog
	table    atomic.Pointer[route.Table]
	accounts atomic.Pointer[accounts]
	// making holds the log ids of queues that are in the table while their logs may not
	// be there yet: what is routed to one meanwhile is not confirmed.
	making sync.Map
	cut    []shard.KV
	log    *slog.Logger
}

func newMetaMachine(log *slog.Logger) *metaMachine {
	m := &metaMachine{catalog: meta.New(), log: log}
	m.table.Store(route.New())
	m.accounts.Store(nobody)
	return m
}

// Apply implements shard.Machine: the Result's Value is a meta.Result.
func (m *metaMachine) Apply(c *shard.Command) (res shard.Result) {
	it := c.Sub.Iter()
	var op msg.Op
	for it.Next(&op) {
		if op.Kind != msg.OpMeta {
			continue
		}
		mop, _, err := meta.ParseOp(op.Data)
		if err != nil {
			m.log.Error("definition can't be read", "index", c.Index, "err", err)
			return shard.Result{Value: meta.Result{Outcome: meta.Refused, Err: berr.Wrap(berr.Internal, err, "definition")}}
		}
		r, changes := m.catalog.Apply(mop)
		m.publish(changes)
		res.Value = r
	}
	return res
}

// queueOf names the queue of a log, empty if there is none.
func (m *metaMachine) queueOf(shard uint32, log msg.LogID) (vhost, name string) {
	for vh := range m.table.Load().VHosts() {
		for q := range vh.Queues() {
			if q.ID == log && uint32(q.Shard) == shard {
				return q.VHost, q.Name
			}
		}
	}
	return "", ""
}

// local applies an operation on this node's own objects.
func (m *metaMachine) local(op meta.Op) meta.Result {
	r, changes := m.catalog.ApplyLocal(op)
	m.publish(changes)
	return r
}

// publish makes the changes visible to all connections at once.
func (m *metaMachine) publish(changes []meta.Change) {
	if len(changes) == 0 {
		return
	}
	e := m.table.Load().Edit()
	for _, c := range changes {
		switch c.Kind {
		case meta.QueuePut:
			m.making.Store(c.Queue.ID, true)
		case meta.QueueDeleted:
			m.making.Delete(c.Queue.ID)
		}
		meta.ApplyChange(e, c)
	}
	m.table.Store(e.Done())
	m.follow(changes)
}

// restored publishes what a checkpoint held.
func (m *metaMachine) restored() error {
	e := route.New().Edit()
	m.catalog.Populate(e)
	m.table.Store(e.Done())
	a, err := accountsOf(m.catalog)
	m.accounts.Store(a)
	return err
}

// Lead implements shard.Machine.
func (m *metaMachine) Lead(uint64) {}

// Follow implements shard.Machine.
func (m *metaMachine) Follow() {}

// Drive implements shard.Machine.
func (m *metaMachine) Drive(*msg.Builder) bool { return false }

// BeginCheckpoint implements shard.Machine: definitions are few, so the changed ones
// are copied at once.
func (m *metaMachine) BeginCheckpoint() {
	_ = m.catalog.Dirty(func(key, value []byte) error {
		kv := shard.KV{Key: append([]byte(nil), key...)}
		if value != nil {
			kv.Value = append([]byte{}, value...)
		}
		m.cut = append(m.cut, kv)
		return nil
	})
}

// CheckpointSlice implements shard.Machine.
func (m *metaMachine) CheckpointSlice(limit int, emit func(key, value []byte)) bool {
	n := min(limit, len(m.cut))
	for _, kv := range m.cut[:n] {
		emit(kv.Key, kv.Value)
	}
	m.cut = m.cut[n:]
	if len(m.cut) > 0 {
		return false
	}
	m.cut = nil
	return true
}

// Restore implements shard.Machine.
func (m *metaMachine) Restore(key, value []byte) error { return m.catalog.Restore(key, value) }

// Reset implements shard.Machine. Connections see what was until the rest is restored.
func (m *metaMachine) Reset() {
	m.catalog.Reset()
	m.cut = nil
}
