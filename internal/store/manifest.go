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
// The checksum covers the frame without itself and the frame's position. synced
// says that everything before this position had been synced when the frame was
// written. So an invalid frame in front of a valid one is damage if that one's
// synced is behind it, and otherwise the torn end of a write that nobody was told
// had succeeded. A frame without payload follows each edit, not waited for, so that
// this works for the last edit too.
//
// The file is zero-filled ahead of its end: dropping segments must work on a full
// disk.
const (
	manifestName      = "MANIFEST"
	tmpSuffix         = ".tmp"
	manifestMagic     = 0x314e414d43494c53 // "SLICMAN1"
	manifestVersion   = 1
	manifestHeaderLen = 16
	frameMagic        = 0x4d46724d
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
	return crc32.Update(c, castagnoli, binary.LittleEndian.AppendUint64(nil, uint64(pos)))
}

func appendFrame(b, payload []byte, pos, synced int64) []byte {
	start := len(b)
	le := binary.LittleEndian
	b = le.AppendUint32(b, frameMagic)
	b = le.AppendUint32(b, uint32(len(payload)))
	b = le.AppendUint64(b, uint64(synced))
	b = le.AppendUint32(b, 0)
	b = append(b, payload...)
	le.PutUint32(b[start+16:], frameCRC(b[start:], pos))
	return b
}

// parseFrame returns the frame at pos of the file b, nil if there is no valid one.
func parseFrame(b []byte, pos int64) (frame []byte, synced int64) {
	h := b[pos:]
	le := binary.LittleEndian
	if len(h) < frameHeaderLen || le.Uint32(h) != frameMagic {
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

// readManifest takes the file b apart. end is where the valid frames end, torn
// whether anything but zeros follows. The error is a *DamageError.
func readManifest(b []byte) (st *manifestState, end int64, torn bool, err error) {
	damage := func(pos int64, reason string) error {
		return &DamageError{Path: manifestName, Pos: pos, Len: int64(len(b)) - pos, Reason: reason}
	}
	le := binary.LittleEndian
	if len(b) < manifestHeaderLen || le.Uint64(b) != manifestMagic || le.Uint32(b[12:]) != 0 {
		return nil, 0, false, damage(0, "header")
	}
	if v := le.Uint32(b[8:]); v != manifestVersion {
		return nil, 0, false, damage(8, fmt.Sprintf("format version %d is not known", v))
	}
	st = newManifestState()
	pos := int64(manifestHeaderLen)
	for {
		frame, _ := parseFrame(b, pos)
		if frame == nil {
			break
		}
		if err := st.applyEncoded(frame[frameHeaderLen:]); err != nil {
			return nil, 0, false, damage(pos, err.Error())
		}
		pos += int64(len(frame))
	}
	if pos == manifestHeaderLen {
		return nil, 0, false, damage(pos, "no first edit")
	}
	rest := b[pos:]
	for i := range rest {
		if rest[i] == 0 {
			continue
		}
		torn = true
		if _, synced := parseFrame(b, pos+int64(i)); synced > pos {
			return nil, 0, false, damage(pos, "an edit before the end")
		}
	}
	return st, pos, torn, nil
}

// openManifest opens an existing file and cuts a torn end.
func openManifest(fsys vfs.FS, dir string) (*manifest, *manifestState, error) {
	path := filepath.Join(dir, manifestName)
	b, err := vfs.ReadFile(fsys, path)
	if err != nil {
		return nil, nil, err
	}
	st, end, torn, err := readManifest(b)
	if err != nil {
		return nil, nil, err
	}
	// A rename that was seen may not be durable: what builds on it must not be
	// durable earlier. The same goes for the frames, below.
	if err := fsys.SyncDir(dir); err != nil {
		return nil, nil, err
	}
	f, err := fsys.OpenReadWrite(path)
	if err != nil {
		return nil, nil, err
	}
	m := &manifest{fs: fsys, dir: dir, f: f, end: end, synced: end, size: int64(len(b)), base: end}
	if torn {
		err = m.zero(end)
	} else {
		err = f.SyncData()
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return m, st, nil
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
	b = appendFrame(b, st.encode(), manifestHeaderLen, 0)
	b = appendFrame(b, nil, int64(len(b)), int64(len(b))) // synced before anybody sees it
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
	frame := appendFrame(nil, payload, m.end, m.synced)
	if err := m.reserve(int64(len(frame) + frameHeaderLen)); err != nil {
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
	// The mark and the room for later edits are not what the caller waits for: if
	// they fail, the next append tries again.
	if _, err := m.f.WriteAt(appendFrame(nil, nil, m.end, m.end), m.end); err == nil {
		m.end += frameHeaderLen
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
