// Checks of a broker over amqplib, against AMQP_URL.
//
//   node --test-reporter=tap checks.js
'use strict';

const crypto = require('node:crypto');
const { altered, amqp, assert, check, closes, drain, eventually, name, send } = require('./base');

check('queue: declared, counted, purged, deleted', async ({ channel, queue }) => {
  const q = await queue();
  await send(channel, q, '1', '2', '3');
  assert.deepEqual(await channel.checkQueue(q), { queue: q, messageCount: 3, consumerCount: 0 });
  assert.deepEqual(await channel.purgeQueue(q), { messageCount: 3 });
  await send(channel, q, '4');
  assert.deepEqual(await channel.deleteQueue(q), { messageCount: 1 });
});

check('queue: server-named and exclusive', async ({ channel, connect }) => {
  const { queue } = await channel.assertQueue('', { exclusive: true });
  assert.match(queue, /^amq\.gen-/);
  const other = await (await connect()).createChannel();
  await closes(other, 405, 'RESOURCE_LOCKED', () => other.checkQueue(queue));
});

check('queue: missing is 404', async ({ connection }) => {
  const channel = await connection.createChannel();
  const q = name();
  await closes(channel, 404, `NOT_FOUND - no queue '${q}' in vhost '/'`, () => channel.checkQueue(q));
});

check('queue: declared otherwise is 406', async ({ connection, queue }) => {
  const q = await queue({ durable: true });
  const channel = await connection.createChannel();
  await closes(channel, 406, `inequivalent arg 'durable' for queue '${q}'`, () =>
    channel.assertQueue(q, { durable: false }),
  );
});

check('exchanges: direct, fanout, topic, headers', async ({ channel, queue, exchange }) => {
  const cases = {
    direct: { bind: ['a.b', {}], keys: ['a.b', 'a.c'], want: ['a.b'] },
    fanout: { bind: ['', {}], keys: ['a.b', 'a.c'], want: ['a.b', 'a.c'] },
    topic: { bind: ['a.*', {}], keys: ['a.b', 'b.a', 'a'], want: ['a.b'] },
    headers: { bind: ['', { 'x-match': 'any', n: 1 }], keys: ['a.b'], want: ['a.b'] },
  };
  for (const [type, { bind, keys, want }] of Object.entries(cases)) {
    const [x, q] = [await exchange(type), await queue()];
    await channel.bindQueue(q, x, ...bind);
    for (const key of keys) channel.publish(x, key, Buffer.from(key), { headers: { n: 1 } });
    await channel.waitForConfirms();
    assert.deepEqual(await drain(channel, q), want, type);
    await channel.unbindQueue(q, x, ...bind);
    channel.publish(x, keys[0], Buffer.from('x'), { headers: { n: 1 } });
    await channel.waitForConfirms();
    assert.deepEqual(await drain(channel, q), [], `${type}, unbound`);
  }
});

check('exchanges: bound to each other, alternate', async ({ channel, queue, exchange }) => {
  const other = await exchange('fanout');
  const x = await exchange('topic', { alternateExchange: other });
  const middle = await exchange('direct');
  const [q, rest] = [await queue(), await queue()];
  await channel.bindExchange(middle, x, 'k.#');
  await channel.bindQueue(q, middle, 'k.1');
  await channel.bindQueue(rest, other, '');
  channel.publish(x, 'k.1', Buffer.from('bound'));
  channel.publish(x, 'else', Buffer.from('alternate'));
  await channel.waitForConfirms();
  assert.deepEqual([await drain(channel, q), await drain(channel, rest)], [['bound'], ['alternate']]);
});

check('publish: each confirm calls back once, in order', async ({ channel, queue }) => {
  const q = await queue();
  const confirmed = [];
  for (let i = 0; i < 2000; i++) {
    channel.sendToQueue(q, Buffer.from(`${i}`), {}, (error) => confirmed.push(error ? -1 : i));
  }
  await channel.waitForConfirms();
  assert.deepEqual(confirmed, [...Array(2000).keys()]);
});

