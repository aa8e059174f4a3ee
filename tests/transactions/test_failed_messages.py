"""Messages of a transaction that fail, are dropped, or get a wrong delivery report."""

import time

import pytest

from greendrop import (
    MessagePurgedError,
    ProduceError,
    ProduceManyError,
    TransactionAbortedError,
)
from greendrop._client.offset_guard import OffsetGuard
from tests.transactions.transacting import LONG, Failing, events_of, names, send

#: librdkafka's error code for a call whose time limit has passed.
TIMED_OUT = -185
#: Errors that fail a whole transaction: the broker's error, then the name and the fatal
#: flag of the error that the program gets.
FAILURES = [
    ("INVALID_PRODUCER_EPOCH", ("_FENCED", True)),
    ("TOPIC_AUTHORIZATION_FAILED", ("TOPIC_AUTHORIZATION_FAILED", False)),
]


# -- the reason of a failure ---------------------------------------------------------


@pytest.mark.slow
def test_message_that_times_out_aborts_the_transaction_at_once(
    world, connected, mock_cluster
):
    """No commit is attempted, and the error carries the reason of the message."""
    producer = connected({"message.timeout.ms": 2_000}, max_wait_timeout=LONG)
    commit = Failing(producer, "commit_transaction", 0)
    mock_cluster.delay_requests("Produce", 30)
    started_at = time.monotonic()

    with pytest.raises(TransactionAbortedError) as raised, producer.transaction() as tx:
        (handle,) = send(producer)

    assert time.monotonic() - started_at < LONG / 2
    assert commit.called == []
    assert tx.outcome == "aborted"
    assert raised.value.name == handle.error.name == "_MSG_TIMED_OUT"
    assert str(handle.error) in str(raised.value)


def test_first_failed_message_is_the_reason(world, connected, mock_cluster):
    """The first failure is the reason, however many follow; the text counts them."""
    producer = connected({"message.timeout.ms": 60_000})
    mock_cluster.fail_requests("Produce", "MESSAGE_TOO_LARGE", times=2)
    events = events_of(producer, "error.occurred")

    expected = pytest.raises(TransactionAbortedError)
    with expected as raised, producer.transaction():
        for partition in (0, 1, 2):
            producer.produce_async(topic="t", payload=b"x", partition=partition)

    kind = "librdkafka.dispatch_error"
    first = next(each["error"] for each in events if each["type"] == kind)
    assert raised.value.name == first.name == "MESSAGE_TOO_LARGE"
    assert str(first) in str(raised.value)
    assert "of its messages failed; the first: " in str(raised.value)


@pytest.mark.parametrize(("broker_error", "reason"), FAILURES)
def test_sync_verb_in_a_block_has_the_reason_of_the_transaction(
    world, connected, mock_cluster, broker_error, reason
):
    """The message is dropped, and its error carries the reason of the transaction."""
    producer = connected()
    mock_cluster.fail_requests("AddPartitionsToTxn", broker_error)

    with pytest.raises(MessagePurgedError) as raised, producer.transaction() as tx:
        producer.produce_sync(topic="t", payload=b"x")

    assert (raised.value.name, raised.value.fatal) == reason
    assert reason[0] in str(raised.value)
    assert tx.outcome == "aborted"


@pytest.mark.parametrize(("broker_error", "reason"), FAILURES)
def test_sync_batch_in_a_block_has_the_reason_of_the_transaction(
    world, connected, mock_cluster, broker_error, reason
):
    """The error of the batch names its first message and the transaction's reason."""
    producer = connected()
    mock_cluster.fail_requests("AddPartitionsToTxn", broker_error)

    with pytest.raises(ProduceManyError) as raised, producer.transaction():
        producer.produce_many_sync([{"topic": "t", "payload": b"x"}] * 3)

    assert (raised.value.name, raised.value.fatal) == reason
    assert raised.value.failed_index == 0


@pytest.mark.parametrize(("broker_error", "reason"), FAILURES)
def test_commit_has_the_reason_of_the_transaction(
    world, connected, mock_cluster, broker_error, reason
):
    """The commit's error carries the reason, not only that messages were dropped."""
    producer = connected()
    mock_cluster.fail_requests("AddPartitionsToTxn", broker_error)

    with pytest.raises(TransactionAbortedError) as raised, producer.transaction():
        send(producer, 3)

    assert (raised.value.name, raised.value.fatal) == reason


def test_purge_by_the_program_is_the_reason(hub, connected):
    """A purge in a healthy transaction is reported as the purge that it is."""
    producer = connected()

    expected = pytest.raises(ProduceError)
    with expected as raised, producer.transaction():
        handle = producer.produce_async(topic="t", payload=b"x")
        producer.purge()

    assert isinstance(handle.error, MessagePurgedError)
    assert "its transaction has failed" not in str(raised.value)


# -- calls that fail at once ---------------------------------------------------------


