package amqpwire

import (
	"encoding/binary"
	"fmt"
)

// MethodID is class<<16 | method: the first four octets of a method frame's
// payload.
type MethodID uint32

// Class returns the class id.
func (id MethodID) Class() uint16 { return uint16(id >> 16) }

// Method returns the method's id within its class.
func (id MethodID) Method() uint16 { return uint16(id) }

// String returns the name, such as "basic.publish".
func (id MethodID) String() string {
	if s, ok := methods[id]; ok {
		return s.name
	}
	return fmt.Sprintf("method %d.%d", id.Class(), id.Method())
}

// HasContent reports whether a header frame and body frames follow the method.
func (id MethodID) HasContent() bool {
	return id == IDBasicPublish || id == IDBasicReturn || id == IDBasicDeliver || id == IDBasicGetOk
}

// The class ids.
const (
	ClassConnection uint16 = 10
	ClassChannel    uint16 = 20
	ClassAccess     uint16 = 30
	ClassExchange   uint16 = 40
	ClassQueue      uint16 = 50
	ClassBasic      uint16 = 60
	ClassConfirm    uint16 = 85
	ClassTx         uint16 = 90
)

// The method ids, of the specification and of RabbitMQ's extensions.
const (
	IDConnectionStart          = MethodID(ClassConnection)<<16 | 10
	IDConnectionStartOk        = MethodID(ClassConnection)<<16 | 11
	IDConnectionSecure         = MethodID(ClassConnection)<<16 | 20
	IDConnectionSecureOk       = MethodID(ClassConnection)<<16 | 21
	IDConnectionTune           = MethodID(ClassConnection)<<16 | 30
	IDConnectionTuneOk         = MethodID(ClassConnection)<<16 | 31
	IDConnectionOpen           = MethodID(ClassConnection)<<16 | 40
	IDConnectionOpenOk         = MethodID(ClassConnection)<<16 | 41
	IDConnectionClose          = MethodID(ClassConnection)<<16 | 50
	IDConnectionCloseOk        = MethodID(ClassConnection)<<16 | 51
	IDConnectionBlocked        = MethodID(ClassConnection)<<16 | 60
	IDConnectionUnblocked      = MethodID(ClassConnection)<<16 | 61
	IDConnectionUpdateSecret   = MethodID(ClassConnection)<<16 | 70
	IDConnectionUpdateSecretOk = MethodID(ClassConnection)<<16 | 71

	IDChannelOpen    = MethodID(ClassChannel)<<16 | 10
	IDChannelOpenOk  = MethodID(ClassChannel)<<16 | 11
	IDChannelFlow    = MethodID(ClassChannel)<<16 | 20
	IDChannelFlowOk  = MethodID(ClassChannel)<<16 | 21
	IDChannelClose   = MethodID(ClassChannel)<<16 | 40
	IDChannelCloseOk = MethodID(ClassChannel)<<16 | 41

	IDAccessRequest   = MethodID(ClassAccess)<<16 | 10
	IDAccessRequestOk = MethodID(ClassAccess)<<16 | 11

	IDExchangeDeclare   = MethodID(ClassExchange)<<16 | 10
	IDExchangeDeclareOk = MethodID(ClassExchange)<<16 | 11
	IDExchangeDelete    = MethodID(ClassExchange)<<16 | 20
	IDExchangeDeleteOk  = MethodID(ClassExchange)<<16 | 21
	IDExchangeBind      = MethodID(ClassExchange)<<16 | 30
	IDExchangeBindOk    = MethodID(ClassExchange)<<16 | 31
	IDExchangeUnbind    = MethodID(ClassExchange)<<16 | 40
	IDExchangeUnbindOk  = MethodID(ClassExchange)<<16 | 51 // not 41, by an old mistake

	IDQueueDeclare   = MethodID(ClassQueue)<<16 | 10
	IDQueueDeclareOk = MethodID(ClassQueue)<<16 | 11
	IDQueueBind      = MethodID(ClassQueue)<<16 | 20
	IDQueueBindOk    = MethodID(ClassQueue)<<16 | 21
	IDQueuePurge     = MethodID(ClassQueue)<<16 | 30
	IDQueuePurgeOk   = MethodID(ClassQueue)<<16 | 31
	IDQueueDelete    = MethodID(ClassQueue)<<16 | 40
	IDQueueDeleteOk  = MethodID(ClassQueue)<<16 | 41
	IDQueueUnbind    = MethodID(ClassQueue)<<16 | 50
	IDQueueUnbindOk  = MethodID(ClassQueue)<<16 | 51

	IDBasicQos          = MethodID(ClassBasic)<<16 | 10
	IDBasicQosOk        = MethodID(ClassBasic)<<16 | 11
	IDBasicConsume      = MethodID(ClassBasic)<<16 | 20
	IDBasicConsumeOk    = MethodID(ClassBasic)<<16 | 21
	IDBasicCancel       = MethodID(ClassBasic)<<16 | 30
	IDBasicCancelOk     = MethodID(ClassBasic)<<16 | 31
	IDBasicPublish      = MethodID(ClassBasic)<<16 | 40
	IDBasicReturn       = MethodID(ClassBasic)<<16 | 50
	IDBasicDeliver      = MethodID(ClassBasic)<<16 | 60
	IDBasicGet          = MethodID(ClassBasic)<<16 | 70
	IDBasicGetOk        = MethodID(ClassBasic)<<16 | 71
	IDBasicGetEmpty     = MethodID(ClassBasic)<<16 | 72
	IDBasicAck          = MethodID(ClassBasic)<<16 | 80
	IDBasicReject       = MethodID(ClassBasic)<<16 | 90
	IDBasicRecoverAsync = MethodID(ClassBasic)<<16 | 100
	IDBasicRecover      = MethodID(ClassBasic)<<16 | 110
	IDBasicRecoverOk    = MethodID(ClassBasic)<<16 | 111
	IDBasicNack         = MethodID(ClassBasic)<<16 | 120

	IDConfirmSelect   = MethodID(ClassConfirm)<<16 | 10
	IDConfirmSelectOk = MethodID(ClassConfirm)<<16 | 11

	IDTxSelect     = MethodID(ClassTx)<<16 | 10
	IDTxSelectOk   = MethodID(ClassTx)<<16 | 11
	IDTxCommit     = MethodID(ClassTx)<<16 | 20
	IDTxCommitOk   = MethodID(ClassTx)<<16 | 21
	IDTxRollback   = MethodID(ClassTx)<<16 | 30
	IDTxRollbackOk = MethodID(ClassTx)<<16 | 31
)

