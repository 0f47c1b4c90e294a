package msg

// Ids of logs that no definition names have one of the two highest bits set. Such a
// log is part of its shard's own machinery: it is made by the operation that first
// appends to it, hidden from every listing of queues, and left alone by whatever
// compares logs with definitions. Ids of defined logs count up from 1.
const outboxBit LogID = 1 << 63

// IsInternal reports whether a log is part of a shard's own machinery.
func IsInternal(log LogID) bool { return log>>62 != 0 }

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
