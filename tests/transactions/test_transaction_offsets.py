"""Offsets of consumed messages that are committed with a transaction."""

from types import SimpleNamespace

import pytest
from confluent_kafka import Consumer

from greendrop import (
    BrokerError,
    TransactionAbortedError,
    TransactionalOffsetInvalidError,
    TransactionRequiredError,
)
from tests.transactions.transacting import LONG, events_of, send


class Read:
    """A message that a consumer has read."""

    def __init__(self, topic="in", partition=0, offset=7):
        self._place = (topic, partition, offset)

    def topic(self):
        """Return the topic."""
        return self._place[0]

    def partition(self):
        """Return the partition."""
        return self._place[1]

    def offset(self):
        """Return the offset."""
        return self._place[2]


@pytest.fixture
def consumer(mock_cluster):
    """Construct a consumer of the mock cluster, which is closed after the test."""
    made = Consumer(
        {
            "bootstrap.servers": mock_cluster.bootstrap_servers,
            "group.id": "group",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    yield made
    made.close()


@pytest.fixture
def offsets_of(connected):
    """Return a producer, and a list of the offsets that its client is asked to send."""
    producer = connected()
    native = producer._slot.client.kafka_handle
    sent_offsets = []
    native.send_offsets = lambda *arguments: sent_offsets.append(arguments)
    return producer, sent_offsets


def test_consumed_messages_are_part_of_the_transaction(
    world, connected, consumer, mock_cluster
):
    """With a real consumer, the brokers get the offsets of the messages it has read."""
    mock_cluster.create_topic("in", 1)
    producer = connected()
    producer.produce_sync(topic="in", payload=b"a")
    consumer.subscribe(["in"])
    message = consumer.poll(LONG)
    mock_cluster.watch_requests()

    with producer.transaction() as tx:
        send(producer)
        tx.mark_as_consumed(consumer, message)

    assert tx.outcome == "committed"
    requests = mock_cluster.requests()
    assert "AddOffsetsToTxn" in requests
    assert "TxnOffsetCommit" in requests


def test_next_offset_is_sent(world, offsets_of, consumer):
    """The offset after that of the message is sent, and an event says so."""
    producer, sent_offsets = offsets_of
    events = events_of(producer, "transaction.marked_as_consumed")
    message = Read(offset=7)

    with producer.variant(max_wait_timeout=0.5).transaction() as tx:
        tx.mark_as_consumed(consumer, message, "by a test")

    ((seconds, offsets, group),) = sent_offsets
    assert list(offsets) == [("in", 0, 8, "by a test")]
    assert type(group) is type(consumer.consumer_group_metadata())
    assert 0 < seconds <= 0.5
    (event,) = events
    assert (event["message"], event["offset_metadata"]) == (message, "by a test")


def test_many_messages_cost_one_request(world, offsets_of, consumer):
    """Only the highest offset of each partition is sent, in one request."""
    producer, sent_offsets = offsets_of
    events = events_of(producer, "transaction.marked_as_consumed")
    read = [Read("in", 0, 3), Read("in", 1, 9), Read("in", 0, 5), Read("in", 0, 4)]

    with producer.transaction() as tx:
        tx.mark_many_as_consumed(consumer, iter([*read, Read("on", 0, 0)]))
        tx.mark_many_as_consumed(consumer, [])

    ((_, offsets, _),) = sent_offsets
    assert sorted(offsets) == [
        ("in", 0, 6, None),
        ("in", 1, 10, None),
        ("on", 0, 1, None),
    ]
    assert [each["message"].offset() for each in events] == [5, 9, 0]


def test_marking_needs_an_open_transaction_of_the_caller(
    world, connected, consumer, spawn
):
    """Marking checks first that the transaction is open and belongs to the caller."""
    producer = connected()
    tx = producer.transaction()
    caught = []

    def try_it(consumer=None):
        try:
            tx.mark_as_consumed(consumer, None)
        except TransactionRequiredError as error:
            caught.append(error)

    try_it()
    with tx:
        spawn(lambda: try_it(consumer)).join()
    try_it()

    assert len(caught) == 3
    with pytest.raises(TransactionRequiredError):
        tx.abort()


@pytest.mark.parametrize(
    ("arguments", "bad"),
    [
        ((object(), Read()), "consumer"),
        ((None, Read()), "consumer"),
        (("right", object()), "message"),
        (("right", Read(topic=None)), "message"),
        (("right", Read(offset=-1001)), "message"),
        (("right", Read(partition=-1)), "message"),
        (("right", SimpleNamespace(topic="in", partition=0, offset=1)), "message"),
        (("right", Read(), b"bytes"), "metadata"),
    ],
)
def test_bad_arguments_are_named(world, offsets_of, consumer, arguments, bad):
    """Invalid arguments raise an error that names them, and the transaction goes on."""
    producer, sent_offsets = offsets_of
    if arguments[0] == "right":
        arguments = (consumer, *arguments[1:])

    with producer.transaction() as tx:
        with pytest.raises(TransactionalOffsetInvalidError) as raised:
            tx.mark_as_consumed(*arguments)
        send(producer)

    assert list(raised.value.errors) == [bad]
    assert tx.outcome == "committed"
    assert sent_offsets == []


def test_closed_consumer_is_refused(connected, mock_cluster):
    """A closed consumer no longer knows its group, which raises an error."""
    producer = connected()
    servers = mock_cluster.bootstrap_servers
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "group"})
    consumer.close()

    with producer.transaction() as tx:  # noqa: SIM117
        with pytest.raises(TransactionalOffsetInvalidError, match="consumer"):
            tx.mark_as_consumed(consumer, Read())
    assert tx.outcome == "committed"


def test_refused_offsets_fail_the_transaction(world, connected, consumer):
    """Catching the error doesn't help: half a transaction must not be committed."""
    producer = connected()
    events = events_of(producer, "error.occurred")

    def refuse(*_):
        raise BrokerError("no", code=22, name="ILLEGAL_GENERATION", abortable=True)

    producer._slot.client.kafka_handle.send_offsets = refuse
    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        with pytest.raises(TransactionAbortedError) as raised:
            tx.mark_as_consumed(consumer, Read())
        send(producer)

    assert raised.value.name == "ILLEGAL_GENERATION"
    assert tx.outcome == "aborted"
    assert [each["type"] for each in events] == ["transaction.store_offset"]


def test_offsets_are_retried(world, connected, consumer, mock_cluster):
    """A temporary error of the brokers is retried until it passes."""
    mock_cluster.create_topic("in", 1)
    producer = connected()
    mock_cluster.fail_requests("AddOffsetsToTxn", "COORDINATOR_LOAD_IN_PROGRESS", 2)

    with producer.transaction() as tx:
        tx.mark_as_consumed(consumer, Read())

    assert tx.outcome == "committed"


@pytest.mark.slow
def test_slow_offsets_continue_in_short_calls(world, connected, consumer, mock_cluster):
    """A slow broker is waited for, though each single call is short."""
    mock_cluster.create_topic("in", 1)
    producer = connected()
    mock_cluster.delay_requests("AddOffsetsToTxn", 1.5)

    with producer.transaction() as tx:
        tx.mark_as_consumed(consumer, Read())

    assert tx.outcome == "committed"
