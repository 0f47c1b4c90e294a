package queue

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
)

// The reference: a state per message, nothing clever.

type refMessage struct {
	settled bool
	count   uint32
}

type refLane struct {
	messages []refMessage
	reserved msg.Offset
}

func (n *refLane) low() msg.Offset {
	for i, m := range n.messages {
		if !m.settled {
			return msg.Offset(i)
		}
	}
	return msg.Offset(len(n.messages))
}

type refProducer struct {
	epoch       uint32
	first, last uint64
	off         msg.Offset
}

type refLog struct {
	profile   string
	sealed    bool
	lanes     map[uint8]*refLane
	producers map[uint64]refProducer
}

type refLedger struct {
	logs    map[msg.LogID]*refLog
	deleted map[msg.LogID]bool
	settled [8]uint64
}

func (l *refLedger) clone() *refLedger {
	c := &refLedger{logs: map[msg.LogID]*refLog{}, deleted: maps.Clone(l.deleted), settled: l.settled}
	for id, g := range l.logs {
		h := &refLog{profile: g.profile, sealed: g.sealed, lanes: map[uint8]*refLane{}, producers: maps.Clone(g.producers)}
		for k, n := range g.lanes {
			h.lanes[k] = &refLane{slices.Clone(n.messages), n.reserved}
		}
		c.logs[id] = h
	}
	return c
}

func (l *refLedger) append(log msg.LogID, lane uint8, n int, c *msg.Cond) Outcome {
	g := l.logs[log]
	if g == nil {
		return Outcome{Code: Unknown}
	}
	if c.Producer != 0 {
		if p, ok := g.producers[c.Producer]; ok {
			last := c.Seq + uint64(n) - 1
			switch {
			case c.Epoch < p.epoch:
				return Outcome{Code: Refused, Why: ProducerEpoch}
			case c.Epoch > p.epoch:
			case c.Seq >= p.first && last <= p.last:
				return Outcome{Code: Duplicate, First: p.off + c.Seq - p.first}
			case last <= p.last:
				return Outcome{Code: Duplicate, First: NoOffset}
			case c.Seq != p.last+1:
				return Outcome{Code: Refused, Why: ProducerSeq}
			}
		}
	}
	if g.sealed {
		return Outcome{Code: Sealed}
	}
	ln := g.lanes[lane]
	tail := 0
	if ln != nil {
		tail = len(ln.messages)
	}
	if c.ExpectTail && c.Tail != uint64(tail) {
		return Outcome{Code: Refused, Why: TailMoved}
	}
	if ln == nil {
		ln = &refLane{}
		g.lanes[lane] = ln
	}
	ln.messages = append(ln.messages, make([]refMessage, n)...)
	if c.Producer != 0 {
		g.producers[c.Producer] = refProducer{c.Epoch, c.Seq, c.Seq + uint64(n) - 1, uint64(tail)}
	}
	return Outcome{Code: Appended, First: uint64(tail)}
}

// compareLedger checks everything that can be read.
func compareLedger(t *rapid.T, l *Ledger, ref *refLedger) {
	t.Helper()
	if l.Len() != len(ref.logs) {
		t.Fatalf("%d logs, want %d", l.Len(), len(ref.logs))
	}
	for why, n := range ref.settled {
		if got := l.SettledBy(msg.Reason(why)); got != n {
			t.Fatalf("settled for %d: %d, want %d", why, got, n)
		}
	}
	for id := range ref.deleted {
		if l.Has(id) || !l.deleted.Contains(id) {
			t.Fatalf("log %d is not deleted", id)
		}
	}
	for id, g := range ref.logs {
		if !l.Has(id) || l.IsSealed(id) != g.sealed || l.EncodedProfile(id) != g.profile {
			t.Fatalf("log %d: has %v, sealed %v, profile %q", id, l.Has(id), l.IsSealed(id), l.EncodedProfile(id))
		}
		seen := 0
		l.Lanes(id, func(number uint8, n *Lane) bool {
			seen++
			want := g.lanes[number]
			if want == nil {
				t.Fatalf("log %d has lane %d", id, number)
			}
			compareLane(t, n, want)
			return true
		})
		if seen != len(g.lanes) {
			t.Fatalf("log %d has %d lanes, want %d", id, seen, len(g.lanes))
		}
	}
}

