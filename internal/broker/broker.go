// Package broker is the façade between protocols and the machinery: what a session may
// do (declare, publish, consume, settle), with the rules that hold whatever the
// protocol. It routes over an immutable table, hands submissions to shards and passes
// on what comes back. It knows no protocol; protocols see nothing below it.
//
// A Session belongs to its connection's reader goroutine, its Reader to the writer
// goroutine; methods that say so may be called from both. What comes from the broker
// arrives at the session's Sink.
package broker

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/access"
	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/meta"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/vfs"
)

// Config opens a Broker.
type Config struct {
	Dir    string
	FS     vfs.FS       // default the operating system's
	Log    *slog.Logger // default slog.Default()
	Shards int          // durable shards at first start
	// DefaultUser and DefaultPassword are the administrator that the first start makes;
	// default guest and guest.
	DefaultUser, DefaultPassword string
	// LargeBytes: a body of more bytes travels and is stored in parts of PartBytes or
	// less. Defaults 1 MiB and msg.PartBytesMax, or a quarter of a WAL file if that is
	// less.
	LargeBytes, PartBytes int
	// MemoryLimit is how many bytes the process may use, 0 for any number; see
	// watchMemory. MemoryUsed tells how many it does, by default the runtime's word.
	MemoryLimit int64
	MemoryUsed  func() int64
	// Node sizes storage; its Dir, FS, Shards, Meta and Blocked are set from here.
	Node engine.NodeConfig
}

func (c *Config) setDefaults() {
	if c.MemoryUsed == nil {
		c.MemoryUsed = memoryUsed()
	}
	quarter := c.Node.WALFileBytes / 4
	if quarter == 0 {
		quarter = math.MaxInt64
	}
	if c.LargeBytes == 0 {
		c.LargeBytes = int(min(1<<20, quarter))
	}
	if c.PartBytes == 0 {
		c.PartBytes = int(min(msg.PartBytesMax, quarter))
	}
}

// Broker is an open broker.
type Broker struct {
	cfg  Config
	meta *metaMachine
	node *engine.Node

	mu       sync.Mutex
	sessions map[*Session]struct{}
	blocked  map[string]bool // reasons why no messages are taken
	tell     chan struct{}   // blocked, or sessions, changed
	grown    chan struct{}   // the disk has less space by a file
	nextID   atomic.Uint64
	stop     chan struct{}
	stopOnce sync.Once
	wg       sync.WaitGroup
}

// Open recovers the data directory and starts the broker. On first start it makes the
// virtual host / and the user guest, who may log in from loopback only.
func Open(cfg Config) (*Broker, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	b := &Broker{
		cfg: cfg, meta: newMetaMachine(cfg.Log), sessions: map[*Session]struct{}{},
		blocked: map[string]bool{}, tell: make(chan struct{}, 1), grown: make(chan struct{}, 1),
		stop: make(chan struct{}),
	}
	b.cfg.setDefaults()
	nc := cfg.Node
	nc.Dir, nc.FS, nc.Shards, nc.Meta = cfg.Dir, cfg.FS, cfg.Shards, b.meta
	nc.MetaLoaded, nc.Log = b.meta.restored, cfg.Log
	nc.Blocked = b.diskRefuses
	nc.QueueOf, nc.MetaLost = b.meta.queueOf, b.meta.lose
	nc.Refuses = func(yes bool) { b.setBlocked(reasonDisk+": messages refused", yes) }
	nc.Grown = func() { poke(b.grown) }
	if nc.FS == nil {
		nc.FS = vfs.OS()
	}
	b.cfg.FS = nc.FS
	node, err := engine.Open(nc)
	if err != nil {
		return nil, err
	}
	b.node = node
	if err := b.prepare(); err != nil {
		_ = node.Close()
		return nil, err
	}
	b.wg.Go(b.watchDisk)
	if cfg.MemoryLimit > 0 {
		b.wg.Go(func() { b.watchMemory(cfg.MemoryLimit, b.cfg.MemoryUsed) })
	}
	b.wg.Go(b.announce)
	return b, nil
}

// Close asks all sessions to end, waits a moment for them, and closes the data
// directory. A second call does nothing.
func (b *Broker) Close() error {
	for _, s := range b.sessionList() {
		s.sink.Shutdown("broker shutting down")
	}
	for range 100 {
		if len(b.sessionList()) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	err := error(nil)
	b.stopOnce.Do(func() {
		close(b.stop)
		b.wg.Wait()
		err = b.node.Close()
	})
	return err
}

func (b *Broker) sessionList() []*Session {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]*Session, 0, len(b.sessions))
	for s := range b.sessions {
		list = append(list, s)
	}
	return list
}

