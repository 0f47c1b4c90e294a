package shard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/sluicemq/sluice/internal/msg"
)

// The configuration of a group, who votes and who only learns, is part of what is
// ordered: a change of it is an entry, by value, and holds from when that is applied.
// After the first start nothing else says who votes.

// Errors of ProposeConf.
var (
	// ErrNotLeader: only the leader can propose a change of the configuration.
	ErrNotLeader = errors.New("shard: not the leader")
	// ErrConfPending: an earlier change is not complete.
	ErrConfPending = errors.New("shard: a change of the configuration is pending")
	// ErrConf: the change makes no sense in the present configuration.
	ErrConf = errors.New("shard: impossible change of the configuration")
	// ErrBehind: a node is to vote that has not caught up as a learner.
	ErrBehind = errors.New("shard: not caught up")
)

// ConfChange says which raft ids change their role. A node begins as a learner and may
// vote when it has caught up. Learners may come together, voters only come or go one at
// a time: a restarted node may have forgotten that the last change was committed, and
// its majority must still share a node with that of the newer configuration.
type ConfChange struct{ Learn, Vote, Remove []uint64 }

// ProposeConf orders a change. It returns before that is applied: see Conf.
func (c *Core) ProposeConf(ch ConfChange) error {
	if !c.Leading() {
		return ErrNotLeader
	}
	if c.confAt > c.applied || len(c.log.conf.VotersOutgoing) > 0 {
		return ErrConfPending
	}
	for _, id := range ch.Vote {
		if !c.CaughtUp(id) {
			return fmt.Errorf("%w: %d", ErrBehind, id)
		}
	}
	cc := ch.encode()
	if len(cc.Changes) == 0 {
		return fmt.Errorf("%w: nothing changes", ErrConf)
	}
	conf, err := changeConf(c.log.conf, cc, c.log.last())
	if err != nil {
		return err
	}
	if n := differing(c.log.conf.Voters, conf.Voters); n > 1 {
		return fmt.Errorf("%w: %d voters at a time", ErrConf, n)
	}
	if err := c.rn.ProposeConfChange(cc); err != nil {
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	c.ready()
	if s := c.log.slot(c.log.last()); s == nil || s.typ == pb.EntryNormal {
		return ErrConfPending // raft thinks so, and ordered nothing
	}
	c.confAt = c.log.last()
	return nil
}

// differing counts the ids that are in one list only.
func differing(a, b []uint64) (n int) {
	for _, id := range a {
		if !slices.Contains(b, id) {
			n++
		}
	}
	for _, id := range b {
		if !slices.Contains(a, id) {
			n++
		}
	}
	return n
}

func (ch ConfChange) encode() *pb.ConfChangeV2 {
	cc := &pb.ConfChangeV2{}
	add := func(typ pb.ConfChangeType, ids []uint64) {
		for _, id := range ids {
			cc.Changes = append(cc.Changes, &pb.ConfChangeSingle{Type: typ.Enum(), NodeId: new(id)})
		}
	}
	add(pb.ConfChangeAddLearnerNode, ch.Learn)
	add(pb.ConfChangeAddNode, ch.Vote)
	add(pb.ConfChangeRemoveNode, ch.Remove)
	return cc
}

// behindMax is how many entries a learner may lack to count as one that has caught up.
const behindMax = 64

// CaughtUp says, on the leader, whether a member has nearly all entries.
func (c *Core) CaughtUp(id uint64) (yes bool) {
	c.members(func(m uint64, pr tracker.Progress) {
		yes = yes || m == id && pr.State == tracker.StateReplicate && pr.Match+behindMax >= c.log.last()
	})
	return yes
}

// Conf returns the voters and learners as of what is applied. While one configuration
// is exchanged for another, voters are those of both.
func (c *Core) Conf() (voters, learners []uint64) {
	conf := c.log.conf
	voters = append(slices.Clone(conf.Voters), conf.VotersOutgoing...)
	slices.Sort(voters)
	return slices.Compact(voters), slices.Clone(conf.Learners)
}

// sole says whether this node alone decides: then all that is durable is committed.
func (c *Core) sole() bool { return soleIn(c.log.conf, c.cfg.Node) }

func soleIn(conf *pb.ConfState, node uint64) bool {
	return len(conf.Voters) == 1 && conf.Voters[0] == node && len(conf.VotersOutgoing) == 0
}

// Others says whether a node with the configuration beside its checkpoint, or the voters
// of the first start without one, has others to agree with.
func Others(conf []byte, voters []uint64, node uint64) bool {
	c := &pb.ConfState{Voters: voters}
	if conf != nil {
		var err error
		if c, err = parseConf(conf); err != nil {
			return false // NewCore says so
		}
	}
	return !soleIn(c, node)
}

// Alone says whether there is no other node: then no time need pass.
func (c *Core) Alone() bool { return c.sole() && len(c.log.conf.Learners) == 0 }

// applyConf applies an entry that changes the configuration. One that makes no sense
// changes nothing, on all nodes alike.
func (c *Core) applyConf(index uint64, data []byte) error {
	cc := &pb.ConfChangeV2{}
	if err := proto.Unmarshal(data, cc); err != nil {
		return fmt.Errorf("shard %d: entry %d: %w", c.cfg.ID, index, err)
	}
	conf, err := changeConf(c.log.conf, cc, c.log.last())
	if err != nil {
		c.cfg.Logger.Warn("configuration not changed", "shard", c.cfg.ID, "entry", index, "err", err)
		return nil
	}
	c.log.conf = conf
	c.changed, c.log.joined, c.confSince = true, true, index
	if c.rn != nil {
		c.rn.ApplyConfChange(cc)
	}
	c.cfg.Logger.Info("configuration", "shard", c.cfg.ID, "entry", index, "voters", conf.Voters, "outgoing", conf.VotersOutgoing, "learners", conf.Learners)
	return nil
}

// changeConf is what a change makes of a configuration.
func changeConf(conf *pb.ConfState, cc *pb.ConfChangeV2, last uint64) (*pb.ConfState, error) {
	fresh := tracker.MakeProgressTracker(1, 0)
	cfg, trk, err := confchange.Restore(confchange.Changer{Tracker: fresh, LastIndex: last}, conf)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConf, err)
	}
	ch := confchange.Changer{Tracker: fresh, LastIndex: last}
	ch.Tracker.Config, ch.Tracker.Progress = cfg, trk
	if cc.LeaveJoint() {
		cfg, trk, err = ch.LeaveJoint()
	} else if auto, joint := cc.EnterJoint(); joint {
		cfg, trk, err = ch.EnterJoint(auto, cc.Changes...)
	} else {
		cfg, trk, err = ch.Simple(cc.Changes...)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConf, err)
	}
	ch.Tracker.Config, ch.Tracker.Progress = cfg, trk
	return ch.Tracker.ConfState(), nil
}

