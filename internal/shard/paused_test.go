package shard

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/wal"
)

// pausedBatches is how far the paused follower falls behind.
const pausedBatches = 100_000

// fileLog keeps payloads in a file only: whoever wants one reads it by its position.
type fileLog struct {
	t     *testing.T
	f     *os.File
	at    int64
	queue []wal.Append
}

func newFileLog(t *testing.T, name string) *fileLog {
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &fileLog{t: t, f: f}
}

func (l *fileLog) Submit(a ...wal.Append) { l.queue = append(l.queue, a...) }
func (l *fileLog) MaxPayload() int        { return 1 << 20 }

func (l *fileLog) complete() {
	for len(l.queue) > 0 {
		a := l.queue[0]
		l.queue[0] = wal.Append{}
		l.queue = l.queue[1:]
		pos := make([]wal.Position, len(a.Records))
		for i, r := range a.Records {
			from := l.at
			for _, v := range r.Payload {
				if _, err := l.f.WriteAt(v, l.at); err != nil {
					l.t.Fatal(err)
				}
				l.at += int64(len(v))
			}
			pos[i] = wal.Position{Seq: 1, Off: uint32(from), Len: uint32(l.at - from)}
		}
		a.Done(nil, pos)
	}
	l.queue = nil
}

func (l *fileLog) read(b Body) []byte {
	out := make([]byte, b.Pos.Len)
	if _, err := l.f.ReadAt(out, int64(b.Pos.Off)); err != nil {
		l.t.Fatal(err)
	}
	if !msg.VerifyBatch(out, b.CRC) {
		l.t.Fatal("another payload than the entry's is at its position")
	}
	return out
}

// sumMachine is a list of which only the length and a checksum that depends on the
// order are kept.
type sumMachine struct {
	listMachine
	n   int
	sum uint32
}

func (m *sumMachine) Apply(c *Command) Result {
	var op msg.Op
	_ = c.Sub.Ops(&op, func(_ int, op *msg.Op) bool {
		m.n++
		m.sum = crc32.Update(m.sum, crc32.IEEETable, op.Data)
		return true
	})
	return Result{}
}

// pausedShard is three voters of which the third can be paused: it gets nothing and
// does not tick.
type pausedShard struct {
	t     *testing.T
	now   time.Time
	logs  [3]*fileLog
	cores [3]*Core
	ms    [3]*sumMachine
	posts [3][]func()
	net   []pausedPacket
	held  []pausedPacket // on their way to the third
	stop  bool           // the third is paused

	mostOut, fromLog int
}

type pausedPacket struct {
	from int
	out  Outgoing
}

type pausedNet struct {
	s    *pausedShard
	from int
}

func (n pausedNet) Send(_ uint32, out []Outgoing) {
	for _, o := range out {
		switch p := (pausedPacket{n.from, o}); {
		case o.Msg.GetTo() != 3:
			n.s.net = append(n.s.net, p)
		case !n.s.stop:
			n.s.held = append(n.s.held, p)
		}
	}
}

func (pausedNet) Forward(uint32, uint64, []msg.Part) {}

func (pausedNet) Missing(uint32, uint64, uint64, uint64) {}

func newPausedShard(t *testing.T) *pausedShard {
	s := &pausedShard{t: t, now: time.Unix(1_700_000_000, 0)}
	for i := range s.cores {
		s.logs[i], s.ms[i] = newFileLog(t, "log"), &sumMachine{}
		core, err := NewCore(Config{
			ID: 7, Incarnation: 1, Node: uint64(i + 1), Voters: []uint64{1, 2, 3}, Link: LinkID(uint32(i+1), 1),
			Log: s.logs[i], Machine: s.ms[i], Sender: pausedNet{s, i}, Now: func() time.Time { return s.now },
			Post: func(f func()) { s.posts[i] = append(s.posts[i], f) },
		}, Restored{})
		if err != nil {
			t.Fatal(err)
		}
		s.cores[i] = core
	}
	return s
}

// round lets everything that is on its way arrive; third says whether what is held for
// the third voter does too.
func (s *pausedShard) round(third bool) {
	for i := range s.cores {
		if i == 2 && s.stop {
			continue
		}
		s.logs[i].complete()
		posts := s.posts[i]
		s.posts[i] = nil
		for _, f := range posts {
			f()
		}
		s.cores[i].Turn()
		if err := s.cores[i].Failed(); err != nil {
			s.t.Fatal(err)
		}
	}
	net := s.net
	s.net = nil
	if third {
		s.count()
		net = append(net, s.held...)
		s.held = nil
	}
	for _, p := range net {
		s.arrive(p)
	}
}

