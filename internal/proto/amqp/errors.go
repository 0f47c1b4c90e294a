package amqp

import (
	"errors"
	"fmt"

	"github.com/sluicemq/sluice/internal/berr"
	"github.com/sluicemq/sluice/internal/proto/amqp/amqpwire"
)

// Reasons for which a connection ends without a connection.close of ours.
var (
	errClosedByPeer     = errors.New("closed by the client")
	errHeartbeat        = errors.New("missed heartbeats")
	errHandshakeTimeout = errors.New("handshake timeout")
	errStopped          = errors.New("stopped") // what the reader waited for will not come
)

// refusal is a handshake that ended with a protocol header or nothing at all.
type refusal struct{ why string }

func (r *refusal) Error() string { return r.why }

// codeOf is the table from the broker's reasons to reply codes.
func codeOf(r berr.Reason) amqpwire.ReplyCode {
	//exhaustive:enforce
	switch r {
	case berr.Internal:
		return amqpwire.InternalError
	case berr.NotFound:
		return amqpwire.NotFound
	case berr.AlreadyExists, berr.PreconditionFailed, berr.TooLarge:
		return amqpwire.PreconditionFailed
	case berr.AccessRefused:
		return amqpwire.AccessRefused
	case berr.ResourceLocked:
		return amqpwire.ResourceLocked
	case berr.NotAllowed:
		return amqpwire.NotAllowed
	case berr.NotImplemented:
		return amqpwire.NotImplemented
	case berr.InvalidPath:
		return amqpwire.InvalidPath
	case berr.ResourceError, berr.Unavailable:
		return amqpwire.ResourceError
	case berr.CommandInvalid:
		return amqpwire.CommandInvalid
	}
	return amqpwire.InternalError
}

// wireError turns err into what a client is told, as the fault of method id.
func wireError(err error, id amqpwire.MethodID) *amqpwire.Error {
	var e *amqpwire.Error
	if errors.As(err, &e) {
		if e.Method == 0 && e.Code != amqpwire.ConnectionForced {
			e.Method = id
		}
		return e
	}
	return &amqpwire.Error{Code: codeOf(berr.ReasonOf(err)), Explanation: err.Error(), Method: id}
}

func fault(code amqpwire.ReplyCode, format string, args ...any) *amqpwire.Error {
	return &amqpwire.Error{Code: code, Explanation: fmt.Sprintf(format, args...)}
}

func preconditionFailed(format string, args ...any) *amqpwire.Error {
	return fault(amqpwire.PreconditionFailed, format, args...)
}

func accessRefused(format string, args ...any) *amqpwire.Error {
	return fault(amqpwire.AccessRefused, format, args...)
}

func notFound(format string, args ...any) *amqpwire.Error {
	return fault(amqpwire.NotFound, format, args...)
}

func notImplemented(format string, args ...any) *amqpwire.Error {
	return fault(amqpwire.NotImplemented, format, args...)
}
