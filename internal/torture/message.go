package torture

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
)

// ID names a message: the Seq-th, from 0, of one publisher to one queue.
type ID struct {
	Publisher uint16
	Queue     uint16
	Seq       uint32
}

// String returns the form that reports use.
func (id ID) String() string {
	return fmt.Sprintf("queue %d publisher %d seq %d", id.Queue, id.Publisher, id.Seq)
}

// headSize is the length of what precedes the filler in a body: run, publisher,
// queue, seq, checksum.
const headSize = 4 + 2 + 2 + 4 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EncodeBody returns a body of at least size bytes for a message of a run. Its
// checksum covers everything else in it.
func EncodeBody(run uint32, id ID, size int, rng *rand.ChaCha8) []byte {
	b := make([]byte, max(size, headSize))
	binary.BigEndian.PutUint32(b, run)
	binary.BigEndian.PutUint16(b[4:], id.Publisher)
	binary.BigEndian.PutUint16(b[6:], id.Queue)
	binary.BigEndian.PutUint32(b[8:], id.Seq)
	_, _ = rng.Read(b[headSize:])
	binary.BigEndian.PutUint32(b[12:], checksum(b))
	return b
}

// DecodeBody returns the message that a body is of. It fails for a body that is
// damaged or of another run.
func DecodeBody(run uint32, b []byte) (ID, error) {
	if len(b) < headSize {
		return ID{}, fmt.Errorf("body of %d bytes", len(b))
	}
	if got, want := checksum(b), binary.BigEndian.Uint32(b[12:]); got != want {
		return ID{}, fmt.Errorf("body of %d bytes with checksum %08x, want %08x", len(b), got, want)
	}
	if got := binary.BigEndian.Uint32(b); got != run {
		return ID{}, fmt.Errorf("message of run %08x, this is %08x", got, run)
	}
	return ID{
		Publisher: binary.BigEndian.Uint16(b[4:]),
		Queue:     binary.BigEndian.Uint16(b[6:]),
		Seq:       binary.BigEndian.Uint32(b[8:]),
	}, nil
}

func checksum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, b[headSize:])
}
