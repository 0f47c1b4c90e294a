package store

import (
	"encoding/binary"
	"math"

	"github.com/sluicemq/sluice/internal/msg"
)

// blockTarget is the size at which a block of entries or bodies is closed, header
// included. It is a size class of package buf: a cached block wastes no memory.
const blockTarget = 16 << 10

// duePageTarget is the size at which a page of the due list is closed.
const duePageTarget = 64 << 10

// blockHeaderLen is u32 CRC, u32 length, u8 kind.
const blockHeaderLen = 9

// maxBlockLen bounds what a length that was damaged can make a reader allocate.
const maxBlockLen = 1 << 30

// maxOffset is the largest offset: deltas are shifted by one bit.
const maxOffset = math.MaxInt64

// Kinds of blocks. The values are on disk.
const (
	kindEntries   uint8 = 1 + iota // entries of one run
	kindBodies                     // shared bodies
	kindIndex                      // first offsets and positions of a run's blocks
	kindDue                        // a page of the due list
	kindDirectory                  // the runs of a segment
	kindPairs                      // keys and values of a checkpoint
	kindMark                       // the end of a checkpoint's delta

	// kindMore is added to kindEntries for the second and later blocks of a run.
	kindMore uint8 = 0x80
)

// kindOf returns the kind of a verified block.
func kindOf(b []byte) uint8 { return b[8] &^ kindMore }

// blockCRC is the checksum of a block that lies at pos of the file with this id.
// The place is part of it so that a block is recognized that was written to, or
// read from, another place.
func blockCRC(b []byte, id uint32, pos int64) uint32 {
	place := uint64(pos)*0x9e3779b97f4a7c15 + uint64(id)*0xc2b2ae3d27d4eb4f
	return msg.CRC(b[4:]) ^ uint32(place>>32)
}

// sealBlock fills in the header of the block b, which begins with blockHeaderLen
// bytes of room.
func sealBlock(b []byte, kind uint8, id uint32, pos int64) {
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	b[8] = kind
	binary.LittleEndian.PutUint32(b, blockCRC(b, id, pos))
}

