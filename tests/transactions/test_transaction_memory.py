"""Transactions of real producers on the brokers in memory that users' tests have."""

import contextlib

import pytest

from greendrop import Producer, TransactionAbortedError
from greendrop.testing import MemoryCluster
from tests.transactions.transacting import send


@pytest.fixture
def cluster():
    """Brokers in memory."""
    with MemoryCluster() as made:
        yield made


@pytest.fixture
def producer(cluster):
    """A transactional producer, which is closed after the test."""
    made = Producer(
        kafka={
            "bootstrap.servers": cluster.bootstrap_servers,
            "transactional.id": "in-memory",
        },
        wait_timeout_on_transaction_abort=0.0,
        wait_backoff_on_transaction_command=0.0,
        wait_backoff_on_transaction_fatal_error=0.0,
    )
    yield made
    made.close(force=True)


def count(cluster):
    """Count what consumers see."""
    return len(cluster.records("t"))


def test_committed_messages_are_seen(world, cluster, producer):
    """At the end of the block, and not before. Acceptance check 117."""
    with producer.transaction():
        send(producer, 3)
        with producer.transaction():
            producer.produce_sync(topic="t", payload=b"x")
        assert count(cluster) == 0

    assert count(cluster) == 4


@pytest.mark.parametrize("how", ["abort", "error", "nested"])
def test_messages_after_an_aborted_transaction_are_seen(world, cluster, producer, how):
    """And those of the aborted one never. Acceptance checks 72 and 117."""
    with contextlib.suppress(ValueError), producer.transaction() as tx:
        send(producer, 3)
        if how == "error":
            raise ValueError
        with producer.transaction() if how == "nested" else contextlib.nullcontext():
            tx.abort()
    assert count(cluster) == 0

    producer.produce_sync(topic="t", payload=b"x")
    with producer.transaction():
        send(producer, 2)

    assert count(cluster) == 3


def test_commit_that_is_told_to_fail(world, cluster, producer):
    """A user's test sees what the program would do about it."""
    producer.produce_sync(topic="t", payload=b"x")
    cluster.fail_calls("commit_transaction", "UNKNOWN_SERVER_ERROR", abortable=True)

    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        send(producer)

    assert tx.outcome == "aborted"
    assert count(cluster) == 1
    assert send(producer)[0].report


class Group:
    """What stands for a consumer, and for a message that it has read."""

    def __init__(self, offset=0):
        self._offset = offset

    def consumer_group_metadata(self):
        """Give what the brokers in memory take for one."""
        return "group"

    def topic(self):
        """Tell where it was read."""
        return "in"

    def partition(self):
        """Tell where it was read."""
        return 1

    def offset(self):
        """Tell its place."""
        return self._offset


def test_offsets_go_with_the_transaction(world, cluster, producer):
    """Those of an aborted one don't. Acceptance check 117."""
    with producer.transaction() as tx:
        tx.mark_as_consumed(Group(), Group(6))
    with producer.transaction() as tx:
        tx.mark_as_consumed(Group(), Group(9))
        tx.abort()

    assert cluster.committed_offsets("group") == {("in", 1): 7}


def test_a_transaction_with_a_failed_message_is_not_committed(cluster, producer):
    """As by librdkafka; the next one is."""
    cluster.fail_messages("INVALID_RECORD")

    with pytest.raises(TransactionAbortedError), producer.transaction():
        producer.produce_async(topic="t", payload=b"fails")
        producer.produce_async(topic="t", payload=b"does not")
    with producer.transaction():
        producer.produce_async(topic="t", payload=b"next")

    assert [record.payload for record in cluster.records("t")] == [b"next"]
