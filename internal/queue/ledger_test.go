package queue

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/sluicemq/sluice/internal/msg"
)

// 100,000 logs with a lane each stay under 200 bytes, the map included.
func TestLogMemory(t *testing.T) {
	if n := unsafe.Sizeof(logState{}); n > 112 {
		t.Errorf("logState has %d bytes", n)
	}
	const logs = 100_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	l := NewLedger()
	profile := AppendProfile(nil, Profile{CountDeliveries: true})
	for id := msg.LogID(1); id <= logs; id++ {
		l.Ensure(id, profile)
		l.Append(id, 0, 10, nil)
		l.Settle(id, 0, msg.Range{First: 0, Count: 5}, msg.Acked)
		l.Reserve(id, 0, 1024)
	}
	checkpointInto(l, map[string][]byte{}) // the list of what changed is no part of a log
	l.pending, l.dirty = nil, nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	perLog := float64(after.HeapAlloc-before.HeapAlloc) / logs
	t.Logf("%.0f bytes per log", perLog)
	if perLog > 200 {
		t.Errorf("%.0f bytes per log", perLog)
	}
	runtime.KeepAlive(l)
}

// Only what changed is written: of a large settled set the one chunk, of logs that
// didn't change nothing.
func TestCheckpointIsIncremental(t *testing.T) {
	l := NewLedger()
	for id := msg.LogID(1); id <= 100; id++ {
		l.Ensure(id, nil)
		l.Append(id, 0, 1_000_000, nil)
	}
	for off := uint64(1); off < 1_000_000; off += 2 {
		l.Settle(7, 0, msg.Range{First: off, Count: 1}, msg.Acked)
	}
	l.Settle(8, 0, msg.Range{First: 150_000, Count: 700_000}, msg.Acked) // full chunks need no keys
	store := map[string][]byte{}
	checkpointInto(l, store)
	if n := len(store); n < 100+15 || n > 100+18 {
		t.Fatalf("%d keys", n)
	}
	l.Settle(7, 0, msg.Range{First: 500_000, Count: 1}, msg.Acked)
	delta := map[string][]byte{}
	checkpointInto(l, delta)
	if len(delta) != 3 { // head, chunk, the shard's tallies
		t.Errorf("%d keys: %q", len(delta), slices.Collect(maps.Keys(delta)))
	}
	maps.Copy(store, delta)
	r := restoreFrom(t, store)
	if r.HashAll() != l.HashAll() {
		t.Error("hash differs")
	}
	r.Settle(7, 0, msg.Range{Count: 1_000_000}, msg.Purged) // the chunks are gone, so must be their keys
	checkpointInto(r, store)
	if n := len(store); n != 101 {
		t.Errorf("%d keys after the purge", n)
	}
	l.Settle(7, 0, msg.Range{Count: 1_000_000}, msg.Purged)
	if got := restoreFrom(t, store); got.Hash(7) != l.Hash(7) {
		t.Error("hash differs after the purge")
	}
}

// Deleting a log deletes all of its keys.
func TestCheckpointOfDeletedLog(t *testing.T) {
	l := NewLedger()
	l.Ensure(1, nil)
	l.Append(1, 0, 300_000, &msg.Cond{Producer: 5, Seq: 1})
	l.Append(1, 9, 10, nil)
	for off := uint64(1); off < 300_000; off += 3 {
		l.Settle(1, 0, msg.Range{First: off, Count: 1}, msg.Acked)
		l.Return(1, 0, msg.Range{First: off + 1, Count: 1}, true)
	}
	appendLarge(t, l, 1, 3)
	store := map[string][]byte{}
	checkpointInto(l, store)
	n := len(store)
	l.Delete(1)
	checkpointInto(l, store)
	if len(store) != 1 || n < 70 {
		t.Errorf("%d keys of %d are left: %q", len(store), n, slices.Collect(maps.Keys(store)))
	}
	if got := restoreFrom(t, store).Ensure(1, nil); got != EnsureGone {
		t.Errorf("Ensure of a deleted log: %d", got)
	}
}

