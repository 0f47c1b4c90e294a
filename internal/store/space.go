package store

import "github.com/sluicemq/sluice/internal/msg"

// SetLive says that n of the run's entries are not settled. A run counts as wholly
// live until it is said otherwise. Unknown segments are ignored: they are gone.
func (s *Store) SetLive(run Run, n int) {}

// AddDead says that n more of the run's entries have been settled.
func (s *Store) AddDead(run Run, n int) {}

// Candidates are the segments of a shard that want work, most urgent first.
type Candidates struct {
	// Dead have no live entry: an Edit that drops them is all it takes.
	Dead []SegID
	// Measure can't be judged by counts because their records differ in size; see
	// Store.Measure. At most two at a time.
	Measure []SegID
	// Rewrite are groups of segments less than half alive. Each group is one
	// Compact, whose output is about one segment.
	Rewrite [][]SegID
	// Merge are groups of small shared segments of one size, of which there are
	// more than eight. They gain no space, only fewer runs per log, and their
	// output takes as much space as their live entries until they are dropped: not
	// to be done when the disk is nearly full.
	Merge [][]SegID
}

// Candidates looks at the live counts of a shard's segments. Damaged segments are
// only ever Dead.
func (s *Store) Candidates(shard uint32) Candidates { return Candidates{} }

// LiveFunc returns the unsettled offsets of a run: sorted, disjoint, immutable
// ranges. They may reach beyond the run. It is called once per run, by ascending
// (log, lane).
type LiveFunc func(run Run) []msg.Range

// Measure finds out how many bytes a rewrite of the segment would keep, by reading
// the blocks that are neither wholly live nor wholly dead.
func (s *Store) Measure(id SegID, live LiveFunc) (int64, error) { return 0, ErrGone }

// CompactOptions shape one Compact.
type CompactOptions struct {
	// Throttle as in WriterOptions; counts bytes read and written.
	Throttle func(n int) error
}

// Compact writes the live entries of some segments of one shard, merged by (log,
// lane, offset), to new segments. Shared bodies are kept once per output file, as
// long as a surviving entry refers to them. Damage stops it: the inputs stay as they
// are and the *DamageError says what can't be read.
func (s *Store) Compact(inputs []SegID, live LiveFunc, opts CompactOptions) (*Compaction, error) {
	return nil, ErrClosed
}

// Compaction is the result of Compact. It pins its inputs, so that whoever still
// has their runs can read them until Close.
type Compaction struct {
	Inputs  []SegID
	Outputs []SegmentMeta // with runs; none if nothing was live
}

// AddTo adds the exchange of inputs for outputs to an edit.
func (c *Compaction) AddTo(e *Edit) {}

// Close unpins the inputs; call it when the runs have been swapped. Outputs that
// were not installed are removed.
func (c *Compaction) Close() {}
