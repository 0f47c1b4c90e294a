//go:build plantedbugs

package engine

import "github.com/sluicemq/sluice/internal/msg"

// reroute is a bug: it sends a transfer's messages to other queues than it was committed
// with, as if they were routed again.
func reroute(sub msg.Submission) msg.Submission {
	b := msg.Builder{Forced: true}
	var op msg.Op
	err := sub.Ops(&op, func(_ int, op *msg.Op) bool {
		run := sub.Records(op)
		for range op.N {
			raw, err := run.Next()
			if err != nil || raw == nil {
				return false
			}
			rec, _, err := msg.ParseRecord(raw)
			if err != nil {
				return false
			}
			e := msg.Envelope{Format: rec.Format, TimeMS: rec.TimeMS, Key: rec.Key}
			for _, t := range op.Targets {
				b.Append([]msg.Target{{Log: t.Log ^ 2}}, &e, rec.Body)
			}
		}
		return true
	})
	c := b.Finish()
	if err != nil || c == nil {
		return sub
	}
	return append(msg.Submission(nil), c.Bytes()...)
}
