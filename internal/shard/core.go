package shard

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/wal"
)

// Errors that a Result carries when a submission was not applied.
var (
	// ErrFailed: the log failed for good; whether the submission survives is unknown.
	ErrFailed = errors.New("shard: the write-ahead log failed")
	// ErrStopped: the shard was stopped before the submission was ordered.
	ErrStopped = errors.New("shard: stopped")
	// ErrTooLarge: the submission does not fit into a file of the write-ahead log.
	ErrTooLarge = errors.New("shard: submission larger than a file of the write-ahead log")
	// ErrNoRoom: messages are refused, since there is only room for settling.
	ErrNoRoom = errors.New("shard: no space on the disk for messages")
)

// Log is where entries are made durable; *wal.Log is one.
type Log interface {
	Submit(appends ...wal.Append)
	MaxPayload() int
}

// Sender carries messages to the other replicas of the shard. Called by the owner of
// the Core; it must not block. Delivery is not guaranteed.
type Sender interface {
	Send(shard uint32, out []Outgoing)
	// Forward offers submissions of a link to the node that leads.
	Forward(shard uint32, to uint64, parts []msg.Part)
	// Missing answers the node whose link it is that the offers have a gap; it hands
	// that to Core.Missing.
	Missing(shard uint32, link, term, want uint64)
}

// Outgoing is a raft message with the payloads of its entries.
type Outgoing struct {
	Msg    *pb.Message
	Bodies []Body // one per entry of Msg
}

// To returns the replica that the message is for.
func (o Outgoing) To() uint64 { return o.Msg.GetTo() }

// Clone returns a copy that shares nothing with the sender but the bytes of bodies.
func (o Outgoing) Clone() Outgoing {
	return Outgoing{Msg: proto.Clone(o.Msg).(*pb.Message), Bodies: slices.Clone(o.Bodies)}
}

// Body is an entry's payload: in memory, or in the WAL at Pos when Bytes is nil.
type Body struct {
	Bytes []byte
	Pos   wal.Position
	CRC   uint32
}

// Cut is a finished checkpoint, to be made durable by the receiver.
type Cut struct {
	Shard       uint32
	Index, Term uint64
	Conf        []byte // the configuration, see CheckpointExtra
	Keys        []KV
}

// Extra is what the receiver keeps beside the checkpoint.
func (c *Cut) Extra() []byte { return CheckpointExtra{Term: c.Term, Conf: c.Conf}.Encode() }

// KV is a changed key of a checkpoint; Value nil means that it was deleted.
type KV struct{ Key, Value []byte }

// Config makes a Core. Fields without a default are required.
type Config struct {
	ID          uint32
	Incarnation uint64
	Node        uint64 // this replica's raft id, not 0
	// Voters are all replicas at the first start of the group. A node that joins it
	// later has none; neither do they matter once the node has a configuration.
	Voters    []uint64
	Link      uint64 // this node's link, see LinkID
	Log       Log
	Machine   Machine
	Sender    Sender           // nil with one voter
	Snapshots Snapshots        // nil: entries are never compacted that a follower needs
	Logger    *slog.Logger     // default slog.Default()
	Now       func() time.Time // default time.Now
	// Wall is the wall clock, if Now isn't to be taken for it.
	Wall func() time.Time
	// Ticked is called at each tick, by the owner of the Core. May be nil.
	Ticked func()
	// Post hands a function to the owner of the Core, from any goroutine.
	Post func(func())
	// PostHere is Post for the answer to a small write: it may run the function, and
	// with it a turn, on the calling goroutine. nil: Post.
	PostHere func(func())
	// Checkpoint receives finished cuts; the receiver posts Core.CheckpointDone. nil:
	// no checkpoints.
	Checkpoint func(Cut)
	// A checkpoint begins after so many entries or payload bytes; defaults 200,000 and
	// 128 MiB.
	CheckpointEntries uint64
	CheckpointBytes   int64
	// MaxInflight is how many proposals may be on their way to the WAL; default 2 with
	// one voter, 8 with more.
	MaxInflight int
	// LagEntries and LagBytes are how far behind a follower may be without needing a
	// snapshot; defaults 200,000 and 256 MiB.
	LagEntries uint64
	LagBytes   int64
	// ElectionTicks is the election timeout; heartbeats are sent each tick. Default 10.
	ElectionTicks int
	// Moved is told when this node leads and applied something of the link of another
	// shard's outbox; with gap, that what came of it left something out. May be nil.
	Moved func(source uint32, gap bool)
	// Blocked is told when the disk refuses the shard's writes and when it takes them
	// again. May be nil.
	Blocked func(bool)
}

