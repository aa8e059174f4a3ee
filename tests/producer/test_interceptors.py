"""Interceptors: they see messages that are sent or refused, and can't break a send."""

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


class RecordingInterceptor:
    """An interceptor that records its calls, and marks topics and headers."""

    def __init__(self, name="interceptor"):
        self.name = name
        self.sent = []
        self.batches = []
        self.refused = []

    def on_send(self, message):
        """Record a message, and mark it."""
        self.sent.append(message)
        headers = [*(message.headers or ()), (self.name, b"was here")]
        return message._replace(topic=MarkedTopic(message.topic), headers=headers)

    def on_batch(self, messages):
        """Record a batch."""
        self.batches.append(messages)

    def on_send_error(self, message, error):
        """Record a message that was not queued."""
        self.refused.append((message, error))


class MarkedTopic(str):
    """A topic that is distinguishable from equal topics."""

    __slots__ = ()


@pytest.fixture
def interceptor():
    """Make a recording interceptor."""
    return RecordingInterceptor()


@pytest.fixture
def producer(make_producer, interceptor):
    """Make a producer with an interceptor."""
    producer = make_producer()
    producer.intercept(lambda _: interceptor)
    return producer


def test_without_interceptors_the_send_path_is_unchanged(make_producer):
    """A producer without interceptors calls its own methods, and nothing more."""
    core = make_producer()._core

    assert (core.send, core.send_many) == (core._send, core._send_many)


def test_message_is_seen_normalized_after_middleware(producer, interceptor):
    """An interceptor sees messages after all middleware and validation."""
    producer.middleware.append(lambda message: message._replace(payload="changed"))

    producer.produce_sync(topic="events", payload="x", headers={"a": ["1", None]})

    (seen,) = interceptor.sent
    assert seen == Message("events", b"changed", headers=[("a", b"1"), ("a", None)])
    assert interceptor.batches == interceptor.refused == []


def test_report_has_the_topic_object_of_the_interceptor(world, producer):
    """A tracer finds its message again by the identity of the report's topic."""
    observed = []
    producer.monitor.subscribe(
        "message.acknowledged", lambda event: observed.append(event["topic"])
    )

    report = producer.produce_sync(topic="events", payload=b"x")
    (handle,) = producer.produce_many_async([Message("events", b"x")])
    handle.wait()

    topics = [*observed, report.topic, handle.topic, handle.report.topic]
    assert [MarkedTopic] * 5 == [type(each) for each in topics]
    assert topics == ["events"] * 5


@pytest.mark.slow
def test_error_has_the_topic_object_of_the_interceptor(make_producer, interceptor):
    """The error of a failed message has the same topic."""
    producer = make_producer(NOWHERE | {"message.timeout.ms": 50})
    producer.intercept(lambda _: interceptor)
    observed = []
    producer.monitor.subscribe(
        "error.occurred", lambda event: observed.append((event["type"], event.payload))
    )

    handle = producer.produce_async(topic="events", payload=b"x")
    with pytest.raises(Exception, match="not delivered"):
        handle.wait()

    (payload,) = [
        each for kind, each in observed if kind == "librdkafka.dispatch_error"
    ]
    assert type(payload["topic"]) is MarkedTopic
    assert interceptor.refused == []


def test_events_have_the_message_of_the_caller(producer, sent):
    """The marks of an interceptor are not in the events of the caller."""
    other, messages = sent
    other.intercept(lambda _: RecordingInterceptor())

    other.produce_sync(topic="events", payload=b"x")
    other.produce_many_sync([Message("events", b"y")])

    assert messages == [Message("events", b"x"), Message("events", b"y")]


def test_every_verb_is_intercepted(producer, interceptor):
    """Messages, batches, tombstones, the buffer and older variants are intercepted."""
    producer.tombstone_sync(topic="events", key=b"k", partition=0)
    producer.tombstone_many_sync([{"topic": "events", "key": b"k", "partition": 0}])
    producer.buffer(topic="events", payload=b"1")
    producer.variant(max_wait_timeout=5.0).buffer(topic="events", payload=b"2")
    producer.flush_sync()
    variant = producer.variant(topic_config={"acks": 1})
    variant.produce_async(topic="events", payload=b"3").wait()

    payloads = [message.payload for message in interceptor.sent]
    assert payloads == [None, None, b"1", b"2", b"3"]
    # Buffered neighbours with the same topic configuration are one batch.
    assert [len(batch) for batch in interceptor.batches] == [1, 2]


def test_message_in_a_transaction_of_its_own_passes_once(make_producer, interceptor):
    """A message that is sent outside of a transaction is seen once in its own."""
    producer = make_producer({"transactional.id": "intercepted"})
    producer.intercept(lambda _: interceptor)

    producer.produce_sync(topic="events", payload=b"1")
    producer.produce_many_sync([Message("events", b"2")])
    with producer.transaction():
        producer.produce_async(topic="events", payload=b"3")

    assert [message.payload for message in interceptor.sent] == [b"1", b"2", b"3"]
    assert interceptor.refused == []


def test_invalid_message_is_not_seen(producer, interceptor):
    """Nothing of a batch with an invalid message is sent, so nothing is seen."""
    with pytest.raises(MessageInvalidError):
        producer.produce_many_sync([Message("events", b"x"), Message("", b"x")])

    assert interceptor.sent == []


def test_closed_producer_refuses(producer, interceptor):
    """The closed error is raised in the caller and passed to the interceptor."""
    producer.close()

    with pytest.raises(ProducerClosedError) as caught:
        producer.produce_async(topic="events", payload=b"x")
    with pytest.raises(ProducerClosedError):
        producer.produce_many_async([Message("events", b"y")])

    (first, error), (second, _) = interceptor.refused
    assert error is caught.value
    assert [first.payload, second.payload] == [b"x", b"y"]
    assert type(first.topic) is MarkedTopic


