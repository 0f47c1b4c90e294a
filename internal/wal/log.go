package wal

// Log is the open write-ahead log. All methods are safe for concurrent use.
type Log struct{}

// Open recovers the log in opts.Dir, cuts a torn tail, and makes it ready for
// appends. Damage does not fail it: it is in Recovery.Damages, and the caller
// decides. An error means that the log cannot be used.
func Open(opts Options) (*Log, *Recovery, error) { return nil, nil, ErrClosed }

// Replay calls fn for each recovered entry of a shard in order of its index.
// Payloads are read for indexes >= from, one at a time. Several shards may be
// replayed concurrently. It stops at the first error of fn and returns it.
func (r *Recovery) Replay(shard uint32, from uint64, fn func(Entry) error) error { return ErrClosed }

// Damaged tells whether anything confirmed may be missing.
func (r *Recovery) Damaged() bool { return len(r.Damages) > 0 }

// Submit queues appends, in this order and without other submissions between
// them. It never waits for the disk; what may be outstanding is bounded by the
// callers. Every Done is called eventually, also after Close and after errors.
func (l *Log) Submit(appends ...Append) {}

// MaxPayload is the largest payload of a record in bytes.
func (l *Log) MaxPayload() int { return 0 }

// ReadAt reads len(buf) bytes of the payload at pos, beginning off bytes into
// it. ErrGone if the file was recycled.
func (l *Log) ReadAt(pos Position, off int, buf []byte) error { return ErrGone }

// Pin keeps a file from being recycled until Unpin; false if it is gone.
func (l *Log) Pin(seq uint64) bool { return false }

// Unpin undoes one Pin.
func (l *Log) Unpin(seq uint64) {}

// Sealed lists the files that are closed for writing and not released, oldest
// first.
func (l *Log) Sealed() []SealedFile { return nil }

// Release says that the caller's conditions for recycling a sealed file hold.
// Files leave in order: a released one waits for older ones and for pins.
func (l *Log) Release(seq uint64) {}

// Err returns the error that failed the log, or nil.
func (l *Log) Err() error { return nil }

// Metrics returns counters and gauges.
func (l *Log) Metrics() Metrics { return Metrics{} }

// Close completes everything submitted, seals and syncs the last file, and
// stops the log's goroutines.
func (l *Log) Close() error { return nil }
