// Package torture kills a broker over and over while clients publish and
// consume, and checks that it kept its promises. It is the program behind
// "make torture".
//
// Several connections publish with confirms to durable queues; others consume
// with acks, one by one, multiple, out of order, with some nacks that requeue
// and some basic.get; and some consume and publish in transactions. At random moments the broker's process gets SIGKILL, now
// and then while it is still starting, and is started again on the same data.
// At the end everything is consumed, the broker is killed once more, and must
// come back empty.
//
// What is checked (see Counts):
//
//   - every confirmed message was received at least once;
//   - a message received again has the redelivered flag;
//   - a message whose ack was followed by a round trip on its channel, Grace or
//     more before the kill, doesn't come back, and an acked message never comes
//     back without a kill;
//   - a flag on a message never received before is due to a kill: at most one
//     reservation window per queue and kill, beside what was on its way to
//     clients when they were cut off;
//   - first deliveries keep the order of each publisher in each queue;
//   - a transaction, which publishes and acks over several queues, is there as a whole
//     or not at all, and as a whole if its commit was answered;
//   - bodies are unharmed and come out of the queue that they were put into.
//
// What is not checked: messages without a confirm. They may be there or not;
// publishers never send one twice, so that a second copy is always a fault.
//
// # Concurrency
//
// The Checker is a leaf with a lock. Clients are goroutines that live between
// gate.enter and gate.leave. Around a kill the gate is closed and empty before
// the kill is booked and the broker started again: nothing that a client did to
// the dead broker can be booked as done to the new one.
package torture