func TestProducerSequence(t *testing.T) {
	l := NewLedger()
	l.Ensure(1, nil)
	appendSeq := func(epoch uint32, seq uint64, n int) Outcome {
		return l.Append(1, 0, n, &msg.Cond{Producer: 9, Epoch: epoch, Seq: seq})
	}
	for i, c := range []struct {
		epoch uint32
		seq   uint64
		n     int
		want  Outcome
	}{
		{1, 5, 3, Outcome{Code: Appended, First: 0}},           // begins anywhere: 5, 6, 7
		{1, 5, 3, Outcome{Code: Duplicate, First: 0}},          // as it was
		{1, 6, 2, Outcome{Code: Duplicate, First: 1}},          // its end
		{1, 6, 3, Outcome{Code: Refused, Why: ProducerSeq}},    // 8 is new
		{1, 9, 1, Outcome{Code: Refused, Why: ProducerSeq}},    // a gap
		{1, 8, 2, Outcome{Code: Appended, First: 3}},           // 8, 9
		{1, 5, 3, Outcome{Code: Duplicate, First: 0}},          // still known
		{1, 7, 2, Outcome{Code: Duplicate, First: NoOffset}},   // from two appends
		{0, 10, 1, Outcome{Code: Refused, Why: ProducerEpoch}}, // fenced
		{2, 0, 1, Outcome{Code: Appended, First: 5}},           // a new epoch begins at 0
		{1, 10, 1, Outcome{Code: Refused, Why: ProducerEpoch}}, // so the old one is fenced
		{2, ^uint64(0), 1, Outcome{Code: Refused, Why: ProducerSeq}},
		{3, 5, 1, Outcome{Code: Refused, Why: ProducerSeq}}, // and nowhere else
	} {
		if got := appendSeq(c.epoch, c.seq, c.n); got != c.want {
			t.Errorf("%d: epoch %d seq %d n %d: %+v, want %+v", i, c.epoch, c.seq, c.n, got, c.want)
		}
	}
	l.Seal(1, 0)
	if o := appendSeq(2, 0, 1); o.Code != Duplicate {
		t.Errorf("a repetition to a sealed log: %+v", o)
	}
	if o := appendSeq(2, 1, 1); o.Code != Sealed {
		t.Errorf("%+v", o)
	}
}

// The offsets of the last five appends are known, sequences of 31 bits wrap, and what
// hasn't appended for long is forgotten, the oldest first.
func TestProducersRemembered(t *testing.T) {
	l := NewLedger()
	l.Ensure(1, nil)
	put := func(id, seq uint64, want Outcome) {
		t.Helper()
		if got := l.Append(1, 0, 2, &msg.Cond{Producer: id, Seq: seq, Wrap: true}); got != want {
			t.Errorf("producer %d seq %d: %+v, want %+v", id, seq, got, want)
		}
	}
	const last = 1<<31 - 1
	for i, seq := range []uint64{last - 4, last - 2, last, 1, 3, 5} {
		put(7, seq, Outcome{First: uint64(2 * i)})
	}
	for i, seq := range []uint64{last - 2, last, 1, 3, 5} {
		put(7, seq, Outcome{Code: Duplicate, First: uint64(2*i + 2)})
	}
	put(7, last-4, Outcome{Code: Duplicate, First: NoOffset})
	put(7, 8, Outcome{Code: Refused, Why: ProducerSeq})
	l.SetTime(ProducerExpiryMS - 1)
	put(8, 0, Outcome{First: 12})
	put(7, 5, Outcome{Code: Duplicate, First: 10})
	l.SetTime(ProducerExpiryMS)
	put(7, 99, Outcome{First: 14}) // as unknown
	put(8, 0, Outcome{Code: Duplicate, First: 12})
	for id := uint64(100); id < 100+ProducersMax-1; id++ {
		l.Append(1, 0, 1, &msg.Cond{Producer: id, Seq: 4})
	}
	put(7, 99, Outcome{Code: Duplicate, First: 14})
	put(8, 5, Outcome{First: 16 + ProducersMax - 1}) // went, as the oldest
	if n := len(l.logs[1].repeats.producers.byID); n != ProducersMax {
		t.Errorf("%d producers are remembered", n)
	}
}

