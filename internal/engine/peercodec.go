package engine

import (
	"encoding/binary"
	"math"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/queue"
)

// Flags of an encoded Spec and Message.
const (
	specNoAck = 1 << iota
	specExclusive
	specAttached
	specMessages
	specBytes

	msgRedelivered = 1
)

// AppendMessage appends the encoding of m, whose records are loaded: kind, code, lane and
// flags, a byte each; then uvarints: From, Term, Run, Seq, Consumer, Messages, Bytes, Token,
// Left, Attempts, First, Count; then lists with their lengths before them. Ranges are
// written as gap and count.
func AppendMessage(b []byte, m *Message) []byte {
	flags := byte(0)
	if m.Redelivered {
		flags = msgRedelivered
	}
	b = append(b, byte(m.Kind), byte(m.Code), m.Lane, flags)
	for _, v := range [...]uint64{
		m.From, m.Term, m.Run, m.Seq, m.Consumer, uint64(m.Messages), uint64(m.Bytes), m.Token, m.Left,
		uint64(m.Attempts), m.First, uint64(m.Count),
	} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.AppendUvarint(b, uint64(len(m.Consumers)))
	for i := range m.Consumers {
		b = appendSpec(b, &m.Consumers[i])
	}
	b = appendClaims(b, m.Claims)
	b = appendClaims(b, m.Leaving)
	b = appendClaims(b, m.Returning)
	return append(b, m.Records...)
}

func appendSpec(b []byte, s *Spec) []byte {
	b = binary.AppendUvarint(b, s.ID)
	b = binary.AppendUvarint(b, s.Log)
	b = binary.AppendUvarint(b, uint64(s.Prefetch))
	flags := byte(0)
	for i, on := range [...]bool{s.NoAck, s.Exclusive, s.Attached, s.Messages, s.Bytes} {
		if on {
			flags |= 1 << i
		}
	}
	return appendClaims(append(b, flags), s.Claims)
}

func appendClaims(b []byte, claims []Claim) []byte {
	b = binary.AppendUvarint(b, uint64(len(claims)))
	for _, c := range claims {
		b = binary.AppendUvarint(b, c.Log)
		b = append(b, c.Lane)
		b = binary.AppendUvarint(b, c.Seq)
		b = binary.AppendUvarint(b, uint64(len(c.Ranges)))
		at := msg.Offset(0)
		for _, r := range c.Ranges {
			b = binary.AppendUvarint(b, r.First-at)
			b = binary.AppendUvarint(b, r.Count)
			at = r.First + r.Count
		}
	}
	return b
}

// ParseMessage reads what AppendMessage wrote. Records alias b. The error is
// msg.ErrCorrupt.
func ParseMessage(b []byte) (*Message, error) {
	p := peerParser{b: b}
	m := &Message{Kind: Kind(p.byte()), Code: Code(p.byte()), Lane: p.byte(), Redelivered: p.byte()&msgRedelivered != 0}
	for _, v := range [...]*uint64{&m.From, &m.Term, &m.Run, &m.Seq, &m.Consumer} {
		*v = p.uint(math.MaxUint64)
	}
	m.Messages, m.Bytes = int64(p.uint(math.MaxInt64)), int64(p.uint(math.MaxInt64))
	m.Token, m.Left = p.uint(math.MaxUint64), p.uint(math.MaxUint64)
	m.Attempts, m.First, m.Count = uint32(p.uint(math.MaxUint32)), p.uint(math.MaxUint64), uint32(p.uint(math.MaxUint32))
	for n := p.count(); n > 0 && !p.bad; n-- {
		m.Consumers = append(m.Consumers, p.spec())
	}
	m.Claims, m.Leaving, m.Returning = p.claims(), p.claims(), p.claims()
	if p.bad || m.First > queue.NoOffset-uint64(m.Count) {
		return nil, msg.ErrCorrupt
	}
	if len(p.b) > 0 {
		m.Records = p.b
	}
	return m, nil
}

type peerParser struct {
	b   []byte
	bad bool
}

func (p *peerParser) byte() byte {
	if len(p.b) == 0 {
		p.bad = true
		return 0
	}
	v := p.b[0]
	p.b = p.b[1:]
	return v
}

func (p *peerParser) uint(most uint64) uint64 {
	v, n := binary.Uvarint(p.b)
	if n <= 0 || v > most {
		p.bad = true
		return 0
	}
	p.b = p.b[n:]
	return v
}

// count reads the length of a list; each element takes a byte at least.
func (p *peerParser) count() uint64 { return p.uint(uint64(len(p.b))) }

func (p *peerParser) spec() (s Spec) {
	s.ID, s.Log, s.Prefetch = p.uint(math.MaxUint64), p.uint(math.MaxUint64), uint32(p.uint(math.MaxUint32))
	flags := p.byte()
	s.NoAck, s.Exclusive, s.Attached = flags&specNoAck != 0, flags&specExclusive != 0, flags&specAttached != 0
	s.Messages, s.Bytes = flags&specMessages != 0, flags&specBytes != 0
	s.Claims = p.claims()
	return s
}

func (p *peerParser) claims() (claims []Claim) {
	for n := p.count(); n > 0 && !p.bad; n-- {
		c := Claim{Log: p.uint(math.MaxUint64), Lane: p.byte(), Seq: p.uint(math.MaxUint64)}
		at := msg.Offset(0)
		for k := p.count(); k > 0 && !p.bad; k-- {
			first := at + p.uint(math.MaxUint64-at)
			r := msg.Range{First: first, Count: p.uint(math.MaxUint64 - first)}
			at = r.First + r.Count
			c.Ranges = append(c.Ranges, r)
		}
		claims = append(claims, c)
	}
	return claims
}
