package amqpwire

import (
	"bytes"
	"encoding/binary"
	"math"
	"strconv"
)

// FieldType is the octet that tells the type of a field value. The set and its
// signedness are RabbitMQ's, which differ from the specification ('s' is a
// 16-bit integer, 'L' is signed).
type FieldType uint8

// The field types.
const (
	FieldBool      FieldType = 't' // 1 octet, 0 is false
	FieldInt8      FieldType = 'b'
	FieldUint8     FieldType = 'B'
	FieldInt16     FieldType = 's'
	FieldUint16    FieldType = 'u'
	FieldInt32     FieldType = 'I'
	FieldUint32    FieldType = 'i'
	FieldInt64     FieldType = 'l'
	FieldInt64Alt  FieldType = 'L' // the same as 'l'
	FieldFloat32   FieldType = 'f'
	FieldFloat64   FieldType = 'd'
	FieldDecimal   FieldType = 'D' // scale(1) value(4)
	FieldString    FieldType = 'S' // size(4) bytes
	FieldBytes     FieldType = 'x' // size(4) bytes
	FieldArray     FieldType = 'A' // size(4) (type value)*
	FieldTimestamp FieldType = 'T' // seconds since 1970, unsigned
	FieldTable     FieldType = 'F' // size(4) fields
	FieldVoid      FieldType = 'V'
)

// String returns RabbitMQ's name of the type, as it appears in error texts.
func (t FieldType) String() string {
	switch t {
	case FieldBool:
		return "bool"
	case FieldInt8:
		return "byte"
	case FieldUint8:
		return "unsignedbyte"
	case FieldInt16:
		return "short"
	case FieldUint16:
		return "unsignedshort"
	case FieldInt32:
		return "signedint"
	case FieldUint32:
		return "unsignedint"
	case FieldInt64, FieldInt64Alt:
		return "long"
	case FieldFloat32:
		return "float"
	case FieldFloat64:
		return "double"
	case FieldDecimal:
		return "decimal"
	case FieldString:
		return "longstr"
	case FieldBytes:
		return "binary"
	case FieldArray:
		return "array"
	case FieldTimestamp:
		return "timestamp"
	case FieldTable:
		return "table"
	case FieldVoid:
		return "void"
	}
	return "unknown type " + strconv.Itoa(int(t))
}

// fixedSize returns the size of a value of type t, in bytes: fixed is false
// for types with a four-byte size in front, ok is false for unknown types.
func (t FieldType) fixedSize() (size int, fixed, ok bool) {
	switch t {
	case FieldVoid:
		return 0, true, true
	case FieldBool, FieldInt8, FieldUint8:
		return 1, true, true
	case FieldInt16, FieldUint16:
		return 2, true, true
	case FieldInt32, FieldUint32, FieldFloat32:
		return 4, true, true
	case FieldDecimal:
		return 5, true, true
	case FieldInt64, FieldInt64Alt, FieldFloat64, FieldTimestamp:
		return 8, true, true
	case FieldString, FieldBytes, FieldArray, FieldTable:
		return 4, false, true
	}
	return 0, false, false
}

// Value is one field value with its exact wire type. The zero Value is no
// value and stands for an absent field. A Value read from raw bytes is a view
// of them where it has a string, an array or a table.
type Value struct {
	typ   FieldType
	scale uint8
	// num holds numbers: integers sign-extended, floats as the bits of their width.
	num uint64
	// raw holds strings, and the encoded content of arrays and tables.
	raw []byte
}

// Bool returns a value of type 't'.
func Bool(v bool) Value {
	if v {
		return Value{typ: FieldBool, num: 1}
	}
	return Value{typ: FieldBool}
}

// Int8 returns a value of type 'b'.
func Int8(v int8) Value { return Value{typ: FieldInt8, num: uint64(int64(v))} }

// Uint8 returns a value of type 'B'.
func Uint8(v uint8) Value { return Value{typ: FieldUint8, num: uint64(v)} }

// Int16 returns a value of type 's'.
func Int16(v int16) Value { return Value{typ: FieldInt16, num: uint64(int64(v))} }

// Uint16 returns a value of type 'u'.
func Uint16(v uint16) Value { return Value{typ: FieldUint16, num: uint64(v)} }

// Int32 returns a value of type 'I'.
func Int32(v int32) Value { return Value{typ: FieldInt32, num: uint64(int64(v))} }

// Uint32 returns a value of type 'i'.
func Uint32(v uint32) Value { return Value{typ: FieldUint32, num: uint64(v)} }

// Int64 returns a value of type 'l'.
func Int64(v int64) Value { return Value{typ: FieldInt64, num: uint64(v)} }

// Float32 returns a value of type 'f'.
func Float32(v float32) Value {
	return Value{typ: FieldFloat32, num: uint64(math.Float32bits(v))}
}

// Float64 returns a value of type 'd'.
func Float64(v float64) Value { return Value{typ: FieldFloat64, num: math.Float64bits(v)} }

// Decimal returns a value of type 'D': value divided by ten to the scale.
func Decimal(scale uint8, value uint32) Value {
	return Value{typ: FieldDecimal, scale: scale, num: uint64(value)}
}

// String returns a value of type 'S'.
func String(s string) Value { return Value{typ: FieldString, raw: []byte(s)} }

// Bytes returns a value of type 'x' that is a view of b.
func Bytes(b []byte) Value { return Value{typ: FieldBytes, raw: b} }

// Timestamp returns a value of type 'T', in seconds since 1970.
func Timestamp(seconds uint64) Value { return Value{typ: FieldTimestamp, num: seconds} }

