"""Consumers get their messages in order, hold them, and give them back."""

from base import BrokerCase


class Consuming(BrokerCase):
    def consume(self, queue, channel=None, **options):
        """Starts a consumer and returns the list that its deliveries go to."""
        got = []

        def on_message(_channel, method, _properties, body):
            got.append((body, method.delivery_tag, method.redelivered))

        self.tag = (channel or self.channel).basic_consume(queue, on_message, **options)
        return got

    def test_order(self):
        queue = self.queue()
        bodies = [str(i).encode() for i in range(500)]
        self.publish(queue, *bodies)
        got = self.consume(queue, auto_ack=True)
        self.wait(lambda: len(got) == 500)
        self.assertEqual(got, [(b, i + 1, False) for i, b in enumerate(bodies)])

    def test_acknowledged_are_gone(self):
        queue = self.queue()
        self.publish(queue, *(b"%d" % i for i in range(10)))
        got = self.consume(queue)
        self.wait(lambda: len(got) == 10)
        self.channel.basic_ack(got[6][1], multiple=True)
        self.channel.basic_ack(got[8][1])
        self.channel.close()
        self.channel = self.connection.channel()
        left = [self.get(queue) for _ in range(2)]
        self.assertEqual([(m.redelivered, b) for m, _, b in left], [(True, b"7"), (True, b"9")])
        self.assertEqual(self.drain(queue), [])

    def test_nack_multiple_keeps_order(self):
        queue = self.queue()
        self.publish(queue, *(b"%d" % i for i in range(6)))
        got = self.consume(queue)
        self.wait(lambda: len(got) == 6)
        self.channel.basic_cancel(self.tag)
        self.channel.basic_nack(0, multiple=True, requeue=True)
        self.assertEqual(self.drain(queue), [b"%d" % i for i in range(6)])

    def test_rejected_come_back_flagged(self):
        queue = self.queue()
        self.publish(queue, b"1", b"2")
        method, _, _ = self.get(queue, auto_ack=False)
        self.channel.basic_reject(method.delivery_tag, requeue=True)
        again, _, body = self.get(queue)
        self.assertEqual((body, again.redelivered), (b"1", True))
        second, _, body = self.get(queue)
        self.assertEqual((body, second.redelivered), (b"2", False))

    def test_rejected_for_good(self):
        queue = self.queue()
        self.publish(queue, b"1", b"2", b"3")
        self.channel.basic_reject(self.get(queue, auto_ack=False)[0].delivery_tag, requeue=False)
        self.get(queue, auto_ack=False)
        self.channel.basic_nack(self.get(queue, auto_ack=False)[0].delivery_tag, multiple=True, requeue=False)
        self.channel.close()
        self.channel = self.connection.channel()
        self.assertEqual(self.drain(queue), [])

    def test_get_counts(self):
        queue = self.queue()
        self.publish(queue, b"1", b"2", b"3")
        counts = [self.get(queue)[0].message_count for _ in range(3)]
        self.assertEqual(counts, [2, 1, 0])
        self.assertEqual(self.channel.basic_get(queue), (None, None, None))

    def test_prefetch_of_a_consumer(self):
        queue = self.queue()
        self.publish(queue, *(b"%d" % i for i in range(10)))
        self.channel.basic_qos(prefetch_count=3)
        got = self.consume(queue)
        self.wait(lambda: len(got) == 3)
        self.settle()
        self.assertEqual(len(got), 3)
        self.channel.basic_ack(got[0][1])
        self.wait(lambda: len(got) == 4)
        self.channel.basic_ack(got[3][1], multiple=True)
        self.wait(lambda: len(got) == 7)
        self.settle()
        self.assertEqual(len(got), 7)

    def test_prefetch_of_a_channel(self):
        one, two = self.queue(), self.queue()
        for queue in (one, two):
            self.publish(queue, *(b"%d" % i for i in range(10)))
        self.channel.basic_qos(prefetch_count=5, global_qos=True)
        first, second = self.consume(one), self.consume(two)
        self.wait(lambda: len(first) + len(second) == 5)
        self.settle()
        self.assertEqual(len(first) + len(second), 5)
        self.channel.basic_ack(0, multiple=True)
        self.wait(lambda: len(first) + len(second) == 10)

    def test_auto_ack_ignores_prefetch(self):
        queue = self.queue()
        self.publish(queue, *(b"%d" % i for i in range(10)))
        self.channel.basic_qos(prefetch_count=1)
        got = self.consume(queue, auto_ack=True)
        self.wait(lambda: len(got) == 10)

    def test_consumers_share(self):
        queue = self.queue()
        self.channel.basic_qos(prefetch_count=1)
        lists = [self.consume(queue) for _ in range(4)]
        self.publish(queue, b"1", b"2", b"3", b"4")
        self.wait(lambda: sum(map(len, lists)) == 4)
        self.assertEqual([len(one) for one in lists], [1, 1, 1, 1])

    def test_exclusive_consumer(self):
        queue = self.queue()
        other = self.connect().channel()
        self.consume(queue, channel=other, exclusive=True)
        text = f"ACCESS_REFUSED - queue '{queue}' in vhost '/' in exclusive use"
        with self.closes_channel(403, text):
            self.consume(queue)
        other.basic_cancel(self.tag)
        self.consume(queue)
        with self.closes_channel(403, text):
            self.consume(queue, exclusive=True)

    def test_cancel(self):
        queue = self.queue()
        self.publish(queue, b"1")
        got = self.consume(queue, consumer_tag="mine")
        self.assertEqual(self.tag, "mine")
        self.wait(lambda: got)
        self.channel.basic_cancel("mine")
        self.publish(queue, b"2")
        self.settle()
        self.assertEqual(len(got), 1)
        self.channel.basic_ack(got[0][1])  # what it had may still be acknowledged
        self.assertEqual(self.drain(queue), [b"2"])

    def test_told_when_the_queue_goes(self):
        queue, canceled = self.queue(), []
        self.channel.add_on_cancel_callback(canceled.append)
        self.consume(queue)
        self.connect().channel().queue_delete(queue)
        self.wait(lambda: canceled)
        self.assertEqual(canceled[0].method.consumer_tag, self.tag)

    def test_recover(self):
        queue = self.queue()
        self.publish(queue, b"1", b"2")
        got = self.consume(queue)
        self.wait(lambda: len(got) == 2)
        self.channel.basic_recover(requeue=True)
        self.wait(lambda: len(got) == 4)
        self.assertEqual(
            [(body, redelivered) for body, _, redelivered in got],
            [(b"1", False), (b"2", False), (b"1", True), (b"2", True)],
        )

    def test_given_back_when_the_connection_breaks(self):
        queue = self.queue()
        self.publish(queue, b"1", b"2")
        broken = self.connect()
        channel = broken.channel()
        for _ in range(2):
            self.get(queue, auto_ack=False, channel=channel)
        self.break_off(broken)
        for body in (b"1", b"2"):
            method, _, got = self.get(queue)
            self.assertEqual((got, method.redelivered), (body, True))

    def test_unknown_delivery_tag(self):
        for settle in (self.channel.basic_ack, self.channel.basic_nack, self.channel.basic_reject):
            queue = self.queue()
            self.publish(queue, b"1")
            with self.closes_channel(406, "PRECONDITION_FAILED - unknown delivery tag 99"):
                getattr(self.channel, settle.__name__)(99)
                self.sync()

    def test_acknowledged_twice(self):
        queue = self.queue()
        self.publish(queue, b"1")
        tag = self.get(queue, auto_ack=False)[0].delivery_tag
        self.channel.basic_ack(tag)
        with self.closes_channel(406, f"unknown delivery tag {tag}"):
            self.channel.basic_ack(tag)
            self.sync()
