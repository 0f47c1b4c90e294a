// Package bench is the load generator behind "sluice bench amqp". It drives any
// AMQP 0-9-1 broker by its URL with raw frames, measures rates and latencies,
// and checks what it measures: nothing confirmed is lost, nothing arrives twice
// unflagged, each publisher's messages arrive in order and unharmed.
//
// What it does not do: it is no client library. It speaks plain TCP only, opens
// one channel per connection, knows only the methods that it needs, and gives
// up at the first connection that breaks.
//
// # How it stays out of the way
//
// Every publisher and every consumer is one connection, one locked OS thread
// and one loop over a non-blocking socket: write what may be written, poll,
// read what has come. A publish is a copy of a prebuilt template (method,
// header and body frames) into which only a 24-byte stamp is patched; as many
// as the window allows leave in one write. Deliveries are recognized in a
// 256 KiB read buffer without being copied. Nothing allocates per message.
// Each thread measures its own CPU time, so that every result says what the
// generator itself took from the machine.
//
// # Latency
//
// A message carries the time at which it was meant to be sent. In a closed loop
// (no rate) that is when it was put into the write buffer. In an open loop
// (a rate) it is its place in a fixed schedule, however late the generator or
// the broker let it leave: a stall is seen by every message that it delayed, so
// there is no coordinated omission. Both confirm and end-to-end latency count
// from there. How late messages left is reported on its own as send lag. The
// time of arrival is taken once per read from the socket.
//
// # Body
//
// The first 24 bytes of every body, big-endian:
//
//	 0  run        uint32  random id of the run
//	 4  publisher  uint16
//	 6  queue      uint16
//	 8  seq        uint64  dense from 0 per publisher and queue
//	16  time       int64   nanoseconds since the Unix epoch
//
// The rest is a fixed pseudo-random filler, compared on arrival.
//
// # Concurrency
//
// Run owns everything. Publisher and consumer state belongs to its loop; Run
// reads only the counters marked atomic while loops run, and the rest after
// they have ended.
package bench
