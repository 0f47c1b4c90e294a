"""What the checks share: connections, names that don't collide, waiting."""

import contextlib
import itertools
import os
import socket
import time
import unittest

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/")

# A check that waits longer than this for something has failed.
PATIENCE = 10.0

PERSISTENT = pika.BasicProperties(delivery_mode=2)

_numbers = itertools.count(1)


def parameters(**changes):
    """The parameters of URL, with changes."""
    params = pika.URLParameters(URL)
    params.socket_timeout = PATIENCE
    params.stack_timeout = PATIENCE
    params.blocked_connection_timeout = PATIENCE
    for name, value in changes.items():
        setattr(params, name, value)
    return params


class BrokerCase(unittest.TestCase):
    """A check with a connection and a channel of its own."""

    def setUp(self):
        self.connection = self.connect()
        self.channel = self.connection.channel()

    def connect(self, **changes):
        """A further connection, closed at the end of the check."""
        connection = pika.BlockingConnection(parameters(**changes))
        self.addCleanup(self._close, connection)
        return connection

    @staticmethod
    def _close(connection):
        # A check may have broken it, or made the broker close it.
        with contextlib.suppress(AMQPError):
            if connection.is_open:
                connection.close()

    @staticmethod
    def break_off(connection):
        """Ends a connection without a farewell, as a crash would."""
        connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)

    def name(self, kind="q"):
        """A name that nothing else has."""
        return f"interop-py-{kind}-{os.getpid()}-{next(_numbers)}"

    def queue(self, **options):
        """Declares a durable queue that is deleted at the end."""
        options.setdefault("durable", True)
        name = options.pop("queue", None) or self.name()
        self.channel.queue_declare(name, **options)
        self.addCleanup(self._delete, "queue_delete", name)
        return name

    def exchange(self, kind, **options):
        """Declares a durable exchange that is deleted at the end."""
        options.setdefault("durable", True)
        name = self.name(kind)
        self.channel.exchange_declare(name, exchange_type=kind, **options)
        self.addCleanup(self._delete, "exchange_delete", name)
        return name

    @staticmethod
    def _delete(method, name):
        with pika.BlockingConnection(parameters()) as connection:
            getattr(connection.channel(), method)(name)

    def publish(self, queue, *bodies, properties=PERSISTENT):
        """Publishes to a queue, over the default exchange, and waits for confirms."""
        if not self.channel._delivery_confirmation:
            self.channel.confirm_delivery()
        for body in bodies:
            self.channel.basic_publish("", queue, body, properties)

    def get(self, queue, auto_ack=True, channel=None):
        """The next message as (method, properties, body); waits for it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            method, properties, body = (channel or self.channel).basic_get(queue, auto_ack=auto_ack)
            if method is not None:
                return method, properties, body
            self.connection.sleep(0.01)
        self.fail(f"nothing arrived in {queue}")

    def drain(self, queue, channel=None):
        """The bodies of all messages that are ready, in order."""
        bodies = []
        while True:
            method, _, body = (channel or self.channel).basic_get(queue, auto_ack=True)
            if method is None:
                return bodies
            bodies.append(body)

    def wait(self, condition, connection=None):
        """Serves the connection until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                self.fail("waited in vain")
            (connection or self.connection).process_data_events(time_limit=0.02)

    def sync(self):
        """A round trip: what was sent before has been processed, and if it was
        wrong the broker's answer has come."""
        self.channel.exchange_declare("amq.direct", passive=True)

    def settle(self, seconds=0.3):
        """Serves the connection for a while, to see that nothing more comes."""
        self.connection.process_data_events(time_limit=seconds)

    @contextlib.contextmanager
    def closes_channel(self, code, text=""):
        """The broker closes the channel with this code, and only the channel."""
        with self.assertRaises(ChannelClosedByBroker) as caught:
            yield
        self.assertEqual(caught.exception.reply_code, code, caught.exception.reply_text)
        self.assertIn(text, caught.exception.reply_text)
        self.assertTrue(self.connection.is_open)
        self.channel = self.connection.channel()

    @contextlib.contextmanager
    def closes_connection(self, code, text=""):
        """The broker closes the connection with this code."""
        with self.assertRaises(ConnectionClosedByBroker) as caught:
            yield
        self.assertEqual(caught.exception.reply_code, code, caught.exception.reply_text)
        self.assertIn(text, caught.exception.reply_text)
