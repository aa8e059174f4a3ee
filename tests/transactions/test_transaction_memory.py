"""Transactions of real producers on the in-memory brokers that users' tests have."""

import contextlib

import pytest

from greendrop import Producer, TransactionAbortedError
from greendrop.testing import MemoryCluster
from tests.transactions.transacting import send


@pytest.fixture
def cluster():
    """Start in-memory brokers."""
    with MemoryCluster() as made:
        yield made


@pytest.fixture
def producer(cluster):
    """Construct a transactional producer, which is closed after the test."""
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
    """Count the messages that consumers see."""
    return len(cluster.records("t"))


def test_committed_messages_are_seen(world, cluster, producer):
    """Messages become visible at the end of the outer block, and not before."""
    with producer.transaction():
        send(producer, 3)
        with producer.transaction():
            producer.produce_sync(topic="t", payload=b"x")
        assert count(cluster) == 0

    assert count(cluster) == 4


@pytest.mark.parametrize("how", ["abort", "error", "nested"])
def test_messages_after_an_aborted_transaction_are_seen(world, cluster, producer, how):
    """Messages of an aborted transaction stay invisible, and later ones are seen."""
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


def test_commit_can_be_made_to_fail(world, cluster, producer):
    """A user's test can make the commit fail and see what the program does."""
    producer.produce_sync(topic="t", payload=b"x")
    cluster.fail_calls("commit_transaction", "UNKNOWN_SERVER_ERROR", abortable=True)

    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        send(producer)

    assert tx.outcome == "aborted"
    assert count(cluster) == 1
    assert send(producer)[0].report


class Group:
    """A stand-in for a consumer, and for a message that it has read."""

    def __init__(self, offset=0):
        self._offset = offset

    def consumer_group_metadata(self):
        """Return what the in-memory brokers accept as the metadata of a group."""
        return "group"

    def topic(self):
        """Return the topic of the message."""
        return "in"

    def partition(self):
        """Return the partition of the message."""
        return 1

    def offset(self):
        """Return the offset of the message."""
        return self._offset


def test_offsets_are_committed_with_the_transaction(world, cluster, producer):
    """Offsets of an aborted transaction are not committed."""
    with producer.transaction() as tx:
        tx.mark_as_consumed(Group(), Group(6))
    with producer.transaction() as tx:
        tx.mark_as_consumed(Group(), Group(9))
        tx.abort()

    assert cluster.committed_offsets("group") == {("in", 1): 7}


def test_a_transaction_with_a_failed_message_is_not_committed(cluster, producer):
    """A failed message aborts its transaction, as in librdkafka.

    The next one is committed.
    """
    cluster.fail_messages("INVALID_RECORD")

    with pytest.raises(TransactionAbortedError), producer.transaction():
        producer.produce_async(topic="t", payload=b"fails")
        producer.produce_async(topic="t", payload=b"does not")
    with producer.transaction():
        producer.produce_async(topic="t", payload=b"next")

    assert [record.payload for record in cluster.records("t")] == [b"next"]
