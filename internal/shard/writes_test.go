package shard

import (
	"encoding/binary"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/wal"
)

// outbox keeps what a core sends.
type outbox struct{ sent []*pb.Message }

func (o *outbox) Send(_ uint32, out []Outgoing) {
	for _, m := range out {
		o.sent = append(o.sent, m.Msg)
	}
}

func (*outbox) Forward(uint32, uint64, []msg.Part) {}

func (*outbox) Missing(uint32, uint64, uint64, uint64) {}

func (o *outbox) count(t pb.MessageType) (n int) {
	for _, m := range o.sent {
		if m.GetType() == t {
			n++
		}
	}
	return n
}

// TestNothingCountsAfterARefusedWrite: the disk has no room for an entry, but for the
// vote behind it. Raft's answers of a write speak of all writes before it, so the vote
// must wait; and when the entry is written at last, with the state of its time, the
// vote must not be forgotten.
func TestNothingCountsAfterARefusedWrite(t *testing.T) {
	c := newCluster(t, 3, 1)
	r, out := c.reps[1], &outbox{}
	r.core.cfg.Sender = out
	turn := func() {
		posts := r.posts
		r.posts = nil
		for _, f := range posts {
			f()
		}
		r.core.Turn()
	}
	r.core.Receive(&pb.Message{
		Type: pb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(1)),
		Entries: []*pb.Entry{{Index: new(uint64(1)), Term: new(uint64(1))}},
	}, nil)
	turn()
	r.core.Receive(&pb.Message{ // a vote that is asked for in spite of the leader's lease
		Type: pb.MsgVote.Enum(), From: new(uint64(3)), To: new(uint64(2)), Term: new(uint64(2)),
		Index: new(uint64(1)), LogTerm: new(uint64(1)), Context: []byte("CampaignTransfer"),
	}, nil)
	turn()
	if len(r.log.queue) != 2 {
		t.Fatalf("%d writes, expected that of the entry and that of the vote", len(r.log.queue))
	}
	r.log.refuse = wal.ErrNoSpace
	r.log.complete(1)
	r.log.refuse = nil
	r.log.complete(1)
	turn()
	if n := out.count(pb.MsgVoteResp) + out.count(pb.MsgAppResp); n > 0 || r.core.durable > 0 {
		t.Fatalf("%d answers, durable to %d, while the entry is not on the disk", n, r.core.durable)
	}
	for range 3 {
		r.core.Retry()
		r.log.complete(10)
		turn()
	}
	if out.count(pb.MsgVoteResp) != 1 || r.core.durable != 1 {
		t.Fatalf("%d votes, durable to %d", out.count(pb.MsgVoteResp), r.core.durable)
	}
	if hs := r.log.recover().Wal.HardState; hs.Term != 2 || hs.Vote != 3 {
		t.Fatalf("the disk says %+v, the vote was for 3 in term 2", hs)
	}
}

// refusedReplica is a follower that the test feeds with entries, and whose writes it
// answers.
type refusedReplica struct{ *replica }

func (r refusedReplica) entry(from, term, prev, prevTerm uint64) {
	r.core.Receive(&pb.Message{
		Type: pb.MsgApp.Enum(), From: new(from), To: new(uint64(2)), Term: new(term),
		Index: new(prev), LogTerm: new(prevTerm), Entries: []*pb.Entry{{Index: new(prev + 1), Term: new(term)}},
	}, nil)
	r.core.Turn()
}

func (r refusedReplica) answer(err error, n int) {
	r.log.refuse = err
	r.log.complete(n)
	r.log.refuse = nil
	for _, f := range r.posts {
		f()
	}
	r.posts = nil
	r.core.Turn()
}

