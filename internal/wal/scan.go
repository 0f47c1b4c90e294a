package wal

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/sluicemq/sluice/internal/planted"
	"github.com/sluicemq/sluice/internal/vfs"
)

// readWindow is how much the scanner reads at once, at least.
const readWindow = 1 << 20

// listing is a directory's contents by kind, each in ascending order.
type listing struct {
	files  []uint64 // sequences of log files
	spares []string // names
	temps  []string // names
}

func listDir(fsys vfs.FS, dir string) (listing, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return listing{}, err
	}
	var l listing
	for _, name := range names {
		if seq, ok := parseName(name, walSuffix); ok && seq > 0 {
			l.files = append(l.files, seq)
		} else if _, ok := parseName(name, spareSuffix); ok {
			l.spares = append(l.spares, name)
		} else if _, ok := parseName(name, tmpSuffix); ok {
			l.temps = append(l.temps, name)
		}
	}
	slices.Sort(l.files)
	return l, nil
}

// scan reads a whole log without changing it.
type scan struct {
	fsys   vfs.FS
	dir    string
	parser groupParser

	index     *index
	files     []scannedFile
	damages   []Damage
	bytes     int64
	salt      uint64 // of the log; 0 = not known yet
	nextGroup uint64 // sequence that the next group must have; 0 = not known
	torn      *TornTail

	buf []byte // window of the file being read, see fileScan.read
}

// seqs returns the sequences of the files, by their ordinal in the index.
func (s *scan) seqs() (seqs []uint64) {
	for _, f := range s.files {
		seqs = append(seqs, f.seq)
	}
	return seqs
}

// scannedFile is what the scan leaves of a file.
type scannedFile struct {
	seq             uint64
	size            int64
	end             int64 // after the last valid group; 0 if there is nothing valid
	witness         int64 // highest syncedThrough: what lies before it was synced
	groups, records int
	headerOK        bool
	final           bool
	damaged         bool
}

// scanDir scans the log files of a directory.
func scanDir(fsys vfs.FS, dir string, seqs []uint64, verify func([]byte, uint32) bool) (*scan, error) {
	if verify == nil {
		verify = verifyCRC32C
	}
	s := &scan{fsys: fsys, dir: dir, parser: groupParser{verify: verify}, index: newIndex()}
	for i, seq := range seqs {
		if i > 0 && seq != seqs[i-1]+1 {
			s.damages = append(s.damages, Damage{
				Seq: seqs[i-1] + 1, Records: true, Reason: fmt.Sprintf("files missing before %s", fileName(seq)),
			})
			s.nextGroup = 0
		}
		if err := s.file(seq, i == len(seqs)-1); err != nil {
			return nil, fmt.Errorf("%s: %w", fileName(seq), err)
		}
	}
	s.damages = append(s.damages, s.index.finish()...)
	s.buf = nil
	return s, nil
}

// fileScan is the scan of one file.
type fileScan struct {
	*scan
	f    vfs.File
	file *scannedFile
	last bool // no later file exists

	windowAt int64 // file offset of scan.buf

	// later are the groups of the file from some position on; nil before the
	// first time they are needed.
	later []foundGroup
}

type foundGroup struct {
	at     int64
	header groupHeader
}

func (s *scan) file(seq uint64, last bool) error {
	f, err := s.fsys.Open(filepath.Join(s.dir, fileName(seq)))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	size, err := f.Size()
	if err != nil {
		return err
	}
	s.files = append(s.files, scannedFile{seq: seq, size: size})
	s.buf = s.buf[:0]
	fs := &fileScan{scan: s, f: f, file: &s.files[len(s.files)-1], last: last}
	at, err := fs.header()
	if err != nil {
		return err
	}
	return fs.groups(at)
}

// read returns n bytes at off, valid until the next call. It must lie in the
// file.
func (s *fileScan) read(off, n int64) ([]byte, error) {
	if off >= s.windowAt && off+n <= s.windowAt+int64(len(s.buf)) {
		return s.buf[off-s.windowAt:][:n], nil
	}
	want := min(max(n, readWindow), s.file.size-off)
	s.buf = slices.Grow(s.buf[:0], int(want))[:want]
	s.windowAt = off
	got, err := s.f.ReadAt(s.buf, off)
	switch {
	case int64(got) == want:
	case err == nil || errors.Is(err, io.EOF):
		s.buf = s.buf[:0]
		return nil, io.ErrUnexpectedEOF // somebody else truncates it
	default:
		s.readBlocks(off)
	}
	return s.buf[:n], nil
}

