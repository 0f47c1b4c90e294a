package wal

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// tracks is what the shards have written, as the writer knows it: for the shard
// tables of new files, and to keep holes out of the log. Owned by the writer
// goroutine.
//
// Each shard has two states: written, of what went to the file, and formed,
// which is ahead by the appends that are admitted but not yet written.
type tracks struct {
	shards map[uint32]*track
	ahead  []*track // whose formed state may differ from written
	undo   []undo   // of the append being admitted
}

type track struct {
	written, formed trackState
	ahead           bool
}

type undo struct {
	t     *track
	state trackState
}

type trackState struct {
	ShardState
	seen  bool // a record was seen
	gone  bool
	last  uint64 // index of the last entry
	known bool   // last is known: an entry or a log start was seen

	// The entry at which a new incarnation was refused for want of space; it may
	// not begin after it. 0 = none.
	refusedIncarnation, refusedIndex uint64
}

// recoveredTracks returns the state after a scan.
func recoveredTracks(x *index) tracks {
	t := tracks{shards: map[uint32]*track{}}
	for id, s := range x.shards {
		st := trackState{ShardState: s.ShardState, gone: s.gone, seen: true}
		switch {
		case len(s.runs) > 0:
			st.last, st.known = s.runs[len(s.runs)-1].last(), true
		case s.started > 0:
			st.last, st.known = max(s.started, s.FirstIndex-1), true
		}
		t.shards[id] = &track{written: st, formed: st}
	}
	return t
}

// of returns the track of a shard, which may be new.
func (t *tracks) of(shard uint32) *track {
	s := t.shards[shard]
	if s == nil {
		s = &track{}
		s.written.Shard, s.formed.Shard = shard, shard
		t.shards[shard] = s
	}
	return s
}

// step is what a record does to its shard's state. It fails without effect if
// the record may not follow.
func (s *trackState) step(r *Record) error {
	if r.Incarnation < s.Incarnation || (s.gone && r.Incarnation == s.Incarnation) {
		return fmt.Errorf("%w: shard %d incarnation %d", ErrStale, r.Shard, r.Incarnation)
	}
	n := *s
	if r.Incarnation > s.Incarnation {
		n = trackState{ShardState: ShardState{Shard: r.Shard, Incarnation: r.Incarnation}}
	}
	if s.refusedIndex > 0 && !n.known && r.Incarnation == s.refusedIncarnation {
		n.last, n.known = s.refusedIndex-1, true
	}
	n.seen = true
	switch r.Type {
	case TypeEntry:
		if n.known && r.Index > n.last+1 {
			return fmt.Errorf("%w: shard %d entry %d after %d", ErrGap, r.Shard, r.Index, n.last)
		}
		n.last, n.known = r.Index, true
	case TypeHardState:
		if n.known && r.Index > n.last {
			return fmt.Errorf("%w: shard %d commit index %d after entry %d", ErrGap, r.Shard, r.Index, n.last)
		}
		n.HardState = HardState{Term: r.Term, Vote: r.Aux, Commit: r.Index}
	case TypeLogStart:
		n.last, n.known = r.Index, true
		n.FirstIndex, n.FirstTerm, n.CheckpointID = r.Index+1, r.Term, r.Aux
	case TypeShardGone:
		n.gone = true
	}
	*s = n
	return nil
}

// valid checks a record on its own.
func (r *Record) valid(length, limit int64) error {
	switch {
	case r.Type < TypeEntry || r.Type > TypeShardGone:
		return fmt.Errorf("%w: type %d", ErrInvalid, r.Type)
	case r.Type != TypeEntry && len(r.Payload) > 0, r.Type == TypeEntry && r.Aux != 0:
		return fmt.Errorf("%w: payload and aux of type %d", ErrInvalid, r.Type)
	case r.Type == TypeEntry && r.Index == 0:
		return fmt.Errorf("%w: entry 0", ErrInvalid)
	case length > limit:
		return fmt.Errorf("%w: %d of at most %d bytes", ErrTooLarge, length, limit)
	}
	return nil
}

