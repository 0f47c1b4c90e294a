package amqp

import (
	"fmt"
	"strconv"

	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
	"github.com/sluicemq/sluice/internal/route"
)

// argKinds says where an argument is known.
type argKinds uint8

const (
	classicArg argKinds = 1 << iota
	quorumArg
	streamArg
	exchangeArg
	consumerArg

	queueArgs    = classicArg | quorumArg | streamArg
	settlingArgs = classicArg | quorumArg
)

// argFate says what happens to an argument that is known and valid.
type argFate uint8

const (
	argServed  argFate = iota // it means what it says
	argIgnored                // it is accepted and means nothing here
	argRefused                // 540 NOT_IMPLEMENTED
)

// argRule is a line of the table of arguments.
type argRule struct {
	name  string
	kinds argKinds
	fate  argFate
	// check says what is wrong with a value, as RabbitMQ's Erlang term; "" for nothing.
	check func(v amqpwire.Value, all amqpwire.RawTable) string
}

// argRules are all arguments that RabbitMQ knows. Others are accepted and ignored. The
// order is that in which differences are reported when a queue is declared again.
var argRules = []argRule{
	{amqpwire.QueueTypeArg, queueArgs, argServed, checkQueueType},
	{"x-expires", settlingArgs, argRefused, checkPositive},
	{"x-message-ttl", settlingArgs, argRefused, checkNotNegative},
	{"x-dead-letter-exchange", settlingArgs, argRefused, checkString},
	{"x-dead-letter-routing-key", settlingArgs, argRefused, checkDeadLetterKey},
	{"x-dead-letter-strategy", quorumArg, argRefused, oneOf("invalid_dlx_strategy", "at-most-once", "at-least-once")},
	{"x-max-length", settlingArgs, argRefused, checkNotNegative},
	{"x-max-length-bytes", queueArgs, argRefused, checkNotNegative},
	{"x-max-priority", classicArg, argRefused, checkMaxPriority},
	{"x-overflow", settlingArgs, argRefused, oneOf("invalid_overflow", "drop-head", "reject-publish", "reject-publish-dlx")},
	{"x-single-active-consumer", settlingArgs, argRefused, checkBool},
	{"x-delivery-limit", quorumArg, argRefused, checkInteger},
	{"x-consumer-timeout", quorumArg, argRefused, checkNotNegative},
	{"x-consumer-disconnected-timeout", quorumArg, argRefused, checkNotNegative},
	{"x-delayed-retry-type", quorumArg, argRefused, oneOf("invalid_delayed_retry_type", "disabled", "all", "failed", "returned")},
	{"x-delayed-retry-min", quorumArg, argRefused, checkNotNegative},
	{"x-delayed-retry-max", quorumArg, argRefused, checkNotNegative},

	{"x-queue-mode", classicArg, argIgnored, nil},
	{"x-queue-version", classicArg, argIgnored, nil},
	{"x-queue-master-locator", classicArg, argIgnored, nil},
	{"x-queue-leader-locator", queueArgs, argIgnored, nil},
	{"x-quorum-initial-group-size", quorumArg, argIgnored, nil},
	{"x-member-placement-tag", quorumArg, argIgnored, nil},

	{"x-max-age", streamArg, argRefused, nil},
	{"x-stream-max-segment-size-bytes", streamArg, argRefused, nil},
	{"x-stream-filter-size-bytes", streamArg, argRefused, nil},
	{"x-initial-cluster-size", streamArg, argRefused, nil},

	{alternateArg, exchangeArg, argServed, nil}, // checked by declareExchange

	{"x-priority", consumerArg, argRefused, checkInteger},
	{"x-credit", consumerArg, argRefused, nil},
	{"x-cancel-on-ha-failover", consumerArg, argIgnored, nil},
	{"x-stream-offset", consumerArg, argRefused, nil},
	{"x-stream-filter", consumerArg, argRefused, nil},
	{"x-stream-match-unfiltered", consumerArg, argRefused, nil},
}

const alternateArg = "alternate-exchange"

// findArg returns the rule of an argument in a place of one of the kinds.
func findArg(name string, kinds argKinds) *argRule {
	for i := range argRules {
		if r := &argRules[i]; r.name == name && r.kinds&kinds != 0 {
			return r
		}
	}
	return nil
}

