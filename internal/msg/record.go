package msg

import (
	"encoding/binary"
	"errors"
	"fmt"
)

type (
	// LogID names a log; it is never reused.
	LogID = uint64
	// Offset counts a lane's messages from 0.
	Offset = uint64
)

// Formats of a record's properties and body.
const (
	FormatAMQP091 uint8 = 1 // properties: flags and values of a content header frame
)

// Flags of a record.
const (
	FlagPersistent uint8 = 1 << iota // the publisher asked for durability
	FlagParts                        // the body lies in parts, to which the record refers
)

const recordHeaderLen = 40

// ErrCorrupt marks bytes that are not what this package encoded.
var ErrCorrupt = errors.New("msg: corrupt encoding")

func corrupt(what string, pos int) error {
	return fmt.Errorf("%w: %s at %d", ErrCorrupt, what, pos)
}

// Envelope is what a publisher's session knows of a message besides its body.
// The slices are copied when the record is encoded.
type Envelope struct {
	Format      uint8
	Flags       uint8
	Priority    uint8
	TimeMS      int64
	ExpiryMS    int64
	Exchange    []byte // at most 65,535 bytes
	Key         []byte // at most 65,535 bytes
	Annotations []byte
	Props       []byte
}

// RecordLen returns the encoded length of a record with this envelope and body size.
func (e *Envelope) RecordLen(body int) int {
	return recordHeaderLen + len(e.Exchange) + len(e.Key) + len(e.Annotations) + len(e.Props) + body
}

// AppendRecord appends the encoded record; the body is the concatenation of pieces.
func AppendRecord(dst []byte, e *Envelope, pieces ...[]byte) []byte {
	body := 0
	for _, p := range pieces {
		body += len(p)
	}
	dst = appendRecordHeader(dst, e, body)
	for _, p := range pieces {
		dst = append(dst, p...)
	}
	return dst
}

func appendRecordHeader(dst []byte, e *Envelope, body int) []byte {
	var h [recordHeaderLen]byte
	le := binary.LittleEndian
	le.PutUint32(h[0:], uint32(e.RecordLen(body)))
	h[4], h[5], h[6] = e.Format, e.Flags, e.Priority
	le.PutUint64(h[8:], uint64(e.TimeMS))
	le.PutUint64(h[16:], uint64(e.ExpiryMS))
	le.PutUint32(h[24:], uint32(len(e.Annotations)))
	le.PutUint16(h[28:], uint16(len(e.Exchange)))
	le.PutUint16(h[30:], uint16(len(e.Key)))
	le.PutUint32(h[32:], uint32(len(e.Props)))
	le.PutUint32(h[36:], uint32(body))
	dst = append(dst, h[:]...)
	dst = append(dst, e.Exchange...)
	dst = append(dst, e.Key...)
	dst = append(dst, e.Annotations...)
	return append(dst, e.Props...)
}

// Record is a view of an encoded record; its slices alias the input.
type Record struct {
	Envelope
	Body  []byte   // empty with FlagParts
	Parts PartsRef // where the body lies with FlagParts
	Raw   []byte   // the whole encoding
}

// BodyLen returns the length of the message's body, wherever that lies.
func (r *Record) BodyLen() uint64 {
	if r.Flags&FlagParts != 0 {
		return r.Parts.Bytes
	}
	return uint64(len(r.Body))
}

// ParseRecord reads the record at the start of b. The result aliases b; n is its
// encoded length. Lengths that contradict each other give ErrCorrupt.
func ParseRecord(b []byte) (r Record, n int, err error) {
	if len(b) < recordHeaderLen {
		return r, 0, corrupt("record header", len(b))
	}
	le := binary.LittleEndian
	total := int(le.Uint32(b))
	ann, ex, key := int(le.Uint32(b[24:])), int(le.Uint16(b[28:])), int(le.Uint16(b[30:]))
	props, body := int(le.Uint32(b[32:])), int(le.Uint32(b[36:]))
	if total > len(b) || recordHeaderLen+ann+ex+key+props+body != total {
		return r, 0, corrupt("record lengths", 0)
	}
	r.Format, r.Flags, r.Priority = b[4], b[5], b[6]
	r.TimeMS = int64(le.Uint64(b[8:]))
	r.ExpiryMS = int64(le.Uint64(b[16:]))
	p := recordHeaderLen
	cut := func(n int) []byte {
		s := b[p : p+n : p+n]
		p += n
		return s
	}
	r.Exchange, r.Key, r.Annotations, r.Props = cut(ex), cut(key), cut(ann), cut(props)
	r.Body = cut(body)
	if r.Flags&FlagParts != 0 {
		ok := false
		if r.Parts, ok = parsePartsRef(r.Body); !ok {
			return Record{}, 0, corrupt("reference to parts", p-body)
		}
		r.Body = nil
	}
	r.Raw = b[:total:total]
	return r, total, nil
}

// RecordSize returns the length of the record at the start of b without reading
// the rest of it, or 0 when b can't hold one.
func RecordSize(b []byte) int {
	if len(b) < recordHeaderLen {
		return 0
	}
	n := int(binary.LittleEndian.Uint32(b))
	if n < recordHeaderLen || n > len(b) {
		return 0
	}
	return n
}
