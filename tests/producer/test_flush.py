import pickle

import pytest

from greendrop import (
    DeliveryError,
    FlushTimeoutError,
    IllegalWaitError,
    ProduceManyError,
    Producer,
    ProducerClosedError,
)

NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}


def test_flush_error_counts_the_messages_left(world, make_producer, mock_cluster):
    """After its timeout it raises; the messages stay in flight and can be delivered."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"connected")
    mock_cluster.round_trip(2.0)
    handle = producer.produce_async(topic="events", payload=b"1")
    producer.buffer(topic="events", payload=b"2")

    with pytest.raises(
        FlushTimeoutError, match=r"2 messages .* still be del"
    ) as raised:
        producer.flush(0.1)

    assert raised.value.count == 2
    assert raised.value.message_state == "unknown"
    assert pickle.loads(pickle.dumps(raised.value)).count == 2
    assert producer.buffered == ()
    mock_cluster.round_trip(0.0)
    producer.flush(20)
    assert handle.report is not None


def test_flush_waits_as_long_as_the_producer_by_default(world):
    """Without a timeout `max_wait_timeout` is used, for a variant its own."""
    with Producer(kafka=NOWHERE, exit_timeout=0.1) as producer:
        variant = producer.variant(max_wait_timeout=0.05)
        producer.produce_async(topic="events", payload=b"1")

        with pytest.raises(FlushTimeoutError, match=r"within 0\.05 s"):
            variant.flush()
        producer.close(force=True)


def test_flush_of_an_unused_producer_returns_at_once(world):
    """There is nothing to send or to wait for, and nothing connects."""
    with Producer(kafka=NOWHERE) as producer:
        producer.flush()

        assert producer.status == "configured"


def test_flush_raises_for_buffered_messages_only(world, make_producer, mock_cluster):
    """Messages that were sent before have handles; buffered ones do not."""
    mock_cluster.create_topic("events", partitions=1)
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"0", partition=0)
    mock_cluster.fail_requests("Produce", "MESSAGE_TOO_LARGE", times=1)
    failed = producer.produce_async(topic="events", payload=b"1", partition=0)

    producer.flush(20)

    assert isinstance(failed.error, DeliveryError)
    mock_cluster.fail_requests("Produce", "MESSAGE_TOO_LARGE", times=1)
    producer.buffer(topic="events", payload=b"2", partition=0)
    with pytest.raises(ProduceManyError) as raised:
        producer.flush(20)
    assert raised.value.name == "MESSAGE_TOO_LARGE"
    assert raised.value.message_state == "not_delivered"


def test_flush_sends_the_rest_when_some_messages_are_refused(
    world, make_producer, mock_cluster
):
    """The refusal is raised after the others were delivered."""
    mock_cluster.create_topic("events", partitions=1)
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"0", partition=0)
    for partition in (0, 9, 0):
        producer.buffer(topic="events", payload=b"1", partition=partition)

    with pytest.raises(ProduceManyError) as raised:
        producer.flush(20)

    assert raised.value.failed_index == 1
    assert [each.done for each in raised.value.dispatched] == [True] * 3
    assert producer.queue_size == 0


def test_flush_sends_what_linger_holds_back(world, make_producer):
    """It does not wait for the end of a long `linger.ms`."""
    producer = make_producer({"linger.ms": 60_000, "message.timeout.ms": 150_000})
    handle = producer.produce_async(topic="events", payload=b"1")

    producer.flush(20)

    assert handle.report is not None


def test_flush_in_a_transaction_waits_for_the_messages_and_not_for_the_commit(
    world, connected
):
    """The messages are stored then, and the transaction goes on."""
    producer = connected()

    with producer.transaction() as transaction:
        handle = producer.produce_async(topic="events", payload=b"1")
        producer.buffer(topic="events", payload=b"2")
        producer.flush(20)

        assert handle.report is not None
        assert producer.buffered == ()
        assert transaction.outcome is None

    assert transaction.outcome == "committed"


def test_flush_in_a_listener_is_refused(world, make_producer, spawn, until):
    """It could never end in a listener; the buffer does not change."""
    producer = make_producer()
    errors = []

    def flush(_event):
        try:
            producer.flush()
        except IllegalWaitError as error:
            errors.append(error)

    def send():
        producer.monitor.subscribe("message.acknowledged", flush)
        producer.buffer(topic="events", payload=b"2")
        producer.produce_async(topic="events", payload=b"1")
        until(lambda: errors)

    spawn(send).join()

    assert [error.message_state for error in errors] == ["not_sent"]
    assert len(producer.buffered) == 1
    producer.purge()


def test_flush_of_a_closed_producer_is_refused(world):
    """It is refused like all verbs that send."""
    producer = Producer(kafka=NOWHERE)
    producer.close()

    with pytest.raises(ProducerClosedError):
        producer.flush()


@pytest.mark.parametrize("timeout", [-1, float("inf"), float("nan")])
def test_flush_needs_a_finite_timeout(timeout):
    """A timeout that is not finite is refused."""
    with (
        Producer(kafka=NOWHERE) as producer,
        pytest.raises(ValueError, match="finite seconds"),
    ):
        producer.flush(timeout)