@pytest.mark.parametrize("name", ["commit_transaction", "abort_transaction"])
def test_call_that_returns_at_once_is_repeated_with_pauses(world, connected, name):
    """A command that keeps failing at once is repeated with growing pauses."""
    producer = connected(max_wait_timeout=3.0)
    call = Failing(producer, name, 100_000, code=TIMED_OUT, retriable=True)

    expected = pytest.raises(ProduceError)
    with expected, producer.transaction() as tx:
        send(producer)
        if name == "abort_transaction":
            tx.abort()

    assert len(call.called) < 30
    pauses = [
        after - before
        for before, after in zip(call.called, call.called[1:], strict=False)
    ]
    assert max(pauses) > 5 * pauses[0]


# -- dropped messages ----------------------------------------------------------------


def test_client_that_dropped_a_message_is_replaced(world, connected, mock_cluster):
    """Brokers may have the dropped message: the next transaction needs a new epoch."""
    producer = connected()
    events = events_of(producer, "producer.connected", "producer.reload")
    mock_cluster.fail_requests("AddPartitionsToTxn", "TOPIC_AUTHORIZATION_FAILED")

    with pytest.raises(TransactionAbortedError), producer.transaction():
        (handle,) = send(producer)
    with producer.transaction():
        (after,) = send(producer)

    assert isinstance(handle.error, MessagePurgedError)
    assert after.report
    assert names(events) == ["producer.connected"]


def test_abort_with_all_reports_keeps_the_client(world, connected, mock_cluster):
    """An abort that gets all delivery reports in time keeps the client."""
    producer = connected(wait_timeout_on_transaction_abort=LONG)
    events = events_of(producer, "producer.connected", "producer.reload")
    mock_cluster.round_trip(0.05)

    for _ in range(3):
        with producer.transaction() as tx:
            handles = send(producer, 20)
            tx.abort()
        assert all(each.report for each in handles)

    assert events == []


# -- the offset guard ----------------------------------------------------------------


def test_guard_accepts_offsets_that_grow_from_one_transaction_to_the_next():
    """Offsets may come in any order within a transaction, and may be missing."""
    guard = OffsetGuard()

    guard.begin()
    for topic, partition, offset in [
        ("a", 0, 7),
        ("a", 0, 5),
        ("a", 1, 2),
        ("b", 0, 3),
    ]:
        guard.check(topic, partition, offset)
    guard.begin()
    for topic, partition, offset in [("a", 0, None), ("a", 0, -1), ("a", 0, 8)]:
        guard.check(topic, partition, offset)
    guard.begin()
    for topic, partition, offset in [("a", 0, 9), ("a", 1, 3), ("b", 0, 4)]:
        guard.check(topic, partition, offset)

    assert guard.alarm is None


@pytest.mark.parametrize("offset", [7, 6, 0])
def test_guard_notices_an_offset_from_before_the_transaction(offset):
    """The alarm names the partition and offset of the first violation."""
    guard = OffsetGuard()
    guard.check("a", 0, 7)
    guard.check("a", 0, 5)
    guard.begin()
    guard.begin()

    guard.check("a", 0, offset)
    first = guard.alarm
    guard.check("a", 0, 0)

    assert f"offset {offset} of partition 0" in first
    assert guard.alarm == first


def test_guard_forgets_all_after_an_alarm():
    """A topic that was created again costs one transaction, not one per partition."""
    guard = OffsetGuard()
    for partition in range(4):
        guard.check("a", partition, 100)
    guard.begin()

    guard.check("a", 0, 0)
    alarm = guard.alarm
    guard.begin()
    for partition in range(4):
        guard.check("a", partition, 1)

    assert alarm is not None
    assert guard.alarm is None


def test_large_transactions_cause_no_alarm(world, connected):
    """Delivery reports of a large transaction may arrive out of order."""
    producer = connected()

    for _ in range(3):
        with producer.transaction() as tx:
            for _ in range(20_000):
                producer.produce_async(topic="t", payload=b"x" * 100, partition=0)
        assert tx.outcome == "committed"


def test_alarm_of_the_guard_aborts_the_transaction(world, connected):
    """A repeated offset aborts the transaction.

    The next one succeeds with a new client.
    """
    producer = connected()
    events = events_of(producer, "producer.connected")
    guard = producer._core.transactions._clients.offset_guard

    expected = pytest.raises(TransactionAbortedError, match="was reported at")
    with expected as raised, producer.transaction() as tx:
        producer.produce_sync(topic="t", payload=b"x", partition=0)
        # As if the broker had given this offset in an earlier transaction.
        guard.check("t", 0, 1_000_000)
        guard.begin()
        producer.produce_sync(topic="t", payload=b"x", partition=0)

    assert "offset 1000000" in str(raised.value)
    assert tx.outcome == "aborted"
    assert send(producer)[0].report
    assert len(events) == 1
