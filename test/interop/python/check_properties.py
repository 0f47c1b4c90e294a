"""What stands beside the body arrives as it was sent."""

import datetime
import decimal

import pika
from base import BrokerCase
from pika.exceptions import ConnectionClosedByBroker


class Properties(BrokerCase):
    def round_trip(self, properties):
        queue = self.queue()
        self.publish(queue, b"x", properties=properties)
        return self.get(queue)[1]

    def test_all(self):
        sent = pika.BasicProperties(
            content_type="application/json",
            content_encoding="gzip",
            headers={"k": "v"},
            delivery_mode=2,
            priority=7,
            correlation_id="correlation",
            reply_to="reply",
            message_id="id",
            timestamp=1_700_000_000,
            type="type",
            user_id="guest",
            app_id="app",
            cluster_id="cluster",
        )
        self.assertEqual(self.round_trip(sent), sent)

    def test_expiration(self):
        sent = pika.BasicProperties(expiration="60000")
        try:
            got = self.round_trip(sent)
        except ConnectionClosedByBroker as closed:
            self.assertEqual(closed.reply_code, 540)
            self.skipTest(f"the broker says {closed.reply_text}")
        self.assertEqual(got, sent)

    def test_none(self):
        got = self.round_trip(pika.BasicProperties())
        self.assertEqual({k: v for k, v in vars(got).items() if v is not None}, {})

    def test_user_id_is_checked(self):
        queue = self.queue()
        with self.closes_channel(406, "user_id property set to 'somebody' but authenticated user was 'guest'"):
            self.publish(queue, b"x", properties=pika.BasicProperties(user_id="somebody"))

    def test_header_types(self):
        # All that pika can encode; it knows no floating point.
        headers = {
            "true": True,
            "false": False,
            "small": 1,
            "negative": -5,
            "int": 2**31 - 1,
            "long": 2**40,
            "lowest": -(2**63),
            "decimal": decimal.Decimal("3.14"),
            "string": "gr\u00fc\u00df dich",
            "empty": "",
            "bytes": b"\x00\xff\x80",
            "time": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
            "void": None,
            "list": [1, "two", [3, None], {"four": 4}],
            "table": {"nested": {"deeper": [True]}, "": "empty name"},
            "empty list": [],
            "empty table": {},
            "n" * 128: "a long name",
        }
        got = self.round_trip(pika.BasicProperties(headers=headers)).headers
        self.assertEqual(got.keys(), headers.keys())
        for name, value in headers.items():
            with self.subTest(name=name):
                self.assertEqual(got[name], value)
                self.assertIsInstance(got[name], type(value))

    def test_many_headers(self):
        headers = {f"header-{i}": "v" * 100 for i in range(500)}
        self.assertEqual(self.round_trip(pika.BasicProperties(headers=headers)).headers, headers)
