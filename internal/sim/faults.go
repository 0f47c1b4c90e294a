package sim

import "time"

// startFaults lets what the profile has happen at random times.
func (w *World) startFaults() {
	p := &w.p
	w.often(p.SplitAt, func() {
		w.stats.Splits++
		w.net.split()
		w.say("partition: %v", len(w.net.blocked))
		w.after(w.between(50*time.Millisecond, 2*p.HealAt), w.net.heal)
	})
	w.often(p.KillAt, func() { w.someNode(func(n *node) { w.say("node %d is killed", n.id); n.disk.kill(); n.crashed() }) })
	w.often(p.PowerAt, func() {
		switch w.rng.IntN(6) {
		case 0: // everywhere at once
			w.say("power cut everywhere")
			for _, n := range w.nodes {
				if n.up {
					n.disk.cutPower()
					n.crashed()
				}
			}
		case 1:
			w.someNode(func(n *node) { w.say("power cut at node %d", n.id); n.disk.cutPower(); n.crashed() })
		default: // in the midst of something
			w.someNode(func(n *node) { n.disk.armed, n.disk.left = true, w.rng.IntN(40) })
		}
	})
	w.often(p.StallAt, func() {
		w.someNode(func(n *node) {
			w.stats.Stalls++
			n.stalled = w.now + w.between(10*time.Millisecond, p.StallFor)
			w.say("node %d stands still until %.3f", n.id, n.stalled.Seconds())
		})
	})
	w.often(p.SlowAt, func() {
		w.someNode(func(n *node) {
			w.stats.SlowDisks++
			n.disk.slow = w.between(0, 300*time.Millisecond)
			d := n.disk
			w.after(w.between(0, 3*time.Second), func() { d.slow = 0 })
		})
	})
	if len(w.nodes) == 1 {
		w.often(p.FullAt, func() {
			w.someNode(func(n *node) {
				n.disk.setFull(true)
				w.say("the disk of node %d is full", n.id)
				d := n.disk
				w.after(w.between(0, 3*time.Second), func() { d.setFull(false) })
			})
		})
	}
	w.often(p.JumpAt, func() {
		n := w.nodes[w.rng.IntN(len(w.nodes))]
		w.stats.Jumps++
		jumps := []time.Duration{-time.Hour, time.Hour, 366 * 24 * time.Hour, -366 * 24 * time.Hour, 3 * time.Second}
		n.wallOff += jumps[w.rng.IntN(len(jumps))]
		if w.chance(0.5) {
			w.after(w.between(0, 2*time.Second), func() { n.wallOff = 0 })
		}
	})
	w.often(p.StopAt, func() { w.someNode(w.stop) })
	if p.AdminAt > 0 {
		w.client(w.admin)
	}
}

// often lets fn happen again and again, as long as there are faults.
func (w *World) often(mean time.Duration, fn func()) {
	if mean == 0 {
		return
	}
	w.after(w.between(mean/4, 2*mean), func() {
		if w.faulty {
			fn()
			w.often(mean, fn)
		}
	})
}

// someNode does something to a node that is up.
func (w *World) someNode(fn func(n *node)) {
	if n := w.anyNode(); n != nil {
		fn(n)
	}
}

// stop ends a node's process cleanly.
func (w *World) stop(n *node) {
	if n.stopping {
		return
	}
	n.stopping = true
	inc := n.inc
	w.stats.Stops++
	w.say("node %d stops", n.id)
	n.procs = append(n.procs, w.spawn(func(*proc) {
		err := n.eng.Close()
		if !n.up || n.inc != inc || n.disk.rest != nil { // the power went meanwhile
			return
		}
		if err != nil {
			w.check.fail("shard", "node %d does not stop: %v", n.id, err)
		}
		n.disk.rest = n.disk.mem.Clone()
		n.crashed()
	}))
}

// makePeace ends all faults and lets the clients come to an end.
func (w *World) makePeace() {
	w.say("peace")
	w.faulty, w.quieting = false, true
	w.net.heal()
	w.net.loss, w.net.repeat, w.net.late = 0, 0, 0
	for _, n := range w.nodes {
		n.disk.armed, n.disk.slow, n.stalled = false, 0, 0
		n.disk.setFull(false)
	}
	w.after(0, w.raise)
}

// raise boots whatever is down, again and again: a clean stop may be under way.
func (w *World) raise() {
	for _, n := range w.nodes {
		n.bootIfDown()
	}
	w.after(200*time.Millisecond, w.raise)
}
