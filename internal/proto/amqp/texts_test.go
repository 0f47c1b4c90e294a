package amqp

import (
	"context"
	"strings"
	"testing"

	client "github.com/rabbitmq/amqp091-go"
)

const lockedQ = "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration."

// declareArgs declares queue q, durable, with arguments.
func declareArgs(args client.Table) func(*client.Channel) error {
	return func(ch *client.Channel) error {
		_, err := ch.QueueDeclare("q", true, false, false, false, args)
		return err
	}
}

// errorCases are what a client is told, word by word. A case is run on a channel of its
// own; durable queue "q" and topic exchange "x" are there if setup says so.
var errorCases = []struct {
	name  string
	setup bool
	do    func(ch *client.Channel) error
	code  int
	text  string
}{
	{"passive declare of a missing queue", false, func(ch *client.Channel) error {
		_, err := ch.QueueDeclarePassive("q", true, false, false, false, nil)
		return err
	}, 404, "NOT_FOUND - no queue 'q' in vhost '/'"},
	{"passive declare of a missing exchange", false, func(ch *client.Channel) error {
		return ch.ExchangeDeclarePassive("x", "topic", true, false, false, false, nil)
	}, 404, "NOT_FOUND - no exchange 'x' in vhost '/'"},
	{"queue differs in durable", true, func(ch *client.Channel) error {
		_, err := ch.QueueDeclare("q", false, false, false, false, nil)
		return err
	}, 406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current is 'true'"},
	{"queue differs in auto_delete", true, func(ch *client.Channel) error {
		_, err := ch.QueueDeclare("q", true, true, false, false, nil)
		return err
	}, 406, "PRECONDITION_FAILED - inequivalent arg 'auto_delete' for queue 'q' in vhost '/': received 'true' but current is 'false'"},
	{"queue differs in exclusive", true, func(ch *client.Channel) error {
		_, err := ch.QueueDeclare("q", true, false, true, false, nil)
		return err
	}, 405, lockedQ},
	{
		"queue differs in type", true, declareArgs(client.Table{"x-queue-type": "quorum"}), 406,
		"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received the value 'quorum' of type 'longstr' but current is none",
	},
	{
		"queue differs in an argument", true, declareArgs(client.Table{"x-message-ttl": int64(1000)}), 406,
		"PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received the value '1000' of type 'long' but current is none",
	},
	{"exchange differs in type", true, func(ch *client.Channel) error {
		return ch.ExchangeDeclare("x", "fanout", true, false, false, false, nil)
	}, 406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '/': received 'fanout' but current is 'topic'"},
	{"exchange differs in durable", true, func(ch *client.Channel) error {
		return ch.ExchangeDeclare("x", "topic", false, false, false, false, nil)
	}, 406, "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'x' in vhost '/': received 'false' but current is 'true'"},
	{"exchange differs in internal", true, func(ch *client.Channel) error {
		return ch.ExchangeDeclare("x", "topic", true, false, true, false, nil)
	}, 406, "PRECONDITION_FAILED - inequivalent arg 'internal' for exchange 'x' in vhost '/': received 'true' but current is 'false'"},
	{"exchange differs in alternate", true, func(ch *client.Channel) error {
		return ch.ExchangeDeclare("x", "topic", true, false, false, false, client.Table{"alternate-exchange": "amq.fanout"})
	}, 406, "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'x' in vhost '/': received the value 'amq.fanout' of type 'longstr' but current is none"},
	{"alternate of the wrong type", false, func(ch *client.Channel) error {
		return ch.ExchangeDeclare("x", "topic", true, false, false, false, client.Table{"alternate-exchange": int32(1)})
	}, 406, "PRECONDITION_FAILED - invalid type 'signedint' for arg 'alternate-exchange' in exchange 'x' in vhost '/'"},
	{"unknown exchange type", false, func(ch *client.Channel) error {
		return ch.ExchangeDeclare("x", "foo", true, false, false, false, nil)
	}, 406, "PRECONDITION_FAILED - unknown exchange type 'foo'"},
	{"reserved exchange name", false, func(ch *client.Channel) error {
		return ch.ExchangeDeclare("amq.foo", "direct", true, false, false, false, nil)
	}, 403, "ACCESS_REFUSED - exchange name 'amq.foo' contains reserved prefix 'amq.*'"},
	{"reserved queue name", false, func(ch *client.Channel) error {
		_, err := ch.QueueDeclare("amq.foo", true, false, false, false, nil)
		return err
	}, 403, "ACCESS_REFUSED - queue name 'amq.foo' contains reserved prefix 'amq.*'"},
	{"declare the default exchange", false, func(ch *client.Channel) error {
		return ch.ExchangeDeclare("", "direct", true, false, false, false, nil)
	}, 403, "ACCESS_REFUSED - operation not permitted on the default exchange"},
	{"delete the default exchange", false, func(ch *client.Channel) error {
		return ch.ExchangeDelete("", false, false)
	}, 403, "ACCESS_REFUSED - operation not permitted on the default exchange"},
	{"bind to the default exchange", true, func(ch *client.Channel) error {
		return ch.QueueBind("q", "k", "", false, nil)
	}, 403, "ACCESS_REFUSED - operation not permitted on the default exchange"},
	{"delete a system exchange", false, func(ch *client.Channel) error {
		return ch.ExchangeDelete("amq.direct", false, false)
	}, 403, "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed"},
	{"delete an exchange in use", true, func(ch *client.Channel) error {
		if err := ch.QueueBind("q", "k", "x", false, nil); err != nil {
			return err
		}
		return ch.ExchangeDelete("x", true, false)
	}, 406, "PRECONDITION_FAILED - exchange 'x' in vhost '/' in use"},
	{"bind a missing queue", true, func(ch *client.Channel) error {
		return ch.QueueBind("no", "k", "x", false, nil)
	}, 404, "NOT_FOUND - no queue 'no' in vhost '/'"},
	{"bind to a missing exchange", true, func(ch *client.Channel) error {
		return ch.QueueBind("q", "k", "no", false, nil)
	}, 404, "NOT_FOUND - no exchange 'no' in vhost '/'"},
	{"bad x-match", true, func(ch *client.Channel) error {
		return ch.QueueBind("q", "k", "amq.headers", false, client.Table{"x-match": "some"})
	}, 406, "PRECONDITION_FAILED - Invalid x-match field value <<\"some\">>; expected all, any, all-with-x, or any-with-x"},
	{"no queue declared", false, func(ch *client.Channel) error {
		_, err := ch.QueuePurge("", false)
		return err
	}, 404, "NOT_FOUND - no previously declared queue"},
	{"delete a queue that is not empty", true, func(ch *client.Channel) error {
		if err := ch.PublishWithContext(context.Background(), "", "q", false, false, client.Publishing{}); err != nil {
			return err
		}
		_, err := ch.QueueDelete("q", false, true, false)
		return err
	}, 406, "PRECONDITION_FAILED - queue 'q' in vhost '/' not empty"},
	{"delete a queue in use", true, func(ch *client.Channel) error {
		if _, err := ch.Consume("q", "", false, false, false, false, nil); err != nil {
			return err
		}
		_, err := ch.QueueDelete("q", true, false, false)
		return err
	}, 406, "PRECONDITION_FAILED - queue 'q' in vhost '/' in use"},
	{"consume a missing queue", false, func(ch *client.Channel) error {
		_, err := ch.Consume("q", "", false, false, false, false, nil)
		return err
	}, 404, "NOT_FOUND - no queue 'q' in vhost '/'"},
	{"consume a queue in exclusive use", true, func(ch *client.Channel) error {
		if _, err := ch.Consume("q", "", false, true, false, false, nil); err != nil {
			return err
		}
		_, err := ch.Consume("q", "", false, false, false, false, nil)
		return err
	}, 403, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use"},
	{"get from a missing queue", false, func(ch *client.Channel) error {
		_, _, err := ch.Get("q", false)
		return err
	}, 404, "NOT_FOUND - no queue 'q' in vhost '/'"},
	{"consumer argument that isn't served", true, func(ch *client.Channel) error {
		_, err := ch.Consume("q", "", false, false, false, false, client.Table{"x-priority": int32(1)})
		return err
	}, 540, "NOT_IMPLEMENTED - argument 'x-priority' of queue 'q' in vhost '/' is not supported"},
	{"prefetch size", false, func(ch *client.Channel) error {
		return ch.Qos(1, 5, false)
	}, 540, "NOT_IMPLEMENTED - prefetch_size!=0 (5)"},
	{"recover without requeue", false, func(ch *client.Channel) error {
		return ch.Recover(false) //nolint:staticcheck // deprecated, not gone
	}, 540, "NOT_IMPLEMENTED - requeue=false"},
	{"flow", false, func(ch *client.Channel) error {
		return ch.Flow(false)
	}, 540, "NOT_IMPLEMENTED - active=false"},
	{"tx, then confirm", false, func(ch *client.Channel) error {
		if err := ch.Tx(); err != nil {
			return err
		}
		return ch.Confirm(false)
	}, 406, "PRECONDITION_FAILED - cannot switch from tx to confirm mode"},
	{"confirm, then tx", false, func(ch *client.Channel) error {
		if err := ch.Confirm(false); err != nil {
			return err
		}
		return ch.Tx()
	}, 406, "PRECONDITION_FAILED - cannot switch from confirm to tx mode"},
	{"commit without tx", false, (*client.Channel).TxCommit, 406, "PRECONDITION_FAILED - channel is not transactional"},
	{"rollback without tx", false, (*client.Channel).TxRollback, 406, "PRECONDITION_FAILED - channel is not transactional"},

	{
		"unknown queue type", false, declareArgs(client.Table{"x-queue-type": "foo"}), 406,
		`PRECONDITION_FAILED - invalid arg 'x-queue-type' for queue 'q' in vhost '/': "unsupported queue type 'foo'"`,
	},
	{
		"queue type that is no string", false, declareArgs(client.Table{"x-queue-type": int32(1)}), 406,
		"PRECONDITION_FAILED - invalid arg 'x-queue-type' for queue 'q' in vhost '/': {unacceptable_type,signedint}",
	},
	{
		"stream", false, declareArgs(client.Table{"x-queue-type": "stream"}), 540,
		"NOT_IMPLEMENTED - queue type 'stream' of queue 'q' in vhost '/' is not supported",
	},
	{
		"ttl that isn't served", false, declareArgs(client.Table{"x-message-ttl": int32(1)}), 540,
		"NOT_IMPLEMENTED - argument 'x-message-ttl' of queue 'q' in vhost '/' is not supported",
	},
	{
		"negative ttl", false, declareArgs(client.Table{"x-message-ttl": int32(-1)}), 406,
		"PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {value_negative,-1}",
	},
	{
		"ttl that is no number", false, declareArgs(client.Table{"x-message-ttl": "1"}), 406,
		`PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'q' in vhost '/': "expected integer, got longstr"`,
	},
	{
		"expires 0", false, declareArgs(client.Table{"x-expires": int32(0)}), 406,
		"PRECONDITION_FAILED - invalid arg 'x-expires' for queue 'q' in vhost '/': {value_zero,0}",
	},
	{
		"priority too high", false, declareArgs(client.Table{"x-max-priority": int32(256)}), 406,
		"PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/': {max_value_exceeded,256}",
	},
	{
		"dead-letter key alone", false, declareArgs(client.Table{"x-dead-letter-routing-key": "k"}), 406,
		"PRECONDITION_FAILED - invalid arg 'x-dead-letter-routing-key' for queue 'q' in vhost '/': routing_key_but_no_dlx_defined",
	},
	{
		"bad overflow", false, declareArgs(client.Table{"x-overflow": "x"}), 406,
		"PRECONDITION_FAILED - invalid arg 'x-overflow' for queue 'q' in vhost '/': invalid_overflow",
	},
	{
		"argument of another type", false, declareArgs(client.Table{"x-queue-type": "quorum", "x-max-priority": int32(5)}), 406,
		"PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/' of queue type rabbit_quorum_queue",
	},
	{"transient quorum queue", false, func(ch *client.Channel) error {
		_, err := ch.QueueDeclare("q", false, false, false, false, client.Table{"x-queue-type": "quorum"})
		return err
	}, 406, "PRECONDITION_FAILED - invalid property 'non-durable' for queue 'q' in vhost '/'"},
	{"exclusive quorum queue", false, func(ch *client.Channel) error {
		_, err := ch.QueueDeclare("q", true, false, true, false, client.Table{"x-queue-type": "quorum"})
		return err
	}, 406, "PRECONDITION_FAILED - invalid property 'exclusive-owner' for queue 'q' in vhost '/'"},
	{"quorum queue without a name", false, func(ch *client.Channel) error {
		_, err := ch.QueueDeclare("", true, false, false, false, client.Table{"x-queue-type": "quorum"})
		return err
	}, 406, "PRECONDITION_FAILED - Cannot declare a server-named queue for type rabbit_quorum_queue"},
}

func TestErrorTexts(t *testing.T) {
	r := newRig(t, Config{})
	for _, c := range errorCases {
		t.Run(c.name, func(t *testing.T) {
			setup := must(r.dial().Channel())(t)
			if c.setup {
				declare(t, setup, "q")
				ok(t, setup.ExchangeDeclare("x", "topic", true, false, false, false, nil))
			}
			defer func() {
				must(setup.QueueDelete("q", false, false, false))(t)
				ok(t, setup.ExchangeDelete("x", false, false))
			}()
			wantCode(t, c.do(must(r.dial().Channel())(t)), c.code, c.text)
		})
	}
}

// publishErrors are what a channel or connection closes with after a publish.
var publishErrors = []struct {
	name           string
	exchange, key  string
	immediate      bool
	msg            client.Publishing
	code           int
	text           string
	connectionDies bool
}{
	{"no exchange", "no", "k", false, client.Publishing{}, 404, "NOT_FOUND - no exchange 'no' in vhost '/'", false},
	{"internal exchange", "in", "k", false, client.Publishing{}, 403, "ACCESS_REFUSED - cannot publish to internal exchange 'in' in vhost '/'", false},
	{"immediate", "", "k", true, client.Publishing{}, 540, "NOT_IMPLEMENTED - immediate=true", true},
	{"user id", "", "k", false, client.Publishing{UserId: "a"}, 406, "PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was 'guest'", false},
	{"too large", "", "k", false, client.Publishing{Body: make([]byte, 200_001)}, 406, "PRECONDITION_FAILED - message size 200001 is larger than configured max size 200000", false},
	{"expiration", "", "k", false, client.Publishing{Expiration: "1000"}, 540, "NOT_IMPLEMENTED - property 'expiration' is not supported", true},
	{"expiration abc", "", "k", false, client.Publishing{Expiration: "abc"}, 406, "PRECONDITION_FAILED - invalid expiration 'abc': no_integer", false},
	{"expiration 1s", "", "k", false, client.Publishing{Expiration: "1s"}, 406, `PRECONDITION_FAILED - invalid expiration '1s': {leftover_string,"s"}`, false},
	{"expiration -1", "", "k", false, client.Publishing{Expiration: "-1"}, 406, "PRECONDITION_FAILED - invalid expiration '-1': {value_negative,-1}", false},
	{"CC", "", "k", false, client.Publishing{Headers: client.Table{"CC": "x"}}, 406, `PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,"CC",longstr}`, false},
}

func TestPublishErrorTexts(t *testing.T) {
	r := newRig(t, Config{MaxMessageBytes: 200_000})
	ok(t, r.channel().ExchangeDeclare("in", "direct", true, false, true, false, nil))
	for _, c := range publishErrors {
		t.Run(c.name, func(t *testing.T) {
			conn := r.dial()
			ch := must(conn.Channel())(t)
			closed := ch.NotifyClose(make(chan *client.Error, 1))
			ok(t, ch.PublishWithContext(context.Background(), c.exchange, c.key, false, c.immediate, c.msg))
			wantCode(t, receive(t, closed, "close"), c.code, c.text)
			other, err := conn.Channel()
			if dead := err != nil; dead != c.connectionDies {
				t.Fatalf("connection dead: %v", dead)
			}
			if err == nil {
				ok(t, other.Close())
			}
		})
	}
}

func TestUnknownDeliveryTags(t *testing.T) {
	r := newRig(t, Config{})
	first := r.channel()
	declare(t, first, "q")
	put(t, first, "", "q", "x")
	cases := []struct {
		name string
		do   func(ch *client.Channel, tag uint64) error
		text string
	}{
		{"twice", func(ch *client.Channel, tag uint64) error {
			if err := ch.Ack(tag, false); err != nil {
				return err
			}
			return ch.Ack(tag, false)
		}, "unknown delivery tag 1"},
		{"ack", func(ch *client.Channel, _ uint64) error { return ch.Ack(7, false) }, "unknown delivery tag 7"},
		{"multiple", func(ch *client.Channel, _ uint64) error { return ch.Ack(7, true) }, "unknown delivery tag 7"},
		{"zero", func(ch *client.Channel, _ uint64) error { return ch.Ack(0, false) }, "unknown delivery tag 0"},
		{"nack", func(ch *client.Channel, _ uint64) error { return ch.Nack(9, false, true) }, "unknown delivery tag 9"},
		{"reject", func(ch *client.Channel, _ uint64) error { return ch.Reject(9, true) }, "unknown delivery tag 9"},
		{"twice in a transaction", func(ch *client.Channel, tag uint64) error {
			if err := ch.Tx(); err != nil {
				return err
			}
			if err := ch.Ack(tag, false); err != nil {
				return err
			}
			return ch.Ack(tag, false)
		}, "unknown delivery tag 1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			must(first.QueuePurge("q", false))(t)
			put(t, first, "", "q", "x")
			ch := r.channel()
			closed := ch.NotifyClose(make(chan *client.Error, 1))
			d, found, err := ch.Get("q", false)
			for err == nil && !found {
				d, found, err = ch.Get("q", false)
			}
			ok(t, err)
			ok(t, c.do(ch, d.DeliveryTag))
			wantCode(t, receive(t, closed, "close"), 406, "PRECONDITION_FAILED - "+c.text)
		})
	}
}

func TestAckOfAllWhenThereIsNothing(t *testing.T) {
	ch := newRig(t, Config{}).channel()
	ok(t, ch.Ack(0, true))
	declare(t, ch, "q") // the channel lives
}

func TestExclusiveQueueOfAnotherConnection(t *testing.T) {
	r := newRig(t, Config{})
	must(r.channel().QueueDeclare("q", false, false, true, false, nil))(t)
	_, err := r.channel().QueueDeclare("q", false, false, true, false, nil)
	wantCode(t, err, 405, lockedQ)
	_, err = r.channel().Consume("q", "", false, false, false, false, nil)
	wantCode(t, err, 405, lockedQ)
}

func TestArgumentsThatAreIgnored(t *testing.T) {
	ch := newRig(t, Config{}).channel()
	args := client.Table{
		"x-queue-mode": "lazy", "x-queue-version": int32(2), "x-queue-master-locator": "min-masters",
		"x-queue-leader-locator": "balanced", "x-made-up": "y", "x-queue-type": "classic",
	}
	must(ch.QueueDeclare("q", true, false, false, false, args))(t)
	declare(t, ch, "q") // classic is what a queue without a type is
	must(ch.QueueDeclare("q", true, false, false, false, client.Table{"x-made-up": "z"}))(t)
	must(ch.QueueDeclare("qq", true, false, false, false, client.Table{"x-queue-type": "quorum", "x-quorum-initial-group-size": int32(3)}))(t)
	ok(t, ch.ExchangeDeclare("x", "topic", true, false, false, false, client.Table{"anything": true}))
	ok(t, ch.ExchangeDeclare("x", "topic", true, false, false, false, nil))
}

// Every argument stands in the table once per place, so that there is one answer.
func TestArgumentTable(t *testing.T) {
	for i, a := range argRules {
		if a.kinds == 0 {
			t.Errorf("%s is known nowhere", a.name)
		}
		if !strings.HasPrefix(a.name, "x-") && a.name != alternateArg {
			t.Errorf("odd name %s", a.name)
		}
		for _, b := range argRules[i+1:] {
			if a.name == b.name && a.kinds&b.kinds != 0 {
				t.Errorf("%s is there twice", a.name)
			}
		}
	}
}

func TestBadExpiration(t *testing.T) {
	for s, want := range map[string]string{
		"0": "", "10": "", "+5": "", "9223372036854775807": "",
		"": "no_integer", "-": "no_integer", "x": "no_integer", "\t1": "no_integer",
		"1x": `{leftover_string,"x"}`, "-1": "{value_negative,-1}", "99999999999999999999": "{value_too_large,99999999999999999999}",
	} {
		if got := badExpiration(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}
