package shard

import (
	"errors"
	"fmt"
	"math"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/sluicemq/sluice/internal/wal"
)

// recoverLog rebuilds the entry log from the WAL and applies what is known to be
// committed: with one voter everything that is durable is.
func (c *Core) recoverLog(r Restored) error {
	conf := &pb.ConfState{Voters: c.cfg.Voters}
	c.first = conf
	if r.Conf != nil {
		var err error
		if conf, err = parseConf(r.Conf); err != nil {
			return err
		}
		c.changed = true
	}
	first, prevTerm := r.Checkpoint+1, r.Term
	hs := wal.HardState{}
	if r.Wal != nil {
		hs = r.Wal.HardState
		if r.Installed && r.Wal.Started < r.Checkpoint && r.Wal.FirstIndex <= r.Checkpoint {
			c.logStart, r.Replay = true, nil // the entries are those before the snapshot
		}
		has := r.Wal.FirstEntry > 0 && r.Wal.LastIndex >= r.Wal.FirstEntry && !c.logStart
		if has && r.Wal.FirstEntry > r.Checkpoint+1 && r.Salvage == nil {
			return fmt.Errorf("shard %d: the write-ahead log begins at entry %d, the checkpoint ends at %d", c.cfg.ID, r.Wal.FirstEntry, r.Checkpoint)
		}
		if has && !soleIn(conf, c.cfg.Node) && r.Wal.FirstEntry <= r.Checkpoint {
			var err error
			if first, prevTerm, err = oldest(r); err != nil {
				return err
			}
		}
	}
	c.log = newEntryLog(first, prevTerm, conf)
	c.log.joined = c.changed
	if r.Wal != nil && r.Replay != nil {
		if err := c.replay(r, hs.Commit); err != nil {
			return err
		}
	}
	c.durable = c.log.last()
	commit := min(max(hs.Commit, c.applied), c.log.last())
	c.log.hs = pb.HardState{Term: new(max(hs.Term, c.log.termOf(c.log.last()))), Vote: new(hs.Vote), Commit: new(commit)}
	return nil
}

// oldest returns the first entry that the log can offer to followers, who may need older
// ones than the checkpoint, and the term of the one before it. If files were released
// since the last one was begun, nothing tells the term before the first entry that is
// left, which then serves as that.
func oldest(r Restored) (first, prevTerm uint64, err error) {
	first = r.Wal.FirstEntry
	switch {
	case first == 1:
		return 1, 0, nil
	case first == r.Wal.FirstIndex:
		return first, r.Wal.FirstTerm, nil
	}
	known := errors.New("found")
	err = r.Replay(math.MaxUint64, func(e wal.Entry) error {
		prevTerm = e.Term
		return known
	})
	if !errors.Is(err, known) {
		return 0, 0, fmt.Errorf("first entry of the write-ahead log: %w", err)
	}
	return first + 1, prevTerm, nil
}

// replay enters what the WAL has and applies what is committed. Changes of the
// configuration among that say with whom what follows had to be agreed.
func (c *Core) replay(r Restored, commit uint64) error {
	c.links.jump = r.Lossy
	defer func() { c.links.jump = false }()
	err := r.Replay(min(c.log.first, r.Checkpoint+1), func(e wal.Entry) error {
		if e.Index < c.log.first {
			return nil
		}
		if r.Suspect {
			if skip, err := c.cutDamage(r, e); skip {
				return err
			}
		}
		if e.Index > c.log.last()+1 {
			if err := c.fillHole(r, e.Index); err != nil {
				return err
			}
		}
		damaged := e.Damaged && e.Index > r.Checkpoint
		if damaged && r.Salvage == nil {
			return fmt.Errorf("shard %d: entry %d at %d+%d of the write-ahead log is damaged", c.cfg.ID, e.Index, e.Pos.Seq, e.Pos.Off)
		}
		s := slot{len: e.Pos.Len, crc: e.PayloadCRC, pos: e.Pos}
		cc, isConf := confPayload(e.Payload)
		committed := e.Index <= commit || c.sole()
		switch {
		case isConf:
			s.typ, s.cc = pb.EntryConfChangeV2, append([]byte(nil), cc...)
		case e.Pos.Len > 0:
			s.gen = e.Index // any number: proposals of the past are never matched again
			if !committed && e.Payload != nil {
				s.mem = &payload{refs: 1, vec: [][]byte{append([]byte(nil), e.Payload...)}, crc: e.PayloadCRC, size: len(e.Payload)}
			}
		}
		c.log.put(e.Index, e.Term, s)
		if e.Index <= r.Checkpoint || !committed {
			return nil
		}
		c.applied = e.Index
		switch {
		case isConf:
			return c.applyConf(e.Index, s.cc)
		case damaged:
			return c.applySalvaged(r.Salvage, e)
		}
		return c.applyBytes(e.Index, e.Payload, e.Pos)
	})
	if errors.Is(err, errCut) {
		err = nil
	}
	if err == nil && c.log.last() < r.Checkpoint {
		c.log.restart(r.Checkpoint, r.Term, c.log.conf)
	}
	return err
}
