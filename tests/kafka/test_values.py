"""Each field arrives at an independent client, also in bulk."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import gevent
import pytest

from greendrop import Message, Producer
from tests.tasks import await_true

#: Seconds for which the hub may be held.
LONGEST_GAP = 0.05


@pytest.fixture
def producer(kafka):
    """Make a producer that is closed at the end."""
    with Producer(kafka={"bootstrap.servers": kafka.bootstrap_servers}) as producer:
        yield producer


VALUES = [b"", b"bytes", "text", "\N{SNOWMAN}", b"\x00\xff", bytes(range(256)), None]


def as_bytes(value):
    """Encode text as UTF-8."""
    return value.encode() if isinstance(value, str) else value


def test_payloads_arrive_unchanged(kafka, topic, read_topic, producer):
    """Empty and no payload differ; text is UTF-8; bytes are bytes."""
    kafka.create_topic(topic)

    producer.produce_many_sync(Message(topic, value, b"key") for value in VALUES)

    records = read_topic(kafka.bootstrap_servers, topic)
    assert [as_bytes(value) for value in VALUES] == [each.value for each in records]


def test_keys_arrive_unchanged(kafka, topic, read_topic, producer):
    """Keys arrive like payloads; greendrop accepts no empty key."""
    kafka.create_topic(topic)
    keys = [value for value in VALUES if value != b""]

    producer.produce_many_sync(Message(topic, b"payload", key) for key in keys)

    records = read_topic(kafka.bootstrap_servers, topic)
    assert [as_bytes(key) for key in keys] == [record.key for record in records]


HEADERS = {
    "none": (None, []),
    "empty": ({}, []),
    "mapping": (
        {"a": b"1", "b": "2", "c": None},
        [("a", b"1"), ("b", b"2"), ("c", None)],
    ),
    "empty value": ({"a": b"", "b": ""}, [("a", b""), ("b", b"")]),
    "repeated": ({"a": [b"1", "2", None]}, [("a", b"1"), ("a", b"2"), ("a", None)]),
    "pairs": (
        [("a", "1"), ("b", b"2"), ("a", None)],
        [("a", b"1"), ("b", b"2"), ("a", None)],
    ),
    "text": ({"\N{SNOWMAN}": "\N{COMET}"}, [("\N{SNOWMAN}", "\N{COMET}".encode())]),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_arrive_in_order(kafka, topic, read_topic, producer, kind):
    """Repeated names, missing values and empty values are kept."""
    given, expected = HEADERS[kind]

    producer.produce_sync(topic=topic, payload=b"x", headers=given)

    (record,) = read_topic(kafka.bootstrap_servers, topic)
    assert expected == record.headers


def test_timestamps_arrive_in_milliseconds(kafka, topic, read_topic, producer):
    """A number, a datetime, and by default the time of the call."""
    kafka.create_topic(topic)
    moment = datetime(2020, 2, 29, 12, 30, 15, 250_000, tzinfo=timezone.utc)
    before = int(time.time() * 1000)

    reports = [
        producer.produce_sync(topic=topic, payload=b"x", timestamp=timestamp)
        for timestamp in (1_234_567_890_123, moment, None)
    ]

    records = read_topic(kafka.bootstrap_servers, topic)
    number, of_datetime, of_call = [record.timestamp for record in records]
    assert (number, of_datetime) == (1_234_567_890_123, 1_582_979_415_250)
    assert before <= of_call <= time.time() * 1000
    assert [report.timestamp for report in reports] == [number, of_datetime, of_call]


def test_timestamps_may_be_the_first_and_zero_is_now(
    kafka, topic, read_topic, producer
):
    """A timestamp of one millisecond is kept; 0 means now, as in librdkafka."""
    kafka.create_topic(topic)
    before = int(time.time() * 1000)

    producer.produce_many_sync(Message(topic, b"", timestamp=each) for each in (1, 0))

    first, now = [each.timestamp for each in read_topic(kafka.bootstrap_servers, topic)]
    assert first == 1
    assert before <= now <= time.time() * 1000


def test_all_fields_arrive_together(kafka, topic, read_topic, producer):
    """A tombstone has all fields, too; partition key and label are not sent."""
    kafka.create_topic(topic, partitions=3)
    fields = {
        "headers": [("a", b""), ("b", None), ("a", "2"), ("", "no name")],
        "partition_key": "routed by this",
        "timestamp": 1_234_567_890_123,
        "label": object(),
    }

    reports = producer.produce_many_sync(
        Message(topic, payload, key, **fields)
        for payload, key in ((None, "k"), (b"", None), (None, None), (b"x", b"k"))
    )

    (partition,) = {report.partition for report in reports}
    records = read_topic(kafka.bootstrap_servers, topic)
    assert [(each.value, each.key) for each in records] == [
        (None, b"k"),
        (b"", None),
        (None, None),
        (b"x", b"k"),
    ]
    for record in records:
        assert record.partition == partition
        assert record.headers == [
            ("a", b""),
            ("b", None),
            ("a", b"2"),
            ("", b"no name"),
        ]
        assert record.timestamp == 1_234_567_890_123


def test_messages_go_to_the_requested_partition(kafka, topic, read_topic, producer):
    """Each delivery report has the requested partition."""
    kafka.create_topic(topic, partitions=3)
    wanted = [2, 0, 1, 2, 2]

    reports = producer.produce_many_sync(
        Message(topic, str(number), partition=partition)
        for number, partition in enumerate(wanted)
    )

    assert [report.partition for report in reports] == wanted
    records = read_topic(kafka.bootstrap_servers, topic)
    stored = {
        int(record.value): (record.partition, record.offset) for record in records
    }
    reported = {
        n: (report.partition, report.offset) for n, report in enumerate(reports)
    }
    assert stored == reported


def test_equal_keys_share_a_partition(kafka, topic, read_topic, producer):
    """Messages of a key stay together, and in order."""
    kafka.create_topic(topic, partitions=8)
    keys = [f"key{number % 20}" for number in range(400)]

    producer.produce_many_sync(
        Message(topic, str(number), key) for number, key in enumerate(keys)
    )

    records = read_topic(kafka.bootstrap_servers, topic)
    assert len({record.partition for record in records}) > 1
    for key in set(keys):
        of_key = [record for record in records if record.key == key.encode()]
        assert len({record.partition for record in of_key}) == 1
        numbers = [int(record.value) for record in of_key]
        assert numbers == [n for n, each in enumerate(keys) if each == key]


@pytest.mark.slow
def test_a_thousand_greenlets_send_a_million_messages_through_a_small_queue(
    kafka, topic, read_topic, longest_gap
):
    """With space for 10,000 messages only, all senders wait, and nothing is lost."""
    kafka.create_topic(topic, partitions=4)
    config = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "queue.buffering.max.messages": 10_000,
    }
    sizes = []

    def send(name):
        for number in range(1000):
            producer.produce_async(topic=topic, payload=f"{name}-{number}")
        sizes.append(producer.queue_size)

    with Producer(kafka=config) as producer:
        senders = [gevent.spawn(send, number) for number in range(1000)]
        # The first ten fill the queue, and don't wait: that holds the hub.
        await_true(lambda: producer.queue_size == 10_000)
        with longest_gap() as gap:
            gevent.joinall(senders, timeout=120)
        for sender in senders:
            sender.get(block=False)

    assert max(sizes) > 9_000
    assert gap.seconds < LONGEST_GAP
    stored = [
        record.value
        for record in read_topic(kafka.bootstrap_servers, topic, timeout=90)
    ]
    assert len(stored) == 1_000_000
    expected = {b"%d-%d" % (i, k) for i in range(1000) for k in range(1000)}
    assert expected == set(stored)