// settleDelay is how long operations that nobody waits for may wait for company.
const settleDelay = 5 * time.Millisecond

// hereBytesMax bounds the writes that are small in the sense of Config.PostHere: the
// WAL's writer may apply and deliver them itself. With larger ones it would keep the
// disk waiting for what another core could do meanwhile.
const hereBytesMax = 32 << 10

// batchBytesMax bounds one proposal; batchPartsMax the work of applying it.
const (
	batchBytesMax = 4 << 20
	batchPartsMax = 1024
)

// Core is a shard without goroutines. See the package comment; owned by one goroutine.
type Core struct {
	cfg   Config
	rn    *raft.RawNode
	log   *entryLog
	links links
	clock clock

	pending     pending           // this node's submissions, not applied yet
	offered     []offer           // of other nodes, for the leader to propose
	expect      map[uint64]uint64 // per link, the last proposed sequence; while leading
	parked      map[uint64]*payload
	incoming    map[entryKey]*payload // bodies that arrived with the message being stepped
	gen         uint64                // last proposal number
	savedCommit uint64                // the commit index that was last written
	inflight    int                   // proposals between Propose and durable
	builder     msg.Builder           // the leader's own operations

	lead    uint64 // raft id of the leader, 0 if unknown
	leading bool   // this node leads and its first entry is applied
	term    uint64

	durable uint64 // entries up to here are durable on this node
	applied uint64
	applyQ  []*pb.Message // MsgStorageApply in order
	applyAt int           // entries of applyQ[0] that are applied
	timeMS  int64         // shard time of the last applied batch
	retry   []*appendReq  // refused for lack of space, and all after them
	writes  uint64        // writes so far
	writing int           // writes that the WAL has not answered
	starved bool          // Blocked(true) was said
	failed  error
	stopped bool
	cut     cutter
	idle    int                  // ticks without progress of what is pending at another leader
	heard   map[uint64]time.Time // per voter, when the last heartbeat was sent that it answered
	epoch   time.Time            // the start
	sworn   int                  // ticks until what was promised before the start has run out
	gaps    map[uint64]uint64    // per link, what is missing of it among the offers

	first     *pb.ConfState // the configuration of the first start
	changed   bool          // it is another one now
	confAt    uint64        // index of the last change that this node proposed
	confSince uint64        // index of the last change that it applied
	snaps     snapshots
	coming    *inSnap     // a snapshot whose files are fetched, or were
	install   *installing // a snapshot that is being installed
	logStart  bool        // the next write says first that the log begins anew
	suspect   *suspect    // of having forgotten what it had
	trusted   uint64      // the term in which it was no suspect any more; 0 if it never was

	refusing bool // see RefuseMessages
}

type offer struct {
	part msg.Part
}

// appendReq is a write on its way to the WAL.
type appendReq struct {
	seq     uint64 // orders the writes
	records []wal.Record
	indexes []uint64 // of the entries among records; 0 for others
	resps   []*pb.Message
	last    uint64 // highest entry index, 0 if none
	own     int    // proposals among them
	bytes   int    // of payloads
	pins    []*payload
}

// unpin gives back the payloads, once the WAL does not need their bytes any more.
func (r *appendReq) unpin() {
	for _, p := range r.pins {
		p.release()
	}
	r.pins = nil
}

// Restored is what recovery hands to NewCore.
type Restored struct {
	Checkpoint uint64 // index of the checkpoint loaded into the machine, 0 = none
	Term       uint64 // its term
	Wal        *wal.RecoveredShard
	Replay     func(from uint64, fn func(wal.Entry) error) error
	Links      []byte // from the checkpoint
	TimeMS     int64
	Conf       []byte // from the checkpoint, see CheckpointExtra
	Installed  bool   // likewise
	// Salvage lets recovery go on where entries are damaged or missing; nil: it fails.
	// Only with one voter: others get such entries from the leader (see
	// wal.RecoveredShard.Damaged) and must not vote before.
	Salvage *Salvage
	// Suspect: the WAL is damaged and there are other voters. What is damaged then comes
	// from the leader, and the replica does not vote before that.
	Suspect bool
	// Lossy: the checkpoint is not all that it was. How far the links got is not known.
	Lossy bool
}

