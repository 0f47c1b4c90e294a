package wal

const (
	arenaBlock = 64 << 10
	// copyBelow is the size up to which a chunk is copied beside the headers: a
	// vector of its own costs the kernel more than that.
	copyBelow = 512
)

// group collects the vectors of one write. Memory is kept from group to group.
type group struct {
	vecs    [][]byte
	header  []byte // to be filled in last
	length  int64  // bytes of the records
	records uint32
	seed    uint32
	sync    bool // somebody waits for durability

	blocks [][]byte // arena of headers, padding and small chunks
	block  int      // index of the block in use
	used   int      // bytes of it
	open   bool     // the last vector ends where the next bytes of the block begin
}

// reset begins a group whose records are seeded by seed.
func (g *group) reset(seed uint32) {
	clear(g.vecs) // drop the producers' chunks
	g.vecs = g.vecs[:0]
	g.block, g.used, g.open = 0, 0, false
	g.length, g.records, g.seed, g.sync = 0, 0, seed, false
	g.header = g.alloc(groupHeaderLen)
}

// alloc returns n bytes that follow in the write; n <= arenaBlock. They extend
// the last vector if they lie behind it in memory.
func (g *group) alloc(n int) []byte {
	if len(g.blocks) == 0 || g.used+n > arenaBlock {
		if len(g.blocks) > 0 && g.used > 0 {
			g.block++
		}
		if g.block >= len(g.blocks) {
			g.blocks = append(g.blocks, make([]byte, arenaBlock))
		}
		g.used, g.open = 0, false
	}
	b := g.blocks[g.block][g.used : g.used+n]
	g.used += n
	if v := len(g.vecs) - 1; g.open {
		g.vecs[v] = g.vecs[v][:len(g.vecs[v])+n]
	} else {
		g.vecs, g.open = append(g.vecs, b), true
	}
	return b
}

// add appends a record and returns where its payload begins, in bytes from the
// group's start.
func (g *group) add(r *Record, length int64) int64 {
	h := recordHeader{
		length: uint32(length), typ: r.Type, shard: r.Shard, payloadCRC: r.PayloadCRC,
		incarnation: r.Incarnation, term: r.Term, index: r.Index, ordinal: g.records,
	}
	b := g.alloc(recordHeaderLen)
	if r.Type != TypeEntry {
		aux := g.alloc(auxLen)
		le.PutUint64(aux, r.Aux)
		h.payloadCRC = checksum(aux)
	}
	for _, chunk := range r.Payload {
		switch {
		case len(chunk) > copyBelow:
			g.vecs, g.open = append(g.vecs, chunk), false
		case len(chunk) > 0:
			copy(g.alloc(len(chunk)), chunk)
		}
	}
	putRecordHeader(b, g.seed, h)
	at := groupHeaderLen + g.length + recordHeaderLen
	g.pad(h.size() - recordHeaderLen - length)
	g.length += h.size()
	g.records++
	return at
}

func (g *group) pad(n int64) {
	if n > 0 {
		clear(g.alloc(int(n)))
	}
}

// finish fills in the header and pads the group; h comes without what the group
// itself knows. It returns the bytes of the whole group.
func (g *group) finish(h groupHeader) int64 {
	h.length, h.records = uint32(g.length), g.records
	putGroupHeader(g.header, h)
	size := h.size()
	g.pad(size - groupHeaderLen - g.length)
	return size
}

// sizeWith is what the group would take with another record of the given payload.
func (g *group) sizeWith(payload int64) int64 {
	return alignUp(groupHeaderLen+g.length+recordSize(payload), sectorSize)
}
