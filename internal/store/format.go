package store

import (
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"strconv"

	"github.com/sluicemq/sluice/internal/msg"
)

const (
	segmentMagic   = 0x3147455343494c53 // "SLICSEG1", little endian
	segmentVersion = 1

	segmentHeaderLen  = 16
	segmentTrailerLen = 96
)

func segmentPath(shard uint32, id SegID) string {
	return filepath.Join("seg", strconv.FormatUint(uint64(shard), 10), fmt.Sprintf("%08x.seg", uint32(id)))
}

func checkpointPath(shard, id uint32) string {
	return filepath.Join("ckpt", strconv.FormatUint(uint64(shard), 10), fmt.Sprintf("%08x", id))
}

func appendSegmentHeader(b []byte, shard uint32, id SegID) []byte {
	b = binary.LittleEndian.AppendUint64(b, segmentMagic)
	b = binary.LittleEndian.AppendUint32(b, shard)
	return binary.LittleEndian.AppendUint32(b, uint32(id))
}

// trailer is the fixed end of a segment file.
type trailer struct {
	shard     uint32
	id        SegID
	entries   uint64
	runs      uint32
	minWeight uint32 // of an entry: what it takes in its block
	maxWeight uint32 // of an entry with its body
	stubs     uint32 // entries that refer to shared bodies
	bodies    uint32
	bodyBytes uint64 // of shared bodies
	dues      uint32
	duePos    uint32
	dirPos    uint32
	fileLen   uint64
}

// append encodes the trailer:
//
//	 0 u64 magic      8 u32 version  12 u32 shard   16 u32 id        20 u32 runs
//	24 u64 entries   32 u32 min weight, 36 u32 max weight
//	40 u32 stubs     44 u32 bodies   48 u64 bytes of bodies
//	56 u32 dues      60 u32 position of due pages   64 u32 position of directory
//	68 u64 file length   76 zero   92 u32 CRC-32C of all before
func (t *trailer) append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, segmentTrailerLen)...)
	h := b[start:]
	le := binary.LittleEndian
	le.PutUint64(h, segmentMagic)
	le.PutUint32(h[8:], segmentVersion)
	le.PutUint32(h[12:], t.shard)
	le.PutUint32(h[16:], uint32(t.id))
	le.PutUint32(h[20:], t.runs)
	le.PutUint64(h[24:], t.entries)
	le.PutUint32(h[32:], t.minWeight)
	le.PutUint32(h[36:], t.maxWeight)
	le.PutUint32(h[40:], t.stubs)
	le.PutUint32(h[44:], t.bodies)
	le.PutUint64(h[48:], t.bodyBytes)
	le.PutUint32(h[56:], t.dues)
	le.PutUint32(h[60:], t.duePos)
	le.PutUint32(h[64:], t.dirPos)
	le.PutUint64(h[68:], t.fileLen)
	le.PutUint32(h[92:], msg.CRC(h[:92]))
	return b
}

// parseTrailer reads the last segmentTrailerLen bytes of a file; reason is empty if
// they are sound.
func parseTrailer(h []byte) (t trailer, reason string) {
	le := binary.LittleEndian
	switch {
	case len(h) != segmentTrailerLen || le.Uint32(h[92:]) != msg.CRC(h[:92]):
		return t, "trailer"
	case le.Uint64(h) != segmentMagic:
		return t, "trailer's magic number"
	case le.Uint32(h[8:]) != segmentVersion:
		return t, fmt.Sprintf("format version %d is not known", le.Uint32(h[8:]))
	}
	t = trailer{
		shard: le.Uint32(h[12:]), id: SegID(le.Uint32(h[16:])), runs: le.Uint32(h[20:]),
		entries: le.Uint64(h[24:]), minWeight: le.Uint32(h[32:]), maxWeight: le.Uint32(h[36:]),
		stubs: le.Uint32(h[40:]), bodies: le.Uint32(h[44:]), bodyBytes: le.Uint64(h[48:]),
		dues: le.Uint32(h[56:]), duePos: le.Uint32(h[60:]), dirPos: le.Uint32(h[64:]),
		fileLen: le.Uint64(h[68:]),
	}
	if t.duePos < segmentHeaderLen || t.dirPos < t.duePos || uint64(t.dirPos)+segmentTrailerLen > t.fileLen {
		return t, "trailer's positions"
	}
	return t, ""
}

// runInfo is what the directory says of a run besides its Run.
type runInfo struct {
	own   uint32 // bytes of the run's own blocks
	stubs uint32 // entries that refer to shared bodies
}

// Flags of a run in the directory, above RunFlags.
const (
	dirLane  = 1 << 4 // a lane follows
	dirHoles = 1 << 5 // a count follows: it is less than the span
	dirGap   = 1 << 6 // the position does not follow the last run's
	dirFlags = uint8(RunIndexed|RunShared) | dirLane | dirHoles | dirGap
)