func compareLane(t *rapid.T, n *Lane, want *refLane) {
	t.Helper()
	if err := checkSet(&n.settled); err != nil {
		t.Fatal(err)
	}
	tail := uint64(len(want.messages))
	if n.Tail() != tail || n.Low() != want.low() || n.Reserved() != want.reserved {
		t.Fatalf("tail %d low %d reserved %d, want %d %d %d", n.Tail(), n.Low(), n.Reserved(), tail, want.low(), want.reserved)
	}
	unsettled := uint64(0)
	for i := uint64(0); i < tail; {
		a, end := n.attemptsRun(i)
		for ; i < min(end, tail); i++ {
			if want.messages[i].count != a {
				t.Fatalf("attempts of %d: %d, want %d", i, a, want.messages[i].count)
			}
		}
	}
	at := uint64(0)
	check := func(to uint64, settled bool) {
		for ; at < to; at++ {
			if want.messages[at].settled != settled {
				t.Fatalf("%d settled: %v", at, !settled)
			}
		}
	}
	for _, r := range n.AppendUnsettled(nil, msg.Range{Count: ^uint64(0)}) {
		check(r.First, true)
		check(r.First+r.Count, false)
		unsettled += r.Count
	}
	check(tail, true)
	if n.Unsettled() != unsettled || n.UnsettledIn(msg.Range{Count: tail}) != unsettled {
		t.Fatalf("unsettled %d, want %d", n.Unsettled(), unsettled)
	}
	if tail == 0 {
		return
	}
	off := rapid.Uint64Range(0, tail).Draw(t, "probe")
	u, s := off, off
	for u < tail && want.messages[u].settled {
		u++
	}
	for s < tail && !want.messages[s].settled {
		s++
	}
	if n.NextUnsettled(off) != u || n.NextSettled(off) != s || off < tail && n.IsSettled(off) != (u != off) {
		t.Fatalf("next unsettled of %d: %d, want %d; settled: %d, want %d", off, n.NextUnsettled(off), u, n.NextSettled(off), s)
	}
}

// ledgerMachine drives a ledger and its reference alike.
type ledgerMachine struct {
	l   *Ledger
	ref *refLedger

	store map[string][]byte // what the checkpoints made durable
	cut   *refLedger        // the reference at BeginCheckpoint
	hash  uint64
	delta []kv
	all   []kv // everything ever emitted, in order, since the last complete checkpoint
}

type kv struct{ k, v []byte }

func (m *ledgerMachine) log(t *rapid.T) msg.LogID {
	return rapid.Uint64Range(1, 6).Draw(t, "log")
}

func (m *ledgerMachine) lane(t *rapid.T) uint8 {
	return rapid.SampledFrom([]uint8{0, 0, 0, 0, 3, 255}).Draw(t, "lane")
}

func (m *ledgerMachine) append(t *rapid.T) {
	c := &msg.Cond{}
	if rapid.IntRange(0, 3).Draw(t, "cond") == 0 {
		c.ExpectTail = rapid.Bool().Draw(t, "expect")
		c.Tail = rapid.Uint64Range(0, 3).Draw(t, "tail")
		c.Producer = rapid.Uint64Range(0, 2).Draw(t, "producer")
		c.Epoch = rapid.Uint32Range(0, 1).Draw(t, "epoch")
		c.Seq = rapid.Uint64Range(0, 6).Draw(t, "seq")
	}
	log, lane, n := m.log(t), m.lane(t), rapid.IntRange(1, 4).Draw(t, "n")
	if c.Producer == 0 && rapid.IntRange(0, 4).Draw(t, "big") == 0 {
		n = rapid.IntRange(1, 40_000).Draw(t, "many")
	}
	if got, want := m.l.Append(log, lane, n, c), m.ref.append(log, lane, n, c); got != want {
		t.Fatalf("Append(%d, %d, %d, %+v) = %+v, want %+v", log, lane, n, c, got, want)
	}
}

