package meta

import (
	"slices"
	"testing"

	"github.com/sluicemq/sluice/internal/berr"
)

func permission(vhost, user string) Item {
	return Item{ItemKey{Kind: ItemPermission, VHost: vhost, User: user}, "all"}
}

func policy(vhost, name, value string) Item {
	return Item{ItemKey{Kind: ItemPolicy, VHost: vhost, Name: name}, value}
}

// Items belong to what their key names: they need it and go with it.
func TestItems(t *testing.T) {
	n := newNode()
	for _, vhost := range []string{"/", "w"} {
		n.apply(PutVHost{vhost})
	}
	for _, user := range []string{"a", "b"} {
		n.apply(PutUser{User{Name: user}})
	}
	for _, c := range []struct {
		op   Op
		want Outcome
	}{
		{PutItem{permission("/", "a")}, Created},
		{PutItem{permission("/", "a")}, Replaced},
		{PutItem{permission("w", "a")}, Created},
		{PutItem{permission("w", "b")}, Created},
		{PutItem{permission("x", "b")}, Refused},
		{PutItem{permission("w", "c")}, Refused},
		{PutItem{policy("w", "p", "1")}, Created},
		{PutItem{policy("w", "p", "2")}, Replaced},
		{PutItem{policy("/", "p", "3")}, Created},
		{PutItem{policy("/", "q", "")}, Refused},
		{PutItem{Item{ItemKey{Kind: ItemGlobalParameter, Name: "g"}, "4"}}, Created},
		{DeleteItem{ItemKey{Kind: ItemPolicy, VHost: "/", Name: "q"}}, Absent},
	} {
		if res := n.apply(c.op); res.Outcome != c.want {
			t.Fatalf("%+v: %+v", c.op, res)
		}
	}
	if res := n.apply(PutItem{permission("w", "c")}); res.Err == nil || res.Err.Reason != berr.NotFound {
		t.Errorf("%+v", res)
	}
	names := func() (out []string) {
		for _, kind := range []ItemKind{ItemPermission, ItemPolicy, ItemGlobalParameter} {
			for _, it := range n.catalog.Items(kind) {
				out = append(out, it.VHost+" "+it.User+it.Name+" "+it.Value)
			}
		}
		return out
	}
	if got, want := names(), []string{"/ a all", "w a all", "w b all", "/ p 3", "w p 2", " g 4"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	n.apply(DeleteUser{"a"})
	if got, want := names(), []string{"w b all", "/ p 3", "w p 2", " g 4"}; !slices.Equal(got, want) {
		t.Errorf("without the user: %q, want %q", got, want)
	}
	n.apply(DeleteVHost{"w"})
	if got, want := names(), []string{"/ p 3", " g 4"}; !slices.Equal(got, want) {
		t.Errorf("without the virtual host: %q, want %q", got, want)
	}
	restored := New()
	err := n.catalog.Dirty(func(k, v []byte) error { return restored.Restore(k, v) })
	if err != nil || restored.Hash() != n.catalog.Hash() {
		t.Errorf("restored catalog differs: %v", err)
	}
	if it := restored.Item(ItemKey{Kind: ItemPolicy, VHost: "/", Name: "p"}); it == nil || it.Value != "3" {
		t.Errorf("%+v", it)
	}
}