// readBlocks reads the window block by block, after reading it at once failed.
// What cannot be read is damage, and taken as zero.
func (s *fileScan) readBlocks(off int64) {
	var from, to int64
	var failure error
	for at := int64(0); at < int64(len(s.buf)); at += blockSize {
		b := s.buf[at:min(at+blockSize, int64(len(s.buf)))]
		if n, err := s.f.ReadAt(b, off+at); n < len(b) {
			clear(b)
			if failure == nil {
				from, failure = at, err
			}
			to = at + int64(len(b))
		}
	}
	if failure != nil {
		s.damage(off+from, to-from, "unreadable: %v", failure)
	}
}

// lost is damage where records may have been.
func (s *fileScan) lost(off, length int64, format string, args ...any) {
	s.damage(off, length, format, args...)
	s.damages[len(s.damages)-1].Records = true
}

func (s *fileScan) damage(off, length int64, format string, args ...any) {
	s.file.damaged = true
	s.damages = append(s.damages, Damage{
		Seq: s.file.seq, Off: off, Len: length, Reason: fmt.Sprintf(format, args...),
	})
}

// header reads the file's header and returns where the groups begin.
func (s *fileScan) header() (int64, error) {
	h, err := s.parseHeader()
	if err != nil && !errors.Is(err, errHeader) {
		return 0, err
	}
	if err == nil {
		s.file.headerOK = true
		s.file.end, s.file.witness = h.length, h.length
		s.bytes += h.length
		s.salt, s.nextGroup = h.salt, h.firstGroup
		s.index.table(h.table)
		return h.length, nil
	}
	// The groups may still be good. Where they begin is not known.
	s.damage(0, min(blockSize, s.file.size), "%v", err)
	found, err := s.find(min(blockSize, s.file.size))
	if err != nil || len(found) == 0 {
		return s.file.size, err
	}
	s.file.witness = found[0].at
	s.salt = found[0].header.salt
	s.nextGroup = found[0].header.groupSeq
	return found[0].at, nil
}

func (s *fileScan) parseHeader() (fileHeader, error) {
	if s.file.size < blockSize || s.file.size > maxFileSize {
		return fileHeader{}, fmt.Errorf("%w: file of %d bytes", errHeader, s.file.size)
	}
	b, err := s.read(0, blockSize)
	if err != nil {
		return fileHeader{}, err
	}
	n, err := parseHeaderLen(b, s.file.size)
	if err != nil {
		return fileHeader{}, err
	}
	if b, err = s.read(0, n); err != nil {
		return fileHeader{}, err
	}
	h, err := parseFileHeader(b)
	switch {
	case err != nil:
		return fileHeader{}, err
	case h.seq != s.file.seq:
		return fileHeader{}, fmt.Errorf("%w: sequence %d", errHeader, h.seq)
	case h.fileSize != s.file.size:
		return fileHeader{}, fmt.Errorf("%w: size %d, but the file has %d", errHeader, h.fileSize, s.file.size)
	case s.salt != 0 && h.salt != s.salt:
		return fileHeader{}, fmt.Errorf("%w: it belongs to another log", errHeader)
	case s.nextGroup != 0 && h.firstGroup != s.nextGroup:
		s.lost(0, h.length, "groups %d to %d are missing before this file", s.nextGroup, h.firstGroup-1)
	}
	return h, nil
}

// own reports whether a valid group header belongs to this file's present life.
func (s *fileScan) own(g groupHeader, at int64) bool {
	return (g.fileSeq == s.file.seq || planted.FileSequenceIgnored) && (s.salt == 0 || g.salt == s.salt) &&
		g.size() <= maxFileSize && at+g.size() <= s.file.size && int64(g.syncedThrough) <= at
}

// find returns all groups of this file at or after a position.
func (s *fileScan) find(from int64) ([]foundGroup, error) {
	if s.later == nil {
		s.later = []foundGroup{}
		for at := from; at+sectorSize <= s.file.size; at += sectorSize {
			b, err := s.read(at, groupHeaderLen)
			if err != nil {
				return nil, err
			}
			if g, ok := parseGroupHeader(b); ok && s.own(g, at) {
				s.later = append(s.later, foundGroup{at, g})
			}
		}
	}
	for len(s.later) > 0 && s.later[0].at < from {
		s.later = s.later[1:]
	}
	return s.later, nil
}

// promised reports whether a group of those given proves that the file was
// synced beyond at.
func promised(groups []foundGroup, at int64) bool {
	return slices.ContainsFunc(groups, func(g foundGroup) bool {
		return int64(g.header.syncedThrough) > at
	})
}

