"""Transactions of the tx class."""

from base import BrokerCase


class Transactions(BrokerCase):
    def setUp(self):
        super().setUp()
        self.destination = self.queue()
        self.reader = self.connect().channel()
        self.channel.tx_select()

    def send(self, *bodies):
        for body in bodies:
            self.channel.basic_publish("", self.destination, body)

    def test_commit(self):
        self.send(b"1", b"2")
        self.sync()
        self.assertEqual(self.drain(self.destination, self.reader), [])
        self.channel.tx_commit()
        self.assertEqual(self.drain(self.destination, self.reader), [b"1", b"2"])

    def test_rollback(self):
        self.send(b"1")
        self.channel.tx_rollback()
        self.send(b"2")
        self.channel.tx_commit()
        self.assertEqual(self.drain(self.destination, self.reader), [b"2"])

    def test_close_rolls_back(self):
        self.send(b"1")
        self.channel.close()
        self.assertEqual(self.drain(self.destination, self.reader), [])

    def test_acknowledgements(self):
        self.reader.basic_publish("", self.destination, b"1")
        tag = self.get(self.destination, auto_ack=False)[0].delivery_tag
        self.channel.basic_ack(tag)
        self.channel.tx_rollback()
        self.channel.basic_ack(tag)  # the rollback made it acknowledgeable again
        self.channel.tx_commit()
        self.channel.close()
        self.assertEqual(self.drain(self.destination, self.reader), [])

    def test_acknowledgement_is_not_committed(self):
        self.reader.basic_publish("", self.destination, b"1")
        self.channel.basic_ack(self.get(self.destination, auto_ack=False)[0].delivery_tag)
        self.channel.close()
        self.channel = self.connection.channel()
        self.assertTrue(self.get(self.destination)[0].redelivered)

    def test_not_with_confirms(self):
        with self.closes_channel(406, "cannot switch from tx to confirm mode"):
            self.channel.confirm_delivery()

    def test_needs_select(self):
        channel = self.connection.channel()
        with self.closes_channel(406, "channel is not transactional"):
            channel.tx_commit()
