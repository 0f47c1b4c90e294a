package queue

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
)

// compareLedger checks everything that can be read.
func compareLedger(t *rapid.T, l *Ledger, ref *refLedger) {
	t.Helper()
	if l.Len() != len(ref.logs)+len(ref.parts) {
		t.Fatalf("%d logs, want %d and %d of parts", l.Len(), len(ref.logs), len(ref.parts))
	}
	compareBodies(t, l, ref)
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
			compareHeld(t, l.heldIn(id, number), want)
			compareLarge(t, l, id, number, want)
			return true
		})
		if seen != len(g.lanes) {
			t.Fatalf("log %d has %d lanes, want %d", id, seen, len(g.lanes))
		}
	}
}

func compareHeld(t *rapid.T, held *Set, want *refLane) {
	t.Helper()
	if held == nil {
		held = &Set{}
	}
	n := uint64(0)
	for i, m := range want.messages {
		if m.tx.N != 0 {
			n++
			if !held.Contains(uint64(i)) {
				t.Fatalf("%d is not held", i)
			}
		}
	}
	if held.Count() != n {
		t.Fatalf("%d held, want %d", held.Count(), n)
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

	made  map[msg.LogID]bool // parts logs that were ever made
	bound map[msg.LogID]bool // those that were ever bound
	freed map[msg.LogID]bool // of which OnFreeing should tell in this step
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
		c.Seq = rapid.Uint64Range(0, 30).Draw(t, "seq")
		if p, ok := m.producer(c.Producer); ok && rapid.IntRange(0, 2).Draw(t, "near") > 0 {
			c.Epoch = p.epoch
			c.Seq = p.last[len(p.last)-1].last + 1 - min(rapid.Uint64Range(0, 9).Draw(t, "back"), p.last[len(p.last)-1].last+1)
		}
	}
	if rapid.IntRange(0, 3).Draw(t, "named") == 0 {
		c.Dedup = []byte{'a' + byte(rapid.IntRange(0, 5).Draw(t, "id"))}
	}
	log, lane, n := m.log(t), m.lane(t), rapid.IntRange(1, 4).Draw(t, "n")
	if c.Producer == 0 && rapid.IntRange(0, 4).Draw(t, "big") == 0 {
		n = rapid.IntRange(1, 40_000).Draw(t, "many")
	}
	if got, want := m.l.Append(log, lane, n, c), m.ref.append(log, lane, n, c); got != want {
		t.Fatalf("Append(%d, %d, %d, %+v) = %+v, want %+v", log, lane, n, c, got, want)
	}
}

// producer returns what some log knows of a producer.
func (m *ledgerMachine) producer(id uint64) (refProducer, bool) {
	for log := msg.LogID(1); log <= 6; log++ {
		if g := m.ref.logs[log]; g != nil {
			if p, ok := g.producers[id]; ok {
				return p, true
			}
		}
	}
	return refProducer{}, false
}

func (m *ledgerMachine) pass(t *rapid.T) {
	m.ref.now += rapid.SampledFrom([]int64{0, 1, 400, 1000, ProducerExpiryMS - 1, ProducerExpiryMS}).Draw(t, "ms")
	m.l.SetTime(m.ref.now)
}

func (m *ledgerMachine) tx(t *rapid.T) msg.TxID {
	return msg.TxID{
		Node: rapid.Uint32Range(1, 2).Draw(t, "node"), Incarnation: rapid.Uint32Range(1, 2).Draw(t, "incarnation"),
		N: rapid.Uint64Range(1, 3).Draw(t, "tx"),
	}
}

func (m *ledgerMachine) hold(t *rapid.T) {
	log, lane, tx := m.log(t), m.lane(t), m.tx(t)
	n := m.refLane(log, lane)
	var rs []msg.Range
	m.offsets(t, n, func(r msg.Range) { rs = append(rs, r) })
	var want []msg.Range
	free := true
	for _, r := range rs {
		for i := r.First; r.Count > 0 && i-r.First < r.Count; i++ {
			if n == nil || i >= uint64(len(n.messages)) {
				free = false
				break
			}
			if x := &n.messages[i]; !x.settled && x.tx.N == 0 {
				want = appendRange(want, i, i+1)
				continue
			}
			free = false
		}
	}
	if got := m.l.AllFree(log, lane, rs); got != free {
		t.Fatalf("AllFree(%v) = %v", rs, got)
	}
	if rapid.IntRange(0, 3).Draw(t, "only look") == 0 {
		return
	}
	for _, r := range want {
		for i := range r.Count {
			n.messages[r.First+i].tx = tx
		}
	}
	var got []msg.Range
	for _, r := range m.l.Hold(tx, log, lane, rs) {
		got = appendRange(got, r.First, r.First+r.Count)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("Hold = %v, want %v", got, want)
	}
}

