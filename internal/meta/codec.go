package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/sluicemq/sluice/internal/route"
)

// ErrMalformed is returned (wrapped) for bytes that are no op or no checkpoint
// entry.
var ErrMalformed = errors.New("meta: malformed")

// opCode is the first byte of an encoded op. The numbers are a stored format:
// they are never reused.
type opCode byte

const (
	codePutVHost        opCode = 1
	codeDeleteVHost     opCode = 2
	codeDeclareExchange opCode = 3
	codeDeleteExchange  opCode = 4
	codeDeclareQueue    opCode = 5
	codeDeleteQueue     opCode = 6
	codeBind            opCode = 7
	codeUnbind          opCode = 8
	codePutUser         opCode = 9
	codeDeleteUser      opCode = 10
	codePutSetting      opCode = 11
	codeDeleteSetting   opCode = 12
	codePutItem         opCode = 13
	codeDeleteItem      opCode = 14
	codeAdoptQueue      opCode = 32
)

func (PutVHost) op() opCode        { return codePutVHost }
func (DeleteVHost) op() opCode     { return codeDeleteVHost }
func (DeclareExchange) op() opCode { return codeDeclareExchange }
func (DeleteExchange) op() opCode  { return codeDeleteExchange }
func (DeclareQueue) op() opCode    { return codeDeclareQueue }
func (DeleteQueue) op() opCode     { return codeDeleteQueue }
func (Bind) op() opCode            { return codeBind }
func (Unbind) op() opCode          { return codeUnbind }
func (PutUser) op() opCode         { return codePutUser }
func (DeleteUser) op() opCode      { return codeDeleteUser }
func (PutSetting) op() opCode      { return codePutSetting }
func (DeleteSetting) op() opCode   { return codeDeleteSetting }
func (AdoptQueue) op() opCode      { return codeAdoptQueue }

// AppendOp appends the encoding of op: its code, then its fields in order;
// strings and lists have their length before them as a uvarint.
func AppendOp(dst []byte, op Op) []byte {
	dst = append(dst, byte(op.op()))
	switch op := op.(type) {
	case PutVHost:
		return appendString(dst, op.Name)
	case DeleteVHost:
		return appendString(dst, op.Name)
	case DeclareExchange:
		dst = appendString(dst, op.Exchange.VHost)
		dst = appendString(dst, op.Exchange.Name)
		return appendExchange(dst, &op.Exchange)
	case DeleteExchange:
		dst = appendString(dst, op.VHost)
		dst = appendString(dst, op.Name)
		dst = append(dst, flags(op.IfUnused))
		return appendStrings(dst, op.Held)
	case DeclareQueue:
		dst = appendString(dst, op.Queue.VHost)
		dst = appendString(dst, op.Queue.Name)
		return appendQueue(dst, &op.Queue)
	case AdoptQueue:
		dst = appendString(dst, op.Queue.VHost)
		dst = appendString(dst, op.Queue.Name)
		return appendQueue(dst, &op.Queue)
	case DeleteQueue:
		dst = appendString(dst, op.VHost)
		dst = appendString(dst, op.Name)
		dst = binary.AppendUvarint(dst, op.ID)
		return appendStrings(dst, op.Held)
	case Bind:
		dst = appendBindingKey(dst, &op.Binding)
		return appendHeaders(dst, op.Binding.Headers)
	case Unbind:
		dst = appendBindingKey(dst, &op.Binding)
		return appendStrings(dst, op.Held)
	case PutUser:
		dst = appendString(dst, op.User.Name)
		return appendUser(dst, &op.User)
	case DeleteUser:
		return appendString(dst, op.Name)
	case PutSetting:
		return appendString(appendString(dst, op.Key), op.Value)
	case DeleteSetting:
		return appendString(dst, op.Key)
	case PutItem:
		return appendString(appendItemKey(dst, op.Item.ItemKey), op.Item.Value)
	case DeleteItem:
		return appendItemKey(dst, op.Key)
	}
	panic(fmt.Sprintf("meta: op %T is not of this package", op))
}

