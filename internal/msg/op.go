package msg

import (
	"encoding/binary"
	"math"
)

// OpKind is the kind of an operation. The list is closed: whatever a shard's ledger
// can do is one of these.
type OpKind uint8

// The operations of a shard.
const (
	OpAppend       OpKind = 1 + iota // records to one or more logs
	OpSettle                         // offsets are done with, for a Reason
	OpReturn                         // offsets are ready again; Count raises their delivery counts
	OpReserve                        // nothing at or beyond Upto has been delivered
	OpEnsure                         // the log exists with this profile
	OpDelete                         // the log is gone; its id is never reused
	OpSeal                           // appends are refused from here on, if the condition holds
	OpUnseal                         // takes a seal back
	OpBodyPart                       // a record that is one part of a large body
	OpTermStart                      // the first entry of a leader's term
	OpMeta                           // an operation of the metadata machine, opaque here
	OpReserveExact                   // as OpReserve, but it may lower the mark: at a clean stop
	OpHold                           // offsets are a transaction's until it settles or Unholds them
	OpUnhold                         // ends what is left of a transaction's hold: ready again
	OpSweep                          // ends what earlier incarnations of a node left unfinished
	OpRequire                        // unless all these offsets are unsettled, nothing of the submission is done
)

// Reason says why a message left its queue.
type Reason uint8

// The reasons for leaving.
const (
	Acked Reason = 1 + iota
	Rejected
	Expired
	MaxLen
	DeliveryLimit
	Purged
	Deleted
	Damaged // its bytes can't be read any more; they are in quarantine
)

// Flags of an append.
const (
	appContiguous uint8 = 1 << iota // records lie one behind the other
	appLanes                        // targets name lanes
	appCond                         // a precondition follows
	appParts                        // the record's body lies in parts, which are named
	appForced                       // a seal does not refuse it
)

// Flags of a precondition.
const (
	condTail uint8 = 1 << iota
	condWrap
	condDedup
)

// DedupIDMax is the greatest length of a deduplication id in bytes.
const DedupIDMax = 255

// Conditions of a seal.
const (
	SealIfEmpty uint8 = 1 << iota // no message that is not settled
)

// Target is a lane of a log that an append goes to.
type Target struct {
	Log  LogID
	Lane uint8
}

// Range is Count offsets from First on.
type Range struct {
	First Offset
	Count uint64
}

// Cond is the precondition of an append, checked for each target log when it is
// applied. The zero value always holds.
type Cond struct {
	ExpectTail bool   // the target lane's tail must be Tail
	Tail       Offset // see ExpectTail
	Producer   uint64 // 0 = none: else Seq of the first message must follow the producer's last
	Epoch      uint32
	Seq        uint64
	Wrap       bool // sequences have 31 bits: after 2^31-1 comes 0
	// Dedup, of 1 to DedupIDMax bytes, names the append: another one with the same
	// name within the target log's window is a repetition. Empty: none.
	Dedup []byte
}

// IsZero reports whether c always holds.
func (c *Cond) IsZero() bool {
	return !c.ExpectTail && c.Tail == 0 && c.Producer == 0 && c.Epoch == 0 && c.Seq == 0 && !c.Wrap && len(c.Dedup) == 0
}

func (c *Cond) encode(dst []byte) []byte {
	flags := byte(0)
	if c.ExpectTail {
		flags |= condTail
	}
	if c.Wrap {
		flags |= condWrap
	}
	if len(c.Dedup) > 0 {
		flags |= condDedup
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, c.Tail)
	dst = binary.AppendUvarint(dst, c.Producer)
	dst = binary.AppendUvarint(dst, uint64(c.Epoch))
	dst = binary.AppendUvarint(dst, c.Seq)
	if flags&condDedup != 0 {
		dst = append(dst, byte(len(c.Dedup)))
		dst = append(dst, c.Dedup...)
	}
	return dst
}

func (r *reader) cond(c *Cond) {
	flags := r.u8()
	c.ExpectTail, c.Wrap = flags&condTail != 0, flags&condWrap != 0
	c.Tail, c.Producer, c.Epoch, c.Seq = r.uv(), r.uv(), uint32(r.uv()), r.uv()
	if flags&condDedup != 0 {
		c.Dedup = r.bytes()
		if len(c.Dedup) == 0 || len(c.Dedup) > DedupIDMax {
			r.fail("deduplication id")
		}
	}
}

// Op is one operation as parsed; which fields mean something depends on Kind. Slices
// alias the submission or are reused by the next Parse into the same Op.
type Op struct {
	Kind    OpKind
	Pos     int      // position of the operation in its submission
	Targets []Target // append
	N       int      // append: number of messages
	Bytes   int      // append: encoded length of its records together
	Cond    Cond     // append
	HasCond bool
	Forced  bool     // append: a seal does not refuse it
	Parts   PartsRef // append: where the body of its one message lies; Count 0 for in the record
	Number  uint32   // body part: which one of Log

	contiguous bool
	first      int    // position of the first record
	deltas     []byte // positions of the records, when not contiguous

	Log    LogID   // all but append
	Lane   uint8   // settle, return, reserve, hold, require
	Reason Reason  // settle
	Count  bool    // return: raise delivery counts
	Ranges []Range // settle, return, hold, require
	Tx     TxID    // hold, unhold; sweep: Node, and the Incarnation before which it ends all
	Upto   Offset  // reserve
	Flags  uint8   // seal
	Data   []byte  // ensure: profile; meta: operation; term start: empty
}

