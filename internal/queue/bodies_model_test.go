package queue

import (
	"slices"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
)

// The part of the ledger's model that concerns large bodies.

func (l *refLedger) refs(parts msg.LogID) (n int) {
	for _, g := range l.logs {
		for _, ln := range g.lanes {
			for _, m := range ln.messages {
				if !m.settled && m.body.Log == parts {
					n++
				}
			}
		}
	}
	return n
}

// collect removes the parts logs that were bound once and are no longer, and returns
// them.
func (l *refLedger) collect(bound map[msg.LogID]bool) map[msg.LogID]bool {
	freed := map[msg.LogID]bool{}
	for id := range l.parts {
		if bound[id] && l.refs(id) == 0 {
			freed[id] = true
			delete(l.parts, id)
		}
	}
	return freed
}

// partsIDs are few, so that much happens to each; the model takes care that none is used
// again.
func (m *ledgerMachine) partsLog(t *rapid.T) msg.LogID {
	return msg.PartsLog(rapid.Uint32Range(1, 2).Draw(t, "node"), rapid.Uint32Range(1, 3).Draw(t, "start"),
		rapid.Uint32Range(0, 3).Draw(t, "parts"))
}

func (m *ledgerMachine) part(t *rapid.T) {
	id := m.partsLog(t)
	have, exists := m.ref.parts[id]
	if !exists && m.made[id] {
		return // a node makes each once
	}
	number := have
	if rapid.IntRange(0, 5).Draw(t, "wrong") == 0 {
		number = rapid.Uint32Range(0, 5).Draw(t, "number")
	}
	want := number == have && m.ref.refs(id) == 0
	if got := m.l.AppendPart(id, number); got != want {
		t.Fatalf("AppendPart(%x, %d) = %v with %d", id, number, got, have)
	}
	if want {
		m.ref.parts[id] = have + 1
		m.made[id] = true
	}
}

func (m *ledgerMachine) large(t *rapid.T) {
	ref := msg.PartsRef{Log: m.partsLog(t)}
	if len(m.ref.parts) > 0 && rapid.IntRange(0, 4).Draw(t, "existing") > 0 {
		ids := []msg.LogID{}
		for id := range m.ref.parts {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		ref.Log = rapid.SampledFrom(ids).Draw(t, "body")
	}
	have, exists := m.ref.parts[ref.Log]
	ref.Count = have
	if !exists || rapid.IntRange(0, 5).Draw(t, "incomplete") == 0 {
		ref.Count = have + 1
	}
	ref.Bytes = uint64(ref.Count) * 10
	for range rapid.IntRange(1, 3).Draw(t, "targets") {
		log, lane := m.log(t), m.lane(t)
		want := Outcome{Code: Refused, Why: PartsMissing}
		if exists && ref.Count == have {
			want = m.ref.append(log, lane, 1, &msg.Cond{})
		}
		if got := m.l.AppendLarge(log, lane, nil, ref, false); got != want {
			t.Fatalf("AppendLarge(%d, %d, %+v) = %+v, want %+v", log, lane, ref, got, want)
		}
		if want.Code == Appended {
			m.ref.logs[log].lanes[lane].messages[want.First].body = ref
			m.bound[ref.Log] = true
		}
	}
	m.drop(t, ref.Log, m.l.DropUnbound)
}

// drop removes a parts log that nothing refers to by fn.
func (m *ledgerMachine) drop(t *rapid.T, id msg.LogID, fn func(msg.LogID) bool) {
	_, want := m.ref.parts[id]
	if want = want && m.ref.refs(id) == 0; want {
		m.freed = map[msg.LogID]bool{id: true}
		delete(m.ref.parts, id)
	}
	if got := fn(id); got != want {
		t.Fatalf("dropped %x: %v, want %v", id, got, want)
	}
}

func (m *ledgerMachine) giveUp(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "really") == 0 {
		m.drop(t, m.partsLog(t), m.l.Delete)
	}
}

func (m *ledgerMachine) sweepParts(t *rapid.T) {
	node, before := rapid.Uint32Range(1, 2).Draw(t, "node"), rapid.Uint32Range(1, 4).Draw(t, "before")
	m.freed = map[msg.LogID]bool{}
	for id := range m.ref.parts {
		if n, inc := msg.PartsOrigin(id); n == node && inc < before && m.ref.refs(id) == 0 {
			m.freed[id] = true
			delete(m.ref.parts, id)
		}
	}
	m.l.SweepParts(node, before)
}

func compareBodies(t *rapid.T, l *Ledger, ref *refLedger) {
	t.Helper()
	for id, n := range ref.parts {
		ln, ok := l.Lane(id, 0)
		if !ok || ln.Unsettled() != uint64(n) {
			t.Fatalf("parts log %x: there %v, want %d parts", id, ok, n)
		}
		if got, want := int(l.parts[id]), ref.refs(id); got != want {
			t.Fatalf("parts log %x has %d references, want %d", id, got, want)
		}
	}
	if len(l.parts) != len(ref.parts) {
		t.Fatalf("%d parts logs are counted, want %d", len(l.parts), len(ref.parts))
	}
}

func compareLarge(t *rapid.T, l *Ledger, log msg.LogID, lane uint8, want *refLane) {
	t.Helper()
	off := rapid.Uint64Range(0, uint64(len(want.messages))+1).Draw(t, "probe")
	at, bytes, ok := l.NextLarge(log, lane, off)
	found := false
	l.EachLarge(log, lane, func(o msg.Offset, ref msg.PartsRef) {
		if o >= uint64(len(want.messages)) || want.messages[o].settled || want.messages[o].body != ref {
			t.Fatalf("offset %d of %d has a large body %+v", o, log, ref)
		}
		if !found && o >= off {
			found = true
			if !ok || at != o || bytes != ref.Bytes {
				t.Fatalf("next large body from %d on: %d, %v, want %d", off, at, ok, o)
			}
		}
		want.messages[o].body.Bytes++ // seen
	})
	if ok != found {
		t.Fatalf("a large body from %d on: %v, want %v", off, ok, found)
	}
	for o := range want.messages {
		m := &want.messages[o]
		if m.settled || m.body.Count == 0 {
			continue
		}
		if m.body.Bytes%10 != 1 {
			t.Fatalf("offset %d of %d has lost its body", o, log)
		}
		m.body.Bytes--
	}
}
