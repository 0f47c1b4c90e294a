package shard

import (
	"errors"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/sluicemq/sluice/internal/wal"
)

// A replica whose WAL is damaged may have forgotten entries that it acknowledged, and
// votes that it gave. It is suspect: it votes for nobody and does not ask for votes, and
// what its log has from the damage on does not count. It is one like others again when
// it has applied an entry of a term whose leader knows nothing of what it once had:
// what that leader's log has up to there contains all that was ever committed with its
// help.
//
// A leader that counts on forgotten entries would wait for it for ever. Its heartbeats
// show: they carry a commit index up to which it believes the replica to have
// everything, and a leader that has not heard from it yet carries none. So until it has
// seen such a heartbeat of a term it takes nothing else of that term, and ends the term
// by one of its own if it sees another. In the term in which it is trusted again it still
// does not vote, since it might have done so before.

// suspect is nil for a replica like others.
type suspect struct {
	floor uint64 // the term that the log tells of; a leader of it may have heard from this replica
	term  uint64 // whose leader is known to have begun anew with this replica
	fresh bool
}

// Suspect says whether the replica has lost something and not made up for it.
func (c *Core) Suspect() bool { return c.suspect != nil }

// admit says whether a message of a peer may be taken.
func (c *Core) admit(m *pb.Message) bool {
	switch m.GetType() {
	case pb.MsgVote, pb.MsgPreVote:
		return c.suspect == nil && c.mayVote() && m.GetTerm() > c.trusted
	case pb.MsgHeartbeat:
		return c.suspect == nil || c.meets(m)
	case pb.MsgApp, pb.MsgSnap:
		s := c.suspect
		return s == nil || m.GetTerm() < c.term || s.fresh && s.term == m.GetTerm()
	}
	return true
}

// meets looks at a heartbeat: false if the replica has ended its term.
func (c *Core) meets(m *pb.Message) bool {
	s, term := c.suspect, m.GetTerm()
	if term < c.term || s.fresh && s.term == term {
		return true // old: raft answers so that its sender steps down
	}
	if m.GetCommit() == 0 && term > s.floor {
		s.term, s.fresh = term, true
		return true
	}
	s.fresh = false
	for _, v := range c.log.conf.Voters {
		if v != c.cfg.Node { // as if it had heard of a later term
			c.step(&pb.Message{Type: pb.MsgAppResp.Enum(), From: new(v), To: m.To, Term: new(term + 1)})
			break
		}
	}
	return false
}

// trust ends the suspicion when something of the fresh term was applied.
func (c *Core) trust(term uint64) {
	if s := c.suspect; s != nil && s.fresh && s.term == c.term && term == c.term {
		c.suspect, c.trusted = nil, c.term
		c.cfg.Logger.Info("the replica has made up for what its log lost", "shard", c.cfg.ID, "term", c.term, "entry", c.applied)
	}
}

// errCut ends the replay of a damaged log.
var errCut = errors.New("shard: the log is damaged from here on")

// cutDamage leaves out what a suspect can't rely on: with an entry that is damaged or
// missing, all before it if a checkpoint covers that, else all from there on.
func (c *Core) cutDamage(r Restored, e wal.Entry) (skip bool, err error) {
	gap := e.Index > c.log.last()+1
	switch {
	case !gap && !e.Damaged:
		return false, nil
	case e.Index <= r.Checkpoint:
		c.log.restart(e.Index, e.Term, c.log.conf)
		return true, nil
	case e.Damaged || e.Index > r.Checkpoint+1:
		return true, errCut
	}
	c.log.restart(r.Checkpoint, r.Term, c.log.conf) // a gap that the checkpoint covers
	return false, nil
}
