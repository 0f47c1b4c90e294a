package store

import (
	"encoding/binary"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
)

// Sizes of reads.
const (
	MinReadBytes = 64 << 10
	MaxReadBytes = 1 << 20
)

// Block is a list of entries that were read together. It holds one reference to a
// chunk; Release gives it up.
type Block struct {
	chunk *buf.Chunk
	it    entryIter
	rest  []byte // blocks behind the one that it walks, all verified
	first msg.Offset
	tail  msg.Offset // first offset of the last block
	bound msg.Offset // last offset that the last block may hold
}

// Next returns the next entry. record aliases the chunk: it is valid while a
// reference to the chunk is held, and ends at its capacity.
func (b *Block) Next() (offset msg.Offset, record []byte, ok bool) {
	var e entry
	for {
		for b.it.next(&e) {
			if e.off >= b.first {
				return e.off, e.record, true
			}
		}
		if len(b.rest) == 0 {
			return 0, nil, false
		}
		n := blockLen(b.rest)
		block := b.rest[:n:n]
		b.rest = b.rest[n:]
		if h, ok := parseEntriesHeader(block); ok {
			b.it.open(block, h)
		}
	}
}

// Chunk returns the chunk that the records lie in, nil for an empty block. Whoever
// keeps it retains it.
func (b *Block) Chunk() *buf.Chunk { return b.chunk }

// Release gives up the block's reference. The zero Block may be released.
func (b *Block) Release() {
	if b.chunk != nil {
		b.chunk.Release()
	}
	*b = Block{}
}

// ReadRange reads consecutive entries of a run, beginning with the first whose
// offset is >= first: as many whole blocks as fit into maxBytes, but at least one
// entry. Checksums are verified. The end of the run gives an empty Block. Errors: a
// *DamageError with the offsets that can't be read (the entries behind them can),
// ErrGone, or of the file system.
func (s *Store) ReadRange(run Run, first msg.Offset, maxBytes int) (Block, error) {
	if first > run.Last {
		return Block{}, nil
	}
	g, err := s.acquire(run.Seg)
	if err != nil {
		return Block{}, err
	}
	defer s.release(g)
	first = max(first, run.First)
	if run.Flags&RunIndexed == 0 {
		return s.readPart(g, run, run, first, maxBytes)
	}
	index, err := s.index(g, run)
	if err != nil {
		return Block{}, err
	}
	defer index.Release()
	x := blockIndex(index.Bytes()[blockHeaderLen:])
	i := x.find(first)
	if run.Flags&RunShared == 0 {
		j := i + 1
		for j < x.len() && x.end(j, run)-int64(x.pos(i)) <= int64(maxBytes) {
			j++
		}
		if j > i+1 {
			return s.readSpan(g, run, x, i, j, first)
		}
	}
	for ; i < x.len(); i++ { // a second round only if first lies between two blocks
		b, err := s.readPart(g, run, x.part(i, run), first, maxBytes)
		if err != nil || b.chunk != nil {
			return b, err
		}
	}
	return Block{}, nil
}

// part returns the run that consists of block i alone.
func (x blockIndex) part(i int, run Run) Run {
	p := run
	p.Pos, p.First = x.pos(i), x.first(i)
	p.Size = uint32(x.end(i, run) - int64(p.Pos))
	if i+1 < x.len() {
		p.Last = x.first(i+1) - 1
	}
	return p
}

// index returns the verified index of a run, as a block.
func (s *Store) index(g *segment, run Run) (*buf.Chunk, error) {
	pos := run.Pos + run.Size
	key := blockKey{g.meta.ID, pos}
	if c := s.cache.get(key); c != nil {
		return c, nil
	}
	guess := int64(run.Size/blockTarget+2) * indexEntryLen * 5 / 4
	c, err := s.readBlock(g, int64(pos), int(guess)+blockHeaderLen, kindIndex)
	if err != nil {
		return nil, err
	}
	if c != nil {
		if _, ok := parseIndex(c.Bytes(), run); ok {
			s.cache.put(key, c)
			return c, nil
		}
		c.Release()
	}
	_ = s.report(g, int64(pos), 0, "index; it is rebuilt in memory", nil)
	if c, err = s.rebuildIndex(g, run); err != nil {
		return nil, err
	}
	s.cache.put(key, c)
	return c, nil
}

