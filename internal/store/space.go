package store

import (
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
)

const (
	// mergeOver is how many sets of one tier there may be before they are merged.
	mergeOver = 8
	// mergeAtMost bounds one merge, and with it the space it needs.
	mergeAtMost = 16
	// tierBase and tierFactor: sets of up to 1 MiB, 8 MiB, 64 MiB, 512 MiB make the
	// tiers. Larger ones are not merged: by then a log has few runs for its bytes.
	tierBase   = 1 << 20
	tierFactor = 8
	tiers      = 4
	// measureAtMost is how many segments are to be measured before the candidates
	// are looked at again.
	measureAtMost = 2
)

// SetLive says that n of the run's entries are not settled. A run counts as wholly
// live until it is said otherwise. Unknown segments are ignored: they are gone.
func (s *Store) SetLive(run Run, n int) {
	if g := s.lookup(run.Seg); g != nil {
		g.acct.set(run, n, false, &g.meta.stats)
	}
}

// AddDead says that n more of the run's entries have been settled.
func (s *Store) AddDead(run Run, n int) {
	if g := s.lookup(run.Seg); g != nil {
		g.acct.set(run, -n, true, &g.meta.stats)
	}
}

func (s *Store) lookup(id SegID) *segment {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.segs[id]
}

// Candidates are the segments of a shard that want work. The lists may overlap: do
// one thing, install it, and ask again.
type Candidates struct {
	// Dead have no live entry: an Edit that drops them is all it takes.
	Dead []SegID
	// Rewrite are groups of segments less than half alive. Each group is one
	// Compact, whose output is about one segment.
	Rewrite [][]SegID
	// Measure can't be judged by counts because their records differ in size; see
	// Store.Measure. At most two at a time.
	Measure []SegID
	// Merge are groups of small shared segments of one size, of which there are
	// more than eight. They gain no space, only fewer runs per log, and their
	// output takes as much space as their live entries until they are dropped: not
	// to be done when the disk is nearly full.
	Merge [][]SegID
}

// verdict is what is to be done about one segment by itself.
type verdict uint8

const (
	keep verdict = iota
	dead
	rewrite
	measure
)

// judge decides by the live counts.
func (a *account) judge(total int64) (v verdict, est int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.dead >= a.entries:
		return dead, 0
	case a.damaged:
		return keep, a.est
	case 2*a.hi < total:
		return rewrite, a.est
	case 2*a.lo >= total:
		return keep, a.est
	}
	// Sizes differ too much to know. Deaths since the last time bound how often a
	// segment is measured.
	since := a.dead - a.deadAt
	if 2*a.est < total && !a.measured || since > a.entries/8 {
		return measure, a.est
	}
	return keep, a.est
}

// Candidates looks at the live counts of a shard's segments. Damaged segments are
// only ever Dead.
func (s *Store) Candidates(shard uint32) Candidates {
	s.mu.RLock()
	segs := s.listed(shard)
	s.mu.RUnlock()
	var c Candidates
	var group []SegID
	var room int64
	shared := segs[:0:0]
	for _, g := range segs {
		v, est := g.acct.judge(g.meta.stats.total)
		switch v {
		case dead:
			c.Dead = append(c.Dead, g.meta.ID)
			continue
		case rewrite:
			if len(group) > 0 && est > room {
				c.Rewrite = append(c.Rewrite, group)
				group = nil
			}
			if len(group) == 0 {
				room = s.opts.SegmentBytes
			}
			group = append(group, g.meta.ID)
			room -= est
		case measure:
			if len(c.Measure) < measureAtMost {
				c.Measure = append(c.Measure, g.meta.ID)
			}
		}
		if !g.meta.Own && !g.acct.isDamaged() {
			shared = append(shared, g)
		}
	}
	if len(group) > 0 {
		c.Rewrite = append(c.Rewrite, group)
	}
	c.Merge = mergeGroups(shared)
	return c
}

func (a *account) isDamaged() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.damaged
}

// mergeGroups finds tiers with too many sets; segs ascend by id.
func mergeGroups(segs []*segment) [][]SegID {
	type set struct {
		id    SegID
		bytes int64
		segs  []SegID
	}
	byID := map[SegID]*set{}
	var sets []*set // oldest first
	for _, g := range segs {
		x := byID[g.meta.Set]
		if x == nil {
			x = &set{id: g.meta.Set}
			byID[x.id] = x
			sets = append(sets, x)
		}
		x.bytes += g.meta.Bytes
		x.segs = append(x.segs, g.meta.ID)
	}
	var groups [][]SegID
	for tier, limit, above := 0, int64(tierBase), int64(-1); tier < tiers; tier++ {
		var in []*set
		for _, x := range sets {
			if x.bytes > above && x.bytes <= limit {
				in = append(in, x)
			}
		}
		if len(in) > mergeOver {
			var group []SegID
			for _, x := range in[:min(len(in), mergeAtMost)] {
				group = append(group, x.segs...)
			}
			groups = append(groups, group)
		}
		above, limit = limit, limit*tierFactor
	}
	return groups
}

// LiveFunc returns the unsettled offsets of a run: sorted, disjoint, immutable
// ranges. They may reach beyond the run. It is called once per run, by ascending
// (log, lane).
type LiveFunc func(run Run) []msg.Range

// liveSet walks the live ranges of a run along with its ascending offsets.
type liveSet struct{ ranges []msg.Range }

// has says whether off is live; off must not be less than in an earlier call.
func (l *liveSet) has(off msg.Offset) bool {
	for len(l.ranges) > 0 && off-l.ranges[0].First >= l.ranges[0].Count && off >= l.ranges[0].First {
		l.ranges = l.ranges[1:]
	}
	return len(l.ranges) > 0 && off >= l.ranges[0].First
}

// rangeEnd returns the last offset of a range that is not empty.
func rangeEnd(r msg.Range) msg.Offset {
	if end := r.First + (r.Count - 1); end >= r.First {
		return end
	}
	return maxOffset // it reaches beyond all offsets
}

// clip returns those of the ranges that have offsets between first and last.
func clip(ranges []msg.Range, first, last msg.Offset) []msg.Range {
	i, _ := slices.BinarySearchFunc(ranges, first, func(r msg.Range, f msg.Offset) int {
		if r.Count == 0 || rangeEnd(r) < f {
			return -1
		}
		return 1
	})
	j := i
	for j < len(ranges) && ranges[j].First <= last {
		j++
	}
	return ranges[i:j]
}

// liveCount returns at most how many of a run's entries are live.
func liveCount(run Run, ranges []msg.Range) int64 {
	n := uint64(0)
	for _, r := range ranges {
		if r.Count == 0 {
			continue
		}
		if from, to := max(r.First, run.First), min(rangeEnd(r), run.Last); from <= to {
			n += to - from + 1
		}
	}
	return int64(min(n, uint64(run.Count)))
}