// ParseOp reads one op from the beginning of b and says how many bytes it took.
// Nothing in the op aliases b.
func ParseOp(b []byte) (Op, int, error) {
	r := reader{b: b}
	var op Op
	switch code := opCode(r.byte()); code {
	case codePutVHost:
		op = PutVHost{r.string()}
	case codeDeleteVHost:
		op = DeleteVHost{r.string()}
	case codeDeclareExchange:
		vhost, name := r.string(), r.string()
		op = DeclareExchange{r.exchange(vhost, name)}
	case codeDeleteExchange:
		op = DeleteExchange{VHost: r.string(), Name: r.string(), IfUnused: r.flags(1)&1 != 0, Held: r.strings()}
	case codeDeclareQueue:
		vhost, name := r.string(), r.string()
		op = DeclareQueue{r.queue(vhost, name)}
	case codeAdoptQueue:
		vhost, name := r.string(), r.string()
		op = AdoptQueue{r.queue(vhost, name)}
	case codeDeleteQueue:
		op = DeleteQueue{VHost: r.string(), Name: r.string(), ID: r.uvarint(), Held: r.strings()}
	case codeBind:
		binding := r.bindingKey()
		binding.Headers = r.headers()
		op = Bind{binding}
	case codeUnbind:
		op = Unbind{Binding: r.bindingKey(), Held: r.strings()}
	case codePutUser:
		op = PutUser{r.user(r.string())}
	case codeDeleteUser:
		op = DeleteUser{r.string()}
	case codePutSetting:
		op = PutSetting{r.string(), r.string()}
	case codeDeleteSetting:
		op = DeleteSetting{r.string()}
	case codePutItem:
		op = PutItem{Item{r.itemKey(), r.string()}}
	case codeDeleteItem:
		op = DeleteItem{r.itemKey()}
	default:
		if !r.bad {
			return nil, 0, fmt.Errorf("%w: op code %d", ErrMalformed, code)
		}
	}
	if r.bad {
		return nil, 0, fmt.Errorf("%w: op cut short or out of range", ErrMalformed)
	}
	return op, len(b) - len(r.b), nil
}

func appendString[T string | []byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendStrings(dst []byte, list []string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(list)))
	for _, s := range list {
		dst = appendString(dst, s)
	}
	return dst
}

// flags packs booleans, the first into the lowest bit.
func flags(bits ...bool) byte {
	var f byte
	for i, set := range bits {
		if set {
			f |= 1 << i
		}
	}
	return f
}

// appendExchange encodes all of x but its name and virtual host.
func appendExchange(dst []byte, x *route.Exchange) []byte {
	dst = append(dst, flags(x.Durable, x.AutoDelete, x.Internal))
	dst = appendString(dst, x.Type)
	dst = appendString(dst, x.Alternate)
	dst = appendString(dst, x.HashOn.Header)
	dst = appendString(dst, x.HashOn.Property)
	return appendString(dst, x.Args)
}

// appendQueue encodes all of q but its name and virtual host.
func appendQueue(dst []byte, q *route.Queue) []byte {
	dst = append(dst, flags(q.Durable, q.Exclusive, q.AutoDelete))
	dst = binary.AppendUvarint(dst, q.ID)
	dst = binary.AppendUvarint(dst, uint64(q.Shard))
	dst = appendString(dst, q.Type)
	dst = appendString(dst, q.Owner)
	return appendString(dst, q.Args)
}

// appendBindingKey encodes what identifies a binding.
func appendBindingKey(dst []byte, b *route.Binding) []byte {
	dst = appendString(dst, b.VHost)
	dst = appendString(dst, b.Source)
	dst = append(dst, byte(b.Kind))
	dst = appendString(dst, b.Destination)
	dst = appendString(dst, b.Key)
	return appendString(dst, b.Args)
}

func appendHeaders(dst []byte, list []route.HeaderArg) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(list)))
	for _, a := range list {
		dst = appendString(dst, a.Key)
		dst = append(dst, byte(a.Value.Kind))
		switch a.Value.Kind {
		case route.Bool, route.Int:
			dst = binary.AppendVarint(dst, a.Value.Int)
		case route.Float:
			dst = binary.BigEndian.AppendUint64(dst, math.Float64bits(a.Value.Float))
		case route.String, route.Opaque:
			dst = appendString(dst, a.Value.Bytes)
		case route.Void:
		}
	}
	return dst
}

// appendUser encodes all of u but its name.
func appendUser(dst []byte, u *User) []byte {
	return appendStrings(appendString(appendString(dst, u.PasswordHash), u.Hashing), u.Tags)
}
