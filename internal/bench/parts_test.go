package bench

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestStampRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := stamp{
			run:       rapid.Uint32Min(1).Draw(t, "run"),
			publisher: rapid.Uint16().Draw(t, "publisher"),
			queue:     rapid.Uint16().Draw(t, "queue"),
			seq:       rapid.Uint64Max(maxSeq-1).Draw(t, "seq"),
			timeNanos: rapid.Int64().Draw(t, "time"),
		}
		b := make([]byte, stampSize)
		putStamp(b, s)
		if got, ok := parseStamp(b); !ok || got != s {
			t.Fatalf("got %+v, %v, want %+v", got, ok, s)
		}
	})
	if _, ok := parseStamp(make([]byte, stampSize)); ok {
		t.Error("zeros are taken for a stamp")
	}
	if _, ok := parseStamp(bytes.Repeat([]byte{255}, stampSize-1)); ok {
		t.Error("a short body is taken for a stamp")
	}
}

func TestFillerIsAPrefixOfALongerOne(t *testing.T) {
	long, short := newFiller(10_000), newFiller(100)
	if !bytes.Equal(long[:100], short) {
		t.Error("fillers of different sizes differ")
	}
	if !short.matches(long[50:], 50) || short.matches(long[51:], 50) || !short.matches(long[500:], 500) {
		t.Error("matches is wrong")
	}
}

// TestPaceNeitherSkipsNorRepeats checks that a schedule asked at any times sends
// every message once and not before it is due.
func TestPaceNeitherSkipsNorRepeats(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := pace{
			interval: rapid.Float64Range(1, 1e9).Draw(t, "interval"),
			first:    rapid.Int64Range(0, 1e12).Draw(t, "first"),
		}
		k := rapid.Uint64Max(1<<30).Draw(t, "k")
		at := p.dueAt(k)
		if n := p.dueBy(at); n < k+1 || p.dueAt(n) <= at || (n > 0 && p.dueAt(n-1) > at) {
			t.Fatalf("at %d, when message %d is due, %d messages are", at, k, n)
		}
		if at > p.first && p.dueBy(at-1) > k && p.dueAt(k) > at-1 {
			t.Fatalf("message %d leaves before %d", k, at)
		}
	})
}

// TestReceiptsAgainstAModel compares the bitsets, spread over consumers and
// merged, with plain maps.
func TestReceiptsAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		consumers := []*receipts{newReceipts(), newReceipts(), newReceipts()}
		type id struct{ key, seq uint64 }
		seen, unflagged := map[id]int{}, map[id]int{}
		for range rapid.IntRange(0, 200).Draw(t, "deliveries") {
			d := id{rapid.Uint64Range(1, 3).Draw(t, "key"), rapid.Uint64Max(150).Draw(t, "seq")}
			flag := rapid.Bool().Draw(t, "redelivered")
			consumers[rapid.IntRange(0, 2).Draw(t, "consumer")].add(d.key, d.seq, flag)
			seen[d]++
			if !flag {
				unflagged[d]++
			}
		}
		all := newReceipts()
		for _, k := range consumers {
			all.merge(k)
		}
		if all.fresh != uint64(len(seen)) {
			t.Fatalf("%d distinct messages, want %d", all.fresh, len(seen))
		}
		var duplicates uint64
		for key, st := range all.streams {
			duplicates += st.duplicates
			for seq := range uint64(200) {
				if all.has(key, seq) != (seen[id{key, seq}] > 0) {
					t.Fatalf("has(%d, %d) is wrong", key, seq)
				}
			}
		}
		// An unflagged delivery after a flagged one is a duplicate at one
		// consumer, but over two of them their order is unknown.
		var least, most uint64
		for d, n := range unflagged {
			least += uint64(n - 1)
			most += uint64(n - 1)
			if seen[d] > n {
				most++
			}
		}
		if duplicates < least || duplicates > most {
			t.Fatalf("%d duplicates, want %d to %d", duplicates, least, most)
		}
	})
}

func TestGaps(t *testing.T) {
	var s bitset
	if s.gaps() != 0 {
		t.Error("an empty set has gaps")
	}
	for _, n := range []uint64{70, 71, 73, 200} {
		s.add(n)
	}
	if got := s.gaps(); got != 200-70+1-4 {
		t.Errorf("%d gaps", got)
	}
}

func TestShare(t *testing.T) {
	for _, tt := range []struct {
		i, n, total int
		want        []int
	}{{0, 1, 3, []int{0, 1, 2}}, {1, 2, 5, []int{1, 3}}, {3, 4, 2, []int{1}}, {0, 4, 1, []int{0}}} {
		got := share(tt.i, tt.n, tt.total)
		if len(got) != len(tt.want) {
			t.Fatalf("share(%d, %d, %d) = %v, want %v", tt.i, tt.n, tt.total, got, tt.want)
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("share(%d, %d, %d) = %v, want %v", tt.i, tt.n, tt.total, got, tt.want)
			}
		}
	}
}

