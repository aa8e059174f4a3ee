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

#: Kafka's number of an error that means "fenced".
INVALID_PRODUCER_EPOCH = 47


# -- the block ----------------------------------------------------------------------


def test_block_commits(world, transactional):
    """What is sent in a block is delivered, and committed, at its end."""
    producer = transactional()
    heard = transaction_events(producer)

    with producer.transaction() as tx:
        handles = send(producer, 5)
        assert producer.in_transaction
        assert tx.outcome is None

    assert all(handle.report for handle in handles)
    assert not producer.in_transaction
    assert tx.outcome == "committed"
    assert tx.producer is producer
    assert names(heard) == ["started", "committed", "finished"]
    assert outcomes(heard) == ["committed"]
    assert all(0 <= each["time"] < LONG for each in heard)


def test_abort_is_silent(world, transactional, mock_cluster):
    """`tx.abort()` leaves the block, and what was still queued ends as purged."""
    mock_cluster.round_trip(0.02)
    producer = transactional()
    heard = transaction_events(producer)

    with producer.transaction() as tx:
        (handle,) = send(producer)
        tx.abort()

    assert tx.outcome == "aborted"
    assert isinstance(handle.error, MessagePurgedError)
    assert names(heard) == ["started", "aborted", "finished"]
    assert outcomes(heard) == ["aborted"]


def test_abort_transaction_is_silent(world, transactional):
    """So does an `AbortTransaction` that is raised. Acceptance check 103."""
    producer = transactional()

    with producer.transaction() as tx:
        raise AbortTransaction

    assert tx.outcome == "aborted"


@pytest.mark.parametrize(
    "kind",
    [ValueError, KeyboardInterrupt, SystemExit, gevent.GreenletExit, gevent.Timeout],
)
def test_any_exception_aborts_and_goes_on(world, transactional, kind):
    """Not only errors: also what interrupts or ends. Acceptance checks 74 and 103."""
    producer = transactional()
    heard = transaction_events(producer)
    error = kind()

    with pytest.raises(kind) as raised, producer.transaction() as tx:
        send(producer)
        raise error

    assert raised.value is error
    assert tx.outcome == "aborted"
    assert names(heard) == ["started", "aborted", "finished"]
    with producer.transaction() as tx:
        send(producer)
    assert tx.outcome == "committed"


def test_block_may_be_left_early(world, transactional):
    """`return` and `break` commit, and the next one works. Acceptance check 66."""
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


def test_run_in_transaction_gives_the_value(world, transactional):
    """Or None when it was aborted; errors are raised again. Acceptance check 103."""
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
    """Begun and committed once, at the end of the outer block. Acceptance check 103."""
    producer = transactional()
    heard = transaction_events(producer)

    with producer.transaction() as outer:
        with producer.transaction() as inner:
            send(producer)
        assert inner.outcome is None
        with producer.variant(max_wait_timeout=9.0).transaction():
            send(producer)

    assert names(heard) == ["started", "committed", "finished"]
    assert (outer.outcome, inner.outcome) == ("committed", "committed")


def test_nested_abort_aborts_all(world, transactional):
    """It leaves the outer block, too. Acceptance check 103."""
    producer = transactional()
    heard = transaction_events(producer)
    reached = []

    with producer.transaction() as outer:
        with producer.transaction() as inner:
            inner.abort()
        reached.append("after the inner block")

    assert reached == []
    assert outer.outcome == "aborted"
    assert names(heard) == ["started", "aborted", "finished"]


def test_abort_that_is_caught_aborts_all_the_same(world, transactional):
    """Somebody's `except Exception` in between can't make it a commit."""
    producer = transactional()

    with producer.transaction() as tx:
        with contextlib.suppress(Exception):
            tx.abort()
        send(producer)

    assert tx.outcome == "aborted"


def test_error_of_an_inner_block_is_not_forgotten(world, transactional):
    """Caught between the blocks, it still can't be half committed."""
    producer = transactional()

    with pytest.raises(TransactionAbortedError) as raised, producer.transaction() as tx:
        with contextlib.suppress(ValueError), producer.transaction():
            raise ValueError
        send(producer)

    assert isinstance(raised.value.__cause__, ValueError)
    assert tx.outcome == "aborted"


