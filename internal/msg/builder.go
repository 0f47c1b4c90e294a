package msg

import (
	"encoding/binary"
	"slices"

	"github.com/sluicemq/sluice/internal/buf"
)

// SubmissionSoftMax is the size at which a builder reports that it is full. A single
// larger record still fits: the submission is then as long as that record needs.
const SubmissionSoftMax = 256 << 10

// group is the append operation under construction for one set of targets.
type group struct {
	targets []Target
	cond    Cond
	hasCond bool
	parts   PartsRef
	bytes   int
	end     int // where the last record ended, to see whether the next one follows
	contig  bool
	pos     []uint32
	size    []uint32
}

// Builder encodes one submission. It is reused: Finish hands the bytes over and
// empties it. Owned by one goroutine.
//
// Messages with the same targets share an operation, whatever lies between them;
// operations appear in the order of their first message, so order within each log
// is that of the calls.
type Builder struct {
	// Forced makes all appends of the submissions to come pass a seal. For what is
	// promised already: a part of a transaction, or of a transfer.
	Forced bool

	chunk  *buf.Chunk
	groups []group
	pre    []byte // the requirements, encoded; they come before the appends
	cmds   []byte // the other operations that aren't appends, encoded
	other  int    // number of operations in pre and cmds
	last   int    // the group that the last record went to
	ref    []byte // scratch
	pieces [1][]byte
}

// Empty reports whether nothing has been added.
func (b *Builder) Empty() bool { return len(b.groups) == 0 && b.other == 0 }

// Full reports whether the submission should be finished before more is added.
func (b *Builder) Full() bool { return b.chunk != nil && b.chunk.Len() >= SubmissionSoftMax }

// Ordinals returns the number of append operations so far.
func (b *Builder) Ordinals() int { return len(b.groups) }

func (b *Builder) room(n int) {
	if b.chunk == nil {
		b.chunk = buf.Get(max(n+submissionHeaderLen+256, 4<<10))
		b.chunk.SetBytes(append(b.chunk.Bytes(), make([]byte, submissionHeaderLen)...))
		return
	}
	if b.chunk.Cap()-b.chunk.Len() >= n {
		return
	}
	// Beyond the soft limit (a transaction) it doubles, so that copying stays linear.
	grow := min(4*b.chunk.Cap(), SubmissionSoftMax)
	if b.chunk.Cap() >= SubmissionSoftMax {
		grow = 2 * b.chunk.Cap()
	}
	bigger := buf.Get(max(b.chunk.Len()+n, grow))
	bigger.SetBytes(append(bigger.Bytes(), b.chunk.Bytes()...))
	b.chunk.Release()
	b.chunk = bigger
}

// Append adds one message for targets; the body is the concatenation of pieces. The
// arguments are copied.
func (b *Builder) Append(targets []Target, e *Envelope, pieces ...[]byte) {
	g := b.groupFor(targets)
	b.put(g, e, pieces)
}

// Owe adds a submission for another shard: it goes into the outbox for that and is
// applied there exactly once.
func (b *Builder) Owe(target uint32, sub Submission) {
	b.Append([]Target{{Log: OutboxLog(target)}}, &Envelope{}, sub)
}

// AppendIf is Append with a precondition; it makes an operation of its own.
func (b *Builder) AppendIf(targets []Target, c Cond, e *Envelope, pieces ...[]byte) {
	g := b.newGroup(targets)
	g.cond, g.hasCond = c, !c.IsZero()
	g.cond.Dedup = slices.Clone(c.Dedup)
	b.put(g, e, pieces)
	b.last = -1
}

// AppendLarge adds one message whose body lies in parts, which are in submissions ahead
// of this one; it makes an operation of its own. e gets FlagParts.
func (b *Builder) AppendLarge(targets []Target, c Cond, e *Envelope, parts PartsRef) {
	g := b.newGroup(targets)
	g.cond, g.hasCond, g.parts = c, !c.IsZero(), parts
	g.cond.Dedup = slices.Clone(c.Dedup)
	e.Flags |= FlagParts
	b.ref = parts.append(b.ref[:0])
	b.pieces[0] = b.ref
	b.put(g, e, b.pieces[:])
	b.last = -1
}

