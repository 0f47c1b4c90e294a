package broker

import (
	"cmp"
	"slices"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
)

// QueueFigure is what an operator sees of a queue.
type QueueFigure struct {
	VHost      string `json:"vhost"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	Durable    bool   `json:"durable"`
	Exclusive  bool   `json:"exclusive"`
	AutoDelete bool   `json:"auto_delete"`
	Shard      uint16 `json:"shard"`
	Ready      uint64 `json:"messages_ready"`
	Unacked    uint64 `json:"messages_unacknowledged"`
	Consumers  int    `json:"consumers"`
}

// Figures returns what the node under the broker measures of itself.
func (b *Broker) Figures() *engine.Figures { return b.node.Figures() }

// Damage says what is in quarantine, and how damage is looked for.
func (b *Broker) Damage() engine.DamageFigures { return b.node.Damage() }

// QueueFigures lists all queues by virtual host and name. Each shard is asked once for
// every few hundred queues, so that its loop is not held up.
func (b *Broker) QueueFigures() []QueueFigure {
	out := []QueueFigure{}
	byShard := map[uint16][]*route.Queue{}
	for vh := range b.table().VHosts() {
		for q := range vh.Queues() {
			byShard[q.Shard] = append(byShard[q.Shard], q)
		}
	}
	for id, qs := range byShard {
		sh := b.node.Shard(uint32(id))
		for part := range slices.Chunk(qs, 512) {
			counts := make([]queue.Counts, len(part))
			sh.Call(func() {
				for i, q := range part {
					counts[i] = sh.Machine().Counts(q.ID)
				}
			})
			for i, q := range part {
				out = append(out, QueueFigure{
					VHost: q.VHost, Name: q.Name, Type: q.Type, Durable: q.Durable, Exclusive: q.Exclusive,
					AutoDelete: q.AutoDelete, Shard: q.Shard, Ready: counts[i].Ready,
					Unacked: counts[i].Unacked, Consumers: counts[i].Consumers,
				})
			}
		}
	}
	slices.SortFunc(out, func(a, b QueueFigure) int {
		return cmp.Or(cmp.Compare(a.VHost, b.VHost), cmp.Compare(a.Name, b.Name))
	})
	return out
}
