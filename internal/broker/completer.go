package broker

import (
	"sync"
	"sync/atomic"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/shard"
)

// completer turns the answers of shards into those of slots, for a publisher or for the
// settlements of a session. A submission that was sent because a builder was full
// carries partialBit: only the last one of a flush is reported, with the first error
// among them.
type completer struct {
	sink   Sink
	making *sync.Map // see metaMachine

	some   atomic.Int32 // len(failed)
	mu     sync.Mutex
	failed map[flushPart]error // of partial submissions whose last one is not answered
}

// flushPart is what a flush has for one slot.
type flushPart struct {
	token uint64
	slot  uint8
}

// fail keeps the first error of a part until its last submission is answered. Refusals
// come at once, so they may overtake the answers to what was flushed before.
func (d *completer) fail(k flushPart, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed == nil {
		d.failed = map[flushPart]error{}
	}
	if _, known := d.failed[k]; !known {
		d.failed[k] = err
	}
	d.some.Store(int32(len(d.failed)))
}

// failure takes what was kept of a part.
func (d *completer) failure(k flushPart) error {
	if d.some.Load() == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.failed[k]
	delete(d.failed, k)
	d.some.Store(int32(len(d.failed)))
	return err
}

// errSealed: a queue took no messages since it was about to be deleted. Whether the
// others of the slot were stored is not told apart.
var errSealed = berr.New(berr.Unavailable, "a queue is being deleted")

// errMaking: a queue is defined already, but its log isn't there yet.
var errMaking = berr.New(berr.Unavailable, "a queue is being declared")

// errIncomplete: a large body's parts were not stored, so neither was the message.
var errIncomplete = berr.New(berr.Unavailable, "the body of a message was not stored")

const partialBit = 1 << 62

// Completed implements shard.Completer.
func (d *completer) Completed(id uint32, token uint64, res shard.Result) {
	slot := slotOf(id)
	err := res.Err
	for _, o := range res.Outcomes {
		switch {
		case err != nil:
		case o.Code == shard.Gone:
			if _, yes := d.making.Load(o.Log); yes {
				err = errMaking
			} // else it was deleted meanwhile: the message is routed nowhere, as in RabbitMQ
		case o.Code == shard.Sealed:
			err = errSealed
		case o.Code == shard.Refused:
			err = errIncomplete
		}
	}
	if token&partialBit != 0 {
		if err != nil {
			d.fail(flushPart{token &^ partialBit, slot}, err)
		}
		return
	}
	if first := d.failure(flushPart{token, slot}); first != nil {
		err = first
	}
	d.sink.Completed(token, slot, err)
}

// maxSlots bounds the shards a node may have: slot 0 is the volatile one.
const maxSlots = 32

func slotOf(id uint32) uint8 {
	if id == engine.VolatileShard {
		return 0
	}
	return uint8(id)
}