// NewCore recovers a shard: the machine already holds the checkpoint, the entries
// after it are replayed.
func NewCore(cfg Config, r Restored) (*Core, error) {
	cfg.setDefaults()
	c := &Core{
		cfg: cfg, expect: map[uint64]uint64{}, parked: map[uint64]*payload{},
		incoming: map[entryKey]*payload{},
		links:    links{last: map[uint64]uint64{}}, heard: map[uint64]time.Time{}, gaps: map[uint64]uint64{},
		timeMS: r.TimeMS, applied: r.Checkpoint, epoch: cfg.Now(),
	}
	if r.Links != nil {
		if err := c.links.decode(r.Links); err != nil {
			return nil, err
		}
	}
	if err := c.recoverLog(r); err != nil {
		return nil, err
	}
	c.log.snapshot = c.offerSnapshot
	rn, err := raft.NewRawNode(&raft.Config{
		ID: cfg.Node, ElectionTick: cfg.ElectionTicks, HeartbeatTick: 1,
		Storage: c.log, Applied: c.applied, AsyncStorageWrites: true,
		MaxSizePerMsg: 0, MaxCommittedSizePerReady: 64 << 10,
		MaxUncommittedEntriesSize: math.MaxUint64, MaxInflightMsgs: 32,
		CheckQuorum: true, PreVote: true, DisableProposalForwarding: true, StepDownOnRemoval: true,
		Logger: quietLogger{cfg.Logger},
	})
	if err != nil {
		return nil, fmt.Errorf("shard %d: %w", cfg.ID, err)
	}
	c.rn, c.term = rn, c.log.hs.GetTerm()
	if c.logStart {
		c.logStart = false
		req := &appendReq{}
		req.add(c.startRecord(), 0)
		req.add(c.stateRecord(), 0)
		c.submit(req)
	}
	if c.log.hs.GetTerm() > 0 {
		c.sworn = cfg.ElectionTicks
	}
	if r.Suspect && !c.sole() {
		c.suspect = &suspect{floor: c.log.hs.GetTerm()}
	}
	if c.sole() {
		if err := rn.Campaign(); err != nil {
			return nil, fmt.Errorf("shard %d: %w", cfg.ID, err)
		}
	}
	return c, nil
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.CheckpointEntries == 0 {
		c.CheckpointEntries = 200_000
	}
	if c.CheckpointBytes == 0 {
		c.CheckpointBytes = 128 << 20
	}
	if c.MaxInflight == 0 {
		c.MaxInflight = 2
		if len(c.Voters) > 1 {
			c.MaxInflight = 8
		}
	}
	if c.ElectionTicks == 0 {
		c.ElectionTicks = 10
	}
	if c.LagEntries == 0 {
		c.LagEntries = lagEntries
	}
	if c.LagBytes == 0 {
		c.LagBytes = lagBytes
	}
}

// Submit queues a submission of this node. Its Completer is called when it was
// applied here.
func (c *Core) Submit(s Sub) {
	if c.failed != nil || c.stopped {
		s.fail(c.cfg.ID, c.failure())
		return
	}
	if s.Chunk.Len()+msg.BatchHeaderLen(1) > c.cfg.Log.MaxPayload() {
		s.fail(c.cfg.ID, ErrTooLarge)
		return
	}
	if s.messages && c.refusing {
		s.fail(c.cfg.ID, ErrNoRoom)
		return
	}
	c.pending.push(s, c.cfg.Now())
}

// RefuseMessages makes submissions that bring messages in fail with ErrNoRoom, also
// those that are waiting to be proposed: settlements behind them need the place. What
// was proposed is written.
func (c *Core) RefuseMessages(yes bool) {
	c.refusing = yes
	if yes {
		c.pending.shed(func(s Sub) { s.fail(c.cfg.ID, ErrNoRoom) })
	}
}

func (c *Core) failure() error {
	if c.failed != nil {
		return fmt.Errorf("%w: %w", ErrFailed, c.failed)
	}
	return ErrStopped
}

// Offer queues submissions of another node's link; only a leader takes them. The
// bytes are kept.
func (c *Core) Offer(parts []msg.Part) {
	if !c.leading {
		return
	}
	for _, p := range parts {
		c.offered = append(c.offered, offer{part: p})
	}
}

