package amqp

import (
	"sync"

	"github.com/sluicemq/sluice/internal/queue"
)

// outboxMax is how many bytes other than deliveries may wait for the writer, beyond
// which the reader stops reading.
const outboxMax = 1 << 20

// What a completion, and an item that isn't a delivery, count for in the outbox.
const (
	completionBytes = 32
	itemBytes       = 128
)

type itemKind uint8

const (
	itemControl  itemKind = iota // n bytes of the control buffer
	itemDeliver                  // d
	itemGet                      // d as the answer to basic.get on cons.ch, n messages are left
	itemDetached                 // nothing is delivered to cons any more
	itemReturn                   // ret goes back, n bytes of body
	itemFinal                    // n bytes of the control buffer, then nothing
)

// item is one thing for the writer to do.
type item struct {
	kind itemKind
	n    int
	cons *consumer
	ret  *returned
	d    queue.Delivery
}

// completion is a slot of a flush that is complete.
type completion struct {
	token  uint64
	slot   uint8
	failed bool
}

// mail is what the outbox holds for the writer.
type mail struct {
	items   []item
	control []byte
	flushes []*flush
	comps   []completion
	bytes   int // what it counts for, deliveries excepted
}

func (m *mail) empty() bool {
	return len(m.items) == 0 && len(m.flushes) == 0 && len(m.comps) == 0
}

// reset makes m empty; what it has grown to beyond what is usual is given up.
func (m *mail) reset() {
	clear(m.items)
	clear(m.flushes)
	m.items, m.control, m.flushes, m.comps = m.items[:0], m.control[:0], m.flushes[:0], m.comps[:0]
	m.bytes = 0
	if cap(m.items) > 512 {
		m.items = nil
	}
	if cap(m.control) > 64<<10 {
		m.control = nil
	}
	if cap(m.comps) > 1024 {
		m.comps = nil
	}
}

// outbox is where the reader and the broker's shards leave things for the writer, and
// where the reader waits for answers. All fields but the channels are guarded by mu,
// which is held without calling out.
type outbox struct {
	wake  chan struct{} // to the writer: there is mail
	ready chan struct{} // to the reader: what it waits for may have come

	mu   sync.Mutex
	mail mail
	// confirmBytes counts the confirmations that are pending.
	confirmBytes int
	// dead: nothing will be sent any more. The reader waits for nothing.
	dead bool
	// closing is why the connection should end, as somebody other than the reader has
	// found out; nil while it needn't.
	closing *closeRequest

	readerWaits bool
	waiting     int   // slots that will be complete
	failure     error // of the first slot that failed since the reader cleared it
	tracked     int   // flushes that the writer has not finished
	free        []*flush

	got       bool // an answer to Get is there: gotFailed, gotFound, gotAnswer, gotLeft
	gotFailed error
	gotFound  bool
	gotToken  uint64
	gotLeft   uint64
	gotAnswer queue.Delivery

	canceled []*consumer // lost their queue, not yet forgotten by the reader
	blocked  bool
	// blockedBy is the reason for blocked; clients hear of it once opened is set.
	blockedBy string
	opened    bool
}

// closeRequest is a connection.close that is wanted.
type closeRequest struct {
	err  error
	text string // 320 with this text, if err is nil
}

func (o *outbox) init() {
	o.wake = make(chan struct{}, 1)
	o.ready = make(chan struct{}, 1)
}