// TestRefusedWritesKeepTheirOrder: entries are refused, and while more writes are on
// their way another leader replaces them. What is on the disk in the end is what the
// last leader sent.
func TestRefusedWritesKeepTheirOrder(t *testing.T) {
	r := refusedReplica{newCluster(t, 3, 1).reps[1]}
	r.entry(1, 1, 0, 0)
	r.entry(1, 1, 1, 1) // on their way: 1 and 2 of term 1
	r.answer(wal.ErrNoSpace, 1)
	r.core.Retry()          // too early: the second write is not answered
	r.entry(3, 2, 1, 1)     // replaces 2
	r.entry(3, 2, 2, 2)     // and 3
	r.answer(wal.ErrGap, 1) // the second one
	for range 3 {
		r.core.Retry()
		r.answer(nil, 10)
	}
	got := r.log.recover()
	var terms []uint64
	if err := got.Replay(1, func(e wal.Entry) error { terms = append(terms, e.Term); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(terms) != 3 || terms[0] != 1 || terms[1] != 2 || terms[2] != 2 || r.core.durable != 3 {
		t.Fatalf("terms on the disk %v, durable to %d", terms, r.core.durable)
	}
}

// TestReplacedEntriesAreNotRetried: an entry is refused, and a replacement of an earlier
// one, already on its way, is taken. The refused one would leave a gap now, for ever.
func TestReplacedEntriesAreNotRetried(t *testing.T) {
	r := refusedReplica{newCluster(t, 3, 1).reps[1]}
	r.entry(1, 1, 0, 0)
	r.entry(1, 1, 1, 1)
	r.answer(nil, 10) // 1 and 2 are durable
	r.entry(1, 1, 2, 1)
	r.entry(3, 2, 0, 0) // replaces all by one
	r.answer(wal.ErrNoSpace, 1)
	r.answer(nil, 1)
	r.core.Retry()
	for _, a := range r.log.queue {
		for _, rec := range a.Records {
			if rec.Type == wal.TypeEntry && (rec.Index != 1 || rec.Term != 2) {
				t.Fatalf("entry %d of term %d is written again", rec.Index, rec.Term)
			}
		}
	}
	r.answer(nil, 10)
	if r.core.durable != 1 || len(r.core.retry) > 0 {
		t.Fatalf("durable to %d, %d writes left", r.core.durable, len(r.core.retry))
	}
}

// TestPayloadStaysWhileItIsWritten: the entry of a leader is replaced by another leader's
// while the WAL still writes it. Its memory must not be used for anything else yet.
func TestPayloadStaysWhileItIsWritten(t *testing.T) {
	c := newTimed(t, 1, []int{0, 17, 31}, 2)
	c.until("a leader", func() bool { return len(c.leaders()) == 1 })
	c.until("rest", c.level)
	r := c.reps[c.leaders()[0]]
	prev, term := r.core.log.last(), r.core.term
	var b msg.Builder
	b.Meta(binary.LittleEndian.AppendUint64(nil, 42))
	r.core.Offer([]msg.Part{{Link: LinkID(9, 1), Seq: 1, Sub: b.Finish().Bytes()}})
	r.core.Turn()
	if len(r.log.queue) != 1 || r.core.log.last() != prev+1 {
		t.Fatalf("%d writes, last entry %d", len(r.log.queue), r.core.log.last())
	}
	other := r.id%3 + 1
	r.core.Receive(&pb.Message{
		Type: pb.MsgApp.Enum(), From: new(other), To: new(r.id), Term: new(term + 1),
		Index: new(prev), LogTerm: new(term), Entries: []*pb.Entry{{Index: new(prev + 1), Term: new(term + 1)}},
	}, nil)
	if r.core.log.termOf(prev+1) != term+1 {
		t.Fatal("the entry was not replaced")
	}
	for range 100 { // whatever is free is used
		ch := buf.Get(1000)
		ch.SetBytes(append(ch.Bytes(), make([]byte, 1000)...))
	}
	rec := r.log.queue[0].Records[0]
	var flat []byte
	for _, v := range rec.Payload {
		flat = append(flat, v...)
	}
	if !msg.VerifyBatch(flat, rec.PayloadCRC) {
		t.Fatal("the payload changed while it was being written")
	}
	before := r.core.inflight
	r.log.complete(2)
	c.turn()
	if r.core.inflight != before-1 || r.core.durable != prev+1 {
		t.Fatalf("%d proposals on their way, were %d; durable to %d", r.core.inflight, before, r.core.durable)
	}
}