// count looks at the entries that are on their way to the third.
func (s *pausedShard) count() {
	out := 0
	for _, p := range s.held {
		switch n := len(p.out.Msg.GetEntries()); {
		case n > 1:
			s.t.Fatalf("%d entries in a message", n)
		case n == 1:
			out++
		}
	}
	s.mostOut = max(s.mostOut, out)
}

func (s *pausedShard) arrive(p pausedPacket) {
	for i := range p.out.Bodies {
		if b := &p.out.Bodies[i]; b.Bytes == nil && b.Pos.Len > 0 {
			b.Bytes = s.logs[p.from].read(*b)
			s.fromLog++
		}
	}
	s.cores[p.out.Msg.GetTo()-1].Receive(p.out.Msg, p.out.Bodies)
}

func (s *pausedShard) tick() {
	s.now = s.now.Add(TickEvery)
	for i, c := range s.cores {
		if i != 2 || !s.stop {
			c.Tick()
		}
	}
}

// put orders n batches of one small submission each.
func (s *pausedShard) put(n int) {
	leader := s.cores[0]
	for range n {
		want := s.ms[0].n + 1
		var b msg.Builder
		b.Meta(binary.LittleEndian.AppendUint64(nil, uint64(want)))
		leader.Submit(Sub{Chunk: b.Finish()})
		leader.Turn()
		for k := 0; s.ms[0].n < want; k++ {
			if k > 100 {
				s.t.Fatal("no progress")
			}
			s.round(!s.stop)
		}
		if want%100 == 0 {
			s.tick()
		}
	}
}

// heap is what lives, in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestPausedFollower: a follower misses 100,000 batches. What the others hold for it
// must be a few words an entry, whatever the payloads are, and when it goes on it gets
// the payloads out of the leader's log, one entry a message, a bounded number at a
// time.
func TestPausedFollower(t *testing.T) {
	s := newPausedShard(t)
	for k := 0; !s.cores[0].Leading(); k++ {
		if k > 1000 {
			t.Fatal("no leader")
		}
		if k%20 == 0 { // only the first one's time passes: it is elected
			s.now = s.now.Add(TickEvery)
			s.cores[0].Tick()
		}
		s.round(true)
	}
	s.put(2000)
	for range 20 {
		s.round(true)
	}
	if s.ms[2].n != 2000 {
		t.Fatalf("the third has %d of 2000", s.ms[2].n)
	}
	const perEntryMax = 200 // bytes, on each of the two that go on
	s.stop = true
	base := heap()
	for _, part := range []int{1, 2} {
		s.put(pausedBatches / 2)
		entries := int64(part * pausedBatches / 2)
		grown := (heap() - base) / entries / 2
		t.Logf("%d batches behind: %d bytes an entry", entries, grown)
		if grown > perEntryMax {
			t.Fatalf("%d bytes an entry after %d batches", grown, entries)
		}
	}
	s.catchUp(perEntryMax)
	if s.ms[1].sum != s.ms[0].sum || s.ms[2].sum != s.ms[0].sum || s.ms[2].n != 2000+pausedBatches {
		t.Fatalf("lists differ: %d %x, %d %x, %d %x", s.ms[0].n, s.ms[0].sum, s.ms[1].n, s.ms[1].sum, s.ms[2].n, s.ms[2].sum)
	}
	if s.fromLog < pausedBatches {
		t.Fatalf("only %d payloads came out of the log", s.fromLog)
	}
}

func (s *pausedShard) catchUp(perEntryMax int64) {
	s.stop, s.mostOut = false, 0
	start, rounds, peak := heap(), 0, int64(0)
	for ; s.ms[2].n < s.ms[0].n; rounds++ {
		if rounds > 10*pausedBatches {
			s.t.Fatalf("stuck at %d of %d", s.ms[2].n, s.ms[0].n)
		}
		if rounds%200 == 0 {
			s.tick()
		}
		if rounds%1500 == 0 {
			peak = max(peak, heap()-start)
		}
		s.round(true)
	}
	for range 20 {
		s.round(true)
	}
	s.t.Logf("caught up in %d rounds, at most %d entries on their way, %d bytes an entry on the third", rounds, s.mostOut, peak/pausedBatches)
	if peak > pausedBatches*perEntryMax {
		s.t.Fatalf("catching up took %d bytes", peak)
	}
	if limit := 32; s.mostOut > limit || s.mostOut < limit/2 {
		s.t.Fatalf("%d entries on their way, at most %d should be", s.mostOut, limit)
	}
}
