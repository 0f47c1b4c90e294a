package amqpwire

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ReplyCode is the three-digit code of connection.close, channel.close and
// basic.return (specification section 1.2, with RabbitMQ's names).
type ReplyCode uint16

// The reply codes. Soft ones close a channel, hard ones the connection; see
// [ReplyCode.Hard].
const (
	ReplySuccess       ReplyCode = 200
	ContentTooLarge    ReplyCode = 311
	NoRoute            ReplyCode = 312
	NoConsumers        ReplyCode = 313
	ConnectionForced   ReplyCode = 320
	InvalidPath        ReplyCode = 402
	AccessRefused      ReplyCode = 403
	NotFound           ReplyCode = 404
	ResourceLocked     ReplyCode = 405
	PreconditionFailed ReplyCode = 406
	FrameError         ReplyCode = 501
	SyntaxError        ReplyCode = 502
	CommandInvalid     ReplyCode = 503
	ChannelError       ReplyCode = 504
	UnexpectedFrame    ReplyCode = 505
	ResourceError      ReplyCode = 506
	NotAllowed         ReplyCode = 530
	NotImplemented     ReplyCode = 540
	InternalError      ReplyCode = 541
)

// Name returns the code's name as RabbitMQ puts it in reply texts, such as
// "NOT_FOUND"; for an unknown code, its number.
func (c ReplyCode) Name() string {
	switch c {
	case ReplySuccess:
		return "REPLY_SUCCESS"
	case ContentTooLarge:
		return "CONTENT_TOO_LARGE"
	case NoRoute:
		return "NO_ROUTE"
	case NoConsumers:
		return "NO_CONSUMERS"
	case ConnectionForced:
		return "CONNECTION_FORCED"
	case InvalidPath:
		return "INVALID_PATH"
	case AccessRefused:
		return "ACCESS_REFUSED"
	case NotFound:
		return "NOT_FOUND"
	case ResourceLocked:
		return "RESOURCE_LOCKED"
	case PreconditionFailed:
		return "PRECONDITION_FAILED"
	case FrameError:
		return "FRAME_ERROR"
	case SyntaxError:
		return "SYNTAX_ERROR"
	case CommandInvalid:
		return "COMMAND_INVALID"
	case ChannelError:
		return "CHANNEL_ERROR"
	case UnexpectedFrame:
		return "UNEXPECTED_FRAME"
	case ResourceError:
		return "RESOURCE_ERROR"
	case NotAllowed:
		return "NOT_ALLOWED"
	case NotImplemented:
		return "NOT_IMPLEMENTED"
	case InternalError:
		return "INTERNAL_ERROR"
	}
	return strconv.Itoa(int(c))
}

// String returns the number and the name.
func (c ReplyCode) String() string { return strconv.Itoa(int(c)) + " " + c.Name() }

// Hard reports whether the code closes the connection; all others but
// [ReplySuccess] close the channel only.
func (c ReplyCode) Hard() bool {
	return c >= 500 || c == ConnectionForced || c == InvalidPath
}

// MaxShortString is the size limit of a short string, in bytes.
const MaxShortString = 255

// ReplyText forms the reply text "NAME - explanation". A text that would not
// fit a short string ends in "..." after at most 252 bytes, never within a
// UTF-8 sequence.
func ReplyText(code ReplyCode, explanation string) string {
	text := code.Name() + " - " + explanation
	if len(text) <= MaxShortString {
		return text
	}
	return cutString(text, MaxShortString-len("...")) + "..."
}

// cutString returns the longest prefix of s of at most limit bytes that does
// not end within a UTF-8 sequence. Bytes that are not UTF-8 are cut anywhere.
func cutString[S ~string | ~[]byte](s S, limit int) S {
	if len(s) <= limit {
		return s
	}
	for back := range utf8.UTFMax {
		if limit-back >= 0 && utf8.RuneStart(s[limit-back]) {
			return s[:limit-back]
		}
	}
	return s[:limit]
}

// Error is a violation of the protocol by the peer, or a value that cannot be
// encoded. It is always a reason to close the connection.
type Error struct {
	// Code is the reply code to close with.
	Code ReplyCode
	// Explanation is the text without the code's name.
	Explanation string
	// Method is the method at fault, 0 when there is none.
	Method MethodID
}

// Error returns the reply text.
func (e *Error) Error() string { return ReplyText(e.Code, e.Explanation) }

// Close returns the connection.close that reports e.
func (e *Error) Close() *ConnectionClose {
	return &ConnectionClose{
		ReplyCode: e.Code,
		ReplyText: e.Error(),
		ClassID:   e.Method.Class(),
		MethodID:  e.Method.Method(),
	}
}

// syntaxError is a fault inside a payload of which the method is not known
// here.
func syntaxError(explanation string) *Error {
	return &Error{Code: SyntaxError, Explanation: explanation}
}

// frameError has RabbitMQ's text: type, a snippet of the payload as an Erlang
// binary, and the reason as an Erlang term.
func frameError(typ FrameType, payload []byte, reason string) *Error {
	return &Error{
		Code:        FrameError,
		Explanation: fmt.Sprintf("type %d, %s: %s", typ, payloadSnippet(payload), reason),
	}
}

// UnexpectedFrameError is the 505 for a well-formed frame that may not come
// now, such as content on channel 0; with RabbitMQ's text.
func UnexpectedFrameError(f Frame) *Error {
	return &Error{
		Code:        UnexpectedFrame,
		Explanation: fmt.Sprintf("type %d, %s", f.Type, payloadSnippet(f.Payload)),
	}
}

// payloadSnippet shows at most the first 16 bytes of a payload.
func payloadSnippet(p []byte) string {
	const limit = 16
	which := "all"
	if len(p) > limit {
		which, p = "first 16", p[:limit]
	}
	var b strings.Builder
	b.WriteString(which)
	b.WriteString(" octets = <<")
	for i, c := range p {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(c)))
	}
	b.WriteString(">>")
	return b.String()
}
