package engine

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/vfs"
)

// room is how a node divides the volume that its data directory lies on, so that a full
// disk stops publishers alone. Consumers need three things that cost space before they
// give it back: files of the write-ahead log for settlements, segments for one flush
// and one rewrite, and a little for checkpoints and the MANIFEST.
type room struct {
	walSpares int   // files that the write-ahead log holds back
	reserve   int64 // bytes of vfs.Reserve, for the store
	mark      int64 // free bytes below which messages are refused
}

// reserveName is the file that keeps the store's space.
const reserveName = "reserve"

// divide chooses the parts by the size of a write-ahead log file: two files of the log,
// twice a file for the store. Small volumes keep less. Writing in place allocates on a
// copy-on-write file system, where the log may use the store's reserve for that: it is
// larger, and messages are refused earlier.
func divide(sp vfs.Space, walFile int64) room {
	part := walFile * 2
	if total := sp.Total / 8; uint64(part) > total {
		part = int64(total)
	}
	r := room{walSpares: 2, reserve: part, mark: part}
	switch files := sp.Total / uint64(walFile); {
	case files < 8:
		r.walSpares = 0
	case files < 16:
		r.walSpares = 1
	}
	if sp.CopyOnWrite {
		r.reserve, r.mark = 2*part, 2*part
	}
	return r
}

// disk is a node's view of its volume.
type disk struct {
	fs   *vfs.Reserve
	dir  string
	room room

	// The write-ahead log has only its reserve left: low. Whoever changes that, or sets
	// ready, tells the shards with mu held, so that they hear of the last change last.
	mu    sync.Mutex
	ready bool // there is somebody to tell
	low   atomic.Bool
}

func openDisk(cfg NodeConfig) (*disk, error) {
	sp, err := cfg.FS.FreeSpace(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", cfg.Dir, err)
	}
	d := &disk{dir: cfg.Dir, room: divide(sp, cfg.WALFileBytes)}
	d.fs, err = vfs.NewReserve(cfg.FS, filepath.Join(cfg.Dir, reserveName), d.room.reserve)
	if err != nil {
		return nil, fmt.Errorf("reserve of space: %w", err)
	}
	if err := d.fs.Fill(d.room.mark); err != nil && !vfs.IsNoSpace(err) {
		cfg.Log.Warn("no space reserved for a full disk", "err", err)
	}
	return d, nil
}

// DiskSpace says how a node's volume stands, in bytes.
type DiskSpace struct {
	Free uint64
	// Mark is the free space below which messages should be refused.
	Mark uint64
	// Missing is what the reserve for a full disk lacks.
	Missing int64
}

// DiskSpace looks how much space is left.
func (n *Node) DiskSpace() (DiskSpace, error) {
	sp, err := n.disk.fs.FreeSpace(n.disk.dir)
	return DiskSpace{Free: sp.Free, Mark: uint64(n.disk.room.mark), Missing: n.disk.fs.Missing()}, err
}

// setLow is told by the write-ahead log that only its reserve is left, and of the end of
// that: then messages are refused.
func (n *Node) setLow(yes bool) {
	d := n.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.low.Store(yes)
	if d.ready {
		n.tellLow(yes)
	}
}

// announceLow makes changes known from now on.
func (n *Node) announceLow() {
	d := n.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ready = true
	if d.low.Load() {
		n.tellLow(true)
	}
}

func (n *Node) tellLow(yes bool) {
	n.keeper.setScarce(yes)
	for _, s := range n.queues {
		s.Post(func() { s.Core().RefuseMessages(yes) })
	}
	if n.refuses != nil {
		n.refuses(yes)
	}
}

// Refuses reports that messages are refused for lack of space.
func (n *Node) Refuses() bool { return n.disk.low.Load() }

// StartPatience is how long a start waits for space.
const StartPatience = 5 * time.Second

// awaitLead waits until the shard leads, which with one voter takes one write; with others
// leads must not wait for that. Without space it gives up after a while, in which the
// keeper may find some.
func awaitLead(s *shard.Shard, leads func() bool) error {
	for starved := time.Duration(0); ; starved += time.Millisecond {
		var done, waits bool
		var failed error
		if !s.Call(func() { done, failed, waits = leads(), s.Core().Failed(), s.Core().Starved() }) {
			return ErrStopped
		}
		switch {
		case done:
			return nil
		case failed != nil:
			return fmt.Errorf("shard %d: %w", s.ID(), failed)
		case !waits:
			starved = 0
		case starved >= StartPatience:
			return ErrDiskFull
		}
		time.Sleep(time.Millisecond)
	}
}

// Starved reports whether a shard's writes wait for space.
func (n *Node) Starved() (yes bool) {
	for _, s := range n.keeper.all {
		s.Call(func() { yes = yes || s.Core().Starved() })
	}
	return yes
}

// ErrDiskFull says that a start finds no space for what it has to write.
var ErrDiskFull = errors.New("the disk is full: a start needs room for a file of the write-ahead log")
