package wal

import (
	"fmt"
	"time"

	"github.com/sluicemq/sluice/internal/planted"
	"github.com/sluicemq/sluice/internal/vfs"
)

// writer writes groups, one at a time. Owned by the writer goroutine.
type writer struct {
	log    *Log
	tracks tracks
	group  group

	cur      *file // nil before the first
	finished bool  // cur has its final group, or is nil: the next append needs a file
	salt     uint64
	nextSeq  uint64 // of the next file
	groupSeq uint64 // of the next group

	// Offsets in cur. Invariant: witness <= synced <= off, off a multiple of 512.
	off     int64 // where the next group goes
	synced  int64 // everything before it was synced
	witness int64 // the highest syncedThrough in a group of the file
	dirty   bool  // a group of records was written and not synced

	// The round in progress: what was submitted together.
	items     []item
	completed int // items before it have been told
	positions []Position
	mark      mark // the first record that is not in a written group
}

// item is an append of the round.
type item struct {
	*Append
	err   error
	first int // its part of writer.positions
}

// mark is a place between two records of a round.
type mark struct{ item, record int }

// process writes a round of appends and completes all of them, in order.
func (w *writer) process(batch []Append) {
	w.items, w.positions = w.items[:0], w.positions[:0]
	w.completed, w.mark = 0, mark{}
	err := w.log.Err()
	for i := range batch {
		w.items = append(w.items, item{Append: &batch[i], first: len(w.positions)})
		if err == nil {
			err = w.append(i)
		}
	}
	if err == nil {
		err = w.flush(len(batch))
	}
	w.tracks.settle()
	for i := w.completed; i < len(w.items) && err != nil; i++ {
		if w.items[i].err == nil {
			w.items[i].err = err
			w.tracks.refuse(w.items[i].Append)
		}
	}
	w.complete(len(batch))
	clear(w.items)
}

// append adds the i-th append of the round to the group, flushing as often as
// needed. An error concerns it and everything after it.
func (w *writer) append(i int) error {
	it := &w.items[i]
	var sync bool
	if sync, it.err = w.tracks.admit(it.Append, maxPayload(w.log.opts.FileSize)); it.err != nil {
		return nil //nolint:nilerr // a refusal is of this append alone; it.err tells its owner
	}
	if len(it.Records) == 0 && !it.NoSync {
		if err := w.flush(i); err != nil {
			return err
		}
		return w.seal()
	}
	for j := range it.Records {
		r := &it.Records[j]
		n := r.length()
		if err := w.room(i, n); err != nil {
			return err
		}
		at := w.off + w.group.add(r, n)
		w.group.sync = w.group.sync || sync
		pos := Position{}
		if r.Type == TypeEntry {
			pos = Position{Seq: w.cur.seq, Off: uint32(at), Len: uint32(n)}
		}
		w.positions = append(w.positions, pos)
	}
	return nil
}

// room makes sure that the group can take a payload of n bytes more, for the i-th
// append of the round.
func (w *writer) room(i int, n int64) error {
	if w.group.records > 0 {
		size := w.group.sizeWith(n)
		if size <= maxGroup && w.fits(size) {
			return nil
		}
		if err := w.flush(i); err != nil {
			return err
		}
	}
	w.open()
	if !w.finished && w.fits(w.group.sizeWith(n)) {
		return nil
	}
	if err := w.rotate(); err != nil {
		return err
	}
	w.open()
	return nil
}

// open resets the group for the place where it will go.
func (w *writer) open() {
	if !w.finished {
		w.group.reset(recordSeed(w.salt, w.cur.seq, w.groupSeq))
	}
}

// fits reports whether a group and the final one have room.
func (w *writer) fits(size int64) bool { return w.off+size+sectorSize <= w.cur.size }

// flush writes the group, if there is one, and completes the appends before the
// next-th of the round.
func (w *writer) flush(next int) error {
	if w.group.records == 0 {
		return nil
	}
	sync, start := w.group.sync, time.Now()
	size, err := w.write(0)
	if err != nil {
		return err
	}
	if sync {
		if err := w.sync(); err != nil {
			return err
		}
		if hook := w.log.opts.Events.Synced; hook != nil {
			hook(int(size), time.Since(start))
		}
	}
	w.log.records.Add(uint64(w.group.records))
	w.wrote(int(w.group.records))
	w.group.records = 0
	w.complete(next)
	return nil
}

// write writes the group at off with the given flags, unsynced.
func (w *writer) write(flags uint32) (int64, error) {
	size := w.group.finish(groupHeader{
		flags: flags, fileSeq: w.cur.seq, groupSeq: w.groupSeq,
		syncedThrough: uint32(w.synced), salt: w.salt,
	})
	if _, err := w.cur.f.WriteVAt(w.group.vecs, w.off); err != nil {
		w.group.records = 0
		if vfs.IsNoSpace(err) {
			// On copy-on-write file systems. The place is simply written again.
			return 0, w.noSpace(err)
		}
		return 0, w.log.fail(err)
	}
	w.off += size
	w.witness = w.synced
	w.dirty = w.dirty || flags == 0
	w.groupSeq++
	w.log.groups.Add(1)
	w.log.bytes.Add(uint64(size))
	return size, nil
}

