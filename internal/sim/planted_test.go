//go:build plantedbugs

package sim

import (
	"testing"

	"github.com/sluicemq/sluice/internal/planted"
)

// plants are the bugs, with the kind of runs that finds them and how many seeds that may
// take.
var plants = []struct {
	name  string
	bug   *bool
	kind  string
	seeds uint64
}{
	{"confirm before sync", &planted.ConfirmBeforeSync, Single, 40},
	{"settle not journaled", &planted.SettleNotJournaled, Peaceful, 3},
	{"file recycled before flush", &planted.RecycleBeforeFlush, Single, 40},
	{"file sequence ignored", &planted.FileSequenceIgnored, Single, 40},
	{"dispatch before the term's first entry", &planted.DispatchBeforeTerm, Mixed, 40},
	{"link gap accepted", &planted.LinkGapAccepted, Net, 40},
	{"a location in the ledger", &planted.LocationInLedger, Peaceful, 10},
	{"reservation after delivery", &planted.ReserveAfterDelivery, Single, 60},
	{"segment unlinked while pinned", &planted.UnlinkPinned, Behind, 60},
	{"outbox target lost", &planted.OutboxTargetLost, Mixed, 40},
	{"outbox sent twice", &planted.OutboxSentTwice, Mixed, 60},
	{"outbox re-routed on retry", &planted.OutboxRerouted, Mixed, 200},
	{"a follower drops by its own clock", &planted.FollowerDrops, Net, 40},
}

// TestPlantedBugs: the checker finds each bug that is put in, within the stated number of
// seeds.
func TestPlantedBugs(t *testing.T) {
	for _, p := range plants {
		t.Run(p.name, func(t *testing.T) {
			*p.bug = true
			defer func() { *p.bug = false }()
			for seed := uint64(1); seed <= p.seeds; seed++ {
				if r := New(seed, p.kind).Run(); r.Found != nil {
					t.Logf("found by seed %d of %s: %v", seed, p.kind, r.Found)
					return
				}
			}
			t.Fatalf("not found by %d seeds of %s", p.seeds, p.kind)
		})
	}
}
