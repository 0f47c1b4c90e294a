package engine

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
)

// Cluster is what a Machine needs of the other nodes. Its methods are called on the shard's
// loop and must not block.
type Cluster interface {
	// Live lists the nodes that are alive, this one left out, in a fixed order: at the start
	// of a term their gateways are waited for, and what is in flight to the consumers of
	// one that is missing is ready again.
	Live() []uint64
	// Send hands over a message for the same shard of another node. It may be lost, come
	// twice or late. A goroutine other than the loop calls Message.Load before it puts
	// the message on the wire.
	Send(shard uint32, to uint64, m *Message)
}

// Kind is the kind of a Message.
type Kind uint8

// Messages of a leader to a gateway.
const (
	MsgLead     Kind = iota + 1 // I lead in Term and have heard of your Run; Seq: the last I sent
	MsgAttached                 // answers MsgAttach, or tells of a consumer that can't go on: Code, Claims
	MsgDeliver
	MsgGot    // the answer to MsgGet: a delivery of Count 0 or 1
	MsgWant   // a consumer waits for Messages and Bytes of its pools
	MsgRefund // gives Messages and Bytes back that were granted
)

// Messages of a gateway to a leader.
const (
	MsgReattach  Kind = iota + 16 // begins Run: all consumers, and what is settled or returned and on its way
	MsgAttach                     // a new consumer
	MsgDetach                     // it gets no more, what it holds stays
	MsgRelease                    // it is gone; Claims as for MsgReturning
	MsgGrant                      // answers MsgWant
	MsgReturn                     // Claims are ready again
	MsgReturning                  // Claims are ready again when a submission is applied
	MsgAcked                      // Claims are settled soon: their credit is free
	MsgGet
	MsgPing // Seq: the last I sent
)

// Code says why a consumer was not attached.
type Code uint8

// Codes of MsgAttached.
const (
	AttachOK Code = iota
	AttachUnknownLog
	AttachExclusive
	AttachInUse
)

func codeOf(err error) Code {
	switch {
	case err == nil:
		return AttachOK
	case errors.Is(err, queue.ErrExclusive):
		return AttachExclusive
	case errors.Is(err, queue.ErrInUse):
		return AttachInUse
	}
	return AttachUnknownLog
}

func (c Code) err() error {
	switch c {
	case AttachOK:
		return nil
	case AttachExclusive:
		return queue.ErrExclusive
	case AttachInUse:
		return queue.ErrInUse
	}
	return queue.ErrUnknownLog
}

// Claim is ranges of a lane, sorted and disjoint.
type Claim struct {
	Log    msg.LogID
	Lane   uint8
	Seq    uint64 // in the sender's link, of the submission that is on its way
	Ranges []msg.Range
}

// Spec describes a consumer to a leader.
type Spec struct {
	ID       uint64 // among those of its gateway
	Log      msg.LogID
	Prefetch uint32
	NoAck    bool
	// Exclusive as queue.Consumer's; Attached: it receives. One that is not attached only
	// holds messages.
	Exclusive, Attached bool
	// Messages and Bytes say which pools it has: credit for them is asked for.
	Messages, Bytes bool
	Claims          []Claim
}

// Message is what the gateway of a node and the leader of a shard tell each other about
// consumers. Which fields mean something depends on Kind.
//
// A gateway numbers its sides of the conversation: a Run begins with MsgReattach, in
// it both sides count their messages by Seq from 1. Who misses one drops what follows; a
// new run then sets everything right. What is of another Term or Run is dropped.
type Message struct {
	Kind Kind
	From uint64 // link of the sender's node, see shard.LinkID
	Term uint64
	Run  uint64
	Seq  uint64

	Consumers []Spec  // MsgReattach; one: MsgAttach, MsgGet
	Leaving   []Claim // MsgReattach: what submissions that are on their way settle
	Returning []Claim // and what they return and count
	Consumer  uint64
	Claims    []Claim
	Messages  int64
	Bytes     int64
	Token     uint64
	Left      uint64
	Code      Code

	// The delivery of MsgDeliver and MsgGot.
	Lane        uint8
	Redelivered bool
	Attempts    uint32
	First       msg.Offset
	Count       uint32
	// Records are the messages that exist: each its distance from First and its record.
	Records []byte

	from queue.Delivery // where Load finds the records
}

// Load puts the records of a delivery into m: before it goes out, not on the loop, for it
// may wait for the disk. Other messages are left alone.
func (m *Message) Load(r *Reader) error {
	if m.from.Count == 0 {
		return nil
	}
	d := m.from
	m.from = queue.Delivery{}
	return r.Each(&d, func(off msg.Offset, rec *msg.Record) error {
		m.Records = binary.AppendUvarint(m.Records, off-d.First)
		m.Records = append(m.Records, rec.Raw...)
		return nil
	})
}

// eachRecord is Reader.Each over Records.
func eachRecord(b []byte, rec *msg.Record, d *queue.Delivery, fn func(off msg.Offset, rec *msg.Record) error) error {
	for len(b) > 0 {
		skip, n := binary.Uvarint(b)
		if n <= 0 || skip >= uint64(d.Count) {
			return msg.ErrCorrupt
		}
		var err error
		b = b[n:]
		if *rec, n, err = msg.ParseRecord(b); err != nil {
			return err
		}
		b = b[n:]
		if err := fn(d.First+skip, rec); err != nil {
			return err
		}
	}
	return nil
}

// onItsWay tells what a submission settles, or gives to a transaction that will, and what
// it returns and counts.
func onItsWay(seq uint64, sub msg.Submission) (leaving, returning []Claim) {
	var op msg.Op
	for it := sub.Iter(); it.Next(&op); {
		c := Claim{op.Log, op.Lane, seq, op.Ranges}
		switch op.Kind {
		case msg.OpSettle, msg.OpHold:
			c.Ranges = slices.Clone(c.Ranges)
			leaving = append(leaving, c)
		case msg.OpReturn:
			c.Ranges = slices.Clone(c.Ranges)
			returning = append(returning, c)
		}
	}
	return leaving, returning
}

func rangesCount(rs []msg.Range) (n uint64) {
	for _, r := range rs {
		n += r.Count
	}
	return n
}
