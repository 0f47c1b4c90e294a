package store

import (
	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
)

// Sizes of reads.
const (
	MinReadBytes = 64 << 10
	MaxReadBytes = 1 << 20
)

// ReadRange reads consecutive entries of a run, beginning with the first whose
// offset is >= first: as many whole blocks as fit into maxBytes, but at least one
// entry. Checksums are verified. The end of the run gives an empty Block. Errors: a
// *DamageError with the offsets that can't be read (the entries behind them can),
// ErrGone, or of the file system.
func (s *Store) ReadRange(run Run, first msg.Offset, maxBytes int) (Block, error) {
	return Block{}, ErrGone
}

// Block is a list of entries that were read together. It holds one reference to a
// chunk; Release gives it up.
type Block struct {
	chunk *buf.Chunk
}

// Next returns the next entry. record aliases the chunk: it is valid while a
// reference to the chunk is held, and ends at its capacity.
func (b *Block) Next() (offset msg.Offset, record []byte, ok bool) { return 0, nil, false }

// Chunk returns the chunk that the records lie in, nil for an empty block. Whoever
// keeps it retains it.
func (b *Block) Chunk() *buf.Chunk { return b.chunk }

// Release gives up the block's reference. The zero Block may be released.
func (b *Block) Release() {}

// ReadAhead sizes the reads of one sequential consumer: MinReadBytes at first and
// after every jump, doubling up to MaxReadBytes while it reads on where it
// stopped. The zero value is ready for use.
type ReadAhead struct{}

// Read is ReadRange with the size chosen, at most limit bytes.
func (ra *ReadAhead) Read(s *Store, run Run, first msg.Offset, limit int) (Block, error) {
	return Block{}, ErrGone
}

// Due opens the list of a segment's entries that have an expiry, nil if there are
// none. It reads 64 KiB at a time. The segment must be pinned while it is used.
func (s *Store) Due(id SegID) (*DueList, error) { return nil, ErrGone }

// DueList walks the entries of a segment that have an expiry, by ascending time.
type DueList struct{}

// DueEntry is an entry with its expiry.
type DueEntry struct {
	TimeMS int64
	Log    msg.LogID
	Lane   uint8
	Offset msg.Offset
}

// Next returns the next entry; ok is false at the end.
func (d *DueList) Next() (e DueEntry, ok bool, err error) { return e, false, nil }

// Len returns the number of entries in the whole list.
func (d *DueList) Len() int { return 0 }
