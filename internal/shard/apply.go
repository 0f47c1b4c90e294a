package shard

import (
	"encoding/binary"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/planted"
	"github.com/sluicemq/sluice/internal/wal"
)

// applyTurnMax bounds the entries that one turn applies, so that ticks and input are
// served in between.
const applyTurnMax = 64

// applyCommitted applies entries that are committed and durable here; true if some are
// left.
func (c *Core) applyCommitted() (more bool) {
	left := applyTurnMax
	if c.install != nil {
		return false // the machine is being loaded
	}
	for len(c.applyQ) > 0 {
		m := c.applyQ[0]
		ents := m.GetEntries()
		for c.applyAt < len(ents) {
			e := ents[c.applyAt]
			if e.GetIndex() > c.durable {
				return false
			}
			if left == 0 {
				return true
			}
			left--
			c.applyAt++
			if err := c.applyEntry(e); err != nil {
				c.fail(err)
				return false
			}
		}
		c.applyQ[0] = nil
		c.applyQ = c.applyQ[1:]
		c.applyAt = 0
		for _, r := range m.GetResponses() {
			_ = c.rn.Step(r)
		}
		c.ready()
	}
	return false
}

func (c *Core) applyEntry(e *pb.Entry) error {
	index := e.GetIndex()
	if index <= c.applied {
		return nil
	}
	s := c.log.slot(index)
	if s == nil {
		return fmt.Errorf("shard %d: committed entry %d is not in the log", c.cfg.ID, index)
	}
	c.applied = index
	switch p := s.mem; {
	case p != nil && p.chunks != nil:
		if err := c.applyChunks(index, p, s.pos); err != nil {
			return err
		}
	case p != nil:
		if err := c.applyBytes(index, p.vec[0], s.pos); err != nil {
			return err
		}
	case e.GetType() != pb.EntryNormal:
		if err := c.applyConf(index, s.cc); err != nil {
			return err
		}
	case s.gen == 0:
		if e.GetTerm() == c.term && c.lead == c.cfg.Node && !c.leading {
			c.beginTerm()
		}
	}
	c.trust(e.GetTerm())
	if s.mem != nil {
		c.cut.entries++
		c.cut.bytes += int64(s.len)
		s.mem.release()
		s.mem = nil
	}
	return nil
}

// wall reads the wall clock in ms since 1970.
func (c *Core) wall() int64 {
	if c.cfg.Wall != nil {
		return c.cfg.Wall().UnixMilli()
	}
	return c.cfg.Now().UnixMilli()
}

// beginTerm is called when the first entry of the own term has been applied: the
// ledger is now current, and leading begins.
func (c *Core) beginTerm() {
	c.leading = true
	clear(c.expect)
	clear(c.gaps)
	for id, seq := range c.links.last {
		c.expect[id] = seq
	}
	c.pending.startAfter(c.links.last[c.cfg.Link])
	c.pending.rewind(c.cfg.Now())
	c.clock.begin(c.timeMS, c.cfg.Now(), c.wall())
	c.cfg.Machine.Lead(c.term)
}

// startAfter sets the first sequence of a link that has submitted nothing yet.
func (p *pending) startAfter(last uint64) {
	if p.head <= 1 && p.head <= last {
		p.head = last + 1
	}
}

// applyChunks applies a batch whose parts lie in chunks.
func (c *Core) applyChunks(index uint64, p *payload, pos wal.Position) error {
	le := binary.LittleEndian
	c.timeMS = max(c.timeMS, int64(le.Uint64(p.header[8:])))
	at := uint32(len(p.header))
	for i, ch := range p.chunks {
		h := p.header[msg.BatchHeaderLen(i):]
		sub, err := msg.ParseSubmission(ch.Bytes())
		if err != nil {
			return err
		}
		c.applyPart(index, i, msg.Part{Link: le.Uint64(h), Seq: le.Uint64(h[8:]), Sub: sub}, ch,
			wal.Position{Seq: pos.Seq, Off: pos.Off + at, Len: uint32(len(sub))})
		at += uint32(len(sub))
	}
	return nil
}

// applyBytes applies a batch that lies in one piece. Empty: an entry of raft's own.
func (c *Core) applyBytes(index uint64, b []byte, pos wal.Position) error {
	if len(b) == 0 {
		return nil
	}
	batch, err := msg.ParseBatch(b)
	if err != nil {
		return fmt.Errorf("shard %d: entry %d: %w", c.cfg.ID, index, err)
	}
	c.timeMS = max(c.timeMS, batch.TimeMS)
	i := 0
	return batch.Parts(func(p msg.Part, at int) error {
		c.applyPart(index, i, p, nil, wal.Position{Seq: pos.Seq, Off: pos.Off + uint32(at), Len: uint32(len(p.Sub))})
		i++
		return nil
	})
}