func (b *Builder) put(g *group, e *Envelope, pieces [][]byte) {
	body := 0
	for _, p := range pieces {
		body += len(p)
	}
	n := e.RecordLen(body)
	b.room(n)
	dst := b.chunk.Bytes()
	pos := len(dst)
	dst = appendRecordHeader(dst, e, body)
	for _, p := range pieces {
		dst = append(dst, p...)
	}
	b.chunk.SetBytes(dst)
	if len(g.pos) > 0 && pos != g.end {
		g.contig = false
	}
	g.pos = append(g.pos, uint32(pos))
	g.size = append(g.size, uint32(n))
	g.end = pos + n
	g.bytes += n
}

func (b *Builder) groupFor(targets []Target) *group {
	if b.last >= 0 && b.last < len(b.groups) && slices.Equal(b.groups[b.last].targets, targets) {
		return &b.groups[b.last]
	}
	// Newest first: interleaved publishing alternates among few sets. The search is
	// bounded, beyond it a set gets a second operation, which is correct because
	// later operations apply later.
	for i, steps := len(b.groups)-1, 0; i >= 0 && steps < 32; i, steps = i-1, steps+1 {
		g := &b.groups[i]
		if g.hasCond || g.parts.Count > 0 {
			break // order within a log must not pass such an append
		}
		if slices.Equal(g.targets, targets) {
			if b.overlapsAfter(i, targets) {
				break
			}
			b.last = i
			return g
		}
	}
	g := b.newGroup(targets)
	b.last = len(b.groups) - 1
	return g
}

// overlapsAfter says whether a later group shares a target with targets: joining the
// earlier group would then reorder that log.
func (b *Builder) overlapsAfter(i int, targets []Target) bool {
	for _, g := range b.groups[i+1:] {
		if len(g.targets) == 1 && len(targets) == 1 {
			continue // two different single targets
		}
		for _, t := range g.targets {
			if slices.Contains(targets, t) {
				return true
			}
		}
	}
	return false
}

func (b *Builder) newGroup(targets []Target) *group {
	if n := len(b.groups); n < cap(b.groups) {
		b.groups = b.groups[:n+1]
	} else {
		b.groups = append(b.groups, group{})
	}
	g := &b.groups[len(b.groups)-1]
	*g = group{targets: append(g.targets[:0], targets...), pos: g.pos[:0], size: g.size[:0], contig: true}
	return g
}

// Settle adds the settlement of ranges, which must be sorted and disjoint.
func (b *Builder) Settle(log LogID, lane uint8, why Reason, ranges []Range) {
	b.cmds = append(b.cmds, byte(OpSettle), byte(why))
	b.cmds = binary.AppendUvarint(b.cmds, log)
	b.cmds = append(b.cmds, lane)
	b.cmds = appendRanges(b.cmds, ranges)
	b.other++
}

// Return adds the return of ranges, sorted and disjoint; count raises their delivery
// counts.
func (b *Builder) Return(log LogID, lane uint8, count bool, ranges []Range) {
	flag := byte(0)
	if count {
		flag = 1
	}
	b.cmds = append(b.cmds, byte(OpReturn), flag)
	b.cmds = binary.AppendUvarint(b.cmds, log)
	b.cmds = append(b.cmds, lane)
	b.cmds = appendRanges(b.cmds, ranges)
	b.other++
}

// Reserve adds the promise that nothing at or beyond upto has been delivered.
func (b *Builder) Reserve(log LogID, lane uint8, upto Offset) {
	b.reserve(OpReserve, log, lane, upto)
}

