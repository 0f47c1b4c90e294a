package torture

// Tx books one transaction: at the end it must be there as a whole or not at all, and as
// a whole if its commit was answered.
type Tx struct {
	c         *Checker
	published []ID
	acked     []txAck
	committed bool
}

// txAck is an ack in a transaction, and how often its message had come back until then.
type txAck struct {
	id    ID
	backs int32
}

// Begin books a transaction that is about to be made.
func (c *Checker) Begin() *Tx {
	t := &Tx{c: c}
	c.mu.Lock()
	c.txs = append(c.txs, t)
	c.mu.Unlock()
	return t
}

// Published books that the transaction is about to publish a message.
func (t *Tx) Published(id ID) { t.published = append(t.published, id) }

// Acked books that the transaction is about to ack a message.
func (t *Tx) Acked(id ID) {
	t.c.Acked(id)
	t.c.mu.Lock()
	t.acked = append(t.acked, txAck{id, t.c.message(id).backs})
	t.c.mu.Unlock()
}

// Committed books that the commit was answered: all of it is durable.
func (t *Tx) Committed() {
	for _, id := range t.published {
		t.c.Confirmed(id)
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.committed = true
	t.c.counts.Committed++
	for _, a := range t.acked {
		if m := t.c.message(a.id); m.acked {
			m.fencedAt = t.c.now().Add(-t.c.limits.Grace)
		}
	}
}

// RolledBack books that a message is published and taken back.
func (c *Checker) RolledBack(id ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.message(id).rolledBack = true
}

// judgeTxs looks at what is there of each transaction. c.mu is held.
func (c *Checker) judgeTxs() {
	for _, t := range c.txs {
		done := 0
		for _, id := range t.published {
			if c.message(id).delivered {
				done++
			}
		}
		for _, a := range t.acked {
			if c.message(a.id).backs == a.backs {
				done++
			}
		}
		n := len(t.published) + len(t.acked)
		if done > 0 && done < n || t.committed && done < n {
			c.counts.HalfTxs++
			c.violate("of a transaction (committed: %v) that published %v and acked %v only %d are there", t.committed, t.published, t.acked, done)
		}
	}
}
