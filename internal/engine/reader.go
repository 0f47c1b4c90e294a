package engine

import (
	"errors"
	"syscall"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/wal"
)

// skipShift packs into a tail hint how far the range lies from the start of its note.
const skipShift = 40

// Reader turns deliveries into messages, on its owner's goroutine; it may wait for the
// disk. It keeps what it read last, since the next delivery mostly goes on there.
type Reader struct {
	op   msg.Op
	rec  msg.Record // the one that is handed out; one for all, so that none is allocated
	last struct {   // a submission read back from the WAL
		m   *Machine
		sub uint64
		c   *buf.Chunk
	}
	seg struct { // where it reads in a segment
		m    *Machine
		k    lane
		run  store.Run
		blk  store.Block
		off  msg.Offset
		rec  []byte
		have bool
		ra   store.ReadAhead
	}
	bad  badList
	off  msg.Offset // of the message that fn has
	body *Reader    // of large bodies; made when there is one
}

// Close gives back what the reader holds.
func (r *Reader) Close() {
	if r.last.c != nil {
		r.last.c.Release()
		r.last.c = nil
	}
	r.dropBlock()
	if r.body != nil {
		r.body.Close()
	}
}

func (r *Reader) dropBlock() {
	r.seg.blk.Release()
	r.seg.blk = store.Block{}
	r.seg.have, r.seg.m, r.seg.rec = false, nil, nil
}

// Each calls fn with each message of a delivery in order. rec is valid during the call.
// Messages that exist no more are left out, and those that can't be read: they are put
// into quarantine and settled as damaged. An error of fn ends it and is returned. fn may
// call Body for a message with FlagParts.
func (r *Reader) Each(d *queue.Delivery, fn func(off msg.Offset, rec *msg.Record) error) error {
	base := d.Consumer.User.(Based).Base()
	r.bad.reset(d.Log, d.Lane)
	if d.Src.Kind == srcPeer { // the leader's node has looked after damage
		b, _ := base.takeRecords(d.Src.Ref)
		return eachRecord(b, &r.rec, d, fn)
	}
	err := r.read(base.shard.m, lane{d.Log, d.Lane}, d.First, d.Count, d.Src, fn)
	if len(r.bad.list) == 0 {
		return err
	}
	return errors.Join(err, r.bad.settle(base))
}

// read is Each for n messages from first on that lie in one source.
func (r *Reader) read(m *Machine, k lane, first msg.Offset, n uint32, src queue.Source, fn func(msg.Offset, *msg.Record) error) error {
	if src.Kind == srcTail {
		done, err := r.fromTail(m, first, n, src, fn)
		if done || err != nil {
			return err
		}
	}
	return r.fromRuns(m, k, first, first+uint64(n), fn)
}

// fromTail reads from a chunk or a WAL file; done is false when the submission has
// been flushed meanwhile.
func (r *Reader) fromTail(m *Machine, first msg.Offset, n uint32, src queue.Source, fn func(msg.Offset, *msg.Record) error) (done bool, err error) {
	sub := src.Ref & (1<<skipShift - 1)
	c, err := r.submission(m, sub)
	var damage *wal.Damage
	if errors.As(err, &damage) {
		r.bad.add(first, first+uint64(n)-1, ofWAL(m.id, damage))
		return true, nil
	}
	if c == nil || err != nil {
		return false, err
	}
	defer c.Release()
	s, err := msg.ParseSubmission(c.Bytes())
	if err != nil {
		return false, err
	}
	if err := s.OpAt(int(src.Pos), &r.op); err != nil {
		return false, err
	}
	run := s.Records(&r.op)
	if err := run.Skip(int(src.Ref >> skipShift)); err != nil {
		return false, err
	}
	for i := range uint64(n) {
		raw, err := run.Next()
		if err == nil && raw == nil {
			err = msg.ErrCorrupt
		}
		if err != nil {
			return true, err
		}
		if r.rec, _, err = msg.ParseRecord(raw); err != nil {
			return true, err
		}
		r.off = first + i
		if err := fn(r.off, &r.rec); err != nil {
			return true, err
		}
	}
	return true, nil
}

