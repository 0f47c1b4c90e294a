package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Frame types and constants of AMQP 0-9-1 section 4.2.3.
const (
	frameMethod    = 1
	frameHeader    = 2
	frameBody      = 3
	frameHeartbeat = 8
	frameEnd       = 0xCE

	frameOverhead = 8 // type, channel, size before the payload, end byte behind it
)

// method is a class id in the upper and a method id in the lower 16 bits.
type method uint32

const (
	connectionStart     method = 10<<16 | 10
	connectionStartOk   method = 10<<16 | 11
	connectionTune      method = 10<<16 | 30
	connectionTuneOk    method = 10<<16 | 31
	connectionOpen      method = 10<<16 | 40
	connectionOpenOk    method = 10<<16 | 41
	connectionClose     method = 10<<16 | 50
	connectionCloseOk   method = 10<<16 | 51
	connectionBlocked   method = 10<<16 | 60
	connectionUnblocked method = 10<<16 | 61
	channelOpen         method = 20<<16 | 10
	channelOpenOk       method = 20<<16 | 11
	channelClose        method = 20<<16 | 40
	channelCloseOk      method = 20<<16 | 41
	queueDeclare        method = 50<<16 | 10
	queueDeclareOk      method = 50<<16 | 11
	queuePurge          method = 50<<16 | 30
	queuePurgeOk        method = 50<<16 | 31
	queueDelete         method = 50<<16 | 40
	queueDeleteOk       method = 50<<16 | 41
	basicQos            method = 60<<16 | 10
	basicQosOk          method = 60<<16 | 11
	basicConsume        method = 60<<16 | 20
	basicConsumeOk      method = 60<<16 | 21
	basicCancel         method = 60<<16 | 30
	basicPublish        method = 60<<16 | 40
	basicReturn         method = 60<<16 | 50
	basicDeliver        method = 60<<16 | 60
	basicAck            method = 60<<16 | 80
	basicNack           method = 60<<16 | 120
	confirmSelect       method = 85<<16 | 10
	confirmSelectOk     method = 85<<16 | 11
)

// errMalformed is a frame or method that its length doesn't bear out.
var errMalformed = errors.New("malformed frame from the broker")

// encoder appends frames to b. It is for setting up; the hot path copies
// templates that it made.
type encoder struct {
	b     []byte
	start int // where the open frame begins
}

func (e *encoder) begin(typ byte, channel uint16) {
	e.start = len(e.b)
	e.b = append(e.b, typ, byte(channel>>8), byte(channel), 0, 0, 0, 0)
}

func (e *encoder) end() {
	binary.BigEndian.PutUint32(e.b[e.start+3:], uint32(len(e.b)-e.start-7))
	e.b = append(e.b, frameEnd)
}

func (e *encoder) u8(v byte)    { e.b = append(e.b, v) }
func (e *encoder) u16(v uint16) { e.b = binary.BigEndian.AppendUint16(e.b, v) }
func (e *encoder) u32(v uint32) { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = binary.BigEndian.AppendUint64(e.b, v) }

