package meta

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/sluicemq/sluice/internal/route"
)

func sampleOps() []Op {
	binding := route.Binding{
		VHost: "/", Source: "x", Destination: "q", Key: "k", Args: "raw",
		Headers: []route.HeaderArg{
			{Key: "v"},
			{Key: "b", Value: route.Value{Kind: route.Bool, Int: 1}},
			{Key: "i", Value: route.Value{Kind: route.Int, Int: -2}},
			{Key: "f", Value: route.Value{Kind: route.Float, Float: 1.5}},
			{Key: "s", Value: route.Value{Kind: route.String, Bytes: []byte("t")}},
			{Key: "o", Value: route.Value{Kind: route.Opaque, Bytes: []byte{1, 2}}},
		},
	}
	plain := binding
	plain.Headers, plain.Kind = nil, route.ToExchange
	return []Op{
		PutVHost{"/"},
		DeleteVHost{"/"},
		DeclareExchange{route.Exchange{
			VHost: "/", Name: "x", Type: "topic", Alternate: "a", HashOn: route.HashOn{Header: "h", Property: "p"}, Args: []byte("raw"), Durable: true, Internal: true,
		}},
		DeleteExchange{VHost: "/", Name: "x", IfUnused: true, Held: []string{"y", "z"}},
		DeclareQueue{route.Queue{
			VHost: "/", Name: "q", ID: 300, Shard: 2, Type: "quorum", Owner: "c", Args: []byte("raw"), Durable: true, AutoDelete: true,
		}},
		DeleteQueue{VHost: "/", Name: "q", ID: 300, Held: []string{"y"}},
		Bind{binding},
		Unbind{Binding: plain, Held: []string{"y"}},
		PutUser{User{Name: "u", PasswordHash: "h", Hashing: "a", Tags: []string{"t"}}},
		DeleteUser{"u"},
		PutSetting{"k", "v"},
		DeleteSetting{"k"},
		PutItem{Item{ItemKey{ItemParameter, "/", "", "shovel", "s"}, "{}"}},
		DeleteItem{ItemKey{ItemPermission, "/", "guest", "", ""}},
	}
}

// The encoding is a stored format: a change of these bytes breaks data that
// exists.
func TestOpEncodingIsStable(t *testing.T) {
	want := []string{
		"01012f",
		"02012f",
		"03012f01780505746f70696301610168017003726177",
		"04012f01780102017901 7a",
		"05012f017105ac02020671756f72756d016303726177",
		"06012f0171ac02010179",
		"07012f01780001 71016b03726177060176000162010201690203016603" + "3ff8000000000000" + "0173040174016f05020102",
		"08012f0178010171016b03726177010179",
		"0901750168016101 0174",
		"0a0175",
		"0b016b0176",
		"0c016b",
		"0d05012f000673686f76656c0173027b7d",
		"0e01012f0567756573740000",
	}
	for i, op := range sampleOps() {
		w, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(want[i]), []byte(" "), nil)))
		if err != nil {
			t.Fatal(err)
		}
		if got := AppendOp(nil, op); !bytes.Equal(got, w) {
			t.Errorf("%T:\n%x, want\n%x", op, got, w)
		}
	}
}

func TestParseOpRefusesEveryCut(t *testing.T) {
	for _, op := range sampleOps() {
		b := AppendOp(nil, op)
		for i := range b {
			if got, _, err := ParseOp(b[:i]); !errors.Is(err, ErrMalformed) {
				t.Fatalf("%T cut to %d bytes: %+v, %v", op, i, got, err)
			}
		}
	}
	for _, b := range []string{"\x00", "\x0d", "\x05\x00\x00\x08"} {
		if _, _, err := ParseOp([]byte(b)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%x: %v", b, err)
		}
	}
}

// FuzzParseOp also applies what it has parsed, because a committed op must never
// take the shard down, whatever it says.
func FuzzParseOp(f *testing.F) {
	var all []byte
	for _, op := range sampleOps() {
		f.Add(AppendOp(nil, op))
		all = AppendOp(all, op)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		n := newNode()
		n.apply(PutVHost{"/"})
		for len(b) > 0 {
			op, used, err := ParseOp(b)
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				return
			}
			if used < 1 || used > len(b) {
				t.Fatalf("%d of %d bytes", used, len(b))
			}
			b = b[used:]
			enc := AppendOp(nil, op)
			again, _, err := ParseOp(enc)
			if err != nil || !bytes.Equal(AppendOp(nil, again), enc) {
				t.Fatalf("%+v doesn't survive its encoding: %v", op, err)
			}
			n.apply(op)
			n.applyLocal(op)
		}
	})
}

func FuzzRestore(f *testing.F) {
	c := New()
	ops := []Op{PutVHost{"/"}, exchange("x", false), queue("q", true)}
	for _, op := range append(ops, sampleOps()...) {
		if _, ok := op.(DeleteVHost); ok {
			continue
		}
		c.Apply(op)
		if err := c.Dirty(func(k, v []byte) error { f.Add(k, v); return nil }); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		c := New()
		empty := c.Hash()
		if err := c.Restore(key, value); err != nil {
			if !errors.Is(err, ErrMalformed) || c.Hash() != empty {
				t.Fatalf("%v, or it changed something", err)
			}
			return
		}
		again := New()
		if err := c.Export(again.Restore); err != nil || again.Hash() != c.Hash() {
			t.Fatalf("export of a restored entry: %v", err)
		}
		c.Populate(route.New().Edit())
	})
}
