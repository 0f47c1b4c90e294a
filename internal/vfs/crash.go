package vfs

import (
	"bytes"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
)

// Keep says which of the unsynced changes survive a power cut.
type Keep uint8

const (
	// KeepRandom keeps each change independently, with a probability that is drawn
	// once per power cut, so that nearly all and nearly nothing both occur. A
	// sector that was written several times may have any of these contents.
	KeepRandom Keep = iota
	// KeepNone keeps exactly what was synced.
	KeepNone
	// KeepAll keeps everything, as after the death of the process alone.
	KeepAll
)

// CrashOptions choose what CrashClone keeps.
type CrashOptions struct {
	Data  Keep // sectors and sizes
	Names Keep // creates, renames, removes
}

// node is a file's contents. Guarded by Mem.mu.
type node struct {
	data     []byte             // as written
	base     []byte             // as synced last
	dirty    map[int64][][]byte // sector -> its contents since the last sync, oldest first
	sizes    []int64            // sizes since the last sync, oldest first
	unlinked bool
}

// zeroSector is shared by all versions that are zero, so that zero-filling a
// large file costs no second copy of it.
var zeroSector [SectorSize]byte

func newNode(data []byte) *node {
	return &node{data: data, base: slices.Clone(data), dirty: map[int64][][]byte{}}
}

// resize changes the size; new bytes are zero.
func (n *node) resize(size int64) {
	if old := int64(len(n.data)); size > old {
		n.data = slices.Grow(n.data, int(size-old))[:size]
		clear(n.data[old:])
	}
	n.data = n.data[:size]
	n.sizes = append(n.sizes, size)
}

// touch records the present contents of the sectors in [from, to).
func (n *node) touch(from, to int64) {
	for s := from / SectorSize; s*SectorSize < to; s++ {
		v := zeroSector[:]
		cur := n.data[s*SectorSize : min((s+1)*SectorSize, int64(len(n.data)))]
		if !bytes.Equal(cur, zeroSector[:len(cur)]) {
			v = make([]byte, SectorSize)
			copy(v, cur)
		}
		n.dirty[s] = append(n.dirty[s], v)
	}
}

func (n *node) sync() {
	n.base = grown(n.base, int64(len(n.data)))
	for s := range n.dirty {
		if at := s * SectorSize; at < int64(len(n.data)) {
			end := min(at+SectorSize, int64(len(n.data)))
			copy(n.base[at:end], n.data[at:end])
		}
	}
	clear(n.dirty)
	n.sizes = n.sizes[:0]
}

// grown returns b with the given size, zero-filled if it grew.
func grown(b []byte, size int64) []byte {
	if old := int64(len(b)); size > old {
		b = slices.Grow(b, int(size-old))[:size]
		clear(b[old:])
	}
	return b[:size]
}

// chance decides change by change for one power cut.
type chance struct {
	keep Keep
	p    float64
	rng  *rand.Rand
}

func newChance(keep Keep, rng *rand.Rand) chance {
	c := chance{keep: keep, rng: rng}
	if keep == KeepRandom {
		c.p = rng.Float64()
	}
	return c
}

// pick returns how many of n successive states of one thing were passed: 0 is
// the synced state, n the latest.
func (c chance) pick(n int) int {
	switch {
	case c.keep == KeepAll:
		return n
	case c.keep == KeepNone || n == 0 || c.rng.Float64() >= c.p:
		return 0
	default:
		return 1 + c.rng.IntN(n)
	}
}

// crashed returns the node as a power cut leaves it.
func (n *node) crashed(c chance) *node {
	size := int64(len(n.base))
	if i := c.pick(len(n.sizes)); i > 0 {
		size = n.sizes[i-1]
	}
	data := grown(slices.Clone(n.base), size)
	for _, s := range slices.Sorted(maps.Keys(n.dirty)) {
		versions := n.dirty[s]
		if i, at := c.pick(len(versions)), s*SectorSize; i > 0 && at < size {
			copy(data[at:min(at+SectorSize, size)], versions[i-1])
		}
	}
	return newNode(data)
}

// CrashClone returns the disk as a power cut at this moment may leave it: what
// was synced, and of the rest what opts keep. The same state, options and rng
// give the same result. m itself goes on unchanged; rng is used only during the
// call, and may be nil if nothing is random.
func (m *Mem) CrashClone(rng *rand.Rand, opts CrashOptions) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := maps.Clone(m.durable)
	nameChance, dataChance := newChance(opts.Names, rng), newChance(opts.Data, rng)
	for _, op := range m.pending {
		if nameChance.pick(1) == 1 {
			op.apply(names)
		}
	}
	c := NewMem()
	maps.Copy(c.dirs, m.dirs)
	c.limit = m.limit
	for _, path := range slices.Sorted(maps.Keys(names)) {
		n := names[path].crashed(dataChance)
		c.names[path], c.durable[path] = n, n
		c.used += int64(len(n.data))
	}
	return c
}

// Clone returns an independent copy of the file system with everything that is
// not synced yet still unsynced: what the next process finds after this one was
// killed. Open handles and locks stay with m.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	copies := map[*node]*node{}
	clone := func(n *node) *node {
		if copies[n] == nil {
			copies[n] = n.clone()
		}
		return copies[n]
	}
	c := NewMem()
	maps.Copy(c.dirs, m.dirs)
	c.limit, c.used = m.limit, m.used
	for path, n := range m.names {
		c.names[path] = clone(n)
	}
	for path, n := range m.durable {
		c.durable[path] = clone(n)
	}
	for _, op := range m.pending {
		op.node = clone(op.node)
		c.pending = append(c.pending, op)
	}
	return c
}

// clone copies a node; recorded versions of sectors never change and are shared.
func (n *node) clone() *node {
	c := *n
	c.data, c.base, c.sizes = slices.Clone(n.data), slices.Clone(n.base), slices.Clone(n.sizes)
	c.dirty = make(map[int64][][]byte, len(n.dirty))
	for s, versions := range n.dirty {
		c.dirty[s] = slices.Clone(versions)
	}
	return &c
}

// ForgetDirty does to a file what Linux does when writing back fails: what was
// written since the last sync is read as if all were well, but counts as clean,
// so that later syncs succeed without it ever reaching the disk.
func (m *Mem) ForgetDirty(path string) error {
	path = filepath.Clean(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[path]
	if n == nil {
		return pathError("forget", path, fs.ErrNotExist)
	}
	clear(n.dirty)
	n.sizes = n.sizes[:0]
	return nil
}
