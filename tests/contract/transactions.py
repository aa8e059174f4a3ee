"""The contract for transactions, on brokers that hide uncommitted messages.

Those are brokers in memory and Apache Kafka, but not the mock cluster. Fixtures are
those of `suite`.
"""

import pytest

from greendrop import DeliveryError, Message
from greendrop.testing import Recorder
from tests.payloads import check_payload


@pytest.fixture
def transactional(cluster, topic, producer_on_cluster):
    """Construct a transactional producer, and its topic with one partition."""
    cluster.create_topic(topic, partitions=1)
    return producer_on_cluster({"transactional.id": topic})


def payloads(records):
    """Return the payloads."""
    return [record.payload for record in records]


def test_a_transaction_is_visible_once_it_is_committed(
    world, cluster, topic, transactional
):
    """All of its messages become visible at once; its end marker takes an offset."""
    with transactional.transaction():
        transactional.produce_sync(topic=topic, payload=b"1")
        transactional.produce_many_async([Message(topic, b"2"), Message(topic, b"3")])
        transactional.flush_sync()
        before = cluster.records(topic)
    after = cluster.records(topic)
    single = transactional.produce_sync(topic=topic, payload=b"4")

    assert before == []
    assert payloads(after) == [b"1", b"2", b"3"]
    assert single.offset == 4


def test_rolled_back_messages_are_never_visible(world, cluster, topic, transactional):
    """After an abort or an error only later messages are visible."""
    with transactional.transaction() as transaction:
        transactional.produce_sync(topic=topic, payload=b"aborted")
        transaction.abort()
    with pytest.raises(ZeroDivisionError), transactional.transaction():  # noqa: PT012
        transactional.produce_sync(topic=topic, payload=b"failed")
        raise ZeroDivisionError
    with transactional.transaction():
        transactional.produce_sync(topic=topic, payload=b"good")

    assert payloads(cluster.records(topic)) == [b"good"]
    every = cluster.records(topic, uncommitted=True)
    assert payloads(every) == [b"aborted", b"failed", b"good"]
    assert [record.offset for record in every] == [0, 2, 4]


def test_payloads_of_transactions_have_the_types_that_type_checkers_know(
    world, topic, transactional
):
    """Each payload has the keys of its event, with values of the declared types."""
    with Recorder(transactional) as recorder:
        with transactional.transaction():
            transactional.produce_sync(topic=topic, payload=b"1")
        with transactional.transaction() as transaction:
            transactional.produce_async(topic=topic, payload=b"2")
            transaction.abort()

    for event in recorder.events:
        check_payload(event)
    outcomes = [each["outcome"] for each in recorder.named("transaction.finished")]
    assert outcomes == ["committed", "aborted"]


def test_a_refused_message_does_not_end_the_producer(
    world, cluster, topic, transactional
):
    """The transaction is rolled back, and the next one succeeds."""
    with pytest.raises(DeliveryError), transactional.transaction():  # noqa: PT012
        transactional.produce_sync(topic=topic, payload=b"1")
        transactional.produce_sync(topic=topic, payload=b"2", partition=7)
    with transactional.transaction():
        transactional.produce_sync(topic=topic, payload=b"3")

    assert payloads(cluster.records(topic)) == [b"3"]
