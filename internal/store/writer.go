package store

import (
	"fmt"
	"path/filepath"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// WriterOptions shape one flush.
type WriterOptions struct {
	// Throttle, if not nil, is called after about every MiB written, with the
	// number of bytes; it may sleep. An error stops the writer with it.
	Throttle func(n int) error
	// FS makes the files; default that of the store. It leads to the same files.
	FS vfs.FS
}

// SharedKey names a body within one flush, for example by raft index and position.
type SharedKey struct{ Hi, Lo uint64 }

// Writer turns sorted entries into segments of one shard. Runs of OwnRunBytes or
// more go to files of their own, everything else shares files; a new one is begun
// when SegmentBytes are reached. Nothing is visible before Install. After an error
// every call returns it; the files are removed by Abort.
type Writer struct {
	s     *Store
	shard uint32
	opts  WriterOptions
	set   SegID // of the output, 0 = a new one

	cur   *fileWriter // gets the current run: file or own
	file  *fileWriter // shared file, nil = none open
	own   *fileWriter // file of the current run alone
	files []*fileWriter
	err   error // sticks; after Finish it is ErrClosed
	done  bool  // Finish succeeded or Abort was called
	begun bool  // there was a run: log, lane is the last one
	log   msg.LogID
	lane  uint8
	next  msg.Offset // least offset that may come in the run
}

// NewWriter begins a flush for a shard.
func (s *Store) NewWriter(shard uint32, opts WriterOptions) *Writer {
	return &Writer{s: s, shard: shard, opts: opts}
}

// StartRun announces a run: bytes is about what its entries will take, and decides
// whether the run gets a file of its own, in which shared records are stored again;
// for a run of which more than a quarter is shared it should be 0. Optional: without
// it the run shares a file.
func (w *Writer) StartRun(log msg.LogID, lane uint8, bytes int64) error {
	if w.err != nil {
		return w.err
	}
	if w.begun && (log < w.log || log == w.log && lane <= w.lane) {
		return w.fail(fmt.Errorf("%w: log %d lane %d after log %d lane %d", ErrOrder, log, lane, w.log, w.lane))
	}
	if err := w.endRun(); err != nil {
		return w.fail(err)
	}
	var err error
	if bytes >= w.s.opts.OwnRunBytes {
		w.own, err = w.create()
		w.cur = w.own
	} else {
		err = w.openShared()
		w.cur = w.file
	}
	if err != nil {
		return w.fail(err)
	}
	w.begun, w.log, w.lane, w.next = true, log, lane, 0
	w.cur.startRun(log, lane)
	return nil
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return w.err
}

func (w *Writer) create() (*fileWriter, error) {
	f, err := w.s.newFileWriter(w.shard, w.s.newID(), w.opts)
	if err == nil {
		w.files = append(w.files, f)
	}
	return f, err
}

// openShared makes sure that there is a shared file with room for another run.
func (w *Writer) openShared() error {
	if w.file != nil && w.file.full(w.s.opts.SegmentBytes) {
		f := w.file
		w.file = nil
		if err := f.finish(); err != nil {
			return err
		}
	}
	if w.file != nil {
		return nil
	}
	var err error
	w.file, err = w.create()
	return err
}

// endRun closes the current run, and its file if that is its own.
func (w *Writer) endRun() error {
	if w.cur == nil {
		return nil
	}
	f := w.cur
	w.cur = nil
	if f == w.own {
		w.own = nil
		return f.finish()
	}
	return f.endRun()
}

// breakRun makes the next entry of the same (log, lane) begin another run.
func (w *Writer) breakRun() error {
	if w.err != nil {
		return w.err
	}
	if err := w.cur.endRun(); err != nil {
		return w.fail(err)
	}
	w.cur.startRun(w.log, w.lane)
	return nil
}

// admit checks the order of an entry and makes w.cur the file that takes it.
func (w *Writer) admit(log msg.LogID, lane uint8, offset msg.Offset) error {
	if w.err != nil {
		return w.err
	}
	if !w.begun || log != w.log || lane != w.lane {
		if err := w.StartRun(log, lane, 0); err != nil {
			return err
		}
	}
	if offset < w.next || offset > maxOffset {
		return w.fail(fmt.Errorf("%w: offset %d of log %d lane %d", ErrOrder, offset, log, lane))
	}
	w.next = offset + 1
	limit := w.s.opts.SegmentBytes
	if w.own == nil { // the announcement was far too low
		limit += 2 * w.s.opts.OwnRunBytes
	}
	if w.cur.full(limit) {
		return w.split()
	}
	return nil
}

// split ends the current file in the middle of a run and goes on in another one.
func (w *Writer) split() error {
	f, own := w.cur, w.own != nil
	w.cur, w.own = nil, nil
	if !own {
		w.file = nil
	}
	err := f.finish()
	if err == nil {
		w.cur, err = w.create()
	}
	if err != nil {
		return w.fail(err)
	}
	if own {
		w.own = w.cur
	} else {
		w.file = w.cur
	}
	w.cur.startRun(w.log, w.lane)
	return nil
}

// Add appends an entry: one record in the encoding of package msg. Entries come by
// strictly ascending (log, lane, offset). record is copied.
func (w *Writer) Add(log msg.LogID, lane uint8, offset msg.Offset, record []byte) error {
	if err := w.admit(log, lane, offset); err != nil {
		return err
	}
	if err := checkRecord(record); err != nil {
		return w.fail(err)
	}
	if err := w.cur.add(offset, record); err != nil {
		return w.fail(err)
	}
	return nil
}

// AddShared appends an entry whose record other logs have too: it is stored once
// per file for each key, and every entry with the key refers to it. The entries
// of a run with a file of its own, and tiny records, are stored as by Add.
func (w *Writer) AddShared(log msg.LogID, lane uint8, offset msg.Offset, key SharedKey, record []byte) error {
	return w.addShared(log, lane, offset, key, func() ([]byte, error) { return record, nil })
}

// addShared is AddShared with the record asked for only if the file lacks it.
func (w *Writer) addShared(log msg.LogID, lane uint8, offset msg.Offset, key SharedKey, fetch func() ([]byte, error)) error {
	if err := w.admit(log, lane, offset); err != nil {
		return err
	}
	var record []byte
	_, known := w.cur.shared[key]
	if !known {
		var err error
		if record, err = fetch(); err == nil {
			err = checkRecord(record)
		}
		if err != nil {
			return w.fail(err)
		}
	}
	var err error
	if known || w.own == nil && len(record) >= inlineBelow {
		err = w.cur.addShared(offset, key, record)
	} else {
		err = w.cur.add(offset, record)
	}
	if err != nil {
		return w.fail(err)
	}
	return nil
}

// checkRecord refuses what a reader could not take apart again.
func checkRecord(record []byte) error {
	if n := msg.RecordSize(record); n == 0 || n != len(record) || n > maxBlockLen/2 {
		return fmt.Errorf("%w: %d bytes that are not one record", ErrInvalid, len(record))
	}
	return nil
}

// Finish syncs the files and returns their descriptions, ready to be installed; no
// files for no entries. If the caller decides otherwise it calls Store.Discard.
func (w *Writer) Finish() ([]SegmentMeta, error) {
	if w.err != nil {
		return nil, w.err
	}
	if err := w.endRun(); err != nil {
		return nil, w.fail(err)
	}
	if w.file != nil {
		f := w.file
		w.file = nil
		if err := f.finish(); err != nil {
			return nil, w.fail(err)
		}
	}
	metas := make([]SegmentMeta, 0, len(w.files))
	for _, f := range w.files {
		if f.t.entries == 0 {
			f.abort()
			continue
		}
		metas = append(metas, f.meta())
	}
	if len(metas) > 0 {
		dir := filepath.Dir(segmentPath(w.shard, 0))
		if err := w.s.fs.SyncDir(w.s.abs(dir)); err != nil {
			return nil, w.fail(err)
		}
	}
	w.classify(metas)
	w.done, w.err = true, ErrClosed
	return metas, nil
}

// classify tells own files from shared ones by what they came to hold, not by what
// was announced, and gives all of them their set.
func (w *Writer) classify(metas []SegmentMeta) {
	for i := range metas {
		m := &metas[i]
		if m.Set = w.set; m.Set == 0 {
			m.Set = metas[0].ID
		}
		size := int64(0)
		for _, r := range m.Runs {
			size += int64(r.Size)
		}
		one := compareRuns(m.Runs[0], m.Runs[len(m.Runs)-1]) == 0
		m.Own = one && size >= w.s.opts.OwnRunBytes
	}
}

// Abort removes what was written. It does nothing after Finish succeeded.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	if w.err == nil {
		w.err = ErrClosed
	}
	for _, f := range w.files {
		f.abort()
	}
	w.files = nil
}

// Discard removes segments that were finished and will not be installed.
func (s *Store) Discard(metas []SegmentMeta) {
	for _, m := range metas {
		s.remove(segmentPath(m.Shard, m.ID), false)
	}
}
