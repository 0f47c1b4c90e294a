package amqpwire

import (
	"bytes"
	"math"
	"math/bits"
	"reflect"
	"strings"
	"testing"
)

func allProperties(t testing.TB) Properties {
	return Properties{
		Flags:           0xFFFC,
		ContentType:     "application/json",
		ContentEncoding: "gzip",
		Headers:         sampleTable(t),
		DeliveryMode:    Persistent,
		Priority:        4,
		CorrelationID:   "corr",
		ReplyTo:         "reply",
		Expiration:      "60000",
		MessageID:       "msg",
		Timestamp:       math.MaxUint64,
		Type:            "type",
		UserID:          "guest",
		AppID:           "app",
		ClusterID:       "cluster",
	}
}

func encodeProps(t testing.TB, p Properties) RawProps {
	t.Helper()
	raw, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestPropertiesKnownBytes(t *testing.T) {
	p := Properties{ContentType: "a", DeliveryMode: Persistent, Priority: 9, Timestamp: 1, AppID: "z"}
	want := "\x98\x48\x01a\x02\x09\x00\x00\x00\x00\x00\x00\x00\x01\x01z"
	raw := encodeProps(t, p)
	if string(raw) != want {
		t.Fatalf("got %q, want %q", raw, want)
	}
	got, err := ParseProperties(raw)
	p.Flags = 0x9848
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("%+v %v", got, err)
	}
	if got := encodeProps(t, Properties{}); string(got) != "\x00\x00" {
		t.Fatalf("%q", got)
	}
}

// TestPropertiesPresence: zero values that are present stay present.
func TestPropertiesPresence(t *testing.T) {
	raw := encodeProps(t, Properties{Flags: 0xFFFC})
	p, err := ParseProperties(raw)
	if err != nil || p.Flags != 0xFFFC || !bytes.Equal(encodeProps(t, p), raw) {
		t.Fatalf("%+v %v", p, err)
	}
	if v, ok := raw.DeliveryMode(); v != 0 || !ok {
		t.Fatal(v, ok)
	}
	if v, ok := raw.MessageID(); len(v) != 0 || !ok {
		t.Fatal(v, ok)
	}
}

func TestRawPropsAccessors(t *testing.T) {
	all := allProperties(t)
	strs := map[PropFlags]struct {
		get  func(RawProps) ([]byte, bool)
		want string
	}{
		PropContentType:     {RawProps.ContentType, all.ContentType},
		PropContentEncoding: {RawProps.ContentEncoding, all.ContentEncoding},
		PropCorrelationID:   {RawProps.CorrelationID, all.CorrelationID},
		PropReplyTo:         {RawProps.ReplyTo, all.ReplyTo},
		PropExpiration:      {RawProps.Expiration, all.Expiration},
		PropMessageID:       {RawProps.MessageID, all.MessageID},
		PropType:            {RawProps.Type, all.Type},
		PropUserID:          {RawProps.UserID, all.UserID},
		PropAppID:           {RawProps.AppID, all.AppID},
		PropHeaders:         {func(r RawProps) ([]byte, bool) { h, ok := r.Headers(); return h, ok }, string(all.Headers)},
	}
	whole := encodeProps(t, all)
	// Every accessor must find its property with any one other left out.
	for flag := PropContentType; flag > propUndefined; flag >>= 1 {
		raw, err := AppendPropsWithout(nil, whole, flag)
		if err != nil {
			t.Fatal(err)
		}
		if err := RawProps(raw).Validate(); err != nil || RawProps(raw).Flags() != 0xFFFC&^flag {
			t.Fatalf("without %x: %v", flag, err)
		}
		r := RawProps(raw)
		for f, c := range strs {
			v, ok := c.get(r)
			if ok != (f != flag) || ok && string(v) != c.want {
				t.Errorf("without %x: property %x is %q %v", flag, f, v, ok)
			}
		}
		mode, ok := r.DeliveryMode()
		if ok != (flag != PropDeliveryMode) || ok && mode != Persistent {
			t.Errorf("without %x: delivery mode %d %v", flag, mode, ok)
		}
		prio, ok := r.Priority()
		if ok != (flag != PropPriority) || ok && prio != 4 {
			t.Errorf("without %x: priority %d %v", flag, prio, ok)
		}
		ts, ok := r.Timestamp()
		if ok != (flag != PropTimestamp) || ok && ts != math.MaxUint64 {
			t.Errorf("without %x: timestamp %d %v", flag, ts, ok)
		}
	}
	var empty RawProps
	if _, ok := empty.Priority(); ok || empty.Flags() != 0 {
		t.Error("empty RawProps have no properties")
	}
}

