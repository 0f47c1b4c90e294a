package wal

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/sluicemq/sluice/internal/vfs"
)

// Open recovers the log in opts.Dir, cuts a torn tail, and makes it ready for
// appends. Damage does not fail it: it is in Recovery.Damages, and the caller
// decides. An error means that the log cannot be used.
//
// The caller holds the lock of the data directory.
func Open(opts Options) (*Log, *Recovery, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	start := time.Now()
	l := &Log{
		opts: opts,
		wake: make(chan struct{}, 1), kicked: make(chan struct{}, 1),
		needFile: make(chan struct{}), prepared: make(chan error), stop: make(chan struct{}),
	}
	l.files.opts = &l.opts
	l.w.log = l
	s, err := l.recover()
	if err != nil {
		return nil, nil, fmt.Errorf("wal: open %s: %w", opts.Dir, joinClose(err, l.files.closeAll()))
	}
	rec := &Recovery{
		Shards: s.index.recovered(s.damages), Files: len(s.files), Bytes: s.bytes,
		Torn: s.torn, Damages: s.damages, Duration: time.Since(start),
		read: l.ReadAt, index: s.index, seqs: s.seqs(),
	}
	if opts.Stepped {
		return l, rec, nil
	}
	l.writing.Add(1)
	go l.run()
	if !opts.inline {
		l.tending.Add(1)
		go l.tend()
		l.kick()
	}
	return l, rec, nil
}

// joinClose keeps the error that matters when cleaning up fails too.
func joinClose(err, cerr error) error {
	if cerr == nil {
		return err
	}
	return fmt.Errorf("%w (and closing: %w)", err, cerr)
}

// recover reads the directory and leaves the writer where it goes on.
func (l *Log) recover() (*scan, error) {
	fsys, dir := l.opts.FS, l.opts.Dir
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, err
	}
	// Names that a killed process left unsynced must not change any more: a spare
	// whose old number came back would be a file with a wrong header.
	if err := fsys.SyncDir(dir); err != nil {
		return nil, err
	}
	list, err := listDir(fsys, dir)
	if err != nil {
		return nil, err
	}
	if err := l.adoptSpares(list); err != nil {
		return nil, err
	}
	s, err := scanDir(fsys, dir, list.files, l.opts.VerifyPayload)
	if err != nil {
		return nil, err
	}
	if err := l.openFiles(s); err != nil {
		return nil, err
	}
	w := &l.w
	w.tracks = recoveredTracks(s.index)
	w.groupSeq, w.nextSeq = max(s.nextGroup, 1), 1
	for w.salt = cmp.Or(s.salt, l.opts.Salt); w.salt == 0; w.salt = rand.Uint64() {
	}
	w.finished = true
	if n := len(s.files); n > 0 {
		w.nextSeq = s.files[n-1].seq + 1
		if err := l.continueTail(&s.files[n-1], s.torn); err != nil {
			return nil, err
		}
	}
	if w.finished {
		return s, l.firstFile()
	}
	return s, nil
}

// adoptSpares takes over complete spares and removes what is left of others.
func (l *Log) adoptSpares(list listing) error {
	fsys := l.opts.FS
	for _, name := range list.temps {
		if err := fsys.Remove(filepath.Join(l.opts.Dir, name)); err != nil {
			return err
		}
	}
	for _, name := range list.spares {
		if n, ok := parseName(name, spareSuffix); ok {
			l.files.taken = max(l.files.taken, n)
		}
		path := filepath.Join(l.opts.Dir, name)
		st, err := fsys.Stat(path)
		if err != nil {
			return err
		}
		if st.Size == l.opts.FileSize && len(l.files.spares) < l.opts.MaxSpare {
			l.files.spares = append(l.files.spares, path)
		} else if err := fsys.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// openFiles fills the table of files.
func (l *Log) openFiles(s *scan) error {
	ranges := s.index.ranges(len(s.files))
	for i := range s.files {
		sf := &s.files[i]
		f, err := l.opts.FS.OpenReadWrite(filepath.Join(l.opts.Dir, fileName(sf.seq)))
		if err != nil {
			return err
		}
		l.files.live = append(l.files.live, &file{
			seq: sf.seq, f: f, size: sf.size, used: sf.end, ranges: ranges[i], sealed: true,
		})
	}
	return nil
}

// continueTail makes the last file ready to be written behind its last group, or
// finishes it if it cannot be: because it is damaged, full, or of another size.
func (l *Log) continueTail(sf *scannedFile, torn *TornTail) error {
	if sf.end == 0 {
		return nil // nothing in it is valid
	}
	w := &l.w
	w.cur = l.files.live[len(l.files.live)-1]
	if err := resync(w.cur.f, *sf, torn); err != nil {
		return err
	}
	w.off, w.synced, w.witness = sf.end, sf.end, sf.witness
	if sf.final || sf.end+sectorSize > sf.size {
		return nil // nothing goes into it any more, not even a final group
	}
	w.finished = false
	if !sf.damaged && sf.size == l.opts.FileSize && w.fits(sectorSize) {
		w.cur.sealed = false
		return nil
	}
	w.open()
	if _, err := w.write(flagFinal); err != nil {
		return err
	}
	w.finished = true
	w.cur.used = w.off
	return w.sync()
}

// resync cuts what is torn by zeroing, and writes again what has no witness: it
// may be in the page cache only, and even marked there as clean. A damaged file
// keeps its contents as they are.
func resync(f vfs.File, sf scannedFile, torn *TornTail) error {
	if sf.damaged {
		sf.witness = sf.end
	}
	buf := make([]byte, min(readWindow, sf.size))
	for at := sf.witness; at < sf.end; {
		b := buf[:min(int64(len(buf)), sf.end-at)]
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		if _, err := f.WriteAt(b, at); err != nil {
			return err
		}
		at += int64(len(b))
	}
	if torn != nil {
		if err := f.ZeroFill(torn.Off, torn.Len); err != nil {
			return err
		}
	}
	return f.SyncData()
}

// firstFile begins a file. Without space for one the log opens all the same, and
// appends are refused until there is.
func (l *Log) firstFile() error {
	spare := l.files.takeSpare()
	if spare == "" {
		err := l.files.prepare()
		if vfs.IsNoSpace(err) {
			return nil
		}
		if err != nil {
			return err
		}
		spare = l.files.takeSpare()
	}
	if err := l.w.begin(spare); !vfs.IsNoSpace(err) {
		return err
	}
	return nil
}
