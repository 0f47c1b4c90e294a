package shard

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/sluicemq/sluice/internal/wal"
)

// A follower that lacks entries which the leader's log has no more gets a snapshot: a
// list of files, pinned at the leader while it is needed. The follower fetches what it
// lacks while it goes on as an ordinary voter; raft hears of the snapshot when the files
// are here. Installing them is one durable step of the node's files; a record in the WAL
// then says that the log begins anew, and a start in between writes that record.

// ErrUnknown is the result of a submission that was applied as part of a snapshot: once,
// but with an outcome that this node did not see.
var ErrUnknown = errors.New("shard: applied through a snapshot, outcome unknown")

// Snapshots makes a node's snapshots and takes those of others. Called by the owner of
// the Core; nothing may block or call back at once.
type Snapshots interface {
	// Make asks for a snapshot at a checkpoint that covers the index: the bytes of all
	// that is unsettled up to it are in files, and these are pinned. The answer is
	// Core.SnapshotMade.
	Make(shard uint32, index uint64)
	// Release unpins what Make made.
	Release(shard uint32, id uint64)
	// Fetch gets the files of a list from a node, as far as they are missing, durable and
	// verified. It replaces an earlier one of the shard. The answer is
	// Core.SnapshotFetched.
	Fetch(shard uint32, from uint64, list []byte)
	// Install makes the fetched files the shard's only ones in one durable step, and
	// loads their checkpoint into the machine after its Reset. Cuts that were taken
	// before count no more. It is repeated until it succeeds or the node stops. The
	// answer is Core.SnapshotInstalled.
	Install(shard uint32, list []byte)
}

// Made is a snapshot that Make made.
type Made struct {
	ID    uint64 // for Release
	Index uint64 // of its checkpoint
	Extra []byte // of its checkpoint, see CheckpointExtra
	List  []byte // what a follower fetches
}

// Loaded is the shard's own part of a checkpoint, see ShardKey.
type Loaded struct {
	TimeMS int64
	Links  []byte
}

const (
	// resendTimeouts is after how many election timeouts a snapshot is sent again to a
	// follower that is not done with it: it may not have arrived, or fetching failed.
	resendTimeouts = 4
	// awayTimeouts is how long a silent follower's snapshot is kept for it.
	awayTimeouts = 20
)

// outSnap is a pinned snapshot of the leader.
type outSnap struct {
	id    uint64
	snap  *pb.Snapshot
	users map[uint64]*snapUser // followers that it was sent to
	idle  int                  // ticks without any
}

type snapUser struct{ sent, away int } // ticks since it was sent, and without a word

func (s *outSnap) index() uint64 { return s.snap.GetMetadata().GetIndex() }

// snapshots is the leader's side.
type snapshots struct {
	pinned []*outSnap // the newest last
	wanted bool
	making bool
}

// offerSnapshot is Storage.Snapshot: the newest one if the log goes on after it, or if
// somebody is still at it. A follower takes none in which it has no part.
func (c *Core) offerSnapshot() (*pb.Snapshot, error) {
	if n := len(c.snaps.pinned); n > 0 && !c.snaps.wanted {
		s := c.snaps.pinned[n-1]
		if s.index() >= c.confSince && (s.index()+1 >= c.log.first || len(s.users) > 0) {
			s.idle = 0
			return s.snap, nil
		}
	}
	c.snaps.wanted = true
	return nil, raft.ErrSnapshotTemporarilyUnavailable
}

// wantSnapshot asks for a snapshot if raft wanted one.
func (c *Core) wantSnapshot() {
	s := &c.snaps
	if !s.wanted || s.making {
		return
	}
	if c.cfg.Snapshots == nil || c.lead != c.cfg.Node || c.applied == 0 {
		s.wanted = false
		return
	}
	s.making = true
	c.cfg.Snapshots.Make(c.cfg.ID, max(c.confSince, c.log.first-1))
}

// SnapshotMade is the answer to Snapshots.Make; with an error it is tried again when
// the follower is next heard of.
func (c *Core) SnapshotMade(m Made, err error) {
	c.snaps.making, c.snaps.wanted = false, false
	if err != nil {
		return
	}
	x, err := ParseCheckpointExtra(m.Extra)
	conf := c.first
	if err == nil && x.Conf != nil {
		conf, err = parseConf(x.Conf)
	}
	if err != nil || c.lead != c.cfg.Node || c.stopped || c.failed != nil {
		c.cfg.Snapshots.Release(c.cfg.ID, m.ID)
		return
	}
	c.snaps.pinned = append(c.snaps.pinned, &outSnap{
		id: m.ID, users: map[uint64]*snapUser{},
		snap: &pb.Snapshot{
			Data:     m.List,
			Metadata: &pb.SnapshotMetadata{Index: new(m.Index), Term: new(x.Term), ConfState: conf},
		},
	})
}