func (e *encoder) shortstr(s string) {
	e.b = append(e.b, byte(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) longstr(s string) {
	e.u32(uint32(len(s)))
	e.b = append(e.b, s...)
}

// field is one entry of a table: a string, a bool or a nested table.
type field struct {
	name  string
	value any
}

func (e *encoder) table(fields ...field) {
	at := len(e.b)
	e.u32(0)
	for _, f := range fields {
		e.shortstr(f.name)
		switch v := f.value.(type) {
		case string:
			e.u8('S')
			e.longstr(v)
		case bool:
			e.u8('t')
			e.u8(bit(v, 0))
		case []field:
			e.u8('F')
			e.table(v...)
		default:
			panic(fmt.Sprintf("bench: table field %s of type %T", f.name, v))
		}
	}
	binary.BigEndian.PutUint32(e.b[at:], uint32(len(e.b)-at-4))
}

// bit returns v as the n-th bit of an octet.
func bit(v bool, n uint) byte {
	if v {
		return 1 << n
	}
	return 0
}

// appendMethod appends a method frame whose arguments args writes.
func appendMethod(b []byte, channel uint16, m method, args func(*encoder)) []byte {
	e := encoder{b: b}
	e.begin(frameMethod, channel)
	e.u32(uint32(m))
	if args != nil {
		args(&e)
	}
	e.end()
	return e.b
}

// appendAck appends a basic.ack on channel 1.
func appendAck(b []byte, tag uint64, multiple bool) []byte {
	b = append(b, frameMethod, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80)
	b = binary.BigEndian.AppendUint64(b, tag)
	return append(b, bit(multiple, 0), frameEnd)
}

// template is the frames of one publish, ready but for the stamp.
type template struct {
	frames  []byte
	stampAt int // index of the body's first byte in frames
}

// newTemplate builds the publish of a body of len(fill) bytes to the default
// exchange, its stamp left to be patched in.
func newTemplate(queue string, fill filler, frameMax int, persistent, mandatory bool) template {
	e := encoder{b: appendMethod(nil, 1, basicPublish, func(e *encoder) {
		e.u16(0) // ticket
		e.shortstr("")
		e.shortstr(queue)
		e.u8(bit(mandatory, 0))
	})}
	e.begin(frameHeader, 1)
	e.u16(60) // class basic
	e.u16(0)  // weight
	e.u64(uint64(len(fill)))
	e.u16(1 << 12) // property flags: delivery-mode
	e.u8(1 + bit(persistent, 0))
	e.end()
	var t template
	for off := 0; off < len(fill); {
		e.begin(frameBody, 1)
		if off == 0 {
			t.stampAt = len(e.b)
		}
		n := min(len(fill)-off, frameMax-frameOverhead)
		e.b = append(e.b, fill[off:off+n]...)
		off += n
		e.end()
	}
	t.frames = e.b
	return t
}

// frame is one frame in a read buffer; payload aliases it.
type frame struct {
	typ     byte
	channel uint16
	payload []byte
}

// method returns the method of a method frame, 0 for a short one.
func (f frame) method() method {
	if len(f.payload) < 4 {
		return 0
	}
	return method(binary.BigEndian.Uint32(f.payload))
}

// parseFrame returns the frame that b begins with and its length. A length of 0
// means that b holds no whole frame yet. Payloads above sizeMax are refused.
func parseFrame(b []byte, sizeMax int) (frame, int, error) {
	if len(b) < frameOverhead {
		return frame{}, 0, nil
	}
	size := int(binary.BigEndian.Uint32(b[3:]))
	if size > sizeMax {
		return frame{}, 0, fmt.Errorf("%w: payload of %d bytes, at most %d were negotiated", errMalformed, size, sizeMax)
	}
	n := size + frameOverhead
	if len(b) < n {
		return frame{}, 0, nil
	}
	if b[n-1] != frameEnd {
		return frame{}, 0, fmt.Errorf("%w: no frame end", errMalformed)
	}
	return frame{b[0], binary.BigEndian.Uint16(b[1:]), b[7 : n-1]}, n, nil
}

// decoder reads arguments; bad is set once they run short.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if n < 0 || len(d.b) < n {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u8() byte {
	if v := d.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if v := d.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if v := d.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if v := d.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (d *decoder) shortstr() string { return string(d.take(int(d.u8()))) }
func (d *decoder) longstr() string  { return string(d.take(int(d.u32()))) }

// tableStrings reads a table and returns its string values by name. It stops at
// the first field of a type that servers don't put into their properties.
func (d *decoder) tableStrings() map[string]string {
	t := decoder{b: d.take(int(d.u32()))}
	m := map[string]string{}
	for len(t.b) > 0 && !t.bad {
		name := t.shortstr()
		switch t.u8() {
		case 'S':
			m[name] = t.longstr()
		case 'F':
			t.longstr()
		case 't', 'b', 'B':
			t.take(1)
		case 'I', 'i':
			t.take(4)
		case 'l', 'T':
			t.take(8)
		default:
			return m
		}
	}
	return m
}

// parseConfirm reads the arguments of basic.ack and basic.nack.
func parseConfirm(payload []byte) (tag uint64, multiple, ok bool) {
	if len(payload) < 13 {
		return 0, false, false
	}
	return binary.BigEndian.Uint64(payload[4:]), payload[12]&1 != 0, true
}

// delivery is what a consumer needs of a basic.deliver.
type delivery struct {
	consumerTag []byte // aliases the frame
	tag         uint64
	redelivered bool
}

// parseDeliver reads a basic.deliver as far as it is needed.
func parseDeliver(payload []byte) (delivery, bool) {
	if len(payload) < 5 {
		return delivery{}, false
	}
	at := 5 + int(payload[4])
	if len(payload) < at+9 {
		return delivery{}, false
	}
	return delivery{
		consumerTag: payload[5:at],
		tag:         binary.BigEndian.Uint64(payload[at:]),
		redelivered: payload[at+8]&1 != 0,
	}, true
}
