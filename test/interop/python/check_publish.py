"""Messages are routed, confirmed, returned, and keep their bytes."""

import os

import pika
from base import PERSISTENT, BrokerCase, parameters
from pika.exceptions import UnroutableError


class Routing(BrokerCase):
    def route(self, exchange, key="", headers=None):
        """Publishes one message that must be routed somewhere."""
        self.channel.basic_publish(exchange, key, f"{key}{headers or ''}", pika.BasicProperties(headers=headers))

    def test_default_exchange(self):
        queue = self.queue()
        self.publish(queue, b"x")
        method, _, body = self.get(queue)
        self.assertEqual((method.exchange, method.routing_key, body), ("", queue, b"x"))
        self.assertFalse(method.redelivered)

    def test_direct(self):
        exchange, red, blue = self.exchange("direct"), self.queue(), self.queue()
        for queue, key in ((red, "red"), (blue, "blue"), (red, "both"), (blue, "both"), (blue, "both")):
            self.channel.queue_bind(queue, exchange, key)
        self.channel.confirm_delivery()
        for key in ("red", "blue", "both", "none", ""):
            self.route(exchange, key)
        self.assertEqual(self.drain(red), [b"red", b"both"])
        self.assertEqual(self.drain(blue), [b"blue", b"both"])

    def test_fanout(self):
        exchange, queues = self.exchange("fanout"), [self.queue() for _ in range(3)]
        for i, queue in enumerate(queues):
            self.channel.queue_bind(queue, exchange, f"ignored {i}")
        self.channel.confirm_delivery()
        self.route(exchange, "k")
        self.assertEqual([self.drain(q) for q in queues], [[b"k"]] * 3)

    def test_topic(self):
        exchange = self.exchange("topic")
        patterns = {
            "stock.usd.nyse": ["stock.usd.nyse"],
            "stock.*": ["stock.usd"],
            "stock.#": ["stock", "stock.usd", "stock.usd.nyse", "stock..nyse"],
            "*.usd.*": ["stock.usd.nyse"],
            "#.nyse": ["stock.usd.nyse", "stock..nyse", "nyse"],
            "stock.*.nyse": ["stock.usd.nyse", "stock..nyse"],
            "#": ["stock", "stock.usd", "stock.usd.nyse", "stock..nyse", "nyse", ""],
            "*": ["stock", "nyse", ""],
            "#.#": ["stock", "stock.usd", "stock.usd.nyse", "stock..nyse", "nyse", ""],
            "*.#.*": ["stock.usd", "stock.usd.nyse", "stock..nyse"],
        }
        queues = {}
        for pattern in patterns:
            queues[pattern] = self.queue()
            self.channel.queue_bind(queues[pattern], exchange, pattern)
        self.channel.confirm_delivery()
        for key in ("stock", "stock.usd", "stock.usd.nyse", "stock..nyse", "nyse", ""):
            self.route(exchange, key)
        for pattern, keys in patterns.items():
            with self.subTest(pattern=pattern):
                got = [body.decode() for body in self.drain(queues[pattern])]
                # RabbitMQ takes the empty key for no word at all.
                self.assertEqual([k for k in got if k], [k for k in keys if k])

    def test_headers(self):
        exchange = self.exchange("headers")
        bindings = {
            "all": {"x-match": "all", "a": 1, "b": "two"},
            "any": {"x-match": "any", "a": 1, "b": "two"},
            "default": {"a": 1, "b": "two"},
            "present": {"a": None},
        }
        queues = {}
        for name, arguments in bindings.items():
            queues[name] = self.queue()
            self.channel.queue_bind(queues[name], exchange, "", arguments=arguments)
        self.channel.confirm_delivery()
        for number, headers in enumerate(({"a": 1, "b": "two", "c": 3}, {"a": 1}, {"b": "two"}, {"a": 2}, {"c": 3})):
            self.channel.basic_publish(exchange, "", str(number), pika.BasicProperties(headers=headers))
        got = {name: b"".join(self.drain(queue)).decode() for name, queue in queues.items()}
        self.assertEqual(got, {"all": "0", "any": "012", "default": "0", "present": "013"})

    def test_exchange_to_exchange(self):
        source, middle, queue = self.exchange("topic"), self.exchange("direct"), self.queue()
        self.channel.exchange_bind(middle, source, "#")
        self.channel.queue_bind(queue, middle, "a.b")
        self.channel.confirm_delivery()
        self.route(source, "a.b")
        self.route(source, "a.c")
        method, _, body = self.get(queue)
        self.assertEqual((method.exchange, body), (source, b"a.b"))
        self.channel.exchange_unbind(middle, source, "#")
        self.route(source, "a.b")
        self.assertEqual(self.drain(queue), [])

    def test_alternate_exchange(self):
        other, queue = self.exchange("fanout"), self.queue()
        exchange = self.exchange("direct", arguments={"alternate-exchange": other})
        self.channel.queue_bind(queue, other)
        self.channel.confirm_delivery()
        self.channel.basic_publish(exchange, "nobody", b"x", mandatory=True)
        self.assertEqual(self.get(queue)[0].exchange, exchange)

    def test_sender_selected(self):
        one, two, three = self.queue(), self.queue(), self.queue()
        self.channel.confirm_delivery()
        self.channel.basic_publish("", one, b"x", pika.BasicProperties(headers={"CC": [two], "BCC": [three]}))
        headers = [self.get(queue)[1].headers for queue in (one, two, three)]
        self.assertEqual(headers, [{"CC": [two]}] * 3)

    def test_missing_exchange(self):
        name = self.name("x")
        with self.closes_channel(404, f"NOT_FOUND - no exchange '{name}' in vhost '/'"):
            self.channel.confirm_delivery()
            self.channel.basic_publish(name, "k", b"x")