// ReserveExact adds a reservation that may also lower the mark.
func (b *Builder) ReserveExact(log LogID, lane uint8, upto Offset) {
	b.reserve(OpReserveExact, log, lane, upto)
}

func (b *Builder) reserve(k OpKind, log LogID, lane uint8, upto Offset) {
	b.cmds = append(b.cmds, byte(k))
	b.cmds = binary.AppendUvarint(b.cmds, log)
	b.cmds = append(b.cmds, lane)
	b.cmds = binary.AppendUvarint(b.cmds, upto)
	b.other++
}

// Ensure adds the creation of a log, or the change of its profile.
func (b *Builder) Ensure(log LogID, profile []byte) { b.logData(OpEnsure, log, profile) }

func (b *Builder) logData(k OpKind, log LogID, data []byte) {
	b.cmds = append(b.cmds, byte(k))
	b.cmds = binary.AppendUvarint(b.cmds, log)
	b.cmds = binary.AppendUvarint(b.cmds, uint64(len(data)))
	b.cmds = append(b.cmds, data...)
	b.other++
}

// Delete adds the removal of a log with everything in it.
func (b *Builder) Delete(log LogID) {
	b.cmds = append(b.cmds, byte(OpDelete))
	b.cmds = binary.AppendUvarint(b.cmds, log)
	b.other++
}

// Seal adds the refusal of further appends to a log, if the condition (SealIfEmpty or
// 0) holds when it is applied.
func (b *Builder) Seal(log LogID, cond uint8) {
	b.cmds = append(b.cmds, byte(OpSeal))
	b.cmds = binary.AppendUvarint(b.cmds, log)
	b.cmds = append(b.cmds, cond)
	b.other++
}

// Unseal takes a seal back.
func (b *Builder) Unseal(log LogID) {
	b.cmds = append(b.cmds, byte(OpUnseal))
	b.cmds = binary.AppendUvarint(b.cmds, log)
	b.other++
}

// Require adds the condition that the offsets of ranges, sorted and disjoint, are all
// unsettled and not held: else nothing of the submission is done.
func (b *Builder) Require(log LogID, lane uint8, ranges []Range) {
	b.pre = append(b.pre, byte(OpRequire))
	b.pre = binary.AppendUvarint(b.pre, log)
	b.pre = append(b.pre, lane)
	b.pre = appendRanges(b.pre, ranges)
	b.other++
}

// Hold adds that ranges, sorted and disjoint, belong to a transaction until they are
// settled or Unhold ends it.
func (b *Builder) Hold(tx TxID, log LogID, lane uint8, ranges []Range) {
	b.cmds = tx.encode(append(b.cmds, byte(OpHold)))
	b.cmds = binary.AppendUvarint(b.cmds, log)
	b.cmds = append(b.cmds, lane)
	b.cmds = appendRanges(b.cmds, ranges)
	b.other++
}

// Unhold adds that what a transaction still holds is ready again.
func (b *Builder) Unhold(tx TxID) {
	b.cmds = tx.encode(append(b.cmds, byte(OpUnhold)))
	b.other++
}

// Sweep adds the end of what incarnations of a node before the given one left
// unfinished.
func (b *Builder) Sweep(node, before uint32) {
	b.cmds = append(b.cmds, byte(OpSweep))
	b.cmds = binary.AppendUvarint(b.cmds, uint64(node))
	b.cmds = binary.AppendUvarint(b.cmds, uint64(before))
	b.other++
}

// TermStart adds the mark of a new leader's first entry.
func (b *Builder) TermStart() {
	b.cmds = append(b.cmds, byte(OpTermStart))
	b.other++
}

// Meta adds an operation of the metadata machine.
func (b *Builder) Meta(op []byte) {
	b.cmds = append(b.cmds, byte(OpMeta))
	b.cmds = binary.AppendUvarint(b.cmds, uint64(len(op)))
	b.cmds = append(b.cmds, op...)
	b.other++
}

