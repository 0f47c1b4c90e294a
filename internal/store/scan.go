package store

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// scanWindow is how much of a file a scanner reads at once.
const scanWindow = 256 << 10

// scanner reads the blocks of a file one after the other, or by position as long as
// the positions mostly ascend, through a window.
type scanner struct {
	f    io.ReaderAt
	id   uint32
	end  int64 // blocks end here
	read func(n int)

	chunk *buf.Chunk
	base  int64 // position of the window's first byte
	win   []byte
	big   []byte // for a block larger than the window
}

func newScanner(f io.ReaderAt, id uint32, end int64) *scanner {
	return &scanner{f: f, id: id, end: end, chunk: buf.Get(scanWindow), read: func(int) {}}
}

func (sc *scanner) close() {
	sc.chunk.Release()
	sc.chunk, sc.win = nil, nil
}

// fill makes n bytes at pos available, as far as the file has them.
func (sc *scanner) fill(pos int64, n int) ([]byte, error) {
	if pos < sc.base || pos+int64(n) > sc.base+int64(len(sc.win)) {
		want := max(int64(scanWindow), int64(n))
		want = min(want, sc.end-pos)
		b := sc.chunk.Bytes()[:min(want, scanWindow)]
		if want > scanWindow {
			if int64(cap(sc.big)) < want {
				sc.big = make([]byte, want)
			}
			b = sc.big[:want]
		}
		k, err := sc.f.ReadAt(b, pos)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		sc.read(k)
		sc.base, sc.win = pos, b[:k]
	}
	b := sc.win[pos-sc.base:]
	return b[:min(n, len(b))], nil
}

// at returns the verified block at pos, valid until the next call; nil if there is
// none. The error is one of reading.
func (sc *scanner) at(pos int64) ([]byte, error) {
	if pos < 0 || pos+blockHeaderLen > sc.end {
		return nil, nil
	}
	h, err := sc.fill(pos, blockHeaderLen)
	if err != nil {
		return nil, err
	}
	n := blockLen(h)
	if n == 0 || int64(n) > sc.end-pos {
		return nil, nil
	}
	b, err := sc.fill(pos, n)
	if err != nil {
		return nil, err
	}
	return openBlock(b, 0, sc.id, pos), nil
}

// next returns where the next block lies behind one that is damaged, sc.end if there is
// none. Its checksum covers its place, so nothing else is taken for it.
func (sc *scanner) next(pos int64) (int64, error) {
	for pos++; pos+blockHeaderLen <= sc.end; pos++ {
		h, err := sc.fill(pos, blockHeaderLen)
		if err != nil {
			return 0, err
		}
		if len(h) < blockHeaderLen {
			break
		}
		if k := kindOf(h); k < kindEntries || k > kindMark || int64(blockLen(h)) > sc.end-pos {
			continue
		}
		b, err := sc.at(pos)
		if err != nil {
			return 0, err
		}
		if b != nil {
			return pos, nil
		}
	}
	return sc.end, nil
}

// salvaged is what a scan found of a segment whose directory can't be read.
type salvaged struct {
	t     trailer
	runs  []Run
	infos []runInfo
	holes [][2]int64 // from, to: where blocks are damaged
}

// salvage finds the runs of a segment without its directory, by walking the chain
// of blocks. Behind a damaged block it goes on with the next one.
func salvage(f vfs.File, m SegmentMeta) (x salvaged, err error) {
	size, err := f.Size()
	if err != nil {
		return x, err
	}
	sc := newScanner(f, m.seal(), size)
	defer sc.close()
	pos, fresh := int64(segmentHeaderLen), true
	for pos < size {
		b, err := sc.at(pos)
		if err != nil {
			return x, err
		}
		if b == nil {
			next, err := sc.next(pos)
			if err != nil {
				return x, err
			}
			if next == size { // trailer, and perhaps a directory
				x.holes = append(x.holes, [2]int64{pos, next})
				break
			}
			x.holes = append(x.holes, [2]int64{pos, next})
			pos, fresh = next, true
			continue
		}
		if kindOf(b) > kindIndex {
			break
		}
		if h, ok := parseEntriesHeader(b); ok && x.add(b, h, pos, m.ID, fresh) {
			fresh = false
		}
		pos += int64(len(b))
	}
	x.t.duePos, x.t.dirPos = uint32(pos), uint32(pos)
	for _, info := range x.infos {
		x.t.stubs += info.stubs
	}
	x.t.minWeight, x.t.maxWeight = 1, uint32(min(size, maxBlockLen))
	return x, nil
}

