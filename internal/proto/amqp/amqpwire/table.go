package amqpwire

import (
	"bytes"
	"encoding/binary"
	"math"
)

// MaxTableDepth is how deep tables and arrays may be nested, the outermost
// table counting as 1. RabbitMQ has no limit; ours keeps recursion bounded.
const MaxTableDepth = 128

// RawTable is the encoded content of a field table without its four-byte
// size. Read it with [RangeTable], [LookupTable] or [ParseTable].
type RawTable []byte

// Field is a named value.
type Field struct {
	Key   string
	Value Value
}

// Table is a field table in wire order. Keys may repeat; the first one counts.
type Table []Field

func errTruncated() *Error { return syntaxError("truncated field table") }

// ParseTable validates a raw table and returns it as an owned value. It
// allocates at most about 30 bytes per byte of input. Nested tables and arrays
// are valid but stay encoded: see [Value.Table].
func ParseTable(raw []byte) (Table, error) {
	if err := validateTable(raw, 1); err != nil {
		return nil, err
	}
	fields := 0
	_ = rangeTable(raw, func([]byte, Value) bool { fields++; return true }) // valid, as was just seen
	if fields == 0 {
		return nil, nil
	}
	// One copy serves all values, one all keys.
	values, keys := bytes.Clone(raw), string(raw)
	t := make(Table, 0, fields)
	for rest := values; len(rest) > 0; {
		at := len(values) - len(rest) + 1
		k, v, next, err := readField(rest)
		if err != nil {
			return nil, err
		}
		t = append(t, Field{Key: keys[at : at+len(k)], Value: v})
		rest = next
	}
	return t, nil
}

// ParseArray validates the raw content of an array and returns its elements,
// which are views of raw.
func ParseArray(raw []byte) ([]Value, error) {
	if err := validateArray(raw, 1); err != nil {
		return nil, err
	}
	var vs []Value
	err := RangeArray(raw, func(v Value) bool { vs = append(vs, v); return true })
	return vs, err
}

// ValidateTable checks a raw table with everything nested in it. It allocates
// nothing unless it fails.
func ValidateTable(raw []byte) error {
	if err := validateTable(raw, 1); err != nil {
		return err
	}
	return nil
}

// RangeTable calls fn for each field of a raw table, in order, until fn
// returns false. Key and value are views of raw. It fails where the bytes are
// malformed, having called fn for the fields before; it does not look into
// nested tables and arrays. It allocates nothing.
func RangeTable(raw []byte, fn func(key []byte, v Value) bool) error {
	if err := rangeTable(raw, fn); err != nil {
		return err
	}
	return nil
}

// RangeArray is [RangeTable] for the raw content of an array.
func RangeArray(raw []byte, fn func(v Value) bool) error {
	for len(raw) > 0 {
		v, rest, err := readValue(raw)
		if err != nil {
			return err
		}
		if !fn(v) {
			return nil
		}
		raw = rest
	}
	return nil
}

// LookupTable returns the first value of key in a raw table, as a view. In
// malformed bytes it finds only what stands before the fault.
func LookupTable(raw []byte, key string) (Value, bool) {
	for len(raw) > 0 {
		k, v, rest, err := readField(raw)
		if err != nil {
			return Value{}, false
		}
		if string(k) == key {
			return v, true
		}
		raw = rest
	}
	return Value{}, false
}

// Lookup returns the first value of key.
func (t Table) Lookup(key string) (Value, bool) {
	for i := range t {
		if t[i].Key == key {
			return t[i].Value, true
		}
	}
	return Value{}, false
}

// Append appends the content of t without its size. It fails if a key is
// longer than 255 bytes, a value is the zero Value, or the nesting is too
// deep; then dst is returned as it was.
func (t Table) Append(dst []byte) ([]byte, error) {
	start := len(dst)
	for i := range t {
		if err := t[i].check(); err != nil {
			return dst[:start], err
		}
		dst = t[i].append(dst)
	}
	if len(dst)-start > math.MaxUint32 {
		return dst[:start], syntaxError("field table of more than 4 GiB")
	}
	if err := validateTable(dst[start:], 1); err != nil {
		return dst[:start], err
	}
	return dst, nil
}

// Raw returns the encoded content of t. It fails as [Table.Append] does.
func (t Table) Raw() (RawTable, error) { return t.Append(nil) }

// check reports why f cannot be encoded.
func (f *Field) check() *Error {
	if len(f.Key) > MaxShortString {
		return syntaxError("field name of more than 255 bytes")
	}
	if f.Value.typ == 0 {
		return syntaxError("field '" + f.Key + "' without a value")
	}
	return nil
}

func (f *Field) append(dst []byte) []byte {
	dst = append(dst, byte(len(f.Key)))
	dst = append(dst, f.Key...)
	return f.Value.append(dst)
}

// readField reads the first field of b and returns the rest.
func readField(b []byte) (key []byte, v Value, rest []byte, err *Error) {
	n := int(b[0])
	if len(b) < 1+n {
		return nil, Value{}, nil, errTruncated()
	}
	key = b[1 : 1+n]
	v, rest, err = readValue(b[1+n:])
	return key, v, rest, err
}

func rangeTable(raw []byte, fn func(key []byte, v Value) bool) *Error {
	for len(raw) > 0 {
		k, v, rest, err := readField(raw)
		if err != nil {
			return err
		}
		if !fn(k, v) {
			return nil
		}
		raw = rest
	}
	return nil
}

// validateTable checks a table that stands at the given depth.
func validateTable(raw []byte, depth int) *Error {
	for len(raw) > 0 {
		_, v, rest, err := readField(raw)
		if err != nil {
			return err
		}
		if err := validateNested(v, depth); err != nil {
			return err
		}
		raw = rest
	}
	return nil
}

// validateArray checks an array that stands at the given depth.
func validateArray(raw []byte, depth int) *Error {
	for len(raw) > 0 {
		v, rest, err := readValue(raw)
		if err != nil {
			return err
		}
		if err := validateNested(v, depth); err != nil {
			return err
		}
		raw = rest
	}
	return nil
}

// validateNested checks the content of v, which stands in a table or array at
// the given depth.
func validateNested(v Value, depth int) *Error {
	if v.typ != FieldTable && v.typ != FieldArray {
		return nil
	}
	if depth >= MaxTableDepth {
		return syntaxError("field table nested deeper than 128 levels")
	}
	if v.typ == FieldTable {
		return validateTable(v.raw, depth+1)
	}
	return validateArray(v.raw, depth+1)
}

// appendTableWith appends raw with the fields of set in place of those with the
// same keys, and without the key drop if dropping. Set fields go to the end.
func appendTableWith(dst []byte, raw []byte, set []Field, drop string, dropping bool) ([]byte, *Error) {
	for len(raw) > 0 {
		k, _, rest, err := readField(raw)
		if err != nil {
			return dst, err
		}
		if indexField(set, k) < 0 && !(dropping && string(k) == drop) {
			dst = append(dst, raw[:len(raw)-len(rest)]...)
		}
		raw = rest
	}
	for i := range set {
		if err := set[i].check(); err != nil {
			return dst, err
		}
		dst = set[i].append(dst)
	}
	return dst, nil
}

func indexField(fields []Field, key []byte) int {
	for i := range fields {
		if fields[i].Key == string(key) {
			return i
		}
	}
	return -1
}

// beginSized appends room for the four-byte size of what follows; endSized fills
// it in.
func beginSized(dst []byte) ([]byte, int) {
	return append(dst, 0, 0, 0, 0), len(dst) + 4
}

func endSized(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start-4:], uint32(len(dst)-start))
	return dst
}
