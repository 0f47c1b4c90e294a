package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/hist"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
	"github.com/sluicemq/sluice/internal/wal"
)

// Shard numbers. Durable shards of queues are 1 to n.
const (
	MetaShard     uint32 = 0
	VolatileShard uint32 = 0xfff0
)

// Settings of the node that live in the MANIFEST.
const (
	settingShards      = "shards"
	settingIncarnation = "incarnation"
	settingVoters      = "voters" // of the first start, unless that was this node alone
)

// NodeConfig opens a Node. Zero values are defaults where one is named.
type NodeConfig struct {
	FS     vfs.FS // default vfs.OS()
	Dir    string
	Log    *slog.Logger  // default slog.Default()
	Shards int           // number of durable shards at first start; fixed from then on
	Meta   shard.Machine // the machine of shard 0, which is left out without one
	// MetaLoaded is called when Meta holds its checkpoint, before the WAL is replayed.
	MetaLoaded func() error
	// WALFileBytes and WALFiles size the write-ahead log: files of so many bytes, of
	// which so many may wait for the flusher; defaults 64 MiB and 8.
	WALFileBytes int64
	WALFiles     int
	TailCache    int64 // bytes of recent chunks per shard; default 8 MiB
	// VolatileMemory is how many bytes the volatile shard keeps in memory; default
	// 64 MiB.
	VolatileMemory int64
	// Blocked is told when the disk refuses a shard's writes, and when it takes them
	// again; on the loop of that shard.
	Blocked func(shard uint32, yes bool)
	// Refuses is told when messages are refused since there is only room for settling,
	// and when they are taken again.
	Refuses func(yes bool)
	// Grown is told when the write-ahead log needs another file: a moment to look how
	// much space is left. It must not block.
	Grown func()
	// Failed is told when the write-ahead log or the store failed for good: nothing can be
	// confirmed any more, so the process should end.
	Failed func(error)
	// CheckpointBytes and CheckpointEntries are shard.Config's.
	CheckpointBytes   int64
	CheckpointEntries uint64
	// Strict refuses to start where anything is damaged, with an error that is
	// ErrDamaged. Else what is damaged is put into quarantine and the rest is served.
	// With replicas it is implied: what is damaged there must come from the others.
	Strict bool
	// ScrubBytes is how many bytes a second are read to find damage; default 4 MiB,
	// negative: none.
	ScrubBytes int64
	// MetaLost is told during recovery, before what follows is applied, that operations
	// of shard 0 are lost; definitions may be missing then. May be nil.
	MetaLost func()
	// QueueOf names the queue of a log for reports, empty if there is none; for any
	// goroutine. May be nil.
	QueueOf  func(shard uint32, log msg.LogID) (vhost, queue string)
	Replicas Replicas
	// Stepping, if set, replaces goroutines and clock. The node then runs as its methods
	// Shards, Upkeep and WriteCuts and its WAL's Step are called.
	Stepping *Stepping

	storeOptions store.Options // sizes, for tests

	// transport, for tests, is put in front of the node's own one.
	transport func(Transport) Transport
}

// Stepping lets one goroutine drive a node over a time of its own, as simulations do.
type Stepping struct {
	// Pause is called, over and over, by whoever waits: for a shard's loop, for an
	// event, or that so much time goes by. It lets others go on. False: give up.
	Pause     func(atMost time.Duration) bool
	Now, Wall func() time.Time
	Salt      uint64        // of a new write-ahead log
	Store     store.Options // sizes; FS and Dir are the node's
	// Wrap puts something between a shard and its machine; may be nil.
	Wrap func(shard uint32, m shard.Machine, l *queue.Ledger) shard.Machine
}

