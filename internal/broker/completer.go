package broker

import (
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
	failed [maxSlots]atomic.Pointer[error]
}

// errSealed: a queue took no messages since it was about to be deleted. Whether the
// others of the slot were stored is not told apart.
var errSealed = berr.New(berr.Unavailable, "a queue is being deleted")

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
		case o.Code == shard.Sealed:
			err = errSealed
		case o.Code == shard.Refused:
			err = errIncomplete
		}
	}
	failed := &d.failed[slot]
	if token&partialBit != 0 {
		if err != nil {
			first := err // so that only failing allocates
			failed.CompareAndSwap(nil, &first)
		}
		return
	}
	if first := failed.Swap(nil); first != nil {
		err = *first
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
