package broker

import (
	"strings"
	"testing"

	"github.com/sluicemq/sluice/internal/access"
	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/route"
	"github.com/sluicemq/sluice/internal/vfs"
)

func refused(t *testing.T, what string, err error, text string) {
	t.Helper()
	if berr.ReasonOf(err) != berr.AccessRefused || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want refused with %q", what, err, text)
	}
}

// An account may do what its permissions say and nothing else, at once when they change
// and again after a restart.
func TestPermissions(t *testing.T) {
	fsys := vfs.NewMem()
	b := openOn(t, fsys)
	for _, err := range []error{
		b.PutUser(NewUser{Name: "app", Password: "secret", Tags: []string{"monitoring"}}),
		b.SetPermission("/", "app", access.Permission{Configure: "^app", Write: "^app|^amq.topic$", Read: "^app-q$|^amq.topic$"}),
		b.SetTopicPermission("/", "app", access.TopicPermission{Exchange: "amq.topic", Write: "^{username}\\.", Read: "^news"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	checkRights(t, b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openOn(t, fsys)
	defer func() { _ = b.Close() }()
	checkRights(t, b)

	// A change concerns sessions that are open.
	s, err := b.Open(Identity{ID: "app", VHost: "/", User: "app"}, &client{})
	if err != nil {
		t.Fatal(err)
	}
	pub := s.Publisher()
	if _, err := pub.Publish([]byte("amq.topic"), []byte("app.1"), nil, &msg.Envelope{}, nil); err != nil {
		t.Error(err)
	}
	if err := b.ClearPermission("/", "app"); err != nil {
		t.Fatal(err)
	}
	_, err = pub.Publish([]byte("amq.topic"), []byte("app.1"), nil, &msg.Envelope{}, nil)
	refused(t, "publish", err, "write access to exchange 'amq.topic'")
	_, err = pub.Begin([]byte("amq.topic"), [][]byte{[]byte("app.1")}, nil, 1<<30, false)
	refused(t, "publish a large message", err, "write access to exchange 'amq.topic'")
	if err := b.ClearTopicPermission("/", "app", "amq.topic"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(Identity{ID: "2", VHost: "/", User: "app"}, &client{}); berr.ReasonOf(err) != berr.NotAllowed {
		t.Errorf("a user without rights opens a virtual host: %v", err)
	}
	if err := b.DeleteUser("app"); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteUser("app"); berr.ReasonOf(err) != berr.NotFound {
		t.Error(err)
	}
	if b.Authenticate("app", "secret", true) == nil {
		t.Error("a deleted user logs in")
	}
}

// checkRights checks what the account app of TestPermissions may do.
func checkRights(t *testing.T, b *Broker) {
	t.Helper()
	if b.Authenticate("app", "secret", false) != nil || b.Authenticate("app", "wrong", false) == nil || b.Authenticate("nobody", "secret", false) == nil {
		t.Error("authentication")
	}
	if b.Authenticate(guest, guest, true) != nil || b.Authenticate(guest, guest, false) == nil {
		t.Error("guest is for loopback")
	}
	s, err := b.Open(Identity{ID: "app", VHost: "/", User: "app"}, &client{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.DeclareQueue(QueueSpec{Name: "app-q", Durable: true}); err != nil {
		t.Error(err)
	}
	_, err = s.DeclareQueue(QueueSpec{Name: "other"})
	refused(t, "declare", err, "configure access to queue 'other' in vhost '/' refused for user 'app'")
	_, err = s.DeclareExchange(ExchangeSpec{Name: "app-x", Type: "direct", Alternate: "amq.fanout"})
	refused(t, "alternate", err, "read access to exchange 'app-x'")
	refused(t, "bind", s.Bind(BindingSpec{Source: "amq.direct", Destination: "app-q", Kind: route.ToQueue}), "read access to exchange 'amq.direct'")
	refused(t, "bind topic", s.Bind(BindingSpec{Source: "amq.topic", Destination: "app-q", Kind: route.ToQueue, Key: "x"}), "read access to topic 'x' in exchange 'amq.topic' in vhost '/' refused for user 'app'")
	if err := s.Bind(BindingSpec{Source: "amq.topic", Destination: "app-q", Kind: route.ToQueue, Key: "news.#"}); err != nil {
		t.Error(err)
	}
	_, err = s.PurgeQueue("app-other")
	refused(t, "purge", err, "read access to queue 'app-other'")
	_, err = s.DeleteQueue("other", false, false)
	refused(t, "delete", err, "configure access to queue 'other'")
	pub := s.Publisher()
	_, err = pub.Publish(nil, []byte("app-q"), nil, &msg.Envelope{}, nil)
	refused(t, "publish", err, "write access to exchange 'amq.default'")
	_, err = pub.Publish([]byte("amq.topic"), []byte("app.1"), nil, &msg.Envelope{}, nil)
	if err != nil {
		t.Error(err)
	}
	_, err = pub.Publish([]byte("amq.topic"), []byte("other"), nil, &msg.Envelope{}, nil)
	refused(t, "topic", err, "write access to topic 'other' in exchange 'amq.topic'")
	pub.Flush()
}

// What can't be used is refused before it is stored.
func TestAccountsRefused(t *testing.T) {
	b := openOn(t, vfs.NewMem())
	defer func() { _ = b.Close() }()
	if !b.OnlyDefaultAccount() {
		t.Error("the first start made another account than guest")
	}
	for what, err := range map[string]error{
		"hash":       b.PutUser(NewUser{Name: "u", PasswordHash: "x"}),
		"algorithm":  b.PutUser(NewUser{Name: "u", Hashing: "rot13"}),
		"name":       b.PutUser(NewUser{Password: "x"}),
		"expression": b.SetPermission("/", guest, access.Permission{Configure: "("}),
		"topic":      b.SetTopicPermission("/", guest, access.TopicPermission{Read: "("}),
		"user":       b.SetPermission("/", "nobody", access.Permission{}),
		"vhost":      b.SetPermission("nowhere", guest, access.Permission{}),
	} {
		if err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if err := b.PutUser(NewUser{Name: guest, Password: "better"}); err != nil {
		t.Fatal(err)
	}
	if b.OnlyDefaultAccount() {
		t.Error("guest with a password of its own is the default account")
	}
	if len(b.Users()) != 1 {
		t.Error("users", b.Users())
	}
}
