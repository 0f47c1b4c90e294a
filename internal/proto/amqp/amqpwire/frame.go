package amqpwire

import (
	"encoding/binary"
	"fmt"
	"math"
)

// FrameType is the first octet of a frame.
type FrameType uint8

// The frame types (specification section 4.2.3).
const (
	FrameMethod    FrameType = 1
	FrameHeader    FrameType = 2
	FrameBody      FrameType = 3
	FrameHeartbeat FrameType = 8
)

const (
	// FrameEnd is the octet behind every payload.
	FrameEnd = 0xCE
	// FrameHeaderSize is the size of type, channel and payload size, in bytes.
	FrameHeaderSize = 7
	// FrameOverhead is what a frame adds to its payload, in bytes. Frame-max
	// limits the sum.
	FrameOverhead = FrameHeaderSize + 1
	// FrameMinSize is the smallest frame-max that may be negotiated, in bytes.
	FrameMinSize = 4096
)

// Frame is one frame. Payload is a view.
type Frame struct {
	Type    FrameType
	Channel uint16
	Payload []byte
}

// ParseFrame reads the first frame of b and returns it with its size on the
// wire. The payload is a view of b. n == 0 with a nil error means that b does
// not hold the whole frame yet.
//
// frameMax is the negotiated limit of a whole frame in bytes; with 0 there is
// no limit but that of the size field, and the caller has to bound what it
// buffers. Like RabbitMQ it tolerates payloads of up to frameMax bytes, as
// some clients forget the overhead. Wrong types and sizes are found as soon as
// the seven octets in front of the payload are there. Heartbeats with a payload
// or on a channel are refused.
func ParseFrame(b []byte, frameMax uint32) (f Frame, n int, err error) {
	if len(b) < FrameHeaderSize {
		if len(b) > 0 && !validFrameType(FrameType(b[0])) {
			return Frame{}, 0, frameError(FrameType(b[0]), nil, "unknown_frame")
		}
		return Frame{}, 0, nil
	}
	f.Type = FrameType(b[0])
	f.Channel = binary.BigEndian.Uint16(b[1:])
	size := binary.BigEndian.Uint32(b[3:])
	if !validFrameType(f.Type) || f.Type == FrameHeartbeat || frameMax != 0 && size > frameMax {
		if err := checkFrameHeader(f, size, frameMax); err != nil {
			return Frame{}, 0, err
		}
	}
	end := uint64(FrameHeaderSize) + uint64(size)
	if uint64(len(b)) <= end {
		return Frame{}, 0, nil
	}
	f.Payload = b[FrameHeaderSize:end:end]
	if b[end] != FrameEnd {
		return Frame{}, 0, frameError(f.Type, f.Payload, fmt.Sprintf("{invalid_frame_end_marker,%d}", b[end]))
	}
	return f, int(end) + 1, nil
}

// FrameSize returns the size on the wire of the first frame of b, in bytes,
// once its first [FrameHeaderSize] bytes are there; else 0. It checks nothing:
// it tells a reader, after [ParseFrame] asked for more, how much more.
func FrameSize(b []byte) uint64 {
	if len(b) < FrameHeaderSize {
		return 0
	}
	return FrameOverhead + uint64(binary.BigEndian.Uint32(b[3:]))
}

func validFrameType(t FrameType) bool {
	return t >= FrameMethod && t <= FrameBody || t == FrameHeartbeat
}

// checkFrameHeader judges the frame headers that ParseFrame finds suspicious.
func checkFrameHeader(f Frame, size, frameMax uint32) error {
	switch {
	case !validFrameType(f.Type):
		return frameError(f.Type, nil, "unknown_frame")
	case frameMax != 0 && size > frameMax:
		return frameError(f.Type, nil,
			fmt.Sprintf("{frame_too_large,%d,%d}", size, max(frameMax, FrameOverhead)-FrameOverhead))
	case f.Type == FrameHeartbeat && size != 0:
		return frameError(f.Type, nil, "unknown_frame")
	case f.Type == FrameHeartbeat && f.Channel != 0:
		return UnexpectedFrameError(f)
	}
	return nil
}

