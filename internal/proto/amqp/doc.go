// Package amqp serves AMQP 0-9-1 as RabbitMQ does: it accepts connections, speaks
// the protocol with each and translates it to what package broker offers.
//
// It does not parse or print frames (package amqpwire), route, store, or decide who
// gets a message (package broker). It holds no message: a publish is handed to the
// broker as soon as its content is complete, a delivery is a range of offsets until
// the moment in which it is written to the socket.
//
// # Behavior
//
// The methods of AMQP 0-9-1 with RabbitMQ's extensions: publisher confirms, basic.nack,
// exchange bindings, consumer cancel notify, connection.blocked, update-secret,
// authentication_failure_close, CC and BCC. Reply codes and texts are RabbitMQ's.
//
// # Deviations
//
//   - Arguments and properties that are known but not served are refused with
//     540 NOT_IMPLEMENTED, naming them (see args.go).
//   - tx: a commit sends what it holds one shard at a time.
//   - A transaction that holds more than 64 MiB is refused with 506 RESOURCE_ERROR.
//   - basic.qos with global set counts from the next delivery on; what is in flight
//     counts as well.
//   - A channel number above the negotiated channel-max is refused with 530, as is one
//     channel too many.
//
// # A connection
//
//	header -> start -> tune -> open -> running -> closing -> closed
//
// Two goroutines serve it; the second one starts when the connection is open.
//
//	socket -> reader ----> broker.Publisher, Session       (publishes, definitions, acks)
//	            | control frames, flush records
//	            v
//	          outbox <---- broker's shards, as a Sink      (completions, deliveries)
//	            |
//	            v
//	          writer ----> broker's Reader -> socket       (confirms, records)
//
// The reader parses everything that is in its buffer before it submits, so publishes
// and acknowledgements travel in batches. The writer takes everything that is in the
// outbox, encodes it, and writes once.
//
// # Memory
//
//   - read buffer: 4 KiB while idle, up to 256 KiB (one frame at least) while busy
//   - outbox: deliveries by the byte pool of 256 KiB; everything else by 1 MiB, beyond
//     which the reader stops reading until the writer has caught up
//   - write buffer: up to 256 KiB, held only while there is something to write
//   - incomplete contents: 1 MiB each, of larger ones a part; 64 MiB per connection
//   - unacknowledged deliveries: 12 bytes each at worst, in ranges usually far less
//   - frames held back while the broker takes no messages: 256 KiB plus a read buffer
//   - a client that has not authenticated: less than 64 KiB, until the handshake timeout
//
// # Concurrency
//
// A Server is safe for concurrent use. In a connection each struct and field says who
// owns it: "reader" and "writer" are the goroutines above. Locks, in this order:
// conn.sessMu, conn.settleMu, channel.mu, outbox.mu.
package amqp