func appendRanges(dst []byte, ranges []Range) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(ranges)))
	prev := uint64(0)
	for _, r := range ranges {
		dst = binary.AppendUvarint(dst, r.First-prev)
		dst = binary.AppendUvarint(dst, r.Count)
		prev = r.First + r.Count
	}
	return dst
}

// reader walks a command section; the first error sticks.
type reader struct {
	b   []byte
	p   int
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = corrupt(what, r.p)
	}
}

func (r *reader) u8() uint8 {
	if r.p >= len(r.b) {
		r.fail("short operation")
		return 0
	}
	v := r.b[r.p]
	r.p++
	return v
}

func (r *reader) uv() uint64 {
	if r.p < len(r.b) && r.b[r.p] < 0x80 {
		v := r.b[r.p]
		r.p++
		return uint64(v)
	}
	v, n := binary.Uvarint(r.b[min(r.p, len(r.b)):])
	if n <= 0 {
		r.fail("varint")
		return 0
	}
	r.p += n
	return v
}

func (r *reader) u32() uint32 {
	v := r.uv()
	if v > math.MaxUint32 {
		r.fail("number")
	}
	return uint32(v)
}

func (r *reader) tx() TxID { return TxID{Node: r.u32(), Incarnation: r.u32(), N: r.uv()} }

// count reads a number of things of which each takes at least size bytes.
func (r *reader) count(size int) int {
	v := r.uv()
	if v > uint64((len(r.b)-r.p)/size) {
		r.fail("count")
		return 0
	}
	return int(v)
}

func (r *reader) bytes() []byte {
	n := r.count(1)
	if r.err != nil {
		return nil
	}
	s := r.b[r.p : r.p+n : r.p+n]
	r.p += n
	return s
}

func (r *reader) ranges(dst []Range) []Range {
	n := r.count(2)
	prev := uint64(0)
	for range n {
		d, c := r.uv(), r.uv()
		first := prev + d
		if first < prev || first+c < first {
			r.fail("range")
		}
		if r.err != nil {
			return dst
		}
		dst = append(dst, Range{first, c})
		prev = first + c
	}
	return dst
}

// parse reads one operation into op, reusing its slices.
func (r *reader) parse(op *Op, cmdPos int) {
	targets, ranges := op.Targets[:0], op.Ranges[:0]
	*op = Op{Pos: r.p, Targets: targets, Ranges: ranges}
	op.Kind = OpKind(r.u8())
	switch op.Kind {
	case OpAppend:
		r.parseAppend(op, cmdPos)
	case OpSettle, OpReturn:
		flag := r.u8()
		op.Log, op.Lane = r.uv(), r.u8()
		op.Ranges = r.ranges(op.Ranges)
		if op.Kind == OpSettle {
			op.Reason = Reason(flag)
		} else {
			op.Count = flag != 0
		}
	case OpReserve, OpReserveExact:
		op.Log, op.Lane, op.Upto = r.uv(), r.u8(), r.uv()
	case OpEnsure:
		op.Log, op.Data = r.uv(), r.bytes()
	case OpDelete, OpUnseal:
		op.Log = r.uv()
	case OpSeal:
		op.Log, op.Flags = r.uv(), r.u8()
	case OpBodyPart:
		op.Log = r.uv()
		op.Number = r.u32()
		op.Bytes = int(r.uv())
		op.first = int(r.uv())
		op.N, op.contiguous = 1, true
		r.checkRecords(op, cmdPos)
		if !IsParts(op.Log) {
			r.fail("parts log")
		}
	case OpHold:
		op.Tx = r.tx()
		op.Log, op.Lane = r.uv(), r.u8()
		op.Ranges = r.ranges(op.Ranges)
	case OpUnhold:
		op.Tx = r.tx()
	case OpSweep:
		op.Tx.Node, op.Tx.Incarnation = r.u32(), r.u32()
	case OpRequire:
		op.Log, op.Lane = r.uv(), r.u8()
		op.Ranges = r.ranges(op.Ranges)
	case OpTermStart:
	case OpMeta:
		op.Data = r.bytes()
	default:
		r.fail("unknown operation")
	}
}

func (r *reader) parseAppend(op *Op, cmdPos int) {
	flags := r.u8()
	op.Forced = flags&appForced != 0
	n := r.count(1)
	for range n {
		t := Target{Log: r.uv()}
		if flags&appLanes != 0 {
			t.Lane = r.u8()
		}
		op.Targets = append(op.Targets, t)
	}
	if flags&appCond != 0 {
		op.HasCond = true
		r.cond(&op.Cond)
	}
	if flags&appParts != 0 {
		op.Parts = PartsRef{Log: r.uv(), Count: r.u32(), Bytes: r.uv()}
		if !op.Parts.valid() {
			r.fail("parts")
		}
	}
	op.N = int(r.uv())
	op.Bytes = int(r.uv())
	if flags&appContiguous != 0 {
		op.contiguous = true
		op.first = int(r.uv())
	} else {
		op.deltas = r.bytes()
		if op.N > len(op.deltas) {
			r.fail("positions")
		}
	}
	r.checkRecords(op, cmdPos)
	if op.Parts.Count > 0 && op.N != 1 {
		r.fail("messages with one body")
	}
}

// checkRecords refuses operations that could make a reader walk outside of the
// record area or count for longer than there are bytes.
func (r *reader) checkRecords(op *Op, cmdPos int) {
	if op.N < 0 || op.Bytes < 0 || op.Bytes > cmdPos || op.N > op.Bytes/recordHeaderLen && op.Kind == OpAppend {
		r.fail("append size")
	}
	if op.contiguous && (op.first < submissionHeaderLen || op.first > cmdPos-op.Bytes) {
		r.fail("append position")
	}
}
