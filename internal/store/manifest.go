package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"

	"github.com/sluicemq/sluice/internal/vfs"
)

// The MANIFEST is a header and frames, followed by zeros:
//
//	header  u64 magic, u32 version, u32 zero
//	frame   u32 magic, u32 length of payload, u64 synced, u32 CRC-32C, payload
//
// The checksum covers the frame without itself, the frame's position and the version.
// synced says that everything before this position had been synced when the frame was
// written. So an invalid frame in front of a valid one is damage if that one's
// synced is behind it, and otherwise the torn end of a write that nobody was told
// had succeeded. A copy of the edit, with a magic of its own, follows each edit, not
// waited for: so that this works for the last edit too, and so that an edit that was
// damaged is read from its copy.
//
// The file is zero-filled ahead of its end: dropping segments must work on a full
// disk.
const (
	manifestName      = "MANIFEST"
	tmpSuffix         = ".tmp"
	manifestMagic     = 0x314e414d43494c53 // "SLICMAN1"
	manifestVersion   = 2
	manifestHeaderLen = 16
	frameMagic        = 0x4d46724d
	copyMagic         = 0x4d43704d
	frameHeaderLen    = 20

	manifestStep = 64 << 10 // the file grows by this much
	manifestRoom = 16 << 10 // what is kept ready for the next edits
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// manifest writes the file. All methods but load are guarded by Store.editMu.
type manifest struct {
	fs     vfs.FS
	dir    string
	f      vfs.File
	end    int64 // where the next frame goes
	synced int64
	size   int64 // of the file; zeros from end on
	base   int64 // end after the last rewrite
	retry  int64 // end at which a rewrite that failed is tried again
	failed error
}

func frameCRC(frame []byte, pos int64) uint32 {
	c := crc32.Checksum(frame[:16], castagnoli)
	c = crc32.Update(c, castagnoli, frame[frameHeaderLen:])
	return crc32.Update(c, castagnoli, binary.LittleEndian.AppendUint64(nil, uint64(pos)^manifestVersion<<56))
}

func appendFrame(b []byte, magic uint32, payload []byte, pos, synced int64) []byte {
	start := len(b)
	le := binary.LittleEndian
	b = le.AppendUint32(b, magic)
	b = le.AppendUint32(b, uint32(len(payload)))
	b = le.AppendUint64(b, uint64(synced))
	b = le.AppendUint32(b, 0)
	b = append(b, payload...)
	le.PutUint32(b[start+16:], frameCRC(b[start:], pos))
	return b
}

// parseFrame returns the frame at pos of the file b, nil if there is no valid one with
// this magic.
func parseFrame(b []byte, magic uint32, pos int64) (frame []byte, synced int64) {
	if pos > int64(len(b)) {
		return nil, 0
	}
	h := b[pos:]
	le := binary.LittleEndian
	if len(h) < frameHeaderLen || le.Uint32(h) != magic {
		return nil, 0
	}
	n := int64(le.Uint32(h[4:]))
	if n > int64(len(h)-frameHeaderLen) {
		return nil, 0
	}
	frame = h[:frameHeaderLen+n]
	if le.Uint32(h[16:]) != frameCRC(frame, pos) {
		return nil, 0
	}
	return frame, int64(le.Uint64(h[8:]))
}

// findCopy returns the copy of the edit at pos, which is damaged: the first that lies as
// far behind pos as the edit is long.
func findCopy(b []byte, pos int64) (frame []byte, at int64) {
	for at = pos + frameHeaderLen; at+frameHeaderLen <= int64(len(b)); at++ {
		if binary.LittleEndian.Uint32(b[at:]) != copyMagic {
			continue
		}
		if frame, _ = parseFrame(b, copyMagic, at); frame != nil && at == pos+int64(len(frame)) {
			return frame, at
		}
	}
	return nil, 0
}

// manifestFile is what was read of a MANIFEST.
type manifestFile struct {
	st      *manifestState
	end     int64          // where the valid frames end
	torn    bool           // something other than zeros follows
	damages []*DamageError // what was read from copies
	// copies are those that were torn although the edit behind them was not, by position.
	copies map[int64][]byte
}

func manifestDamage(b []byte, pos, n int64, reason string) *DamageError {
	if n == 0 {
		n = int64(len(b)) - pos
	}
	return &DamageError{Path: manifestName, Pos: pos, Len: n, Reason: reason}
}

// readManifest takes the file b apart. The error is a *DamageError.
func readManifest(b []byte) (m manifestFile, err error) {
	le := binary.LittleEndian
	m = manifestFile{st: newManifestState(), end: manifestHeaderLen, copies: map[int64][]byte{}}
	header := len(b) >= manifestHeaderLen && le.Uint64(b) == manifestMagic
	if !header || le.Uint64(b[8:]) != manifestVersion {
		first, _ := parseFrame(b, frameMagic, manifestHeaderLen)
		if first == nil {
			first, _ = findCopy(b, manifestHeaderLen)
		}
		switch {
		case first != nil:
			m.damages = append(m.damages, manifestDamage(b, 0, manifestHeaderLen, "header; what follows is sound"))
		case header:
			return m, manifestDamage(b, 8, 8, fmt.Sprintf("format version %d is not known", le.Uint64(b[8:])))
		default:
			return m, manifestDamage(b, 0, 0, "header")
		}
	}
	for {
		more, err := m.next(b)
		if err != nil {
			return m, err
		}
		if !more {
			break
		}
	}
	if m.end == manifestHeaderLen {
		return m, manifestDamage(b, m.end, 0, "no first edit")
	}
	rest := b[m.end:]
	for i := range rest {
		if rest[i] == 0 {
			continue
		}
		m.torn = true
		for _, magic := range [...]uint32{frameMagic, copyMagic} {
			if _, synced := parseFrame(b, magic, m.end+int64(i)); synced > m.end {
				return m, manifestDamage(b, m.end, 0, "an edit before the end, and its copy")
			}
		}
	}
	return m, nil
}

// next reads an edit and its copy; false at the end.
func (m *manifestFile) next(b []byte) (bool, error) {
	pos := m.end
	frame, _ := parseFrame(b, frameMagic, pos)
	second, at := []byte(nil), pos+int64(len(frame))
	if frame == nil {
		if second, at = findCopy(b, pos); second == nil {
			return false, nil
		}
		frame = second
		m.damages = append(m.damages, manifestDamage(b, pos, int64(len(frame)), "an edit, which was read from its copy"))
	} else {
		second, _ = parseFrame(b, copyMagic, at)
	}
	if err := m.st.applyEncoded(frame[frameHeaderLen:]); err != nil {
		return false, manifestDamage(b, pos, 0, err.Error())
	}
	m.end = at
	behind := at + int64(len(frame))
	if second != nil {
		m.end = behind
	} else if next, _ := parseFrame(b, frameMagic, at); next != nil {
		return true, nil // there was no room for a copy, or a crash before it
	} else if next, _ := parseFrame(b, frameMagic, behind); next != nil {
		if promised(b, behind, at) {
			m.damages = append(m.damages, manifestDamage(b, at, int64(len(frame)), "the copy of an edit"))
		} else {
			m.copies[at] = appendFrame(nil, copyMagic, frame[frameHeaderLen:], at, at)
		}
		m.end = behind
	}
	return true, nil
}

// promised says whether a frame from a position on proves that what lies behind at was
// synced.
func promised(b []byte, from, at int64) bool {
	for ; from+frameHeaderLen <= int64(len(b)); from++ {
		for _, magic := range [...]uint32{frameMagic, copyMagic} {
			if binary.LittleEndian.Uint32(b[from:]) != magic {
				continue
			}
			if _, synced := parseFrame(b, magic, from); synced > at {
				return true
			}
		}
	}
	return false
}

// openManifest opens an existing file and cuts a torn end. One that was damaged must be
// replaced, see replaceDamaged.
func openManifest(fsys vfs.FS, dir string) (*manifest, manifestFile, error) {
	path := filepath.Join(dir, manifestName)
	b, err := vfs.ReadFile(fsys, path)
	if err != nil {
		return nil, manifestFile{}, err
	}
	mf, err := readManifest(b)
	if err != nil {
		return nil, mf, err
	}
	// A rename that was seen may not be durable: what builds on it must not be
	// durable earlier. The same goes for the frames, below.
	if err := fsys.SyncDir(dir); err != nil {
		return nil, mf, err
	}
	f, err := fsys.OpenReadWrite(path)
	if err != nil {
		return nil, mf, err
	}
	m := &manifest{fs: fsys, dir: dir, f: f, end: mf.end, synced: mf.end, size: int64(len(b)), base: mf.end}
	for at, frame := range mf.copies { // what follows will say that they are there
		if err == nil {
			_, err = f.WriteAt(frame, at)
		}
	}
	switch {
	case err != nil || len(mf.damages) > 0:
	case mf.torn:
		err = m.zero(mf.end)
	default:
		err = f.SyncData()
	}
	if err != nil {
		return nil, mf, errors.Join(err, f.Close())
	}
	return m, mf, nil
}

// zero erases from pos to the end of the file.
func (m *manifest) zero(pos int64) error {
	if err := m.f.ZeroFill(pos, m.size-pos); err != nil {
		return err
	}
	return m.f.SyncData()
}

// createManifest replaces the file by one that holds just st. renamed says whether
// the new file may have taken the old one's place although there is an error.
func createManifest(fsys vfs.FS, dir string, st *manifestState) (m *manifest, renamed bool, err error) {
	path := filepath.Join(dir, manifestName)
	if err := removeIfExists(fsys, path+tmpSuffix); err != nil {
		return nil, false, err
	}
	f, err := fsys.Create(path + tmpSuffix)
	if err != nil {
		return nil, false, err
	}
	b := binary.LittleEndian.AppendUint64(nil, manifestMagic)
	b = binary.LittleEndian.AppendUint64(b, manifestVersion)
	payload := st.encode()
	b = appendFrame(b, frameMagic, payload, manifestHeaderLen, 0)
	b = appendFrame(b, copyMagic, payload, int64(len(b)), int64(len(b))) // synced before anybody sees it
	m = &manifest{fs: fsys, dir: dir, f: f, end: int64(len(b)), synced: int64(len(b)), base: int64(len(b))}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		m.size = m.end
		err = m.reserve(manifestRoom)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = fsys.Rename(path+tmpSuffix, path)
	}
	if err != nil {
		return nil, false, errors.Join(err, f.Close(), removeIfExists(fsys, path+tmpSuffix))
	}
	if err := fsys.SyncDir(dir); err != nil {
		return nil, true, errors.Join(err, f.Close())
	}
	return m, true, nil
}

