package store

import (
	"cmp"
	"encoding/binary"
	"math"
	"path/filepath"
	"slices"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// writeSize is the size of the writes to a segment file.
const writeSize = 1 << 20

// syncSize is how much is written before it is synced. One sync of a whole segment
// would be a little faster, but keep the device busy for so long that the WAL's
// syncs, which clients wait for, stand in line behind it.
const syncSize = 8 << 20

// maxFileBytes keeps positions within 32 bits. A file is closed at SegmentBytes
// long before, unless shared bodies fill much of it.
const maxFileBytes = 2 << 30

// inlineBelow is the size of a record under which a reference isn't worth it.
const inlineBelow = 64

type dueRecord struct {
	time int64
	log  msg.LogID
	off  msg.Offset
	lane uint8
}

type sharedBody struct {
	ref    bodyRef
	expiry int64
}

// fileWriter builds one segment file. Blocks of entries are collected beside the
// write buffer; bodies are collected in another block, for which the place right
// behind everything written so far is reserved: so that a reference to a body is
// known at once, the block of bodies is always appended before anything else.
// Bodies therefore precede the entries that refer to them.
type fileWriter struct {
	s        *Store
	shard    uint32
	id       SegID
	path     string // relative
	f        vfs.File
	throttle func(int) error

	chunk  *buf.Chunk
	out    []byte // not yet written, at position base of the file
	base   int64
	synced int64

	run     Run
	info    runInfo
	inRun   bool
	block   []byte // entries of run not yet in out; empty = none
	countAt int
	count   int        // entries in block
	prev    msg.Offset // offset of the last entry
	index   []byte     // of run, with room for a block header

	bodies []byte // shared bodies not yet in out; empty = none
	shared map[SharedKey]sharedBody

	runs  []Run
	infos []runInfo
	dues  []dueRecord
	t     trailer
}

func (s *Store) newFileWriter(shard uint32, id SegID, opts WriterOptions) (*fileWriter, error) {
	if opts.FS == nil {
		opts.FS = s.fs
	}
	w := &fileWriter{
		s: s, shard: shard, id: id, path: segmentPath(shard, id), throttle: opts.Throttle,
		t: trailer{shard: shard, id: id, minWeight: math.MaxUint32},
	}
	if err := opts.FS.MkdirAll(s.abs(filepath.Dir(w.path))); err != nil {
		return nil, err
	}
	f, err := opts.FS.Create(s.abs(w.path))
	if err != nil {
		return nil, err
	}
	w.f = f
	w.chunk = buf.Get(writeSize)
	w.out = appendSegmentHeader(w.chunk.Bytes(), shard, id)
	return w, nil
}

// pos returns the position in the file of what is appended next.
func (w *fileWriter) pos() int64 { return w.base + int64(len(w.out)) }

// ownBytes is the size without bodies, which other files can't share.
func (w *fileWriter) ownBytes() int64 {
	return w.pos() + int64(len(w.block)) - int64(w.t.bodyBytes)
}

// full says whether a run should begin in another file. The next file may need all
// the bodies of this one again, so it is not begun while they are more than an
// eighth: what is stored twice stays little.
func (w *fileWriter) full(target int64) bool {
	return w.ownBytes() >= max(target, 8*int64(w.t.bodyBytes)) || w.pos() >= maxFileBytes
}

func (w *fileWriter) write(b []byte) error {
	if len(w.out)+len(b) > cap(w.out) {
		if err := w.flush(); err != nil {
			return err
		}
		if len(b) >= cap(w.out) {
			if _, err := w.f.WriteAt(b, w.base); err != nil {
				return err
			}
			return w.wrote(len(b))
		}
	}
	w.out = append(w.out, b...)
	return nil
}

func (w *fileWriter) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	if _, err := w.f.WriteAt(w.out, w.base); err != nil {
		return err
	}
	n := len(w.out)
	w.out = w.out[:0]
	return w.wrote(n)
}

// wrote accounts for n bytes that were written at base.
func (w *fileWriter) wrote(n int) error {
	w.base += int64(n)
	if w.base-w.synced >= syncSize {
		w.synced = w.base
		if err := w.f.SyncData(); err != nil {
			return err
		}
	}
	w.s.metrics.bytesWritten.Add(uint64(n))
	if w.throttle == nil {
		return nil
	}
	return w.throttle(n)
}

