package cli

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
)

// jsonMessage is a message as --json prints it. A body that is text comes as
// body, any other one in base64 as body_base64.
type jsonMessage struct {
	Exchange        string         `json:"exchange"`
	RoutingKey      string         `json:"routing_key"`
	Redelivered     bool           `json:"redelivered"`
	ContentType     string         `json:"content_type,omitempty"`
	ContentEncoding string         `json:"content_encoding,omitempty"`
	DeliveryMode    uint8          `json:"delivery_mode,omitempty"`
	Priority        uint8          `json:"priority,omitempty"`
	CorrelationID   string         `json:"correlation_id,omitempty"`
	ReplyTo         string         `json:"reply_to,omitempty"`
	Expiration      string         `json:"expiration,omitempty"`
	MessageID       string         `json:"message_id,omitempty"`
	Timestamp       *time.Time     `json:"timestamp,omitempty"`
	Type            string         `json:"type,omitempty"`
	UserID          string         `json:"user_id,omitempty"`
	AppID           string         `json:"app_id,omitempty"`
	Headers         map[string]any `json:"headers,omitempty"`
	Body            *string        `json:"body,omitempty"`
	BodyBase64      *string        `json:"body_base64,omitempty"`
}

// writeJSON prints a delivery as one line.
func writeJSON(w io.Writer, d *amqp.Delivery) error {
	m := jsonMessage{
		Exchange: d.Exchange, RoutingKey: d.RoutingKey, Redelivered: d.Redelivered,
		ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode,
		Priority: d.Priority, CorrelationID: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration,
		MessageID: d.MessageId, Type: d.Type, UserID: d.UserId, AppID: d.AppId,
	}
	if !d.Timestamp.IsZero() {
		utc := d.Timestamp.UTC()
		m.Timestamp = &utc
	}
	if len(d.Headers) > 0 {
		m.Headers = jsonTable(d.Headers)
	}
	if utf8.Valid(d.Body) {
		text := string(d.Body)
		m.Body = &text
	} else {
		text := base64.StdEncoding.EncodeToString(d.Body)
		m.BodyBase64 = &text
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(m)
}

func jsonTable(t amqp.Table) map[string]any {
	m := make(map[string]any, len(t))
	for name, v := range t {
		m[name] = jsonValue(v)
	}
	return m
}

// jsonValue turns a value of an AMQP table into what encoding/json shows well.
func jsonValue(v any) any {
	switch v := v.(type) {
	case amqp.Table:
		return jsonTable(v)
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = jsonValue(v[i])
		}
		return list
	case []byte:
		return string(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case amqp.Decimal:
		return json.Number(decimalText(v))
	}
	return v
}

// decimalText writes a decimal out; its value is Value / 10^Scale.
func decimalText(d amqp.Decimal) string {
	sign, value := "", int64(d.Value)
	if value < 0 {
		sign, value = "-", -value
	}
	digits := fmt.Sprintf("%0*d", int(d.Scale)+1, value)
	if d.Scale == 0 {
		return sign + digits
	}
	at := len(digits) - int(d.Scale)
	return sign + digits[:at] + "." + digits[at:]
}
