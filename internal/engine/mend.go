package engine

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/wal"
)

// settingOrphans is in the MANIFEST while logs without a definition are not to be
// removed, because definitions were lost.
const settingOrphans = "orphans"

// salvage makes the recovery of a shard go on over damage. lose tells its machine.
func (n *Node) salvage(id uint32, lose func()) *shard.Salvage {
	return &shard.Salvage{
		Read: func(pos wal.Position) ([]byte, error) {
			b := make([]byte, pos.Len)
			return b, n.wal.ReadAt(pos, 0, b)
		},
		Lost: func(l shard.Lost) {
			n.damaged = true
			in := Incident{
				Path: fmt.Sprintf("missing/shard-%d-entries", id), Pos: int64(l.First), Shard: id,
				Reason: "entries of the write-ahead log are missing", FirstEntry: l.First, LastEntry: l.Last,
			}
			if l.Pos.Seq != 0 {
				in = ofWAL(id, walDamage(l.Pos, "payload"))
				in.FirstEntry, in.LastEntry = l.First, l.Last
			}
			in.Unknown = lostCommands(id, l)
			if err := n.aside.add(in); err != nil {
				n.lossErr = err
			}
			lose()
		},
	}
}

// lostCommands says what it means that commands are lost.
func lostCommands(id uint32, l shard.Lost) string {
	what := "operations"
	if l.Parts > 0 {
		what = fmt.Sprintf("%d submissions", l.Parts)
	}
	where := fmt.Sprintf("entries %d to %d", l.First, l.Last)
	if id == MetaShard {
		return fmt.Sprintf("%s of %s are lost: definitions made or removed by them; what was declared after them is there, queues with new logs; logs without a definition get queues named %q", what, where, LostQueuePrefix+"...")
	}
	return fmt.Sprintf("%s of %s are lost, with the messages published in them; settlements in them, and later ones of messages published after them, are undone: those messages come again, flagged as redelivered", what, where)
}

// LostQueuePrefix begins the names of queues that are made for logs whose definition is
// lost; shard and log follow.
const LostQueuePrefix = "sluice.lost."

// metaLost notes that definitions are lost, for as long as it takes until the logs that
// have none any more are adopted.
func (n *Node) metaLost(cfg NodeConfig) func() {
	return func() {
		var e store.Edit
		e.Set(settingOrphans, []byte{1})
		if err := n.store.Install(&e); err != nil {
			n.lossErr = err
		}
		if cfg.MetaLost != nil {
			cfg.MetaLost()
		}
	}
}

// KeepOrphans says whether logs without a definition must be kept, because it may have
// been lost.
func (n *Node) KeepOrphans() bool {
	_, yes := n.store.Setting(settingOrphans)
	return yes
}

// OrphansAdopted ends KeepOrphans.
func (n *Node) OrphansAdopted() error {
	var e store.Edit
	e.Set(settingOrphans, nil)
	return n.store.Install(&e)
}

// storeDamages opens the quarantine and puts aside what the store found damaged when it
// was opened.
func (n *Node) storeDamages(cfg NodeConfig, list []*store.DamageError) error {
	var err error
	if n.aside, err = openQuarantine(n.disk.fs, cfg.Dir, cfg.Log); err != nil {
		return err
	}
	n.aside.queueOf = cfg.QueueOf
	manifest := false
	for _, d := range list {
		if d.Shard == VolatileShard && d.Seg != 0 { // which begins empty
			continue
		}
		if cfg.Strict || n.shared(cfg, d.Shard) {
			return fmt.Errorf("store: %w", d)
		}
		in := ofStore(d)
		if d.Seg != 0 {
			in.Unknown = "messages that were in blocks that can't be read are lost; those that are known to be missing are reported by themselves"
		}
		if err := n.aside.add(in); err != nil {
			return err
		}
		n.damaged = true
		manifest = manifest || d.Path == "MANIFEST"
	}
	if manifest {
		return n.store.ReplaceManifest()
	}
	return nil
}

// shared says whether other nodes have a shard too. What is lost here is not lost then,
// and must not be given up: the node does not start with a damaged store.
func (n *Node) shared(cfg NodeConfig, id uint32) bool {
	var conf []byte
	if info, ok := n.store.Checkpoint(id); ok {
		if x, err := shard.ParseCheckpointExtra(info.Extra); err == nil {
			conf = x.Conf
		}
	}
	return shard.Others(conf, cfg.Replicas.Voters, cfg.Replicas.Node)
}

// walDamages puts aside what of the write-ahead log is damaged.
func (n *Node) walDamages(cfg NodeConfig, rec *wal.Recovery) error {
	if rec.Damaged() && cfg.Strict {
		return &DamageError{rec.Damages}
	}
	n.damaged = n.damaged || rec.Damaged()
	for i := range rec.Damages {
		in := ofWAL(rec.Damages[i].Shard, &rec.Damages[i])
		if rec.Damages[i].Records {
			in.Unknown = "operations of any shard may have been here, beyond those that are known to be missing"
		}
		if err := n.aside.add(in); err != nil {
			return err
		}
	}
	return nil
}

