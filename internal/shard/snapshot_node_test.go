package shard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
)

// Snapshots by files in the simulation: a node keeps its checkpoints in a real store and
// flushes the numbers of its list, as messages of one log, into segments. What a follower
// installs must have the bytes of everything that its checkpoint lists.

const (
	numbersLog = msg.LogID(1)
	localKey   = "\xfelocal" // names the node that wrote it; must never come to another
)

var errNet = errors.New("network")

// nodeFiles is the files of a node and what it is doing with them.
type nodeFiles struct {
	store   *store.Store
	runs    []store.Run
	flushed int // numbers of the list that are in segments
	pins    map[uint64]*store.Snapshot
	nextPin uint64
	making  bool
	atLeast uint64 // for the snapshot that is made
	fetch   *fetchJob
	install []byte // list to be taken
}

type fetchJob struct {
	from uint64
	list []byte
}

// openStore is false if the power went meanwhile.
func (c *diskCluster) openStore(n *diskNode) bool {
	st, rec, err := store.Open(store.Options{
		FS: vfs.Inject(n.disk, n.power.hook), Dir: "store", SegmentBytes: 32 << 10, OwnRunBytes: 16 << 10,
		ManifestBytes: 4 << 10, CheckpointBytes: 4 << 10, Identity: n.id,
	})
	if err != nil && n.power.gone() != nil {
		return false
	}
	if err != nil || len(rec.Damages) > 0 {
		c.t.Fatalf("node %d: store: %v %v", n.id, err, rec)
	}
	n.files = nodeFiles{store: st, pins: map[uint64]*store.Snapshot{}}
	for _, s := range rec.Shards {
		n.setRuns(s.Runs)
	}
	return true
}

func (n *diskNode) setRuns(runs []store.Run) {
	n.files.runs, n.files.flushed = runs, 0
	for _, r := range runs {
		n.files.flushed = max(n.files.flushed, int(r.Last)+1)
	}
}

// loadCheckpoint fills the machine from the store.
func (n *diskNode) loadCheckpoint() (st Loaded, err error) {
	err = n.files.store.LoadCheckpoint(7, func(key, value []byte) (err error) {
		switch string(key) {
		case ShardKey:
			st.TimeMS, st.Links, err = ParseShardState(bytes.Clone(value))
			return err
		case localKey:
			if binary.LittleEndian.Uint64(value) != n.id {
				return errors.New("a key of another node")
			}
			return nil
		}
		return n.m.Restore(key, value)
	})
	return st, err
}

// trouble says whether an error on the node's disk is one of those that happen.
func (c *diskCluster) trouble(n *diskNode, err error) bool {
	if err == nil {
		return false
	}
	if n.power.gone() == nil && !vfs.IsNoSpace(err) {
		c.t.Fatalf("node %d: %v", n.id, err)
	}
	return true
}

// saveCheckpoint makes a finished cut durable.
func (c *diskCluster) saveCheckpoint(n *diskNode) {
	if n.taken == nil {
		return
	}
	w, err := n.files.store.BeginCheckpoint(7)
	if c.trouble(n, err) {
		return
	}
	defer w.Abort()
	for _, kv := range n.taken.Keys {
		if c.trouble(n, w.Put(kv.Key, kv.Value)) {
			return
		}
	}
	if c.trouble(n, w.Put([]byte(localKey), binary.LittleEndian.AppendUint64(nil, n.id))) ||
		c.trouble(n, w.Commit(n.taken.Index, n.taken.Extra(), nil)) {
		return
	}
	n.saved, n.taken = *n.taken, nil
	n.core.CheckpointDone()
}

func numberRecord(n uint64) []byte {
	return msg.AppendRecord(nil, &msg.Envelope{}, opBytes(n))
}

// flush writes the numbers that are in no segment yet into one.
func (c *diskCluster) flush(n *diskNode) bool {
	f := &n.files
	if f.flushed >= len(n.m.list) {
		return true
	}
	w := f.store.NewWriter(7, store.WriterOptions{})
	err := w.StartRun(numbersLog, 0, 0)
	for i := f.flushed; i < len(n.m.list) && err == nil; i++ {
		err = w.Add(numbersLog, 0, msg.Offset(i), numberRecord(n.m.list[i]))
	}
	var metas []store.SegmentMeta
	if err == nil {
		metas, err = w.Finish()
	}
	if err != nil {
		w.Abort()
	}
	if c.trouble(n, err) {
		return false
	}
	var e store.Edit
	for _, m := range metas {
		e.AddSegment(m)
	}
	if c.trouble(n, f.store.Install(&e)) {
		f.store.Discard(metas)
		return false
	}
	f.flushed = len(n.m.list)
	for _, m := range metas {
		f.runs = append(f.runs, m.Runs...)
	}
	return true
}

// compact merges all segments of a node.
func (c *diskCluster) compact(n *diskNode) {
	if n.core.CatchingUp() {
		return
	}
	var ids []store.SegID
	for _, m := range n.files.store.Segments(7) {
		ids = append(ids, m.ID)
	}
	if len(ids) < 3 {
		return
	}
	all := func(r store.Run) store.Live {
		return store.Live{Ranges: []msg.Range{{First: r.First, Count: r.Last - r.First + 1}}, Follows: true}
	}
	out, err := n.files.store.Compact(ids, all, store.CompactOptions{})
	if c.trouble(n, err) {
		return
	}
	defer out.Close()
	var e store.Edit
	out.AddTo(&e)
	if c.trouble(n, n.files.store.Install(&e)) {
		return
	}
	var runs []store.Run
	for _, m := range out.Outputs {
		runs = append(runs, m.Runs...)
	}
	n.setRuns(runs)
}

