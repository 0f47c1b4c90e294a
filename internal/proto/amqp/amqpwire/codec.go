package amqpwire

import (
	"encoding/binary"
	"math"
)

// codec moves the arguments of one method between a struct and bytes. Each
// method lists its fields once, in visit, and the direction is the codec's:
// so parse and append cannot disagree. Errors are sticky.
type codec struct {
	writing bool
	// buf is the output when writing, else the arguments not read yet.
	buf []byte
	err *Error
}

// ParseArgs reads the arguments of the method m, as [SplitMethod] returned
// them, into m. Strings, byte strings and tables are copied.
func ParseArgs(args []byte, m Method) error {
	c := codec{buf: args}
	m.visit(&c)
	if c.err == nil && len(c.buf) > 0 {
		c.fail("bytes behind the last argument")
	}
	if c.err != nil {
		return methodError(c.err, m.ID())
	}
	return nil
}

// methodError names the method in a syntax error.
func methodError(e *Error, id MethodID) *Error {
	return &Error{Code: e.Code, Explanation: "cannot decode " + id.String() + ": " + e.Explanation, Method: id}
}

func (c *codec) fail(explanation string) {
	if c.err == nil {
		c.err = syntaxError(explanation)
	}
}

// take returns the next n bytes of the input, or nil after an error.
func (c *codec) take(n int) []byte {
	if c.err != nil {
		return nil
	}
	if n > len(c.buf) {
		c.fail("truncated arguments")
		return nil
	}
	b := c.buf[:n]
	c.buf = c.buf[n:]
	return b
}

func (c *codec) octet(v *uint8) {
	if c.writing {
		c.buf = append(c.buf, *v)
	} else if b := c.take(1); b != nil {
		*v = b[0]
	}
}

func (c *codec) short(v *uint16) {
	if c.writing {
		c.buf = binary.BigEndian.AppendUint16(c.buf, *v)
	} else if b := c.take(2); b != nil {
		*v = binary.BigEndian.Uint16(b)
	}
}

func (c *codec) long(v *uint32) {
	if c.writing {
		c.buf = binary.BigEndian.AppendUint32(c.buf, *v)
	} else if b := c.take(4); b != nil {
		*v = binary.BigEndian.Uint32(b)
	}
}

func (c *codec) longlong(v *uint64) {
	if c.writing {
		c.buf = binary.BigEndian.AppendUint64(c.buf, *v)
	} else if b := c.take(8); b != nil {
		*v = binary.BigEndian.Uint64(b)
	}
}

// bits moves up to eight booleans that share one octet, lowest bit first.
// Unused bits are ignored.
func (c *codec) bits(flags ...*bool) {
	var v uint8
	if c.writing {
		for i, f := range flags {
			if *f {
				v |= 1 << i
			}
		}
	}
	c.octet(&v)
	if !c.writing && c.err == nil {
		for i, f := range flags {
			*f = v&(1<<i) != 0
		}
	}
}

func (c *codec) shortstr(v *string) {
	if c.writing {
		if len(*v) > MaxShortString {
			c.fail("short string of more than 255 bytes")
			return
		}
		c.buf = append(c.buf, byte(len(*v)))
		c.buf = append(c.buf, *v...)
		return
	}
	if b := c.take(1); b != nil {
		*v = string(c.take(int(b[0])))
	}
}

// sized moves a byte string with a four-byte size in front.
func (c *codec) sized(v []byte) []byte {
	if c.writing {
		if len(v) > math.MaxUint32 {
			c.fail("long string of more than 4 GiB")
			return v
		}
		c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(len(v)))
		c.buf = append(c.buf, v...)
		return v
	}
	b := c.take(4)
	if b == nil {
		return nil
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(c.buf)) {
		c.fail("truncated arguments")
		return nil
	}
	return append([]byte(nil), c.take(int(n))...)
}

func (c *codec) longstr(v *[]byte) { *v = c.sized(*v) }

func (c *codec) table(v *RawTable) {
	*v = c.sized(*v)
	if c.err != nil {
		return
	}
	if err := validateTable(*v, 1); err != nil {
		c.err = err
	}
}

// reservedShort and reservedShortstr move arguments that have lost their
// meaning: they are written as zero and ignored when read. The access ticket
// is one of them.
func (c *codec) reservedShort() {
	var v uint16
	c.short(&v)
}

func (c *codec) reservedShortstr() {
	if c.writing {
		c.buf = append(c.buf, 0)
	} else if b := c.take(1); b != nil {
		c.take(int(b[0]))
	}
}
