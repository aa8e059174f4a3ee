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
        """Tell it."""
        return self._place[0]

    def partition(self):
        """Tell it."""
        return self._place[1]

    def offset(self):
        """Tell it."""
        return self._place[2]


@pytest.fixture
def consumer(mock_cluster):
    """A consumer of the mock cluster, which is closed after the test."""
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
    """Give a producer, and what its client is told to send as offsets."""
    producer = connected()
    native = producer._slot.client.kafka_handle
    told = []
    native.send_offsets = lambda *arguments: told.append(arguments)
    return producer, told


def test_consumed_messages_are_part_of_the_transaction(
    world, connected, consumer, mock_cluster
):
    """With a real consumer: the brokers take what was read. Acceptance check 107."""
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
    """That of the message after, in time; and it is told. Acceptance check 107."""
    producer, told = offsets_of
    heard = events_of(producer, "transaction.marked_as_consumed")
    message = Read(offset=7)

    with producer.variant(max_wait_timeout=0.5).transaction() as tx:
        tx.mark_as_consumed(consumer, message, "by a test")

    ((offsets, group, seconds),) = told
    assert list(offsets) == [("in", 0, 8, "by a test")]
    assert type(group) is type(consumer.consumer_group_metadata())
    assert 0 < seconds <= 0.5
    (event,) = heard
    assert (event["message"], event["offset_metadata"]) == (message, "by a test")


def test_many_messages_cost_one_request(world, offsets_of, consumer):
    """Of each partition the last one counts, in whatever order they come."""
    producer, told = offsets_of
    heard = events_of(producer, "transaction.marked_as_consumed")
    read = [Read("in", 0, 3), Read("in", 1, 9), Read("in", 0, 5), Read("in", 0, 4)]

    with producer.transaction() as tx:
        tx.mark_many_as_consumed(consumer, iter([*read, Read("on", 0, 0)]))
        tx.mark_many_as_consumed(consumer, [])

    ((offsets, _, _),) = told
    assert sorted(offsets) == [
        ("in", 0, 6, None),
        ("in", 1, 10, None),
        ("on", 0, 1, None),
    ]
    assert [each["message"].offset() for each in heard] == [5, 9, 0]


def test_marking_needs_a_transaction(world, connected, consumer, spawn):
    """That is looked at first; it must be open, and one's own. Acceptance check 107."""
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
    """And the transaction goes on. Acceptance check 107."""
    producer, told = offsets_of
    if arguments[0] == "right":
        arguments = (consumer, *arguments[1:])

    with producer.transaction() as tx:
        with pytest.raises(TransactionalOffsetInvalidError) as raised:
            tx.mark_as_consumed(*arguments)
        send(producer)

    assert list(raised.value.errors) == [bad]
    assert tx.outcome == "committed"
    assert told == []


def test_closed_consumer_is_told(connected, mock_cluster):
    """It can't say any more for which group it has read."""
    producer = connected()
    servers = mock_cluster.bootstrap_servers
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "group"})
    consumer.close()

    with producer.transaction() as tx:  # noqa: SIM117
        with pytest.raises(TransactionalOffsetInvalidError, match="consumer"):
            tx.mark_as_consumed(consumer, Read())
    assert tx.outcome == "committed"


def test_refused_offsets_fail_the_transaction(world, connected, consumer):
    """Also if the program catches that: half of it must not be committed."""
    producer = connected()
    heard = events_of(producer, "error.occurred")

    def refuse(*_):
        raise BrokerError("no", code=22, name="ILLEGAL_GENERATION", abortable=True)

    producer._slot.client.kafka_handle.send_offsets = refuse
    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        with pytest.raises(TransactionAbortedError) as raised:
            tx.mark_as_consumed(consumer, Read())
        send(producer)

    assert raised.value.name == "ILLEGAL_GENERATION"
    assert tx.outcome == "aborted"
    assert [each["type"] for each in heard] == ["transaction.store_offset"]


def test_offsets_are_tried_again(world, connected, consumer, mock_cluster):
    """What passes by itself, passes."""
    mock_cluster.create_topic("in", 1)
    producer = connected()
    mock_cluster.fail_requests("AddOffsetsToTxn", "COORDINATOR_LOAD_IN_PROGRESS", 2)

    with producer.transaction() as tx:
        tx.mark_as_consumed(consumer, Read())

    assert tx.outcome == "committed"


@pytest.mark.slow
def test_offsets_that_take_long_go_on_in_pieces(
    world, connected, consumer, mock_cluster
):
    """A broker that takes its time is waited for."""
    mock_cluster.create_topic("in", 1)
    producer = connected()
    mock_cluster.delay_requests("AddOffsetsToTxn", 1.5)

    with producer.transaction() as tx:
        tx.mark_as_consumed(consumer, Read())

    assert tx.outcome == "committed"