check('publish: mandatory is returned before its confirm', async ({ channel }) => {
  const events = [];
  channel.on('return', ({ fields, content }) => events.push([fields.replyCode, fields.replyText, `${content}`]));
  channel.publish('', name(), Buffer.from('x'), { mandatory: true }, () => events.push('confirm'));
  await channel.waitForConfirms();
  assert.deepEqual(events, [[312, 'NO_ROUTE', 'x'], 'confirm']);
});

check('publish: missing exchange is 404', async ({ connection }) => {
  const channel = await connection.createChannel();
  const x = name('x');
  await closes(channel, 404, `no exchange '${x}' in vhost '/'`, () => channel.publish(x, '', Buffer.from('x')));
});

check('body: 5 MB and none', async ({ channel, queue }) => {
  const q = await queue();
  const body = crypto.randomBytes(5 << 20);
  await send(channel, q, body, '');
  const big = await channel.get(q, { noAck: true });
  assert.ok(big.content.equals(body));
  assert.equal((await channel.get(q, { noAck: true })).content.length, 0);
});

check('properties: all of them', async ({ channel, queue }) => {
  const q = await queue();
  const sent = {
    contentType: 'text/plain',
    contentEncoding: 'utf-8',
    headers: { k: 'v' },
    deliveryMode: 2,
    priority: 3,
    correlationId: 'correlation',
    replyTo: 'reply',
    messageId: 'id',
    timestamp: 1_700_000_000,
    type: 'type',
    userId: 'guest',
    appId: 'app',
  };
  channel.sendToQueue(q, Buffer.from('x'), sent);
  await channel.waitForConfirms();
  const { properties } = await channel.get(q, { noAck: true });
  for (const [key, value] of Object.entries(sent)) assert.deepEqual(properties[key], value, key);
});

check('properties: header types', async ({ channel, queue }) => {
  const q = await queue();
  const headers = {
    true: true,
    false: false,
    int8: 127,
    int16: -32768,
    int32: 2 ** 31 - 1,
    int64: 2 ** 50,
    double: 0.1,
    float: { '!': 'float', value: 0.5 },
    short: { '!': 'short', value: 5 },
    byte: { '!': 'byte', value: -5 },
    timestamp: { '!': 'timestamp', value: 1_700_000_000 },
    decimal: { '!': 'decimal', value: { digits: 314, places: 2 } },
    string: 'grüß dich',
    bytes: Buffer.from([0, 255]),
    null: null,
    array: [1, 'two', [3.5], { four: null }],
    table: { nested: { deeper: [true] } },
  };
  const plain = {
    float: 0.5,
    short: 5,
    byte: -5,
  };
  channel.sendToQueue(q, Buffer.from('x'), { headers });
  await channel.waitForConfirms();
  const got = (await channel.get(q, { noAck: true })).properties.headers;
  assert.deepEqual(Object.keys(got), Object.keys(headers));
  for (const [key, value] of Object.entries(headers)) assert.deepEqual(got[key], plain[key] ?? value, key);
});

check('consume: in order, acknowledged, given back', async ({ channel, connection, queue }) => {
  const q = await queue();
  await send(channel, q, '1', '2', '3', '4');
  const got = [];
  const consumer = await connection.createChannel();
  await consumer.consume(q, (message) => got.push(message));
  await eventually(() => got.length === 4);
  assert.deepEqual(got.map((m) => `${m.content} ${m.fields.redelivered}`), ['1 false', '2 false', '3 false', '4 false']);
  consumer.ack(got[1], true);
  await consumer.close();
  const again = await channel.get(q, { noAck: true });
  assert.equal(`${again.content} ${again.fields.redelivered}`, '3 true');
  assert.deepEqual(await drain(channel, q), ['4']);
});

check('consume: nack and reject', async ({ channel, queue }) => {
  const q = await queue();
  await send(channel, q, '1', '2', '3', '4');
  const messages = [];
  for (let i = 0; i < 4; i++) messages.push(await channel.get(q));
  channel.reject(messages[0], false); // dropped
  channel.reject(messages[1], true);
  channel.nack(messages[3], true, true);
  assert.deepEqual(await eventually(async () => {
    const bodies = await drain(channel, q);
    return bodies.length > 0 && bodies;
  }), ['2', '3', '4']);
});