// add takes in a block of entries. fresh: it can't belong to the run before it as one
// piece.
func (x *salvaged) add(b []byte, h entriesHeader, pos int64, id SegID, fresh bool) bool {
	part, info, ok := salvageBlock(b, h, Run{Seg: id, Dir: uint32(len(x.runs)), Pos: uint32(pos)})
	if !ok {
		return false
	}
	n := len(x.runs)
	if n == 0 || !h.more || fresh || x.runs[n-1].Log != h.log || x.runs[n-1].Lane != h.lane {
		x.runs, x.infos = append(x.runs, part), append(x.infos, info)
		return true
	}
	r := &x.runs[n-1]
	// If the run's index is not there, readers rebuild it.
	r.Flags |= part.Flags | RunIndexed
	r.Last, r.Count, r.Size = part.Last, r.Count+part.Count, part.Pos+part.Size-r.Pos
	x.infos[n-1].own += info.own
	x.infos[n-1].stubs += info.stubs
	return true
}

// salvageBlock describes a block of entries as a run of its own.
func salvageBlock(b []byte, h entriesHeader, run Run) (Run, runInfo, bool) {
	info := runInfo{own: uint32(len(b))}
	run.Log, run.Lane, run.First, run.Size = h.log, h.lane, h.first, uint32(len(b))
	var it entryIter
	var e entry
	for it.open(b, h); it.next(&e); {
		run.Last = e.off
		run.Count++
		if e.shared {
			run.Flags |= RunShared
			info.stubs++
		}
	}
	return run, info, !it.bad && run.Count > 0
}

// rebuildIndex finds the blocks of a run whose index is damaged, by walking them. A
// damaged block gets an entry too, with the offset behind the block before it; behind
// one whose length is wrong nothing is found.
func (s *Store) rebuildIndex(g *segment, run Run) (*buf.Chunk, error) {
	h, err := s.files.acquire(g)
	if err != nil {
		return nil, err
	}
	defer s.files.release(h)
	end := int64(run.Pos) + int64(run.Size)
	sc := newScanner(h.f, g.meta.seal(), end)
	defer sc.close()
	x := make([]byte, blockHeaderLen)
	add := func(first msg.Offset, pos int64) {
		x = binary.LittleEndian.AppendUint64(x, first)
		x = binary.LittleEndian.AppendUint32(x, uint32(pos))
	}
	next := run.First
	for pos := int64(run.Pos); pos < end; {
		b, err := sc.at(pos)
		if err != nil {
			return nil, err
		}
		if b == nil {
			add(next, pos)
			head, err := sc.fill(pos, blockHeaderLen)
			if err != nil {
				return nil, err
			}
			n := blockLen(head)
			if n == 0 {
				break
			}
			next++
			pos += int64(n)
			continue
		}
		if eh, ok := parseEntriesHeader(b); ok && eh.log == run.Log && eh.lane == run.Lane {
			add(eh.first, pos)
			var it entryIter
			var e entry
			for it.open(b, eh); it.next(&e); {
				next = e.off + 1
			}
		}
		pos += int64(len(b))
	}
	c := buf.Get(len(x))
	c.SetBytes(append(c.Bytes(), x...))
	return c, nil
}