// A window of more ids than a checkpoint key holds expires by time and by number, and
// is restored as it was.
func TestDedupWindow(t *testing.T) {
	l := NewLedger()
	l.Ensure(1, AppendProfile(nil, Profile{DedupWindowMS: 1000, DedupMax: 600}))
	store := map[string][]byte{}
	id := func(i int) []byte { return fmt.Appendf(nil, "id-%d", i) }
	for i := range 2000 {
		l.SetTime(int64(i))
		if o := l.Append(1, 0, 1, &msg.Cond{Dedup: id(i)}); o != (Outcome{First: uint64(i)}) {
			t.Fatalf("%d: %+v", i, o)
		}
		if o := l.Append(1, 0, 1, &msg.Cond{Dedup: id(max(i-599, 0))}); o != (Outcome{Code: Duplicate, First: uint64(max(i-599, 0))}) {
			t.Fatalf("repetition of %d: %+v", max(i-599, 0), o)
		}
		if i%97 == 0 {
			checkpointInto(l, store)
			r := restoreFrom(t, store)
			if r.HashAll() != l.HashAll() || len(r.logs[1].repeats.dedup.blocks) > 4 {
				t.Fatalf("restored at %d: another hash, or %d blocks", i, len(r.logs[1].repeats.dedup.blocks))
			}
			l = r
			l.SetTime(int64(i))
		}
	}
	if len(store) > 8 {
		t.Errorf("%d keys in the checkpoint", len(store))
	}
	l.SetTime(2500)
	if o := l.Append(1, 0, 1, &msg.Cond{Dedup: id(1501)}); o != (Outcome{Code: Duplicate, First: 1501}) {
		t.Errorf("an id of 999 ms ago: %+v", o)
	}
	if o := l.Append(1, 0, 1, &msg.Cond{Dedup: id(1500)}); o != (Outcome{First: 2000}) {
		t.Errorf("an id of 1,000 ms ago: %+v", o)
	}
	l.Ensure(1, nil)
	if o := l.Append(1, 0, 1, &msg.Cond{Dedup: id(1501)}); o != (Outcome{First: 2001}) {
		t.Errorf("an id without a window: %+v", o)
	}
	l.Delete(1)
	checkpointInto(l, store)
	if len(store) != 1 {
		t.Errorf("%d keys are left of a deleted log", len(store))
	}
}

// The set of deleted ids doesn't grow without bound, and survives a restart in parts.
func TestDeletedIDs(t *testing.T) {
	l := NewLedger()
	const chunks = deletedMax + 20
	for c := uint64(0); c < chunks; c++ {
		for i := uint64(0); i < 100; i++ { // too many runs to be inline
			l.Delete(c<<chunkBits + i*7)
		}
	}
	if n := len(l.deleted.chunks); n > deletedMax {
		t.Errorf("%d chunks", n)
	}
	store := map[string][]byte{}
	checkpointInto(l, store)
	r := restoreFrom(t, store)
	if r.HashAll() != l.HashAll() {
		t.Error("hash differs")
	}
	if last := uint64((chunks - 1) << chunkBits); r.Ensure(last+7, nil) != EnsureGone || r.Ensure(last+8, nil) != EnsureMade {
		t.Error("the latest ids are forgotten, or others are dead")
	}
	delta := map[string][]byte{}
	r.Delete((chunks-1)<<chunkBits + 1)
	checkpointInto(r, delta)
	if len(delta) != 3 { // the table, the chunk, and the log just made
		t.Errorf("%d keys for one more", len(delta))
	}
}

