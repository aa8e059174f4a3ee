"""Interceptors: they see what is sent, what is refused, and hurt nobody."""

from __future__ import annotations

import logging
import threading

import gevent
import pytest

from greendrop import (
    Message,
    MessageInvalidError,
    ProduceManyError,
    Producer,
    ProducerClosedError,
    ProducerNotConfiguredError,
    QueueFullError,
)

NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}


class Noting:
    """Takes note of what it is told, and marks topics and headers."""

    def __init__(self, name="noting"):
        self.name = name
        self.sent = []
        self.batches = []
        self.refused = []

    def on_send(self, message):
        """Note a message, and mark it."""
        self.sent.append(message)
        headers = [*(message.headers or ()), (self.name, b"was here")]
        return message._replace(topic=Marked(message.topic), headers=headers)

    def on_batch(self, messages):
        """Note a batch."""
        self.batches.append(messages)

    def on_send_error(self, message, error):
        """Note one that was not queued."""
        self.refused.append((message, error))


class Marked(str):
    """A topic that can be told from others of its name."""

    __slots__ = ()


@pytest.fixture
def noting():
    """Make an interceptor that takes note."""
    return Noting()


@pytest.fixture
def producer(make_producer, noting):
    """Make a producer that is intercepted."""
    producer = make_producer()
    producer.intercept(lambda _: noting)
    return producer


def test_without_interceptors_nothing_is_in_the_way(make_producer):
    """A producer without interceptors calls its own methods, and no function more."""
    core = make_producer()._core

    assert (core.send, core.send_many) == (core._send, core._send_many)


def test_message_is_seen_in_wire_form_after_middleware(producer, noting):
    """What an interceptor sees has passed all steps, later ones too, and the checks."""
    producer.middleware.append(lambda message: message._replace(payload="changed"))

    producer.produce_sync(topic="events", payload="x", headers={"a": ["1", None]})

    (seen,) = noting.sent
    assert seen == Message("events", b"changed", headers=[("a", b"1"), ("a", None)])
    assert noting.batches == noting.refused == []


def test_verdict_has_the_topic_that_the_interceptor_gave(world, producer):
    """By the topic's very object who traces finds the message again."""
    told = []
    producer.monitor.subscribe(
        "message.acknowledged", lambda event: told.append(event["topic"])
    )

    report = producer.produce_sync(topic="events", payload=b"x")
    (handle,) = producer.produce_many_async([Message("events", b"x")])
    handle.wait()

    topics = [*told, report.topic, handle.topic, handle.report.topic]
    assert [Marked] * 5 == [type(each) for each in topics]
    assert topics == ["events"] * 5


@pytest.mark.slow
def test_failed_message_has_it_too(make_producer, noting):
    """A verdict that is bad is found the same way."""
    producer = make_producer(NOWHERE | {"message.timeout.ms": 50})
    producer.intercept(lambda _: noting)
    told = []
    producer.monitor.subscribe(
        "error.occurred", lambda event: told.append((event["type"], event.payload))
    )

    handle = producer.produce_async(topic="events", payload=b"x")
    with pytest.raises(Exception, match="not delivered"):
        handle.wait()

    (payload,) = [each for kind, each in told if kind == "librdkafka.dispatch_error"]
    assert type(payload["topic"]) is Marked
    assert noting.refused == []


def test_events_tell_what_the_caller_wrote(producer, sent):
    """What an interceptor adds is not in the events of the caller."""
    other, messages = sent
    other.intercept(lambda _: Noting())

    other.produce_sync(topic="events", payload=b"x")
    other.produce_many_sync([Message("events", b"y")])

    assert messages == [Message("events", b"x"), Message("events", b"y")]


