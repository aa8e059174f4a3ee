"""Partitions chosen by a key, as other clients choose and see them."""

from __future__ import annotations

import warnings

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from greendrop import DeliveryError, Message, Producer
from tests.tasks import await_true

#: Partitioners that agree with Kafka's Java client, and with kafka-python.
MURMUR2 = ["murmur2", "murmur2_random"]


@pytest.fixture
def make_producer(kafka):
    """Make producers that are closed at the end."""
    made = []

    def make(**config):
        config["bootstrap.servers"] = kafka.bootstrap_servers
        made.append(Producer(kafka=config))
        return made[-1]

    yield make
    for producer in made:
        producer.close()


@pytest.fixture
def foreign_producer(kafka):
    """Make a producer of kafka-python."""
    # Its way to read its own files is deprecated since Python 3.11.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from kafka import KafkaProducer  # noqa: PLC0415

    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers.split(","))
    yield producer
    producer.close()


def test_a_partition_key_leads_where_kafka_python_puts_the_key(
    kafka, topic, read_topic, make_producer, foreign_producer
):
    """Two independent clients agree on 200 keys of 1 to 200 bytes."""
    kafka.create_topic(topic, partitions=12)
    keys = [bytes([number + 1]) * (number + 1) for number in range(200)]

    futures = [foreign_producer.send(topic, b"theirs", key) for key in keys]
    theirs = [future.get(30).partition for future in futures]
    ours = [
        make_producer(partitioner=name).produce_many_sync(
            Message(topic, b"ours", partition_key=key) for key in keys
        )
        for name in MURMUR2
    ]

    assert [[report.partition for report in reports] for reports in ours] == [
        theirs,
        theirs,
    ]
    records = read_topic(kafka.bootstrap_servers, topic)
    assert {each.key for each in records if each.value == b"ours"} == {None}


def test_the_first_message_of_a_new_topic_goes_where_the_others_go(
    topic, make_producer, foreign_producer
):
    """The broker first answers that there is no such topic, which changes nothing."""
    producer = make_producer(partitioner="murmur2")

    first = producer.produce_sync(topic=topic, payload=b"x", partition_key="a key")

    theirs = foreign_producer.send(topic, b"theirs", b"a key").get(30)
    assert first.partition == theirs.partition
    assert producer.partition_count(topic) == len(
        foreign_producer.partitions_for(topic)
    )


def test_a_topic_that_has_grown_is_used_as_a_whole(kafka, topic, make_producer):
    """New partitions are used once the cached number has expired, as in librdkafka."""
    kafka.create_topic(topic, partitions=2)
    producer = make_producer()
    batch = [Message(topic, b"x", partition_key=str(number)) for number in range(200)]
    before = producer.produce_many_sync(batch)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.create_partitions([NewPartitions(topic, 6)])[topic].result(30)
    await_true(lambda: len(admin.list_topics(topic, 10).topics[topic].partitions) == 6)

    same = producer.produce_many_sync(batch)
    producer._slot.client.router._known.clear()  # 30 s later
    after = producer.produce_many_sync(batch)

    assert {report.partition for report in before} == {0, 1}
    assert [each.partition for each in same] == [each.partition for each in before]
    assert {report.partition for report in after} == set(range(6))


def test_a_topic_that_is_recreated_with_fewer_partitions_is_used_at_once(
    world, kafka, topic, read_topic, make_producer
):
    """No message with a `partition_key` fails while the cached number is too large."""
    kafka.create_topic(topic, partitions=12)
    producer = make_producer()
    batch = [Message(topic, b"x", partition_key=str(number)) for number in range(50)]
    producer.produce_many_sync(batch)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.delete_topics([topic])[topic].result(30)
    await_true(lambda: topic not in admin.list_topics(timeout=10).topics)
    kafka.create_topic(topic, partitions=2)

    one = producer.produce_sync(topic=topic, payload=b"x", partition_key="0")
    reports = producer.produce_many_sync(batch)

    assert one.partition == reports[0].partition
    assert {report.partition for report in reports} == {0, 1}
    assert len(read_topic(kafka.bootstrap_servers, topic)) == 51


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"partition_key": "k"}], ids=["plain", "keyed"])
def test_a_topic_that_is_never_created_times_out(topic, make_producer, fields):
    """A message fails in the same way with and without a `partition_key`."""
    producer = make_producer(
        **{"allow.auto.create.topics": False, "message.timeout.ms": 1_000}
    )

    with pytest.raises(DeliveryError, match="the topic is unknown") as raised:
        producer.produce_sync(topic=topic, payload=b"x", **fields)

    assert raised.value.name == "_MSG_TIMED_OUT"
    assert producer.partition_count(topic) == -1
