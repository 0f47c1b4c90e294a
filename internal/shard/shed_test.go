package shard

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluicemq/sluice/internal/buf"
)

// TestShed: what brings messages in leaves the queue, unless somebody knows its sequence;
// everything else keeps its order, and its sequence if it has one.
func TestShed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type entry struct {
			token    uint64
			messages bool
		}
		var p pending
		var model []entry // those that are in p
		told := 0         // the first so many of them have a sequence that is known
		head, token := uint64(1), uint64(0)
		now := time.Unix(1, 0)
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				token++
				c := buf.Get(8)
				c.SetBytes(c.Bytes()[:8])
				s := Sub{Chunk: c, Token: token, messages: rapid.Bool().Draw(t, "messages")}
				s.Lazy = !s.messages && rapid.Bool().Draw(t, "lazy")
				p.push(s, now)
				model = append(model, entry{token, s.messages})
			},
			"take": func(t *rapid.T) {
				if s, seq, ok := p.take(); ok {
					told = max(told, int(seq-head)+1)
					if s.Token != model[seq-head].token {
						t.Fatalf("sequence %d is of %d, want %d", seq, s.Token, model[seq-head].token)
					}
				}
			},
			"pop": func(t *rapid.T) {
				if told > 0 {
					if s, ok := p.pop(head); !ok || s.Token != model[0].token {
						t.Fatalf("popped %d %v, want %d", s.Token, ok, model[0].token)
					}
					model, told, head = model[1:], told-1, head+1
				}
			},
			"rewind": func(*rapid.T) { p.rewind(now) },
			"shed": func(t *rapid.T) {
				gone := map[uint64]bool{}
				p.shed(func(s Sub) { gone[s.Token] = true })
				kept := model[:told:told]
				for _, e := range model[told:] {
					if e.messages != gone[e.token] {
						t.Fatalf("%+v: gone is %v", e, gone[e.token])
					}
					if !e.messages {
						kept = append(kept, e)
					}
					delete(gone, e.token)
				}
				if len(gone) > 0 {
					t.Fatalf("gone although their sequences are known: %v", gone)
				}
				model = kept
			},
			"": func(t *rapid.T) {
				urgent := 0
				for _, s := range p.subs[p.next:] {
					if !s.Lazy {
						urgent++
					}
				}
				if p.len() != len(model) || p.urgent != urgent {
					t.Fatalf("%d waiting, %d of them urgent; want %d, %d", p.len(), p.urgent, len(model), urgent)
				}
			},
		})
	})
}
