"""Transactions: blocks, nesting, single messages, batches and the buffer."""

import contextlib
import time

import gevent
import gevent.pool
import pytest

from greendrop import (
    AbortTransaction,
    DeliveryError,
    Message,
    MessagePurgedError,
    ProduceError,
    ProduceManyError,
    ProducerNotTransactionalError,
    TransactionAbortedError,
    VariantInvalidError,
)
from tests.transactions.transacting import (
    LONG,
    events_of,
    names,
    outcomes,
    send,
    transaction_events,
)

#: Kafka's error code for a fenced producer.
INVALID_PRODUCER_EPOCH = 47


# -- blocks -------------------------------------------------------------------------


def test_block_commits(world, transactional):
    """Messages sent in a block are delivered and committed at its end."""
    producer = transactional()
    events = transaction_events(producer)

    with producer.transaction() as tx:
        handles = send(producer, 5)
        assert producer.in_transaction
        assert tx.outcome is None

    assert all(handle.report for handle in handles)
    assert not producer.in_transaction
    assert tx.outcome == "committed"
    assert tx.producer is producer
    assert names(events) == ["started", "committed", "finished"]
    assert outcomes(events) == ["committed"]
    assert all(0 <= each["time"] < LONG for each in events)


def test_abort_is_silent(world, transactional, mock_cluster):
    """`tx.abort()` leaves the block without an error, and purges queued messages."""
    mock_cluster.round_trip(0.02)
    producer = transactional()
    events = transaction_events(producer)

    with producer.transaction() as tx:
        (handle,) = send(producer)
        tx.abort()

    assert tx.outcome == "aborted"
    assert isinstance(handle.error, MessagePurgedError)
    assert names(events) == ["started", "aborted", "finished"]
    assert outcomes(events) == ["aborted"]


def test_abort_transaction_is_silent(world, transactional):
    """Raising `AbortTransaction` leaves the block without an error, too."""
    producer = transactional()

    with producer.transaction() as tx:
        raise AbortTransaction

    assert tx.outcome == "aborted"


@pytest.mark.parametrize(
    "kind",
    [ValueError, KeyboardInterrupt, SystemExit, gevent.GreenletExit, gevent.Timeout],
)
def test_any_exception_aborts_and_propagates(world, transactional, kind):
    """Errors, interruptions and exits abort the transaction."""
    producer = transactional()
    events = transaction_events(producer)
    error = kind()

    with pytest.raises(kind) as raised, producer.transaction() as tx:
        send(producer)
        raise error

    assert raised.value is error
    assert tx.outcome == "aborted"
    assert names(events) == ["started", "aborted", "finished"]
    with producer.transaction() as tx:
        send(producer)
    assert tx.outcome == "committed"


def test_block_may_be_left_early(world, transactional):
    """`return` and `break` commit, and the next transaction works."""
    producer = transactional()

    def leave():
        with producer.transaction() as tx:
            send(producer)
            return tx

    assert leave().outcome == "committed"
    for _ in range(2):
        with producer.transaction() as tx:
            send(producer)
            break
    assert tx.outcome == "committed"
    with producer.transaction() as tx:
        send(producer)
    assert tx.outcome == "committed"


def test_run_in_transaction_returns_the_value(world, transactional):
    """The value is None after an abort; errors are raised again."""
    producer = transactional()

    def fail(_):
        raise ValueError

    def give_up(tx):
        tx.abort()

    assert producer.run_in_transaction(lambda tx: (tx.outcome, 7)) == (None, 7)
    assert producer.run_in_transaction(give_up) is None
    with pytest.raises(ValueError):  # noqa: PT011 - the very one
        producer.run_in_transaction(fail)


def test_nested_blocks_join_the_outer_one(world, transactional):
    """A nested transaction begins and commits with the outer block."""
    producer = transactional()
    events = transaction_events(producer)

    with producer.transaction() as outer:
        with producer.transaction() as inner:
            send(producer)
        assert inner.outcome is None
        with producer.variant(max_wait_timeout=9.0).transaction():
            send(producer)

    assert names(events) == ["started", "committed", "finished"]
    assert (outer.outcome, inner.outcome) == ("committed", "committed")


def test_nested_abort_aborts_all(world, transactional):
    """An abort in a nested block leaves the outer block, too."""
    producer = transactional()
    events = transaction_events(producer)
    reached = []

    with producer.transaction() as outer:
        with producer.transaction() as inner:
            inner.abort()
        reached.append("after the inner block")

    assert reached == []
    assert outer.outcome == "aborted"
    assert names(events) == ["started", "aborted", "finished"]


def test_abort_that_is_caught_still_aborts(world, transactional):
    """Catching the exception of `abort` can't turn it into a commit."""
    producer = transactional()

    with producer.transaction() as tx:
        with contextlib.suppress(Exception):
            tx.abort()
        send(producer)

    assert tx.outcome == "aborted"