// offsets calls fn with a range, or with many small ones.
func (m *ledgerMachine) offsets(t *rapid.T, n *refLane, fn func(r msg.Range)) {
	tail := uint64(0)
	if n != nil {
		tail = uint64(len(n.messages))
	}
	first := rapid.Uint64Range(0, tail+2).Draw(t, "first")
	count := rapid.OneOf(rapid.Uint64Range(0, 10), rapid.Uint64Range(0, tail+10), rapid.Just(^uint64(0))).Draw(t, "count")
	if step := rapid.SampledFrom([]uint64{0, 0, 2, 3, 40}).Draw(t, "step"); step > 0 {
		for i := first; i < tail && i-first < min(count, 20_000); i += step {
			fn(msg.Range{First: i, Count: 1})
		}
		return
	}
	fn(msg.Range{First: first, Count: count})
}

func (m *ledgerMachine) refLane(log msg.LogID, lane uint8) *refLane {
	if g := m.ref.logs[log]; g != nil {
		return g.lanes[lane]
	}
	return nil
}

func (m *ledgerMachine) settle(t *rapid.T) {
	log, lane := m.log(t), m.lane(t)
	why := msg.Reason(rapid.IntRange(1, 7).Draw(t, "why"))
	n := m.refLane(log, lane)
	m.offsets(t, n, func(r msg.Range) {
		want := uint64(0)
		if n != nil {
			for i := r.First; i < uint64(len(n.messages)) && i-r.First < r.Count; i++ {
				if !n.messages[i].settled {
					n.messages[i] = refMessage{settled: true}
					want++
				}
			}
		}
		m.ref.settled[why] += want
		if got := m.l.Settle(log, lane, r, why); got != want {
			t.Fatalf("Settle(%+v) = %d, want %d", r, got, want)
		}
	})
}

func (m *ledgerMachine) giveBack(t *rapid.T) {
	log, lane, count := m.log(t), m.lane(t), rapid.Bool().Draw(t, "counted")
	n := m.refLane(log, lane)
	m.offsets(t, n, func(r msg.Range) {
		if n != nil && count {
			for i := r.First; i < uint64(len(n.messages)) && i-r.First < r.Count; i++ {
				if !n.messages[i].settled {
					n.messages[i].count++
				}
			}
		}
		m.l.Return(log, lane, r, count)
	})
}

func (m *ledgerMachine) reserve(t *rapid.T) {
	log, lane, upto := m.log(t), m.lane(t), rapid.Uint64Range(0, 5000).Draw(t, "upto")
	exact := rapid.IntRange(0, 5).Draw(t, "exact") == 0
	if n := m.refLane(log, lane); n != nil && (exact || upto > n.reserved) {
		n.reserved = upto
	}
	if exact {
		m.l.ReserveExact(log, lane, upto)
	} else {
		m.l.Reserve(log, lane, upto)
	}
}

func (m *ledgerMachine) ensure(t *rapid.T) {
	log := m.log(t)
	var raw []byte
	if rapid.Bool().Draw(t, "counts") {
		raw = AppendProfile(nil, Profile{CountDeliveries: true})
	}
	want := EnsureSame
	switch g := m.ref.logs[log]; {
	case g != nil && g.profile != string(raw):
		want, g.profile = EnsureChanged, string(raw)
	case g == nil && m.ref.deleted[log]:
		want = EnsureGone
	case g == nil:
		want = EnsureMade
		m.ref.logs[log] = &refLog{profile: string(raw), lanes: map[uint8]*refLane{0: {}}, producers: map[uint64]refProducer{}}
	}
	if got := m.l.Ensure(log, raw); got != want {
		t.Fatalf("Ensure(%d) = %d, want %d", log, got, want)
	}
}

func (m *ledgerMachine) delete(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "really") > 0 {
		return // or nothing lives long enough
	}
	log := m.log(t)
	_, want := m.ref.logs[log]
	delete(m.ref.logs, log)
	m.ref.deleted[log] = true
	if got := m.l.Delete(log); got != want {
		t.Fatalf("Delete(%d) = %v", log, got)
	}
}

func (m *ledgerMachine) seal(t *rapid.T) {
	log := m.log(t)
	g := m.ref.logs[log]
	if rapid.Bool().Draw(t, "unseal") {
		m.l.Unseal(log)
		if g != nil {
			g.sealed = false
		}
		return
	}
	cond := uint8(rapid.IntRange(0, 1).Draw(t, "cond")) * msg.SealIfEmpty
	if g != nil && !g.sealed {
		g.sealed = true
		for _, n := range g.lanes {
			if cond != 0 && int(n.low()) < len(n.messages) {
				g.sealed = false
			}
		}
	}
	if got, want := m.l.Seal(log, cond), g != nil && g.sealed; got != want {
		t.Fatalf("Seal(%d, %d) = %v", log, cond, got)
	}
}