// sendsSnapshot notes to whom a snapshot goes; false if it would be of no use there.
func (c *Core) sendsSnapshot(m *pb.Message) bool {
	to, index := m.GetTo(), m.GetSnapshot().GetMetadata().GetIndex()
	has := false
	c.members(func(id uint64, pr tracker.Progress) { has = has || id == to && pr.Match >= index })
	if has {
		c.snaps.wanted = true // a newer one, although others are still at this one
		c.rn.ReportSnapshot(to, raft.SnapshotFailure)
	}
	for _, s := range c.snaps.pinned {
		delete(s.users, to)
		if s.index() == index && !has {
			s.users[to] = &snapUser{}
		}
	}
	return !has
}

// tendSnapshots follows, once a tick, who is done with which snapshot.
func (c *Core) tendSnapshots() {
	if len(c.snaps.pinned) == 0 {
		return
	}
	state := map[uint64]tracker.Progress{}
	c.members(func(id uint64, pr tracker.Progress) { state[id] = pr })
	for _, s := range slices.Clone(c.snaps.pinned) {
		ids := make([]uint64, 0, len(s.users))
		for id := range s.users {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		for _, id := range ids {
			c.tendUser(s, id, state)
		}
		if len(s.users) > 0 {
			continue
		}
		newest := s == c.snaps.pinned[len(c.snaps.pinned)-1]
		if s.idle++; !newest || s.idle > resendTimeouts*c.cfg.ElectionTicks {
			c.releaseSnapshot(s)
		}
	}
}

func (c *Core) tendUser(s *outSnap, id uint64, state map[uint64]tracker.Progress) {
	u := s.users[id]
	pr, member := state[id]
	if u.away++; pr.RecentActive {
		u.away = 0
	}
	u.sent++
	switch {
	case !member || pr.State != tracker.StateSnapshot:
		delete(s.users, id)
	case pr.Match >= s.index(): // installed, but the log has lost what follows
		delete(s.users, id)
		c.rn.ReportSnapshot(id, raft.SnapshotFailure)
	case u.away > awayTimeouts*c.cfg.ElectionTicks:
		delete(s.users, id)
		c.rn.ReportSnapshot(id, raft.SnapshotFailure)
	case u.sent%(resendTimeouts*c.cfg.ElectionTicks) == 0:
		c.rn.ReportSnapshot(id, raft.SnapshotFailure) // raft sends it again
	}
}

func (c *Core) releaseSnapshot(s *outSnap) {
	c.snaps.pinned = slices.DeleteFunc(c.snaps.pinned, func(x *outSnap) bool { return x == s })
	c.cfg.Snapshots.Release(c.cfg.ID, s.id)
}

// dropSnapshots unpins everything: this node does not lead any more.
func (c *Core) dropSnapshots() {
	for len(c.snaps.pinned) > 0 {
		c.releaseSnapshot(c.snaps.pinned[0])
	}
	c.snaps.wanted = false
}

// inSnap is a snapshot that this node fetches or has fetched.
type inSnap struct {
	msg     *pb.Message
	fetched bool
}

// CatchingUp says whether files of a snapshot are being fetched or installed. Until that
// is over the shard's own segments should stay as they are: some may be among them.
func (c *Core) CatchingUp() bool { return c.coming != nil || c.install != nil }

// receiveSnapshot fetches the files of a snapshot before raft hears of it, unless there
// is nothing to fetch.
func (c *Core) receiveSnapshot(m *pb.Message) {
	if m.GetTerm() < c.term || !c.lacks(m) {
		c.step(m)
		return
	}
	if c.cfg.Snapshots == nil || c.install != nil || c.coming != nil && bytes.Equal(c.coming.msg.GetSnapshot().GetData(), m.GetSnapshot().GetData()) {
		return
	}
	c.coming = &inSnap{msg: m}
	c.cfg.Snapshots.Fetch(c.cfg.ID, m.GetFrom(), m.GetSnapshot().GetData())
}

// lacks says whether raft would restore the snapshot: neither is everything up to its
// index known to be committed here nor is the entry at its index in the log.
func (c *Core) lacks(m *pb.Message) bool {
	meta := m.GetSnapshot().GetMetadata()
	i := meta.GetIndex()
	if i <= c.rn.BasicStatus().GetCommit() {
		return false
	}
	return i > c.log.last() || c.log.termOf(i) != meta.GetTerm()
}

// SnapshotFetched is the answer to Snapshots.Fetch for a list; with an error it is
// fetched again when the leader offers it again.
func (c *Core) SnapshotFetched(list []byte, err error) {
	if c.coming == nil || !bytes.Equal(c.coming.msg.GetSnapshot().GetData(), list) {
		return
	}
	if err != nil {
		c.coming = nil
		return
	}
	c.coming.fetched = true
	c.restore()
}

// restore hands a fetched snapshot to raft, as one of the present leader's: what it says
// is committed, whoever leads.
func (c *Core) restore() {
	if c.coming == nil || !c.coming.fetched || c.install != nil || c.lead == 0 || c.lead == c.cfg.Node {
		return
	}
	m := proto.Clone(c.coming.msg).(*pb.Message)
	m.Term, m.From = new(c.term), new(c.lead)
	c.ready()
	if c.coming != nil {
		c.step(m)
		c.coming = nil // if it was not taken it is not needed
	}
}

func (c *Core) step(m *pb.Message) {
	c.ready()
	_ = c.rn.Step(m) // an error means that the message is stale
	c.ready()
}

// installing is a snapshot that raft has taken and that is not the shard's state yet,
// with the writes that wait for it.
type installing struct {
	msg    *pb.Message
	held   []*pb.Message
	bodies map[entryKey]*payload
}

// hold keeps a write, with the payloads that came with it, until the snapshot before it
// is installed.
func (i *installing) hold(m *pb.Message, incoming map[entryKey]*payload) {
	i.held = append(i.held, m)
	for _, e := range m.GetEntries() {
		k := entryKey{e.GetIndex(), e.GetTerm()}
		if p := incoming[k]; p != nil {
			i.bodies[k] = p
		}
	}
}

// beginInstall is the write of a snapshot: nothing is applied, written or cut until it
// is installed.
func (c *Core) beginInstall(m *pb.Message) {
	c.install = &installing{msg: m, bodies: map[entryKey]*payload{}}
	c.install.hold(m, c.incoming)
	c.cut = cutter{}
	c.cfg.Snapshots.Install(c.cfg.ID, m.GetSnapshot().GetData())
}

// SnapshotInstalled is the answer to Snapshots.Install. An error is final.
func (c *Core) SnapshotInstalled(st Loaded, err error) {
	in := c.install
	switch {
	case in == nil || c.failed != nil || c.stopped:
		return
	case err == nil:
		c.links.last = map[uint64]uint64{}
		err = c.links.decode(st.Links)
	}
	if err != nil {
		c.fail(fmt.Errorf("shard %d: snapshot: %w", c.cfg.ID, err))
		return
	}
	meta := in.msg.GetSnapshot().GetMetadata()
	index, term := meta.GetIndex(), meta.GetTerm()
	c.install = nil
	c.log.restart(index, term, pb.EnsureConfState(meta.GetConfState()))
	c.log.joined, c.changed = true, true
	c.applied, c.durable = index, index
	c.timeMS = max(c.timeMS, st.TimeMS)
	c.skipApplied()
	for c.pending.len() > 0 && c.pending.head <= c.links.last[c.cfg.Link] {
		s, _ := c.pending.pop(c.pending.head)
		s.fail(c.cfg.ID, ErrUnknown)
	}
	for k, p := range in.bodies {
		c.incoming[k] = p
	}
	c.logStart = true
	for _, m := range in.held {
		c.storageAppend(m)
	}
	clear(c.incoming)
	c.trust(term)
	c.ready()
}

// skipApplied answers what was to be applied: the snapshot contains it.
func (c *Core) skipApplied() {
	q := c.applyQ
	c.applyQ, c.applyAt = nil, 0
	for _, m := range q {
		for _, r := range m.GetResponses() {
			_ = c.rn.Step(r)
		}
	}
}

// startRecord is the record that the log begins after the entry before its first.
func (c *Core) startRecord() wal.Record {
	index := c.log.first - 1
	return wal.LogStartRecord(c.cfg.ID, c.cfg.Incarnation, index, c.log.termOf(index), index)
}

// Limits of what is kept for followers that are behind; Config overrides them.
const (
	lagEntries = 200_000
	lagBytes   = 256 << 20
)

// Compact forgets raft's entries up to an index that a durable checkpoint covers, but
// for those that a follower needs that is not far behind. It returns the index up to
// which the WAL may forget entries too: one less where there are other nodes, since
// after a restart nothing else might tell the term before the first entry. An idle group
// keeps none for that: at worst a follower then needs a snapshot.
func (c *Core) Compact(index uint64) (free uint64) {
	if c.CatchingUp() {
		return c.free()
	}
	index = min(index, c.applied)
	if !c.Alone() && c.cfg.Snapshots != nil {
		index = min(index, c.needed())
	}
	c.log.compact(index)
	return c.free()
}

func (c *Core) free() uint64 {
	free := c.log.first - 1
	idle := len(c.log.slots) == 0 && c.cfg.Snapshots != nil
	if !c.Alone() && !idle && free > 0 {
		free--
	}
	return free
}

// needed returns the index of the last entry that nobody needs who is not too far
// behind. Followers do not know who needs what, and keep as much as a leader may have to.
func (c *Core) needed() uint64 {
	least := uint64(0)
	if c.lead == c.cfg.Node {
		least = c.log.last()
		c.members(func(_ uint64, pr tracker.Progress) { least = min(least, max(pr.Match, pr.PendingSnapshot)) })
	}
	bytes, n := int64(0), uint64(0)
	for i := len(c.log.slots) - 1; i >= 0 && n < c.cfg.LagEntries && bytes < c.cfg.LagBytes; i-- {
		n, bytes = n+1, bytes+int64(c.log.slots[i].len)
	}
	return max(least, c.log.last()-n)
}
