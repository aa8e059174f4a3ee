"""Backpressure: what happens while librdkafka's queue is full of bytes or lingering."""

import time

import pytest

from greendrop import (
    DeliveryError,
    MessageInvalidError,
    ProduceManyError,
    QueueFullError,
)

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 30.0
#: Messages of 10 kB that fit into a queue of 1,000 kB.
FITTING = 102
LARGE = {"topic": "t", "payload": b"x" * 10_000}


@pytest.fixture
def small(mock_cluster, make_producer):
    """Make producers with a queue of 1,000 kB; responses take `round_trip` seconds."""

    def make(round_trip, **settings):
        settings.setdefault("instrument_on_wait_queue_full", False)
        producer = make_producer({"queue.buffering.max.kbytes": 1_000}, **settings)
        producer.produce_sync(topic="t", payload=b"warm")
        mock_cluster.round_trip(round_trip)
        return producer

    return make


def test_queue_full_of_bytes_refuses_at_once_when_configured_so(world, small):
    """With a hub, too, as many bytes are accepted as the queue may hold."""
    producer = small(5.0, wait_on_queue_full=False)
    handles = [producer.produce_async(**LARGE) for _ in range(FITTING)]

    for payload in (LARGE["payload"], b"small"):
        with pytest.raises(QueueFullError):
            producer.produce_async(topic="t", payload=payload)

    assert not any(handle.done for handle in handles)
    assert producer.queue_size == FITTING
    producer.close(force=True)


def test_batch_is_accepted_as_far_as_its_bytes_fit(world, small):
    """A batch stops at the first message whose bytes don't fit."""
    producer = small(5.0, wait_on_queue_full=False)

    with pytest.raises(ProduceManyError) as raised:
        producer.produce_many_async([LARGE] * 200)

    assert raised.value.failed_index == FITTING
    assert len(raised.value.dispatched) == FITTING
    producer.close(force=True)


@pytest.mark.parametrize("verb", ["one", "many"])
def test_senders_wait_while_the_queue_is_full_of_bytes(world, small, stored, verb):
    """Messages beyond the limit of bytes wait for reports, and all are delivered."""
    producer = small(0.3, wait_timeout_on_queue_full=LONG)
    most = 0
    handles = []
    started = time.monotonic()

    if verb == "many":
        handles += producer.produce_many_async([LARGE] * 300)
    else:
        for _ in range(300):
            handles.append(producer.produce_async(**LARGE))
            most = max(most, producer.queue_size)
    took = time.monotonic() - started

    # Twice the senders had to wait for a round trip.
    assert took > 0.4
    assert most <= FITTING
    for handle in handles:
        handle.wait(LONG)
    assert stored("t") == 301


def test_many_senders_share_a_queue_full_of_bytes(world, small, spawn, stored):
    """Twenty senders of large and small messages all get through."""
    producer = small(0.05, wait_timeout_on_queue_full=LONG)

    def send():
        for number in range(20):
            size = 10_000 if number % 2 else 10
            producer.produce_async(topic="t", payload=b"x" * size)

    for task in [spawn(send) for _ in range(20)]:
        task.join(LONG)

    producer.close(LONG)
    assert stored("t") == 401


def test_bytes_are_free_again_after_any_end_of_a_message(world, small, mock_cluster):
    """Delivered, refused and dropped messages take no bytes of the queue any more."""
    producer = small(0.0, wait_timeout_on_queue_full=LONG, max_wait_timeout=LONG)
    for _ in range(3):
        producer.produce_many_sync([LARGE] * FITTING)
    for _ in range(200):
        with pytest.raises(DeliveryError, match="_UNKNOWN_PARTITION"):
            producer.produce_sync(**LARGE, partition=1_000)
    mock_cluster.round_trip(5.0)
    for _ in range(3):
        handles = [producer.produce_async(**LARGE) for _ in range(FITTING)]
        producer.purge()
        assert all(handle.done for handle in handles)
    assert producer.queue_size == 0


def test_interrupted_senders_leave_the_queue_usable(hub, small, stored):
    """Greenlets that are killed while they wait for space leave nothing behind."""
    import gevent  # noqa: PLC0415 - with a hub only

    producer = small(0.5, wait_timeout_on_queue_full=LONG)
    sent = [producer.produce_async(**LARGE) for _ in range(FITTING)]
    waiting = [gevent.spawn(producer.produce_async, **LARGE) for _ in range(20)]
    gevent.sleep(0.05)
    gevent.killall(waiting[::2])

    gevent.joinall(waiting, LONG)
    sent += [producer.produce_async(**LARGE) for _ in range(300)]

    producer.close(LONG)
    assert all(handle.report for handle in sent)
    assert stored("t") == 1 + FITTING + 10 + 300


# -- a long linger.ms -----------------------------------------------------------------


def test_queue_full_of_lingering_messages_is_flushed(world, make_producer, stored):
    """A queue that is full only because of a long `linger.ms` is sent at once."""
    producer = make_producer(
        {"queue.buffering.max.messages": 5, "linger.ms": 60_000},
        wait_timeout_on_queue_full=LONG,
    )
    started = time.monotonic()

    for _ in range(23):
        producer.produce_async(topic="t", payload=b"x")
    producer.produce_many_async([{"topic": "t", "payload": b"x"}] * 22)

    assert time.monotonic() - started < LONG
    producer.close(LONG)
    assert stored("t") == 45


def test_lingering_messages_are_flushed_where_senders_do_not_wait(
    world, make_producer, until
):
    """With `wait_on_queue_full=False` a refused send makes space for the next ones."""
    producer = make_producer(
        {"queue.buffering.max.messages": 5, "linger.ms": 60_000},
        wait_on_queue_full=False,
    )
    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(5)]
    with pytest.raises(QueueFullError):
        producer.produce_async(topic="t", payload=b"x")

    def is_accepted():
        try:
            producer.produce_async(topic="t", payload=b"x")
        except QueueFullError:
            return False
        return True

    until(is_accepted, LONG)
    assert any(handle.done for handle in handles)
    producer.close(LONG)


def test_never_fitting_message_does_not_wait(world, small):
    """A message that is larger than the queue fails at once, whatever is in flight."""
    producer = small(5.0, wait_timeout_on_queue_full=LONG)
    producer.produce_async(**LARGE)
    kept = producer.variant(max_wait_timeout=LONG)
    started = time.monotonic()

    with pytest.raises(MessageInvalidError):
        kept.produce_async(topic="t", payload=b"x" * 1_024_001)

    assert time.monotonic() - started < 4.0
    producer.close(force=True)
