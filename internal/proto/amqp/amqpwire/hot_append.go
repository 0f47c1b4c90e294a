package amqpwire

import "encoding/binary"

// This file has the encoders of what happens once per message. They allocate
// nothing beyond the growth of dst and cannot fail: names longer than 255
// bytes, which other protocols allow, are cut.
//
// A content is method frame, header frame and body frames. Each of them has a
// Head form without the body frames, for bodies that are streamed in pieces
// with AppendBodyFrames. The header frame holds all properties whatever
// frame-max is, as the protocol cannot split it.

// name is a short string that the caller has as a string or as bytes.
type name interface{ ~string | ~[]byte }

// AppendDeliver appends basic.deliver with its whole content, in body frames
// of at most frameMax bytes (0: one frame). props are property flags and
// values as they came.
func AppendDeliver[N name](dst []byte, channel uint16, consumerTag string, deliveryTag uint64, redelivered bool,
	exchange, routingKey N, props RawProps, body []byte, frameMax uint32,
) []byte {
	dst = AppendDeliverHead(dst, channel, consumerTag, deliveryTag, redelivered, exchange, routingKey, props, uint64(len(body)))
	return AppendBodyFrames(dst, channel, body, frameMax)
}

// AppendDeliverHead appends the method and header frames of a delivery whose
// body of bodySize bytes follows by [AppendBodyFrames].
func AppendDeliverHead[N name](dst []byte, channel uint16, consumerTag string, deliveryTag uint64, redelivered bool,
	exchange, routingKey N, props RawProps, bodySize uint64,
) []byte {
	dst, start := beginMethod(dst, channel, IDBasicDeliver)
	dst = appendShort(dst, consumerTag)
	dst = binary.BigEndian.AppendUint64(dst, deliveryTag)
	dst = append(dst, bit(redelivered))
	dst = appendShort(dst, exchange)
	dst = appendShort(dst, routingKey)
	dst = endFrame(dst, start)
	return AppendContentHeader(dst, channel, props, bodySize)
}

// AppendGetOk appends basic.get-ok with its whole content. messageCount is the
// number of ready messages left.
func AppendGetOk[N name](dst []byte, channel uint16, deliveryTag uint64, redelivered bool,
	exchange, routingKey N, messageCount uint32, props RawProps, body []byte, frameMax uint32,
) []byte {
	dst = AppendGetOkHead(dst, channel, deliveryTag, redelivered, exchange, routingKey, messageCount, props, uint64(len(body)))
	return AppendBodyFrames(dst, channel, body, frameMax)
}

// AppendGetOkHead appends the method and header frames of basic.get-ok.
func AppendGetOkHead[N name](dst []byte, channel uint16, deliveryTag uint64, redelivered bool,
	exchange, routingKey N, messageCount uint32, props RawProps, bodySize uint64,
) []byte {
	dst, start := beginMethod(dst, channel, IDBasicGetOk)
	dst = binary.BigEndian.AppendUint64(dst, deliveryTag)
	dst = append(dst, bit(redelivered))
	dst = appendShort(dst, exchange)
	dst = appendShort(dst, routingKey)
	dst = binary.BigEndian.AppendUint32(dst, messageCount)
	dst = endFrame(dst, start)
	return AppendContentHeader(dst, channel, props, bodySize)
}

// AppendReturn appends basic.return with its whole content. RabbitMQ's text
// for [NoRoute] is "NO_ROUTE".
func AppendReturn[N name](dst []byte, channel uint16, code ReplyCode, text string,
	exchange, routingKey N, props RawProps, body []byte, frameMax uint32,
) []byte {
	dst = AppendReturnHead(dst, channel, code, text, exchange, routingKey, props, uint64(len(body)))
	return AppendBodyFrames(dst, channel, body, frameMax)
}

// AppendReturnHead appends the method and header frames of basic.return.
func AppendReturnHead[N name](dst []byte, channel uint16, code ReplyCode, text string,
	exchange, routingKey N, props RawProps, bodySize uint64,
) []byte {
	dst, start := beginMethod(dst, channel, IDBasicReturn)
	dst = binary.BigEndian.AppendUint16(dst, uint16(code))
	dst = appendShort(dst, text)
	dst = appendShort(dst, exchange)
	dst = appendShort(dst, routingKey)
	dst = endFrame(dst, start)
	return AppendContentHeader(dst, channel, props, bodySize)
}

