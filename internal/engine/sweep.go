package engine

import (
	"sync/atomic"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
)

// NewTx returns an id for a transaction of this start of the node.
func (n *Node) NewTx() msg.TxID {
	return msg.TxID{Node: n.number, Incarnation: n.start, N: n.txs.Add(1)}
}

// Sweep ends, some time later, what earlier starts of this node left unfinished. What
// they committed may still lie in outboxes: that comes first, so that a hold which is
// left then is of a transaction that did not commit. It is given up when a shard
// doesn't lead, or ends to.
func (n *Node) Sweep() {
	if n.start <= 1 {
		close(n.swept)
		return
	}
	var left atomic.Int32
	left.Store(int32(len(n.queues)))
	drained := func(err error) {
		if err == nil && left.Add(-1) == 0 {
			n.submitSweep()
		}
	}
	for _, s := range n.queues {
		s.Post(func() { s.m.out.waitAll(drained) })
	}
}

func (n *Node) submitSweep() {
	done := &sweeping{n: n}
	done.left.Store(int32(len(n.queues)))
	for _, s := range n.queues {
		var b msg.Builder
		b.Sweep(n.number, n.start)
		s.Submit(shard.Sub{Chunk: b.Finish(), Done: done, Lazy: true})
	}
}

// Swept is closed when nothing is left that earlier starts of this node did not finish:
// then what they held is either settled or ready again.
func (n *Node) Swept() <-chan struct{} { return n.swept }

// sweeping counts the shards that have been swept.
type sweeping struct {
	n    *Node
	left atomic.Int32
}

// Completed implements shard.Completer.
func (w *sweeping) Completed(_ uint32, _ uint64, res shard.Result) {
	if res.Err == nil && w.left.Add(-1) == 0 {
		close(w.n.swept)
	}
}