class Confirms(BrokerCase):
    def test_unroutable_is_confirmed(self):
        self.channel.confirm_delivery()
        self.channel.basic_publish("amq.direct", self.name(), b"x")

    def test_mandatory_returns_first(self):
        self.channel.confirm_delivery()
        with self.assertRaises(UnroutableError) as caught:
            self.channel.basic_publish(
                "amq.direct", "nobody", b"body", pika.BasicProperties(headers={"k": "v"}), mandatory=True
            )
        (message,) = caught.exception.messages
        method = message.method
        self.assertEqual(
            (method.reply_code, method.reply_text, method.exchange, method.routing_key),
            (312, "NO_ROUTE", "amq.direct", "nobody"),
        )
        self.assertEqual((message.properties.headers, message.body), ({"k": "v"}, b"body"))

    def test_mandatory_without_confirms(self):
        returned = []
        self.channel.add_on_return_callback(lambda *args: returned.append(args))
        self.channel.basic_publish("", self.name(), b"x", mandatory=True)
        self.wait(lambda: returned)

    def test_all_are_confirmed_once(self):
        """Many at once over the asynchronous adapter; confirms may be coalesced."""
        queue, total, state = self.queue(), 3000, {"acked": 0, "tags": [], "errors": []}

        def on_confirm(frame):
            method = frame.method
            if not isinstance(method, pika.spec.Basic.Ack):
                state["errors"].append(method)
            first = state["acked"] + 1 if method.multiple else method.delivery_tag
            state["tags"].extend(range(first, method.delivery_tag + 1))
            state["acked"] = max(state["acked"], method.delivery_tag)
            if len(state["tags"]) >= total:
                connection.close()

        def on_channel(channel):
            channel.confirm_delivery(on_confirm)
            for i in range(total):
                channel.basic_publish("", queue, str(i), PERSISTENT)

        connection = pika.SelectConnection(
            parameters(),
            on_open_callback=lambda c: c.channel(on_open_callback=on_channel),
            on_open_error_callback=lambda c, e: (state["errors"].append(e), c.ioloop.stop()),
            on_close_callback=lambda c, _: c.ioloop.stop(),
        )
        connection.ioloop.call_later(20, connection.ioloop.stop)
        connection.ioloop.start()
        self.assertEqual(state["errors"], [])
        self.assertEqual(sorted(state["tags"]), list(range(1, total + 1)))
        self.assertEqual(self.drain(queue), [str(i).encode() for i in range(total)])


class Bodies(BrokerCase):
    def check(self, *bodies):
        queue = self.queue()
        self.publish(queue, *bodies)
        for body in bodies:
            got = self.get(queue)[2]
            self.assertEqual(len(got), len(body))
            self.assertTrue(got == body, "the bytes differ")

    def test_empty(self):
        self.check(b"")

    def test_around_the_frame_size(self):
        size = self.connection._impl.params.frame_max or 131072
        self.check(*(os.urandom(n) for n in (1, size - 9, size - 8, size - 7, 2 * (size - 8), 2 * size)))

    def test_five_megabytes(self):
        self.check(os.urandom(5 << 20))

    def test_small_frames(self):
        self.connection = self.connect(frame_max=4096)
        self.channel = self.connection.channel()
        self.check(os.urandom(100_000), b"small")
