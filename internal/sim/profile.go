package sim

import (
	"math/rand/v2"
	"time"
)

// Profile says what a run is made of. Intervals are means; 0 switches a fault off.
type Profile struct {
	Nodes, Shards, Queues  int // queues in all
	Publishers, Consumers  int
	Session                time.Duration // of a consumer, at most
	Burst                  int           // messages that a publisher sends at once, at most
	Pause                  time.Duration // of a publisher
	Tx                     float64       // how often it publishes to several shards at once or not at all
	Body, BodyMax          int           // bytes, usually and at most
	Duration               time.Duration // with faults; then all is well again
	ConsumeFrom            time.Duration // nobody consumes before
	WALFile                int64
	WALFiles               int
	Lag                    uint64 // entries that a follower may be behind without needing files; 0: any
	Segment, TailCache     int64
	CheckpointEntries      uint64
	Drift                  float64       // of clocks, at most
	Scatter                float64       // how often consumers settle here and there
	KeeperLate             float64       // how often who keeps the disk in order waits for its turn
	KeeperLag              time.Duration // for how long then, at most
	Loss, Repeat, Late     float64       // shares of messages
	Lateness               time.Duration // of late ones, at most
	SplitAt, HealAt        time.Duration // partitions
	KillAt, PowerAt        time.Duration // processes die, alone or with the power
	StopAt                 time.Duration // processes end cleanly
	DownFor                time.Duration // at most
	Spite                  float64       // how often the power goes just after a delivery
	StallAt, StallFor      time.Duration // nodes stand still
	SlowAt, FullAt, JumpAt time.Duration // disks, clocks
	AdminAt                time.Duration // purges, deletions
}

// Names of kinds of runs.
const (
	Mixed    = "mixed"    // each fault with a chance of its own
	Single   = "single"   // one node
	Net      = "net"      // three or five nodes, the network and stalls alone
	Disk     = "disk"     // power cuts, kills, slow and full disks
	Behind   = "behind"   // nodes that are away for long while logs are kept for nobody
	Backlog  = "backlog"  // one node that flushes and merges a lot, few other faults
	Peaceful = "peaceful" // no fault at all
)

// Kinds lists the names that ProfileOf knows.
func Kinds() []string { return []string{Mixed, Single, Net, Disk, Behind, Backlog, Peaceful} }

// ProfileOf draws the profile of a run.
func ProfileOf(kind string, rng *rand.Rand) Profile {
	pick := func(of ...int) int { return of[rng.IntN(len(of))] }
	p := Profile{
		Nodes: pick(1, 3, 3, 3, 5), Shards: pick(1, 1, 2), Publishers: 1 + rng.IntN(3), Consumers: 1 + rng.IntN(4),
		Burst: pick(1, 3, 10), Pause: time.Duration(pick(10, 40, 150)) * time.Millisecond,
		Body: pick(200, 200, 3000), BodyMax: 8 << 10,
		Duration: time.Duration(5+rng.IntN(15)) * time.Second,
		WALFile:  int64(pick(64, 128)) << 10, WALFiles: pick(1, 2, 4), Segment: int64(pick(32, 128)) << 10,
		TailCache: int64(pick(1, 64, 1024)) << 10, CheckpointEntries: uint64(pick(20, 100, 1000)),
		Drift: 0.01 * rng.Float64(), Scatter: 0.3, Session: 4 * time.Second, KeeperLag: 30 * time.Millisecond,
		KeeperLate: 0.3 * rng.Float64() * rng.Float64(), DownFor: time.Duration(pick(100, 1000, 4000)) * time.Millisecond,
	}
	switch kind {
	case Single, Backlog:
		p.Nodes = 1
	case Net:
		p.Nodes = pick(3, 3, 5)
	}
	if rng.IntN(3) == 0 {
		p.ConsumeFrom = time.Duration(rng.Int64N(int64(p.Duration)))
	}
	if p.Lag = uint64(pick(0, 10, 50, 300)); p.Nodes > 1 && p.Lag == 0 {
		p.WALFiles = 1000 // followers catch up from the log alone
	}
	if p.Nodes == 1 {
		p.Pause = time.Duration(pick(2, 10, 40)) * time.Millisecond
	}
	p.Tx = pickShare(rng, 1)
	p.Queues = p.Shards * (1 + rng.IntN(3))
	some := func(lo, hi int) time.Duration {
		if rng.IntN(2) == 0 {
			return 0
		}
		return time.Duration(lo+rng.IntN(hi-lo)) * time.Millisecond
	}
	switch kind {
	case Peaceful:
		return p
	case Backlog:
		p.Body, p.WALFile, p.WALFiles, p.Segment, p.TailCache = 3000, 64<<10, 1, 32<<10, 1
		p.Pause, p.Burst, p.Consumers, p.Duration = 10*time.Millisecond, 3, 4, 8*time.Second
		p.ConsumeFrom, p.KeeperLate, p.Scatter = time.Duration(rng.IntN(2000))*time.Millisecond, 0.4, 0.95
		p.KillAt, p.StopAt, p.Session, p.KeeperLag = some(1000, 6000), some(2000, 8000), time.Second, 30*time.Millisecond
		return p
	}
	if kind != Disk {
		p.Loss, p.Repeat = pickShare(rng, 0.02), pickShare(rng, 0.02)
		p.Late, p.Lateness = pickShare(rng, 0.05), some(5, 300)
		p.SplitAt, p.HealAt = some(1500, 6000), time.Duration(300+rng.IntN(3000))*time.Millisecond
		p.StallAt, p.StallFor = some(2000, 8000), time.Duration(50+rng.IntN(3000))*time.Millisecond
		p.JumpAt = some(1000, 5000)
		p.AdminAt = some(500, 3000)
	}
	if kind == Behind {
		p.Nodes, p.Lag, p.WALFile, p.WALFiles, p.CheckpointEntries = pick(3, 3, 5), uint64(pick(10, 50)), 64<<10, 1, 20
		p.Burst, p.Pause, p.DownFor = 10, 20*time.Millisecond, 4*time.Second
		p.SplitAt, p.HealAt = 2*time.Second, 3*time.Second
	}
	if kind != Net {
		p.KillAt, p.PowerAt, p.StopAt = some(1000, 6000), some(1000, 6000), some(2000, 8000)
		p.SlowAt, p.FullAt = some(1500, 6000), some(1500, 6000)
		p.Spite = pickShare(rng, 0.01)
	}
	return p
}

func pickShare(rng *rand.Rand, most float64) float64 {
	if rng.IntN(2) == 0 {
		return 0
	}
	return most * rng.Float64()
}