// TestConfirmAccounting walks through confirms that a broker must not send.
func TestConfirmAccounting(t *testing.T) {
	r := testRun(Config{Publishers: 1, Messages: 100, ConfirmWindow: 20})
	p := newPublisher(r, &conn{frameMax: 4096}, 0)
	p.fill(0)
	if p.open != 20 || p.tag != 20 {
		t.Fatalf("%d open of %d, want the window of 20", p.open, p.tag)
	}
	p.confirm(5, false, false, 10)
	p.confirm(3, true, false, 10) // 1 to 3
	if p.open != 16 || p.low != 4 || p.strange != 0 {
		t.Errorf("%d open, low %d, strange %d; want 16, 4, 0", p.open, p.low, p.strange)
	}
	p.confirm(5, false, false, 10)  // again
	p.confirm(2, false, false, 10)  // below what is open
	p.confirm(21, false, false, 10) // never sent
	if p.strange != 3 || p.open != 16 {
		t.Errorf("%d strange confirms, want 3; %d open, want 16", p.strange, p.open)
	}
	p.confirm(0, true, true, 10) // refuse all the rest
	if p.open != 0 || len(p.nacked) != 16 || p.confirmed() != 4 {
		t.Errorf("%d open, %d refused, %d confirmed; want 0, 16, 4", p.open, len(p.nacked), p.confirmed())
	}
	if p.confirmNanos.TotalCount() != 20 {
		t.Errorf("%d latencies, want 20", p.confirmNanos.TotalCount())
	}
}

func testRun(cfg Config) *run {
	cfg.EnsureDefaults()
	return &run{cfg: &cfg, id: 7, names: cfg.queueNames(), fill: newFiller(cfg.SizeBytes), measureTo: math.MaxInt64}
}

// FuzzConsumer feeds arbitrary bytes to the scanner: it must end in an error or
// wait for more, and book no more than the bytes can hold.
func FuzzConsumer(f *testing.F) {
	deliver := appendMethod(nil, 1, basicDeliver, func(e *encoder) {
		e.shortstr("q0")
		e.u64(1)
		e.u8(0)
		e.shortstr("")
		e.shortstr("q")
	})
	message := newTemplate("q", newFiller(40), 4096, true, false).frames
	publish := len(appendMethod(nil, 1, basicPublish, func(e *encoder) { e.u16(0); e.shortstr(""); e.shortstr("q"); e.u8(0) }))
	f.Add(append(bytes.Clone(deliver), message[publish:]...))
	f.Add(appendMethod(nil, 0, connectionBlocked, func(e *encoder) { e.shortstr("low on memory") }))
	f.Add(appendAck(nil, 3, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > readBufSize {
			return
		}
		r := testRun(Config{Consumers: 1, Messages: 1, SizeBytes: 40})
		k := newConsumer(r, &conn{fd: -1, in: make([]byte, readBufSize), frameMax: 4096}, 0)
		k.tags["q0"] = 0
		k.c.w = copy(k.c.in, b)
		err := k.read(1)
		if uint64(len(b)) < k.received*frameOverhead {
			t.Fatalf("%d messages out of %d bytes", k.received, len(b))
		}
		var be *BrokerError
		if err != nil && !errors.Is(err, errMalformed) && !errors.As(err, &be) && len(b) < frameOverhead {
			t.Fatalf("error %v from %d bytes", err, len(b))
		}
	})
}

func FuzzPublisherRead(f *testing.F) {
	f.Add(appendAck(nil, 3, true))
	f.Add(appendAck(appendAck(nil, 1<<63, false), 0, true))
	f.Add(appendMethod(nil, 1, channelClose, func(e *encoder) { e.u16(404); e.shortstr("no"); e.u32(0) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > readBufSize {
			return
		}
		r := testRun(Config{Publishers: 1, Messages: 100, ConfirmWindow: 20, SizeBytes: 24})
		p := newPublisher(r, &conn{fd: -1, in: make([]byte, readBufSize), frameMax: 4096}, 0)
		p.fill(0)
		p.c.w = copy(p.c.in, b)
		_ = p.frames(1)
		if p.open < 0 || p.low > p.tag+1 || p.confirmed() > p.tag {
			t.Fatalf("open %d, low %d, confirmed %d of %d", p.open, p.low, p.confirmed(), p.tag)
		}
	})
}