def test_rest_of_a_batch_that_does_not_fit_is_refused(make_producer, interceptor):
    """Queued messages are not reported as refused; the ones after them are."""
    producer = make_producer(
        NOWHERE | {"queue.buffering.max.messages": 2}, wait_on_queue_full=False
    )
    producer.intercept(lambda _: interceptor)

    with pytest.raises(ProduceManyError) as caught:
        producer.produce_many_async([Message("events", b"%d" % n) for n in range(5)])

    queued = len(caught.value.dispatched)
    assert queued == caught.value.failed_index == 2
    refused = [message.payload for message, _ in interceptor.refused]
    assert refused == [b"2", b"3", b"4"]
    with pytest.raises(QueueFullError):
        producer.produce_async(topic="events", payload=b"5")
    assert interceptor.refused[-1][0].payload == b"5"
    # The message that met the full queue was seen once, though it was tried twice.
    assert len(interceptor.sent) == 6


def test_repeated_flush_is_seen_again(make_producer, interceptor):
    """Messages that a flush did not send are refused, and sent by the next flush."""
    producer = make_producer(
        NOWHERE | {"queue.buffering.max.messages": 2}, wait_on_queue_full=False
    )
    producer.intercept(lambda _: interceptor)
    for number in range(4):
        producer.buffer(topic="events", payload=b"%d" % number)

    with pytest.raises(ProduceManyError):
        producer.flush_async()
    with pytest.raises(ProduceManyError):
        producer.flush_async()

    assert [m.payload for m in interceptor.sent] == [b"0", b"1", b"2", b"3", b"2", b"3"]
    assert [m.payload for m, _ in interceptor.refused] == [b"2", b"3", b"2", b"3"]
    assert all(message.headers is None for message in interceptor.sent)


def test_refused_message_of_a_flush_has_its_topic_in_the_event(
    world, mock_cluster, producer, interceptor, until
):
    """The event is that of an undelivered message; other messages pass once."""
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

    assert len(interceptor.sent) == 1 + 3
    assert interceptor.refused == []
    assert [type(topic) for topic in failed] == [MarkedTopic]
    assert [type(each.topic) for each in raised.value.dispatched] == [MarkedTopic] * 3


def test_message_of_a_killed_sender_is_refused(hub, make_producer, interceptor):
    """A greenlet that is killed before its message was queued gets it refused."""
    producer = make_producer(NOWHERE | {"queue.buffering.max.messages": 1})
    producer.intercept(lambda _: interceptor)
    producer.produce_async(topic="events", payload=b"first")
    single = gevent.spawn(producer.produce_async, topic="events", payload=b"second")
    batch = gevent.spawn(producer.produce_many_async, [Message("events", b"third")])
    gevent.sleep(0.05)

    gevent.killall([single, batch])

    refused = {message.payload: error for message, error in interceptor.refused}
    assert {b"second", b"third"} == refused.keys()
    assert {gevent.GreenletExit} == set(map(type, refused.values()))


def test_interceptor_that_raises_does_not_affect_the_send(
    producer, interceptor, caplog
):
    """The error is logged, and the message is sent unchanged."""

    def fail(*_):
        raise RuntimeError("broken")

    interceptor.on_send = interceptor.on_batch = interceptor.on_send_error = fail
    with caplog.at_level(logging.ERROR, "greendrop"):
        producer.produce_sync(topic="events", payload=b"x")
        producer.produce_many_sync([Message("events", b"x")])
        producer.close()
        with pytest.raises(ProducerClosedError):
            producer.produce_async(topic="events", payload=b"x")

    assert caplog.text.count("an interceptor raised") == 5
    assert "broken" in caplog.text


def test_interceptors_are_nested(make_producer):
    """The interceptor that was added last sees messages first."""
    producer = make_producer()
    inner, outer = RecordingInterceptor("inner"), RecordingInterceptor("outer")
    producer.intercept(lambda _: inner)
    producer.intercept(lambda _: outer)

    producer.produce_sync(topic="events", payload=b"x")

    assert outer.sent[0].headers is None
    assert inner.sent[0].headers == [("outer", b"was here")]


def test_interceptor_is_made_from_the_settings(make_producer):
    """The factory gets the producer's settings; without settings it can't be called."""
    producer = make_producer(id="orders")
    ids = []
    producer.intercept(
        lambda settings: ids.append(settings.id) or RecordingInterceptor()
    )

    assert ids == ["orders"]
    with pytest.raises(ProducerNotConfiguredError):
        Producer().intercept(lambda _: RecordingInterceptor())


@pytest.mark.slow
def test_long_batch_lets_others_run(longest_gap, make_producer, interceptor):
    """Thousands of messages pass a slow interceptor while other greenlets run."""
    producer = make_producer()
    producer.intercept(lambda _: interceptor)
    producer.produce_sync(topic="events", payload=b"x")
    batch = [Message("events", b"x")] * 30_000

    with longest_gap() as gap:
        producer.produce_many_async(batch)

    assert gap.seconds < 0.1
    assert len(interceptor.sent) == 30_001


def test_interceptor_may_be_added_while_others_send(make_producer, interceptor):
    """Added during sends, it costs no message and sees all later messages."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x")
    handles = []
    go_on = threading.Event()

    def send():
        while not go_on.is_set():
            handles.append(producer.produce_async(topic="events", payload=b"other"))

    thread = threading.Thread(target=send)
    thread.start()
    producer.intercept(lambda _: interceptor)
    producer.produce_sync(topic="events", payload=b"mine")
    go_on.set()
    thread.join()

    for handle in handles:
        handle.wait()
    assert b"mine" in [message.payload for message in interceptor.sent]