// readBlock reads the block at pos, guess bytes at first; nil if it is damaged.
func (s *Store) readBlock(g *segment, pos int64, guess int, kind uint8) (*buf.Chunk, error) {
	guess = int(min(int64(guess), g.meta.Bytes-pos))
	if guess < blockHeaderLen {
		return nil, nil
	}
	c, err := s.readAt(g, pos, guess)
	if err != nil {
		return nil, err
	}
	if n := blockLen(c.Bytes()); n > c.Len() && int64(n) <= g.meta.Bytes-pos {
		c.Release()
		if c, err = s.readAt(g, pos, n); err != nil {
			return nil, err
		}
	}
	b := openBlock(c.Bytes(), kind, g.meta.seal(), pos)
	if b == nil {
		c.Release()
		return nil, nil
	}
	c.SetBytes(c.Bytes()[:len(b)])
	return c, nil
}

// cachedBlock returns the verified block at pos, through the cache; nil if it is
// damaged.
func (s *Store) cachedBlock(g *segment, pos uint32, guess int, kind uint8) (*buf.Chunk, error) {
	key := blockKey{g.meta.ID, pos}
	c := s.cache.get(key)
	if c != nil && kindOf(c.Bytes()) == kind {
		return c, nil
	}
	if c != nil {
		c.Release()
		return nil, nil
	}
	c, err := s.readBlock(g, int64(pos), guess, kind)
	if c != nil {
		s.cache.put(key, c)
	}
	return c, err
}

// readPart reads the one block that part describes.
func (s *Store) readPart(g *segment, run, part Run, first msg.Offset, maxBytes int) (Block, error) {
	// A block of a run with shared bodies may be followed by bodies; else the size
	// is exact.
	guess := int(part.Size)
	if run.Flags&RunShared != 0 {
		guess = min(guess, blockTarget)
	}
	c, err := s.cachedBlock(g, part.Pos, guess, kindEntries)
	if err != nil {
		return Block{}, err
	}
	if c == nil {
		return Block{}, s.damage(g, int64(part.Pos), int64(guess), "entries", &part)
	}
	h, ok := parseEntriesHeader(c.Bytes())
	if !ok || h.log != part.Log || h.lane != part.Lane || h.first != part.First {
		c.Release()
		return Block{}, s.damage(g, int64(part.Pos), int64(guess), "entries of something else", &part)
	}
	b := Block{chunk: c, first: first, tail: part.First, bound: part.Last}
	b.it.open(c.Bytes(), h)
	// Passing over what comes before first tells whether anything is left.
	for {
		ahead := b.it
		var e entry
		if !ahead.next(&e) {
			bad := ahead.bad
			b.Release()
			if bad {
				return Block{}, s.damage(g, int64(part.Pos), int64(guess), "contents of entries", &part)
			}
			return Block{}, nil
		}
		if e.off >= first {
			break
		}
		b.it = ahead
	}
	if run.Flags&RunShared == 0 {
		return b, nil
	}
	defer c.Release()
	return s.resolve(g, part, b.it, maxBytes)
}

// readSpan reads blocks i to j-1 of a run with one pread, up to the first damaged
// one.
func (s *Store) readSpan(g *segment, run Run, x blockIndex, i, j int, first msg.Offset) (Block, error) {
	start := int64(x.pos(i))
	c, err := s.readAt(g, start, int(x.end(j-1, run)-start))
	if err != nil {
		return Block{}, err
	}
	all := c.Bytes()
	b := Block{chunk: c, first: first}
	good := 0
	for k := i; k < j; k++ {
		block := openBlock(all[min(good, len(all)):], kindEntries, g.meta.seal(), start+int64(good))
		h, ok := parseEntriesHeader(block)
		if !ok || h.log != run.Log || h.lane != run.Lane || h.first != x.first(k) {
			// If anything before it can be had, the next call begins with it.
			probe := b
			if _, _, ok := probe.Next(); ok {
				break
			}
			part := x.part(k, run)
			c.Release()
			return Block{}, s.damage(g, int64(part.Pos), int64(part.Size), "entries", &part)
		}
		good += len(block)
		b.rest, b.tail, b.bound = all[:good], h.first, x.part(k, run).Last
	}
	c.SetBytes(all[:good])
	return b, nil
}

