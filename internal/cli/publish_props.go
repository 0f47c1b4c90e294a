package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"
)

// propertyFlags are the flags for message properties.
type propertyFlags struct {
	headers    []string
	persistent bool
	timestamp  bool
	p          amqp.Publishing
}

func (f *propertyFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.headers, "header", "H", nil, "header NAME=TEXT, or NAME:=JSON for numbers, booleans and more (repeatable)")
	fl.BoolVar(&f.persistent, "persistent", true, "delivery mode 2")
	fl.Uint8Var(&f.p.Priority, "priority", 0, "priority")
	fl.StringVar(&f.p.ContentType, "content-type", "", "content type, as text/plain")
	fl.StringVar(&f.p.ContentEncoding, "content-encoding", "", "content encoding, as gzip")
	fl.StringVar(&f.p.CorrelationId, "correlation-id", "", "correlation id")
	fl.StringVar(&f.p.ReplyTo, "reply-to", "", "queue for replies")
	fl.StringVar(&f.p.Expiration, "expiration", "", "time to live in milliseconds")
	fl.StringVar(&f.p.MessageId, "message-id", "", "message id")
	fl.StringVar(&f.p.Type, "type", "", "type")
	fl.StringVar(&f.p.UserId, "user-id", "", "user id; must be the user of --url")
	fl.StringVar(&f.p.AppId, "app-id", "", "application id")
	fl.BoolVar(&f.timestamp, "timestamp", false, "set the timestamp property to now")
}

// publishing returns a message with the properties, but without a body.
func (f *propertyFlags) publishing() (amqp.Publishing, error) {
	p := f.p
	p.DeliveryMode = amqp.Transient
	if f.persistent {
		p.DeliveryMode = amqp.Persistent
	}
	if f.timestamp {
		p.Timestamp = time.Now()
	}
	for _, h := range f.headers {
		name, value, err := parseHeader(h)
		if err != nil {
			return p, err
		}
		if p.Headers == nil {
			p.Headers = amqp.Table{}
		}
		p.Headers[name] = value
	}
	if err := p.Headers.Validate(); err != nil {
		return p, fmt.Errorf("headers: %w", err)
	}
	return p, nil
}

// parseHeader reads NAME=TEXT or NAME:=JSON.
func parseHeader(s string) (name string, value any, err error) {
	name, text, ok := strings.Cut(s, "=")
	if name == "" || !ok {
		return "", nil, fmt.Errorf("header %q is not NAME=TEXT or NAME:=JSON", s)
	}
	name, isJSON := strings.CutSuffix(name, ":")
	if len(name) > 255 {
		return "", nil, fmt.Errorf("header name %.20q… is longer than 255 bytes", name)
	}
	if !isJSON {
		return name, text, nil
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		return "", nil, fmt.Errorf("header %s: %w", name, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return "", nil, fmt.Errorf("header %s: more than one JSON value", name)
	}
	value, err = toTable(value)
	if err != nil {
		return "", nil, fmt.Errorf("header %s: %w", name, err)
	}
	return name, value, nil
}

// toTable turns a JSON value into what AMQP tables hold: whole numbers become
// int64, others float64, objects tables.
func toTable(v any) (any, error) {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, nil
		}
		return v.Float64()
	case []any:
		for i := range v {
			one, err := toTable(v[i])
			if err != nil {
				return nil, err
			}
			v[i] = one
		}
	case map[string]any:
		t := amqp.Table{}
		for name, one := range v {
			one, err := toTable(one)
			if err != nil {
				return nil, err
			}
			t[name] = one
		}
		return t, nil
	}
	return v, nil
}