func (w *fileWriter) startRun(log msg.LogID, lane uint8) {
	w.run = Run{Seg: w.id, Log: log, Lane: lane, Dir: uint32(len(w.runs))}
	w.info = runInfo{}
	w.inRun = true
	w.index = append(w.index[:0], make([]byte, blockHeaderLen)...)
}

// room closes the block when an entry of n bytes does not fit, and begins one for
// the entry at off when there is none. It returns the entry's delta.
func (w *fileWriter) room(off msg.Offset, n int) (delta uint64, err error) {
	if w.count > 0 && (len(w.block)+n+3 > blockTarget || w.count == math.MaxUint16) {
		if err := w.closeBlock(); err != nil {
			return 0, err
		}
	}
	if w.count == 0 {
		w.block, w.countAt = appendEntriesHeader(w.block[:0], w.run.Log, w.run.Lane, off)
		w.index = binary.LittleEndian.AppendUint64(w.index, off)
	} else {
		delta = off - w.prev
	}
	if w.run.Count == 0 {
		w.run.First = off
	}
	w.prev, w.run.Last = off, off
	w.count++
	w.run.Count++
	return delta, nil
}

func (w *fileWriter) weigh(size, withBody int, expiry int64, off msg.Offset) {
	w.t.entries++
	w.t.minWeight = min(w.t.minWeight, uint32(size))
	w.t.maxWeight = max(w.t.maxWeight, uint32(withBody))
	if expiry != 0 {
		w.dues = append(w.dues, dueRecord{expiry, w.run.Log, off, w.run.Lane})
	}
}

func expiryOf(record []byte) int64 { return int64(binary.LittleEndian.Uint64(record[16:])) }

func (w *fileWriter) add(off msg.Offset, record []byte) error {
	delta, err := w.room(off, len(record))
	if err != nil {
		return err
	}
	was := len(w.block)
	w.block = binary.AppendUvarint(w.block, delta<<1)
	w.block = append(w.block, record...)
	size := len(w.block) - was
	w.weigh(size, size, expiryOf(record), off)
	return nil
}

func (w *fileWriter) addShared(off msg.Offset, key SharedKey, record []byte) error {
	body, known := w.shared[key]
	if !known {
		var err error
		if body, err = w.addBody(record); err != nil {
			return err
		}
		if w.shared == nil {
			w.shared = make(map[SharedKey]sharedBody)
		}
		w.shared[key] = body
	}
	delta, err := w.room(off, 16)
	if err != nil {
		return err
	}
	was := len(w.block)
	w.block = binary.AppendUvarint(w.block, delta<<1|1)
	w.block = binary.AppendUvarint(w.block, uint64(body.ref.block))
	w.block = binary.AppendUvarint(w.block, uint64(body.ref.at))
	w.block = binary.AppendUvarint(w.block, uint64(body.ref.size))
	size := len(w.block) - was
	w.weigh(size, size+int(body.ref.size), body.expiry, off)
	w.info.stubs++
	w.run.Flags |= RunShared
	return nil
}

func (w *fileWriter) addBody(record []byte) (sharedBody, error) {
	if len(w.bodies) > 0 && len(w.bodies)+len(record) > blockTarget {
		if err := w.closeBodies(); err != nil {
			return sharedBody{}, err
		}
	}
	if len(w.bodies) == 0 {
		w.bodies = append(w.bodies, make([]byte, blockHeaderLen)...)
	}
	ref := bodyRef{uint32(w.pos()), uint32(len(w.bodies)), uint32(len(record))}
	w.bodies = append(w.bodies, record...)
	w.t.bodies++
	w.t.bodyBytes += uint64(len(record))
	return sharedBody{ref, expiryOf(record)}, nil
}

func (w *fileWriter) closeBodies() error {
	if len(w.bodies) == 0 {
		return nil
	}
	sealBlock(w.bodies, kindBodies, uint32(w.id), w.pos())
	err := w.write(w.bodies)
	w.bodies = recycle(w.bodies)
	return err
}

// recycle empties a buffer for the next use, unless a giant record made it huge.
func recycle(b []byte) []byte {
	if cap(b) > writeSize {
		return nil
	}
	return b[:0]
}