// AppendPublish appends basic.publish with its whole content; for clients.
func AppendPublish[N name](dst []byte, channel uint16, exchange, routingKey N, mandatory, immediate bool,
	props RawProps, body []byte, frameMax uint32,
) []byte {
	dst, start := beginMethod(dst, channel, IDBasicPublish)
	dst = append(dst, 0, 0) // ticket
	dst = appendShort(dst, exchange)
	dst = appendShort(dst, routingKey)
	dst = append(dst, bit(mandatory)|bit(immediate)<<1)
	dst = endFrame(dst, start)
	dst = AppendContentHeader(dst, channel, props, uint64(len(body)))
	return AppendBodyFrames(dst, channel, body, frameMax)
}

// AppendContentHeader appends a header frame of class basic. Empty props stand
// for no properties.
func AppendContentHeader(dst []byte, channel uint16, props RawProps, bodySize uint64) []byte {
	dst, start := beginFrame(dst, FrameHeader, channel)
	dst = append(dst, byte(ClassBasic>>8), byte(ClassBasic), 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, bodySize)
	if len(props) == 0 {
		dst = append(dst, 0, 0)
	}
	dst = append(dst, props...)
	return endFrame(dst, start)
}

// AppendBodyFrames appends a body, or a piece of one, in frames of at most
// frameMax bytes each (0: one frame). An empty body has no frame.
func AppendBodyFrames(dst []byte, channel uint16, body []byte, frameMax uint32) []byte {
	limit := maxPayload(frameMax)
	for len(body) > 0 {
		piece := body[:min(limit, len(body))]
		body = body[len(piece):]
		dst = AppendFrameHeader(dst, FrameBody, channel, uint32(len(piece)))
		dst = append(dst, piece...)
		dst = append(dst, FrameEnd)
	}
	return dst
}

// BodyFramesSize returns how many bytes [AppendBodyFrames] appends for a body
// of bodySize bytes.
func BodyFramesSize(bodySize int, frameMax uint32) int {
	limit := maxPayload(frameMax)
	frames := bodySize / limit
	if bodySize%limit != 0 {
		frames++
	}
	return bodySize + frames*FrameOverhead
}

// MaxHeadSize is the most that the Head functions append besides the
// properties, in bytes: two frames, four short strings and the numbers.
const MaxHeadSize = FrameOverhead + 4 + 16 + 3*(1+MaxShortString) +
	FrameOverhead + contentHeaderSize + propFlagsSize

// AppendAck appends a basic.ack frame.
func AppendAck(dst []byte, channel uint16, deliveryTag uint64, multiple bool) []byte {
	return appendSettle(dst, channel, IDBasicAck, deliveryTag, bit(multiple))
}

// AppendNack appends a basic.nack frame. In confirms requeue is false.
func AppendNack(dst []byte, channel uint16, deliveryTag uint64, multiple, requeue bool) []byte {
	return appendSettle(dst, channel, IDBasicNack, deliveryTag, bit(multiple)|bit(requeue)<<1)
}

// AppendReject appends a basic.reject frame; for clients.
func AppendReject(dst []byte, channel uint16, deliveryTag uint64, requeue bool) []byte {
	return appendSettle(dst, channel, IDBasicReject, deliveryTag, bit(requeue))
}

func appendSettle(dst []byte, channel uint16, id MethodID, tag uint64, bits uint8) []byte {
	const size = 4 + 8 + 1
	dst = AppendFrameHeader(dst, FrameMethod, channel, size)
	dst = binary.BigEndian.AppendUint32(dst, uint32(id))
	dst = binary.BigEndian.AppendUint64(dst, tag)
	return append(dst, bits, FrameEnd)
}

func beginMethod(dst []byte, channel uint16, id MethodID) ([]byte, int) {
	dst, start := beginFrame(dst, FrameMethod, channel)
	return binary.BigEndian.AppendUint32(dst, uint32(id)), start
}

// appendShort appends a short string, cut to the 255 bytes it can hold.
func appendShort[N name](dst []byte, s N) []byte {
	if len(s) > MaxShortString {
		s = cutString(s, MaxShortString)
	}
	dst = append(dst, byte(len(s)))
	return append(dst, s...)
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