def test_empty_transactions_are_fine(world, transactional):
    """Nothing sent, nothing wrong."""
    producer = transactional()

    for _ in range(3):
        with producer.transaction() as tx:
            pass
        assert tx.outcome == "committed"
    with producer.transaction() as tx:
        tx.abort()
    assert tx.outcome == "aborted"


def test_transaction_is_entered_once(transactional):
    """A second time would mean two things by one outcome."""
    producer = transactional()
    with producer.transaction() as tx:
        assert "open" in repr(tx)
    assert "committed" in repr(tx)

    with pytest.raises(RuntimeError), tx:
        pass


def test_plain_producer_has_no_transactions(make_producer):
    """Without a `transactional.id` there is a clear error."""
    producer = make_producer(id="plain")

    with pytest.raises(ProducerNotTransactionalError, match="plain"):
        producer.transaction()
    assert producer.in_transaction is False


def test_sync_message_of_an_aborted_transaction_keeps_its_report(world, transactional):
    """It was delivered; that nobody sees it is another thing. Acceptance check 104."""
    producer = transactional()
    heard = events_of(producer, "message.purged", "error.occurred")

    with producer.transaction() as tx:
        report = producer.produce_sync(topic="t", payload=b"x")
        tx.abort()

    assert report.offset == 0
    assert heard == []


def test_purged_messages_are_told_as_such(world, transactional):
    """Not as errors. Acceptance checks 94 and 95."""
    producer = transactional({"linger.ms": 5_000})
    heard = events_of(producer, "message.purged", "error.occurred")

    with producer.transaction() as tx:
        handles = send(producer, 3)
        tx.abort()

    assert all(handle.done for handle in handles)
    assert [each.name for each in heard] == ["message.purged"] * 3
    assert sorted(each["label"] for each in heard) == [0, 1, 2]
    assert {type(each["error"]) for each in heard} == {MessagePurgedError}


@pytest.mark.parametrize("kafka", [{}, {"linger.ms": 10_000}])
def test_aborting_waits_for_the_first_message(world, transactional, kafka):
    """By default, so that the brokers know of the transaction. Acceptance check 105."""
    producer = transactional(kafka, wait_timeout_on_transaction_abort=5.0)
    heard = events_of(producer, "message.purged", "error.occurred")
    began = time.monotonic()

    with producer.transaction() as tx:
        (handle,) = send(producer)
        tx.abort()

    assert time.monotonic() - began < 4.0
    assert tx.outcome == "aborted"
    assert handle.report.offset == 0
    assert heard == []
    assert producer._core.scopes == {}


def test_aborting_does_not_wait_for_ever(world, transactional, mock_cluster):
    """A message that takes too long is left to the broker, as without the wait."""
    producer = transactional(wait_timeout_on_transaction_abort=0.2)
    mock_cluster.delay_requests("Produce", 1.5)
    began = time.monotonic()

    with producer.transaction() as tx:
        (handle,) = send(producer)
        tx.abort()

    # The broker gives its answers one after the other.
    assert 0.2 <= time.monotonic() - began < 3.0
    assert (tx.outcome, handle.done) == ("aborted", True)


@pytest.mark.parametrize("caught", [True, False])
def test_bad_message_fails_the_transaction_only(world, transactional, caught):
    """One that librdkafka refuses is not just left out, even if nobody looks.

    Acceptance check 108, and section 10, 7.
    """
    producer = transactional(wait_timeout_on_transaction_abort=LONG)
    heard = events_of(producer, "producer.reload", "producer.connected")

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
    assert names(heard) == ["producer.connected"]


def test_failed_message_fails_the_transaction(world, transactional, mock_cluster):
    """It is rolled back, at the cost of no new client (section 10, 7)."""
    producer = transactional()
    heard = events_of(producer, "producer.reload")
    mock_cluster.fail_requests("Produce", "INVALID_RECORD")

    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        (handle,) = send(producer, partition=0)

    assert tx.outcome == "aborted"
    assert handle.error.name == "INVALID_RECORD"
    with producer.transaction() as tx:
        # librdkafka has skipped a sequence number: see docs/send/transactions.md.
        send(producer, partition=1)
    assert tx.outcome == "committed"
    assert heard == []