func TestProfile(t *testing.T) {
	for _, want := range []Profile{{}, {CountDeliveries: true}} {
		b := AppendProfile([]byte{99, 2, 1, 2}, want) // with a field from the future
		if got, err := ParseProfile(b); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := ParseProfile([]byte{1, 5}); !errors.Is(err, msg.ErrCorrupt) {
		t.Errorf("error %v", err)
	}
	l := NewLedger()
	l.Ensure(1, AppendProfile(nil, Profile{CountDeliveries: true}))
	l.Ensure(2, []byte{1, 5})
	if p, ok := l.Profile(1); !ok || !p.CountDeliveries {
		t.Error("profile is lost")
	}
	if p, ok := l.Profile(2); !ok || p != (Profile{}) {
		t.Error("a broken profile means something")
	}
	l.Ensure(1, nil)
	l.Delete(2)
	if len(l.profiles) != 1 {
		t.Errorf("%d profiles", len(l.profiles))
	}
}

func TestRestoreRefuses(t *testing.T) {
	l := NewLedger()
	l.Ensure(1, nil)
	l.Append(1, 0, 140_000, &msg.Cond{Producer: 5, Seq: 1})
	for off := uint64(1); off < 140_000; off += 3 {
		l.Settle(1, 0, msg.Range{First: off, Count: 1}, msg.Acked)
		l.Return(1, 0, msg.Range{First: off + 1, Count: 1}, true)
	}
	parts := appendLarge(t, l, 1, 3)
	store := map[string][]byte{}
	checkpointInto(l, store)
	for lost := range store {
		if lost[0] == keyShard || lost[0] == keyHead && lost != string(headKey(parts)) {
			continue
		}
		r := NewLedger()
		for k, v := range store {
			if k != lost {
				if err := r.Restore([]byte(k), v); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := r.RestoreDone(); !errors.Is(err, msg.ErrCorrupt) {
			t.Errorf("without %q: %v", lost, err)
		}
	}
	for k, v := range store {
		if err := NewLedger().Restore([]byte(k), v[:len(v)-1]); !errors.Is(err, msg.ErrCorrupt) {
			t.Errorf("short value of %q: %v", k, err)
		}
	}
}

// appendLarge appends one message with a body of so many parts to lane 0.
func appendLarge(t testing.TB, l *Ledger, log msg.LogID, parts uint32) msg.LogID {
	t.Helper()
	ref := msg.PartsRef{Log: msg.PartsLog(1, 1, uint32(log)), Count: parts, Bytes: uint64(parts) * 100}
	for i := range parts {
		if !l.AppendPart(ref.Log, i) {
			t.Fatalf("part %d refused", i)
		}
	}
	if o := l.AppendLarge(log, 0, nil, ref, false); o.Code != Appended {
		t.Fatalf("not appended: %+v", o)
	}
	return ref.Log
}

// FuzzRestore: whatever the bytes, there is an error or a ledger that works and that a
// checkpoint of its own describes.
func FuzzRestore(f *testing.F) {
	l := NewLedger()
	rnd := rand.New(rand.NewPCG(5, 6))
	for id := msg.LogID(1); id <= 3; id++ {
		l.Ensure(id, AppendProfile(nil, Profile{CountDeliveries: true}))
		l.Append(id, uint8(id*2%3), 90_000, &msg.Cond{Producer: 5, Seq: 1})
		for range 30_000 {
			l.Settle(id, 0, msg.Range{First: rnd.Uint64N(90_000), Count: 1}, msg.Acked)
		}
		l.Return(id, 0, msg.Range{First: 20, Count: 50}, true)
	}
	appendLarge(f, l, 1, 2)
	appendLarge(f, l, 3, 1)
	l.AppendPart(msg.PartsLog(1, 1, 99), 0)
	l.Delete(2)
	var all []byte
	frame := func(k, v []byte) []byte { // u8 length of the key, u16 of the value
		b := append([]byte{byte(len(k)), byte(len(v)), byte(len(v) >> 8)}, k...)
		return append(b, v...)
	}
	store := map[string][]byte{}
	checkpointInto(l, store)
	for _, k := range slices.Sorted(maps.Keys(store)) {
		f.Add(frame([]byte(k), store[k]))
		all = append(all, frame([]byte(k), store[k])...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		l := NewLedger()
		for len(b) >= 3 {
			k, v := int(b[0]), int(b[1])|int(b[2])<<8
			b = b[3:]
			k = min(k, len(b))
			v = min(v, len(b)-k)
			if err := l.Restore(b[:k], b[k:k+v]); err != nil {
				checkCorrupt(t, err)
				return
			}
			b = b[k+v:]
		}
		if err := l.RestoreDone(); err != nil {
			checkCorrupt(t, err)
			return
		}
		exercise(l)
		store := map[string][]byte{}
		l.MarkAllDirty()
		checkpointInto(l, store)
		if r := restoreFrom(t, store); r.HashAll() != l.HashAll() {
			t.Error("hash differs")
		}
	})
}

func checkCorrupt(t *testing.T, err error) {
	if !errors.Is(err, msg.ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}

// exercise uses each lane of a ledger that may be strange.
func exercise(l *Ledger) {
	var ids []msg.LogID
	l.Logs(func(id msg.LogID) bool { ids = append(ids, id); return true })
	d := NewDispatch(l, flatLocator(1))
	for _, id := range ids {
		_ = d.Attach(&Consumer{Log: id, Prefetch: 100})
		d.Run(100, func(*Delivery) {})
		d.WantReserve(l.Reserve)
		l.Lanes(id, func(number uint8, n *Lane) bool {
			at := n.NextUnsettled(n.Low() + 10)
			l.Return(id, number, msg.Range{First: at, Count: 3}, true)
			l.Settle(id, number, msg.Range{First: at, Count: 2}, msg.Acked)
			_ = n.UnsettledIn(msg.Range{Count: ^uint64(0)})
			return true
		})
		l.Append(id, 0, 3, &msg.Cond{Producer: 5, Seq: 2})
	}
}

// The hash of a log depends on nothing but its state.
func TestHashOfEqualStates(t *testing.T) {
	build := func(order []int) *Ledger {
		l := NewLedger()
		l.Ensure(1, nil)
		l.Append(1, 0, 200_000, nil)
		for _, i := range order {
			l.Settle(1, 0, msg.Range{First: uint64(i) * 2, Count: 1}, msg.Acked)
		}
		for i := range 3 {
			l.Return(1, 0, msg.Range{First: uint64(4095 + i), Count: 1}, true)
		}
		return l
	}
	rnd := rand.New(rand.NewPCG(7, 8))
	a, b := build(rnd.Perm(90_000)), build(rnd.Perm(90_000))
	if a.Hash(1) != b.Hash(1) || a.HashAll() != b.HashAll() {
		t.Error("equal states hash differently")
	}
	seen := map[uint64]string{a.HashAll(): "as it was"}
	for name, change := range map[string]func(l *Ledger){
		"settle":  func(l *Ledger) { l.Settle(1, 0, msg.Range{First: 3, Count: 1}, msg.Acked) },
		"append":  func(l *Ledger) { l.Append(1, 0, 1, nil) },
		"lane":    func(l *Ledger) { l.Append(1, 1, 1, nil) },
		"return":  func(l *Ledger) { l.Return(1, 0, msg.Range{First: 5, Count: 1}, true) },
		"reserve": func(l *Ledger) { l.Reserve(1, 0, 5) },
		"seal":    func(l *Ledger) { l.Seal(1, 0) },
		"ensure":  func(l *Ledger) { l.Ensure(2, nil) },
		"delete":  func(l *Ledger) { l.Delete(1) },
		"bury":    func(l *Ledger) { l.Delete(2) },
		"profile": func(l *Ledger) { l.Ensure(1, []byte{7, 0}) },
		"seq":     func(l *Ledger) { l.Append(1, 0, 1, &msg.Cond{Producer: 1}) },
	} {
		l := build(rnd.Perm(90_000))
		change(l)
		if other, ok := seen[l.HashAll()]; ok {
			t.Errorf("%s hashes like %s", name, other)
		}
		seen[l.HashAll()] = name
	}
}

// Settling in order, or nearly, allocates nothing.
func TestLedgerSteadyStateAllocs(t *testing.T) {
	l := NewLedger()
	l.Ensure(1, nil)
	avg := testing.AllocsPerRun(1000, func() {
		first := l.Append(1, 0, 100, nil).First
		l.Settle(1, 0, msg.Range{First: first + 50, Count: 50}, msg.Acked)
		l.Settle(1, 0, msg.Range{First: first, Count: 50}, msg.Acked)
	})
	if avg != 0 {
		t.Errorf("%v allocations", avg)
	}
}

func BenchmarkCheckpoint100kLogs(b *testing.B) {
	l := NewLedger()
	for id := msg.LogID(1); id <= 100_000; id++ {
		l.Ensure(id, nil)
		l.Append(id, 0, 10, nil)
	}
	b.ReportAllocs()
	for b.Loop() {
		l.MarkAllDirty()
		l.BeginCheckpoint()
		bytes := 0
		for !l.CheckpointSlice(1000, func(k, v []byte) { bytes += len(k) + len(v) }) {
		}
		b.ReportMetric(float64(bytes)/100_000, "bytes/log")
	}
}

func BenchmarkHashAll100kLogs(b *testing.B) {
	l := NewLedger()
	for id := msg.LogID(1); id <= 100_000; id++ {
		l.Ensure(id, nil)
		l.Append(id, 0, 10, nil)
	}
	for b.Loop() {
		l.HashAll()
	}
}

func ExampleLedger() {
	l := NewLedger()
	l.Ensure(7, nil)
	fmt.Println(l.Append(7, 0, 3, nil).First, l.Append(7, 0, 1, nil).First)
	fmt.Println(l.Settle(7, 0, msg.Range{First: 1, Count: 2}, msg.Acked))
	n, _ := l.Lane(7, 0)
	fmt.Println(n.Low(), n.Tail(), n.Unsettled())
	// Output:
	// 0 3
	// 2
	// 0 4 2
}
