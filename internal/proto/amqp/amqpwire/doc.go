// Package amqpwire is the AMQP 0-9-1 codec: bytes to frames and methods, and
// back. It follows RabbitMQ where RabbitMQ and the specification differ.
//
// It does no I/O, owns no goroutine, lock, clock or pool, and knows nothing of
// queues, exchanges or messages; what a method means is decided by package
// amqp. Limits (frame-max) are arguments.
//
// # Format
//
//	connection := protocol-header frame*
//	frame      := type(1) channel(2) size(4) payload(size) 0xCE
//	method     := class(2) method(2) arguments        payload of a frame of type 1
//	header     := class(2) weight(2) body-size(8)     payload of a frame of type 2
//	              flags(2) property values
//	body       := bytes                               payload of a frame of type 3
//	heartbeat  := nothing                             payload of a frame of type 8
//	content    := method header body*                 on one channel, unbroken
//	table      := size(4) (key-size(1) key type(1) value)*
//
// # Two levels
//
// Everything that happens seldom goes through [ParseMethod] and
// [AppendMethodFrame]: each method is a struct that owns its memory. What
// happens once per message goes through functions that allocate nothing:
// [ParsePublish], [ParseAck], [ParseContentHeader], [AppendDeliver],
// [AppendAck] and their neighbors; those return and take views.
//
// Tables and property lists have the same two levels: [Table] and
// [Properties] are owned values; [RangeTable], [LookupTable] and [RawProps]
// read the encoded bytes where they lie. A raw table is always the content
// without its four-byte size.
//
// # Views and ownership
//
// A function that is documented to return a view returns slices of its input;
// they are valid as long as the input is not changed. Append functions write
// to dst only, whose spare capacity must not overlap the other arguments.
//
// # Errors
//
// Every error is an [*Error] that carries the reply code with which the
// connection has to be closed, and the method at fault. Structural mistakes of
// a frame are 501 FRAME_ERROR, mistakes inside a payload 502 SYNTAX_ERROR.
// Bytes behind the last argument of a method, or behind the last property, are
// refused as RabbitMQ does (with 502; RabbitMQ itself closes with 501
// "cannot decode ..." for both).
//
// # Concurrency
//
// All functions are pure. Values may be shared for reading.
package amqpwire