// Void returns a value of type 'V'.
func Void() Value { return Value{typ: FieldVoid} }

// TableValue returns a value of type 'F'. It fails as [Table.Append] does.
func TableValue(t Table) (Value, error) {
	raw, err := t.Append(nil)
	if err != nil {
		return Value{}, err
	}
	return Value{typ: FieldTable, raw: raw}, nil
}

// ArrayValue returns a value of type 'A'. It fails if an element is no value
// or the nesting is too deep.
func ArrayValue(elements ...Value) (Value, error) {
	var raw []byte
	for _, e := range elements {
		if e.typ == 0 {
			return Value{}, syntaxError("array element without a type")
		}
		raw = e.append(raw)
	}
	if err := validateArray(raw, 1); err != nil {
		return Value{}, err
	}
	return Value{typ: FieldArray, raw: raw}, nil
}

// Type returns the wire type, 0 for the zero Value.
func (v Value) Type() FieldType { return v.typ }

// IsZero reports whether v is no value.
func (v Value) IsZero() bool { return v.typ == 0 }

// Int64 returns an integer of any width. A timestamp is one too, if it fits.
func (v Value) Int64() (int64, bool) {
	switch v.typ {
	case FieldInt8, FieldUint8, FieldInt16, FieldUint16, FieldInt32, FieldUint32, FieldInt64, FieldInt64Alt:
		return int64(v.num), true
	case FieldTimestamp:
		return int64(v.num), v.num <= math.MaxInt64
	}
	return 0, false
}

// Float64 returns a float of either width.
func (v Value) Float64() (float64, bool) {
	switch v.typ {
	case FieldFloat32:
		return float64(math.Float32frombits(uint32(v.num))), true
	case FieldFloat64:
		return math.Float64frombits(v.num), true
	}
	return 0, false
}

// Bool returns a boolean.
func (v Value) Bool() (value, ok bool) { return v.num != 0, v.typ == FieldBool }

// Timestamp returns a timestamp in seconds since 1970.
func (v Value) Timestamp() (seconds uint64, ok bool) { return v.num, v.typ == FieldTimestamp }

// Decimal returns a decimal.
func (v Value) Decimal() (scale uint8, value uint32, ok bool) {
	return v.scale, uint32(v.num), v.typ == FieldDecimal
}

// Bytes returns a string of type 'S' or 'x', as a view.
func (v Value) Bytes() ([]byte, bool) {
	return v.raw, v.typ == FieldString || v.typ == FieldBytes
}

// Table returns the raw content of a table, as a view.
func (v Value) Table() (RawTable, bool) { return v.raw, v.typ == FieldTable }

// Array returns the raw content of an array for [RangeArray], as a view.
func (v Value) Array() ([]byte, bool) { return v.raw, v.typ == FieldArray }

// Clone returns a copy of v that shares no memory with it.
func (v Value) Clone() Value {
	v.raw = bytes.Clone(v.raw)
	return v
}

// append appends type and value; v must not be zero.
func (v Value) append(dst []byte) []byte {
	dst = append(dst, byte(v.typ))
	size, fixed, _ := v.typ.fixedSize()
	if !fixed {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(v.raw)))
		return append(dst, v.raw...)
	}
	switch size {
	case 1:
		dst = append(dst, byte(v.num))
	case 2:
		dst = binary.BigEndian.AppendUint16(dst, uint16(v.num))
	case 4:
		dst = binary.BigEndian.AppendUint32(dst, uint32(v.num))
	case 5:
		dst = append(dst, v.scale)
		dst = binary.BigEndian.AppendUint32(dst, uint32(v.num))
	case 8:
		dst = binary.BigEndian.AppendUint64(dst, v.num)
	}
	return dst
}

// readValue reads type and value at the start of b and returns the rest.
// Strings, arrays and tables are views; what is nested in them is not checked.
func readValue(b []byte) (v Value, rest []byte, err *Error) {
	if len(b) == 0 {
		return Value{}, nil, errTruncated()
	}
	v.typ = FieldType(b[0])
	b = b[1:]
	size, fixed, ok := v.typ.fixedSize()
	if !ok {
		return Value{}, nil, syntaxError("unknown field type " + strconv.Itoa(int(v.typ)))
	}
	if len(b) < size {
		return Value{}, nil, errTruncated()
	}
	if !fixed {
		n := uint64(binary.BigEndian.Uint32(b))
		b = b[size:]
		if n > uint64(len(b)) {
			return Value{}, nil, errTruncated()
		}
		v.raw = b[:n:n]
		return v, b[n:], nil
	}
	v.num, v.scale = readNumber(v.typ, b)
	return v, b[size:], nil
}

// readNumber reads a value of fixed size from b, which is long enough.
func readNumber(t FieldType, b []byte) (num uint64, scale uint8) {
	switch t {
	case FieldBool:
		if b[0] != 0 {
			num = 1
		}
	case FieldInt8:
		num = uint64(int64(int8(b[0])))
	case FieldUint8:
		num = uint64(b[0])
	case FieldInt16:
		num = uint64(int64(int16(binary.BigEndian.Uint16(b))))
	case FieldUint16:
		num = uint64(binary.BigEndian.Uint16(b))
	case FieldInt32:
		num = uint64(int64(int32(binary.BigEndian.Uint32(b))))
	case FieldUint32, FieldFloat32:
		num = uint64(binary.BigEndian.Uint32(b))
	case FieldDecimal:
		return uint64(binary.BigEndian.Uint32(b[1:])), b[0]
	case FieldInt64, FieldInt64Alt, FieldFloat64, FieldTimestamp:
		num = binary.BigEndian.Uint64(b)
	}
	return num, 0
}
