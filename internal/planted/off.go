//go:build !plantedbugs

package planted

// The bugs; see Bugs in the build that has them.
const (
	ConfirmBeforeSync    = false
	SettleNotJournaled   = false
	RecycleBeforeFlush   = false
	FileSequenceIgnored  = false
	DispatchBeforeTerm   = false
	LinkGapAccepted      = false
	LocationInLedger     = false
	ReserveAfterDelivery = false
	FollowerDrops        = false
	UnlinkPinned         = false
	OutboxTargetLost     = false
	OutboxSentTwice      = false
	OutboxRerouted       = false
)
