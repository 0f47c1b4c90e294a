"""Queues, exchanges and bindings come, go and are compared."""

from base import BrokerCase
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker


class Queues(BrokerCase):
    def test_server_named(self):
        name = self.channel.queue_declare("", exclusive=True).method.queue
        self.assertRegex(name, r"^amq\.gen-.+")
        other = self.channel.queue_declare("", exclusive=True).method.queue
        self.assertNotEqual(name, other)

    def test_last_declared_is_the_empty_name(self):
        name = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.queue_bind("", "amq.direct", name)
        self.publish(name, b"x")
        self.assertEqual(self.get("")[2], b"x")

    def test_passive_reports_counts(self):
        name = self.queue()
        self.publish(name, b"1", b"2", b"3")
        self.connect().channel().basic_consume(self.queue(), lambda *_: None)
        method = self.channel.queue_declare(name, passive=True).method
        self.assertEqual((method.queue, method.message_count, method.consumer_count), (name, 3, 0))

    def test_passive_of_a_missing_queue(self):
        name = self.name()
        with self.closes_channel(404, f"NOT_FOUND - no queue '{name}' in vhost '/'"):
            self.channel.queue_declare(name, passive=True)

    def test_declared_again(self):
        name = self.queue()
        self.publish(name, b"1")
        self.assertEqual(self.channel.queue_declare(name, durable=True).method.message_count, 1)

    def test_declared_again_otherwise(self):
        name = self.queue()
        text = (
            f"PRECONDITION_FAILED - inequivalent arg 'durable' for queue '{name}' in vhost '/': "
            "received 'false' but current is 'true'"
        )
        with self.closes_channel(406, text):
            self.channel.queue_declare(name, durable=False)

    def test_unknown_arguments_are_ignored(self):
        name = self.queue(arguments={"x-of-my-own": 1})
        self.channel.queue_declare(name, durable=True, arguments={"x-of-my-own": "other"})
        self.channel.queue_declare(name, durable=True)

    def test_delete_counts(self):
        name = self.queue()
        self.publish(name, b"1", b"2")
        self.assertEqual(self.channel.queue_delete(name).method.message_count, 2)
        self.assertEqual(self.channel.queue_delete(name).method.message_count, 0)

    def test_delete_if_empty(self):
        name = self.queue()
        self.publish(name, b"1")
        with self.closes_channel(406, f"queue '{name}' in vhost '/' not empty"):
            self.channel.queue_delete(name, if_empty=True)
        self.drain(name)
        self.channel.queue_delete(name, if_empty=True)

    def test_delete_if_unused(self):
        name = self.queue()
        consumer = self.connect()
        tag = (channel := consumer.channel()).basic_consume(name, lambda *_: None)
        with self.closes_channel(406, f"queue '{name}' in vhost '/' in use"):
            self.channel.queue_delete(name, if_unused=True)
        channel.basic_cancel(tag)
        self.channel.queue_delete(name, if_unused=True)

    def test_purge(self):
        name = self.queue()
        self.publish(name, b"1", b"2", b"3")
        held = self.get(name, auto_ack=False)[0]
        self.assertEqual(self.channel.queue_purge(name).method.message_count, 2)
        self.channel.basic_nack(held.delivery_tag)
        self.assertEqual(self.get(name)[2], b"1")

    def test_auto_delete(self):
        name = self.name()
        self.channel.queue_declare(name, auto_delete=True)
        tags = [self.channel.basic_consume(name, lambda *_: None) for _ in range(2)]
        self.channel.basic_cancel(tags[0])
        self.channel.queue_declare(name, passive=True)
        self.channel.basic_cancel(tags[1])
        with self.closes_channel(404):
            self.channel.queue_declare(name, passive=True)

    def test_exclusive(self):
        name = self.name()
        owner = self.connect()
        owner.channel().queue_declare(name, exclusive=True)
        text = f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{name}' in vhost '/'"
        for attempt in (
            lambda: self.channel.queue_declare(name, exclusive=True),
            lambda: self.channel.queue_declare(name, passive=True),
            lambda: self.channel.basic_consume(name, lambda *_: None),
            lambda: self.channel.basic_get(name),
            lambda: self.channel.queue_purge(name),
            lambda: self.channel.queue_delete(name),
        ):
            with self.closes_channel(405, text):
                attempt()
        owner.close()
        with self.closes_channel(404):
            self.channel.queue_declare(name, passive=True)

    def test_transient_queue_that_is_shared(self):
        name = self.queue(durable=False)
        self.publish(name, b"x")
        self.assertEqual(self.get(name, channel=self.connect().channel())[2], b"x")