// Finish encodes the command section and returns the submission's chunk with one
// reference, which passes to the caller; nil when nothing was added. Appends come
// first, the other operations after them.
func (b *Builder) Finish() *buf.Chunk {
	if b.Empty() {
		return nil
	}
	b.room(b.cmdLenMax())
	dst := b.chunk.Bytes()
	cmd := len(dst)
	dst = append(dst, b.pre...)
	for i := range b.groups {
		dst = b.groups[i].encode(dst, b.Forced)
	}
	dst = append(dst, b.cmds...)
	sealSubmission(dst, cmd, len(b.groups)+b.other)
	b.chunk.SetBytes(dst)
	c := b.chunk
	b.empty()
	return c
}

func (b *Builder) empty() {
	b.chunk, b.groups, b.pre, b.cmds, b.other, b.last = nil, b.groups[:0], b.pre[:0], b.cmds[:0], 0, 0
}

// Reset drops what was added.
func (b *Builder) Reset() {
	if b.chunk != nil {
		b.chunk.Release()
	}
	b.empty()
}

// Len returns an upper bound of the length of the submission so far.
func (b *Builder) Len() int {
	n := submissionHeaderLen + b.cmdLenMax()
	if b.chunk != nil {
		n += b.chunk.Len() - submissionHeaderLen
	}
	return n
}

func (b *Builder) cmdLenMax() int {
	n := len(b.pre) + len(b.cmds)
	for i := range b.groups {
		g := &b.groups[i]
		n += 128 + len(g.cond.Dedup) + 11*len(g.targets)
		if !g.contig {
			n += 5 * len(g.pos)
		}
	}
	return n
}

func (g *group) encode(dst []byte, forced bool) []byte {
	flags := uint8(0)
	if g.contig {
		flags |= appContiguous
	}
	for _, t := range g.targets {
		if t.Lane != 0 {
			flags |= appLanes
		}
	}
	if g.hasCond {
		flags |= appCond
	}
	if g.parts.Count > 0 {
		flags |= appParts
	}
	if forced {
		flags |= appForced
	}
	dst = append(dst, byte(OpAppend), flags)
	dst = binary.AppendUvarint(dst, uint64(len(g.targets)))
	for _, t := range g.targets {
		dst = binary.AppendUvarint(dst, t.Log)
		if flags&appLanes != 0 {
			dst = append(dst, t.Lane)
		}
	}
	if g.hasCond {
		dst = g.cond.encode(dst)
	}
	if g.parts.Count > 0 {
		dst = binary.AppendUvarint(dst, g.parts.Log)
		dst = binary.AppendUvarint(dst, uint64(g.parts.Count))
		dst = binary.AppendUvarint(dst, g.parts.Bytes)
	}
	dst = binary.AppendUvarint(dst, uint64(len(g.pos)))
	dst = binary.AppendUvarint(dst, uint64(g.bytes))
	if g.contig {
		return binary.AppendUvarint(dst, uint64(g.pos[0]))
	}
	return g.encodePositions(dst)
}

// encodePositions appends the records' positions, each relative to the end of the
// record before it, as a counted byte string.
func (g *group) encodePositions(dst []byte) []byte {
	// The count needs at most 5 bytes; it is put in front after the deltas are known.
	const pad = 5
	at := len(dst)
	dst = append(dst, make([]byte, pad)...)
	prevEnd := uint32(0)
	for i, p := range g.pos {
		dst = binary.AppendUvarint(dst, uint64(p-prevEnd))
		prevEnd = p + g.size[i]
	}
	n := len(dst) - at - pad
	var count [binary.MaxVarintLen32]byte
	k := binary.PutUvarint(count[:], uint64(n))
	copy(dst[at:], count[:k])
	copy(dst[at+k:], dst[at+pad:])
	return dst[:at+k+n]
}

func (tx TxID) encode(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(tx.Node))
	dst = binary.AppendUvarint(dst, uint64(tx.Incarnation))
	return binary.AppendUvarint(dst, tx.N)
}
