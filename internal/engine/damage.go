package engine

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/wal"
)

// ErrDamaged means that what is on the disk is not what was written, and starting was refused.
var ErrDamaged = errors.New("engine: damaged")

// DamageError says that the write-ahead log holds something that was synced and is not
// as it was written: starting would lose confirmed messages silently.
type DamageError struct{ Damages []wal.Damage }

// Error names the first damage.
func (e *DamageError) Error() string {
	d := e.Damages[0]
	return fmt.Sprintf("the write-ahead log is damaged in %d place(s), the first in file %d at byte %d: %s (entries %d to %d of shard %d)",
		len(e.Damages), d.Seq, d.Off, d.Reason, d.First, d.Last, d.Shard)
}

// Is makes errors.Is(err, ErrDamaged) true.
func (e *DamageError) Is(target error) bool { return target == ErrDamaged }

// ofStore begins the incident of a damaged place in a file of the store.
func ofStore(e *store.DamageError) Incident {
	return Incident{Path: e.Path, Pos: e.Pos, Len: max(e.Len, 1<<10), Reason: e.Reason, Shard: e.Shard}
}

// ofWAL begins the incident of a damaged place in the write-ahead log.
func ofWAL(id uint32, d *wal.Damage) Incident {
	in := Incident{Pos: d.Off, Len: d.Len, Reason: d.Reason, Shard: id, FirstEntry: d.First, LastEntry: d.Last}
	in.Path = filepath.Join("wal", wal.FileName(d.Seq))
	if d.Seq == 0 {
		in.Path = "wal"
	}
	return in
}

// nowhere is the incident of messages that should be there and are in no file: what
// held them is damaged elsewhere.
func nowhere(id uint32, log msg.LogID, first msg.Offset) Incident {
	return Incident{
		Path: fmt.Sprintf("missing/shard-%d-log-%d", id, log), Pos: int64(first), Shard: id,
		Reason: "messages that no file has",
	}
}

// badList collects what of one delivery can't be read.
type badList struct {
	log  msg.LogID
	lane uint8
	list []badRange
}

type badRange struct {
	first, last msg.Offset
	in          Incident // without a Path if nothing has the messages
}

func (b *badList) reset(log msg.LogID, n uint8) {
	clear(b.list)
	b.log, b.lane, b.list = log, n, b.list[:0]
}

// add notes offsets in ascending order.
func (b *badList) add(first, last msg.Offset, in Incident) {
	if n := len(b.list); n > 0 {
		if x := &b.list[n-1]; x.last+1 == first && x.in.Path == in.Path && x.in.Pos == in.Pos {
			x.last = last
			return
		}
	}
	b.list = append(b.list, badRange{first, last, in})
}

// losses returns what of the list is still not settled, as incidents with their ranges;
// false if the shard has stopped.
func (b *badList) losses(s *Shard) (list []Incident, ranges []msg.Range, ok bool) {
	ok = s.Call(func() {
		ln, has := s.m.ledger.Lane(b.log, b.lane)
		for _, x := range b.list {
			if !has {
				return
			}
			var in *Incident
			for _, r := range ln.AppendUnsettled(nil, msg.Range{First: x.first, Count: x.last - x.first + 1}) {
				if in == nil {
					list = append(list, x.in)
					in = &list[len(list)-1]
					if in.Path == "" {
						*in = nowhere(s.ID(), b.log, r.First)
					}
				}
				in.Lost = append(in.Lost, Loss{Log: b.log, Lane: b.lane, First: r.First, Last: r.First + r.Count - 1})
				ranges = append(ranges, r)
			}
		}
	})
	return list, ranges, ok
}

// settle puts aside what a consumer was to get and can't be read, and settles it.
func (b *badList) settle(c *Consumer) error {
	list, ranges, ok := b.losses(c.shard)
	if !ok {
		return ErrStopped
	}
	for _, in := range list {
		if err := c.shard.m.aside.add(in); err != nil {
			return err
		}
	}
	if len(ranges) > 0 {
		c.shard.Settle([]Settled{{Consumer: c, Lane: b.lane, Reason: msg.Damaged, Ranges: ranges}}, false, nil, 0)
	}
	return nil
}

// giveUp puts messages aside that nobody has asked for yet and settles them; done, if
// not nil, is told when that is applied.
func (b *badList) giveUp(s *Shard, done shard.Completer) (some bool, err error) {
	if msg.IsParts(b.log) && len(b.list) > 0 {
		return b.giveUpBody(s, done)
	}
	list, ranges, ok := b.losses(s)
	if !ok {
		return false, ErrStopped
	}
	for _, in := range list {
		if err := s.m.aside.add(in); err != nil {
			return false, err
		}
	}
	if len(ranges) == 0 {
		return false, nil
	}
	var mb msg.Builder
	mb.Settle(b.log, b.lane, msg.Damaged, ranges)
	s.Submit(shard.Sub{Chunk: mb.Finish(), Done: done})
	return true, nil
}

// probe reads all unsettled messages of a lane between two offsets and gives those up
// that can't be read.
func (s *Shard) probe(k lane, first, last msg.Offset, done shard.Completer) (some bool, err error) {
	var want []msg.Range
	if !s.Call(func() {
		if ln, ok := s.m.ledger.Lane(k.log, k.lane); ok {
			want = ln.AppendUnsettled(nil, msg.Range{First: first, Count: last - first + 1})
		}
	}) {
		return false, ErrStopped
	}
	var r Reader
	defer r.Close()
	r.bad.reset(k.log, k.lane)
	for _, x := range want {
		if err := r.fromRuns(s.m, k, x.First, x.First+x.Count, func(msg.Offset, *msg.Record) error { return nil }); err != nil {
			return false, err
		}
	}
	return r.bad.giveUp(s, done)
}

// damaged reacts to damage that upkeep met in a segment: what can't be read is given up,
// and after that the segment may be compacted again.
func (k *Keeper) damaged(s *Shard, e *store.DamageError) error {
	if !e.HasRange {
		return k.aside.add(ofStore(e))
	}
	_, err := s.probe(lane{e.Log, e.Lane}, e.First, e.Last, forgive{k.store, e.Seg})
	return err
}

// forgive lets a segment be compacted again once its damaged entries are settled.
type forgive struct {
	store *store.Store
	seg   store.SegID
}

// Completed implements shard.Completer.
func (f forgive) Completed(_ uint32, _ uint64, res shard.Result) {
	if res.Err == nil {
		f.store.Forgive(f.seg)
	}
}
