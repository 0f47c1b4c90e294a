package queue

import (
	"encoding/binary"
	"fmt"

	"github.com/sluicemq/sluice/internal/msg"
)

// Profile is the configuration of a log as far as the ledger and its leader need it.
// Encoded it is a list of fields, each uvarint tag, uvarint length, bytes; absent fields are
// zero, unknown ones are kept in the log's encoded profile and mean nothing.
type Profile struct {
	CountDeliveries bool // returns are written and counted
}

const profCountDeliveries = 1 // no bytes; presence is true

// AppendProfile appends the encoding of p.
func AppendProfile(dst []byte, p Profile) []byte {
	if p.CountDeliveries {
		dst = append(dst, profCountDeliveries, 0)
	}
	return dst
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
		b = b[n+int(size):]
		if tag == profCountDeliveries {
			p.CountDeliveries = true
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