// checkpointDamage looks whether a shard's checkpoint can be read, and replaces it by
// what is sound of it if not: info is then that of the new one.
func (n *Node) checkpointDamage(cfg NodeConfig, id uint32, info *store.CheckpointInfo, r *shard.Restored) error {
	err := n.store.CheckCheckpoint(id)
	var damage *store.DamageError
	if err == nil || !errors.As(err, &damage) || cfg.Strict || n.shared(cfg, id) {
		return err
	}
	in := ofStore(damage)
	in.Len = info.Len - in.Pos // what is damaged in it is not known before it is replaced
	in.Unknown = fmt.Sprintf("the checkpoint of shard %d at entry %d can't be used as it is; see what follows", id, info.Index)
	if err := n.aside.add(in); err != nil {
		return err
	}
	n.damaged = true
	rep, err := n.store.RepairCheckpoint(id)
	if err != nil {
		return fmt.Errorf("shard %d: checkpoint: %w", id, err)
	}
	r.Lossy = rep.Lossy
	for _, d := range rep.Damages {
		what := fmt.Sprintf("nothing, if the write-ahead log has all entries from %d on", rep.Index+1)
		if rep.Lossy {
			what = fmt.Sprintf("keys of the checkpoint of shard %d at entry %d: logs, what is settled in them, or definitions; messages come again, flagged as redelivered", id, rep.Index)
		}
		in := ofStore(d)
		in.Path, in.Unknown = "repaired/"+filepath.ToSlash(d.Path), "lost: "+what
		if err := n.aside.add(in); err != nil {
			return err
		}
	}
	*info, _ = n.store.Checkpoint(id)
	return nil
}

// catchUp writes empty entries up to the checkpoint where the log ends before it, since
// the entries there are lost: the next one would leave a gap.
func (n *Node) catchUp(id uint32, r *shard.Restored) error {
	if r.Checkpoint == 0 || r.Wal != nil && (r.Wal.LastIndex == 0 || r.Wal.LastIndex >= r.Checkpoint) {
		return nil
	}
	n.damaged = true
	in := Incident{
		Path: fmt.Sprintf("missing/shard-%d-entries", id), Shard: id,
		Reason:  "the write-ahead log ends before the checkpoint",
		Unknown: "what came after the checkpoint is lost: messages published and settlements",
	}
	if r.Wal != nil {
		in.Pos, in.FirstEntry, in.LastEntry = int64(r.Wal.LastIndex+1), r.Wal.LastIndex+1, r.Checkpoint
	}
	if err := n.aside.add(in); err != nil {
		return err
	}
	if r.Wal == nil {
		return nil // any entry may be the first
	}
	for i := r.Wal.LastIndex + 1; i <= r.Checkpoint; {
		a := wal.Append{}
		for ; i <= r.Checkpoint && len(a.Records) < 1024; i++ {
			a.Records = append(a.Records, wal.Record{
				Type: wal.TypeEntry, Shard: id, Incarnation: r.Wal.Incarnation, Term: max(r.Term, r.Wal.LastTerm),
				Index: i, PayloadCRC: msg.CRC(nil),
			})
		}
		done := make(chan error, 1)
		a.Done = func(err error, _ []wal.Position) { done <- err }
		n.wal.Submit(a)
		if err := <-done; err != nil {
			return fmt.Errorf("shard %d: entries up to the checkpoint: %w", id, err)
		}
	}
	return nil
}

// mend ends a start from damage: what is lost is settled, and checkpoints see to it that
// the damage is never replayed again. Nothing was served before.
func (n *Node) mend() error {
	for _, s := range n.queues {
		var lost []badList
		if !s.Call(func() { lost = s.m.unplaced() }) {
			return ErrStopped
		}
		for i := range lost {
			if _, err := lost[i].giveUp(s, nil); err != nil {
				return err
			}
		}
	}
	for _, s := range n.keeper.all {
		var applied uint64
		if !s.Call(func() { applied = s.Core().Applied() }) {
			return ErrStopped
		}
		if err := n.keeper.checkpointed(s.ID(), applied, true); err != nil {
			return err
		}
	}
	return nil
}

// unplacedIn adds what of a range of unsettled offsets has no place. bad remembers the
// submissions that were looked at.
func (m *Machine) unplacedIn(b *badList, l *place, r msg.Range, bad map[uint64]*wal.Damage) {
	for off, end := r.First, r.First+r.Count; off < end; {
		src, n := m.placeOf(l, off, end-off)
		switch src {
		case inRun:
		case nowhereAt:
			b.add(off, off+n-1, Incident{})
		default:
			if damage := m.checkSub(src, bad); damage != nil {
				b.add(off, off+n-1, ofWAL(m.id, damage))
			}
		}
		off += n
	}
}

// Answers of placeOf besides the number of a submission.
const (
	inRun     = ^uint64(0)
	nowhereAt = ^uint64(0) - 1
)

// placeOf says where offsets from off on lie, at most so many.
func (m *Machine) placeOf(l *place, off msg.Offset, most uint64) (src, n uint64) {
	if l == nil {
		return nowhereAt, most
	}
	next := off + most // where something begins
	for i := range l.notes {
		e := &l.notes[i]
		if end := e.first + uint64(e.count); off >= e.first && off < end {
			return e.sub, min(most, end-off)
		}
		if e.first > off {
			next = min(next, e.first)
			break
		}
	}
	for _, r := range l.runs {
		switch {
		case r.First > off:
			next = min(next, r.First)
		case r.Last >= off:
			return inRun, min(most, r.Last-off+1)
		}
	}
	return nowhereAt, next - off
}

// checkSub reads a submission of the tail back.
func (m *Machine) checkSub(sub uint64, seen map[uint64]*wal.Damage) *wal.Damage {
	d, known := seen[sub]
	if known {
		return d
	}
	c, pos, ok := m.tail.get(sub)
	if ok && c == nil {
		var err error
		c, err = m.readBack(pos)
		_ = errors.As(err, &d) // anything else is met again when it is read
	}
	if c != nil {
		c.Release()
	}
	seen[sub] = d
	return d
}