func (m *ledgerMachine) checkpoint(t *rapid.T) {
	if !m.l.CheckpointRunning() {
		if rapid.IntRange(0, 9).Draw(t, "complete") == 0 {
			m.l.MarkAllDirty()
			m.store, m.all = map[string][]byte{}, nil
		}
		m.cut, m.hash, m.delta = m.ref.clone(), m.l.HashAll(), nil
		m.l.BeginCheckpoint()
		return
	}
	most := rapid.SampledFrom([]int{1, 2, 5, 1000}).Draw(t, "keys")
	n := 0
	done := m.l.CheckpointSlice(most, func(k, v []byte) {
		n++
		m.delta = append(m.delta, kv{slices.Clone(k), slices.Clone(v)})
	})
	if n > most {
		t.Fatalf("%d keys in a slice of %d", n, most)
	}
	if !done {
		return
	}
	seen := map[string]bool{}
	for _, e := range m.delta {
		if e.v == nil {
			delete(m.store, string(e.k))
		} else {
			m.store[string(e.k)] = e.v
		}
		if seen[string(e.k)] {
			t.Fatalf("key %q twice in a checkpoint", e.k)
		}
		seen[string(e.k)] = true
	}
	m.all = append(m.all, m.delta...)
	m.restored(t, m.finalKeys())
	m.restored(t, m.all)
}

func (m *ledgerMachine) finalKeys() (out []kv) {
	for k, v := range m.store { // in any order
		out = append(out, kv{[]byte(k), v})
	}
	return out
}

// restored checks that the entries give the state at the cut, and that a ledger made
// of them goes on as it should, by a complete checkpoint of its own.
func (m *ledgerMachine) restored(t *rapid.T, entries []kv) {
	r := NewLedger()
	for _, e := range entries {
		if err := r.Restore(e.k, e.v); err != nil {
			t.Fatalf("Restore(%q): %v", e.k, err)
		}
	}
	if err := r.RestoreDone(); err != nil {
		t.Fatal(err)
	}
	compareLedger(t, r, m.cut)
	if r.HashAll() != m.hash {
		t.Fatal("hash of the restored ledger differs")
	}
	r.BeginCheckpoint()
	r.CheckpointSlice(1000, func(k, v []byte) { t.Fatalf("%q is dirty after a restore", k) })
	for id := range m.cut.logs { // the restored parts are known: a change drops or rewrites them
		r.Settle(id, 0, msg.Range{Count: ^uint64(0)}, msg.Acked)
		break
	}
	store := map[string][]byte{}
	for _, e := range entries {
		store[string(e.k)] = e.v
	}
	h := r.HashAll()
	checkpointInto(r, store)
	if got := restoreFrom(t, store).HashAll(); got != h {
		t.Fatal("hash differs after a second generation")
	}
}

// checkpointInto runs a whole checkpoint into a store of keys.
func checkpointInto(l *Ledger, store map[string][]byte) {
	l.BeginCheckpoint()
	for !l.CheckpointSlice(1000, func(k, v []byte) {
		if v == nil {
			delete(store, string(k))
		} else {
			store[string(k)] = slices.Clone(v)
		}
	}) {
	}
}

func restoreFrom(t interface{ Fatal(...any) }, store map[string][]byte) *Ledger {
	r := NewLedger()
	for k, v := range store {
		if err := r.Restore([]byte(k), v); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.RestoreDone(); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLedgerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &ledgerMachine{
			l:     NewLedger(),
			ref:   &refLedger{logs: map[msg.LogID]*refLog{}, deleted: map[msg.LogID]bool{}},
			store: map[string][]byte{},
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": m.append, "append2": m.append, "settle": m.settle, "settle2": m.settle,
			"return": m.giveBack, "reserve": m.reserve, "ensure": m.ensure, "delete": m.delete,
			"seal": m.seal, "checkpoint": m.checkpoint, "checkpoint2": m.checkpoint,
			"": func(t *rapid.T) { compareLedger(t, m.l, m.ref) },
		})
	})
}