class Exchanges(BrokerCase):
    def test_predeclared(self):
        for name in ("amq.direct", "amq.fanout", "amq.topic", "amq.headers", "amq.match"):
            self.channel.exchange_declare(name, passive=True)

    def test_passive_of_a_missing_exchange(self):
        name = self.name()
        with self.closes_channel(404, f"NOT_FOUND - no exchange '{name}' in vhost '/'"):
            self.channel.exchange_declare(name, passive=True)

    def test_declared_again(self):
        name = self.exchange("topic")
        self.channel.exchange_declare(name, exchange_type="topic", durable=True)
        text = (
            f"inequivalent arg 'type' for exchange '{name}' in vhost '/': "
            "received 'fanout' but current is 'topic'"
        )
        with self.closes_channel(406, text):
            self.channel.exchange_declare(name, exchange_type="fanout", durable=True)

    def test_unknown_type(self):
        # RabbitMQ 4 closes the channel with 406, before it was the connection with 503.
        with self.assertRaises((ChannelClosedByBroker, ConnectionClosedByBroker)) as caught:
            self.channel.exchange_declare(self.name(), exchange_type="no-such-type")
        self.assertIn(caught.exception.reply_code, (406, 503))
        self.assertIn("unknown exchange type 'no-such-type'", caught.exception.reply_text)

    def test_reserved_names(self):
        with self.closes_channel(403, "ACCESS_REFUSED - exchange name 'amq.mine' contains reserved prefix 'amq.*'"):
            self.channel.exchange_declare("amq.mine", durable=True)
        with self.closes_channel(403, "operation not permitted on the default exchange"):
            self.channel.exchange_declare("", durable=True)
        with self.closes_channel(403):
            self.channel.exchange_delete("amq.direct")

    def test_delete_if_unused(self):
        name, queue = self.exchange("direct"), self.queue()
        self.channel.queue_bind(queue, name, "k")
        with self.closes_channel(406, f"exchange '{name}' in vhost '/' in use"):
            self.channel.exchange_delete(name, if_unused=True)
        self.channel.queue_unbind(queue, name, "k")
        self.channel.exchange_delete(name, if_unused=True)
        self.channel.exchange_delete(name)  # once more is no error

    def test_auto_delete(self):
        name, queue = self.exchange("direct", auto_delete=True), self.queue()
        self.channel.queue_bind(queue, name, "k")
        self.channel.queue_unbind(queue, name, "k")
        with self.closes_channel(404):
            self.channel.exchange_declare(name, passive=True)

    def test_internal(self):
        name = self.exchange("fanout", internal=True)
        with self.closes_channel(403, f"cannot publish to internal exchange '{name}' in vhost '/'"):
            self.channel.basic_publish(name, "k", b"x")
            self.sync()

    def test_bindings_need_both_ends(self):
        name, queue = self.name(), self.queue()
        with self.closes_channel(404, f"no exchange '{name}'"):
            self.channel.queue_bind(queue, name, "k")
        with self.closes_channel(404, f"no queue '{name}'"):
            self.channel.queue_bind(name, "amq.direct", "k")
        self.channel.queue_unbind(queue, "amq.direct", "never bound")  # is no error
