package route

import (
	"bytes"
	"fmt"
	"strings"
)

// ValueKind is the class of a header value. Wire types that compare equal share
// a class: all integers and timestamps are Int, strings and byte arrays String.
type ValueKind uint8

// The classes of values.
const (
	// Void is AMQP's "no value". In a binding it asks only for presence.
	Void ValueKind = iota
	Bool
	Int
	Float
	String
	// Opaque is anything else (table, array, decimal), equal if its encoded
	// bytes are, type octet included.
	Opaque
)

// Value is a header value, comparable without regard to its wire type.
type Value struct {
	// Bytes is the content of String and Opaque. It may alias the message.
	Bytes []byte
	// Int is the value of Int, and 0 or 1 for Bool.
	Int int64
	// Float is the value of Float.
	Float float64
	Kind  ValueKind
}

// HeaderLookup gives access to the headers of a message, so that this package
// needs to know no protocol. Get must not retain key.
type HeaderLookup interface {
	Get(key string) (Value, bool)
}

// HeaderArg is one argument of a binding to a headers exchange.
type HeaderArg struct {
	Key   string
	Value Value
}

// Equal compares as a headers exchange does: numbers by value whatever their
// type, everything else within its class.
func (v Value) Equal(w Value) bool {
	if v.Kind != w.Kind {
		switch {
		case v.Kind == Int && w.Kind == Float:
			return intEqualsFloat(v.Int, w.Float)
		case v.Kind == Float && w.Kind == Int:
			return intEqualsFloat(w.Int, v.Float)
		}
		return false
	}
	switch v.Kind {
	case Void:
		return true
	case Bool, Int:
		return v.Int == w.Int
	case Float:
		return v.Float == w.Float
	case String, Opaque:
		return bytes.Equal(v.Bytes, w.Bytes)
	}
	return false
}

// intEqualsFloat is exact: a float beyond 2^53 isn't taken for its neighbors.
func intEqualsFloat(i int64, f float64) bool {
	const limit = 1 << 63
	return f >= -limit && f < limit && float64(int64(f)) == f && int64(f) == i
}

// HeaderMatchError reports an x-match argument that means nothing. Its text is
// the explanation that RabbitMQ gives after PRECONDITION_FAILED.
type HeaderMatchError struct{ text string }

// Error returns the explanation.
func (e *HeaderMatchError) Error() string { return e.text }

// headerMatch is the compiled form of the arguments of a headers binding.
type headerMatch struct {
	args []HeaderArg // without x-match and what is skipped
	any  bool
}

// CheckHeaders says whether args can be bound to a headers exchange; the error
// is a *HeaderMatchError.
func CheckHeaders(args []HeaderArg) error {
	_, err := compileHeaders(args)
	return err
}

// compileHeaders reads x-match: all (default) and any skip arguments whose name
// begins with "x-", all-with-x and any-with-x don't. x-match itself never counts.
func compileHeaders(args []HeaderArg) (*headerMatch, error) {
	m := &headerMatch{}
	withX := false
	for i := range args {
		if args[i].Key != "x-match" {
			continue
		}
		v := args[i].Value
		if v.Kind != String {
			return nil, &HeaderMatchError{"Invalid x-match field type; expected longstr"}
		}
		switch string(v.Bytes) {
		case "all":
		case "any":
			m.any = true
		case "all-with-x":
			withX = true
		case "any-with-x":
			m.any, withX = true, true
		default:
			return nil, &HeaderMatchError{fmt.Sprintf(
				"Invalid x-match field value <<%q>>; expected all, any, all-with-x, or any-with-x", v.Bytes)}
		}
	}
	for _, a := range args {
		if a.Key == "x-match" || (!withX && strings.HasPrefix(a.Key, "x-")) {
			continue
		}
		m.args = append(m.args, a)
	}
	return m, nil
}

// matches says whether the headers satisfy m; h may be nil for no headers. With
// no arguments left, all matches everything and any nothing.
func (m *headerMatch) matches(h HeaderLookup) bool {
	for i := range m.args {
		a := &m.args[i]
		hit := false
		if h != nil {
			v, ok := h.Get(a.Key)
			hit = ok && (a.Value.Kind == Void || a.Value.Equal(v))
		}
		if hit == m.any {
			return m.any
		}
	}
	return !m.any
}
