package wal

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/vfs"
)

// Bounds and defaults of Options.
const (
	defaultFileSize = 64 << 20
	minFileSize     = 32 << 10
	maxFileSize     = 1 << 30
	defaultIdleSeal = 5 * time.Millisecond
	defaultMaxSpare = 2
	// lowRetry is how often making a file is tried while there is no space for one.
	lowRetry = 500 * time.Millisecond
)

// Log is the open write-ahead log. All methods are safe for concurrent use.
type Log struct {
	opts  Options
	files files
	w     writer // owned by the writer goroutine

	mu     sync.Mutex // a leaf
	queue  []Append   // guarded by mu
	closed bool       // guarded by mu
	failed error      // guarded by mu; set once

	wake     chan struct{} // the queue has something, or closed was set
	kicked   chan struct{} // there is maintenance to do
	needFile chan struct{} // the writer waits for a spare; answered on prepared
	prepared chan error
	low      atomic.Bool // the last file could not be made for want of space
	stop     chan struct{}
	writing  sync.WaitGroup
	tending  sync.WaitGroup

	records, groups, syncs, bytes atomic.Uint64
}

func (o Options) withDefaults() (Options, error) {
	if o.FileSize == 0 {
		o.FileSize = defaultFileSize
	}
	if o.IdleSeal == 0 {
		o.IdleSeal = defaultIdleSeal
	}
	if o.MaxSpare == 0 {
		o.MaxSpare = defaultMaxSpare
	}
	if o.VerifyPayload == nil {
		o.VerifyPayload = verifyCRC32C
	}
	o.inline = o.inline || o.Stepped
	switch {
	case o.FS == nil || o.Dir == "":
		return o, fmt.Errorf("%w: no file system or directory", ErrInvalid)
	case o.FileSize < minFileSize || o.FileSize > maxFileSize || o.FileSize%blockSize != 0:
		return o, fmt.Errorf("%w: file size %d", ErrInvalid, o.FileSize)
	case o.IdleSeal < 0 || o.MaxSpare < 0 || o.Reserve < 0:
		return o, fmt.Errorf("%w: negative IdleSeal, MaxSpare or Reserve", ErrInvalid)
	}
	return o, nil
}

// maxPayload is what fits besides the largest header and a final group.
func maxPayload(fileSize int64) int64 {
	room := fileSize - maxHeader(fileSize) - sectorSize // a multiple of sectorSize
	return room - groupHeaderLen - recordHeaderLen
}

// MaxPayload is the largest payload of a record in bytes.
func (l *Log) MaxPayload() int { return int(maxPayload(l.opts.FileSize)) }

// Submit queues appends, in this order and without other submissions between
// them. It never waits for the disk; what may be outstanding is bounded by the
// callers. Every Done is called eventually, also after errors and Close.
func (l *Log) Submit(appends ...Append) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		for i := range appends {
			if done := appends[i].Done; done != nil {
				done(ErrClosed, nil)
			}
		}
		return
	}
	l.queue = append(l.queue, appends...)
	l.mu.Unlock()
	signal(l.wake)
}

// signal wakes whoever receives from a channel of capacity 1.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// take exchanges the queue for an empty one.
func (l *Log) take(empty []Append) (batch []Append, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch, l.queue = l.queue, empty
	return batch, l.closed
}

// run is the writer goroutine.
func (l *Log) run() {
	defer l.writing.Done()
	timer := time.NewTimer(l.opts.IdleSeal)
	defer timer.Stop()
	var spare []Append
	for {
		if l.opts.inline {
			_ = l.tendOnce() // MaintenanceFailed has it
		}
		batch, closed := l.take(spare[:0])
		if len(batch) > 0 {
			l.w.process(batch)
			clear(batch) // drop what the appends refer to
			spare = batch
			// Whoever was woken by the answers goes first: on this thread it can, while
			// the next write would keep the thread until another one has woken up.
			runtime.Gosched()
			continue
		}
		spare = batch
		if closed {
			l.w.close()
			return
		}
		var idle <-chan time.Time
		if l.w.sealDue() {
			timer.Reset(l.opts.IdleSeal)
			idle = timer.C
		}
		select {
		case <-l.wake:
		case <-idle:
			l.w.idle()
		}
	}
}

// Step does the maintenance that is due and writes one round of what was submitted: for
// the owner of a log that is Stepped. It reports whether there was a round.
func (l *Log) Step() bool {
	_ = l.tendOnce() // MaintenanceFailed has it
	batch, _ := l.take(nil)
	if len(batch) > 0 {
		l.w.process(batch)
	}
	return len(batch) > 0
}

// Idle writes the sealing group that is due, as a log that isn't Stepped does after
// Options.IdleSeal.
func (l *Log) Idle() { l.w.idle() }

