// Package berr is the one closed vocabulary of errors that cross from the
// broker to a protocol. A protocol has one table from Reason to its native
// code; the Detail is what a person (and some clients) read. It does not wrap
// storage or network errors: those become Unavailable or Internal with a cause.
package berr

import (
	"errors"
	"fmt"
)

// Reason says what kind of failure a client met, independent of its protocol.
type Reason uint8

// The reasons. Each protocol maps all of them.
const (
	Internal           Reason = iota // a fault of the broker's own
	NotFound                         // the named object does not exist
	AlreadyExists                    // the name is taken
	PreconditionFailed               // arguments or state contradict the request
	AccessRefused                    // permission, reserved name, exclusive use
	ResourceLocked                   // owned exclusively by another connection
	NotAllowed                       // forbidden in this state or for this virtual host
	NotImplemented                   // known, but not served
	InvalidPath                      // unknown virtual host syntax
	ResourceError                    // a limit of the broker is reached
	TooLarge                         // message or frame above the configured size
	CommandInvalid                   // the request makes no sense here
	Unavailable                      // not now: no leader, disk full, shutting down
)

var names = [...]string{
	Internal: "internal error", NotFound: "not found", AlreadyExists: "already exists",
	PreconditionFailed: "precondition failed", AccessRefused: "access refused",
	ResourceLocked: "resource locked", NotAllowed: "not allowed", NotImplemented: "not implemented",
	InvalidPath: "invalid path", ResourceError: "resource error", TooLarge: "too large",
	CommandInvalid: "command invalid", Unavailable: "unavailable",
}

// String names the reason in lower case words.
func (r Reason) String() string {
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Error is a failure with a reason that every protocol can express.
type Error struct {
	Reason Reason
	Detail string // what went wrong, naming the object; no trailing period
	Cause  error  // nil unless something underneath failed
}

// Error returns the detail, or the reason's name where there is none.
func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Reason.String()
	}
	return e.Detail
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// New makes an Error with a formatted detail.
func New(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// Wrap makes an Error around a cause; the detail is followed by the cause's text.
func Wrap(r Reason, cause error, format string, args ...any) *Error {
	return &Error{Reason: r, Detail: fmt.Sprintf(format, args...) + ": " + cause.Error(), Cause: cause}
}

// ReasonOf returns the reason of err, Internal when it carries none.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return Internal
}