func TestMalformedProperties(t *testing.T) {
	whole := encodeProps(t, allProperties(t))
	for i := range len(whole) {
		if _, err := ParseProperties(whole[:i]); err == nil {
			t.Fatalf("prefix of %d bytes accepted", i)
		}
		if whole[:i].Validate() == nil {
			t.Fatalf("prefix of %d bytes is valid", i)
		}
		// Accessors may miss, but not panic.
		whole[:i].AppID()
		whole[:i].Headers()
		whole[:i].Timestamp()
	}
	for _, c := range []struct{ raw, text string }{
		{"\x00\x00x", "bytes behind the last property"},
		{"\x00\x01", "undefined property flags"},
		{"\x00\x02", "undefined property flags"},
		{"\x20\x00\x00\x00\x00\x01\x05", "truncated field table"},
		{"\x20\x00\xff\xff\xff\xff", "truncated properties"},
	} {
		wantError(t, RawProps(c.raw).Validate(), SyntaxError, c.text)
		_, err := ParseProperties([]byte(c.raw))
		wantError(t, err, SyntaxError, c.text)
	}
	got, err := Properties{ContentType: strings.Repeat("x", 256)}.Append([]byte("before"))
	wantError(t, err, SyntaxError, "short string of more than 255 bytes")
	if string(got) != "before" {
		t.Fatalf("%q", got)
	}
}

func TestSetHeader(t *testing.T) {
	table, err := Table{{"a", Int8(1)}, {"x-delivery-count", Int64(1)}, {"b", Int8(2)}, {"x-delivery-count", Int64(9)}}.Raw()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   Properties
		want []Field
	}{
		"no headers":      {Properties{ContentType: "c", Priority: 3}, []Field{{"x-delivery-count", Int64(2)}}},
		"replaced":        {Properties{Headers: table, AppID: "z"}, []Field{{"a", Int8(1)}, {"b", Int8(2)}, {"x-delivery-count", Int64(2)}}},
		"nothing at all":  {Properties{}, []Field{{"x-delivery-count", Int64(2)}}},
		"empty headers":   {Properties{Flags: PropHeaders}, []Field{{"x-delivery-count", Int64(2)}}},
		"only later ones": {Properties{MessageID: "m", Timestamp: 4}, []Field{{"x-delivery-count", Int64(2)}}},
	} {
		raw := encodeProps(t, c.in)
		out, err := AppendPropsWithHeader([]byte("before"), raw, "x-delivery-count", Int64(2))
		if err != nil || string(out[:6]) != "before" {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := ParseProperties(out[6:])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := c.in
		want.Flags = raw.Flags() | PropHeaders
		if want.Headers, err = Table(c.want).Raw(); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, want)
		}
	}
	out, err := AppendPropsWithHeader(nil, nil, "k", Void())
	if err != nil || string(out) != "\x20\x00\x00\x00\x00\x03\x01kV" {
		t.Errorf("empty RawProps: %q %v", out, err)
	}
}

