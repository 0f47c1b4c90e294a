package amqp

import (
	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

type contentState uint8

const (
	contentNone   contentState = iota
	contentHeader              // basic.publish was read, the header frame comes next
	contentBody                // body frames come next
)

// content is a message of which not all frames have come. Names, properties and body
// are views into the read buffer at first; what is left of them when the buffer is
// used again is copied (keep), so that a message that arrives whole is not.
//
// Memory for a body is got as it arrives, whatever size was announced. A large one goes
// to the broker as it arrives, so that never more than a part of it is here.
type content struct {
	state      contentState
	mandatory  bool
	kept       bool // names and properties are in own
	exchange   []byte
	key        []byte
	props      amqpwire.RawProps
	size, have uint64 // of the body, in bytes

	own    []byte
	chunks []*buf.Chunk // the body's beginning, copied
	fresh  [][]byte     // what follows, views
	listed bool         // in batch.fresh

	large   Large // takes the body; nil for one that is collected here
	counted int   // of batch.partial, for large
	refused error // why there is no large: the body is passed over
}

const (
	contentChunkMin = 4 << 10
	contentChunkMax = 1 << 20
	// contentsMax is what a connection's incomplete contents may take: of each channel
	// less than a large body, or a part of one.
	contentsMax = 64 << 20
)

// beginContent handles basic.publish.
func (c *conn) beginContent(ch *channel, p amqpwire.PublishView) error {
	if p.Immediate {
		return notImplemented("immediate=true")
	}
	ct := &ch.content
	ct.state, ct.kept, ct.mandatory = contentHeader, false, p.Mandatory
	ct.exchange, ct.key, ct.props = p.Exchange, p.RoutingKey, nil
	c.list(ch)
	return nil
}

// list notes that the content of ch has views into the read buffer.
func (c *conn) list(ch *channel) {
	if !ch.content.listed {
		ch.content.listed = true
		c.batch.fresh = append(c.batch.fresh, ch)
	}
}

// contentHeader handles a header frame.
func (c *conn) contentHeader(ch *channel, f amqpwire.Frame) error {
	ct := &ch.content
	switch ct.state {
	case contentNone:
		return fault(amqpwire.UnexpectedFrame, "expected method frame, got non method frame instead")
	case contentBody:
		return fault(amqpwire.UnexpectedFrame, "expected content body, got non content body frame instead")
	case contentHeader:
	}
	h, err := amqpwire.ParseContentHeader(f.Payload)
	if err != nil {
		return err
	}
	if h.Class != amqpwire.ClassBasic {
		return fault(amqpwire.UnexpectedFrame, "expected content header for class %d, got one for class %d instead",
			amqpwire.ClassBasic, h.Class)
	}
	if err := h.Props.Validate(); err != nil {
		return err
	}
	if h.BodySize > c.cfg.MaxMessageBytes {
		return preconditionFailed("message size %d is larger than %s %d", h.BodySize, c.cfg.maxSizeName(), c.cfg.MaxMessageBytes)
	}
	ct.props, ct.size, ct.have, ct.state = h.Props, h.BodySize, 0, contentBody
	if ct.kept {
		// The names were kept when the buffer was used again; keep it all together.
		ct.kept = false
		c.list(ch)
	}
	if ct.size == 0 {
		return c.contentDone(ch)
	}
	if c.pub.IsLarge(ct.size) {
		return c.beginLarge(ch, ct)
	}
	return nil
}

// contentBody handles a body frame.
func (c *conn) contentBody(ch *channel, f amqpwire.Frame) error {
	ct := &ch.content
	switch ct.state {
	case contentNone:
		return fault(amqpwire.UnexpectedFrame, "expected method frame, got non method frame instead")
	case contentHeader:
		return fault(amqpwire.UnexpectedFrame,
			"expected content header for class %d, got non content header frame instead", amqpwire.ClassBasic)
	case contentBody:
	}
	ct.have += uint64(len(f.Payload))
	if ct.have > ct.size {
		return fault(amqpwire.FrameError, "content body of %d bytes is larger than the %d bytes announced", ct.have, ct.size)
	}
	switch {
	case ct.large != nil:
		ct.large.Write(f.Payload)
		c.countLarge(ct)
	case ct.refused == nil:
		ct.fresh = append(ct.fresh, f.Payload)
		c.list(ch)
	}
	if ct.have == ct.size {
		return c.contentDone(ch)
	}
	return nil
}

// contentDone publishes a message that is complete.
func (c *conn) contentDone(ch *channel) error {
	ct := &ch.content
	if len(ct.chunks) > 0 {
		// Pieces in front of the views; seldom, so the shift is no matter.
		pieces := make([][]byte, 0, len(ct.chunks)+len(ct.fresh))
		for _, chunk := range ct.chunks {
			pieces = append(pieces, chunk.Bytes())
		}
		ct.fresh = append(pieces, ct.fresh...)
	}
	ct.state = contentNone
	err := c.publishContent(ch, ct)
	ct.drop(c)
	return err
}

// drop forgets the content and gives its memory back.
func (ct *content) drop(c *conn) {
	ct.state = contentNone
	if ct.large != nil {
		ct.large.Drop()
		ct.large = nil
		c.countLarge(ct)
	}
	ct.refused = nil
	for _, chunk := range ct.chunks {
		c.batch.partial -= int64(chunk.Cap())
		chunk.Release()
	}
	ct.chunks = nil
	clear(ct.fresh)
	ct.fresh = ct.fresh[:0]
	if cap(ct.fresh) > 64 {
		ct.fresh = nil
	}
	if cap(ct.own) > 4<<10 {
		ct.own = nil
	}
}

// keepContents copies what incomplete contents have in the read buffer. It fails when
// they are too much.
func (c *conn) keepContents() error {
	for _, ch := range c.batch.fresh {
		ch.content.listed = false
		if ch.content.state != contentNone {
			c.keep(&ch.content)
		}
	}
	clear(c.batch.fresh)
	c.batch.fresh = c.batch.fresh[:0]
	if c.batch.partial > contentsMax {
		return fault(amqpwire.ResourceError, "incomplete messages of more than %d bytes", contentsMax)
	}
	return nil
}

func (c *conn) keep(ct *content) {
	if !ct.kept {
		// Names that were kept before stand in own already, in the same place.
		own := append(append(append(ct.own[:0], ct.exchange...), ct.key...), ct.props...)
		e, k := len(ct.exchange), len(ct.exchange)+len(ct.key)
		ct.exchange, ct.key, ct.props = own[:e:e], own[e:k:k], own[k:]
		ct.own, ct.kept = own, true
	}
	have := ct.have
	for _, piece := range ct.fresh {
		have -= uint64(len(piece))
	}
	for _, piece := range ct.fresh {
		for len(piece) > 0 {
			n := c.keepPiece(ct, piece, have)
			piece = piece[n:]
			have += uint64(n)
		}
	}
	clear(ct.fresh)
	ct.fresh = ct.fresh[:0]
}

// keepPiece copies the beginning of piece, as much as fits the last chunk, or a new one
// that is about as large as what came before.
func (c *conn) keepPiece(ct *content, piece []byte, have uint64) int {
	k := len(ct.chunks) - 1
	if k < 0 || ct.chunks[k].Len() == ct.chunks[k].Cap() {
		n := min(max(have, uint64(len(piece)), contentChunkMin), contentChunkMax, ct.size-have)
		ct.chunks = append(ct.chunks, buf.Get(int(n)))
		k++
		c.batch.partial += int64(ct.chunks[k].Cap())
	}
	b := ct.chunks[k].Bytes()
	n := min(len(piece), cap(b)-len(b))
	ct.chunks[k].SetBytes(append(b, piece[:n]...))
	return n
}

// unexpectedMethod is the error for a method in the midst of a content.
func (ct *content) unexpectedMethod(id amqpwire.MethodID) error {
	what := "expected content body, got non content body frame instead"
	if ct.state == contentHeader {
		what = "expected content header for class 60, got non content header frame instead"
	}
	return wireError(fault(amqpwire.UnexpectedFrame, "%s", what), id)
}