// bodyReader finds shared bodies; it keeps the last block, which the next entry
// often needs too.
type bodyReader struct {
	s     *Store
	g     *segment
	block *buf.Chunk
	pos   uint32
}

// get returns a body, valid until the next call; nil if it is damaged.
func (r *bodyReader) get(ref bodyRef) ([]byte, error) {
	if r.block == nil || r.pos != ref.block {
		r.close()
		guess := max(blockTarget, int64(ref.at)+int64(ref.size))
		c, err := r.s.cachedBlock(r.g, ref.block, int(guess), kindBodies)
		if err != nil || c == nil {
			return nil, err
		}
		r.block, r.pos = c, ref.block
	}
	return ref.body(r.block.Bytes()), nil
}

func (r *bodyReader) close() {
	if r.block != nil {
		r.block.Release()
		r.block = nil
	}
}

// fitting returns how many of the entries have room in maxBytes, at least one, and
// how many bytes they take with their bodies.
func (it entryIter) fitting(maxBytes int) (n, size int) {
	var e entry
	for it.next(&e) {
		more := e.size
		if e.shared {
			more = binary.MaxVarintLen64 + int(e.ref.size)
		}
		if n > 0 && size+more > maxBytes {
			break
		}
		size += more
		n++
	}
	return n, size
}

// resolve copies the entries that it walks, with the bodies they refer to, into a
// chunk of their own: up to maxBytes, but at least one.
func (s *Store) resolve(g *segment, part Run, it entryIter, maxBytes int) (Block, error) {
	n, size := it.fitting(maxBytes)
	if size > maxBlockLen {
		return Block{}, s.damage(g, int64(part.Pos), 0, "sizes of shared bodies", &part)
	}
	out := buf.Get(size)
	b := out.Bytes()
	bodies := bodyReader{s: s, g: g}
	defer bodies.close()
	start := it.off
	prev := start
	var e entry
	for i := range n {
		it.next(&e)
		record := e.record
		if e.shared {
			var err error
			record, err = bodies.get(e.ref)
			if err == nil && record == nil {
				if i > 0 {
					n = i // the next call begins with it, and reports it
					break
				}
				err = s.bodyDamage(g, part, it, e)
			}
			if err != nil {
				out.Release()
				return Block{}, err
			}
		}
		b = binary.AppendUvarint(b, (e.off-prev)<<1)
		b = append(b, record...)
		prev = e.off
	}
	out.SetBytes(b)
	return Block{chunk: out, it: entryIter{b: b, left: n, off: start}, tail: part.First, bound: part.Last}, nil
}

// bodyDamage reports the entries from e on that need the same block of bodies.
func (s *Store) bodyDamage(g *segment, part Run, it entryIter, e entry) error {
	damaged := part
	damaged.First, damaged.Last = e.off, e.off
	block := e.ref.block
	for it.next(&e) && e.shared && e.ref.block == block {
		damaged.Last = e.off
	}
	return s.damage(g, int64(block), 0, "shared bodies", &damaged)
}

// ReadAhead sizes the reads of one sequential consumer: MinReadBytes at first and
// after every jump, doubling up to MaxReadBytes while it reads on where it
// stopped. The zero value is ready for use.
type ReadAhead struct {
	log   msg.LogID
	lane  uint8
	tail  msg.Offset // who reads on asks for something behind this
	bound msg.Offset // and at most one behind this
	size  int        // of the last read
}

// Read is ReadRange with the size chosen, at most limit bytes.
func (ra *ReadAhead) Read(s *Store, run Run, first msg.Offset, limit int) (Block, error) {
	onward := ra.size != 0 && ra.log == run.Log && ra.lane == run.Lane &&
		first > ra.tail && (first <= ra.bound+1 || first <= run.First)
	if onward {
		ra.size = min(2*ra.size, MaxReadBytes)
	} else {
		ra.size = MinReadBytes
	}
	b, err := s.ReadRange(run, first, min(ra.size, limit))
	ra.log, ra.lane, ra.tail, ra.bound = run.Log, run.Lane, max(b.tail, first), b.bound
	return b, err
}