// length returns the bytes of the payload in the file.
func (r *Record) length() int64 {
	if r.Type != TypeEntry {
		return auxLen
	}
	var n int64
	for _, c := range r.Payload {
		n += int64(len(c))
	}
	return n
}

// admit checks an append against what is formed, and forms it. It tells whether
// somebody must wait for a sync. With an error nothing is changed.
func (t *tracks) admit(a *Append, limit int64) (sync bool, err error) {
	t.undo = t.undo[:0]
	sync = !a.NoSync
	for i := range a.Records {
		r := &a.Records[i]
		if err = r.valid(r.length(), limit); err != nil {
			break
		}
		s := t.of(r.Shard)
		before := s.formed
		if err = s.formed.step(r); err != nil {
			break
		}
		t.undo = append(t.undo, undo{s, before})
		if !s.ahead {
			s.ahead = true
			t.ahead = append(t.ahead, s)
		}
		sync = sync || r.Type != TypeHardState || r.Incarnation != before.Incarnation ||
			r.Term != before.Term || r.Aux != before.Vote
	}
	if err == nil {
		return sync, nil
	}
	for i := len(t.undo) - 1; i >= 0; i-- {
		t.undo[i].t.formed = t.undo[i].state
	}
	return false, err
}

// wrote follows a record that went to the file. If it replaces earlier entries
// of the shard, from is the first index that no longer counts.
func (t *tracks) wrote(r *Record) (from uint64, replaces bool) {
	s := &t.of(r.Shard).written
	before := *s
	// It was admitted, in this order.
	if err := s.step(r); err != nil {
		panic("wal: BUG: wrote what was not admitted: " + err.Error())
	}
	if r.Type == TypeEntry && r.Incarnation == before.Incarnation {
		return r.Index, before.known && r.Index <= before.last
	}
	return 0, r.Type == TypeLogStart || r.Type == TypeShardGone || r.Incarnation != before.Incarnation
}

// settle ends a round of forming: what was admitted and not written is forgotten.
func (t *tracks) settle() {
	for _, s := range t.ahead {
		s.formed, s.ahead = s.written, false
	}
	t.ahead = t.ahead[:0]
}

// refuse notes that an append failed, so that entries after its own are refused
// until they come again. A shard whose last entry is known needs no note. Called
// after settle.
func (t *tracks) refuse(a *Append) {
	for i := range a.Records {
		r := &a.Records[i]
		s := t.of(r.Shard)
		w := &s.written
		first := r.Incarnation > w.Incarnation || !w.known
		if r.Type == TypeEntry && first && r.Incarnation >= max(w.Incarnation, w.refusedIncarnation) &&
			(w.refusedIndex == 0 || r.Incarnation > w.refusedIncarnation) {
			w.refusedIncarnation, w.refusedIndex = r.Incarnation, r.Index
			s.formed = *w
		}
	}
}

// table merges what was written with what the caller knows, into the table of a
// new file.
func (t *tracks) table(rows []ShardState) []ShardState {
	merged := make(map[uint32]ShardState, len(t.shards))
	for id, s := range t.shards {
		if s.written.seen && !s.written.gone {
			merged[id] = s.written.ShardState
		}
	}
	for _, r := range rows {
		var w trackState
		if s := t.shards[r.Shard]; s != nil {
			w = s.written
		}
		switch {
		case !w.seen || r.Incarnation > w.Incarnation:
			merged[r.Shard] = r
		case w.gone || r.Incarnation < w.Incarnation || r.FirstIndex < w.FirstIndex:
		default:
			m := w.ShardState
			m.FirstIndex, m.FirstTerm, m.CheckpointID = r.FirstIndex, r.FirstTerm, r.CheckpointID
			merged[r.Shard] = m
		}
	}
	list := slices.Collect(maps.Values(merged))
	slices.SortFunc(list, func(a, b ShardState) int { return cmp.Compare(a.Shard, b.Shard) })
	return list
}
