package store

// BeginCheckpoint starts the next delta of a shard's checkpoint. One at a time per
// shard.
func (s *Store) BeginCheckpoint(shard uint32) (*CheckpointWriter, error) { return nil, ErrClosed }

// CheckpointWriter writes one delta: the keys that changed since the last one.
type CheckpointWriter struct{}

// Put stores the value of a key; nil deletes the key. A later Put of the same key
// wins. Both are copied.
func (c *CheckpointWriter) Put(key, value []byte) error { return ErrClosed }

// Commit syncs the delta and makes it, with index and extra, the shard's
// checkpoint, in one edit of the MANIFEST; more holds other changes for the same
// edit and may be nil. When the deltas outweigh the base, it then writes a new base,
// which takes as long as reading and writing the live keys.
func (c *CheckpointWriter) Commit(index uint64, extra []byte, more *Edit) error { return ErrClosed }

// Abort gives up the delta. It does nothing after Commit.
func (c *CheckpointWriter) Abort() {}

// Checkpoint returns the shard's last committed checkpoint, false if there is none.
func (s *Store) Checkpoint(shard uint32) (CheckpointInfo, bool) { return CheckpointInfo{}, false }

// LoadCheckpoint calls fn once for each live key of the shard's checkpoint, in no
// particular order, with slices that are valid during the call. It stops at the
// first error of fn and returns it. A *DamageError means that the checkpoint can't
// be used.
func (s *Store) LoadCheckpoint(shard uint32, fn func(key, value []byte) error) error {
	return ErrClosed
}
