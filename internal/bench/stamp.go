package bench

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
)

// stampSize is the length of a stamp, in bytes.
const stampSize = 24

// maxSeq bounds the sequence numbers that are believed: a greater one is
// damage, and would otherwise size a bitset.
const maxSeq = 1 << 36

// stamp identifies a message; see the package comment for its layout.
type stamp struct {
	run       uint32
	publisher uint16
	queue     uint16
	seq       uint64
	timeNanos int64 // since the Unix epoch
}

// key names the stream of sequence numbers that the message belongs to.
func (s stamp) key() uint64 {
	return uint64(s.run)<<32 | uint64(s.publisher)<<16 | uint64(s.queue)
}

// putStamp writes s over the first stampSize bytes of b.
func putStamp(b []byte, s stamp) {
	_ = b[stampSize-1]
	binary.BigEndian.PutUint64(b, s.key())
	binary.BigEndian.PutUint64(b[8:], s.seq)
	binary.BigEndian.PutUint64(b[16:], uint64(s.timeNanos))
}

// parseStamp reads the stamp at the beginning of a body. It reports false for a
// body that none of our publishers can have written.
func parseStamp(b []byte) (stamp, bool) {
	if len(b) < stampSize {
		return stamp{}, false
	}
	key := binary.BigEndian.Uint64(b)
	s := stamp{
		run:       uint32(key >> 32),
		publisher: uint16(key >> 16),
		queue:     uint16(key),
		seq:       binary.BigEndian.Uint64(b[8:]),
		timeNanos: int64(binary.BigEndian.Uint64(b[16:])),
	}
	return s, s.run != 0 && s.seq < maxSeq
}

// filler is what follows the stamp in every body: incompressible, and the same
// in every process, so that a consumer can compare what another one published.
type filler []byte

// newFiller returns the filler for bodies of size bytes, stamp included.
func newFiller(size int) filler {
	// A fixed seed: the bytes are a constant, not a source of chance.
	rng := rand.NewChaCha8([32]byte([]byte("sluice bench body filler, v1....")))
	f := make([]byte, size)
	_, _ = rng.Read(f)
	return f
}

// matches reports whether part, which begins at byte off of a body and lies
// wholly behind the stamp, is as published. Bytes that the filler doesn't reach
// are taken as they are: a consumer may meet longer bodies than its own.
func (f filler) matches(part []byte, off int) bool {
	if off >= len(f) {
		return true
	}
	n := min(len(part), len(f)-off)
	return bytes.Equal(part[:n], f[off:off+n])
}