// Method is one of this package's method structs, as a pointer. A parsed
// method owns its memory. Reserved arguments (access tickets and the like) are
// ignored when read and zero when written.
type Method interface {
	// ID returns the class and method ids.
	ID() MethodID
	// visit moves all arguments through c, in wire order.
	visit(c *codec)
}

// SplitMethod splits the payload of a method frame into the ids and the
// arguments, a view. The per-message parsers take the arguments.
func SplitMethod(payload []byte) (id MethodID, args []byte, err error) {
	if len(payload) < 4 {
		return 0, nil, frameError(FrameMethod, payload, "unknown_frame")
	}
	return MethodID(binary.BigEndian.Uint32(payload)), payload[4:], nil
}

// ParseMethod reads the payload of a method frame. A method that does not exist
// is 503 COMMAND_INVALID.
func ParseMethod(payload []byte) (Method, error) {
	id, args, err := SplitMethod(payload)
	if err != nil {
		return nil, err
	}
	spec, ok := methods[id]
	if !ok {
		return nil, &Error{Code: CommandInvalid, Explanation: "unimplemented method", Method: id}
	}
	m := spec.alloc()
	if err := ParseArgs(args, m); err != nil {
		return nil, err
	}
	return m, nil
}

// AppendMethod appends the payload of a method frame. It fails if a short
// string is longer than 255 bytes or a table is malformed; then dst is returned
// as it was.
func AppendMethod(dst []byte, m Method) ([]byte, error) {
	c := codec{writing: true, buf: binary.BigEndian.AppendUint32(dst, uint32(m.ID()))}
	m.visit(&c)
	if c.err != nil {
		return dst, &Error{Code: c.err.Code, Explanation: "cannot encode " + m.ID().String() + ": " + c.err.Explanation, Method: m.ID()}
	}
	return c.buf, nil
}

// AppendMethodFrame appends a whole method frame. It fails as [AppendMethod]
// does.
func AppendMethodFrame(dst []byte, channel uint16, m Method) ([]byte, error) {
	buf, start := beginFrame(dst, FrameMethod, channel)
	buf, err := AppendMethod(buf, m)
	if err != nil {
		return dst, err
	}
	return endFrame(buf, start), nil
}

// methodSpec is what ParseMethod knows of a method.
type methodSpec struct {
	name  string
	alloc func() Method
}

func alloc[T any, P interface {
	*T
	Method
}]() Method {
	return P(new(T))
}