// groups reads groups from at until the file's end, its final group, or a torn
// tail.
func (s *fileScan) groups(at int64) error {
	for at+sectorSize <= s.file.size && !s.file.final {
		b, err := s.read(at, groupHeaderLen)
		if err != nil {
			return err
		}
		g, ok := parseGroupHeader(b)
		if !ok || !s.own(g, at) || (s.nextGroup != 0 && g.groupSeq != s.nextGroup && !planted.FileSequenceIgnored) {
			next, err := s.invalidGroup(at)
			if err != nil || next < 0 {
				return err
			}
			at = next
			continue
		}
		whole, err := s.group(at, g)
		if err != nil || !whole {
			return err
		}
		at += g.size()
	}
	if !s.file.final && !s.last && !s.file.damaged {
		s.lost(at, s.file.size-at, "the file ends without a final group")
	}
	return nil
}

// group reads the group at a position. It returns false if it is torn, so that
// the log ends before it.
func (s *fileScan) group(at int64, g groupHeader) (bool, error) {
	b, err := s.read(at, g.size())
	if err != nil {
		return false, err
	}
	s.parser.parse(b, g, false)
	if len(s.parser.defects) > 0 {
		if s.last {
			later, err := s.find(at + sectorSize)
			if err != nil {
				return false, err
			}
			if !promised(later, at) {
				s.cut(at, g.size(), later)
				return false, nil
			}
			if b, err = s.read(at, g.size()); err != nil { // find moved the window
				return false, err
			}
			s.parser.parse(b, g, false)
		}
		s.defects(at)
	}
	s.accept(at)
	s.file.groups++
	s.file.end = at + g.size()
	s.file.witness = max(s.file.witness, int64(g.syncedThrough))
	s.file.final = g.flags&flagFinal != 0
	s.bytes += g.size()
	s.nextGroup = g.groupSeq + 1
	return true, nil
}

// defects reports what the parser found wrong in the group at a position.
// Payloads are reported by accept, with what they belong to.
func (s *fileScan) defects(at int64) {
	for _, d := range s.parser.defects {
		switch d.reason {
		case defectPayload:
		case defectHeader:
			s.lost(at+d.at, d.length, "%s", d.reason)
		default:
			s.damage(at+d.at, d.length, "%s", d.reason)
		}
	}
}

// accept takes the parsed records of the group at a position into the index.
func (s *fileScan) accept(at int64) {
	for i := range s.parser.records {
		r := &s.parser.records[i]
		s.file.records++
		off := at + r.at + recordHeaderLen
		if !r.payloadOK {
			s.damage(off, int64(r.length), "%s", defectPayload)
			d := &s.damages[len(s.damages)-1]
			d.HasShard, d.Shard = true, r.shard
			if r.typ == TypeEntry {
				d.First, d.Last = r.index, r.index
			}
		}
		s.index.record(r, uint32(len(s.files)-1), off)
	}
}

// invalidGroup decides about a position where a group was expected and none is.
// It returns where to go on, or -1 if the log ends here.
func (s *fileScan) invalidGroup(at int64) (int64, error) {
	later, err := s.find(at)
	if err != nil {
		return 0, err
	}
	if s.last && !promised(later, at) {
		if len(later) > 0 {
			s.cut(at, sectorSize, later)
		}
		return -1, nil
	}
	next, nextGroup := s.file.size, uint64(0)
	for _, g := range later {
		if g.header.groupSeq >= s.nextGroup {
			next, nextGroup = g.at, g.header.groupSeq
			break
		}
	}
	s.lost(at, next-at, "group header; expected group %d, the next valid one is %d", s.nextGroup, nextGroup)
	if next > at && s.nextGroup != 0 {
		// The records have checksums of their own, so they need not be lost.
		b, err := s.read(at, min(next-at, maxFileSize))
		if err != nil {
			return 0, err
		}
		s.parser.parse(b, groupHeader{
			fileSeq: s.file.seq, groupSeq: s.nextGroup, salt: s.salt,
		}, true)
		s.defects(at)
		s.accept(at)
	}
	s.nextGroup = nextGroup
	return next, nil
}

// cut records the torn tail that begins at a position.
func (s *fileScan) cut(at, length int64, later []foundGroup) {
	end := at + length
	for _, g := range later {
		end = max(end, g.at+g.header.size())
	}
	s.torn = &TornTail{Seq: s.file.seq, Off: at, Len: min(end, s.file.size) - at}
}