def test_every_verb_passes_by_it(producer, noting):
    """Single ones and batches, tombstones, the buffer, and variants of before."""
    producer.tombstone_sync(topic="events", key=b"k", partition=0)
    producer.tombstone_many_sync([{"topic": "events", "key": b"k", "partition": 0}])
    producer.buffer(topic="events", payload=b"1")
    producer.variant(max_wait_timeout=5.0).buffer(topic="events", payload=b"2")
    producer.flush_sync()
    variant = producer.variant(topic_config={"acks": 1})
    variant.produce_async(topic="events", payload=b"3").wait()

    payloads = [message.payload for message in noting.sent]
    assert payloads == [None, None, b"1", b"2", b"3"]
    # Of the buffer each sender's messages are a batch.
    assert [len(batch) for batch in noting.batches] == [1, 1, 1]


def test_message_in_a_transaction_of_its_own_passes_once(make_producer, noting):
    """Sent outside of a transaction, it gets one, and is seen once all the same."""
    producer = make_producer({"transactional.id": "intercepted"})
    producer.intercept(lambda _: noting)

    producer.produce_sync(topic="events", payload=b"1")
    producer.produce_many_sync([Message("events", b"2")])
    with producer.transaction():
        producer.produce_async(topic="events", payload=b"3")

    assert [message.payload for message in noting.sent] == [b"1", b"2", b"3"]
    assert noting.refused == []


def test_invalid_message_is_not_seen(producer, noting):
    """Of a batch with one that breaks the rules nothing is sent, so nothing is seen."""
    with pytest.raises(MessageInvalidError):
        producer.produce_many_sync([Message("events", b"x"), Message("", b"x")])

    assert noting.sent == []


def test_closed_producer_refuses(producer, noting):
    """One that is closed refuses; both are told, the caller and the interceptor."""
    producer.close()

    with pytest.raises(ProducerClosedError) as caught:
        producer.produce_async(topic="events", payload=b"x")
    with pytest.raises(ProducerClosedError):
        producer.produce_many_async([Message("events", b"y")])

    (first, error), (second, _) = noting.refused
    assert error is caught.value
    assert [first.payload, second.payload] == [b"x", b"y"]
    assert type(first.topic) is Marked


def test_end_of_a_batch_that_does_not_fit_is_refused(make_producer, noting):
    """Those that were queued are not told as refused; those after them are."""
    producer = make_producer(
        NOWHERE | {"queue.buffering.max.messages": 2}, wait_on_queue_full=False
    )
    producer.intercept(lambda _: noting)

    with pytest.raises(ProduceManyError) as caught:
        producer.produce_many_async([Message("events", b"%d" % n) for n in range(5)])

    queued = len(caught.value.dispatched)
    assert queued == caught.value.failed_index == 2
    refused = [message.payload for message, _ in noting.refused]
    assert refused == [b"2", b"3", b"4"]
    with pytest.raises(QueueFullError):
        producer.produce_async(topic="events", payload=b"5")
    assert noting.refused[-1][0].payload == b"5"
    # The one that met the full queue was seen once, though it was tried twice.
    assert len(noting.sent) == 6


def test_flush_is_seen_anew_when_it_is_repeated(make_producer, noting):
    """What a flush did not send is refused; the next one sends it as if it were new."""
    producer = make_producer(
        NOWHERE | {"queue.buffering.max.messages": 2}, wait_on_queue_full=False
    )
    producer.intercept(lambda _: noting)
    for number in range(4):
        producer.buffer(topic="events", payload=b"%d" % number)

    with pytest.raises(ProduceManyError):
        producer.flush_async()
    with pytest.raises(ProduceManyError):
        producer.flush_async()

    assert [m.payload for m in noting.sent] == [b"0", b"1", b"2", b"3", b"2", b"3"]
    assert [m.payload for m, _ in noting.refused] == [b"2", b"3", b"2", b"3"]
    assert all(message.headers is None for message in noting.sent)


