package access

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func with(t *testing.T, rows ...Row) *Table {
	t.Helper()
	n, err := (&Table{}).With("u", "/", rows)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestPermission(t *testing.T) {
	table := with(t, Permission{Configure: "^app-", Write: `^(app-.*|amq\.default)$`, Read: ""}.Rows("u", "/")...)
	for _, c := range []struct {
		kind Kinds
		name string
		op   Op
		want bool
	}{
		{Queue, "app-1", Configure, true},
		{Queue, "other", Configure, false},
		{Queue, "my-app-1", Configure, false},
		{Exchange, "app-x", Write, true},
		{Exchange, "", Write, true},
		{Queue, "app-1", Read, false},
		{Queue, "", Read, true},
		{Group, "app-1", Configure, false},
	} {
		if got := table.Allowed("u", "/", c.kind, c.name, c.op); got != c.want {
			t.Errorf("%v %q %v: %v", c.kind, c.name, c.op, got)
		}
	}
	if table.Allowed("v", "/", Queue, "app-1", Configure) || table.Allowed("u", "w", Queue, "app-1", Configure) {
		t.Error("rows of somebody else count")
	}
	if !table.VHost("u", "/") || table.VHost("u", "w") || table.VHost("v", "/") {
		t.Error("virtual hosts")
	}
	none, err := table.With("u", "/", nil)
	if err != nil || none.VHost("u", "/") || !table.VHost("u", "/") {
		t.Error("taking rows away changes the old table or not the new one", err)
	}
}

// Patterns in use look ahead, which Go's own expressions can't.
func TestLookahead(t *testing.T) {
	table := with(t, Permission{Configure: `^(?!amq\.).*`, Write: ".*", Read: "a|b"}.Rows("u", "/")...)
	if table.Allowed("u", "/", Queue, "amq.gen-1", Configure) || !table.Allowed("u", "/", Queue, "q", Configure) {
		t.Error("looking ahead")
	}
	if !table.Allowed("u", "/", Queue, "xbx", Read) {
		t.Error("expressions match anywhere unless anchored")
	}
	if err := (Pattern{"(", Regexp}).Check(); err == nil {
		t.Error("a broken expression is accepted")
	}
	if err := (Pattern{strings.Repeat("a", patternMax+1), Regexp}).Check(); err == nil {
		t.Error("a huge expression is accepted")
	}
	// Backtracks for longer than anybody waits: no match, and an end.
	if (Pattern{`^(?=(a+)+$)(a|aa)+\1z$`, Regexp}).Match(strings.Repeat("a", 200)) {
		t.Error("matches")
	}
}

func TestDenyWins(t *testing.T) {
	all := Row{User: "u", VHost: "/", Kinds: Queue, Ops: Read | Write, Pattern: Pattern{"", Prefix}}
	not := Row{User: "u", VHost: "/", Kinds: Queue, Ops: Write, Pattern: Pattern{"secret", Literal}, Deny: true}
	for _, table := range []*Table{with(t, all, not), with(t, not, all)} {
		if table.Allowed("u", "/", Queue, "secret", Write) || !table.Allowed("u", "/", Queue, "secret", Read) || !table.Allowed("u", "/", Queue, "other", Write) {
			t.Error("deny doesn't win, or wins too much")
		}
	}
}

func TestTopics(t *testing.T) {
	rows := Permission{".*", ".*", ".*"}.Rows("u", "/")
	rows = append(rows, TopicPermission{Exchange: "amq.topic", Write: `^{username}\.`, Read: "^news"}.Rows("u", "/")...)
	table := with(t, rows...)
	v := Vars{Username: "u.x", VHost: "/"}
	for _, c := range []struct {
		exchange, topic string
		op              Op
		want            bool
	}{
		{"amq.topic", "u.x.a", Write, true},
		{"amq.topic", "u-x.a", Write, false}, // the name is no expression
		{"amq.topic", "news.a", Read, true},
		{"amq.topic", "u.x.a", Read, false},
		{"other", "anything", Write, true},
	} {
		if got := table.TopicAllowed("u", "/", c.exchange, c.topic, c.op, v); got != c.want {
			t.Errorf("%s %s %v: %v", c.exchange, c.topic, c.op, got)
		}
	}
	if !table.Restricts("u", "/", "amq.topic") || table.Restricts("u", "/", "other") {
		t.Error("restricts")
	}
	if !table.Allowed("u", "/", Exchange, "amq.topic", Write) {
		t.Error("topic rows concern exchanges")
	}
}

func TestForeignRows(t *testing.T) {
	if _, err := (&Table{}).With("u", "/", Permission{}.Rows("v", "/")); err == nil {
		t.Error("accepted")
	}
}

// The hash of a file that RabbitMQ exported.
func TestHashOfOthers(t *testing.T) {
	const stored = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
	if !SHA256.Verify(stored, "test12") || SHA256.Verify(stored, "test1") || SHA512.Verify(stored, "test12") {
		t.Error("sha256")
	}
	if SHA256.Verify("", "") || SHA256.Verify("", "x") {
		t.Error("an account without a password lets in")
	}
}

func TestHash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := rapid.SampledFrom([]Hashing{"", SHA256, SHA512, MD5}).Draw(t, "algorithm")
		salt := [SaltLen]byte(rapid.SliceOfN(rapid.Byte(), SaltLen, SaltLen).Draw(t, "salt"))
		password := rapid.StringN(1, 40, 200).Draw(t, "password")
		stored := h.Hash(salt, password)
		if err := h.Check(stored); err != nil {
			t.Fatal(err)
		}
		if !h.Verify(stored, password) || h.Verify(stored, password+"x") || h.Verify(stored, "") {
			t.Fatal("verify")
		}
	})
	if Hashing("rot13").Check("x") == nil || SHA256.Check("AAAA") == nil || SHA512.Check(SHA256.Hash([SaltLen]byte{}, "x")) == nil {
		t.Error("a malformed hash is accepted")
	}
}

func BenchmarkAllowed(b *testing.B) {
	table, err := (&Table{}).With("u", "/", Permission{".*", "^app", ".*"}.Rows("u", "/"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !table.Allowed("u", "/", Exchange, "app.orders", Write) {
			b.Fatal("refused")
		}
	}
}