// Node is an open data directory with its shards running.
type Node struct {
	lock      io.Closer
	disk      *disk
	started   bool       // goroutines run
	refuses   func(bool) // NodeConfig.Refuses
	store     *store.Store
	wal       *wal.Log
	keeper    *Keeper
	aside     *quarantine
	scrub     *scrubber // nil: off
	scrubRate int64
	damaged   bool  // something was found damaged at this start
	lossErr   error // of noting a loss during recovery
	meta      *shard.Shard
	queues    []*Shard
	volatile  *Shard
	number    uint32 // of this node
	start     uint32 // the number of this start
	link      uint64
	txs       atomic.Uint64 // transactions numbered since the start
	movers    sync.WaitGroup
	swept     chan struct{} // closed when Sweep is done
	stepping  *Stepping
	bodies    atomic.Uint32 // parts logs made since the start
	tables    atomic.Pointer[[]*shard.Shard]
	syncs     hist.Histogram // writes of the WAL with their sync
	Recovery  *wal.Recovery
}

// Open recovers a data directory and starts its shards.
func Open(cfg NodeConfig) (*Node, error) {
	cfg.setDefaults()
	if err := cfg.FS.MkdirAll(cfg.Dir); err != nil {
		return nil, err
	}
	lock, err := cfg.FS.Lock(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", cfg.Dir, err)
	}
	n := &Node{
		lock: lock, scrubRate: cfg.ScrubBytes, stepping: cfg.Stepping, refuses: cfg.Refuses,
		swept: make(chan struct{}),
	}
	if err := n.open(cfg); err != nil {
		return nil, errors.Join(err, n.abandon())
	}
	return n, nil
}

func (c *NodeConfig) setDefaults() {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.FS == nil {
		c.FS = vfs.OS()
	}
	if c.WALFileBytes == 0 {
		c.WALFileBytes = 64 << 20
	}
	if c.WALFiles == 0 {
		c.WALFiles = 8
	}
	if c.TailCache == 0 {
		c.TailCache = 8 << 20
	}
	if c.VolatileMemory == 0 {
		c.VolatileMemory = 64 << 20
	}
	c.Strict = c.Strict || len(c.Replicas.Voters) > 1 || c.Stepping != nil
	if c.ScrubBytes == 0 {
		c.ScrubBytes = scrubDefault
	}
	if c.Shards == 0 {
		c.Shards = 2
	}
	if c.Replicas.Node == 0 {
		c.Replicas.Node = 1
	}
	if c.Replicas.Voters == nil && !c.Replicas.Join {
		c.Replicas.Voters = []uint64{c.Replicas.Node}
	}
}

// via returns what carries transfers between the shards of n.
func (c *NodeConfig) via(n *Node) Transport {
	t := c.Replicas.Transport
	if t == nil {
		t = local{n}
	}
	if c.transport != nil {
		t = c.transport(t)
	}
	return t
}

func (n *Node) open(cfg NodeConfig) error {
	disk, err := openDisk(cfg)
	if err != nil {
		return err
	}
	n.disk = disk
	so := cfg.storeOptions
	if cfg.Stepping != nil {
		so = cfg.Stepping.Store
	}
	so.FS, so.Dir = disk.fs, cfg.Dir
	st, found, err := store.Open(so)
	if err != nil {
		return err
	}
	n.store = st
	if err := n.storeDamages(cfg, found.Damages); err != nil {
		return err
	}
	shards, incarnation, err := n.settings(&cfg)
	if err != nil {
		return err
	}
	n.number, n.start = uint32(cfg.Replicas.Node), incarnation
	n.link = shard.LinkID(n.number, n.start)
	n.keeper = newKeeper(st, cfg.Log, cfg.WALFiles, cfg.VolatileMemory)
	n.keeper.aside, n.keeper.snaps.peers = n.aside, cfg.Replicas.Files
	n.keeper.disk, n.keeper.failed = disk, cfg.Failed
	opts := n.walOptions(cfg)
	if s := cfg.Stepping; s != nil {
		opts.Stepped, opts.Salt, n.keeper.pause = true, s.Salt, s.Pause
	}
	lg, rec, err := wal.Open(opts)
	if err != nil {
		return err
	}
	n.wal, n.keeper.wal, n.Recovery = lg, lg, rec
	if err := n.walDamages(cfg, rec); err != nil {
		return err
	}
	if err := n.openShards(cfg, shards, found); err != nil {
		return err
	}
	return n.run()
}