def test_error_of_an_inner_block_is_not_forgotten(world, transactional):
    """A caught error of an inner block still aborts.

    Half a transaction must not be committed.
    """
    producer = transactional()

    with pytest.raises(TransactionAbortedError) as raised, producer.transaction() as tx:
        with contextlib.suppress(ValueError), producer.transaction():
            raise ValueError
        send(producer)

    assert isinstance(raised.value.__cause__, ValueError)
    assert tx.outcome == "aborted"


def test_empty_transactions_succeed(world, transactional):
    """Transactions without messages commit and abort without an error."""
    producer = transactional()

    for _ in range(3):
        with producer.transaction() as tx:
            pass
        assert tx.outcome == "committed"
    with producer.transaction() as tx:
        tx.abort()
    assert tx.outcome == "aborted"


def test_transaction_is_entered_once(transactional):
    """Entering a transaction again raises an error: its outcome would be ambiguous."""
    producer = transactional()
    with producer.transaction() as tx:
        assert "open" in repr(tx)
    assert "committed" in repr(tx)

    with pytest.raises(RuntimeError), tx:
        pass


def test_plain_producer_has_no_transactions(make_producer):
    """Without a `transactional.id` the error names the producer."""
    producer = make_producer(id="plain")

    with pytest.raises(ProducerNotTransactionalError, match="plain"):
        producer.transaction()
    assert producer.in_transaction is False


def test_sync_message_of_an_aborted_transaction_keeps_its_report(world, transactional):
    """The message was delivered, even though no consumer will see it."""
    producer = transactional()
    events = events_of(producer, "message.purged", "error.occurred")

    with producer.transaction() as tx:
        report = producer.produce_sync(topic="t", payload=b"x")
        tx.abort()

    assert report.offset == 0
    assert events == []


def test_purged_messages_are_not_errors(world, transactional):
    """Messages purged by an abort are reported by `message.purged` alone."""
    producer = transactional({"linger.ms": 5_000})
    events = events_of(producer, "message.purged", "error.occurred")

    with producer.transaction() as tx:
        handles = send(producer, 3)
        tx.abort()

    assert all(handle.done for handle in handles)
    assert [each.name for each in events] == ["message.purged"] * 3
    assert sorted(each["label"] for each in events) == [0, 1, 2]
    assert {type(each["error"]) for each in events} == {MessagePurgedError}


@pytest.mark.parametrize("kafka", [{}, {"linger.ms": 10_000}])
def test_aborting_waits_for_the_first_message(world, transactional, kafka):
    """The brokers know of the transaction only then, so an abort waits by default."""
    producer = transactional(kafka, wait_timeout_on_transaction_abort=5.0)
    events = events_of(producer, "message.purged", "error.occurred")
    started_at = time.monotonic()

    with producer.transaction() as tx:
        (handle,) = send(producer)
        tx.abort()

    assert time.monotonic() - started_at < 4.0
    assert tx.outcome == "aborted"
    assert handle.report.offset == 0
    assert events == []
    assert producer._core.scopes == {}


def test_aborting_does_not_wait_for_ever(world, transactional, mock_cluster):
    """A message that takes too long is left to the broker."""
    producer = transactional(wait_timeout_on_transaction_abort=0.2)
    mock_cluster.delay_requests("Produce", 1.5)
    started_at = time.monotonic()

    with producer.transaction() as tx:
        (handle,) = send(producer)
        tx.abort()

    # The broker answers one request after the other.
    assert 0.2 <= time.monotonic() - started_at < 3.0
    assert (tx.outcome, handle.done) == ("aborted", True)


@pytest.mark.parametrize("caught", [True, False])
def test_bad_message_fails_the_transaction_only(world, transactional, caught):
    """A refused message fails its transaction, even if the error is caught."""
    producer = transactional(wait_timeout_on_transaction_abort=LONG)
    events = events_of(producer, "producer.reload", "producer.connected")

    with pytest.raises(ProduceError) as raised, producer.transaction() as tx:
        (good,) = send(producer)
        with contextlib.suppress(DeliveryError if caught else ()):
            producer.produce_async(topic="t", payload=b"x", partition=99)
    assert isinstance(raised.value, (TransactionAbortedError, DeliveryError))
    assert (tx.outcome, good.done) == ("aborted", True)

    with pytest.raises(ProduceError) as raised:
        producer.produce_sync(topic="t", payload=b"x", partition=99)
    assert raised.value.name == "_UNKNOWN_PARTITION"
    assert producer.produce_sync(topic="t", payload=b"x")
    with pytest.raises(ProduceError) as raised:
        producer.produce_async(topic="t", payload=b"x", partition=99)
    assert raised.value.name == "_UNKNOWN_PARTITION"
    assert producer.produce_async(topic="t", payload=b"x")
    assert names(events) == ["producer.connected"]


