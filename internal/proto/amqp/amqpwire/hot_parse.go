package amqpwire

import "encoding/binary"

// This file has the parsers of what happens once per message. They take the
// arguments that SplitMethod returned and allocate nothing unless they fail.

// PublishView is basic.publish; the names are views.
type PublishView struct {
	Exchange, RoutingKey []byte
	Mandatory, Immediate bool
}

// ParsePublish reads the arguments of basic.publish as a view.
func ParsePublish(args []byte) (PublishView, error) {
	const ticket = 2
	if len(args) < ticket {
		return PublishView{}, truncatedArgs(IDBasicPublish)
	}
	exchange, rest, ok := cutShortstr(args[ticket:])
	if !ok {
		return PublishView{}, truncatedArgs(IDBasicPublish)
	}
	key, rest, ok := cutShortstr(rest)
	if !ok || len(rest) < 1 {
		return PublishView{}, truncatedArgs(IDBasicPublish)
	}
	if len(rest) > 1 {
		return PublishView{}, excessArgs(IDBasicPublish)
	}
	return PublishView{
		Exchange:   exchange,
		RoutingKey: key,
		Mandatory:  rest[0]&1 != 0,
		Immediate:  rest[0]&2 != 0,
	}, nil
}

// DeliverView is basic.deliver; the names are views.
type DeliverView struct {
	ConsumerTag          []byte
	DeliveryTag          uint64
	Redelivered          bool
	Exchange, RoutingKey []byte
}

// ParseDeliver reads the arguments of basic.deliver as a view.
func ParseDeliver(args []byte) (DeliverView, error) {
	tag, rest, ok := cutShortstr(args)
	if !ok || len(rest) < 9 {
		return DeliverView{}, truncatedArgs(IDBasicDeliver)
	}
	v := DeliverView{
		ConsumerTag: tag,
		DeliveryTag: binary.BigEndian.Uint64(rest),
		Redelivered: rest[8]&1 != 0,
	}
	if v.Exchange, rest, ok = cutShortstr(rest[9:]); !ok {
		return DeliverView{}, truncatedArgs(IDBasicDeliver)
	}
	if v.RoutingKey, rest, ok = cutShortstr(rest); !ok {
		return DeliverView{}, truncatedArgs(IDBasicDeliver)
	}
	if len(rest) > 0 {
		return DeliverView{}, excessArgs(IDBasicDeliver)
	}
	return v, nil
}

// ParseAck reads the arguments of basic.ack.
func ParseAck(args []byte) (BasicAck, error) {
	tag, bits, err := parseSettle(args, IDBasicAck)
	return BasicAck{DeliveryTag: tag, Multiple: bits&1 != 0}, err
}

// ParseNack reads the arguments of basic.nack.
func ParseNack(args []byte) (BasicNack, error) {
	tag, bits, err := parseSettle(args, IDBasicNack)
	return BasicNack{DeliveryTag: tag, Multiple: bits&1 != 0, Requeue: bits&2 != 0}, err
}

// ParseReject reads the arguments of basic.reject.
func ParseReject(args []byte) (BasicReject, error) {
	tag, bits, err := parseSettle(args, IDBasicReject)
	return BasicReject{DeliveryTag: tag, Requeue: bits&1 != 0}, err
}

// parseSettle reads a delivery tag and one octet of bits.
func parseSettle(args []byte, id MethodID) (tag uint64, bits uint8, err error) {
	switch {
	case len(args) < 9:
		return 0, 0, truncatedArgs(id)
	case len(args) > 9:
		return 0, 0, excessArgs(id)
	}
	return binary.BigEndian.Uint64(args), args[8], nil
}

// ContentHeader is the payload of a header frame.
type ContentHeader struct {
	Class    uint16
	BodySize uint64 // bytes
	// Props is a view of the property flags and values, not validated.
	Props RawProps
}

// contentHeaderSize is class, weight and body size, in bytes.
const contentHeaderSize = 2 + 2 + 8

// ParseContentHeader reads the payload of a header frame; Props is a view. A
// weight other than 0 is refused as RabbitMQ does. What the body may measure is
// for the caller to judge.
func ParseContentHeader(payload []byte) (ContentHeader, error) {
	if len(payload) < contentHeaderSize+propFlagsSize {
		return ContentHeader{}, frameError(FrameHeader, payload, "unknown_frame")
	}
	if weight := binary.BigEndian.Uint16(payload[2:]); weight != 0 {
		return ContentHeader{}, &Error{
			Code:        UnexpectedFrame,
			Explanation: "expected content header for class 60, got non content header frame instead",
		}
	}
	return ContentHeader{
		Class:    binary.BigEndian.Uint16(payload),
		BodySize: binary.BigEndian.Uint64(payload[4:]),
		Props:    RawProps(payload[contentHeaderSize:]),
	}, nil
}

// cutShortstr splits b behind the short string at its start.
func cutShortstr(b []byte) (s, rest []byte, ok bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return nil, nil, false
	}
	end := 1 + int(b[0])
	return b[1:end:end], b[end:], true
}

func truncatedArgs(id MethodID) error {
	return methodError(syntaxError("truncated arguments"), id)
}

func excessArgs(id MethodID) error {
	return methodError(syntaxError("bytes behind the last argument"), id)
}
