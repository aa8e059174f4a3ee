"""The contract on brokers that can be made to fail, in memory or not.

Fixtures are those of `suite`. Clusters also have `round_trip`, `broker_down` and
`broker_up`.
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

#: librdkafka reconnects as soon as brokers are back.
QUICK = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 20}


def test_an_acknowledgement_takes_a_round_trip(
    world, cluster, topic, producer_on_cluster
):
    """Until the broker has answered the message is outstanding."""
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"x")
    cluster.round_trip(0.15)
    started_at = time.monotonic()

    handle = producer.produce_async(topic=topic, payload=b"x")
    assert not handle.done
    assert producer.queue_size == 1
    report = handle.wait(10)

    assert 0.14 < time.monotonic() - started_at < 5
    assert 0.14 < report.latency < 5


@pytest.mark.slow
def test_no_wait_exceeds_its_limit(world, cluster, topic, producer_on_cluster):
    """A message whose wait ended may still be delivered, and is."""
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
    """The error names the timeout, and the last error of the brokers."""
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
    """Messages sent without brokers arrive in order when the brokers are back."""
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


def test_purge_drops_messages_in_flight(world, cluster, topic, producer_on_cluster):
    """Messages in flight end as purged, and the producer goes on."""
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
    """The message is not sent; those queued before it are still delivered."""
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


def test_close_reports_what_was_not_delivered(
    world, cluster, topic, producer_on_cluster
):
    """The error of `close` counts the messages, and the producer is closed."""
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"x")
    cluster.round_trip(5)
    handle = producer.produce_async(topic=topic, payload=b"x")

    with pytest.raises(MessagesAbandonedError) as raised:
        producer.close(timeout=0.05)

    assert raised.value.count == 1
    assert isinstance(handle.error, MessagePurgedError)
    assert producer.status == "closed"


def test_close_reports_messages_that_brokers_did_not_get(
    world, cluster, topic, producer_on_cluster
):
    """Messages that fail before the time of `close` is over are reported, too."""
    producer = producer_on_cluster({"message.timeout.ms": 500, **QUICK})
    producer.produce_sync(topic=topic, payload=b"x", partition=0)
    cluster.broker_down()
    producer.produce_async(topic=topic, payload=b"sent", partition=0)
    producer.buffer(topic=topic, payload=b"buffered", partition=0)

    with pytest.raises(MessagesAbandonedError) as raised:
        producer.close()

    assert raised.value.count == 2
    assert [each.payload for each in producer.buffered] == [b"buffered"]