// submission returns the bytes of a submission of the tail with a reference for the
// caller; nil when it is not in the tail any more.
func (r *Reader) submission(m *Machine, sub uint64) (*buf.Chunk, error) {
	c, pos, ok := m.tail.get(sub)
	if !ok || c != nil {
		return c, nil
	}
	if r.last.m == m && r.last.sub == sub && r.last.c != nil {
		return r.last.c.Retain(), nil
	}
	if pos.Seq == 0 {
		return nil, nil
	}
	var err error
	if c = m.backs.get(pos); c == nil {
		if c, err = m.readBack(pos); c == nil || err != nil {
			return nil, err
		}
		m.backs.put(pos, c)
	}
	if r.last.c != nil {
		r.last.c.Release()
	}
	r.last.m, r.last.sub, r.last.c = m, sub, c.Retain()
	return c, nil
}

// readBack reads a submission from the write-ahead log; nil if its file is gone. A
// *wal.Damage means that it is not what was written.
func (m *Machine) readBack(pos wal.Position) (*buf.Chunk, error) {
	c := buf.Get(int(pos.Len))
	b := c.Bytes()[:pos.Len]
	err := m.wal.ReadAt(pos, 0, b)
	if err == nil {
		c.SetBytes(b)
		s, perr := msg.ParseSubmission(b)
		if perr == nil && s.Verify() {
			return c, nil
		}
		err = walDamage(pos, "payload")
	}
	c.Release()
	switch {
	case errors.Is(err, wal.ErrGone):
		return nil, nil
	case errors.Is(err, syscall.EIO):
		return nil, walDamage(pos, err.Error())
	}
	return nil, err
}

func walDamage(pos wal.Position, reason string) *wal.Damage {
	return &wal.Damage{Seq: pos.Seq, Off: int64(pos.Off), Len: int64(pos.Len), Reason: reason}
}

func (r *Reader) fromRuns(m *Machine, k lane, from, end msg.Offset, fn func(msg.Offset, *msg.Record) error) error {
	for off := from; off < end; off++ {
		rec, err := r.record(m, k, off)
		var damage *store.DamageError
		if errors.As(err, &damage) {
			r.bad.add(off, off, ofStore(damage))
			continue
		}
		if err != nil {
			return err
		}
		if rec == nil {
			r.bad.add(off, off, Incident{}) // if it is not settled
			continue
		}
		if r.rec, _, err = msg.ParseRecord(rec); err != nil {
			return err
		}
		r.off = off
		if err := fn(off, &r.rec); err != nil {
			return err
		}
	}
	return nil
}

// lookups bounds how often a message is looked for while segments are being replaced.
const lookups = 100

// record finds one message in the segments, nil if no run has it. Damage of one run
// counts only if no other has the message.
func (r *Reader) record(m *Machine, k lane, off msg.Offset) ([]byte, error) {
	if r.seg.m == m && r.seg.k == k && r.advance(off) {
		return r.seg.rec, nil
	}
	for range lookups { // again if a segment was replaced between looking and reading
		gone := false
		var damage error
		runs := m.places.run(k, off)
		for i := len(runs) - 1; i >= 0; i-- {
			r.dropBlock()
			blk, err := r.seg.ra.Read(m.store, runs[i], off, store.MaxReadBytes)
			switch {
			case errors.Is(err, store.ErrGone):
				gone = true
				continue
			case errors.Is(err, store.ErrDamaged):
				damage = err
				continue
			case err != nil:
				return nil, err
			}
			r.seg.m, r.seg.k, r.seg.run, r.seg.blk = m, k, runs[i], blk
			if r.advance(off) {
				return r.seg.rec, nil
			}
		}
		if !gone {
			return nil, damage
		}
	}
	return nil, errMoving
}

// errMoving: the segments with a message were replaced each time it was looked for.
var errMoving = errors.New("engine: a message moves faster than it can be read")

// advance moves on in the current block until off; false if it isn't there.
func (r *Reader) advance(off msg.Offset) bool {
	for {
		if r.seg.have && r.seg.off >= off {
			return r.seg.off == off
		}
		r.seg.off, r.seg.rec, r.seg.have = r.seg.blk.Next()
		if !r.seg.have {
			return false
		}
	}
}