func (w *writer) sync() error {
	if !planted.ConfirmBeforeSync {
		if err := w.cur.f.SyncData(); err != nil {
			w.group.records = 0
			return w.log.fail(err)
		}
	}
	w.synced, w.dirty = w.off, false
	w.log.syncs.Add(1)
	return nil
}

// wrote follows the next n records of the round into the shards' states and the
// files' ranges.
func (w *writer) wrote(n int) {
	t := &w.log.files
	t.mu.Lock()
	defer t.mu.Unlock()
	w.cur.used = w.off
	for n > 0 {
		it := w.items[w.mark.item]
		if it.err != nil || w.mark.record == len(it.Records) {
			w.mark = mark{item: w.mark.item + 1}
			continue
		}
		r := &it.Records[w.mark.record]
		w.mark.record++
		n--
		if from, replaces := w.tracks.wrote(r); replaces {
			t.clipLocked(r.Shard, from)
		}
		if r.Type == TypeEntry {
			addRange(w.cur.ranges, r.Shard, r.Incarnation, r.Index, r.length())
		}
	}
}

// clipLocked takes entries that were replaced out of the files' ranges.
func (t *files) clipLocked(shard uint32, from uint64) {
	for _, f := range t.live {
		clipRange(f.ranges, shard, from)
	}
}

// complete tells the appends before the next-th of the round how they ended.
func (w *writer) complete(next int) {
	for ; w.completed < next; w.completed++ {
		it := &w.items[w.completed]
		if it.Done == nil {
			continue
		}
		if it.err != nil {
			it.Done(it.err, nil)
			continue
		}
		n := it.first + len(it.Records)
		it.Done(nil, w.positions[it.first:n:n])
	}
}

// sealDue reports whether something synced has no witness yet.
func (w *writer) sealDue() bool {
	return !w.finished && w.witness < w.synced && w.log.Err() == nil
}

// idle writes the sealing group that is due. An error is in the log, or, if it is
// of space, of no consequence.
func (w *writer) idle() {
	if w.sealDue() {
		_ = w.writeSeal()
	}
}

// writeSeal writes an empty group, unsynced: a witness of everything synced.
func (w *writer) writeSeal() error {
	if !w.fits(sectorSize) {
		return w.finish()
	}
	w.open()
	_, err := w.write(flagSeal)
	return err
}

// seal makes everything durable, and evident.
func (w *writer) seal() error {
	if w.finished {
		return nil
	}
	if w.dirty {
		if err := w.sync(); err != nil {
			return err
		}
	}
	if w.witness == w.synced {
		return nil
	}
	return w.writeSeal()
}

// finish writes the final group and syncs the file.
func (w *writer) finish() error {
	w.open()
	if _, err := w.write(flagFinal); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	w.finished = true
	w.log.files.setUsed(w.cur, w.off)
	sealed := w.log.files.seal(w.cur)
	if hook := w.log.opts.Events.FileSealed; hook != nil {
		hook(sealed)
	}
	return nil
}

// rotate goes over to the next file.
func (w *writer) rotate() error {
	if !w.finished {
		if err := w.finish(); err != nil {
			return err
		}
	}
	spare, err := w.log.spare()
	if err == nil {
		err = w.begin(spare)
	}
	switch {
	case err == nil:
	case vfs.IsNoSpace(err):
		return w.noSpace(err)
	default:
		return w.log.fail(err)
	}
	w.log.kick() // prepare the one after it
	return nil
}

// begin takes a spare into use.
func (w *writer) begin(spare string) error {
	var rows []ShardState
	if w.log.opts.Tables != nil {
		rows = w.log.opts.Tables()
	}
	h := fileHeader{
		seq: w.nextSeq, salt: w.salt, firstGroup: w.groupSeq,
		fileSize: w.log.opts.FileSize, table: w.tracks.table(rows),
	}
	if headerLen(len(h.table)) > maxHeader(h.fileSize) {
		return fmt.Errorf("%w: table of %d shards in a file of %d bytes", ErrTooLarge, len(h.table), h.fileSize)
	}
	f, err := w.log.files.begin(spare, h)
	if err != nil {
		return err
	}
	w.cur, w.finished = f, false
	w.nextSeq++
	w.off, w.synced, w.witness, w.dirty = f.header, f.header, f.header, false
	w.log.bytes.Add(uint64(f.header))
	if hook := w.log.opts.Events.FileBegun; hook != nil {
		hook(f.seq)
	}
	return nil
}

func (w *writer) noSpace(err error) error {
	if hook := w.log.opts.Events.NoSpace; hook != nil {
		hook(err)
	}
	return fmt.Errorf("%w: %w", ErrNoSpace, err)
}

// close seals and syncs the last file.
func (w *writer) close() {
	if w.finished || w.log.Err() != nil {
		return
	}
	if w.seal() == nil && !w.finished && w.synced < w.off {
		_ = w.sync() // the error is in the log
	}
}