func (o *outbox) wakeWriter() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// wakeReaderLocked wakes the reader if it waits in await.
func (o *outbox) wakeReaderLocked() {
	if !o.readerWaits {
		return
	}
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// await blocks the reader until ok, which is called with mu held, returns true. It
// returns false if the connection ends before.
func (o *outbox) await(ok func() bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !ok() {
		if o.dead || o.closing != nil {
			return false
		}
		o.readerWaits = true
		o.mu.Unlock()
		<-o.ready
		o.mu.Lock()
		o.readerWaits = false
	}
	return true
}

// control appends frames to the outbox.
func (o *outbox) control(frames []byte) {
	o.mu.Lock()
	o.controlLocked(itemControl, frames)
	o.mu.Unlock()
	o.wakeWriter()
}

// final appends the last frames that are sent.
func (o *outbox) final(frames []byte) {
	o.mu.Lock()
	o.controlLocked(itemFinal, frames)
	o.mu.Unlock()
	o.wakeWriter()
}

func (o *outbox) controlLocked(kind itemKind, frames []byte) {
	if o.dead {
		return
	}
	o.mail.control = append(o.mail.control, frames...)
	o.mail.bytes += len(frames)
	if k := len(o.mail.items); k > 0 && kind == itemControl && o.mail.items[k-1].kind == itemControl {
		o.mail.items[k-1].n += len(frames)
		return
	}
	o.mail.items = append(o.mail.items, item{kind: kind, n: len(frames)})
}

// put appends an item that has no bytes of its own.
func (o *outbox) put(it item) {
	o.mu.Lock()
	if !o.dead {
		o.mail.items = append(o.mail.items, it)
		if it.kind != itemDeliver {
			o.mail.bytes += itemBytes
		}
		if it.kind == itemReturn {
			o.mail.bytes += it.n
		}
	}
	o.mu.Unlock()
	o.wakeWriter()
}

// newFlush returns an empty flush record for the reader to fill.
func (o *outbox) newFlush() *flush {
	o.mu.Lock()
	defer o.mu.Unlock()
	if k := len(o.free); k > 0 {
		f := o.free[k-1]
		o.free = o.free[:k-1]
		return f
	}
	return &flush{}
}

// track hands a flush to the writer, before it is submitted.
func (o *outbox) track(f *flush, wake bool) {
	o.mu.Lock()
	o.mail.flushes = append(o.mail.flushes, f)
	o.confirmBytes += len(f.runs) * confirmRunBytes
	o.tracked++
	o.mu.Unlock()
	if wake {
		o.wakeWriter()
	}
}

// expect notes that n completions will come, or have come already.
func (o *outbox) expect(n int) {
	o.mu.Lock()
	o.waiting += n
	o.mu.Unlock()
}

// complete notes one completion.
func (o *outbox) complete(c completion, err error) {
	o.mu.Lock()
	o.waiting--
	if err != nil && o.failure == nil {
		o.failure = err
	}
	o.wakeReaderLocked()
	wake := !o.dead && o.tracked > 0 && c.token&settleToken == 0
	if wake {
		o.mail.comps = append(o.mail.comps, c)
		o.mail.bytes += completionBytes
	}
	o.mu.Unlock()
	if wake {
		o.wakeWriter()
	}
}

// take moves all mail to m, which is empty, and says whether there was some.
func (o *outbox) take(m *mail) (some, dead bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dead || o.mail.empty() {
		return false, o.dead
	}
	*m, o.mail = o.mail, *m
	o.wakeReaderLocked()
	return true, false
}

// finished takes back flushes of which all is confirmed.
func (o *outbox) finished(list []*flush) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range list {
		o.tracked--
		o.confirmBytes -= len(f.runs) * confirmRunBytes
		clear(f.runs)
		*f = flush{runs: f.runs[:0]}
		if len(o.free) < 4 && cap(f.runs) <= 512 {
			o.free = append(o.free, f)
		}
	}
	o.wakeReaderLocked()
}

// shrink gives up the memory that is kept for the next mail.
func (o *outbox) shrink() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.free = nil
	if o.mail.empty() {
		o.mail = mail{}
	}
}

// kill makes the outbox drop everything from now on and wakes both goroutines.
func (o *outbox) kill() {
	o.mu.Lock()
	o.dead = true
	o.mail = mail{}
	o.wakeReaderLocked()
	o.mu.Unlock()
	o.wakeWriter()
}

// requestClose asks the reader to close the connection; the first request counts. It
// returns false if there was one before.
func (o *outbox) requestClose(r *closeRequest) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closing != nil {
		return false
	}
	o.closing = r
	o.wakeReaderLocked()
	return true
}

// fullLocked says whether so much waits that the reader should wait too.
func (o *outbox) fullLocked() bool { return o.mail.bytes+o.confirmBytes > outboxMax }

// settle waits until nothing that was submitted is outstanding. failure is the first
// one since the last call.
func (o *outbox) settle() (alive bool, failure error) {
	alive = o.await(func() bool { return o.waiting == 0 })
	o.mu.Lock()
	failure, o.failure = o.failure, nil
	o.mu.Unlock()
	return alive, failure
}
