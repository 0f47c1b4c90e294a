package sim

import (
	"flag"
	"testing"
)

var (
	seeds     = flag.Uint64("sim.seeds", 15, "number of runs")
	firstSeed = flag.Uint64("sim.first", 1, "seed of the first run")
)

// TestRuns lets a few seeds of all kinds run; make sim does many.
func TestRuns(t *testing.T) {
	var sum Stats
	kinds := Kinds()
	for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
		r := New(seed, kinds[seed%uint64(len(kinds))]).Run()
		if r.Found != nil {
			t.Errorf("seed %d: %v\nagain: %s", seed, r.Found, r.Replay())
		}
		sum.Add(r.Stats)
	}
	t.Logf("%+v", sum)
	if *seeds >= 15 && (sum.Confirms < 10_000 || sum.Delivered < 10_000 || sum.PowerCuts < 5 || sum.Kills < 5 || sum.Splits < 5) {
		t.Error("the runs prove little")
	}
}

// TestSameSeedSameRun: a seed does the same each time, event for event.
func TestSameSeedSameRun(t *testing.T) {
	traces := map[uint64]bool{}
	for _, kind := range Kinds() {
		a, b := New(7, kind).Run(), New(7, kind).Run()
		if a.Trace != b.Trace || a.Stats != b.Stats {
			t.Errorf("%s: traces %x and %x, %+v and %+v", kind, a.Trace, b.Trace, a.Stats, b.Stats)
		}
		traces[a.Trace] = true
	}
	if len(traces) != len(Kinds()) {
		t.Error("different runs have one trace")
	}
}

// TestFollowersComeByFiles: where logs are kept for nobody, nodes that were away install
// snapshots, and end in the state of the others like all.
func TestFollowersComeByFiles(t *testing.T) {
	var sum Stats
	for seed := uint64(1); seed <= 6; seed++ {
		r := New(seed, Behind).Run()
		if r.Found != nil {
			t.Errorf("seed %d: %v\nagain: %s", seed, r.Found, r.Replay())
		}
		sum.Add(r.Stats)
	}
	if sum.Snapshots < 6 || sum.Copied == 0 {
		t.Errorf("%d snapshots, %d bytes copied: the runs prove little", sum.Snapshots, sum.Copied)
	}
}