// walOptions says how the write-ahead log serves this node.
func (n *Node) walOptions(cfg NodeConfig) wal.Options {
	disk := n.disk
	return wal.Options{
		FS: disk.fs.InPlace(), Dir: filepath.Join(cfg.Dir, "wal"), FileSize: cfg.WALFileBytes,
		Reserve: disk.room.walSpares, MaxSpare: disk.room.walSpares + 2,
		Recycle: func() bool { return disk.fs.Missing() == 0 }, // a flush is what gives more space
		Tables:  n.walTables, VerifyPayload: shard.VerifyPayload,
		Events: wal.Events{
			FileSealed: func(wal.SealedFile) {
				poke(n.keeper.wake)
				if cfg.Grown != nil {
					cfg.Grown()
				}
			},
			FileRecycled: func(_ uint64, reused bool) {
				if !reused {
					n.keeper.refill() // at once, before somebody else takes it
				}
			},
			Failed: cfg.Failed,
			Synced: func(_ int, d time.Duration) { n.syncs.Record(d) },
			Low:    n.setLow,
		},
	}
}

// settings reads what the first start fixed and counts this start.
func (n *Node) settings(cfg *NodeConfig) (int, uint32, error) {
	shards, incarnation := cfg.Shards, uint32(1)
	if b, ok := n.store.Setting(settingShards); ok && len(b) == 4 {
		shards = int(binary.LittleEndian.Uint32(b))
	}
	if b, ok := n.store.Setting(settingIncarnation); ok && len(b) == 4 {
		incarnation = binary.LittleEndian.Uint32(b) + 1
	}
	var e store.Edit
	if b, ok := n.store.Setting(settingVoters); ok {
		cfg.Replicas.Voters = nil
		for ; len(b) >= 8; b = b[8:] {
			cfg.Replicas.Voters = append(cfg.Replicas.Voters, binary.LittleEndian.Uint64(b))
		}
	} else if len(cfg.Replicas.Voters) != 1 {
		b = []byte{}
		for _, v := range cfg.Replicas.Voters {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		e.Set(settingVoters, b)
	}
	e.Set(settingShards, binary.LittleEndian.AppendUint32(nil, uint32(shards)))
	e.Set(settingIncarnation, binary.LittleEndian.AppendUint32(nil, incarnation))
	for _, m := range n.store.Segments(VolatileShard) {
		e.DropSegment(m.ID)
	}
	return shards, incarnation, n.store.Install(&e)
}

func (n *Node) openShards(cfg NodeConfig, shards int, found *store.Recovery) error {
	runs := map[uint32][]store.Run{}
	for _, s := range found.Shards {
		runs[s.Shard] = s.Runs
	}
	if cfg.Meta != nil {
		meta, err := n.openShard(cfg, MetaShard, cfg.Meta, cfg.MetaLoaded, n.metaLost(cfg))
		if err != nil {
			return err
		}
		if slices.ContainsFunc(n.Recovery.Damages, func(d wal.Damage) bool { return d.Records }) {
			n.metaLost(cfg)() // its last entries may be among what nothing tells of
		}
		n.meta = meta
		n.keeper.loads[MetaShard].loaded = func([]store.Run) error { return cfg.MetaLoaded() }
		n.keeper.all = append(n.keeper.all, meta)
	}
	peers := make([]uint32, shards)
	for i := range peers {
		peers[i] = uint32(i + 1)
	}
	for _, id := range peers {
		m := New(n.machineConfig(cfg, id))
		sh, err := n.openShard(cfg, id, m, func() error { return m.RestoreDone(runs[id]) }, m.Lose)
		if err != nil {
			return err
		}
		if n.lossErr != nil {
			return n.lossErr
		}
		if n.damaged {
			m.endSuspect()
			m.raiseTails()
		}
		m.Bind(sh.Core())
		m.reportLive()
		n.keeper.loads[id].loaded = func(runs []store.Run) error {
			err := m.RestoreDone(runs)
			m.reportLive()
			return err
		}
		s := newShard(sh, m)
		m.BindOutboxes(s, cfg.via(n), sh.Core().LinkApplied, peers)
		n.queues = append(n.queues, s)
		n.keeper.all = append(n.keeper.all, sh)
	}
	vm := New(Config{Shard: VolatileShard, Volatile: true, Store: n.store, Log: cfg.Log, aside: n.aside})
	mem := &memory{m: vm, now: time.Now}
	vm.Bind(mem)
	n.volatile = newShard(shard.NewWith(VolatileShard, mem), vm)
	if s := cfg.Stepping; s != nil {
		mem.now = s.Wall
		n.volatile.Stepped(s.Pause)
	}
	n.keeper.queues, n.keeper.volatile = n.queues, n.volatile
	n.tables.Store(&n.keeper.all)
	return nil
}

// reportLive tells the store how many entries of each run are unsettled.
func (m *Machine) reportLive() {
	for _, l := range m.places.lanes {
		for _, r := range l.runs {
			if n := m.liveIn(r); n < int(r.Count) {
				m.store.SetLive(r, n)
			}
		}
	}
}

// openShard loads a shard's checkpoint into its machine and replays the WAL on it. loaded
// is called in between, lose when something of the shard's state is lost.
func (n *Node) openShard(cfg NodeConfig, id uint32, m shard.Machine, loaded func() error, lose func()) (*shard.Shard, error) {
	r, err := n.loadShard(cfg, id, m, loaded, lose)
	if err != nil {
		return nil, err
	}
	switch {
	case shard.Others(r.Conf, cfg.Replicas.Voters, cfg.Replicas.Node):
		r.Suspect = r.Wal != nil && r.Wal.Damaged // what is lost comes from the leader
	case !cfg.Strict:
		r.Salvage = n.salvage(id, lose)
		if err := n.catchUp(id, &r); err != nil {
			return nil, err
		}
	}
	sc := shard.Config{
		ID: id, Incarnation: 1, Node: cfg.Replicas.Node, Voters: cfg.Replicas.Voters, Sender: cfg.Replicas.Sender,
		Link: n.link, Logger: cfg.Log, Log: n.wal, Machine: m, Checkpoint: n.keeper.take,
		Blocked: func(yes bool) {
			n.keeper.setScarce(yes)
			if cfg.Blocked != nil {
				cfg.Blocked(id, yes)
			}
		},
		CheckpointBytes: cfg.CheckpointBytes, CheckpointEntries: cfg.CheckpointEntries,
		LagEntries: cfg.Replicas.LagEntries, LagBytes: cfg.Replicas.LagBytes,
		Moved: func(source uint32, gap bool) {
			if qm, ok := m.(*Machine); ok {
				qm.out.arrived(source, gap)
			}
		},
	}
	if cfg.Replicas.Files != nil {
		sc.Snapshots = n.keeper.snaps
	}
	load := &loading{machine: m}
	n.keeper.loads[id] = load
	em, ok := m.(*Machine)
	if ok {
		sc.Ticked = em.Tick
	}
	step := cfg.Stepping
	if step == nil {
		return shard.New(sc, r)
	}
	sc.Now, sc.Wall = step.Now, step.Wall
	if ok && step.Wrap != nil {
		sc.Machine = step.Wrap(id, m, em.ledger)
		load.machine = sc.Machine
	}
	sh, err := shard.New(sc, r)
	if err == nil {
		sh.Stepped(step.Pause)
	}
	return sh, err
}

func (n *Node) walTables() []wal.ShardState {
	list := n.tables.Load()
	if list == nil {
		return nil
	}
	out := make([]wal.ShardState, 0, len(*list))
	for _, s := range *list {
		out = append(out, s.Table())
	}
	return out
}

func (n *Node) run() error {
	n.Recovery = nil // holds an index of all entries
	if n.stepping != nil {
		n.announceLow()
		return nil
	}
	if n.meta != nil {
		n.meta.Start()
	}
	for _, s := range n.queues {
		s.Start()
	}
	n.volatile.Start()
	n.keeper.start()
	n.announceLow()
	n.started = true
	var err error
	if n.meta != nil {
		err = awaitLead(n.meta, func() bool { _, leads := n.meta.Core().Term(); return leads || !n.meta.Core().Alone() })
	}
	for _, s := range n.queues {
		if err == nil {
			err = awaitLead(s.Shard, func() bool { return s.m.leading || !s.Core().Alone() })
		}
	}
	if err == nil && n.damaged {
		err = n.mend()
	}
	if err == nil && n.scrubRate >= 0 {
		n.scrub = newScrubber(n, n.scrubRate)
		go n.scrub.run()
	}
	n.volatile.Call(func() {}) // its first turn makes it lead
	for _, s := range n.queues {
		n.movers.Go(s.m.out.mover.run)
	}
	n.Sweep()
	return err
}

// NewParts returns the id of a new parts log; false when this start has made as many as
// can be told apart.
func (n *Node) NewParts() (msg.LogID, bool) {
	k := n.bodies.Add(1) - 1
	if k >= msg.PartsLogsMax {
		n.bodies.Store(msg.PartsLogsMax)
		return 0, false
	}
	return msg.PartsLog(n.number, n.start, k), true
}

// Shards lists all shards, for a driver to step; the volatile one is the last.
func (n *Node) Shards() []*shard.Shard {
	return append(slices.Clone(n.keeper.all), n.volatile.Shard)
}

// WAL returns the write-ahead log, for a driver to step.
func (n *Node) WAL() *wal.Log { return n.wal }

// Upkeep keeps the disk in order until the node is closed. A node without goroutines
// has two jobs that pause: this one, and WriteCuts, which makes checkpoints durable.
func (n *Node) Upkeep() { n.keeper.job(n.keeper.run) }

// WriteCuts is the other job, see Upkeep.
func (n *Node) WriteCuts() { n.keeper.job(n.keeper.writeCuts) }

// Link returns the id of the link from this node, in this start, to its shards.
func (n *Node) Link() uint64 { return n.link }

// Meta returns the metadata shard.
func (n *Node) Meta() *shard.Shard { return n.meta }

// Queues returns the durable shards of queues; the first has number 1.
func (n *Node) Queues() []*Shard { return n.queues }

// Shard returns the shard of queues with this number, nil if there is none.
func (n *Node) Shard(id uint32) *Shard {
	switch {
	case id == VolatileShard:
		return n.volatile
	case id >= 1 && int(id) <= len(n.queues):
		return n.queues[id-1]
	}
	return nil
}

// SubmissionMax returns the greatest length of a submission.
func (n *Node) SubmissionMax() int { return n.wal.MaxPayload() - msg.BatchHeaderLen(1) }

// Pressure reports that publishers of a shard should wait for the flusher.
func (n *Node) Pressure(shard uint32) bool {
	if shard == VolatileShard {
		return n.keeper.volatilePressure()
	}
	return n.keeper.Pressure()
}

// DiskLow tells of a change of whether the disk is nearly full: the node then gives
// space back that it would else keep for later.
func (n *Node) DiskLow(yes bool) { n.keeper.setScarce(yes) }

// abandon closes what a failed start has opened.
func (n *Node) abandon() error {
	if n.started {
		return n.Close()
	}
	return n.closeFiles()
}

// Close stops the shards after writing how far deliveries really went, so that a clean
// restart flags nothing that was never delivered.
func (n *Node) Close() error {
	if n.scrub != nil {
		n.scrub.close()
	}
	for _, s := range n.queues {
		s.sealReserves()
	}
	for _, s := range n.queues {
		close(s.m.out.mover.stop)
	}
	n.movers.Wait()
	n.keeper.close()
	for _, s := range n.queues {
		s.Stop()
	}
	n.volatile.Stop()
	if n.meta != nil {
		n.meta.Stop()
	}
	return n.closeFiles()
}

func (n *Node) closeFiles() error {
	var errs []error
	if n.wal != nil {
		errs = append(errs, n.wal.Close())
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	if n.disk != nil {
		errs = append(errs, n.disk.fs.Close())
	}
	errs = append(errs, n.lock.Close())
	return errors.Join(errs...)
}