// blockLen returns the length that the header at the start of b claims, 0 if that
// is impossible.
func blockLen(b []byte) int {
	if len(b) < blockHeaderLen {
		return 0
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if n < blockHeaderLen || n > maxBlockLen {
		return 0
	}
	return int(n)
}

// openBlock verifies the block at the start of b and returns it without what
// follows; nil if it is not what was written.
func openBlock(b []byte, kind uint8, id uint32, pos int64) []byte {
	n := blockLen(b)
	if n == 0 || n > len(b) || kind != 0 && kindOf(b) != kind {
		return nil
	}
	if binary.LittleEndian.Uint32(b) != blockCRC(b[:n], id, pos) {
		return nil
	}
	return b[:n:n]
}

// bodyRef says where a shared record lies in its file.
type bodyRef struct {
	block uint32 // position of the bodies block in the file
	at    uint32 // position of the record in the block
	size  uint32
}

// entriesHeader is the head of a block of entries.
type entriesHeader struct {
	log   msg.LogID
	lane  uint8
	count int
	first msg.Offset
	at    int  // position of the first entry in the block
	more  bool // not the run's first block
}

// appendEntriesHeader begins a block of entries; countAt is the position of its u16
// count, which is filled in when the block is closed.
func appendEntriesHeader(b []byte, log msg.LogID, lane uint8, first msg.Offset) (block []byte, countAt int) {
	b = append(b, make([]byte, blockHeaderLen)...)
	b = binary.AppendUvarint(b, log)
	b = append(b, lane)
	countAt = len(b)
	b = append(b, 0, 0)
	return binary.AppendUvarint(b, first), countAt
}

// parseEntriesHeader reads the head of a verified block of entries.
func parseEntriesHeader(b []byte) (h entriesHeader, ok bool) {
	if len(b) < blockHeaderLen || kindOf(b) != kindEntries {
		return h, false
	}
	p := blockHeaderLen
	log, n := binary.Uvarint(b[p:])
	if n <= 0 || len(b) < p+n+3 {
		return h, false
	}
	p += n
	h.log, h.lane = log, b[p]
	h.count = int(binary.LittleEndian.Uint16(b[p+1:]))
	p += 3
	first, n := binary.Uvarint(b[p:])
	if n <= 0 || first > maxOffset || h.count == 0 {
		return h, false
	}
	h.first, h.at, h.more = first, p+n, b[8]&kindMore != 0
	return h, true
}

// entryIter walks the entries of one block.
type entryIter struct {
	b    []byte // entries not yet walked
	left int
	off  msg.Offset
	bad  bool // the entries are not what the header says
}

// entry is one entry as stored: a record or a reference to one.
type entry struct {
	off    msg.Offset
	record []byte // nil if shared
	shared bool
	ref    bodyRef
	size   int // bytes that the entry takes in its block
}

func (it *entryIter) open(b []byte, h entriesHeader) {
	*it = entryIter{b: b[h.at:], left: h.count, off: h.first}
}

// next reads the next entry into e; false at the end or when the block is bad.
func (it *entryIter) next(e *entry) bool {
	if it.left == 0 {
		return false
	}
	it.left--
	var d uint64
	n := 1
	if len(it.b) > 0 && it.b[0] < 0x80 {
		d = uint64(it.b[0])
	} else if d, n = binary.Uvarint(it.b); n <= 0 {
		return it.fail()
	}
	it.off += d >> 1
	if it.off > maxOffset {
		return it.fail()
	}
	e.off, e.shared = it.off, d&1 != 0
	if e.shared {
		return it.nextShared(e, n)
	}
	size := msg.RecordSize(it.b[n:])
	if size == 0 {
		return it.fail()
	}
	e.size = n + size
	e.record = it.b[n:e.size:e.size]
	it.b = it.b[e.size:]
	return true
}

func (it *entryIter) nextShared(e *entry, n int) bool {
	var v [3]uint64
	for i := range v {
		x, k := binary.Uvarint(it.b[n:])
		if k <= 0 || x > math.MaxUint32 {
			return it.fail()
		}
		v[i] = x
		n += k
	}
	e.record = nil
	e.ref = bodyRef{uint32(v[0]), uint32(v[1]), uint32(v[2])}
	e.size = n
	it.b = it.b[n:]
	return true
}

func (it *entryIter) fail() bool {
	it.left, it.bad = 0, true
	return false
}

// body returns the record that ref names in its verified block of bodies, nil if
// there is none.
func (ref bodyRef) body(block []byte) []byte {
	end := uint64(ref.at) + uint64(ref.size)
	if ref.at < blockHeaderLen || end > uint64(len(block)) {
		return nil
	}
	r := block[ref.at:end:end]
	if msg.RecordSize(r) != len(r) {
		return nil
	}
	return r
}

// indexEntryLen is u64 first offset, u32 position.
const indexEntryLen = 12

// blockIndex is the verified index of a run.
type blockIndex []byte

func parseIndex(block []byte, run Run) (blockIndex, bool) {
	x := blockIndex(block[blockHeaderLen:])
	n := x.len()
	if n == 0 || len(x)%indexEntryLen != 0 || x.pos(0) != run.Pos || x.first(0) != run.First {
		return nil, false
	}
	for i := 1; i < n; i++ {
		if x.first(i) <= x.first(i-1) || x.pos(i) <= x.pos(i-1) {
			return nil, false
		}
	}
	return x, x.first(n-1) <= run.Last && uint64(x.pos(n-1)) < uint64(run.Pos)+uint64(run.Size)
}

func (x blockIndex) len() int { return len(x) / indexEntryLen }

func (x blockIndex) first(i int) msg.Offset {
	return binary.LittleEndian.Uint64(x[i*indexEntryLen:])
}

func (x blockIndex) pos(i int) uint32 {
	return binary.LittleEndian.Uint32(x[i*indexEntryLen+8:])
}

// end returns the position behind block i: that of the next one or of the run's end.
func (x blockIndex) end(i int, run Run) int64 {
	if i+1 < x.len() {
		return int64(x.pos(i + 1))
	}
	return int64(run.Pos) + int64(run.Size)
}

// find returns the block that holds the first entry at or behind off.
func (x blockIndex) find(off msg.Offset) int {
	lo, hi := 0, x.len() // the last block whose first offset is <= off
	for lo+1 < hi {
		m := int(uint(lo+hi) / 2)
		if x.first(m) <= off {
			lo = m
		} else {
			hi = m
		}
	}
	return lo
}
