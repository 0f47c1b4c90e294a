package shard

import (
	"fmt"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/wal"
)

// Salvage is how recovery gets over damage.
type Salvage struct {
	// Read returns the bytes of a damaged entry.
	Read func(pos wal.Position) ([]byte, error)
	// Lost is told, in the order of the log, what is lost: before what comes after it
	// is applied.
	Lost func(Lost)
}

// Lost is a range of entries of which something, or all, is lost. Offsets that later
// entries name may then be others than those that a replay gives.
type Lost struct {
	First, Last uint64 // indexes, inclusive
	// Pos is where a damaged entry lies; without Seq the entries are missing.
	Pos wal.Position
	// Parts is how many submissions are lost, -1 if nobody knows.
	Parts int
}

// fillHole puts empty entries where some are missing before index.
func (c *Core) fillHole(r Restored, index uint64) error {
	first := c.log.last() + 1
	if r.Salvage == nil {
		return fmt.Errorf("shard %d: entries %d to %d are missing in the write-ahead log", c.cfg.ID, first, index-1)
	}
	for i := first; i < index; i++ {
		c.log.put(i, c.log.termOf(i-1), slot{})
	}
	c.applied = max(c.applied, index-1)
	c.links.jump = true
	r.Salvage.Lost(Lost{First: first, Last: index - 1, Parts: -1})
	return nil
}

// applySalvaged applies what is sound of a damaged entry. Submissions are independent of
// each other, as those of a batch come from different sessions or in separate steps.
func (c *Core) applySalvaged(s *Salvage, e wal.Entry) error {
	b, err := s.Read(e.Pos)
	if err != nil {
		b = nil
	}
	found := msg.SalvageBatch(b, e.PayloadCRC)
	if found.Lost != 0 {
		c.links.jump = true
		s.Lost(Lost{First: e.Index, Last: e.Index, Pos: e.Pos, Parts: found.Lost})
	}
	if found.HeaderSound {
		c.timeMS = max(c.timeMS, found.TimeMS)
	} else {
		c.links.jump = true // how far they got is not known
	}
	for i, p := range found.Parts {
		c.applyPart(e.Index, i, p.Part, nil, wal.Position{Seq: e.Pos.Seq, Off: e.Pos.Off + uint32(p.Pos), Len: uint32(len(p.Sub))})
	}
	return nil
}
