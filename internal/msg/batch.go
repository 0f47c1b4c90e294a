package msg

import "encoding/binary"

const (
	batchMagic     = 0x32626c73 // "slb2"
	batchHeaderLen = 24
	batchPartLen   = 24
)

// Part is one submission of a batch with its place in its link's order.
type Part struct {
	Link uint64 // 0: the leader's own, outside of any link
	Seq  uint64
	Sub  Submission
}

// AppendBatchHeader appends the header of a batch; the parts' bytes follow it, in
// order, wherever the caller writes them.
func AppendBatchHeader(dst []byte, timeMS int64, proposal uint64, parts []Part) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, batchMagic)
	dst = le.AppendUint32(dst, uint32(len(parts)))
	dst = le.AppendUint64(dst, uint64(timeMS))
	dst = le.AppendUint64(dst, proposal)
	for _, p := range parts {
		dst = le.AppendUint64(dst, p.Link)
		dst = le.AppendUint64(dst, p.Seq)
		dst = le.AppendUint32(dst, uint32(len(p.Sub)))
		dst = le.AppendUint32(dst, p.Sub.SumOf())
	}
	return dst
}

// Batch is a view of an encoded batch.
type Batch struct {
	TimeMS   int64
	Proposal uint64
	raw      []byte
	n        int
}

// ParseBatch checks the structure of the batch that fills b. It does not verify
// checksums; VerifyBatch does.
func ParseBatch(b []byte) (Batch, error) {
	le := binary.LittleEndian
	if len(b) < batchHeaderLen || le.Uint32(b) != batchMagic {
		return Batch{}, corrupt("batch header", 0)
	}
	n := int(le.Uint32(b[4:]))
	if n < 0 || n > (len(b)-batchHeaderLen)/batchPartLen {
		return Batch{}, corrupt("batch parts", 4)
	}
	bt := Batch{TimeMS: int64(le.Uint64(b[8:])), Proposal: le.Uint64(b[16:]), raw: b, n: n}
	pos := batchHeaderLen + n*batchPartLen
	for i := range n {
		l := int(le.Uint32(b[batchHeaderLen+i*batchPartLen+16:]))
		if l < submissionHeaderLen || l > len(b)-pos {
			return Batch{}, corrupt("batch part", pos)
		}
		pos += l
	}
	if pos != len(b) {
		return Batch{}, corrupt("batch length", pos)
	}
	return bt, nil
}

// Len returns the number of parts.
func (b Batch) Len() int { return b.n }

// Parts calls fn with each part and the position of its submission in the batch.
func (b Batch) Parts(fn func(p Part, pos int) error) error {
	le := binary.LittleEndian
	pos := batchHeaderLen + b.n*batchPartLen
	for i := range b.n {
		h := b.raw[batchHeaderLen+i*batchPartLen:]
		l := int(le.Uint32(h[16:]))
		sub, err := ParseSubmission(b.raw[pos : pos+l : pos+l])
		if err != nil {
			return err
		}
		if err := fn(Part{Link: le.Uint64(h), Seq: le.Uint64(h[8:]), Sub: sub}, pos); err != nil {
			return err
		}
		pos += l
	}
	return nil
}

// BatchHeaderLen returns the length of the header of a batch of n parts.
func BatchHeaderLen(n int) int { return batchHeaderLen + n*batchPartLen }

// VerifyBatch says whether payload is the batch whose header has this checksum, each
// part matching the sum that the header holds for it.
func VerifyBatch(payload []byte, headerCRC uint32) bool {
	b, err := ParseBatch(payload)
	if err != nil || CRC(payload[:BatchHeaderLen(b.n)]) != headerCRC {
		return false
	}
	i := 0
	err = b.Parts(func(p Part, _ int) error {
		h := payload[batchHeaderLen+i*batchPartLen:]
		i++
		if p.Sub.SumOf() != binary.LittleEndian.Uint32(h[20:]) || !p.Sub.Verify() {
			return ErrCorrupt
		}
		return nil
	})
	return err == nil
}
