"""The short path of plain messages, and everything that has to keep messages off it."""

import sys
from contextlib import contextmanager

import gevent
import pytest

from greendrop import (
    DeliveryTimeoutError,
    MessageInvalidError,
    Producer,
    ProducerClosedError,
    QueueFullError,
)
from greendrop._client.client import Client

pytestmark = pytest.mark.usefixtures("hub")

PLAIN = {"topic": "events", "payload": b"x"}


@contextmanager
def short_paths():
    """List the results of the short path: whether it has queued the message."""
    results = []

    def trace(frame, event, result):
        if event == "return" and frame.f_code is Client.send_plain.__code__:
            results.append(result is not None)

    sys.setprofile(trace)
    try:
        yield results
    finally:
        sys.setprofile(None)


def takes_short_path(producer, **message):
    """Send a message, and return whether it took the short path."""
    with short_paths() as results:
        handle = producer.produce_async(**(PLAIN | message))
    handle.wait()
    return results == [True]


@pytest.fixture
def producer(make_producer):
    """A producer that has sent to the topic before."""
    producer = make_producer()
    producer.produce_sync(**PLAIN)
    return producer


@pytest.mark.parametrize("key", [None, b"k"])
def test_plain_messages_take_the_short_path(producer, key):
    """Bytes to a known topic, with or without a key, take the short path."""
    assert takes_short_path(producer, key=key)

    with short_paths() as results:
        report = producer.produce_sync(**PLAIN, key=key, label=7)

    assert results == [True]
    assert (report.topic, report.label) == ("events", 7)