// verify reads back every number of a node's list that should be in segments.
func (c *diskCluster) verify(n *diskNode, upto int) {
	c.t.Helper()
	seen := make([]bool, len(n.m.list))
	for _, r := range n.files.runs {
		for next := r.First; next <= r.Last; {
			b, err := n.files.store.ReadRange(r, next, 64<<10)
			if err != nil {
				if c.trouble(n, err) {
					return
				}
			}
			for {
				off, rec, ok := b.Next()
				if !ok {
					break
				}
				next = off + 1
				if off >= msg.Offset(len(n.m.list)) {
					continue // flushed before the checkpoint got so far
				}
				if !bytes.Equal(rec, numberRecord(n.m.list[off])) {
					c.t.Fatalf("node %d: number %d of %d is not what was flushed", n.id, off, len(n.m.list))
				}
				seen[off] = true
			}
			b.Release()
		}
	}
	if i := slices.Index(seen[:upto], false); i >= 0 {
		c.t.Fatalf("node %d has no bytes of number %d of %d", n.id, i, upto)
	}
}

// diskSnaps implements Snapshots: it notes what the simulation is to do.
type diskSnaps struct {
	c *diskCluster
	n *diskNode
}

func (s diskSnaps) Make(_ uint32, index uint64) { s.n.files.making, s.n.files.atLeast = true, index }

func (s diskSnaps) Release(_ uint32, id uint64) {
	v := s.n.files.pins[id]
	if v == nil {
		s.c.t.Fatalf("node %d: snapshot %d released twice", s.n.id, id)
	}
	delete(s.n.files.pins, id)
	v.Release()
}

func (s diskSnaps) Fetch(_ uint32, from uint64, list []byte) {
	s.n.files.fetch = &fetchJob{from, list}
}

func (s diskSnaps) Install(_ uint32, list []byte) { s.n.files.install = list }

// transfer lets a node go on with what it does for snapshots.
func (c *diskCluster) transfer(n *diskNode) {
	switch f := &n.files; {
	case f.install != nil:
		c.take(n)
	case f.fetch != nil:
		c.fetchMore(n)
	case f.making:
		c.makeSnapshot(n)
	}
}

func (c *diskCluster) makeSnapshot(n *diskNode) {
	f := &n.files
	if info, ok := f.store.Checkpoint(7); !ok || info.Index < f.atLeast {
		n.core.RequestCheckpoint()
		return
	}
	v := f.store.Snapshot(7)
	if !c.flush(n) {
		v.Release()
		return
	}
	v.Replace(f.store.Snapshot(7))
	f.nextPin++
	list, err := v.List(f.nextPin)
	if c.trouble(n, err) {
		v.Release()
		return
	}
	f.pins[f.nextPin], f.making = v, false
	c.made++
	n.core.SnapshotMade(Made{ID: f.nextPin, Index: list.Check.Index, Extra: list.Check.Extra, List: list.Append(nil)}, nil)
}

// diskSource reads a peer's files in small pieces until its budget is used up.
type diskSource struct {
	c        *diskCluster
	from, to *diskNode
	pieces   int
}

func (s *diskSource) ReadFile(shard uint32, pin uint64, f store.FileRef, p []byte, off int64) (int, error) {
	if s.c.crashed(s.from) || s.c.parted(s.from, s.to) || s.pieces <= 0 {
		return 0, errNet
	}
	s.pieces--
	v := s.from.files.pins[pin]
	if v == nil {
		return 0, store.ErrGone
	}
	n, err := v.ReadFile(f, p[:min(len(p), 1+s.c.rng.IntN(4000))], off)
	if err != nil && s.from.power.gone() != nil {
		err = errNet
	}
	s.c.copied += n
	return n, err
}

func (c *diskCluster) parted(a, b *diskNode) bool {
	return c.cutOff >= 0 && (c.nodes[c.cutOff] == a || c.nodes[c.cutOff] == b)
}

func (c *diskCluster) fetchMore(n *diskNode) {
	job := n.files.fetch
	list, err := store.ParseCopyList(job.list)
	if err != nil {
		c.t.Fatal(err)
	}
	pieces := 1 + c.rng.IntN(12)
	if !c.faults {
		pieces = 1000
	}
	err = n.files.store.Fetch(list, &diskSource{c, c.nodes[job.from-1], n, pieces}, store.FetchOptions{})
	switch {
	case errors.Is(err, errNet) && c.rng.IntN(10) > 0:
		c.interrupted++
		return // it goes on when it is its turn again
	case err == nil || errors.Is(err, errNet) || errors.Is(err, store.ErrGone):
	case c.trouble(n, err):
		return
	}
	n.files.fetch = nil
	n.core.SnapshotFetched(job.list, err)
}

func (c *diskCluster) take(n *diskNode) {
	list, err := store.ParseCopyList(n.files.install)
	if err != nil {
		c.t.Fatal(err)
	}
	x, err := ParseCheckpointExtra(list.Check.Extra)
	if err != nil {
		c.t.Fatal(err)
	}
	x.Installed = true
	runs, err := n.files.store.Take(list, x.Encode(), func(key []byte) bool { return string(key) == localKey })
	if c.trouble(n, err) {
		return
	}
	n.files.install, n.taken = nil, nil
	n.setRuns(runs)
	n.m.Reset()
	st, err := n.loadCheckpoint()
	if c.trouble(n, err) {
		return
	}
	n.saved = Cut{Index: list.Check.Index, Term: x.Term}
	c.verify(n, len(n.m.list))
	c.installed++
	n.core.SnapshotInstalled(st, err)
}