// released checks what ended the holds of the transactions that match.
func (m *ledgerMachine) released(t *rapid.T, got []LaneRanges, match func(msg.TxID) bool) {
	n := 0
	for _, g := range m.ref.logs {
		for _, ln := range g.lanes {
			for i := range ln.messages {
				if x := &ln.messages[i]; x.tx.N != 0 && match(x.tx) {
					x.tx = msg.TxID{}
					n++
				}
			}
		}
	}
	for _, p := range got {
		ln := m.refLane(p.Log, p.Lane)
		for _, r := range p.Ranges {
			for i := range r.Count {
				if x := ln.messages[r.First+i]; x.settled || x.tx.N != 0 {
					t.Fatalf("released %d of log %d: %+v", r.First+i, p.Log, x)
				}
				n--
			}
		}
	}
	if n != 0 {
		t.Fatalf("%d messages too few released", n)
	}
}

func (m *ledgerMachine) unhold(t *rapid.T) {
	tx := m.tx(t)
	m.released(t, m.l.Unhold(tx), func(x msg.TxID) bool { return x == tx })
}

func (m *ledgerMachine) sweep(t *rapid.T) {
	node, before := rapid.Uint32Range(1, 2).Draw(t, "node"), rapid.Uint32Range(1, 3).Draw(t, "before")
	m.released(t, m.l.Sweep(node, before), func(x msg.TxID) bool { return x.Node == node && x.Incarnation < before })
	for tx := range m.l.holds.txs {
		if tx.Node == node && tx.Incarnation < before {
			t.Fatalf("%v is left", tx)
		}
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
		m.freed = m.ref.collect(m.bound)
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
		p := Profile{CountDeliveries: true}
		if rapid.IntRange(0, 2).Draw(t, "window") > 0 {
			p.DedupWindowMS = rapid.Int64Range(1, 1500).Draw(t, "ms")
			p.DedupMax = rapid.Uint32Range(1, 4).Draw(t, "most")
		}
		raw = AppendProfile(nil, p)
	}
	want := EnsureSame
	switch g := m.ref.logs[log]; {
	case g != nil && g.profile != string(raw):
		want, g.profile = EnsureChanged, string(raw)
		if p, _ := ParseProfile(raw); p.DedupWindowMS == 0 {
			g.dedup = nil
		}
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
	m.freed = m.ref.collect(m.bound)
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
			ref:   &refLedger{logs: map[msg.LogID]*refLog{}, deleted: map[msg.LogID]bool{}, parts: map[msg.LogID]uint32{}},
			store: map[string][]byte{},
			made:  map[msg.LogID]bool{},
			bound: map[msg.LogID]bool{},
		}
		m.l.OnFreeing(func(log msg.LogID) {
			if !m.freed[log] || !m.l.Has(log) {
				t.Fatalf("parts log %x is told to go", log)
			}
			delete(m.freed, log)
		})
		t.Repeat(map[string]func(*rapid.T){
			"append": m.append, "append2": m.append, "settle": m.settle, "settle2": m.settle,
			"return": m.giveBack, "reserve": m.reserve, "ensure": m.ensure, "delete": m.delete,
			"hold": m.hold, "unhold": m.unhold, "sweep": m.sweep, "pass": m.pass,
			"seal": m.seal, "checkpoint": m.checkpoint, "checkpoint2": m.checkpoint,
			"part": m.part, "part2": m.part, "large": m.large, "large2": m.large, "giveUp": m.giveUp, "sweepParts": m.sweepParts,
			"": func(t *rapid.T) {
				if len(m.freed) > 0 {
					t.Fatalf("parts logs %v went without a word", m.freed)
				}
				compareLedger(t, m.l, m.ref)
			},
		})
	})
}