// checkArgs judges the arguments for a thing of one kind. queueType is RabbitMQ's name
// for the type of a queue, object what the arguments are for.
func checkArgs(kind argKinds, queueType string, args amqpwire.RawTable, object string) error {
	if err := amqpwire.ValidateTable(args); err != nil {
		return err
	}
	among := kind
	if kind&queueArgs != 0 {
		among = queueArgs
	}
	var wrong, refused error
	err := amqpwire.RangeTable(args, func(key []byte, v amqpwire.Value) bool {
		r := findArg(string(key), among)
		switch {
		case r == nil:
		case r.kinds&kind == 0:
			wrong = preconditionFailed("invalid arg '%s' for %s of queue type %s", key, object, queueType)
		case r.check != nil:
			if why := r.check(v, args); why != "" {
				wrong = preconditionFailed("invalid arg '%s' for %s: %s", key, object, why)
			}
		}
		if r != nil && r.fate == argRefused && refused == nil {
			refused = notImplemented("argument '%s' of %s is not supported", key, object)
		}
		return wrong == nil
	})
	switch {
	case err != nil:
		return err
	case wrong != nil:
		return wrong
	}
	return refused
}

// comparedArgs returns the names of the arguments that have to be equivalent when
// something is declared again.
func comparedArgs(kind argKinds) (names []string) {
	for i := range argRules {
		if r := &argRules[i]; r.kinds&kind != 0 && r.fate != argIgnored {
			names = append(names, r.name)
		}
	}
	return names
}

// queueType returns the kind of queue that args ask for, its name in package route, and
// RabbitMQ's name for it. The kind of a type that is unknown is classic: checkArgs
// finds it.
func queueType(args amqpwire.RawTable) (kind argKinds, name, rabbit string) {
	v, _ := amqpwire.LookupTable(args, amqpwire.QueueTypeArg)
	b, _ := v.Bytes()
	switch string(b) {
	case route.Quorum:
		return quorumArg, route.Quorum, "rabbit_quorum_queue"
	case "stream":
		return streamArg, "stream", "rabbit_stream_queue"
	}
	return classicArg, route.Classic, "rabbit_classic_queue"
}

func checkQueueType(v amqpwire.Value, _ amqpwire.RawTable) string {
	b, ok := v.Bytes()
	if !ok || v.Type() != amqpwire.FieldString {
		return unacceptable(v)
	}
	switch string(b) {
	case route.Classic, route.Quorum, "stream":
		return ""
	}
	return fmt.Sprintf(`"unsupported queue type '%s'"`, b)
}

func unacceptable(v amqpwire.Value) string { return "{unacceptable_type," + v.Type().String() + "}" }

// integer returns the value of v, or what is wrong with it.
func integer(v amqpwire.Value) (n int64, why string) {
	n, ok := v.Int64()
	if !ok || v.Type() == amqpwire.FieldTimestamp {
		return 0, `"expected integer, got ` + v.Type().String() + `"`
	}
	return n, ""
}

func checkInteger(v amqpwire.Value, _ amqpwire.RawTable) string {
	_, why := integer(v)
	return why
}

func checkNotNegative(v amqpwire.Value, _ amqpwire.RawTable) string {
	n, why := integer(v)
	if why == "" && n < 0 {
		return "{value_negative," + strconv.FormatInt(n, 10) + "}"
	}
	return why
}

func checkPositive(v amqpwire.Value, all amqpwire.RawTable) string {
	if n, why := integer(v); why == "" && n == 0 {
		return "{value_zero,0}"
	}
	return checkNotNegative(v, all)
}

func checkMaxPriority(v amqpwire.Value, all amqpwire.RawTable) string {
	if n, _ := integer(v); n > 255 {
		return "{max_value_exceeded," + strconv.FormatInt(n, 10) + "}"
	}
	return checkNotNegative(v, all)
}

func checkString(v amqpwire.Value, _ amqpwire.RawTable) string {
	if v.Type() != amqpwire.FieldString {
		return unacceptable(v)
	}
	return ""
}

func checkBool(v amqpwire.Value, _ amqpwire.RawTable) string {
	if v.Type() != amqpwire.FieldBool {
		return unacceptable(v)
	}
	return ""
}

func checkDeadLetterKey(v amqpwire.Value, all amqpwire.RawTable) string {
	if _, ok := amqpwire.LookupTable(all, "x-dead-letter-exchange"); !ok && v.Type() == amqpwire.FieldString {
		return "routing_key_but_no_dlx_defined"
	}
	return checkString(v, all)
}

// oneOf returns the check for an argument that is one of a few words.
func oneOf(why string, words ...string) func(amqpwire.Value, amqpwire.RawTable) string {
	return func(v amqpwire.Value, all amqpwire.RawTable) string {
		if wrong := checkString(v, all); wrong != "" {
			return wrong
		}
		b, _ := v.Bytes()
		for _, w := range words {
			if string(b) == w {
				return ""
			}
		}
		return why
	}
}
