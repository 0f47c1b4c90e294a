package store

// Edit is a list of changes to the MANIFEST that happen together. The zero value
// is empty and ready for use.
type Edit struct{}

// AddSegment lists a segment that a Writer or Compact finished.
func (e *Edit) AddSegment(m SegmentMeta) {}

// DropSegment takes a segment off the list.
func (e *Edit) DropSegment(id SegID) {}

// SetFlushed records up to where a shard has been flushed.
func (e *Edit) SetFlushed(shard uint32, f Flushed) {}

// Set stores a setting of the node; a nil value deletes it. Key and value are
// copied.
func (e *Edit) Set(key string, value []byte) {}
