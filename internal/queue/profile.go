package queue

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/sluicemq/sluice/internal/msg"
)

// Profile is the configuration of a log as far as the ledger and its leader need it.
// Encoded it is a list of fields, each uvarint tag, uvarint length, bytes; absent fields are
// zero, unknown ones are kept in the log's encoded profile and mean nothing.
type Profile struct {
	CountDeliveries bool // returns are written and counted
	// Unreserved: deliveries don't wait for a reservation, and nobody is told whether a
	// message was delivered before. For logs that the broker itself consumes.
	Unreserved bool
	// DedupWindowMS is how long a deduplication id is remembered; 0: not at all.
	DedupWindowMS int64
	// DedupMax bounds how many are; the oldest go first. 0 is DedupDefaultMax.
	DedupMax uint32
}

const (
	profCountDeliveries = 1 // no bytes; presence is true
	profUnreserved      = 2 // no bytes
	profDedupWindow     = 3 // uvarint
	profDedupMax        = 4 // uvarint
)

var outboxProfile = AppendProfile(nil, Profile{Unreserved: true})

func (p *Profile) dedupMax() uint64 {
	if p.DedupMax == 0 {
		return DedupDefaultMax
	}
	return uint64(p.DedupMax)
}

// AppendProfile appends the encoding of p.
func AppendProfile(dst []byte, p Profile) []byte {
	if p.CountDeliveries {
		dst = append(dst, profCountDeliveries, 0)
	}
	if p.Unreserved {
		dst = append(dst, profUnreserved, 0)
	}
	if p.DedupWindowMS > 0 {
		dst = appendNumber(dst, profDedupWindow, uint64(p.DedupWindowMS))
	}
	if p.DedupMax > 0 {
		dst = appendNumber(dst, profDedupMax, uint64(p.DedupMax))
	}
	return dst
}

func appendNumber(dst []byte, tag byte, v uint64) []byte {
	var b [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(b[:], v)
	return append(append(dst, tag, byte(n)), b[:n]...)
}

// ParseProfile decodes a profile. Unknown fields are skipped.
func ParseProfile(b []byte) (p Profile, err error) {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return Profile{}, corrupt("profile tag")
		}
		b = b[n:]
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return Profile{}, corrupt("profile field")
		}
		field := b[n : n+int(size)]
		b = b[n+int(size):]
		switch tag {
		case profCountDeliveries:
			p.CountDeliveries = true
		case profUnreserved:
			p.Unreserved = true
		case profDedupWindow, profDedupMax:
			v, n := binary.Uvarint(field)
			if n <= 0 || n != len(field) || tag == profDedupMax && v > math.MaxUint32 || v > math.MaxInt64 {
				return Profile{}, corrupt("profile number")
			}
			if tag == profDedupMax {
				p.DedupMax = uint32(v)
			} else {
				p.DedupWindowMS = int64(v)
			}
		}
	}
	return p, nil
}

func corrupt(what string) error {
	return fmt.Errorf("%w: %s", msg.ErrCorrupt, what)
}

// profileRef is a profile shared by all logs that have it.
type profileRef struct {
	raw  string
	refs int
	Profile
}

// profile returns the shared entry for raw with one reference more. A profile that can't
// be decoded means the zero one, on each replica alike.
func (l *Ledger) profile(raw []byte) *profileRef {
	p := l.profiles[string(raw)]
	if p == nil {
		p = &profileRef{raw: string(raw)}
		if q, err := ParseProfile(raw); err == nil {
			p.Profile = q
		}
		l.profiles[p.raw] = p
	}
	p.refs++
	return p
}

func (l *Ledger) unrefProfile(p *profileRef) {
	if p.refs--; p.refs == 0 {
		delete(l.profiles, p.raw)
	}
}
