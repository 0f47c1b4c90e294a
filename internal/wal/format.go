package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
)

const (
	formatVersion = 2

	blockSize  = 4096 // unit of the file header, and of file sizes
	sectorSize = 512  // unit of groups

	fileHeaderFixed = 64 // bytes of the file header before the table
	tableRowLen     = 64
	groupHeaderLen  = 48
	recordHeaderLen = 48
	recordAlign     = 8

	// maxGroup bounds a group in bytes, so that the latency of a small append
	// behind a large one is bounded. A single larger record has its own group.
	maxGroup = 4 << 20

	// auxLen is the payload of records other than entries: Aux.
	auxLen = 8
)

var (
	fileMagic  = [8]byte{'S', 'L', 'U', 'I', 'C', 'W', 'A', 'L'}
	groupMagic = uint32(0x47575331) // "1SWG"

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// Group flags.
const (
	flagSeal  = 1 << 0 // empty, a witness of what is before it
	flagFinal = 1 << 1 // the last group of a finished file
)

const (
	walSuffix   = ".wal"
	spareSuffix = ".spare"
	tmpSuffix   = ".tmp"
)

// FileName returns the name of the file with a sequence.
func FileName(seq uint64) string { return fileName(seq) }

func fileName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, walSuffix) }

// parseName returns the number in a name with the given suffix.
func parseName(name, suffix string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 16 || strings.ToLower(digits) != digits {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil
}

func alignUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// fileHeader is what a file begins with.
type fileHeader struct {
	seq        uint64
	salt       uint64
	firstGroup uint64 // sequence of the file's first group
	fileSize   int64  // bytes
	length     int64  // bytes of the header, a multiple of blockSize
	table      []ShardState
}

// headerLen returns the bytes of a header with a table of n shards.
func headerLen(n int) int64 { return alignUp(fileHeaderFixed+int64(n)*tableRowLen, blockSize) }

// maxHeader is the room kept for the header in a file of the given size: a
// sixteenth, for 63 shards in 64 KiB and 65,535 in 64 MiB.
func maxHeader(fileSize int64) int64 { return max(blockSize, fileSize/16/blockSize*blockSize) }

// appendFileHeader appends the encoded header; h.length is derived, not used.
func appendFileHeader(dst []byte, h fileHeader) []byte {
	start := len(dst)
	n := int(headerLen(len(h.table)))
	dst = slices.Grow(dst, n)[:start+n]
	b := dst[start:]
	clear(b)
	copy(b, fileMagic[:])
	le.PutUint32(b[8:], formatVersion)
	le.PutUint32(b[12:], uint32(n))
	le.PutUint64(b[16:], h.seq)
	le.PutUint64(b[24:], h.salt)
	le.PutUint64(b[32:], h.firstGroup)
	le.PutUint64(b[40:], uint64(h.fileSize))
	le.PutUint32(b[48:], uint32(len(h.table)))
	for i, s := range h.table {
		row := b[fileHeaderFixed+i*tableRowLen:]
		le.PutUint32(row, s.Shard)
		for j, v := range [...]uint64{
			s.Incarnation, s.Term, s.Vote, s.Commit,
			s.FirstIndex, s.FirstTerm, s.CheckpointID,
		} {
			le.PutUint64(row[8+8*j:], v)
		}
	}
	le.PutUint32(b[56:], checksum(b))
	return dst
}

var errHeader = errors.New("invalid file header")

// parseHeaderLen returns the length that a header claims. b is its first block.
func parseHeaderLen(b []byte, fileSize int64) (int64, error) {
	if len(b) < fileHeaderFixed || [8]byte(b[:8]) != fileMagic {
		return 0, fmt.Errorf("%w: no magic", errHeader)
	}
	n := int64(le.Uint32(b[12:]))
	if n < blockSize || n%blockSize != 0 || n > fileSize {
		return 0, fmt.Errorf("%w: length %d", errHeader, n)
	}
	return n, nil
}

// parseFileHeader parses a whole header, of the length parseHeaderLen gave. b is
// restored before it returns.
func parseFileHeader(b []byte) (fileHeader, error) {
	crc := le.Uint32(b[56:])
	le.PutUint32(b[56:], 0)
	sum := checksum(b)
	le.PutUint32(b[56:], crc)
	if sum != crc {
		return fileHeader{}, fmt.Errorf("%w: checksum", errHeader)
	}
	if v := le.Uint32(b[8:]); v != formatVersion { // whoever wrote it meant it
		return fileHeader{}, fmt.Errorf("%w: %d is not known, only %d", ErrVersion, v, formatVersion)
	}
	h := fileHeader{
		seq: le.Uint64(b[16:]), salt: le.Uint64(b[24:]), firstGroup: le.Uint64(b[32:]),
		fileSize: int64(le.Uint64(b[40:])), length: int64(len(b)),
	}
	n := int64(le.Uint32(b[48:]))
	if fileHeaderFixed+n*tableRowLen > int64(len(b)) {
		return fileHeader{}, fmt.Errorf("%w: %d shards", errHeader, n)
	}
	h.table = make([]ShardState, n)
	for i := range h.table {
		row := b[fileHeaderFixed+i*tableRowLen:]
		var v [7]uint64
		for j := range v {
			v[j] = le.Uint64(row[8+8*j:])
		}
		h.table[i] = ShardState{
			Shard: le.Uint32(row), Incarnation: v[0],
			HardState:  HardState{Term: v[1], Vote: v[2], Commit: v[3]},
			FirstIndex: v[4], FirstTerm: v[5], CheckpointID: v[6],
		}
	}
	return h, nil
}

// groupHeader is what a group begins with.
type groupHeader struct {
	flags         uint32
	fileSeq       uint64
	groupSeq      uint64
	length        uint32 // bytes of the records, aligned, without this header
	records       uint32
	syncedThrough uint32 // the file was synced up to this offset before the group
	salt          uint64
}

// size is the room that the group takes in the file.
func (g groupHeader) size() int64 {
	return alignUp(groupHeaderLen+int64(g.length), sectorSize)
}

func putGroupHeader(b []byte, g groupHeader) {
	le.PutUint32(b, groupMagic)
	le.PutUint32(b[4:], g.flags)
	le.PutUint64(b[8:], g.fileSeq)
	le.PutUint64(b[16:], g.groupSeq)
	le.PutUint32(b[24:], g.length)
	le.PutUint32(b[28:], g.records)
	le.PutUint32(b[32:], g.syncedThrough)
	le.PutUint64(b[36:], g.salt)
	le.PutUint32(b[44:], checksum(b[:44]))
}

// parseGroupHeader returns the header at the start of b if it is valid.
func parseGroupHeader(b []byte) (groupHeader, bool) {
	if len(b) < groupHeaderLen || le.Uint32(b) != groupMagic ||
		le.Uint32(b[44:]) != checksum(b[:44]) {
		return groupHeader{}, false
	}
	g := groupHeader{
		flags: le.Uint32(b[4:]), fileSeq: le.Uint64(b[8:]), groupSeq: le.Uint64(b[16:]),
		length: le.Uint32(b[24:]), records: le.Uint32(b[28:]),
		syncedThrough: le.Uint32(b[32:]), salt: le.Uint64(b[36:]),
	}
	return g, g.length%recordAlign == 0 && int64(g.records)*recordHeaderLen <= int64(g.length)
}

// recordHeader is what a record begins with.
type recordHeader struct {
	length      uint32 // bytes of the payload
	typ         Type
	shard       uint32
	payloadCRC  uint32
	incarnation uint64
	term        uint64
	index       uint64
	ordinal     uint32 // place in the group, from 0
}

// size is the room that the record takes in its group.
func (h recordHeader) size() int64 { return recordSize(int64(h.length)) }

func recordSize(payload int64) int64 { return alignUp(recordHeaderLen+payload, recordAlign) }

// recordSeed is the initial checksum of the headers of a group's records: a mix
// (splitmix64) of what they must belong to.
func recordSeed(salt, fileSeq, groupSeq uint64) uint32 {
	x := salt
	for _, v := range [...]uint64{fileSeq, groupSeq} {
		x = (x ^ v) + 0x9e3779b97f4a7c15
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		x ^= x >> 31
	}
	return uint32(x)
}

func putRecordHeader(b []byte, seed uint32, h recordHeader) {
	le.PutUint32(b, h.length)
	le.PutUint32(b[4:], uint32(h.typ))
	le.PutUint32(b[8:], h.shard)
	le.PutUint32(b[12:], h.payloadCRC)
	le.PutUint64(b[16:], h.incarnation)
	le.PutUint64(b[24:], h.term)
	le.PutUint64(b[32:], h.index)
	le.PutUint32(b[40:], h.ordinal)
	le.PutUint32(b[44:], crc32.Update(seed, castagnoli, b[:44]))
}

// parseRecordHeader returns the header at the start of b if it is valid and its
// record lies within b.
func parseRecordHeader(b []byte, seed uint32) (recordHeader, bool) {
	if len(b) < recordHeaderLen || le.Uint32(b[44:]) != crc32.Update(seed, castagnoli, b[:44]) {
		return recordHeader{}, false
	}
	h := recordHeader{
		length: le.Uint32(b), typ: Type(b[4]), shard: le.Uint32(b[8:]),
		payloadCRC: le.Uint32(b[12:]), incarnation: le.Uint64(b[16:]),
		term: le.Uint64(b[24:]), index: le.Uint64(b[32:]), ordinal: le.Uint32(b[40:]),
	}
	ok := h.typ >= TypeEntry && h.typ <= TypeShardGone && h.size() <= int64(len(b))
	if h.typ != TypeEntry {
		ok = ok && h.length == auxLen
	}
	return h, ok
}

// parsedRecord is a record found in a group.
type parsedRecord struct {
	recordHeader
	at        int64 // of the header, relative to the group
	payload   []byte
	payloadOK bool
}

// defect is a part of a group that is not as it was written.
type defect struct {
	at, length int64 // relative to the group
	reason     string
}

// defectPayload is the reason of a defect that concerns a known record.
const defectPayload = "payload"

// defectHeader is the reason of a defect where records were.
const defectHeader = "record header"

// groupParser finds records. verify decides about the payload of an entry.
type groupParser struct {
	verify  func(payload []byte, crc uint32) bool
	records []parsedRecord // of the last parse; aliases its input
	defects []defect
}

// parse takes a group apart: b is the group from its header on, padding
// included, and g its header. With salvage the header is not to be trusted and b
// is as much as may belong to it: all valid records of the group sequence in g
// are found, and only what is missing between them is a defect.
func (p *groupParser) parse(b []byte, g groupHeader, salvage bool) {
	p.records, p.defects = p.records[:0], p.defects[:0]
	seed := recordSeed(g.salt, g.fileSeq, g.groupSeq)
	end := int64(len(b))
	if !salvage {
		end = groupHeaderLen + int64(g.length)
	}
	at, next := int64(groupHeaderLen), uint32(0)
	for (salvage || next < g.records) && at+recordHeaderLen <= end {
		h, ok := parseRecordHeader(b[at:end], seed)
		if ok && h.ordinal == next {
			p.add(b, at, h)
			at, next = at+h.size(), next+1
			continue
		}
		found := p.resync(b[:end], at, seed, next)
		if found < 0 {
			break
		}
		p.defects = append(p.defects, defect{at, found - at, defectHeader})
		at, next = found, le.Uint32(b[found+40:])
	}
	if salvage {
		return
	}
	if next < g.records {
		p.defects = append(p.defects, defect{at, end - at, defectHeader})
		return
	}
	if at != end || !isZero(b[end:]) {
		p.defects = append(p.defects, defect{at, int64(len(b)) - at, "padding"})
	}
}

// resync returns where the next valid record with an ordinal above from is, or
// -1.
func (p *groupParser) resync(b []byte, at int64, seed, from uint32) int64 {
	for at += recordAlign; at+recordHeaderLen <= int64(len(b)); at += recordAlign {
		if h, ok := parseRecordHeader(b[at:], seed); ok && h.ordinal > from {
			return at
		}
	}
	return -1
}

func (p *groupParser) add(b []byte, at int64, h recordHeader) {
	from := at + recordHeaderLen
	r := parsedRecord{recordHeader: h, at: at, payload: b[from : from+int64(h.length)]}
	switch h.typ {
	case TypeEntry:
		r.payloadOK = p.verify(r.payload, h.payloadCRC)
	default:
		r.payloadOK = checksum(r.payload) == h.payloadCRC
	}
	if !r.payloadOK {
		p.defects = append(p.defects, defect{from, int64(h.length), defectPayload})
	}
	if !isZero(b[from+int64(h.length) : at+h.size()]) {
		p.defects = append(p.defects, defect{from + int64(h.length), 8, "padding"})
	}
	p.records = append(p.records, r)
}

// verifyCRC32C is the default of Options.VerifyPayload.
func verifyCRC32C(payload []byte, crc uint32) bool { return checksum(payload) == crc }

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if le.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
