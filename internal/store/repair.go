package store

import (
	"errors"
	"fmt"
)

// CheckpointRepair is what RepairCheckpoint made of a damaged checkpoint.
type CheckpointRepair struct {
	// Index is what the checkpoint stands for now; lower than before if it is an
	// earlier one.
	Index uint64
	// Lossy: keys are lost that nothing tells of. Else it is what it was at Index.
	Lossy   bool
	Damages []*DamageError
}

// survey is what a walk over a damaged checkpoint file found.
type survey struct {
	holes [][2]int64
	pairs uint64
	// Of the last delta in front of the first hole.
	index, before uint64
	len           int64
}

// walkPairs calls fn for the pairs of all sound blocks up to a position.
func walkPairs(c *checkpointFile, end int64, fn func(n uint64, key, value []byte) error) (s survey, err error) {
	sc := newScanner(c.f, c.id, end)
	defer sc.close()
	for pos := int64(checkpointHeaderLen); pos < end; {
		b, err := sc.at(pos)
		if err != nil {
			return s, err
		}
		if b == nil {
			next, err := sc.next(pos)
			if err != nil {
				return s, err
			}
			s.holes = append(s.holes, [2]int64{pos, next})
			pos = next
			continue
		}
		v := varints{b: b[blockHeaderLen:]}
		pos += int64(len(b))
		switch kindOf(b) {
		case kindPairs:
			if s.pairs, err = eachPair(&v, s.pairs, fn); err != nil {
				return s, err
			}
		case kindMark:
			if len(s.holes) == 0 {
				s.index, s.before, s.len = v.u64(), s.pairs, pos
			}
		}
	}
	return s, nil
}

// RepairCheckpoint replaces a shard's damaged checkpoint, whose file the caller has put
// aside, by what is sound: if a later delta is damaged, the one before it; else, all keys
// that can be read. Not concurrent with anything else about the shard's checkpoint.
func (s *Store) RepairCheckpoint(shard uint32) (CheckpointRepair, error) {
	info, _ := s.Checkpoint(shard)
	rep := CheckpointRepair{Index: info.Index}
	s.mu.RLock()
	old := s.ckpts[shard]
	s.mu.RUnlock()
	end, pairs := info.Len, uint64(0)
	if old == nil {
		rep.Lossy, rep.Damages = true, []*DamageError{missingCheckpoint(shard, info)}
	} else {
		found, err := walkPairs(old, end, func(uint64, []byte, []byte) error { return nil })
		if err != nil {
			return rep, fmt.Errorf("store: %s: %w", old.path, err)
		}
		for _, h := range found.holes {
			rep.Damages = append(rep.Damages, &DamageError{Path: old.path, Shard: shard, Pos: h[0], Len: h[1] - h[0], Reason: "checkpoint"})
		}
		pairs = found.pairs
		switch {
		case len(found.holes) == 0: // the header
			rep.Damages = append(rep.Damages, &DamageError{Path: old.path, Shard: shard, Len: checkpointHeaderLen, Reason: "checkpoint header; what follows is sound"})
		case found.pairs == info.Pairs: // a mark
		case found.len >= info.Base && found.len > 0:
			rep.Index, end, pairs = found.index, found.len, found.before
		default:
			rep.Lossy = true
		}
	}
	return rep, s.replaceCheckpoint(shard, info, old, end, pairs, rep.Index)
}

// replaceCheckpoint writes the sound pairs of a file up to a position into a new one and
// makes that the shard's checkpoint.
func (s *Store) replaceCheckpoint(shard uint32, info CheckpointInfo, old *checkpointFile, end int64, pairs, index uint64) error {
	file, err := s.createCheckpoint(shard, info.File+1)
	if err != nil {
		return err
	}
	c := &CheckpointWriter{s: s, shard: shard, file: file, fresh: true, pos: checkpointHeaderLen}
	defer c.Abort()
	if old != nil {
		err = lastPairs(pairs, keysAtOnce, c.Put, func(fn func(n uint64, key, value []byte) error) error {
			_, err := walkPairs(old, end, fn)
			return err
		})
	}
	if err := errors.Join(err, c.finish(index)); err != nil {
		return err
	}
	info.File, info.Base, info.Len, info.Pairs, info.Index = file.id, c.pos, c.pos, c.pairs, index
	var e Edit
	e.setCheckpoint(shard, info)
	if err := s.install(&e, func() { s.ckpts[shard] = file }); err != nil {
		c.err = err
		return err
	}
	c.done = true
	if old != nil {
		s.releaseCheckpoint(old)
	}
	return nil
}
