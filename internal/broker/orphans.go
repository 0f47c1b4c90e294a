package broker

import (
	"fmt"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/meta"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
)

// lose tells that operations on the catalog, or a part of its checkpoint, are lost.
func (m *metaMachine) lose() { m.catalog.Lose() }

// adoptOrphans gives queues to the logs whose definition was lost, so that their messages
// can be consumed or moved, or the queues deleted, by any client.
func (b *Broker) adoptOrphans() error {
	if !b.node.KeepOrphans() {
		return nil
	}
	defined := map[msg.LogID]bool{}
	for vh := range b.table().VHosts() {
		for q := range vh.Queues() {
			defined[q.ID] = true
		}
	}
	var vhost string
	b.node.Meta().Call(func() { vhost = b.meta.catalog.VHosts()[0] }) // firstStart made one
	for _, s := range b.node.Queues() {
		var logs []msg.LogID
		s.Call(func() {
			s.Machine().Ledger().Logs(func(id msg.LogID) bool {
				if !defined[id] && !msg.IsInternal(id) {
					logs = append(logs, id)
				}
				return true
			})
		})
		for _, id := range logs {
			q := route.Queue{
				VHost: vhost, Name: fmt.Sprintf("%s%d.%d", engine.LostQueuePrefix, s.ID(), id),
				ID: id, Shard: uint16(s.ID()), Type: route.Classic, Durable: true,
			}
			if _, err := b.define(meta.AdoptQueue{Queue: q}); err != nil {
				return err
			}
			b.cfg.Log.Error("the definition of a queue is lost; its messages are in a queue of another name",
				"vhost", q.VHost, "queue", q.Name, "shard", s.ID(), "log", id)
		}
	}
	return b.node.OrphansAdopted()
}
