package amqpwire

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
)

// TestFieldTypesKnownBytes has one encoding per wire type, and the extremes of
// signedness as RabbitMQ reads them.
func TestFieldTypesKnownBytes(t *testing.T) {
	for _, c := range []struct {
		v    Value
		wire string
		text string
		name string
	}{
		{Bool(true), "t\x01", "true", "bool"},
		{Bool(false), "t\x00", "false", "bool"},
		{Int8(-1), "b\xff", "-1", "byte"},
		{Uint8(255), "B\xff", "255", "unsignedbyte"},
		{Int16(-2), "s\xff\xfe", "-2", "short"},
		{Uint16(65534), "u\xff\xfe", "65534", "unsignedshort"},
		{Int32(-2), "I\xff\xff\xff\xfe", "-2", "signedint"},
		{Uint32(math.MaxUint32), "i\xff\xff\xff\xff", "4294967295", "unsignedint"},
		{Int64(-2), "l\xff\xff\xff\xff\xff\xff\xff\xfe", "-2", "long"},
		{Value{typ: FieldInt64Alt, num: math.MaxUint64}, "L\xff\xff\xff\xff\xff\xff\xff\xff", "-1", "long"},
		{Float32(1.5), "f\x3f\xc0\x00\x00", "1.5", "float"},
		{Float64(1.5), "d\x3f\xf8\x00\x00\x00\x00\x00\x00", "1.5", "double"},
		{Decimal(2, 0x102), "D\x02\x00\x00\x01\x02", "{2,258}", "decimal"},
		{String("ab"), "S\x00\x00\x00\x02ab", "ab", "longstr"},
		{Bytes([]byte("ab")), "x\x00\x00\x00\x02ab", "ab", "binary"},
		{Timestamp(math.MaxUint64), "T\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615", "timestamp"},
		{Void(), "V", "undefined", "void"},
		{Value{typ: FieldTable, raw: []byte("\x01kV")}, "F\x00\x00\x00\x03\x01kV", "table of 3 bytes", "table"},
		{Value{typ: FieldArray, raw: []byte("Vt\x01")}, "A\x00\x00\x00\x03Vt\x01", "array of 3 bytes", "array"},
	} {
		if got := string(c.v.append(nil)); got != c.wire {
			t.Errorf("%v: encoded %q, want %q", c.v.typ, got, c.wire)
		}
		v, rest, err := readValue([]byte(c.wire + "rest"))
		if err != nil || string(rest) != "rest" || !reflect.DeepEqual(v, c.v) {
			t.Errorf("%q: decoded %+v, %q, %v", c.wire, v, rest, err)
		}
		if v.String() != c.text || v.Type().String() != c.name {
			t.Errorf("%q: text %q, type %q", c.wire, v.String(), v.Type())
		}
		for i := range len(c.wire) {
			if _, _, err := readValue([]byte(c.wire[:i])); err == nil {
				t.Errorf("%q: prefix of %d bytes accepted", c.wire, i)
			}
		}
	}
	if v, _, err := readValue([]byte("t\x02")); err != nil || !reflect.DeepEqual(v, Bool(true)) {
		t.Errorf("a bool of 2 is true; got %v %v", v, err)
	}
}