// Pending calls fn with each submission of this node that has not been applied here, and
// its sequence in the node's link, in order.
func (c *Core) Pending(fn func(seq uint64, sub msg.Submission)) {
	for i, s := range c.pending.subs[c.pending.at:] {
		fn(c.pending.head+uint64(i), s.Chunk.Bytes())
	}
}

// LastSeq returns the sequence in the node's link of what was submitted last.
func (c *Core) LastSeq() uint64 { return c.pending.head + uint64(c.pending.len()) - 1 }

// Missing tells that the leader of a term found a gap in the offers of this node's link:
// it has everything before the sequence want. They are offered again from there on.
func (c *Core) Missing(term, want uint64) {
	if term == c.term && c.lead != c.cfg.Node {
		c.pending.back(want)
		c.forward()
	}
}

// entryKey tells entries of different leaders at one index apart.
type entryKey struct{ index, term uint64 }

// Receive steps a raft message that arrived with the bodies of its entries. What raft
// accepts of it is on its way to the WAL when it returns; the rest is forgotten.
func (c *Core) Receive(m *pb.Message, bodies []Body) {
	if c.failed != nil || c.stopped || !c.admit(m) {
		return
	}
	switch m.GetType() {
	case pb.MsgHeartbeatResp:
		c.support(m)
	case pb.MsgSnap:
		c.receiveSnapshot(m)
		return
	}
	c.ready()
	for i, e := range m.GetEntries() {
		if i < len(bodies) && bodies[i].Bytes != nil {
			b := bodies[i]
			c.incoming[entryKey{e.GetIndex(), e.GetTerm()}] = &payload{refs: 1, vec: [][]byte{b.Bytes}, crc: b.CRC, size: len(b.Bytes)}
		}
	}
	c.step(m)
	clear(c.incoming)
}

// Tick advances raft's timers; only needed with more than one voter.
func (c *Core) Tick() {
	if c.suspect == nil { // which would else ask for votes
		c.rn.Tick()
	}
	if c.cfg.Ticked != nil {
		c.cfg.Ticked()
	}
	c.sworn--
	c.tendSnapshots()
	c.restore()
	if len(c.retry) > 0 {
		c.resubmit()
	}
	if c.pending.len() == 0 || c.lead == c.cfg.Node {
		c.idle = 0
		return
	}
	if c.idle++; c.idle >= c.cfg.ElectionTicks {
		c.idle = 0
		c.pending.rewind(c.cfg.Now()) // what was offered is lost, or nobody took it
		c.forward()
	}
}

// Failed returns why the shard failed for good, nil while it works.
func (c *Core) Failed() error { return c.failed }

// LinkApplied returns the last sequence of a link that was applied.
func (c *Core) LinkApplied(link uint64) uint64 { return c.links.last[link] }

// Applied returns the index of the last applied entry.
func (c *Core) Applied() uint64 { return c.applied }

// Quiet reports whether nothing is on its way: no submission of this node, no write.
func (c *Core) Quiet() bool {
	return c.pending.len() == 0 && len(c.retry) == 0 && c.writing == 0 && c.applied == c.log.last()
}

// Describe says in one line how far the shard is, for people.
func (c *Core) Describe() string {
	return fmt.Sprintf("lead %d first %d durable %d last %d pending %d retry %d writing %d inflight %d",
		c.lead, c.log.first, c.durable, c.log.last(), c.pending.len(), len(c.retry), c.writing, c.inflight)
}

// Term returns the current raft term and whether this node leads it.
func (c *Core) Term() (term uint64, leading bool) { return c.term, c.leading }

// Turn does what there is to do: apply, drive the machine, propose, hand writes to the
// WAL. It returns true when it should be called again without waiting for input.
func (c *Core) Turn() (more bool) {
	if c.failed != nil {
		return false
	}
	c.ready()
	more = c.applyCommitted()
	c.ready()
	if c.Leading() {
		if c.cfg.Machine.Drive(&c.builder) {
			more = true
		}
	}
	if c.propose() {
		more = true
	}
	c.wantSnapshot()
	c.ready()
	return c.cut.advance(c) || more
}

// WaitUntil returns when Turn must be called although nothing arrived; zero if never.
func (c *Core) WaitUntil() time.Time {
	if !c.mayPropose() {
		return time.Time{} // what ends that arrives as input
	}
	return c.pending.lazyUntil()
}

// mayPropose says whether a proposal could be made now.
func (c *Core) mayPropose() bool {
	return c.leading && c.inflight < c.cfg.MaxInflight && len(c.retry) == 0
}