# -- alone --------------------------------------------------------------------------


def test_single_message_is_a_transaction(world, transactional):
    """Each send outside of a block returns after its commit."""
    producer = transactional()
    heard = events_of(
        producer,
        *("transaction.started", "message.acknowledged", "transaction.committed"),
        *("transaction.finished", "message.produced_sync", "message.produced_async"),
    )

    report = producer.produce_sync(topic="t", payload=b"x")
    handle = producer.produce_async(topic="t", payload=b"x")

    assert report.topic == "t"
    assert handle.report is not None
    each = ["started", "message.acknowledged", "committed", "finished"]
    assert names(heard) == [
        *each,
        "message.produced_sync",
        *each,
        "message.produced_async",
    ]


def test_batch_is_a_transaction(world, transactional):
    """One for all of it; the handles are final."""
    producer = transactional()
    heard = transaction_events(producer)
    batch = [Message("t", b"x", label=number) for number in range(300)]

    reports = producer.produce_many_sync(batch)
    handles = producer.produce_many_async(batch)

    assert [each.label for each in reports] == list(range(300))
    assert all(each.report for each in handles)
    assert names(heard) == ["started", "committed", "finished"] * 2


@pytest.mark.parametrize("verb", ["produce_many_sync", "produce_many_async"])
def test_batch_is_visible_as_a_whole_or_not_at_all(world, transactional, verb):
    """`dispatched` is empty, and all handles are to be had (section 10, 9)."""
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


def test_failed_message_is_told_by_its_own_error(world, transactional, mock_cluster):
    """The first error is the one that is seen, also of a message that is alone."""
    producer = transactional()
    mock_cluster.fail_requests("Produce", "INVALID_RECORD")
    heard = events_of(producer, "error.occurred")

    with pytest.raises(DeliveryError) as raised:
        producer.produce_async(topic="t", payload=b"x")

    assert raised.value.name == "INVALID_RECORD"
    assert heard[-1]["type"] == "message.produce_async"


def test_variant_with_a_connection_of_its_own_is_refused(transactional):
    """Two clients of one `transactional.id` would fence each other."""
    producer = transactional()

    with pytest.raises(VariantInvalidError, match="transactional"):
        producer.variant(topic_config={"message.timeout.ms": 5_000})


# -- the buffer ---------------------------------------------------------------------


def test_buffer_is_flushed_in_a_transaction(world, transactional):
    """One for all of it, also with senders of several kinds."""
    producer = transactional()
    heard = transaction_events(producer)
    producer.buffer(topic="t", payload=b"x", label=0)
    producer.variant(max_wait_timeout=9.0).buffer(topic="t", payload=b"x", label=1)

    reports = producer.flush_sync()

    assert [each.label for each in reports] == [0, 1]
    assert names(heard) == ["started", "committed", "finished"]


def test_flush_that_is_rolled_back_keeps_all(world, transactional, mock_cluster):
    """What nobody will see is in the buffer again, in order."""
    producer = transactional()
    mock_cluster.fail_requests("AddPartitionsToTxn", "TOPIC_AUTHORIZATION_FAILED")
    for number in range(3):
        producer.buffer(topic="t", payload=b"x", label=number, partition=0)

    with pytest.raises(ProduceManyError, match="3 messages are back"):
        producer.flush_sync()

    assert [each.label for each in producer.buffered] == [0, 1, 2]
    assert [each.label for each in producer.flush_sync()] == [0, 1, 2]


def test_close_flushes_in_a_transaction(world, transactional, stored):
    """What is buffered at the end is committed (section 10, 2)."""
    producer = transactional()
    heard = transaction_events(producer)
    for _ in range(3):
        producer.buffer(topic="t", payload=b"x")

    producer.close()

    assert outcomes(heard) == ["committed"]
    assert producer.buffered == ()
    assert stored("t") >= 3
