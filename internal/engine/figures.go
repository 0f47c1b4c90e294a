package engine

import "github.com/sluicemq/sluice/internal/hist"

// Figures is what a running node measures of itself: counters and histograms since its
// start, and gauges. Sizes are in bytes.
type Figures struct {
	Shards []ShardFigures `json:"shards"`
	WAL    WALFigures     `json:"wal"`
	Store  StoreFigures   `json:"store"`
}

// ShardFigures are those of one shard.
type ShardFigures struct {
	ID uint32 `json:"id"` // 0: definitions; 65520: queues that are not durable
	// Turns is how long the turns of the shard's loop took. While one lasts, everything
	// else of the shard waits.
	Turns   hist.Snapshot `json:"turns"`
	Logs    int           `json:"logs"`     // queues
	Applied uint64        `json:"applied"`  // index of the last entry
	RunsMax int           `json:"runs_max"` // runs in segments, of the log's lane with the most
}

// WALFigures are those of the write-ahead log.
type WALFigures struct {
	Records  uint64        `json:"records"`
	Groups   uint64        `json:"groups"` // of records that were written together
	Syncs    uint64        `json:"syncs"`
	Bytes    uint64        `json:"bytes"` // written, headers and padding included
	Files    int           `json:"files"`
	Spares   int           `json:"spares"`    // files ready for use
	SyncTime hist.Snapshot `json:"sync_time"` // of a write with its sync
}

// StoreFigures are those of segments and checkpoints.
type StoreFigures struct {
	Segments       int           `json:"segments"`
	Bytes          int64         `json:"bytes"`           // of the segment files
	LiveBytes      int64         `json:"live_bytes"`      // of messages in them that are not settled, estimated
	DeadBytes      int64         `json:"dead_bytes"`      // of those that are
	WrittenBytes   uint64        `json:"written_bytes"`   // to segments, by flushes and merges
	RewrittenBytes int64         `json:"rewritten_bytes"` // of these by merges
	Flushes        hist.Snapshot `json:"flushes"`         // moving messages from the WAL, or from memory, to segments
	Merges         hist.Snapshot `json:"merges"`          // merging or rewriting segments
	Checkpoints    hist.Snapshot `json:"checkpoints"`     // making what changed since the last one durable
}

// Figures returns the node's figures; it asks each shard's loop once.
func (n *Node) Figures() *Figures {
	f := &Figures{Shards: []ShardFigures{{ID: MetaShard, Turns: n.meta.Turns()}}}
	n.meta.Call(func() { f.Shards[0].Applied = n.meta.Core().Applied() })
	for _, s := range n.queues {
		f.Shards = append(f.Shards, s.figures())
	}
	f.Shards = append(f.Shards, n.volatile.figures())
	w := n.wal.Metrics()
	f.WAL = WALFigures{
		Records: w.Records, Groups: w.Groups, Syncs: w.Syncs, Bytes: w.Bytes,
		Files: w.Files, Spares: w.Spares, SyncTime: n.syncs.Snapshot(),
	}
	m, k := n.store.Metrics(), n.keeper
	f.Store = StoreFigures{
		Segments: m.Segments, Bytes: m.SegmentBytes, LiveBytes: m.LiveBytes, DeadBytes: m.DeadBytes,
		WrittenBytes: m.BytesWritten, RewrittenBytes: k.rewritten.Load(),
		Flushes: k.flushes.Snapshot(), Merges: k.merges.Snapshot(), Checkpoints: k.checkpoints.Snapshot(),
	}
	return f
}

func (s *Shard) figures() ShardFigures {
	f := ShardFigures{ID: s.ID(), Turns: s.Turns(), RunsMax: s.m.places.runsMax()}
	s.Call(func() {
		f.Logs = s.m.ledger.Len()
		if core := s.Core(); core != nil {
			f.Applied = core.Applied()
		} else if v, ok := s.m.core.(*memory); ok {
			f.Applied = v.index
		}
	})
	return f
}