// members calls fn for each member of the group but this one; on the leader.
func (c *Core) members(fn func(id uint64, pr tracker.Progress)) {
	c.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id != c.cfg.Node {
			fn(id, pr)
		}
	})
}

// Payloads of entries in the WAL are batches, or nothing, or a change of the
// configuration behind this mark.
const confMagic = 0x31636c73 // "slc1"

func appendConfPayload(dst, data []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(dst, confMagic), data...)
}

// confPayload returns the change that an entry's payload is, if it is one.
func confPayload(b []byte) (data []byte, ok bool) {
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != confMagic {
		return nil, false
	}
	return b[4:], true
}

// VerifyPayload says whether the payload of an entry is the one that crc was made for;
// for wal.Options.
func VerifyPayload(b []byte, crc uint32) bool {
	if _, conf := confPayload(b); conf || len(b) == 0 {
		return crc == msg.CRC(b)
	}
	return msg.VerifyBatch(b, crc)
}

// CheckpointExtra is what the store keeps beside a checkpoint.
type CheckpointExtra struct {
	Term uint64
	// Installed: the checkpoint came with a snapshot and nothing was applied since.
	Installed bool
	Conf      []byte // the configuration, encoded; nil: that of the first start
}

// Encode returns the bytes that ParseCheckpointExtra reads.
func (x CheckpointExtra) Encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, x.Term)
	if !x.Installed && x.Conf == nil {
		return b
	}
	flag := byte(0)
	if x.Installed {
		flag = 1
	}
	return append(append(b, flag), x.Conf...)
}

// ParseCheckpointExtra reads what Encode made.
func ParseCheckpointExtra(b []byte) (x CheckpointExtra, err error) {
	if len(b) < 8 {
		return x, errors.New("shard: checkpoint without a term")
	}
	x.Term = binary.LittleEndian.Uint64(b)
	if b = b[8:]; len(b) > 0 {
		x.Installed = b[0] != 0
		if len(b) > 1 {
			x.Conf = slices.Clone(b[1:])
		}
	}
	return x, nil
}

func parseConf(b []byte) (*pb.ConfState, error) {
	conf := &pb.ConfState{}
	if err := proto.Unmarshal(b, conf); err != nil {
		return nil, fmt.Errorf("shard: configuration: %w", err)
	}
	return conf, nil
}

// encodeConf returns the configuration for a checkpoint; nil while it is that of the
// first start and this node is alone.
func (c *Core) encodeConf() []byte {
	if !c.changed && c.Alone() {
		return nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.log.conf)
	if err != nil {
		c.fail(fmt.Errorf("shard %d: configuration: %w", c.cfg.ID, err))
	}
	return b
}
