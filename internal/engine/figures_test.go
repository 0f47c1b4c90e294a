package engine

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
)

// TestFigures: what a node did for messages that stayed is in its figures.
func TestFigures(t *testing.T) {
	n := openNode(t, vfs.NewMem())
	defer func() { _ = n.Close() }()
	s := n.Queues()[0]
	if _, err := s.Do(func(b *msg.Builder) { b.Ensure(1, nil); b.Ensure(2, nil) }); err != nil {
		t.Fatal(err)
	}
	before := n.Figures()
	for range 40 { // twenty files of the write-ahead log
		if _, err := s.Do(func(b *msg.Builder) { appendTo(b, 1, 3, 10_000) }); err != nil {
			t.Fatal(err)
		}
	}
	f := n.Figures()
	for f.Store.Flushes.Count() == 0 {
		f = n.Figures() // waits for the shards' loops
	}
	ids := []uint32{MetaShard, 1, VolatileShard}
	if len(f.Shards) != len(ids) {
		t.Fatalf("%d shards", len(f.Shards))
	}
	for i, id := range ids {
		if f.Shards[i].ID != id || f.Shards[i].Applied == 0 && id != VolatileShard {
			t.Errorf("%+v is not shard %d", f.Shards[i], id)
		}
	}
	one, was := f.Shards[1], before.Shards[1]
	if one.Logs != 2 || one.Applied < was.Applied+40 || one.RunsMax == 0 {
		t.Errorf("logs %d, applied %d after %d, runs %d", one.Logs, one.Applied, was.Applied, one.RunsMax)
	}
	if turns := one.Turns.Since(&was.Turns); turns.Count() < 40 || turns.Max() <= 0 {
		t.Errorf("%d turns, at most %v", turns.Count(), turns.Max())
	}
	if w := f.WAL; w.Bytes < 1_200_000 || w.Syncs < 40 || w.SyncTime.Count() < 40 {
		t.Errorf("%+v", w)
	}
	if st := f.Store; st.Segments == 0 || st.LiveBytes < 30_000 || st.Bytes < st.LiveBytes || st.WrittenBytes < uint64(st.LiveBytes) {
		t.Errorf("%+v", st)
	}
}

// TestRunsMax: against counting, whatever comes and goes.
func TestRunsMax(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := places{lanes: map[lane]*place{}}
		var all []store.Run
		next := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				r := store.Run{Log: msg.LogID(rapid.IntRange(1, 4).Draw(t, "log")), Seg: store.SegID(rapid.IntRange(1, 3).Draw(t, "seg")), First: next, Last: next, Count: 1}
				next++
				p.addRuns([]store.Run{r})
				all = append(all, r)
			},
			"remove": func(t *rapid.T) {
				seg := store.SegID(rapid.IntRange(1, 3).Draw(t, "seg"))
				var gone, left []store.Run
				for _, r := range all {
					if r.Seg == seg {
						gone = append(gone, r)
					} else {
						left = append(left, r)
					}
				}
				p.removeRuns(gone)
				all = left
			},
			"drop": func(t *rapid.T) {
				log := msg.LogID(rapid.IntRange(1, 4).Draw(t, "log"))
				p.drop(log, []uint8{0})
				var left []store.Run
				for _, r := range all {
					if r.Log != log {
						left = append(left, r)
					}
				}
				all = left
			},
			"": func(t *rapid.T) {
				count, most := map[msg.LogID]int{}, 0
				for _, r := range all {
					count[r.Log]++
					most = max(most, count[r.Log])
				}
				if got := p.runsMax(); got != most {
					t.Fatalf("%d runs at most, want %d", got, most)
				}
			},
		})
	})
}