// append makes an edit durable. An error that is not ErrFailed has changed nothing.
func (m *manifest) append(payload []byte) error {
	if m.failed != nil {
		return m.failed
	}
	frame := appendFrame(nil, frameMagic, payload, m.end, m.synced)
	if err := m.reserve(int64(2 * len(frame))); err != nil {
		return err
	}
	if _, err := m.f.WriteAt(frame, m.end); err != nil {
		if zerr := m.zero(m.end); zerr != nil {
			return m.fail(errors.Join(err, zerr))
		}
		return err
	}
	if err := m.f.SyncData(); err != nil {
		return m.fail(err)
	}
	m.end += int64(len(frame))
	m.synced = m.end
	// The copy and the room for later edits are not what the caller waits for: without
	// them the next append goes on here, and tries again.
	if _, err := m.f.WriteAt(appendFrame(nil, copyMagic, payload, m.end, m.end), m.end); err == nil {
		m.end += int64(len(frame))
	}
	_ = m.reserve(manifestRoom) // tried again when it is needed
	return nil
}

func (m *manifest) fail(err error) error {
	m.failed = fmt.Errorf("%w: %s: %w", ErrFailed, manifestName, err)
	return m.failed
}

// reserve makes sure that n bytes behind the end are there, as zeros.
func (m *manifest) reserve(n int64) error {
	if m.end+n <= m.size {
		return nil
	}
	step := (m.end + n - m.size + manifestStep - 1) / manifestStep * manifestStep
	if err := m.f.ZeroFill(m.size, step); err != nil {
		return err
	}
	m.size += step
	return nil
}

// due says whether the file has outgrown limit and its base enough to be rewritten.
func (m *manifest) due(limit int64) bool {
	return m.failed == nil && m.end > max(limit, 2*m.base) && m.end >= m.retry
}

// rewrite replaces the file by one edit that holds st. An error that is not
// ErrFailed leaves the old file in use.
func (m *manifest) rewrite(st *manifestState) error {
	n, renamed, err := createManifest(m.fs, m.dir, st)
	if err != nil && renamed {
		return m.fail(err)
	}
	if err != nil {
		m.retry = m.end + manifestStep
		return err
	}
	old := m.f
	*m = *n
	return old.Close()
}

func (m *manifest) close() error {
	if m.failed == nil && m.end > m.synced {
		if err := m.f.SyncData(); err != nil {
			return errors.Join(err, m.f.Close())
		}
	}
	return m.f.Close()
}

func removeIfExists(fsys vfs.FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
