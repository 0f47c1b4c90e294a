//go:build plantedbugs

package planted

// The bugs: each is there while its variable is true. Set between runs only.
var (
	ConfirmBeforeSync    bool // the write-ahead log answers before it has synced
	SettleNotJournaled   bool // a settlement frees credit and is never submitted
	RecycleBeforeFlush   bool // a file of the log is given back with messages in it
	FileSequenceIgnored  bool // recovery takes a recycled file's old groups for its own
	DispatchBeforeTerm   bool // a leader delivers before the first entry of its term is applied
	LinkGapAccepted      bool // a submission is taken though the one before it is missing
	LocationInLedger     bool // where the bytes lie finds its way into replicated state
	ReserveAfterDelivery bool // offsets are reserved once they have been delivered
	FollowerDrops        bool // a follower leaves out what is old by its own clock
	UnlinkPinned         bool // a segment's file goes although somebody needs it
	OutboxTargetLost     bool // now and then a transfer arrives empty
	OutboxSentTwice      bool // a transfer that is offered again is taken again
	OutboxRerouted       bool // a transfer that is offered again goes to another queue
)
