package engine

import "github.com/sluicemq/sluice/internal/shard"

// Replicas says which nodes hold the same shards; the zero value is this one alone.
type Replicas struct {
	Node   uint64   // this one, default 1
	Voters []uint64 // all at the first start, default Node; what they are later the shards know
	Join   bool     // this one has no part yet and is taken in later
	Sender shard.Sender
	// Transport carries what shards owe each other; default within this node.
	Transport Transport
	Files     Peers // nil: logs are kept for whoever is behind
	// LagEntries and LagBytes are shard.Config's.
	LagEntries uint64
	LagBytes   int64
	// Cluster carries what shards say of consumers; nil with one node.
	Cluster Cluster
}

func (n *Node) machineConfig(cfg NodeConfig, id uint32) Config {
	c := Config{
		Shard: id, Store: n.store, WAL: n.wal, Log: cfg.Log, aside: n.aside, TailCache: cfg.TailCache,
		Cluster: cfg.Replicas.Cluster, Link: n.link,
	}
	if cfg.Stepping != nil {
		c.Now = cfg.Stepping.Now
	}
	return c
}