// AppendFrameHeader appends the seven octets in front of a payload of size
// bytes. The caller appends the payload and [FrameEnd]; it is meant for bodies
// that go to the network without being copied.
func AppendFrameHeader(dst []byte, t FrameType, channel uint16, size uint32) []byte {
	return append(dst, byte(t), byte(channel>>8), byte(channel),
		byte(size>>24), byte(size>>16), byte(size>>8), byte(size))
}

// AppendFrame appends a whole frame.
func AppendFrame(dst []byte, f Frame) []byte {
	dst = AppendFrameHeader(dst, f.Type, f.Channel, uint32(len(f.Payload)))
	dst = append(dst, f.Payload...)
	return append(dst, FrameEnd)
}

// AppendHeartbeat appends a heartbeat frame.
func AppendHeartbeat(dst []byte) []byte {
	return append(dst, byte(FrameHeartbeat), 0, 0, 0, 0, 0, 0, FrameEnd)
}

// beginFrame appends a frame header whose size endFrame fills in.
func beginFrame(dst []byte, t FrameType, channel uint16) ([]byte, int) {
	dst = AppendFrameHeader(dst, t, channel, 0)
	return dst, len(dst)
}

// endFrame completes the frame whose payload began at start.
func endFrame(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start-4:], uint32(len(dst)-start))
	return append(dst, FrameEnd)
}

// maxPayload is the largest payload that frameMax allows, in bytes.
func maxPayload(frameMax uint32) int {
	if frameMax == 0 {
		return math.MaxInt32
	}
	// A limit below the overhead cannot be negotiated; one byte per frame
	// keeps the loops finite all the same.
	return max(int(frameMax), FrameOverhead+1) - FrameOverhead
}

// ProtocolHeader is the four octets that follow "AMQP" at the start of a
// connection: protocol id, major, minor, revision.
type ProtocolHeader [4]byte

// The protocol headers in use. A peer that is refused gets the one that would
// have been accepted, then the connection is closed.
var (
	// Header091 is AMQP 0-9-1.
	Header091 = ProtocolHeader{0, 0, 9, 1}
	// Header09 is AMQP 0-9, sent by some old clients that speak 0-9-1.
	Header09 = ProtocolHeader{1, 1, 0, 9}
	// Header10 is AMQP 1.0 without SASL.
	Header10 = ProtocolHeader{0, 1, 0, 0}
	// Header10TLS is AMQP 1.0 that asks for TLS.
	Header10TLS = ProtocolHeader{2, 1, 0, 0}
	// Header10SASL is AMQP 1.0 with SASL.
	Header10SASL = ProtocolHeader{3, 1, 0, 0}
)

// ProtocolHeaderSize is the size of a protocol header on the wire, in bytes.
const ProtocolHeaderSize = 8

const protocolName = "AMQP"

// ParseProtocolHeader reads the header at the start of a connection. n is
// [ProtocolHeaderSize], or 0 with a nil error if more bytes are needed. Bytes
// that cannot become a header, such as an HTTP request or a TLS hello, are an
// error as soon as they differ.
func ParseProtocolHeader(b []byte) (h ProtocolHeader, n int, err error) {
	for i := range min(len(b), len(protocolName)) {
		if b[i] != protocolName[i] {
			return h, 0, &Error{
				Code:        FrameError,
				Explanation: "bad protocol header, " + payloadSnippet(b[:min(len(b), ProtocolHeaderSize)]),
			}
		}
	}
	if len(b) < ProtocolHeaderSize {
		return h, 0, nil
	}
	return ProtocolHeader(b[len(protocolName):ProtocolHeaderSize]), ProtocolHeaderSize, nil
}

// Is091 reports whether a peer that sent h is to be served as AMQP 0-9-1.
func (h ProtocolHeader) Is091() bool { return h == Header091 || h == Header09 }

// Append appends the header's eight octets.
func (h ProtocolHeader) Append(dst []byte) []byte {
	dst = append(dst, protocolName...)
	return append(dst, h[:]...)
}