func (c *Core) applyPart(index uint64, i int, p msg.Part, ch *buf.Chunk, pos wal.Position) {
	if p.Link != 0 {
		if c.links.accept(p.Link, p.Seq) != linkAccept {
			return
		}
	}
	if planted.FollowerDrops && !c.leading && c.wall()-c.timeMS > 2000 {
		return
	}
	local := p.Link == c.cfg.Link
	res := c.cfg.Machine.Apply(&Command{
		Index: index, Part: i, TimeMS: c.timeMS, Sub: p.Sub, Chunk: ch, Pos: pos, Link: p.Link, Local: local,
	})
	if !local {
		if source, ok := OutboxSource(p.Link); ok && c.leading && c.cfg.Moved != nil {
			c.cfg.Moved(source, false)
		}
		return
	}
	if s, ok := c.pending.pop(p.Seq); ok {
		c.idle = 0
		s.Finish(c.cfg.ID, res)
	}
}

// cutter takes checkpoints in slices.
type cutter struct {
	entries uint64
	bytes   int64
	running bool
	waiting bool // handed over, not durable yet
	cut     Cut
}

// keysPerSlice bounds the work of one slice of a checkpoint.
const keysPerSlice = 256

// ShardKey is the checkpoint key of the shard's own state: links and time. Machines use
// other keys.
const ShardKey = "\xffshard"

// advance begins or continues a checkpoint; true if it wants to go on at once.
func (k *cutter) advance(c *Core) bool {
	if c.cfg.Checkpoint == nil || k.waiting || c.CatchingUp() {
		return false
	}
	if !k.running {
		if k.entries < c.cfg.CheckpointEntries && k.bytes < c.cfg.CheckpointBytes {
			return false
		}
		k.begin(c)
	}
	done := c.cfg.Machine.CheckpointSlice(keysPerSlice, func(key, value []byte) {
		kv := KV{Key: append([]byte(nil), key...)}
		if value != nil {
			kv.Value = append(make([]byte, 0, len(value)), value...)
		}
		k.cut.Keys = append(k.cut.Keys, kv)
	})
	if !done {
		return true
	}
	k.running, k.waiting = false, true
	cut := k.cut
	k.cut = Cut{}
	c.cfg.Checkpoint(cut)
	return false
}

func (k *cutter) begin(c *Core) {
	k.running, k.entries, k.bytes = true, 0, 0
	state := binary.LittleEndian.AppendUint64(nil, uint64(c.timeMS))
	state = append(state, c.links.encode()...)
	k.cut = Cut{
		Shard: c.cfg.ID, Index: c.applied, Term: c.log.termOf(c.applied), Conf: c.encodeConf(),
		Keys: []KV{{Key: []byte(ShardKey), Value: state}},
	}
	c.cfg.Machine.BeginCheckpoint()
}

// ParseShardState reads the value of ShardKey.
func ParseShardState(b []byte) (timeMS int64, linkTable []byte, err error) {
	if len(b) < 8 || (len(b)-8)%16 != 0 {
		return 0, nil, fmt.Errorf("shard: state of %d bytes", len(b))
	}
	return int64(binary.LittleEndian.Uint64(b)), b[8:], nil
}

// RequestCheckpoint makes the next turn begin a checkpoint unless one is on its way.
func (c *Core) RequestCheckpoint() { c.cut.entries = max(c.cut.entries, c.cfg.CheckpointEntries) }

// CheckpointDone tells that a cut is durable. A cut that could not be written must be
// written again by its receiver: the next one only holds what changed since.
func (c *Core) CheckpointDone() { c.cut.waiting = false }

// Table returns the shard's row for the head of a WAL file.
func (c *Core) Table(checkpoint uint64) wal.ShardState {
	return wal.ShardState{
		Shard: c.cfg.ID, Incarnation: c.cfg.Incarnation,
		HardState:  wal.HardState{Term: c.log.hs.GetTerm(), Vote: c.log.hs.GetVote(), Commit: c.log.hs.GetCommit()},
		FirstIndex: c.log.first, FirstTerm: c.log.termOf(c.log.first - 1), CheckpointID: checkpoint,
	}
}