func TestTableRoundTrip(t *testing.T) {
	raw := sampleTable(t)
	table, err := ParseTable(raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := table.Raw()
	if err != nil || !bytes.Equal(again, raw) {
		t.Fatalf("%q\n%q, %v", raw, again, err)
	}
	i := 0
	if err := RangeTable(raw, func(k []byte, v Value) bool {
		if string(k) != table[i].Key || !reflect.DeepEqual(v, table[i].Value) {
			t.Errorf("field %d: %s %v, want %v", i, k, v, table[i])
		}
		if got, ok := LookupTable(raw, string(k)); !ok || !reflect.DeepEqual(got, v) {
			t.Errorf("LookupTable(%s) = %v %v", k, got, ok)
		}
		if got, ok := table.Lookup(string(k)); !ok || !reflect.DeepEqual(got, v) {
			t.Errorf("Lookup(%s) = %v %v", k, got, ok)
		}
		i++
		return true
	}); err != nil || i != len(table) || i != 17 {
		t.Fatalf("%d fields, %v", i, err)
	}
	if _, ok := LookupTable(raw, "absent"); ok {
		t.Fatal("found an absent key")
	}
	if _, ok := table.Lookup("absent"); ok {
		t.Fatal("found an absent key")
	}

	// The parsed table owns its memory.
	clear(raw)
	if v, ok := table.Lookup("S"); !ok || v.String() != "long string" {
		t.Fatalf("%v %v", v, ok)
	}
}

func TestTableStopsAndDuplicates(t *testing.T) {
	raw, err := Table{{"k", Int8(1)}, {"k", Int8(2)}}.Raw()
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := LookupTable(raw, "k"); v.String() != "1" {
		t.Fatalf("the first value counts, not %v", v)
	}
	calls := 0
	if err := RangeTable(raw, func([]byte, Value) bool { calls++; return false }); err != nil || calls != 1 {
		t.Fatalf("%d calls, %v", calls, err)
	}
	if table, err := ParseTable(nil); err != nil || table != nil {
		t.Fatalf("%v %v", table, err)
	}
}

func TestMalformedTables(t *testing.T) {
	for _, bad := range []string{
		"\x01",
		"\x01k",
		"\x05kV",
		"\x01kU\x00\x00",
		"\x01kS\xff\xff\xff\xffabc",
		"\x01kF\x00\x00\x00\x01\x05",     // broken inside
		"\x01kA\x00\x00\x00\x02VZ",       // broken inside
		"\x01kF\x00\x00\x00\x05\x01kVxx", // trailing garbage inside
	} {
		if err := ValidateTable([]byte(bad)); err == nil {
			t.Errorf("ValidateTable accepted %q", bad)
		} else {
			wantError(t, err, SyntaxError, "SYNTAX_ERROR - ")
		}
		if _, err := ParseTable([]byte(bad)); err == nil {
			t.Errorf("ParseTable accepted %q", bad)
		}
	}
	if err := RangeTable([]byte("\x01aV\x09"), func([]byte, Value) bool { return true }); err == nil {
		t.Error("RangeTable accepted a truncated field")
	}
	if v, ok := LookupTable([]byte("\x01aV\x09"), "a"); !ok || v.Type() != FieldVoid {
		t.Error("LookupTable did not find what stands before the fault")
	}
}

// nest wraps a void in depth-1 levels, so that its table has the given depth.
func nest(depth int, typ byte) []byte {
	raw := []byte("\x00V")
	for range depth - 1 {
		content := raw
		if typ == 'A' {
			content = raw[1:]
		}
		raw = Value{typ: FieldType(typ), raw: content}.append([]byte{0})
	}
	return raw
}

func TestTableDepth(t *testing.T) {
	for _, typ := range []byte{'F', 'A'} {
		if err := ValidateTable(nest(MaxTableDepth, typ)); err != nil {
			t.Errorf("%c: %v", typ, err)
		}
		err := ValidateTable(nest(MaxTableDepth+1, typ))
		wantError(t, err, SyntaxError, "nested deeper than 128 levels")
	}
	deepest, err := ParseTable(nest(MaxTableDepth, 'F'))
	if err != nil {
		t.Fatal(err)
	}
	v, err := TableValue(deepest)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Table{{"k", v}}.Raw()
	wantError(t, err, SyntaxError, "nested deeper than 128 levels")
}

func TestTableEncodingErrors(t *testing.T) {
	for name, bad := range map[string]Table{
		"long key": {{"ok", Void()}, {strings.Repeat("k", 256), Void()}},
		"no value": {{"k", Value{}}},
	} {
		got, err := bad.Append([]byte("before"))
		if err == nil || string(got) != "before" {
			t.Errorf("%s: %q %v", name, got, err)
		}
		if _, err := TableValue(bad); err == nil {
			t.Errorf("%s: TableValue accepts it", name)
		}
	}
	if _, err := ArrayValue(Void(), Value{}); err == nil {
		t.Error("ArrayValue accepts the zero Value")
	}
}

func TestValueAccessors(t *testing.T) {
	for _, v := range []Value{Int8(-3), Int16(-3), Int32(-3), Int64(-3)} {
		if n, ok := v.Int64(); !ok || n != -3 {
			t.Errorf("%v: %d %v", v.Type(), n, ok)
		}
	}
	for _, v := range []Value{Uint8(3), Uint16(3), Uint32(3), Timestamp(3)} {
		if n, ok := v.Int64(); !ok || n != 3 {
			t.Errorf("%v: %d %v", v.Type(), n, ok)
		}
	}
	for _, v := range []Value{{}, Bool(true), Float64(3), Decimal(0, 3), String("3"), Timestamp(1 << 63), Void()} {
		if _, ok := v.Int64(); ok {
			t.Errorf("%v is no integer", v.Type())
		}
	}
	for _, v := range []Value{Float32(0.5), Float64(0.5)} {
		if f, ok := v.Float64(); !ok || f != 0.5 {
			t.Errorf("%v: %v %v", v.Type(), f, ok)
		}
	}
	if b, ok := Bool(true).Bool(); !b || !ok {
		t.Error("Bool")
	}
	if s, ok := Timestamp(9).Timestamp(); s != 9 || !ok {
		t.Error("Timestamp")
	}
	if scale, n, ok := Decimal(1, 2).Decimal(); scale != 1 || n != 2 || !ok {
		t.Error("Decimal")
	}
	if !(Value{}).IsZero() || Void().IsZero() || (Value{}).String() != "none" {
		t.Error("IsZero")
	}
	array, err := ArrayValue(String("a"), Void())
	if err != nil {
		t.Fatal(err)
	}
	raw, ok := array.Array()
	vs, err := ParseArray(raw)
	if !ok || err != nil || len(vs) != 2 || vs[0].String() != "a" || vs[1].Type() != FieldVoid {
		t.Errorf("%v %v %v", vs, ok, err)
	}
	clone := array.Clone()
	clear(raw)
	if got, _ := clone.Array(); !bytes.Equal(got, []byte("S\x00\x00\x00\x01aV")) {
		t.Errorf("Clone shares memory: %q", got)
	}
}

func TestEquivalence(t *testing.T) {
	table, err := TableValue(Table{{"k", Void()}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		a, b             Value
		same, equivalent bool
	}{
		{Value{}, Value{}, true, true},
		{Value{}, Void(), false, false},
		{Value{}, Bool(false), false, false},
		{Int8(5), Int64(5), true, true},
		{Uint32(5), Int16(5), true, true},
		{Int8(-1), Uint8(255), false, false},
		{Int64(-1), Timestamp(math.MaxUint64), false, false},
		{Int64(5), Timestamp(5), true, true}, // RabbitMQ compares bare values here
		{Int8(1), Float64(1), true, false},
		{Timestamp(1 << 63), Float64(1 << 63), true, false},
		{Int64(math.MaxInt64), Float64(1 << 63), false, false},
		{Int64(math.MinInt64), Float64(-1 << 63), true, false},
		{Int8(1), Float64(1.5), false, false},
		{Int8(1), Float64(math.Inf(1)), false, false},
		{Float32(1.5), Float64(1.5), true, true},
		{Float32(1.1), Float64(1.1), false, false},
		{Float64(math.NaN()), Float64(math.NaN()), true, true},
		{Decimal(1, 5), Decimal(1, 5), true, true},
		{Decimal(1, 5), Decimal(0, 5), false, false},
		{Decimal(0, 5), Int8(5), false, false},
		{String("a"), Bytes([]byte("a")), true, true},
		{String("a"), String("b"), false, false},
		{String("1"), Int8(1), false, false},
		{Bool(true), Bool(true), true, true},
		{Bool(true), Int8(1), false, false},
		{Void(), Void(), true, true},
		{table, table, true, true},
		{table, Value{typ: FieldTable}, false, false},
	} {
		for _, p := range [][2]Value{{c.a, c.b}, {c.b, c.a}} {
			if got := SameValue(p[0], p[1]); got != c.same {
				t.Errorf("SameValue(%v %v, %v %v) = %v", p[0].Type(), p[0], p[1].Type(), p[1], got)
			}
			if got := Equivalent(p[0], p[1]); got != c.equivalent {
				t.Errorf("Equivalent(%v %v, %v %v) = %v", p[0].Type(), p[0], p[1].Type(), p[1], got)
			}
		}
	}
}

func TestFirstMismatch(t *testing.T) {
	raw := func(fields ...Field) RawTable {
		r, err := Table(fields).Raw()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	keys := []string{"x-queue-type", "x-expires", "x-max-length"}
	current := raw(Field{"x-expires", Int32(5)}, Field{"x-other", Int8(1)})
	received := raw(Field{"x-queue-type", String("classic")}, Field{"x-expires", Int64(5)}, Field{"x-other", Int8(2)})
	if key, _, _, found := FirstMismatch(current, received, keys); found {
		t.Fatalf("%s differs", key)
	}
	_, cur, recv, found := FirstMismatch(current, raw(Field{"x-expires", Int64(6)}), keys)
	if !found || DescribeMismatch(recv, cur) != "received '6' but current is '5'" {
		t.Fatal(found, DescribeMismatch(recv, cur))
	}
	key, cur, recv, found := FirstMismatch(current, raw(Field{"x-expires", Int32(5)}, Field{"x-max-length", Int64(2)}), keys)
	want := "received the value '2' of type 'long' but current is none"
	if !found || key != "x-max-length" || DescribeMismatch(recv, cur) != want {
		t.Fatal(found, key, DescribeMismatch(recv, cur))
	}
	_, cur, recv, _ = FirstMismatch(raw(Field{"x-queue-type", String("quorum")}), nil, keys)
	want = "received none but current is the value 'quorum' of type 'longstr'"
	if DescribeMismatch(recv, cur) != want {
		t.Fatal(DescribeMismatch(recv, cur))
	}
}

func FuzzTable(f *testing.F) {
	f.Add([]byte(sampleTable(f)))
	f.Add(nest(MaxTableDepth, 'F'))
	f.Add(nest(MaxTableDepth+1, 'A'))
	f.Add([]byte("\x01kL\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		table, err := ParseTable(raw)
		if (err == nil) != (ValidateTable(raw) == nil) {
			t.Fatalf("ParseTable: %v, ValidateTable: %v", err, ValidateTable(raw))
		}
		if err != nil {
			return
		}
		wire, err := table.Raw()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseTable(wire)
		if err != nil || !reflect.DeepEqual(table, again) {
			t.Fatalf("%v became %v, %v", table, again, err)
		}
		for _, field := range table {
			if v, ok := LookupTable(raw, field.Key); !ok || v.IsZero() {
				t.Fatalf("LookupTable(%q) = %v %v", field.Key, v, ok)
			}
			if !Equivalent(field.Value, field.Value) || !SameValue(field.Value, field.Value.Clone()) {
				t.Fatalf("%v is not equal to itself", field.Value)
			}
			_ = field.Value.String()
		}
	})
}
