package msg

// Ids of logs that no definition names have one of the two highest bits set. Such a
// log is part of its shard's own machinery: it is made by the operation that first
// appends to it, hidden from every listing of queues, and left alone by whatever
// compares logs with definitions. Ids of defined logs count up from 1.
//
//	1<<63 | shard                                                    an outbox
//	1<<62 | node 8 bits | incarnation 24 bits | number 30 bits       the parts of a large body
const (
	outboxBit LogID = 1 << 63

	internalShift         = 62
	partsKind             = 1
	partsNodeShift        = 54
	partsIncarnationShift = 30
)

// IsInternal reports whether a log is part of a shard's own machinery.
func IsInternal(log LogID) bool { return log>>internalShift != 0 }

// PartsLogsMax is how many parts logs a node may make between two starts.
const PartsLogsMax = 1 << partsIncarnationShift

// PartsLog returns the id of the n-th parts log, n below PartsLogsMax, that this start
// of a node makes. Of node and incarnation the low 8 and 24 bits count.
func PartsLog(node, incarnation, n uint32) LogID {
	return partsKind<<internalShift | LogID(node&0xff)<<partsNodeShift |
		LogID(incarnation&0xffffff)<<partsIncarnationShift | LogID(n&(PartsLogsMax-1))
}

// IsParts reports whether a log holds the parts of a large body.
func IsParts(log LogID) bool { return log>>internalShift == partsKind }

// PartsOrigin returns the node that made a parts log, and at which of its starts.
func PartsOrigin(log LogID) (node, incarnation uint32) {
	return uint32(log>>partsNodeShift) & 0xff, uint32(log>>partsIncarnationShift) & 0xffffff
}

// OutboxLog returns the log in which a shard keeps what it owes the shard target: each
// record's body is a Submission for that shard.
func OutboxLog(target uint32) LogID { return outboxBit | LogID(target) }

// IsOutbox reports whether a log is an outbox.
func IsOutbox(log LogID) bool { return log&outboxBit != 0 }

// OutboxTarget returns the shard that an outbox is for.
func OutboxTarget(log LogID) uint32 { return uint32(log) }

// TxID names a transaction: the node that began it, the incarnation of the node at that
// time, and a number that this incarnation gave to no other.
type TxID struct {
	Node, Incarnation uint32
	N                 uint64
}