func (w *fileWriter) closeBlock() error {
	if w.count == 0 {
		return nil
	}
	if err := w.closeBodies(); err != nil {
		return err
	}
	pos := w.pos()
	binary.LittleEndian.PutUint16(w.block[w.countAt:], uint16(w.count))
	kind := kindEntries
	if w.run.Pos != 0 {
		kind |= kindMore
	}
	sealBlock(w.block, kind, uint32(w.id), pos)
	w.index = binary.LittleEndian.AppendUint32(w.index, uint32(pos))
	if w.run.Pos == 0 {
		w.run.Pos = uint32(pos)
	}
	w.info.own += uint32(len(w.block))
	w.count = 0
	err := w.write(w.block)
	w.block = recycle(w.block)
	return err
}

func (w *fileWriter) endRun() error {
	if !w.inRun {
		return nil
	}
	w.inRun = false
	if err := w.closeBlock(); err != nil || w.run.Count == 0 {
		return err
	}
	w.run.Size = uint32(w.pos()) - w.run.Pos
	if len(w.index) > blockHeaderLen+indexEntryLen {
		w.run.Flags |= RunIndexed
		sealBlock(w.index, kindIndex, uint32(w.id), w.pos())
		if err := w.write(w.index); err != nil {
			return err
		}
	}
	w.runs = append(w.runs, w.run)
	w.infos = append(w.infos, w.info)
	return nil
}

// finish writes what stands behind the data and syncs the file; its name is not
// durable yet.
func (w *fileWriter) finish() error {
	if err := w.endRun(); err != nil {
		return err
	}
	if err := w.writeDues(); err != nil {
		return err
	}
	w.t.dirPos = uint32(w.pos())
	dir := appendDirectory(make([]byte, blockHeaderLen, 64+24*len(w.runs)), w.runs, w.infos)
	sealBlock(dir, kindDirectory, uint32(w.id), w.pos())
	if err := w.write(dir); err != nil {
		return err
	}
	w.t.runs = uint32(len(w.runs))
	for _, i := range w.infos {
		w.t.stubs += i.stubs
	}
	w.t.fileLen = uint64(w.pos() + segmentTrailerLen)
	if err := w.write(w.t.append(nil)); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.f.SyncData(); err != nil {
		return err
	}
	err := w.f.Close()
	w.f = nil
	w.release()
	return err
}

// writeDues writes the due list: pages of uvarint time - previous time (the first
// from 0, zigzag), log, lane, offset.
func (w *fileWriter) writeDues() error {
	w.t.duePos, w.t.dues = uint32(w.pos()), uint32(len(w.dues))
	slices.SortFunc(w.dues, func(a, b dueRecord) int {
		return cmp.Or(cmp.Compare(a.time, b.time), cmp.Compare(a.log, b.log),
			cmp.Compare(a.lane, b.lane), cmp.Compare(a.off, b.off))
	})
	var page []byte
	prev := int64(0)
	closePage := func() error {
		sealBlock(page, kindDue, uint32(w.id), w.pos())
		err := w.write(page)
		page, prev = page[:0], 0
		return err
	}
	for _, d := range w.dues {
		if len(page) > duePageTarget-32 {
			if err := closePage(); err != nil {
				return err
			}
		}
		if len(page) == 0 {
			page = append(page, make([]byte, blockHeaderLen)...)
		}
		page = appendDue(page, prev, d)
		prev = d.time
	}
	if len(page) == 0 {
		return nil
	}
	return closePage()
}

func appendDue(b []byte, prev int64, d dueRecord) []byte {
	b = binary.AppendVarint(b, d.time-prev)
	b = binary.AppendUvarint(b, d.log)
	b = append(b, d.lane)
	return binary.AppendUvarint(b, d.off)
}

func (w *fileWriter) release() {
	if w.chunk != nil {
		w.chunk.Release()
		w.chunk, w.out = nil, nil
	}
}

// abort removes the file. Failing to is no harm: the next Open does.
func (w *fileWriter) abort() {
	w.release()
	if w.f != nil {
		_ = w.f.Close() // the file goes
		w.f = nil
	}
	w.s.remove(w.path, true)
}

// meta describes the finished file.
func (w *fileWriter) meta() SegmentMeta {
	return SegmentMeta{
		ID: w.id, Shard: w.shard, Bytes: int64(w.t.fileLen), Entries: w.t.entries,
		Runs: w.runs, stats: newStats(&w.t, w.runs, w.infos),
	}
}
