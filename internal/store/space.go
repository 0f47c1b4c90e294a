package store

import (
	"cmp"
	"maps"
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
	// Rewrite are groups of segments less than half alive. Each group, of segments of
	// one set, is one Compact, whose output is about one segment.
	Rewrite [][]SegID
	// Measure can't be judged by counts because their records differ in size; see
	// Store.Measure. At most two at a time.
	Measure []SegID
	// Merge are groups of shared segments of about one size, of which there are too
	// many. They gain no space, only fewer runs per log, and their
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
	case a.rebuild:
		return rewrite, a.est
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
	slices.SortStableFunc(segs, func(a, b *segment) int { return cmp.Compare(a.meta.Set, b.meta.Set) })
	var c Candidates
	var shared []*segment
	var last *segment // in the last group of c.Rewrite
	var room int64
	for _, g := range segs {
		v, est := g.acct.judge(g.meta.stats.total)
		switch v {
		case dead:
			c.Dead = append(c.Dead, g.meta.ID)
			continue
		case rewrite:
			if last == nil || last.meta.Set != g.meta.Set || last.meta.Own || g.meta.Own || est > room {
				c.Rewrite = append(c.Rewrite, nil)
				room = s.opts.SegmentBytes
			}
			n := len(c.Rewrite) - 1
			c.Rewrite[n] = append(c.Rewrite[n], g.meta.ID)
			last, room = g, room-est
		case measure:
			if len(c.Measure) < measureAtMost {
				c.Measure = append(c.Measure, g.meta.ID)
			}
		}
		if !g.meta.Own && !g.acct.isDamaged() {
			shared = append(shared, g)
		}
	}
	c.Merge = mergeGroups(shared)
	return c
}

// Forgive lets a damaged segment be rewritten and merged again: the caller has settled
// what can't be read of it.
func (s *Store) Forgive(id SegID) {
	if g := s.lookup(id); g != nil {
		g.acct.mu.Lock()
		g.acct.damaged = false
		g.acct.mu.Unlock()
	}
}

// estimate returns about how many bytes are live.
func (a *account) estimate() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.est
}

func (a *account) isDamaged() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.damaged
}

// segmentSet is what is shared of a set.
type segmentSet struct {
	id    SegID
	bytes int64
	tier  int
	segs  []SegID
}

// segmentSets returns the sets of shared segments, oldest first.
func segmentSets(segs []*segment) []*segmentSet {
	byID := map[SegID]*segmentSet{}
	for _, g := range segs {
		x := byID[g.meta.Set]
		if x == nil {
			x = &segmentSet{id: g.meta.Set}
			byID[x.id] = x
		}
		x.bytes += g.meta.Bytes
		x.segs = append(x.segs, g.meta.ID)
	}
	sets := slices.SortedFunc(maps.Values(byID), func(a, b *segmentSet) int { return cmp.Compare(a.id, b.id) })
	for _, x := range sets {
		for limit := int64(tierBase); x.bytes > limit; limit *= tierFactor {
			x.tier++
		}
	}
	return sets
}

// mergeGroups finds tiers with too many sets. Only sets that follow each other by age
// are merged, so that their runs do: smaller ones in between come along, larger ones
// separate.
func mergeGroups(segs []*segment) [][]SegID {
	sets := segmentSets(segs)
	var groups [][]SegID
	for tier := range tiers {
		for i := 0; i < len(sets); i++ {
			n := 0 // of this tier
			from := i
			for ; i < len(sets) && sets[i].tier <= tier && i-from < mergeAtMost; i++ {
				if sets[i].tier == tier {
					n++
				}
			}
			if n > mergeOver {
				var group []SegID
				for _, x := range sets[from:i] {
					group = append(group, x.segs...)
				}
				groups = append(groups, group)
			}
		}
	}
	return groups
}

// Live is what a compaction is told about a run of its inputs.
type Live struct {
	// Ranges are the unsettled offsets: sorted, disjoint, immutable. They may reach
	// beyond the run.
	Ranges []msg.Range
	// Follows says that, among all runs of the log's lane, the one before this one
	// belongs to an input too. Only then the two may become one run: if another
	// segment had offsets in between, runs of the log would overlap.
	Follows bool
}

// LiveFunc tells about a run. It is called once per run, by ascending (log, lane,
// first offset).
type LiveFunc func(run Run) Live

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
