package engine

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/wal"
)

// The scrubber reads what is on the disk, slowly, so that damage is found before a
// consumer meets it, and while there may be a backup.
const (
	scrubPause   = 10 * time.Minute // before each pass
	scrubDefault = 4 << 20          // bytes a second
)

// scrubber reads segments, checkpoints and sealed WAL files over and over.
type scrubber struct {
	n       *Node
	rate    int64 // bytes a second; 0: as fast as it goes
	stop    chan struct{}
	done    chan struct{}
	passes  atomic.Uint64
	bytes   atomic.Uint64
	damages atomic.Uint64
}

// ScrubFigures count what the scrubber has done since the start.
type ScrubFigures struct {
	Passes  uint64 `json:"passes"`
	Bytes   uint64 `json:"bytes"`
	Damages uint64 `json:"damages"` // found, those that were known included
}

// DamageFigures say what is damaged, and how it is looked for.
type DamageFigures struct {
	Incidents []Incident   `json:"incidents"`
	Scrub     ScrubFigures `json:"scrub"`
}

// Damage returns what is in quarantine, and what the scrubber has done.
func (n *Node) Damage() DamageFigures {
	f := DamageFigures{Incidents: n.aside.incidents()}
	if s := n.scrub; s != nil {
		f.Scrub = ScrubFigures{s.passes.Load(), s.bytes.Load(), s.damages.Load()}
	}
	return f
}

// incidents returns all, by name.
func (q *quarantine) incidents() []Incident {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := make([]Incident, 0, len(q.list))
	for _, in := range q.list {
		list = append(list, *in)
	}
	slices.SortFunc(list, func(a, b Incident) int { return strings.Compare(a.name(), b.name()) })
	return list
}

func newScrubber(n *Node, rate int64) *scrubber {
	return &scrubber{n: n, rate: rate, stop: make(chan struct{}), done: make(chan struct{})}
}

func (s *scrubber) run() {
	defer close(s.done)
	for s.sleep(scrubPause) {
		if err := s.pass(); err != nil && !errors.Is(err, ErrStopped) {
			s.n.keeper.log.Warn("scrubbing", "err", err)
		}
	}
}

func (s *scrubber) close() {
	close(s.stop)
	<-s.done
}

func (s *scrubber) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.stop:
		return false
	}
}

// read is told of each read of n bytes.
func (s *scrubber) read(n int) error {
	s.bytes.Add(uint64(n))
	if s.rate > 0 && !s.sleep(time.Duration(n)*time.Second/time.Duration(s.rate)) {
		return ErrStopped
	}
	return nil
}

// pass reads everything once.
func (s *scrubber) pass() error {
	for _, sh := range s.n.keeper.all {
		list, err := s.n.store.ScrubCheckpoint(sh.ID(), s.read)
		if err != nil {
			return err
		}
		for _, d := range list {
			s.damages.Add(1)
			in := ofStore(d)
			in.Unknown = "the checkpoint in use; what is lost is known when it is loaded at the next start"
			if err := s.n.aside.add(in); err != nil {
				return err
			}
		}
	}
	for _, q := range s.n.queues {
		for _, m := range s.n.store.Segments(q.ID()) {
			if err := s.segment(q, m.ID); err != nil {
				return err
			}
		}
		if err := s.tail(q); err != nil {
			return err
		}
	}
	s.passes.Add(1)
	return nil
}

func (s *scrubber) segment(q *Shard, id store.SegID) error {
	list, err := s.n.store.ScrubSegment(id, s.read)
	if errors.Is(err, store.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range list {
		s.damages.Add(1)
		if err := s.n.keeper.damaged(q, d); err != nil {
			return err
		}
	}
	return nil
}

// tail reads the submissions of sealed WAL files that something unsettled may lie in.
func (s *scrubber) tail(q *Shard) error {
	sealed := s.n.wal.Sealed()
	if len(sealed) == 0 {
		return nil
	}
	bad := map[uint64]*wal.Damage{}
	for _, x := range q.m.tail.upTo(sealed[len(sealed)-1].Seq) {
		if err := s.read(int(x.pos.Len)); err != nil {
			return err
		}
		c, err := q.m.readBack(x.pos)
		if c != nil {
			c.Release()
		}
		var d *wal.Damage
		if errors.As(err, &d) {
			s.damages.Add(1)
			bad[x.sub] = d
		} else if err != nil {
			return err
		}
	}
	if len(bad) == 0 {
		return nil
	}
	var lost []badList
	if !q.Call(func() { lost = q.m.inBadSubs(bad) }) {
		return ErrStopped
	}
	for i := range lost {
		if _, err := lost[i].giveUp(q, nil); err != nil {
			return err
		}
	}
	return nil
}

type tailSub struct {
	sub uint64
	pos wal.Position
}

// upTo lists the submissions of WAL files up to seq that notes refer to.
func (t *tail) upTo(seq uint64) (list []tailSub) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for i, x := range t.subs {
		if x.pos.Seq > 0 && x.pos.Seq <= seq && x.live > 0 {
			list = append(list, tailSub{t.first + uint64(i), x.pos})
		}
	}
	return list
}

// inBadSubs lists what is unsettled in some submissions. It looks at all lanes, which is
// for damage only.
func (m *Machine) inBadSubs(bad map[uint64]*wal.Damage) (out []badList) {
	for k, l := range m.places.lanes {
		ln, ok := m.ledger.Lane(k.log, k.lane)
		if !ok {
			continue
		}
		b := badList{log: k.log, lane: k.lane}
		for _, n := range l.notes {
			d := bad[n.sub]
			if d == nil {
				continue
			}
			for _, r := range ln.AppendUnsettled(nil, msg.Range{First: n.first, Count: uint64(n.count)}) {
				b.add(r.First, r.First+r.Count-1, ofWAL(m.id, d))
			}
		}
		if len(b.list) > 0 {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(a, b badList) int {
		return cmp.Or(cmp.Compare(a.log, b.log), cmp.Compare(a.lane, b.lane))
	})
	return out
}