// tend is the maintenance goroutine.
func (l *Log) tend() {
	defer l.tending.Done()
	retry := time.NewTimer(lowRetry)
	defer retry.Stop()
	for {
		select {
		case <-l.kicked:
			_ = l.tendOnce() // MaintenanceFailed has it
		case <-l.needFile:
			l.prepared <- l.tendOnce()
		case <-retry.C:
			_ = l.tendOnce()
		case <-l.stop:
			return
		}
		if l.low.Load() {
			retry.Reset(lowRetry)
		}
	}
}

// tendOnce recycles what was released and makes a spare if there are too few; further
// ones are for the next time. Its result is about the spare.
func (l *Log) tendOnce() error {
	rerr := l.files.recycle()
	var perr error
	if !l.files.enough() {
		perr = l.files.prepare()
	}
	if hook := l.opts.Events.MaintenanceFailed; hook != nil {
		for _, err := range []error{rerr, perr} {
			if err != nil {
				hook(err)
			}
		}
	}
	switch {
	case vfs.IsNoSpace(perr):
		l.setLow(true)
	case perr != nil:
	case l.files.enough():
		l.setLow(false)
	default:
		l.kick()
	}
	return perr
}

func (l *Log) setLow(yes bool) {
	if hook := l.opts.Events.Low; l.low.Swap(yes) != yes && hook != nil {
		hook(yes)
	}
}

// kick asks for maintenance.
func (l *Log) kick() {
	if l.opts.inline {
		signal(l.wake)
		return
	}
	signal(l.kicked)
}

// spare returns the path of a zero-filled file, waiting for one to be made if there are
// none besides the reserve. That is used when no file can be made.
func (l *Log) spare() (string, error) {
	if l.files.enough() {
		return l.files.takeSpare(), nil
	}
	var err error
	if l.opts.inline {
		err = l.tendOnce()
	} else {
		l.needFile <- struct{}{}
		err = <-l.prepared
	}
	if err != nil && !vfs.IsNoSpace(err) {
		return "", err
	}
	if s := l.files.takeSpare(); s != "" {
		return s, nil
	}
	return "", err
}

// fail makes err the log's final error and returns it.
func (l *Log) fail(err error) error {
	l.mu.Lock()
	l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	err = l.failed
	l.mu.Unlock()
	if hook := l.opts.Events.Failed; hook != nil {
		hook(err)
	}
	return err
}

// Err returns the error that failed the log for good, or nil.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// ReadAt reads len(buf) bytes of the payload at pos, beginning off bytes into
// it. ErrGone if the file was recycled. It does not verify checksums.
func (l *Log) ReadAt(pos Position, off int, buf []byte) error {
	f, err := l.files.acquire(pos.Seq)
	if err != nil {
		return err
	}
	err = f.readAt(pos, off, buf)
	l.unref(f)
	return err
}

func (l *Log) unref(f *file) {
	if l.files.release(f) {
		l.kick()
	}
}

// Pin keeps a file from being recycled until Unpin; false if it is gone.
func (l *Log) Pin(seq uint64) bool {
	_, err := l.files.acquire(seq)
	return err == nil
}

// Unpin undoes one successful Pin. Undoing more panics.
func (l *Log) Unpin(seq uint64) {
	l.files.mu.Lock()
	f := l.files.findLocked(seq)
	l.files.mu.Unlock()
	if f == nil {
		panic("wal: BUG: unpinned a file that is not pinned")
	}
	l.unref(f)
}

// Sealed lists the files that are closed for writing and not released, oldest
// first.
func (l *Log) Sealed() []SealedFile {
	l.files.mu.Lock()
	defer l.files.mu.Unlock()
	var list []SealedFile
	for _, f := range l.files.live {
		if f.sealed && !f.released {
			list = append(list, f.sealedLocked())
		}
	}
	return list
}

// Release says that the caller's conditions for recycling a sealed file hold.
// Files leave in order: a released one waits for older ones, pins and reads. A
// file that is gone or not sealed is left alone.
func (l *Log) Release(seq uint64) {
	l.files.mu.Lock()
	f := l.files.findLocked(seq)
	ok := f != nil && f.sealed
	if ok {
		f.released = true
	}
	l.files.mu.Unlock()
	if ok {
		l.kick()
	}
}

// Metrics returns counters and gauges.
func (l *Log) Metrics() Metrics {
	m := Metrics{
		Records: l.records.Load(), Groups: l.groups.Load(),
		Syncs: l.syncs.Load(), Bytes: l.bytes.Load(),
	}
	l.mu.Lock()
	m.Queued = len(l.queue)
	l.mu.Unlock()
	l.files.mu.Lock()
	m.Files, m.Spares = len(l.files.live), len(l.files.spares)
	l.files.mu.Unlock()
	return m
}

// Close completes everything submitted, seals and syncs the last file, and
// stops the log's goroutines. It must not be called from a completion. It returns
// the error that failed the log, if one did. Further calls do nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	if again {
		return nil
	}
	signal(l.wake)
	if l.opts.Stepped {
		for l.Step() {
		}
		l.w.close()
	}
	l.writing.Wait()
	close(l.stop)
	l.tending.Wait()
	err := l.files.closeAll()
	if failed := l.Err(); failed != nil {
		return failed
	}
	return err
}
