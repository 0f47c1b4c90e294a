"""Connections are opened, refused, kept alive and taken up again."""

import time

import pika
from base import BrokerCase, parameters
from pika.exceptions import AMQPConnectionError, ProbableAccessDeniedError, ProbableAuthenticationError


class Connections(BrokerCase):
    def test_server_properties(self):
        properties = self.connection._impl.server_properties
        self.assertEqual(properties["product"], "RabbitMQ")
        self.assertRegex(properties["version"], r"^\d+\.\d+\.\d+")
        capabilities = properties["capabilities"]
        for name in (
            "authentication_failure_close",
            "basic.nack",
            "connection.blocked",
            "consumer_cancel_notify",
            "exchange_exchange_bindings",
            "per_consumer_qos",
            "publisher_confirms",
        ):
            self.assertIs(capabilities.get(name), True, name)

    def test_wrong_password(self):
        with self.assertRaises(ProbableAuthenticationError) as caught:
            self.connect(credentials=pika.PlainCredentials("guest", "wrong"))
        self.assertIn("ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN", str(caught.exception))

    def test_unknown_vhost(self):
        with self.assertRaises((ProbableAccessDeniedError, AMQPConnectionError)) as caught:
            self.connect(virtual_host="no such vhost")
        self.assertIn("530", str(caught.exception))

    def test_many_channels(self):
        channels = [self.connection.channel() for _ in range(200)]
        queue = self.queue()
        for i, channel in enumerate(channels):
            channel.basic_publish("", queue, str(i))
        for channel in channels:
            channel.close()
        self.wait(lambda: self.channel.queue_declare(queue, passive=True).method.message_count == 200)
        self.assertEqual(sorted(map(int, self.drain(queue))), list(range(200)))

    def test_channel_number_is_free_again(self):
        for _ in range(50):
            channel = self.connection.channel(channel_number=7)
            channel.queue_declare("", exclusive=True)
            channel.close()

    def test_an_error_closes_its_channel_only(self):
        other = self.connection.channel()
        with self.closes_channel(404):
            self.channel.basic_consume(self.name(), lambda *_: None)
        other.queue_declare("", exclusive=True)

    def test_reused_consumer_tag(self):
        queue = self.queue()
        self.channel.basic_consume(queue, lambda *_: None, consumer_tag="t")
        method = pika.spec.Basic.Consume(queue=queue, consumer_tag="t")
        with self.closes_connection(530, "NOT_ALLOWED - attempt to reuse consumer tag 't'"):
            self.channel._impl._send_method(method)  # pika itself would refuse
            self.sync()

    def test_flow_stop_is_refused(self):
        with self.closes_connection(540, "NOT_IMPLEMENTED - active=false"):
            self.channel.flow(False)

    def test_heartbeats_keep_it_alive(self):
        connection = self.connect(heartbeat=1)
        connection.process_data_events(time_limit=3.5)
        connection.channel().queue_declare("", exclusive=True)

    def test_silence_closes_it(self):
        queue = self.queue()
        connection = self.connect(heartbeat=1)
        self.publish(queue, b"x")
        channel = connection.channel()
        self.get(queue, auto_ack=False, channel=channel)
        deadline = time.monotonic() + 10
        while True:  # serve ours, not theirs: they say nothing any more
            method, _, _ = self.channel.basic_get(queue, auto_ack=True)
            if method is not None:
                break
            self.assertLess(time.monotonic(), deadline, "the silent connection is still held")
            self.connection.sleep(0.1)
        self.assertTrue(method.redelivered)

    def test_update_secret(self):
        update = getattr(self.connection, "update_secret", None)
        if update is None:
            self.skipTest("this pika has no update_secret")
        update("new-secret", "rotation")
        self.channel.queue_declare("", exclusive=True)

    def test_taken_up_again(self):
        queue = self.queue()
        self.publish(queue, b"1", b"2")
        for body in (b"1", b"2"):
            connection = pika.BlockingConnection(parameters())
            channel = connection.channel()
            method, _, got = self.get(queue, auto_ack=False, channel=channel)
            self.assertEqual(got, body)
            channel.basic_ack(method.delivery_tag)
            channel.queue_declare(queue, passive=True)  # the ack is processed by now
            self.break_off(connection)
        self.assertEqual(self.drain(queue), [])
