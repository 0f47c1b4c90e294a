package route

import (
	"errors"
	"math"
	"testing"
)

func TestValueEqual(t *testing.T) {
	i := func(n int64) Value { return Value{Kind: Int, Int: n} }
	f := func(x float64) Value { return Value{Kind: Float, Float: x} }
	s := func(x string) Value { return Value{Kind: String, Bytes: []byte(x)} }
	for _, c := range []struct {
		a, b Value
		want bool
	}{
		{i(1), i(1), true},
		{i(1), i(2), false},
		{i(1), f(1), true},
		{i(1), f(1.5), false},
		{i(1), s("1"), false},
		{i(1), Value{Kind: Bool, Int: 1}, false},
		{s(""), Value{}, false},
		{s("a"), s("a"), true},
		{s("a"), Value{Kind: Opaque, Bytes: []byte("a")}, false},
		{Value{}, Value{}, true},
		{f(math.NaN()), f(math.NaN()), false},
		{i(math.MaxInt64), f(math.MaxInt64), false}, // the float is 2^63
		{i(1<<53 + 1), f(1 << 53), false},
		{i(math.MinInt64), f(math.MinInt64), true},
		{i(0), f(math.Inf(1)), false},
	} {
		if c.a.Equal(c.b) != c.want || c.b.Equal(c.a) != c.want {
			t.Errorf("%+v = %+v: want %v", c.a, c.b, c.want)
		}
	}
}

func TestHeaderMatch(t *testing.T) {
	str := func(s string) Value { return Value{Kind: String, Bytes: []byte(s)} }
	arg := func(mode string, args ...HeaderArg) []HeaderArg {
		if mode == "" {
			return args
		}
		return append(args, HeaderArg{"x-match", str(mode)})
	}
	h, x, void := HeaderArg{"h", str("1")}, HeaderArg{"x-a", str("1")}, HeaderArg{"p", Value{}}
	for _, c := range []struct {
		args    []HeaderArg
		headers headerMap
		want    bool
	}{
		{nil, nil, true},
		{arg("all"), headerMap{"h": str("1")}, true},
		{arg("any"), headerMap{"h": str("1")}, false},
		{arg("", h), headerMap{"h": str("1"), "i": str("2")}, true},
		{arg("", h), headerMap{"h": str("2")}, false},
		{arg("", h), nil, false},
		{arg("all", h, x), headerMap{"h": str("1")}, true}, // x-a is skipped
		{arg("all-with-x", h, x), headerMap{"h": str("1")}, false},
		{arg("all-with-x", h, x), headerMap{"h": str("1"), "x-a": str("1")}, true},
		{arg("any", x), headerMap{"x-a": str("1")}, false},
		{arg("any-with-x", x), headerMap{"x-a": str("1")}, true},
		{arg("any-with-x"), headerMap{"x-match": str("any-with-x")}, false},
		{arg("any", h, void), headerMap{"p": str("whatever")}, true},
		{arg("all", void), headerMap{"p": {}}, true},
		{arg("all", void), headerMap{"q": {}}, false},
	} {
		m, err := compileHeaders(c.args)
		if err != nil {
			t.Fatal(err)
		}
		var lookup HeaderLookup
		if c.headers != nil {
			lookup = c.headers
		}
		if got := m.matches(lookup); got != c.want {
			t.Errorf("%v matches %v: %v", c.args, c.headers, got)
		}
	}
}

func TestHeaderMatchErrors(t *testing.T) {
	for text, v := range map[string]Value{
		`Invalid x-match field value <<"some">>; expected all, any, all-with-x, or any-with-x`: {Kind: String, Bytes: []byte("some")},
		`Invalid x-match field type; expected longstr`:                                         {Kind: Int, Int: 1},
	} {
		err := CheckHeaders([]HeaderArg{{"x-match", v}})
		var bad *HeaderMatchError
		if !errors.As(err, &bad) || bad.Error() != text {
			t.Errorf("%v", err)
		}
		e := New().Edit()
		e.PutVHost("/")
		e.PutQueue(&Queue{VHost: "/", Name: "q"})
		b := &Binding{VHost: "/", Source: "amq.match", Destination: "q", Headers: []HeaderArg{{"x-match", v}}}
		if e.Bind(b) {
			t.Errorf("bound with %+v", v)
		}
	}
}
