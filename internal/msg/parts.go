package msg

import (
	"encoding/binary"

	"github.com/sluicemq/sluice/internal/buf"
)

// A large body travels and is stored in parts: records at the offsets 0 to Count-1 of
// lane 0 of a parts log, whose bodies joined are the body. They go ahead of the append of
// the message, whose record has FlagParts and, for its body, the reference.

// PartsRef says where a large body lies.
type PartsRef struct {
	Log   LogID
	Count uint32 // parts
	Bytes uint64 // of the body
}

const partsRefLen = 20

func (p PartsRef) append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, p.Log)
	dst = binary.LittleEndian.AppendUint32(dst, p.Count)
	return binary.LittleEndian.AppendUint64(dst, p.Bytes)
}

func parsePartsRef(b []byte) (p PartsRef, ok bool) {
	if len(b) != partsRefLen {
		return p, false
	}
	le := binary.LittleEndian
	p = PartsRef{Log: le.Uint64(b), Count: le.Uint32(b[8:]), Bytes: le.Uint64(b[12:])}
	return p, p.valid()
}

func (p PartsRef) valid() bool { return IsParts(p.Log) && p.Count > 0 && p.Bytes >= uint64(p.Count) }

// partOverhead is what a part's submission takes besides the bytes of the body: both
// headers and the operation.
const partOverhead = submissionHeaderLen + recordHeaderLen + 64

// PartBytesMax is the largest part that makes a submission of SubmissionSoftMax.
const PartBytesMax = SubmissionSoftMax - partOverhead

// PartWriter encodes the parts of one body, each as a submission of its own, into which
// the body's bytes are copied as they arrive. Memory for a part is got as it is needed,
// whatever was announced. The zero value is ready; owned by one goroutine.
type PartWriter struct {
	chunk *buf.Chunk
	began bool // a part was finished: the next one gets all of its memory at once
}

// Len returns the number of the body's bytes that the unfinished part holds.
func (w *PartWriter) Len() int {
	if w.chunk == nil {
		return 0
	}
	return w.chunk.Len() - submissionHeaderLen - recordHeaderLen
}

// Cap returns what the unfinished part takes in memory.
func (w *PartWriter) Cap() int {
	if w.chunk == nil {
		return 0
	}
	return w.chunk.Cap()
}

// Write copies the beginning of b, as much as the part takes of up to size bytes, and
// returns how much that was. The part is full when it is less than b, or Len is size.
func (w *PartWriter) Write(b []byte, size int) int {
	n := min(len(b), size-w.Len())
	if n <= 0 {
		return 0
	}
	w.room(n, size)
	w.chunk.SetBytes(append(w.chunk.Bytes(), b[:n]...))
	return n
}

// room makes room for n more bytes: by four times as much at a time while a body
// begins.
func (w *PartWriter) room(n, size int) {
	have := w.Len()
	if w.chunk != nil && w.chunk.Cap()-w.chunk.Len() >= n+64 {
		return
	}
	want := max(have+n, 4*have)
	if w.began {
		want = size
	}
	next := buf.Get(partOverhead + min(want, size))
	if w.chunk == nil {
		next.SetBytes(next.Bytes()[:submissionHeaderLen+recordHeaderLen])
	} else {
		next.SetBytes(append(next.Bytes(), w.chunk.Bytes()...))
		w.chunk.Release()
	}
	w.chunk = next
}

// Finish encodes the part, which is not empty, as the given one of a parts log and
// returns it with one reference, which passes to the caller.
func (w *PartWriter) Finish(log LogID, number uint32) *buf.Chunk {
	c, body := w.chunk, w.Len()
	w.chunk, w.began = nil, true
	b := c.Bytes()
	e := Envelope{}
	// Rewrites the place that room kept; the record's bytes follow it already.
	appendRecordHeader(b[submissionHeaderLen:submissionHeaderLen:submissionHeaderLen+recordHeaderLen], &e, body)
	cmd := len(b)
	b = append(b, byte(OpBodyPart))
	b = binary.AppendUvarint(b, log)
	b = binary.AppendUvarint(b, uint64(number))
	b = binary.AppendUvarint(b, uint64(recordHeaderLen+body))
	b = binary.AppendUvarint(b, submissionHeaderLen)
	sealSubmission(b, cmd, 1)
	c.SetBytes(b)
	return c
}

// Reset drops the unfinished part.
func (w *PartWriter) Reset() {
	if w.chunk != nil {
		w.chunk.Release()
		w.chunk = nil
	}
}

// sealSubmission fills in the header of a submission whose command section begins at
// cmd and has so many operations.
func sealSubmission(b []byte, cmd, ops int) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], uint32(len(b)))
	le.PutUint32(b[8:], uint32(cmd))
	le.PutUint32(b[12:], uint32(ops))
	le.PutUint32(b[16:], Submission(b).commandSum())
	le.PutUint32(b[4:], CRC(b[8:]))
}
