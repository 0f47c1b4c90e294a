package queue

import (
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
)

// TestWantReserveSome: lanes that ask for reservations are told of in parts, each once
// and in turn.
func TestWantReserveSome(t *testing.T) {
	l := NewLedger()
	d := NewDispatch(l, nil)
	const logs = 10
	for id := msg.LogID(1); id <= logs; id++ {
		l.Ensure(id, nil)
		l.Append(id, 0, 1, nil)
		if _, st := d.Get(id, &Consumer{Log: id}); st != GetWait {
			t.Fatalf("status %d without a reservation", st)
		}
	}
	seen := map[msg.LogID]int{}
	for parts, more := 1, true; more; parts++ {
		n := 0
		more = d.WantReserveSome(3, func(log msg.LogID, _ uint8, _ msg.Offset) { seen[log]++; n++ })
		if n > 3 || more != (parts < 4) {
			t.Fatalf("part %d: %d lanes, more: %v", parts, n, more)
		}
	}
	for id := msg.LogID(1); id <= logs; id++ {
		if seen[id] != 1 {
			t.Fatalf("log %d was told %d times", id, seen[id])
		}
	}
}
