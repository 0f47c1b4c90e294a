package store

import "github.com/sluicemq/sluice/internal/msg"

// WriterOptions shape one flush.
type WriterOptions struct {
	// Throttle, if not nil, is called after about every MiB written, with the
	// number of bytes; it may sleep. An error stops the writer with it.
	Throttle func(n int) error
}

// SharedKey names a body within one flush, for example by raft index and position.
type SharedKey struct{ Hi, Lo uint64 }

// Writer turns sorted entries into segments of one shard. Runs of OwnRunBytes or
// more go to files of their own, everything else shares files; a new one is begun
// when SegmentBytes are reached. Nothing is visible before Install. After an error
// every call returns it; the files are removed by Abort.
type Writer struct{}

// NewWriter begins a flush for a shard.
func (s *Store) NewWriter(shard uint32, opts WriterOptions) *Writer { return nil }

// StartRun announces a run: bytes is about what its entries will take (a shared
// one 32) and decides whether the run gets a file of its own. Optional: without it
// the run shares a file.
func (w *Writer) StartRun(log msg.LogID, lane uint8, bytes int64) error { return ErrClosed }

// Add appends an entry: one record in the encoding of package msg. Entries come by
// strictly ascending (log, lane, offset). record is copied.
func (w *Writer) Add(log msg.LogID, lane uint8, offset msg.Offset, record []byte) error {
	return ErrClosed
}

// AddShared appends an entry whose record other logs have too: it is stored once
// per file for each key, and every entry with the key refers to it. record may be
// nil if HasShared(key).
func (w *Writer) AddShared(log msg.LogID, lane uint8, offset msg.Offset, key SharedKey, record []byte) error {
	return ErrClosed
}

// HasShared says whether the file that the current run goes to has the key's body.
func (w *Writer) HasShared(key SharedKey) bool { return false }

// Finish syncs the files and returns their descriptions, ready to be installed; no
// files for no entries. If the caller decides otherwise it calls Store.Discard.
func (w *Writer) Finish() ([]SegmentMeta, error) { return nil, ErrClosed }

// Abort removes what was written. It does nothing after Finish succeeded.
func (w *Writer) Abort() {}

// Discard removes segments that were finished and will not be installed.
func (s *Store) Discard(metas []SegmentMeta) {}
