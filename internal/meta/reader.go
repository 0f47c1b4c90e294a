package meta

import (
	"encoding/binary"
	"math"

	"github.com/sluicemq/sluice/internal/route"
)

// reader takes fields off the front of b. After the first failure everything
// reads as zero and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() {
	r.bad = true
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

// flags reads a byte of which only the lowest n bits may be set.
func (r *reader) flags(n int) byte {
	f := r.byte()
	if f>>n != 0 {
		r.fail()
		return 0
	}
	return f
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// view returns the next counted bytes, aliasing the input.
func (r *reader) view() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string { return string(r.view()) }

// bytes returns a copy, nil if empty.
func (r *reader) bytes() []byte { return append([]byte(nil), r.view()...) }

// count reads the length of a list. Each element takes at least one byte, so what
// it makes the caller allocate is within a constant factor of the input.
func (r *reader) count() int {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) strings() []string {
	n := r.count()
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = r.string()
	}
	return list
}

func (r *reader) exchange(vhost, name string) route.Exchange {
	f := r.flags(3)
	return route.Exchange{
		VHost: vhost, Name: name,
		Durable: f&1 != 0, AutoDelete: f&2 != 0, Internal: f&4 != 0,
		Type: r.string(), Alternate: r.string(),
		HashOn: route.HashOn{Header: r.string(), Property: r.string()}, Args: r.bytes(),
	}
}

func (r *reader) queue(vhost, name string) route.Queue {
	f := r.flags(3)
	id, shard := r.uvarint(), r.uvarint()
	if shard > math.MaxUint16 {
		r.fail()
	}
	return route.Queue{
		VHost: vhost, Name: name, ID: id, Shard: uint16(shard),
		Durable: f&1 != 0, Exclusive: f&2 != 0, AutoDelete: f&4 != 0,
		Type: r.string(), Owner: r.string(), Args: r.bytes(),
	}
}

func (r *reader) bindingKey() route.Binding {
	b := route.Binding{VHost: r.string(), Source: r.string(), Kind: route.DestinationKind(r.flags(1))}
	b.Destination, b.Key, b.Args = r.string(), r.string(), r.string()
	return b
}

func (r *reader) headers() []route.HeaderArg {
	n := r.count()
	if n == 0 {
		return nil
	}
	list := make([]route.HeaderArg, n)
	for i := range list {
		a := &list[i]
		a.Key = r.string()
		a.Value.Kind = route.ValueKind(r.byte())
		switch a.Value.Kind {
		case route.Bool, route.Int:
			a.Value.Int = r.varint()
		case route.Float:
			if len(r.b) < 8 {
				r.fail()
				return nil
			}
			a.Value.Float = math.Float64frombits(binary.BigEndian.Uint64(r.b))
			r.b = r.b[8:]
		case route.String, route.Opaque:
			a.Value.Bytes = r.bytes()
		case route.Void:
		default:
			r.fail()
			return nil
		}
	}
	return list
}

func (r *reader) user(name string) User {
	return User{Name: name, PasswordHash: r.string(), Hashing: r.string(), Tags: r.strings()}
}
