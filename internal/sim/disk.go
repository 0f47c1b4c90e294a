package sim

import (
	"errors"
	"strings"
	"time"

	"github.com/sluicemq/sluice/internal/vfs"
)

// errPower is what every operation gives on a disk whose process is gone.
var errPower = errors.New("sim: the process is gone")

// disk is the file system of one start of a node. It outlives the process: rest is what
// the next start finds.
type disk struct {
	n     *node
	mem   *vfs.Mem
	rest  *vfs.Mem
	armed bool
	left  int // changes until the power goes, while armed
	full  bool
	slow  time.Duration // added to each sync
}

func (d *disk) fs() vfs.FS { return vfs.Inject(d.mem, d.hook) }

func (d *disk) hook(op vfs.Op) error {
	d.count(op)
	if d.rest == nil && d.armed && op.Kind.Mutates() {
		if d.left--; d.left < 0 {
			d.cutPower()
		}
	}
	if d.rest != nil {
		return errPower
	}
	return nil
}

// count keeps figures of what happens to files.
func (d *disk) count(op vfs.Op) {
	w := d.n.w
	switch {
	case op.Kind == vfs.OpCreate && strings.HasSuffix(op.Path, ".seg"):
		w.stats.Segments++
	case op.Kind == vfs.OpRename && strings.HasSuffix(op.Path, ".wal"):
		w.stats.Recycled++
	case op.Kind != vfs.OpCreate && op.Kind != vfs.OpRename && op.Kind != vfs.OpRemove:
		return
	}
	if w.Watch == (About{}) {
		w.say("disk %d: %v %s %s", d.n.id, op.Kind, op.Path, op.To)
	}
}

// cutPower ends the process together with the disk's memory of unsynced writes: none,
// some or all of those survive.
func (d *disk) cutPower() {
	if d.rest != nil {
		return
	}
	w := d.n.w
	keep := []vfs.Keep{vfs.KeepNone, vfs.KeepRandom, vfs.KeepRandom, vfs.KeepAll}
	w.say("power of node %d goes", d.n.id)
	d.rest = d.mem.CrashClone(w.rng, vfs.CrashOptions{Data: keep[w.rng.IntN(4)], Names: keep[w.rng.IntN(4)]})
	w.stats.PowerCuts++
}

// kill ends the process alone: what it wrote is there, synced or not.
func (d *disk) kill() {
	if d.rest == nil {
		d.rest = d.mem.Clone()
		d.n.w.stats.Kills++
	}
}

// setFull fills the disk, or makes room.
func (d *disk) setFull(yes bool) {
	d.full = yes
	if !yes {
		d.mem.SetLimit(0)
		return
	}
	// A little is left, so that some operations still go through.
	d.mem.SetLimit(max(d.n.w.used(d.mem)+d.n.w.rng.Int64N(96<<10), 1))
	d.n.w.stats.FullDisks++
}

// latency is how long the next round of the write-ahead log takes.
func (d *disk) latency() time.Duration {
	w := d.n.w
	if w.chance(0.02) {
		return w.between(2*time.Millisecond, 30*time.Millisecond) + d.slow
	}
	return w.between(100*time.Microsecond, 2*time.Millisecond) + d.slow
}

// used returns the bytes that files take.
func (w *World) used(m *vfs.Mem) int64 {
	total := int64(0)
	for _, p := range m.Paths("") {
		if st, err := m.Stat(p); err == nil {
			total += st.Size
		}
	}
	return total
}
