package engine

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/wal"
)

// The checkpoint of a machine is that of its ledger, plus one key per submission of
// the tail: where it lies and which offsets its operations got. Those keys are
// written once and deleted when the submission has been flushed.
const subKey = 0xfe

type laneNote struct {
	lane
	note
}

type keyed struct {
	sub   uint64
	value []byte
}

// cut is what changed of the tail since the last checkpoint.
type cut struct {
	notes []laneNote // of the submission being applied
	fresh []keyed    // entered since the last BeginCheckpoint
	dead  []uint64   // flushed since then, and checkpointed before
	emit  struct {
		fresh  []keyed
		dead   []uint64
		ledger bool // its part is done
	}
}

func (c *cut) addSub(sub uint64, pos wal.Position, notes []laneNote) {
	b := make([]byte, 0, 24+24*len(notes))
	b = binary.AppendUvarint(b, pos.Seq)
	b = binary.AppendUvarint(b, uint64(pos.Off))
	b = binary.AppendUvarint(b, uint64(pos.Len))
	b = binary.AppendUvarint(b, uint64(len(notes)))
	for _, n := range notes {
		b = binary.AppendUvarint(b, n.log)
		b = append(b, n.lane.lane)
		b = binary.AppendUvarint(b, n.first)
		b = binary.AppendUvarint(b, uint64(n.count))
		b = binary.AppendUvarint(b, uint64(n.op))
		b = binary.AppendUvarint(b, uint64(n.bytes))
	}
	c.fresh = append(c.fresh, keyed{sub, b})
}

// flushedTo tells that the submissions [from, to) are flushed.
func (c *cut) flushedTo(from, to uint64) {
	i := 0
	for i < len(c.fresh) && c.fresh[i].sub < to {
		i++
	}
	first := to
	if i > 0 {
		first = c.fresh[0].sub
	}
	for s := from; s < first; s++ {
		c.dead = append(c.dead, s)
	}
	c.fresh = c.fresh[i:]
}

// BeginCheckpoint implements shard.Machine.
func (m *Machine) BeginCheckpoint() {
	m.ledger.BeginCheckpoint()
	e := &m.cut.emit
	e.fresh, m.cut.fresh = m.cut.fresh, nil
	e.dead, m.cut.dead = m.cut.dead, nil
	e.ledger = false
}

// CheckpointSlice implements shard.Machine.
func (m *Machine) CheckpointSlice(limit int, emit func(key, value []byte)) bool {
	e := &m.cut.emit
	if !e.ledger {
		e.ledger = m.ledger.CheckpointSlice(limit, emit)
		return false
	}
	var key [9]byte
	key[0] = subKey
	for range limit {
		switch {
		case len(e.fresh) > 0:
			binary.BigEndian.PutUint64(key[1:], e.fresh[0].sub)
			emit(key[:], e.fresh[0].value)
			e.fresh = e.fresh[1:]
		case len(e.dead) > 0:
			binary.BigEndian.PutUint64(key[1:], e.dead[0])
			emit(key[:], nil)
			e.dead = e.dead[1:]
		default:
			e.fresh, e.dead = nil, nil
			return true
		}
	}
	return false
}

// Restore implements shard.Machine. Submissions may come in any order: they are
// sorted by RestoreDone.
func (m *Machine) Restore(key, value []byte) error {
	if !NodeKey(key) {
		return m.ledger.Restore(key, value)
	}
	if value == nil {
		return nil
	}
	m.cut.fresh = append(m.cut.fresh, keyed{binary.BigEndian.Uint64(key[1:]), append([]byte(nil), value...)})
	return nil
}

// NodeKey says whether a checkpoint's key means something on the node that wrote it
// alone: the places of what was not flushed there.
func NodeKey(key []byte) bool { return len(key) == 9 && key[0] == subKey }

// Reset implements shard.Machine. Numbers in the tail are not used again.
func (m *Machine) Reset() {
	*m.ledger = *queue.NewLedger()
	m.ledger.OnFreeing(m.freeParts)
	_, end := m.tail.all()
	m.tail.popTo(end)
	m.places.clear()
	m.cut, m.later = cut{}, nil
	m.lossy, m.suspect = false, nil
	clear(m.returns)
}

// RestoreDone completes the restoring of a checkpoint with the runs that the store
// found, before entries of the WAL are replayed.
func (m *Machine) RestoreDone(runs []store.Run) error {
	if err := m.ledger.RestoreDone(); err != nil {
		return err
	}
	if err := m.restoreTail(); err != nil {
		return err
	}
	m.places.addSorted(runs)
	return nil
}

func (m *Machine) restoreTail() error {
	subs := m.cut.fresh
	m.cut.fresh = nil
	slices.SortFunc(subs, func(a, b keyed) int { return cmp.Compare(a.sub, b.sub) })
	for i, s := range subs {
		if i == 0 {
			m.tail.first, m.tail.cached = s.sub, s.sub
		}
		if err := m.restoreSub(s); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) restoreSub(s keyed) error {
	d := decoder{b: s.value}
	pos := wal.Position{Seq: d.uv(), Off: uint32(d.uv()), Len: uint32(d.uv())}
	n := d.uv()
	if n > uint64(len(s.value)) {
		return fmt.Errorf("%w: notes of submission %d", msg.ErrCorrupt, s.sub)
	}
	for next := m.tail.first + uint64(len(m.tail.subs)); next < s.sub; next++ {
		m.tail.push(wal.Position{Seq: pos.Seq}, 0, nil) // one without notes
	}
	sub := m.tail.push(pos, 0, nil)
	live := uint32(0)
	for range n {
		k := lane{log: d.uv(), lane: d.u8()}
		e := note{first: d.uv(), sub: sub, count: uint32(d.uv()), op: uint32(d.uv()), bytes: uint32(d.uv())}
		if d.bad || e.count == 0 {
			return fmt.Errorf("%w: notes of submission %d", msg.ErrCorrupt, s.sub)
		}
		if m.lossy && m.ensureLost(k.log) {
			m.ledger.RaiseTail(k.log, k.lane, e.first+uint64(e.count))
		}
		ln, ok := m.ledger.Lane(k.log, k.lane)
		if pos.Seq <= m.flushed || !ok || ln.Low() >= e.first+uint64(e.count) {
			continue // in segments, or settled
		}
		l := m.places.of(k)
		l.notes = append(l.notes, e)
		live++
	}
	m.tail.subs[sub-m.tail.first].live = live
	return nil
}

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uv() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) u8() uint8 {
	if len(d.b) == 0 {
		d.bad = true
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}
