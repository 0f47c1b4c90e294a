package amqpwire

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// RawProps are property flags and values as they are in a header frame. The
// accessors walk over the properties in front of the one they want, allocate
// nothing and return views; in malformed bytes they find only what stands
// before the fault. Empty RawProps have no properties.
type RawProps []byte

// Flags returns which properties are present.
func (r RawProps) Flags() PropFlags {
	if len(r) < propFlagsSize {
		return 0
	}
	return PropFlags(binary.BigEndian.Uint16(r))
}

// Validate checks flags and values with everything nested in the headers.
// Bytes behind the last property are refused, as are flags that stand for no
// property. It allocates nothing unless it fails.
func (r RawProps) Validate() error {
	if err := r.validate(); err != nil {
		return err
	}
	return nil
}

func (r RawProps) validate() *Error {
	if len(r) < propFlagsSize {
		return syntaxError("truncated properties")
	}
	flags := r.Flags()
	if flags&propUndefined != 0 {
		return syntaxError("undefined property flags")
	}
	at := propFlagsSize
	for flags != 0 {
		flag := highest(flags)
		flags &^= flag
		next := r.skip(at, flag)
		if next < 0 {
			return syntaxError("truncated properties")
		}
		if flag == PropHeaders {
			if err := validateTable(r[at+4:next], 1); err != nil {
				return err
			}
		}
		at = next
	}
	if at != len(r) {
		return syntaxError("bytes behind the last property")
	}
	return nil
}

// highest returns the highest bit of flags, which is the first property.
func highest(flags PropFlags) PropFlags { return 1 << (bits.Len16(uint16(flags)) - 1) }

// skip returns the offset behind the property flag that starts at offset at, or
// -1 if it is truncated.
func (r RawProps) skip(at int, flag PropFlags) int {
	left := len(r) - at
	size := 0
	switch flag {
	case PropDeliveryMode, PropPriority:
		size = 1
	case PropTimestamp:
		size = 8
	case PropHeaders:
		if left < 4 {
			return -1
		}
		n := uint64(binary.BigEndian.Uint32(r[at:]))
		if n > uint64(left-4) {
			return -1
		}
		size = 4 + int(n)
	default:
		if left < 1 {
			return -1
		}
		size = 1 + int(r[at])
	}
	if size > left {
		return -1
	}
	return at + size
}

// find returns where the property flag is, or where it would be (then
// start == end). ok is false if the bytes in front of it are malformed.
func (r RawProps) find(flag PropFlags) (start, end int, ok bool) {
	at := propFlagsSize
	flags := r.Flags()
	for before := flags &^ (flag<<1 - 1); before != 0; {
		f := highest(before)
		before &^= f
		if at = r.skip(at, f); at < 0 {
			return 0, 0, false
		}
	}
	if flags&flag == 0 {
		return at, at, len(r) >= propFlagsSize
	}
	end = r.skip(at, flag)
	return at, end, end >= 0
}

// get returns the encoded value of a property, nil if it is not there.
func (r RawProps) get(flag PropFlags) []byte {
	if r.Flags()&flag == 0 {
		return nil
	}
	start, end, ok := r.find(flag)
	if !ok {
		return nil
	}
	return r[start:end:end]
}

func (r RawProps) octet(flag PropFlags) (uint8, bool) {
	if v := r.get(flag); v != nil {
		return v[0], true
	}
	return 0, false
}

func (r RawProps) str(flag PropFlags) ([]byte, bool) {
	if v := r.get(flag); v != nil {
		return v[1:], true
	}
	return nil, false
}

// ContentType returns the content-type.
func (r RawProps) ContentType() ([]byte, bool) { return r.str(PropContentType) }

// ContentEncoding returns the content-encoding.
func (r RawProps) ContentEncoding() ([]byte, bool) { return r.str(PropContentEncoding) }

// Headers returns the headers.
func (r RawProps) Headers() (RawTable, bool) {
	if v := r.get(PropHeaders); v != nil {
		return RawTable(v[4:]), true
	}
	return nil, false
}

// DeliveryMode returns the delivery-mode: [Transient], [Persistent] or what the
// client sent.
func (r RawProps) DeliveryMode() (uint8, bool) { return r.octet(PropDeliveryMode) }

// Priority returns the priority.
func (r RawProps) Priority() (uint8, bool) { return r.octet(PropPriority) }

// CorrelationID returns the correlation-id.
func (r RawProps) CorrelationID() ([]byte, bool) { return r.str(PropCorrelationID) }

// ReplyTo returns the reply-to.
func (r RawProps) ReplyTo() ([]byte, bool) { return r.str(PropReplyTo) }

// Expiration returns the expiration, milliseconds in decimal if the client is
// right.
func (r RawProps) Expiration() ([]byte, bool) { return r.str(PropExpiration) }

// MessageID returns the message-id.
func (r RawProps) MessageID() ([]byte, bool) { return r.str(PropMessageID) }

