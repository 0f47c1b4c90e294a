package store

// Store is the open store of a node.
type Store struct{}

type segmentStats struct{}

// Open reads the MANIFEST and the directories of the segments, deletes what the
// MANIFEST does not list, and makes the store ready. No data is scanned. An error
// means that the store cannot be used; in particular a MANIFEST that is damaged
// before its end, or missing where segments are.
func Open(opts Options) (*Store, *Recovery, error) { return nil, nil, ErrClosed }

// Close releases all handles and the cache. Writers and readers must be done.
func (s *Store) Close() error { return nil }

// Install makes an edit durable (all of it or nothing), then effective. Segments
// that it drops are unlinked when their last pin is gone. When it fails with
// anything but ErrFailed, nothing has changed and the edit may be tried again.
func (s *Store) Install(e *Edit) error { return ErrClosed }

// Flushed returns what the shard's last SetFlushed stored.
func (s *Store) Flushed(shard uint32) Flushed { return Flushed{} }

// Setting returns a copy of a setting's value.
func (s *Store) Setting(key string) ([]byte, bool) { return nil, false }

// Segments lists the segments of a shard by ascending id, without their runs.
func (s *Store) Segments(shard uint32) []SegmentMeta { return nil }

// Runs reads the directory of a segment again.
func (s *Store) Runs(id SegID) ([]Run, error) { return nil, ErrGone }

// Pin keeps a segment readable although it may be dropped, until Unpin; false if
// it is gone already.
func (s *Store) Pin(id SegID) bool { return false }

// Unpin undoes one Pin.
func (s *Store) Unpin(id SegID) {}

// Snapshot pins what a shard consists of now.
func (s *Store) Snapshot(shard uint32) *Snapshot { return nil }

// Snapshot is a pinned version of a shard: immutable files, and a checkpoint
// file that is immutable up to its valid length.
type Snapshot struct {
	Segments   []SegmentMeta // without Runs
	Checkpoint CheckpointInfo
	HasCheck   bool
}

// Release unpins the version. Calls after the first do nothing.
func (v *Snapshot) Release() {}

// Metrics returns counters and gauges.
func (s *Store) Metrics() Metrics { return Metrics{} }