def test_refused_message_of_a_flush_has_its_topic_in_the_event(
    world, mock_cluster, producer, noting, until
):
    """As any message that was not delivered; the others of the flush pass once."""
    mock_cluster.create_topic("events", partitions=1)
    producer.produce_sync(topic="events", payload=b"x")
    failed = []
    producer.monitor.subscribe(
        "error.occurred",
        lambda event: (
            event["type"] == "librdkafka.dispatch_error"
            and failed.append(event["topic"])
        ),
    )
    for partition in (0, 9, 0):
        producer.buffer(topic="events", payload=b"x", partition=partition)

    with pytest.raises(ProduceManyError) as raised:
        producer.flush_async()
    until(lambda: failed)

    assert len(noting.sent) == 1 + 3
    assert noting.refused == []
    assert [type(topic) for topic in failed] == [Marked]
    assert [type(each.topic) for each in raised.value.dispatched] == [Marked] * 3


def test_killed_while_waiting_for_room_is_refused(hub, make_producer, noting):
    """A greenlet that is killed before its message was queued leaves nothing open."""
    producer = make_producer(NOWHERE | {"queue.buffering.max.messages": 1})
    producer.intercept(lambda _: noting)
    producer.produce_async(topic="events", payload=b"first")
    single = gevent.spawn(producer.produce_async, topic="events", payload=b"second")
    batch = gevent.spawn(producer.produce_many_async, [Message("events", b"third")])
    gevent.sleep(0.05)

    gevent.killall([single, batch])

    refused = {message.payload: error for message, error in noting.refused}
    assert {b"second", b"third"} == refused.keys()
    assert {gevent.GreenletExit} == set(map(type, refused.values()))


def test_one_that_raises_hurts_nobody(producer, noting, caplog):
    """It is logged, and the message goes as it was."""

    def fail(*_):
        raise RuntimeError("broken")

    noting.on_send = noting.on_batch = noting.on_send_error = fail
    with caplog.at_level(logging.ERROR, "greendrop"):
        producer.produce_sync(topic="events", payload=b"x")
        producer.produce_many_sync([Message("events", b"x")])
        producer.close()
        with pytest.raises(ProducerClosedError):
            producer.produce_async(topic="events", payload=b"x")

    assert caplog.text.count("an interceptor raised") == 5
    assert "broken" in caplog.text


def test_second_one_sees_what_the_first_gave(make_producer):
    """Of several the last one that came sees messages first."""
    producer = make_producer()
    inner, outer = Noting("inner"), Noting("outer")
    producer.intercept(lambda _: inner)
    producer.intercept(lambda _: outer)

    producer.produce_sync(topic="events", payload=b"x")

    assert outer.sent[0].headers is None
    assert inner.sent[0].headers == [("outer", b"was here")]


def test_it_is_made_from_the_settings(make_producer):
    """Whoever makes one is given the producer's settings; without any it can't be."""
    producer = make_producer(id="orders")
    ids = []
    producer.intercept(lambda settings: ids.append(settings.id) or Noting())

    assert ids == ["orders"]
    with pytest.raises(ProducerNotConfiguredError):
        Producer().intercept(lambda _: Noting())


@pytest.mark.slow
def test_long_batch_lets_others_run(longest_gap, make_producer, noting):
    """Thousands of messages pass an interceptor that takes its time, cooperatively."""
    producer = make_producer()
    producer.intercept(lambda _: noting)
    producer.produce_sync(topic="events", payload=b"x")
    batch = [Message("events", b"x")] * 30_000

    with longest_gap() as gap:
        producer.produce_many_async(batch)

    assert gap.seconds < 0.1
    assert len(noting.sent) == 30_001


def test_it_may_come_while_others_send(make_producer, noting):
    """Installed in the midst of sending, it loses no message and sees all after it."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x")
    handles = []
    go_on = threading.Event()

    def send():
        while not go_on.is_set():
            handles.append(producer.produce_async(topic="events", payload=b"other"))

    thread = threading.Thread(target=send)
    thread.start()
    producer.intercept(lambda _: noting)
    producer.produce_sync(topic="events", payload=b"mine")
    go_on.set()
    thread.join()

    for handle in handles:
        handle.wait()
    assert b"mine" in [message.payload for message in noting.sent]
