// What the checks share: connections, names that don't collide, waiting.
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { test } = require('node:test');
const amqp = require('amqplib');

const url = process.env.AMQP_URL || 'amqp://guest:guest@127.0.0.1:5672/';

// A check that waits longer than this for something has failed.
const patienceMs = 10_000;

let number = 0;
const name = (kind = 'q') => `interop-js-${kind}-${process.pid}-${++number}`;

// The URL with another user, password, virtual host, or query.
function altered(change) {
  const u = new URL(url);
  change(u);
  return u.href;
}

// check runs body({connect, connection, channel, queue, exchange}) as a test;
// whatever it made through these is closed and deleted afterwards.
function check(title, body) {
  test(title, { timeout: 3 * patienceMs }, async () => {
    const connections = [];
    const made = [];
    const connect = async (target = url, options = {}) => {
      const connection = await amqp.connect(target, options);
      connection.on('error', () => {}); // the check looks at what it expects itself
      connections.push(connection);
      return connection;
    };
    try {
      const connection = await connect();
      const channel = await connection.createConfirmChannel();
      const tools = {
        connect,
        connection,
        channel,
        queue: async (options = {}) => {
          const { queue } = await channel.assertQueue(name(), options);
          made.push((ch) => ch.deleteQueue(queue));
          return queue;
        },
        exchange: async (type, options = {}) => {
          const { exchange } = await channel.assertExchange(name(type), type, options);
          made.push((ch) => ch.deleteExchange(exchange));
          return exchange;
        },
      };
      await body(tools);
    } finally {
      if (made.length > 0) {
        const cleaner = await connect();
        const channel = await cleaner.createChannel();
        for (const remove of made.reverse()) await remove(channel);
      }
      for (const connection of connections) await connection.close().catch(() => {});
    }
  });
}

// send publishes to a queue and waits for the confirm.
async function send(channel, queue, ...bodies) {
  for (const body of bodies) channel.sendToQueue(queue, Buffer.from(body), { persistent: true });
  await channel.waitForConfirms();
}

// eventually waits until condition() is neither false nor null.
async function eventually(condition) {
  const deadline = Date.now() + patienceMs;
  for (;;) {
    const got = await condition();
    if (got) return got;
    assert.ok(Date.now() < deadline, 'waited in vain');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

// drain takes all messages that are ready and returns their bodies.
async function drain(channel, queue) {
  const bodies = [];
  for (;;) {
    const message = await channel.get(queue, { noAck: true });
    if (!message) return bodies;
    bodies.push(message.content.toString());
  }
}

// closes waits for the error with which the broker closes a channel or connection
// that does what it shouldn't.
async function closes(emitter, code, text, act) {
  const signal = AbortSignal.timeout(patienceMs);
  // once() would reject on 'error' if that weren't the event itself.
  const closed = once(emitter, 'error', { signal });
  Promise.resolve(act()).catch(() => {});
  const [error] = await closed;
  assert.equal(error.code, code, error.message);
  assert.ok(error.message.includes(text), error.message);
}

module.exports = { altered, amqp, assert, check, closes, drain, eventually, name, send };
