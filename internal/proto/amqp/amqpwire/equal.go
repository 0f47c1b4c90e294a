package amqpwire

import (
	"bytes"
	"math"
	"strconv"
)

// SameValue reports whether two values are equal when their types are left out
// of account: numbers by what they mean, strings of both types by their bytes.
// It is how a headers exchange compares. Tables and arrays are equal if their
// encodings are.
func SameValue(a, b Value) bool {
	fa, aFloat := a.Float64()
	fb, bFloat := b.Float64()
	switch {
	case aFloat && bFloat:
		return fa == fb || math.IsNaN(fa) && math.IsNaN(fb)
	case aFloat:
		return b.equalsFloat(fa)
	case bFloat:
		return a.equalsFloat(fb)
	case a.isInteger() && b.isInteger():
		// A timestamp of 2^63 and more has the bits of a negative integer.
		return a.num == b.num && a.isBig() == b.isBig()
	case a.typ == FieldDecimal && b.typ == FieldDecimal:
		return a.scale == b.scale && a.num == b.num
	}
	if _, ok := a.Bytes(); ok {
		_, ok = b.Bytes()
		return ok && bytes.Equal(a.raw, b.raw)
	}
	return a.typ == b.typ && a.num == b.num && bytes.Equal(a.raw, b.raw)
}

// Equivalent is RabbitMQ's rule for arguments of a repeated declaration:
// integers of all widths are one class, floats of both widths another, and
// values of different classes differ. A zero Value stands for an absent
// argument and equals only itself.
func Equivalent(a, b Value) bool {
	_, aFloat := a.Float64()
	_, bFloat := b.Float64()
	return aFloat == bFloat && SameValue(a, b)
}

// QueueTypeArg is the argument that names the type of a queue.
const QueueTypeArg = "x-queue-type"

// EquivalentArg is [Equivalent] for the argument called key: an absent
// x-queue-type is equivalent to "classic".
func EquivalentArg(key string, a, b Value) bool {
	if key == QueueTypeArg {
		a, b = classicIfAbsent(a), classicIfAbsent(b)
	}
	return Equivalent(a, b)
}

var classicType = String("classic")

func classicIfAbsent(v Value) Value {
	if v.IsZero() {
		return classicType
	}
	return v
}

// FirstMismatch compares the named arguments of two raw tables and returns the
// first that is not equivalent, with its two values. Arguments that are not
// named are not compared.
func FirstMismatch(current, received RawTable, keys []string) (key string, cur, recv Value, found bool) {
	for _, key := range keys {
		cur, _ := LookupTable(current, key)
		recv, _ := LookupTable(received, key)
		if !EquivalentArg(key, cur, recv) {
			return key, cur, recv, true
		}
	}
	return "", Value{}, Value{}, false
}

// DescribeMismatch words "received X but current is Y" as RabbitMQ does: bare
// values if both are there, else "none" and a value with its type.
func DescribeMismatch(received, current Value) string {
	describe := func(v Value) string {
		switch {
		case v.IsZero():
			return "none"
		case received.IsZero() || current.IsZero():
			return "the value '" + v.String() + "' of type '" + v.typ.String() + "'"
		}
		return "'" + v.String() + "'"
	}
	return "received " + describe(received) + " but current is " + describe(current)
}

// String returns the value for people, without its type.
func (v Value) String() string {
	if f, ok := v.Float64(); ok {
		return strconv.FormatFloat(f, 'g', -1, 64)
	}
	switch v.typ {
	case 0:
		return "none"
	case FieldBool:
		return strconv.FormatBool(v.num != 0)
	case FieldString, FieldBytes:
		return string(v.raw)
	case FieldDecimal:
		return "{" + strconv.Itoa(int(v.scale)) + "," + strconv.FormatUint(v.num, 10) + "}"
	case FieldTimestamp:
		return strconv.FormatUint(v.num, 10)
	case FieldVoid:
		return "undefined"
	case FieldTable:
		return "table of " + strconv.Itoa(len(v.raw)) + " bytes"
	case FieldArray:
		return "array of " + strconv.Itoa(len(v.raw)) + " bytes"
	}
	return strconv.FormatInt(int64(v.num), 10)
}

func (v Value) isInteger() bool {
	_, ok := v.Int64()
	return ok || v.typ == FieldTimestamp
}

// isBig reports whether v is beyond int64.
func (v Value) isBig() bool { return v.typ == FieldTimestamp && v.num > math.MaxInt64 }

// equalsFloat reports whether v is an integer with exactly the value f.
func (v Value) equalsFloat(f float64) bool {
	if !v.isInteger() || f != math.Trunc(f) {
		return false
	}
	if v.isBig() {
		return f >= 1<<63 && f < 1<<64 && uint64(f) == v.num
	}
	return f >= -1<<63 && f < 1<<63 && int64(f) == int64(v.num)
}