// appendDirectory encodes the payload of a directory block:
//
//	uvarint number of runs, then per run:
//	u8 flags, uvarint log - previous log, [u8 lane], uvarint first, uvarint last-first,
//	[uvarint count], [uvarint position - end of previous run], uvarint size,
//	[uvarint own bytes, uvarint stubs] if it has shared entries
func appendDirectory(b []byte, runs []Run, infos []runInfo) []byte {
	b = binary.AppendUvarint(b, uint64(len(runs)))
	log, end := uint64(0), uint32(segmentHeaderLen)
	for i, r := range runs {
		flags := uint8(r.Flags)
		if r.Lane != 0 {
			flags |= dirLane
		}
		if r.Last-r.First != uint64(r.Count-1) {
			flags |= dirHoles
		}
		if r.Pos != end {
			flags |= dirGap
		}
		b = append(b, flags)
		b = binary.AppendUvarint(b, r.Log-log)
		if flags&dirLane != 0 {
			b = append(b, r.Lane)
		}
		b = binary.AppendUvarint(b, r.First)
		b = binary.AppendUvarint(b, r.Last-r.First)
		if flags&dirHoles != 0 {
			b = binary.AppendUvarint(b, uint64(r.Count))
		}
		if flags&dirGap != 0 {
			b = binary.AppendUvarint(b, uint64(r.Pos-end))
		}
		b = binary.AppendUvarint(b, uint64(r.Size))
		if r.Flags&RunShared != 0 {
			b = binary.AppendUvarint(b, uint64(infos[i].own))
			b = binary.AppendUvarint(b, uint64(infos[i].stubs))
		}
		log, end = r.Log, r.Pos+r.Size
	}
	return b
}

// varints walks a payload of uvarints; the first error sticks.
type varints struct {
	b   []byte
	bad bool
}

func (v *varints) u64() uint64 {
	x, n := binary.Uvarint(v.b)
	if n <= 0 {
		v.b, v.bad = nil, true
		return 0
	}
	v.b = v.b[n:]
	return x
}

func (v *varints) u32() uint32 {
	x := v.u64()
	if x > math.MaxUint32 {
		v.bad = true
	}
	return uint32(x)
}

func (v *varints) u8() uint8 {
	if len(v.b) == 0 {
		v.bad = true
		return 0
	}
	x := v.b[0]
	v.b = v.b[1:]
	return x
}

// bytes returns n bytes with a leading length.
func (v *varints) bytes() []byte {
	n := v.u64()
	if n > uint64(len(v.b)) {
		v.b, v.bad = nil, true
		return nil
	}
	s := v.b[:n:n]
	v.b = v.b[n:]
	return s
}

// parseDirectory decodes the payload of a directory block of a segment whose data
// ends at dataEnd.
func parseDirectory(b []byte, id SegID, dataEnd uint32) (runs []Run, infos []runInfo, ok bool) {
	v := varints{b: b}
	n := v.u64()
	if v.bad || n > uint64(len(v.b))/5 {
		return nil, nil, false
	}
	runs, infos = make([]Run, 0, n), make([]runInfo, 0, n)
	log, lane, last, end := uint64(0), -1, uint64(0), uint32(segmentHeaderLen)
	for i := range uint32(n) {
		r := Run{Seg: id, Dir: i}
		flags := v.u8()
		delta := v.u64()
		r.Flags = RunFlags(flags) & (RunIndexed | RunShared)
		if r.Log = log + delta; r.Log < log {
			return nil, nil, false
		}
		if flags&dirLane != 0 {
			r.Lane = v.u8()
		}
		r.First = v.u64()
		r.Last = r.First + v.u64()
		count := r.Last - r.First + 1
		if flags&dirHoles != 0 {
			count = min(count, uint64(v.u32()))
		}
		if flags&dirGap != 0 {
			end += v.u32()
		}
		r.Pos, r.Size, r.Count = end, v.u32(), uint32(count)
		info := runInfo{own: r.Size}
		if r.Flags&RunShared != 0 {
			info = runInfo{own: v.u32(), stubs: v.u32()}
		}
		ordered := delta > 0 || int(r.Lane) > lane || int(r.Lane) == lane && r.First > last
		if v.bad || flags&^dirFlags != 0 || !ordered || r.Last < r.First || r.Last > maxOffset ||
			count == 0 || count > math.MaxUint32 || r.Size == 0 ||
			uint64(r.Pos)+uint64(r.Size) > uint64(dataEnd) || r.Pos < segmentHeaderLen {
			return nil, nil, false
		}
		log, lane, last, end = r.Log, int(r.Lane), r.Last, r.Pos+r.Size
		runs, infos = append(runs, r), append(infos, info)
	}
	return runs, infos, len(v.b) == 0
}