// Timestamp returns the timestamp, in seconds since 1970 if the client is
// right.
func (r RawProps) Timestamp() (uint64, bool) {
	if v := r.get(PropTimestamp); v != nil {
		return binary.BigEndian.Uint64(v), true
	}
	return 0, false
}

// Type returns the type.
func (r RawProps) Type() ([]byte, bool) { return r.str(PropType) }

// UserID returns the user-id.
func (r RawProps) UserID() ([]byte, bool) { return r.str(PropUserID) }

// AppID returns the app-id.
func (r RawProps) AppID() ([]byte, bool) { return r.str(PropAppID) }

// The functions below rewrite: they append flags and values to dst, with a
// change, and fail if raw is malformed where they have to read it; then dst is
// returned as it was. They allocate nothing beyond the growth of dst.

// AppendPropsWithHeader appends raw with the header key set to value, in place
// of all fields of that name. A set field stands last.
func AppendPropsWithHeader(dst []byte, raw RawProps, key string, value Value) ([]byte, error) {
	field := [1]Field{{key, value}}
	return appendPropsHeaders(dst, raw, field[:], "", false)
}

// AppendPropsWithHeaders is [AppendPropsWithHeader] for several headers, whose
// keys must differ.
func AppendPropsWithHeaders(dst []byte, raw RawProps, set []Field) ([]byte, error) {
	return appendPropsHeaders(dst, raw, set, "", false)
}

// AppendPropsWithoutHeader appends raw without the header key.
func AppendPropsWithoutHeader(dst []byte, raw RawProps, key string) ([]byte, error) {
	return appendPropsHeaders(dst, raw, nil, key, true)
}

// AppendPropsWithTable appends raw with all headers replaced by the raw table.
func AppendPropsWithTable(dst []byte, raw RawProps, table RawTable) ([]byte, error) {
	out, end, ok := beginRewrite(dst, raw, PropHeaders, true)
	if !ok {
		return dst, syntaxError("truncated properties")
	}
	if uint64(len(table)) > math.MaxUint32 {
		return dst, syntaxError("field table of more than 4 GiB")
	}
	out = binary.BigEndian.AppendUint32(out, uint32(len(table)))
	out = append(out, table...)
	return appendTail(out, raw, end), nil
}

// AppendPropsWithString appends raw with a property that is a short string set
// to value: any but headers, delivery-mode, priority and timestamp, which are
// refused. A value longer than 255 bytes is refused too.
func AppendPropsWithString(dst []byte, raw RawProps, flag PropFlags, value string) ([]byte, error) {
	const others = PropHeaders | PropDeliveryMode | PropPriority | PropTimestamp | propUndefined
	if bits.OnesCount16(uint16(flag)) != 1 || flag&others != 0 {
		return dst, syntaxError("property is no short string")
	}
	if len(value) > MaxShortString {
		return dst, syntaxError("short string of more than 255 bytes")
	}
	out, end, ok := beginRewrite(dst, raw, flag, true)
	if !ok {
		return dst, syntaxError("truncated properties")
	}
	out = appendShort(out, value)
	return appendTail(out, raw, end), nil
}

// AppendPropsWithout appends raw without one property.
func AppendPropsWithout(dst []byte, raw RawProps, flag PropFlags) ([]byte, error) {
	out, end, ok := beginRewrite(dst, raw, flag, false)
	if !ok {
		return dst, syntaxError("truncated properties")
	}
	return appendTail(out, raw, end), nil
}

func appendPropsHeaders(dst []byte, raw RawProps, set []Field, drop string, dropping bool) ([]byte, error) {
	headers, had := raw.Headers()
	out, end, ok := beginRewrite(dst, raw, PropHeaders, had || !dropping)
	if !ok {
		return dst, syntaxError("truncated properties")
	}
	if had || !dropping {
		var start int
		var err *Error
		out, start = beginSized(out)
		if out, err = appendTableWith(out, headers, set, drop, dropping); err != nil {
			return dst, err
		}
		out = endSized(out, start)
	}
	return appendTail(out, raw, end), nil
}

// beginRewrite appends the flags, with flag set or cleared, and the properties
// in front of it. end is where raw goes on behind the property.
func beginRewrite(dst []byte, raw RawProps, flag PropFlags, present bool) (out []byte, end int, ok bool) {
	if len(raw) == 0 {
		raw = RawProps{0, 0}
	}
	start, end, ok := raw.find(flag)
	if !ok {
		return dst, 0, false
	}
	flags := raw.Flags() &^ flag
	if present {
		flags |= flag
	}
	out = binary.BigEndian.AppendUint16(dst, uint16(flags))
	return append(out, raw[propFlagsSize:start]...), end, true
}

// appendTail appends what stands behind offset end in raw, which may be empty.
func appendTail(out []byte, raw RawProps, end int) []byte {
	return append(out, raw[min(end, len(raw)):]...)
}
