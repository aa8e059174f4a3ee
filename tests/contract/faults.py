"""What holds on brokers that can be told to fail, in memory or not.

Their fixtures are those of `suite`. Clusters have `round_trip`, `broker_down` and
`broker_up` besides.
"""

import time

import pytest

from greendrop import (
    DeliveryError,
    DeliveryTimeoutError,
    MessagePurgedError,
    MessagesAbandonedError,
    QueueFullError,
)
from greendrop.testing import Recorder

#: librdkafka comes back as soon as brokers do.
QUICK = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 20}


def test_an_acknowledgement_takes_a_round_trip(
    world, cluster, topic, producer_on_cluster
):
    """Until then the message is outstanding."""
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"x")
    cluster.round_trip(0.15)
    began = time.monotonic()

    handle = producer.produce_async(topic=topic, payload=b"x")
    assert not handle.done
    assert producer.queue_size == 1
    report = handle.wait(10)

    assert 0.14 < time.monotonic() - began < 5
    assert 0.14 < report.latency < 5


@pytest.mark.slow
def test_nobody_waits_longer_than_told(world, cluster, topic, producer_on_cluster):
    """The message may still be delivered, and is."""
    producer = producer_on_cluster(max_wait_timeout=0.1)
    producer.variant(max_wait_timeout=10).produce_sync(topic=topic, payload=b"x")
    cluster.round_trip(0.5)

    with pytest.raises(DeliveryTimeoutError):
        producer.produce_sync(topic=topic, payload=b"late")
    producer.close(timeout=10)

    cluster.round_trip(0)
    assert sorted(each.payload for each in cluster.records(topic)) == [b"late", b"x"]


@pytest.mark.slow
def test_brokers_that_are_down_let_messages_time_out(
    world, cluster, topic, producer_on_cluster
):
    """The error says so, and what the brokers were last heard of."""
    producer = producer_on_cluster({"message.timeout.ms": 1000, **QUICK})
    producer.produce_sync(topic=topic, payload=b"x")
    with Recorder(producer) as recorder:
        cluster.broker_down()

        with pytest.raises(DeliveryError) as raised:
            producer.produce_sync(topic=topic, payload=b"x", partition=0)

    assert raised.value.name == "_MSG_TIMED_OUT"
    assert "last broker error: " in str(raised.value)
    kinds = {each["type"] for each in recorder.named("error.occurred")}
    assert {"librdkafka.error", "librdkafka.dispatch_error"} <= kinds


@pytest.mark.slow
def test_messages_wait_for_brokers(world, cluster, topic, producer_on_cluster):
    """And arrive in order when they are back."""
    producer = producer_on_cluster(QUICK)
    producer.produce_sync(topic=topic, payload=b"0", partition=0)
    cluster.broker_down()
    handles = [
        producer.produce_async(topic=topic, payload=str(each), partition=0)
        for each in range(1, 10)
    ]
    assert not any(each.done for each in handles)

    cluster.broker_up()

    assert [each.wait(20).offset for each in handles] == list(range(1, 10))
    payloads = [each.payload for each in cluster.records(topic)]
    assert payloads == [str(each).encode() for each in range(10)]


def test_purge_drops_what_is_on_its_way(world, cluster, topic, producer_on_cluster):
    """The producer goes on."""
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"0")
    cluster.round_trip(5)
    handles = [producer.produce_async(topic=topic, payload=b"x") for _ in range(50)]

    producer.purge()

    assert all(isinstance(each.error, MessagePurgedError) for each in handles)
    assert producer.queue_size == 0
    cluster.round_trip(0)


def test_a_queue_that_stays_full_is_an_error(
    world, cluster, topic, producer_on_cluster
):
    """The message is not sent; those before it are on their way."""
    producer = producer_on_cluster(
        {"queue.buffering.max.messages": 3}, wait_timeout_on_queue_full=0.05
    )
    producer.produce_sync(topic=topic, payload=b"x")
    cluster.round_trip(5)
    for _ in range(3):
        producer.produce_async(topic=topic, payload=b"x")

    with pytest.raises(QueueFullError):
        producer.produce_async(topic=topic, payload=b"x")

    assert producer.queue_size == 3
    producer.close(force=True)


def test_close_tells_what_was_not_delivered(world, cluster, topic, producer_on_cluster):
    """And is closed."""
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"x")
    cluster.round_trip(5)
    handle = producer.produce_async(topic=topic, payload=b"x")

    with pytest.raises(MessagesAbandonedError) as raised:
        producer.close(timeout=0.05)

    assert raised.value.count == 1
    assert isinstance(handle.error, MessagePurgedError)
    assert producer.status == "closed"


def test_close_reports_what_brokers_that_are_down_did_not_get(
    world, cluster, topic, producer_on_cluster
):
    """Also when the messages fail before the time is over."""
    producer = producer_on_cluster({"message.timeout.ms": 500, **QUICK})
    producer.produce_sync(topic=topic, payload=b"x", partition=0)
    cluster.broker_down()
    producer.produce_async(topic=topic, payload=b"sent", partition=0)
    producer.buffer(topic=topic, payload=b"buffered", partition=0)

    with pytest.raises(MessagesAbandonedError) as raised:
        producer.close()

    assert raised.value.count == 2
    assert [each.payload for each in producer.buffered] == [b"buffered"]
