package msg

import (
	"encoding/binary"
	"hash/crc32"
)

const submissionHeaderLen = 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC returns the CRC-32C that all of sluice's formats use.
func CRC(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Submission is a view of an encoded submission that has been checked for length;
// Verify checks its contents.
type Submission []byte

// ParseSubmission checks the header of the submission that fills b exactly.
func ParseSubmission(b []byte) (Submission, error) {
	if len(b) < submissionHeaderLen {
		return nil, corrupt("submission header", len(b))
	}
	le := binary.LittleEndian
	if int64(le.Uint32(b)) != int64(len(b)) {
		return nil, corrupt("submission length", 0)
	}
	if c := le.Uint32(b[8:]); c < submissionHeaderLen || int64(c) > int64(len(b)) {
		return nil, corrupt("command section", 8)
	}
	return Submission(b), nil
}

// SumOf returns the checksum stored in the submission; it covers all bytes after it.
func (s Submission) SumOf() uint32 { return binary.LittleEndian.Uint32(s[4:]) }

// Verify says whether the bytes are those that were encoded.
func (s Submission) Verify() bool { return CRC(s[8:]) == s.SumOf() }

// VerifyCommands says whether header and command section are those that were encoded:
// applying needs no more. The records may be damaged all the same.
func (s Submission) VerifyCommands() bool {
	return s.commandSum() == binary.LittleEndian.Uint32(s[16:])
}

func (s Submission) commandSum() uint32 {
	sum := crc32.Update(CRC(s[:4]), castagnoli, s[8:16])
	return crc32.Update(sum, castagnoli, s[s.cmdPos():])
}

func (s Submission) cmdPos() int { return int(binary.LittleEndian.Uint32(s[8:])) }

// NumOps returns the number of operations.
func (s Submission) NumOps() int { return int(binary.LittleEndian.Uint32(s[12:])) }

// Ops calls fn for each operation in order until fn returns false. op is reused
// between the calls; a caller that keeps one Op across submissions avoids allocation.
func (s Submission) Ops(op *Op, fn func(i int, op *Op) bool) error {
	it := s.Iter()
	for i := 0; it.Next(op); i++ {
		if !fn(i, op) {
			return nil
		}
	}
	return it.Err()
}

// OpIter walks the operations of a submission.
type OpIter struct {
	r      reader
	left   int
	cmdPos int
}

// Iter returns an iterator over the operations.
func (s Submission) Iter() OpIter {
	c := s.cmdPos()
	return OpIter{r: reader{b: s, p: c}, left: s.NumOps(), cmdPos: c}
}

// Next parses the next operation into op and reports whether there was one.
func (it *OpIter) Next(op *Op) bool {
	if it.left <= 0 || it.r.err != nil {
		return false
	}
	it.left--
	it.r.parse(op, it.cmdPos)
	return it.r.err == nil
}

// Err returns the first error of the walk.
func (it *OpIter) Err() error { return it.r.err }

// OpAt parses the operation at pos, which an earlier walk reported as Op.Pos.
func (s Submission) OpAt(pos int, op *Op) error {
	c := s.cmdPos()
	if pos < c || pos >= len(s) {
		return corrupt("operation position", pos)
	}
	r := reader{b: s, p: pos}
	r.parse(op, c)
	return r.err
}

// Run walks the records of one append operation in order.
type Run struct {
	s      Submission
	pos    int
	deltas []byte
	contig bool
	left   int
}

// Records returns the walk over op's records; op must be an append or a body part of s.
// The Run borrows op's bytes of the submission, not op itself.
func (s Submission) Records(op *Op) Run {
	return Run{s: s, pos: op.first, deltas: op.deltas, contig: op.contiguous, left: op.N}
}

// Skip passes over n records.
func (r *Run) Skip(n int) error {
	for range n {
		if _, err := r.next(); err != nil {
			return err
		}
	}
	return nil
}

// Next returns the encoded next record (aliasing the submission), or nil at the end.
func (r *Run) Next() ([]byte, error) {
	if r.left == 0 {
		return nil, nil
	}
	return r.next()
}

func (r *Run) next() ([]byte, error) {
	if r.left == 0 {
		return nil, corrupt("record past the end of its run", r.pos)
	}
	r.left--
	p := r.pos
	if !r.contig {
		d, n := binary.Uvarint(r.deltas)
		if n <= 0 || d > uint64(len(r.s)-p) {
			return nil, corrupt("record position", p)
		}
		r.deltas = r.deltas[n:]
		p += int(d)
	}
	end := r.s.cmdPos()
	if p < 0 || p > end {
		return nil, corrupt("record position", p)
	}
	size := RecordSize(r.s[p:end])
	if size == 0 {
		return nil, corrupt("record", p)
	}
	r.pos = p + size
	return r.s[p : p+size : p+size], nil
}
