package engine

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/sluicemq/sluice/internal/msg"
)

func fullMessage() *Message {
	claims := []Claim{{Log: 1 << 63, Lane: 9, Seq: 7, Ranges: []msg.Range{{First: 0, Count: 3}, {First: 1 << 40, Count: 1}}}}
	return &Message{
		Kind: MsgReattach, From: 3<<32 | 1, Term: 9, Run: 2, Seq: 1, Consumer: 5, Messages: 3, Bytes: 1 << 40, Token: 8, Left: 2,
		Code: AttachInUse, Lane: 255, Redelivered: true, Attempts: 4, First: 1 << 50, Count: 17,
		Consumers: []Spec{
			{ID: 1, Log: 2, Prefetch: 100, NoAck: true, Attached: true, Bytes: true, Claims: claims},
			{ID: 2, Log: 3, Exclusive: true, Messages: true},
		},
		Claims: claims, Leaving: claims[:1], Returning: []Claim{{Log: 4}}, Records: []byte("records"),
	}
}

func TestMessageRoundTrip(t *testing.T) {
	for _, m := range []*Message{{}, fullMessage()} {
		got, err := ParseMessage(AppendMessage(nil, m))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v, %v; was %+v", got, err, m)
		}
	}
	b := AppendMessage(nil, &Message{Claims: fullMessage().Claims})
	for n := range b {
		if _, err := ParseMessage(b[:n]); err == nil {
			t.Errorf("the first %d of %d bytes are a message", n, len(b))
		}
	}
}

// FuzzParseMessage: what can be read can be written and read again, and is the same.
func FuzzParseMessage(f *testing.F) {
	f.Add(AppendMessage(nil, &Message{}))
	f.Add(AppendMessage(nil, fullMessage()))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(b)
		if err != nil {
			return
		}
		again := AppendMessage(nil, m)
		m2, err := ParseMessage(again)
		if err != nil || !bytes.Equal(again, AppendMessage(nil, m2)) {
			t.Fatalf("%v: %+v became %+v", err, m, m2)
		}
	})
}
