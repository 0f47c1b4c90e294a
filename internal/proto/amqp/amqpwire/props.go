package amqpwire

import "encoding/binary"

// PropFlags says which basic properties are present. Its bits are those of the
// property flags on the wire.
type PropFlags uint16

// The basic properties in wire order.
const (
	PropContentType     PropFlags = 1 << 15
	PropContentEncoding PropFlags = 1 << 14
	PropHeaders         PropFlags = 1 << 13
	PropDeliveryMode    PropFlags = 1 << 12
	PropPriority        PropFlags = 1 << 11
	PropCorrelationID   PropFlags = 1 << 10
	PropReplyTo         PropFlags = 1 << 9
	PropExpiration      PropFlags = 1 << 8
	PropMessageID       PropFlags = 1 << 7
	PropTimestamp       PropFlags = 1 << 6
	PropType            PropFlags = 1 << 5
	PropUserID          PropFlags = 1 << 4
	PropAppID           PropFlags = 1 << 3
	PropClusterID       PropFlags = 1 << 2 // reserved by 0-9-1, kept
)

// propUndefined are the bits without a property: one spare, and the one that
// announces another word of flags.
const propUndefined PropFlags = 3

// propFlagsSize is the size of the flags, in bytes.
const propFlagsSize = 2

// Delivery modes.
const (
	Transient  uint8 = 1
	Persistent uint8 = 2
)

// Properties are the basic properties as an owned value.
type Properties struct {
	// Flags tells which properties are present. When encoding, a property that
	// is not its zero value is present in any case.
	Flags           PropFlags
	ContentType     string
	ContentEncoding string
	Headers         RawTable
	DeliveryMode    uint8
	Priority        uint8
	CorrelationID   string
	ReplyTo         string
	Expiration      string // milliseconds in decimal
	MessageID       string
	Timestamp       uint64 // seconds since 1970; any value is legal
	Type            string
	UserID          string
	AppID           string
	ClusterID       string
}

// ParseProperties reads property flags and values with everything in them.
// Bytes behind the last property are refused.
func ParseProperties(raw []byte) (Properties, error) {
	if err := RawProps(raw).Validate(); err != nil {
		return Properties{}, err
	}
	p := Properties{Flags: RawProps(raw).Flags()}
	c := codec{buf: raw[propFlagsSize:]}
	p.visit(&c)
	if c.err != nil {
		return Properties{}, c.err
	}
	return p, nil
}

// Append appends property flags and values. It fails if a string is longer than
// 255 bytes or Headers is malformed; then dst is returned as it was.
func (p Properties) Append(dst []byte) ([]byte, error) {
	p.Flags = p.present()
	c := codec{writing: true, buf: binary.BigEndian.AppendUint16(dst, uint16(p.Flags))}
	p.visit(&c)
	if c.err != nil {
		return dst, c.err
	}
	return c.buf, nil
}

// visit moves the present properties through c, in wire order.
func (p *Properties) visit(c *codec) {
	str := func(flag PropFlags, v *string) {
		if p.Flags&flag != 0 {
			c.shortstr(v)
		}
	}
	str(PropContentType, &p.ContentType)
	str(PropContentEncoding, &p.ContentEncoding)
	if p.Flags&PropHeaders != 0 {
		c.table(&p.Headers)
	}
	if p.Flags&PropDeliveryMode != 0 {
		c.octet(&p.DeliveryMode)
	}
	if p.Flags&PropPriority != 0 {
		c.octet(&p.Priority)
	}
	str(PropCorrelationID, &p.CorrelationID)
	str(PropReplyTo, &p.ReplyTo)
	str(PropExpiration, &p.Expiration)
	str(PropMessageID, &p.MessageID)
	if p.Flags&PropTimestamp != 0 {
		c.longlong(&p.Timestamp)
	}
	str(PropType, &p.Type)
	str(PropUserID, &p.UserID)
	str(PropAppID, &p.AppID)
	str(PropClusterID, &p.ClusterID)
}

// present returns the flags of all properties to encode.
func (p *Properties) present() PropFlags {
	flags := p.Flags &^ propUndefined
	add := func(flag PropFlags, isSet bool) {
		if isSet {
			flags |= flag
		}
	}
	add(PropContentType, p.ContentType != "")
	add(PropContentEncoding, p.ContentEncoding != "")
	add(PropHeaders, len(p.Headers) > 0)
	add(PropDeliveryMode, p.DeliveryMode != 0)
	add(PropPriority, p.Priority != 0)
	add(PropCorrelationID, p.CorrelationID != "")
	add(PropReplyTo, p.ReplyTo != "")
	add(PropExpiration, p.Expiration != "")
	add(PropMessageID, p.MessageID != "")
	add(PropTimestamp, p.Timestamp != 0)
	add(PropType, p.Type != "")
	add(PropUserID, p.UserID != "")
	add(PropAppID, p.AppID != "")
	add(PropClusterID, p.ClusterID != "")
	return flags
}