func (b *Broker) table() *route.Table { return b.meta.table.Load() }

// Table returns the current routing table.
func (b *Broker) Table() *route.Table { return b.table() }

// define carries out a definition: on this node's own objects at once, else through
// shard 0, until it is committed and visible here.
func (b *Broker) define(op meta.Op) (meta.Result, error) {
	done := make(chan meta.Result, 1)
	ms := b.node.Meta()
	ms.Post(func() {
		if b.meta.catalog.IsLocal(op) {
			r := b.meta.local(op)
			for _, follow := range r.Propose {
				b.propose(follow, make(chan meta.Result, 1))
			}
			done <- r
			return
		}
		b.propose(op, done)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return r, r.Err
		}
		return r, nil
	case <-ms.Done():
		return meta.Result{}, berr.New(berr.Unavailable, "the broker is shutting down")
	}
}

// propose runs on the loop of shard 0.
func (b *Broker) propose(op meta.Op, done chan meta.Result) {
	op, early := b.meta.catalog.Prepare(op)
	if early != nil {
		done <- *early
		return
	}
	var mb msg.Builder
	mb.Meta(meta.AppendOp(nil, op))
	b.node.Meta().Core().Submit(shard.Sub{Chunk: mb.Finish(), Done: metaDone(done)})
}

type metaDone chan meta.Result

// Completed implements shard.Completer.
func (d metaDone) Completed(_ uint32, _ uint64, res shard.Result) {
	r, ok := res.Value.(meta.Result)
	if !ok {
		r = meta.Result{Outcome: meta.Refused, Err: berr.New(berr.Unavailable, "definition not committed: %v", res.Err)}
	}
	d <- r
}

// prepare writes what has to be there before clients come. On a full disk it gives up.
func (b *Broker) prepare() error {
	done := make(chan error, 1)
	go func() {
		err := b.firstStart()
		if err == nil {
			err = b.adoptOrphans()
		}
		if err == nil {
			err = b.reconcile()
		}
		if err == nil {
			b.meta.making.Clear() // all logs are there
		}
		done <- err
	}()
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(engine.StartPatience):
			if b.node.Starved() {
				return engine.ErrDiskFull // the node's Close ends the wait for it
			}
		}
	}
}

// settingReady says that the first start is over.
const settingReady = "ready"

// firstStart makes the virtual host / and the first account. A crash may lie between any
// two of its steps: all that is missing is made at the next start.
func (b *Broker) firstStart() error {
	name, password := b.cfg.DefaultUser, b.cfg.DefaultPassword
	if name == "" {
		name, password = guest, guest
	}
	var ready, user, vhost bool
	b.node.Meta().Call(func() {
		_, ready = b.meta.catalog.Setting(settingReady)
		vhost, user = b.meta.catalog.HasVHost("/"), b.meta.catalog.User(name) != nil
	})
	if ready {
		return nil
	}
	if !vhost {
		if _, err := b.define(meta.PutVHost{Name: "/"}); err != nil {
			return err
		}
	}
	if !user {
		if err := b.PutUser(NewUser{Name: name, Password: password, Tags: []string{"administrator"}}); err != nil {
			return err
		}
	}
	if err := b.SetPermission("/", name, access.Permission{Configure: ".*", Write: ".*", Read: ".*"}); err != nil {
		return err
	}
	_, err := b.define(meta.PutSetting{Key: settingReady, Value: "1"})
	return err
}

