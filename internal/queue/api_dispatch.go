package queue

import "github.com/sluicemq/sluice/internal/msg"

// Reservations of a lane reach at least ReserveWindow and at most MaxReserveWindow offsets
// beyond the first one that was never delivered: at most MaxReserveWindow fresh
// messages of a lane are flagged as redelivered after a crash.
const (
	ReserveWindow    = 1024
	MaxReserveWindow = 4096
)

type consumerState struct{}

// Dispatch decides which consumer gets which messages next.
type Dispatch struct{}

// NewDispatch returns a dispatch over l, started.
func NewDispatch(l *Ledger, loc Locator) *Dispatch { panic("unbuilt") }

// Start begins a term: all consumers and what was in flight are forgotten, everything
// unsettled is ready. What is below its lane's reserved mark now will be flagged as
// redelivered.
func (d *Dispatch) Start() { panic("unbuilt") }

// Attach adds a consumer to its log.
func (d *Dispatch) Attach(c *Consumer) error { panic("unbuilt") }

// Detach removes a consumer. What is in flight to it stays so: the caller may still
// have it Acked, or Return it.
func (d *Dispatch) Detach(c *Consumer) { panic("unbuilt") }

// Acked frees the credit of n messages in flight to c and hides them until Settled.
// The caller proposes their settlement.
func (d *Dispatch) Acked(c *Consumer, log msg.LogID, lane uint8, n uint64) { panic("unbuilt") }

// Settled tells that the ledger settled newly messages of a lane (what
// Ledger.Settle returned), for whatever reason.
func (d *Dispatch) Settled(log msg.LogID, lane uint8, newly uint64) { panic("unbuilt") }

// Return makes messages in flight to c ready again, in their original place, and frees
// their credit. ranges must be disjoint. Where delivery counts matter call it when
// the counted return is applied, after Ledger.Return, so that the redelivery has the
// new count; elsewhere at once.
func (d *Dispatch) Return(c *Consumer, log msg.LogID, lane uint8, ranges []msg.Range) {
	panic("unbuilt")
}

// Appended tells that messages were appended to a lane.
func (d *Dispatch) Appended(log msg.LogID, lane uint8, first msg.Offset, n uint64) {
	panic("unbuilt")
}

// Reserved tells that the lane's last request of WantReserve is over: applied, or lost.
func (d *Dispatch) Reserved(log msg.LogID, lane uint8) { panic("unbuilt") }

// WantReserve calls fn for each lane that needs an extension of its reservation. The caller
// proposes it and calls Reserved when it has been applied; until then the lane is not reported
// again. Call it when a batch is formed and after Run.
func (d *Dispatch) WantReserve(fn func(log msg.LogID, lane uint8, upto msg.Offset)) {
	panic("unbuilt")
}

// ExactReserves calls fn for each lane whose reserved mark is higher than what was
// delivered, with the lowest truthful mark, for Ledger.ReserveExact at a clean stop. Nothing may
// be delivered after it.
func (d *Dispatch) ExactReserves(fn func(log msg.LogID, lane uint8, upto msg.Offset)) {
	panic("unbuilt")
}

// Kick tells that a pool which granted c nothing may have room again.
func (d *Dispatch) Kick(c *Consumer) { panic("unbuilt") }

// Get hands out the next ready message of a log to c, which needn't be attached and
// whose limits and pools are not asked.
func (d *Dispatch) Get(log msg.LogID, c *Consumer) (Delivery, GetStatus) { panic("unbuilt") }

// HoldAll hides all that is ready in a log, for a purge, until Settled or Release.
func (d *Dispatch) HoldAll(log msg.LogID) []Held { panic("unbuilt") }

// Release makes held messages ready again, when their settlement is given up.
func (d *Dispatch) Release(log msg.LogID, lane uint8, ranges []msg.Range) { panic("unbuilt") }

// Drop forgets a deleted log and returns the consumers that it had, detached.
func (d *Dispatch) Drop(log msg.LogID) []*Consumer { panic("unbuilt") }

// Counts returns the figures of a log.
func (d *Dispatch) Counts(log msg.LogID) Counts { panic("unbuilt") }

// Run delivers up to maxDeliveries ranges and reports whether there is more to do.
// out must not call the Dispatch.
func (d *Dispatch) Run(maxDeliveries int, out func(*Delivery)) (more bool) { panic("unbuilt") }
