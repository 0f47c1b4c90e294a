package store

import (
	"encoding/binary"

	"github.com/sluicemq/sluice/internal/msg"
)

// DueList walks the entries of a segment that have an expiry, by ascending time.
type DueList struct {
	s    *Store
	id   SegID
	pos  int64 // of the next page
	end  int64
	n    int
	page []byte // entries of the loaded page not yet returned
	mem  []byte
	time int64
}

// DueEntry is an entry with its expiry.
type DueEntry struct {
	TimeMS int64
	Log    msg.LogID
	Lane   uint8
	Offset msg.Offset
}

// Due opens the list of a segment's entries that have an expiry, nil if there are
// none. It reads up to 64 KiB at a time. The segment must be pinned while it is
// used.
func (s *Store) Due(id SegID) (*DueList, error) {
	g, err := s.acquire(id)
	if err != nil {
		return nil, err
	}
	defer s.release(g)
	st := &g.meta.stats
	if st.dues == 0 {
		return nil, nil
	}
	return &DueList{s: s, id: id, pos: int64(st.duePos), end: int64(st.dirPos), n: int(st.dues)}, nil
}

// Len returns the number of entries in the whole list.
func (d *DueList) Len() int { return d.n }

// Next returns the next entry; ok is false at the end.
func (d *DueList) Next() (e DueEntry, ok bool, err error) {
	if len(d.page) == 0 {
		if d.pos >= d.end {
			return e, false, nil
		}
		if err := d.load(); err != nil {
			return e, false, err
		}
	}
	dt, n := binary.Varint(d.page)
	v := varints{b: d.page[max(n, 0):], bad: n <= 0}
	e.Log = v.u64()
	e.Lane = v.u8()
	e.Offset = v.u64()
	if v.bad {
		g, err := d.s.acquire(d.id)
		if err != nil {
			return e, false, err
		}
		defer d.s.release(g)
		return e, false, d.s.report(g, d.pos, 0, "contents of a due page", nil)
	}
	d.time += dt
	e.TimeMS = d.time
	d.page = v.b
	return e, true, nil
}

// load reads the next page.
func (d *DueList) load() error {
	g, err := d.s.acquire(d.id)
	if err != nil {
		return err
	}
	defer d.s.release(g)
	c, err := d.s.readBlock(g, d.pos, int(min(duePageTarget, d.end-d.pos)), kindDue)
	if err != nil {
		return err
	}
	if c == nil {
		return d.s.report(g, d.pos, d.end-d.pos, "due page", nil)
	}
	defer c.Release()
	d.mem = append(d.mem[:0], c.Bytes()[blockHeaderLen:]...)
	d.page, d.time = d.mem, 0
	d.pos += int64(c.Len())
	return nil
}
