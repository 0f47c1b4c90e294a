package engine

import (
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
)

// memory orders the commands of a volatile shard: what arrives is applied at once, in
// order, and lives as long as the process.
type memory struct {
	m       *Machine
	queue   []shard.Sub
	builder msg.Builder
	now     func() time.Time
	index   uint64
}

// Submit implements Submitter.
func (v *memory) Submit(s shard.Sub) { v.queue = append(v.queue, s) }

// Turn implements shard.Turner.
func (v *memory) Turn() (more bool) {
	if !v.m.leading {
		v.m.Lead(1)
	}
	for len(v.queue) > 0 {
		list := v.queue
		v.queue = nil
		for _, s := range list {
			v.apply(s)
		}
	}
	more = v.m.Drive(&v.builder)
	if c := v.builder.Finish(); c != nil {
		v.apply(shard.Sub{Chunk: c})
		more = true
	}
	return more || len(v.queue) > 0
}

func (v *memory) apply(s shard.Sub) {
	v.index++
	sub, err := msg.ParseSubmission(s.Chunk.Bytes())
	res := shard.Result{Err: err}
	if err == nil {
		res = v.m.Apply(&shard.Command{
			Index: v.index, TimeMS: v.now().UnixMilli(), Sub: sub, Chunk: s.Chunk, Local: true,
		})
	}
	s.Finish(v.m.id, res)
}

// Stop implements shard.Turner.
func (v *memory) Stop() {
	for _, s := range v.queue {
		s.Finish(v.m.id, shard.Result{Err: shard.ErrStopped})
	}
	v.queue = nil
}