def test_failed_message_fails_the_transaction(world, transactional, mock_cluster):
    """A failed message rolls the transaction back without costing a new client."""
    producer = transactional()
    events = events_of(producer, "producer.reload")
    mock_cluster.fail_requests("Produce", "INVALID_RECORD")

    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        (handle,) = send(producer, partition=0)

    assert tx.outcome == "aborted"
    assert handle.error.name == "INVALID_RECORD"
    with producer.transaction() as tx:
        # librdkafka has skipped a sequence number: see docs/send/transactions.md.
        send(producer, partition=1)
    assert tx.outcome == "committed"
    assert events == []


# -- single messages and batches ----------------------------------------------------


def test_single_message_is_a_transaction(world, transactional):
    """Each send outside of a block returns after its commit."""
    producer = transactional()
    events = events_of(
        producer,
        *("transaction.started", "message.acknowledged", "transaction.committed"),
        *("transaction.finished", "message.produced_sync", "message.produced_async"),
    )

    report = producer.produce_sync(topic="t", payload=b"x")
    handle = producer.produce_async(topic="t", payload=b"x")

    assert report.topic == "t"
    assert handle.report is not None
    each = ["started", "message.acknowledged", "committed", "finished"]
    assert names(events) == [
        *each,
        "message.produced_sync",
        *each,
        "message.produced_async",
    ]


def test_batch_is_a_transaction(world, transactional):
    """A batch is one transaction, and its handles are done when the call returns."""
    producer = transactional()
    events = transaction_events(producer)
    batch = [Message("t", b"x", label=number) for number in range(300)]

    reports = producer.produce_many_sync(batch)
    handles = producer.produce_many_async(batch)

    assert [each.label for each in reports] == list(range(300))
    assert all(each.report for each in handles)
    assert names(events) == ["started", "committed", "finished"] * 2


@pytest.mark.parametrize("verb", ["produce_many_sync", "produce_many_async"])
def test_batch_is_visible_as_a_whole_or_not_at_all(world, transactional, verb):
    """An error leaves `dispatched` empty and offers all handles as `rolled_back`."""
    producer = transactional()
    batch = [Message("t", b"x", partition=number) for number in (0, 99, 1)]

    with pytest.raises(ProduceManyError) as raised:
        getattr(producer, verb)(batch)

    error = raised.value
    assert error.dispatched == ()
    assert error.failed_index == 1
    assert error.__cause__.name == "_UNKNOWN_PARTITION"
    assert all(handle.done for handle in error.rolled_back)
    assert producer.produce_many_sync([Message("t", b"x")])


def test_failed_message_raises_its_own_error(world, transactional, mock_cluster):
    """A single message's own error is raised, not that of its transaction."""
    producer = transactional()
    mock_cluster.fail_requests("Produce", "INVALID_RECORD")
    events = events_of(producer, "error.occurred")

    with pytest.raises(DeliveryError) as raised:
        producer.produce_async(topic="t", payload=b"x")

    assert raised.value.name == "INVALID_RECORD"
    assert events[-1]["type"] == "message.produce_async"


def test_variant_with_a_connection_of_its_own_is_refused(transactional):
    """Two clients with one `transactional.id` would fence each other."""
    producer = transactional()

    with pytest.raises(VariantInvalidError, match="transactional"):
        producer.variant(topic_config={"message.timeout.ms": 5_000})


# -- the buffer ---------------------------------------------------------------------


def test_buffer_is_flushed_in_a_transaction(world, transactional):
    """A flush is one transaction, also for messages of several variants."""
    producer = transactional()
    events = transaction_events(producer)
    producer.buffer(topic="t", payload=b"x", label=0)
    producer.variant(max_wait_timeout=9.0).buffer(topic="t", payload=b"x", label=1)

    reports = producer.flush_sync()

    assert [each.label for each in reports] == [0, 1]
    assert names(events) == ["started", "committed", "finished"]


def test_flush_that_is_rolled_back_keeps_all_messages(
    world, transactional, mock_cluster
):
    """Messages that no consumer will see are back in the buffer, in order."""
    producer = transactional()
    mock_cluster.fail_requests("AddPartitionsToTxn", "TOPIC_AUTHORIZATION_FAILED")
    for number in range(3):
        producer.buffer(topic="t", payload=b"x", label=number, partition=0)

    with pytest.raises(ProduceManyError, match="3 messages are back"):
        producer.flush_sync()

    assert [each.label for each in producer.buffered] == [0, 1, 2]
    assert [each.label for each in producer.flush_sync()] == [0, 1, 2]


def test_close_flushes_in_a_transaction(world, transactional, stored):
    """Messages that are still buffered are committed by `close`."""
    producer = transactional()
    events = transaction_events(producer)
    for _ in range(3):
        producer.buffer(topic="t", payload=b"x")

    producer.close()

    assert outcomes(events) == ["committed"]
    assert producer.buffered == ()
    assert stored("t") >= 3