// reconcile makes the shards' logs what the definitions say: a crash may lie between
// the two.
func (b *Broker) reconcile() error {
	want := map[uint32]map[msg.LogID]*route.Queue{}
	for vh := range b.table().VHosts() {
		for q := range vh.Queues() {
			id := uint32(q.Shard)
			if want[id] == nil {
				want[id] = map[msg.LogID]*route.Queue{}
			}
			want[id][q.ID] = q
		}
	}
	for _, s := range b.node.Queues() {
		var missing, dead []*route.Queue
		var extra, sealed []msg.LogID
		s.Call(func() {
			l := s.Machine().Ledger()
			for id, q := range want[s.ID()] {
				switch {
				case l.IsDeleted(id): // only damage leaves the definition behind
					dead = append(dead, q)
				case !l.Has(id):
					missing = append(missing, q)
				case l.IsSealed(id): // for a removal that did not come about
					sealed = append(sealed, id)
				}
			}
			l.Logs(func(id msg.LogID) bool {
				if want[s.ID()][id] == nil && !msg.IsInternal(id) {
					extra = append(extra, id)
				}
				return true
			})
		})
		for _, q := range dead {
			if _, err := b.define(meta.DeleteQueue{VHost: q.VHost, Name: q.Name, ID: q.ID}); err != nil {
				return err
			}
		}
		if len(missing)+len(extra)+len(sealed) == 0 {
			continue
		}
		_, err := s.Do(func(mb *msg.Builder) {
			for _, q := range missing {
				mb.Ensure(q.ID, profileOf(q))
			}
			for _, id := range extra {
				mb.Delete(id)
			}
			for _, id := range sealed {
				mb.Unseal(id)
			}
		})
		if err != nil {
			return err
		}
		b.cfg.Log.Info("logs reconciled with definitions", "shard", s.ID(), "made", len(missing), "removed", len(extra), "unsealed", len(sealed))
	}
	return nil
}

func profileOf(q *route.Queue) []byte {
	return queue.AppendProfile(nil, queue.Profile{CountDeliveries: q.Type == route.Quorum})
}

const (
	reasonDisk = "low on disk"
	diskEvery  = 500 * time.Millisecond
)

// watchDisk stops publishers while there is less free space than its mark, or the
// reserve for a full disk isn't whole. They are let in again when there is a quarter
// more, so that a few messages don't stop them at once.
func (b *Broker) watchDisk() {
	low := false
	for {
		if sp, err := b.node.DiskSpace(); err == nil {
			mark := sp.Mark
			if low {
				mark += mark / 4
			}
			if now := sp.Free < mark || sp.Missing > 0; now != low {
				low = now
				b.cfg.Log.Warn("disk space", "low", low, "free", sp.Free, "mark", sp.Mark, "reserve_missing", sp.Missing)
				b.setBlocked(reasonDisk, low)
				b.node.DiskLow(low)
			}
		}
		select {
		case <-time.After(diskEvery):
		case <-b.grown: // a fast publisher fills the rest sooner than that
		case <-b.stop:
			return
		}
	}
}

// setBlocked notes a reason for taking no messages; sessions hear of the first and of
// the end of the last.
func (b *Broker) setBlocked(reason string, yes bool) {
	b.mu.Lock()
	if yes {
		b.blocked[reason] = true
	} else {
		delete(b.blocked, reason)
	}
	b.mu.Unlock()
	poke(b.tell)
}

// diskRefuses is told when a shard can't write for want of space, and when it can again.
func (b *Broker) diskRefuses(shard uint32, yes bool) {
	b.setBlocked(fmt.Sprintf("%s: shard %d", reasonDisk, shard), yes)
}

// poke wakes whoever receives from a channel of capacity 1.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// announce tells sessions whether messages are taken. It alone does, so that no session
// hears of changes in another order than they came.
func (b *Broker) announce() {
	for {
		select {
		case <-b.tell:
		case <-b.stop:
			return
		}
		var list []*Session
		b.mu.Lock()
		blocked, why := len(b.blocked) > 0, reasonDisk
		if b.blocked[reasonMemory] {
			why = reasonMemory
		}
		for s := range b.sessions {
			if s.blocked != blocked {
				s.blocked = blocked
				list = append(list, s)
			}
		}
		b.mu.Unlock()
		for _, s := range list {
			if blocked {
				s.sink.Blocked(why)
			} else {
				s.sink.Unblocked()
			}
		}
	}
}

// shardFor chooses the shard of a new durable queue.
func (b *Broker) shardFor(vhost, name string) uint16 {
	h := uint64(14695981039346656037)
	for _, s := range [...]string{vhost, "\x00", name} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	h ^= h >> 29
	return uint16(1 + h%uint64(len(b.node.Queues())))
}

func generatedName() string {
	var r [16]byte
	_, _ = rand.Read(r[:])
	return "amq.gen-" + base64.RawURLEncoding.EncodeToString(r[:])
}

func notFoundQueue(name, vhost string) error {
	return berr.New(berr.NotFound, "no queue '%s' in vhost '%s'", name, vhost)
}

// String describes the broker for logs.
func (b *Broker) String() string { return fmt.Sprintf("broker in %s", b.cfg.Dir) }