@pytest.mark.parametrize(
    "other",
    [
        {"payload": "text"},
        {"payload": None},
        {"payload": b"x" * 100_000},
        {"topic": "another"},
        {"key": "text"},
        {"headers": {"name": b"value"}},
        {"partition": 0},
        {"partition_key": b"k"},
        {"timestamp": 1_700_000_000_000},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_messages_do_not(producer, other):
    """What needs conversion, a check or a partition takes the long path."""
    assert not takes_short_path(producer, **other)


@pytest.mark.parametrize(
    "wrong",
    [{"key": b""}, {"topic": "a b"}, {"topic": ["events"]}, {"payload": 1}],
    ids=str,
)
def test_wrong_messages_are_refused(producer, wrong):
    """The short path accepts nothing that validation refuses."""
    with pytest.raises(MessageInvalidError):
        producer.produce_async(**(PLAIN | wrong))


def test_size_is_limited(make_producer):
    """The short path accepts no message above `max_payload_size`."""
    producer = make_producer(max_payload_size=1_000)
    producer.produce_sync(**PLAIN)

    with pytest.raises(MessageInvalidError):
        producer.produce_async(topic="events", payload=b"x" * 600, key=b"k" * 600)


def test_middleware_is_not_bypassed(producer):
    """A step that is added after the first message sees the next one."""
    seen = []

    @producer.middleware.append
    def step(message):
        seen.append(message.payload)
        return message

    producer.produce_sync(**PLAIN)
    producer.produce_async(**PLAIN).wait()
    assert seen == [b"x", b"x"]

    producer.middleware.remove(step)
    assert takes_short_path(producer)


def test_a_prepended_step_is_not_bypassed(producer):
    """The step may also be added before others."""
    producer.middleware.prepend(lambda message: message._replace(label="seen"))

    assert producer.produce_sync(**PLAIN).label == "seen"


def test_one_of_two_steps_may_be_removed(producer):
    """The other step still sees each message."""
    first = producer.middleware.append(lambda message: message)
    producer.middleware.append(lambda message: message._replace(label="seen"))

    producer.middleware.remove(first)

    assert producer.produce_sync(**PLAIN).label == "seen"


class Recorder:
    """An interceptor that lists what it sees. Equal to others, so not hashable."""

    def __init__(self):
        self.sent = []

    def __eq__(self, other):
        return isinstance(other, Recorder)

    __hash__ = None

    def on_send(self, message):
        """List the payload."""
        self.sent.append(message.payload)
        return message

    def on_batch(self, messages):
        """Do nothing."""

    def on_send_error(self, message, error):
        """Do nothing."""


def test_interceptors_are_not_bypassed(producer):
    """An interceptor that is added after the first message sees the next one."""
    recorder = Recorder()
    producer.intercept(lambda _: recorder)

    producer.produce_sync(**PLAIN)
    producer.produce_async(**PLAIN).wait()

    assert recorder.sent == [b"x", b"x"]


def test_scopes_are_not_bypassed(producer, mock_cluster):
    """A scope waits for messages that are sent in it, and ends its effect."""
    mock_cluster.round_trip(0.1)
    with producer.scope():
        handle = producer.produce_async(**PLAIN)
    assert handle.done

    mock_cluster.round_trip(0)
    assert takes_short_path(producer)


def test_nested_scopes_are_not_bypassed(producer, mock_cluster):
    """The outer scope still waits after the inner one has ended."""
    mock_cluster.round_trip(0.1)
    with producer.scope():
        with producer.scope():
            pass
        handle = producer.produce_async(**PLAIN)

    assert handle.done


def test_a_scope_of_another_greenlet_ends_alone(producer, mock_cluster):
    """A scope stays in effect when that of another greenlet ends."""
    mock_cluster.round_trip(0.1)
    entered, other_ended = gevent.event.Event(), gevent.event.Event()
    done = []

    def send_in_scope():
        with producer.scope():
            entered.set()
            other_ended.wait(10)
            handle = producer.produce_async(**PLAIN)
        done.append(handle.done)

    task = gevent.spawn(send_in_scope)
    entered.wait(10)
    with producer.scope():
        pass
    other_ended.set()
    task.join(10)

    assert done == [True]


@pytest.mark.parametrize("verb", ["produce_sync", "produce_async"])
def test_listeners_are_not_bypassed(producer, verb):
    """A listener of a verb that is subscribed later gets the next event."""
    events = []
    producer.monitor.subscribe(f"message.{verb.replace('e_', 'ed_')}", events.append)

    getattr(producer, verb)(**PLAIN)
    assert [event["message"].payload for event in events] == [b"x"]

    producer.monitor.unsubscribe(events.append)
    producer.flush()
    assert takes_short_path(producer)


def test_one_of_two_listeners_may_be_removed(producer):
    """The other listener still gets each event."""
    events = []
    other = producer.monitor.subscribe("message.produced_sync", repr)
    producer.monitor.subscribe("message.produced_sync", events.append)

    producer.monitor.unsubscribe(other)
    producer.produce_sync(**PLAIN)

    assert len(events) == 1


def test_variants_share_what_keeps_messages_off(producer):
    """A step that was added to the producer sees the messages of a variant."""
    variant = producer.variant(max_wait_timeout=5.0)
    assert takes_short_path(variant)

    producer.middleware.append(lambda message: message._replace(label="seen"))

    assert variant.produce_sync(**PLAIN).label == "seen"


def test_transactions_are_not_bypassed(transactional):
    """A message outside of a transaction gets one, however plain it is."""
    producer = transactional()
    producer.produce_sync(**PLAIN)
    commits = []
    producer.monitor.subscribe("transaction.committed", commits.append)

    producer.produce_sync(**PLAIN)

    assert len(commits) == 1


def test_a_full_queue_is_not_bypassed(make_producer, mock_cluster):
    """With a full queue the message is refused, as on the long path."""
    producer = make_producer(
        {"queue.buffering.max.messages": 2}, wait_on_queue_full=False
    )
    producer.produce_sync(**PLAIN)
    mock_cluster.round_trip(0.3)
    handles = [producer.produce_async(**PLAIN) for _ in range(2)]

    with pytest.raises(QueueFullError):
        producer.produce_async(**PLAIN)

    mock_cluster.round_trip(0)
    assert all(handle.wait() for handle in handles)


def test_other_threads_take_the_long_path(producer):
    """A thread without the poller's hub never touches the hub's batch."""
    pool = gevent.get_hub().threadpool

    assert not pool.apply(takes_short_path, (producer,))


def test_a_failed_wait_is_reported(mock_cluster, make_producer):
    """A sync verb on the short path emits its error as on the long one."""
    producer = make_producer()
    producer.produce_sync(**PLAIN)
    errors = []
    producer.monitor.subscribe("error.occurred", errors.append)
    mock_cluster.round_trip(1.0)

    with pytest.raises(DeliveryTimeoutError):
        producer.variant(max_wait_timeout=0.05).produce_sync(**PLAIN, label=7)

    (error,) = [each for each in errors if each["type"] == "message.produce_sync"]
    assert error["message"].label == 7
    mock_cluster.round_trip(0)


def test_a_producer_that_is_not_connected_takes_the_long_path():
    """Without a client the verb says why nothing was sent."""
    producer = Producer({"bootstrap.servers": "127.0.0.1:1"})
    producer.close()

    with pytest.raises(ProducerClosedError):
        producer.produce_async(**PLAIN)