check('consume: prefetch', async ({ channel, connection, queue }) => {
  const q = await queue();
  await send(channel, q, ...'0123456789');
  const consumer = await connection.createChannel();
  await consumer.prefetch(3);
  const got = [];
  await consumer.consume(q, (message) => got.push(message));
  await eventually(() => got.length === 3);
  await consumer.checkQueue(q); // a round trip: nothing more is on its way
  assert.equal(got.length, 3);
  consumer.ack(got[2], true);
  await eventually(() => got.length === 6);
});

check('consume: canceled by the client and by the broker', async ({ channel, queue }) => {
  const q = await queue();
  const got = [];
  const { consumerTag } = await channel.consume(q, (message) => got.push(message), { noAck: true });
  await channel.cancel(consumerTag);
  await send(channel, q, 'x');
  assert.deepEqual(await drain(channel, q), ['x']);
  await channel.consume(q, (message) => got.push(message), { noAck: true });
  await channel.deleteQueue(q);
  await eventually(() => got.length === 1);
  assert.equal(got[0], null);
});

check('consume: exclusive is 403 for others', async ({ channel, connection, queue }) => {
  const q = await queue();
  await channel.consume(q, () => {}, { exclusive: true });
  const other = await connection.createChannel();
  await closes(other, 403, 'in exclusive use', () => other.consume(q, () => {}));
});

check('consume: unknown delivery tag is 406', async ({ connection }) => {
  const channel = await connection.createChannel();
  await closes(channel, 406, 'unknown delivery tag 42', () => channel.ack({ fields: { deliveryTag: 42 } }));
});

check('recover brings back what is unacknowledged', async ({ channel, queue }) => {
  const q = await queue();
  await send(channel, q, 'x');
  const got = [];
  await channel.consume(q, (message) => got.push(message.fields.redelivered));
  await eventually(() => got.length === 1);
  await channel.recover();
  await eventually(() => got.length === 2);
  assert.deepEqual(got, [false, true]);
});

check('connection: wrong password is 403', async () => {
  await assert.rejects(
    amqp.connect(altered((u) => (u.password = 'wrong'))),
    /403 .*ACCESS.REFUSED/,
  );
});

check('connection: unknown virtual host', async () => {
  // amqplib doesn't tell the code.
  await assert.rejects(amqp.connect(altered((u) => (u.pathname = '/nowhere'))), /ConnectionClose/);
});

check('connection: AMQPLAIN', async ({ connect }) => {
  const connection = await connect(undefined, { credentials: amqp.credentials.amqplain('guest', 'guest') });
  await (await connection.createChannel()).assertQueue('', { exclusive: true });
});

check('connection: frames of 4096 octets', async ({ connect, queue }) => {
  const q = await queue();
  const connection = await connect(altered((u) => (u.search = '?frameMax=4096')));
  const channel = await connection.createConfirmChannel();
  const body = crypto.randomBytes(50_000);
  await send(channel, q, body);
  assert.ok((await channel.get(q, { noAck: true })).content.equals(body));
});

check('connection: close overtakes what channels have queued', async ({ connect }) => {
  // amqplib sends connection.close ahead of the publishes that wait in its
  // buffers, and those after it. The broker ignores them, and close-ok arrives.
  const connection = await connect();
  const channel = await connection.createChannel();
  const { queue } = await channel.assertQueue('', { exclusive: true });
  while (channel.sendToQueue(queue, Buffer.from('x'.repeat(14))));
  let closed = false;
  connection.close().then(() => (closed = true));
  await eventually(() => closed);
});

check('connection: a new secret', async ({ connection, channel }) => {
  await connection.updateSecret(Buffer.from('new'), 'rotation');
  await channel.assertQueue('', { exclusive: true });
});

check('connection: broken off, taken up again', async ({ channel, connect, queue }) => {
  const q = await queue({ durable: true });
  await send(channel, q, '1', '2');
  const broken = await connect();
  const consumer = await broken.createChannel();
  const first = await consumer.get(q);
  consumer.ack(first);
  await consumer.checkQueue(q); // the ack is processed by now
  await consumer.get(q);
  const closed = new Promise((resolve) => broken.on('close', resolve));
  broken.connection.stream.destroy(new Error('cable cut'));
  await closed;
  const message = await eventually(() => channel.get(q, { noAck: true }));
  assert.equal(`${message.content} ${message.fields.redelivered}`, '2 true');
});