func TestRewriteProperties(t *testing.T) {
	all := allProperties(t)
	whole := encodeProps(t, all)
	check := func(name string, out []byte, err error, change func(*Properties)) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := all
		change(&want)
		got, err := ParseProperties(out)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, got, want)
		}
	}
	out, err := AppendPropsWithString(nil, whole, PropReplyTo, "amq.rabbitmq.reply-to.token")
	check("reply-to", out, err, func(p *Properties) { p.ReplyTo = "amq.rabbitmq.reply-to.token" })

	out, err = AppendPropsWithout(nil, whole, PropExpiration)
	check("no expiration", out, err, func(p *Properties) { p.Expiration = ""; p.Flags &^= PropExpiration })
	out, err = AppendPropsWithString(nil, out, PropExpiration, "1")
	check("expiration again", out, err, func(p *Properties) { p.Expiration = "1" })

	table := RawTable("\x01kV")
	out, err = AppendPropsWithTable(nil, whole, table)
	check("table", out, err, func(p *Properties) { p.Headers = table })

	out, err = AppendPropsWithHeaders(nil, out, []Field{{"a", Int8(1)}, {"k", Int8(2)}})
	check("headers", out, err, func(p *Properties) { p.Headers = RawTable("\x01ab\x01\x01kb\x02") })
	out, err = AppendPropsWithoutHeader(nil, out, "a")
	check("no header", out, err, func(p *Properties) { p.Headers = RawTable("\x01kb\x02") })

	// Taking a header away must not invent the headers property.
	out, err = AppendPropsWithoutHeader(nil, RawProps("\x10\x00\x02"), "BCC")
	if err != nil || string(out) != "\x10\x00\x02" {
		t.Errorf("%q %v", out, err)
	}
}

func TestRewriteErrors(t *testing.T) {
	before := []byte("before")
	for name, rewrite := range map[string]func() ([]byte, error){
		"truncated in front": func() ([]byte, error) {
			return AppendPropsWithHeader(before, RawProps("\xa0\x00\x09a"), "k", Void())
		},
		"truncated flags": func() ([]byte, error) { return AppendPropsWithout(before, RawProps("\xa0"), PropHeaders) },
		"broken headers": func() ([]byte, error) {
			return AppendPropsWithHeader(before, RawProps("\x20\x00\x00\x00\x00\x01\x05"), "k", Void())
		},
		"long key": func() ([]byte, error) {
			return AppendPropsWithHeader(before, nil, strings.Repeat("k", 256), Void())
		},
		"no value":       func() ([]byte, error) { return AppendPropsWithHeader(before, nil, "k", Value{}) },
		"not a string":   func() ([]byte, error) { return AppendPropsWithString(before, nil, PropPriority, "k") },
		"two properties": func() ([]byte, error) { return AppendPropsWithString(before, nil, PropAppID|PropType, "k") },
		"long string": func() ([]byte, error) {
			return AppendPropsWithString(before, nil, PropAppID, strings.Repeat("k", 256))
		},
	} {
		out, err := rewrite()
		if err == nil || string(out) != "before" {
			t.Errorf("%s: %q %v", name, out, err)
		}
	}
}

func FuzzProperties(f *testing.F) {
	f.Add([]byte(encodeProps(f, allProperties(f))))
	f.Add([]byte(encodeProps(f, Properties{Flags: 0xFFFC})))
	f.Add([]byte(encodeProps(f, Properties{DeliveryMode: 2, Expiration: "5"})))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := RawProps(raw)
		r.AppID()
		r.Timestamp()
		r.Headers()
		out, rewriteErr := AppendPropsWithHeader(nil, r, "x-delivery-count", Int64(1))
		p, err := ParseProperties(raw)
		if (err == nil) != (r.Validate() == nil) {
			t.Fatalf("ParseProperties: %v, Validate: %v", err, r.Validate())
		}
		if err != nil {
			return
		}
		if again := encodeProps(t, p); !bytes.Equal(again, raw) {
			t.Fatalf("%q became %q", raw, again)
		}
		if bits.OnesCount16(uint16(p.Flags)) == 0 != (len(raw) == 2) {
			t.Fatalf("flags %x of %d bytes", p.Flags, len(raw))
		}
		if rewriteErr != nil || RawProps(out).Validate() != nil {
			t.Fatalf("rewritten to %q, %v, %v", out, rewriteErr, RawProps(out).Validate())
		}
		headers, _ := RawProps(out).Headers()
		if v, ok := LookupTable(headers, "x-delivery-count"); !ok || !Equivalent(v, Int64(1)) {
			t.Fatalf("the new header is %v %v", v, ok)
		}
	})
}
