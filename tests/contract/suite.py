"""The contract on brokers in memory, on the mock cluster and on Apache Kafka alike.

A module that imports these tests has a fixture `cluster`, with `bootstrap_servers`,
`create_topic(topic, partitions)` and `records(topic)`, and a fixture `topic`.
"""

import asyncio
import time
from datetime import datetime, timezone

import pytest

from greendrop import (
    DeliveryError,
    Message,
    MessageInvalidError,
    MessagesAbandonedError,
    ProduceError,
    ProduceManyError,
    Producer,
    ProducerClosedError,
    ProducerPool,
)
from greendrop._librdkafka.partitioners import partitioner
from greendrop.testing import Recorder, fatal_error, trigger_fatal_error
from tests.payloads import check_payload

#: Partitioners of librdkafka that look at the key.
PARTITIONERS = (
    "consistent",
    "consistent_random",
    "murmur2",
    "murmur2_random",
    "fnv1a",
    "fnv1a_random",
)


@pytest.fixture
def producer_on_cluster(cluster):
    """Construct producers on the cluster, which are closed after the test."""
    made = []

    def make(kafka=None, **settings):
        servers = {"bootstrap.servers": cluster.bootstrap_servers}
        producer = Producer(kafka=servers | (kafka or {}), **settings)
        made.append(producer)
        return producer

    yield make
    for producer in made:
        producer.close(force=True)


def values(records):
    """Return the payloads."""
    return [record.payload for record in records]


def test_a_record_is_where_its_report_says(world, cluster, topic, producer_on_cluster):
    """The record at the reported offset has all fields of the message."""
    cluster.create_topic(topic, partitions=3)

    report = producer_on_cluster().produce_sync(
        topic=topic,
        payload="päyload",
        key="key",
        partition=2,
        headers={"one": "1", "none": None},
        timestamp=datetime(2026, 1, 2, tzinfo=timezone.utc),
        label="a label",
    )

    (record,) = cluster.records(topic)
    assert record[:4] == (topic, 2, 0, 1_767_312_000_000)
    assert record[4:6] == (b"key", "päyload".encode())
    assert record.headers == [("one", b"1"), ("none", None)]
    # The mock cluster reports every timestamp as of the year 1970.
    assert report[:3] == record[:3]
    assert report.label == "a label"
    assert 0 <= report.latency < 30


def test_a_header_may_be_repeated(cluster, topic, producer_on_cluster):
    """Each value of a repeated header is in the record, in order."""
    producer_on_cluster().produce_sync(
        topic=topic, payload=b"x", headers={"h": ["1", b"2"], "other": "3"}
    )

    (record,) = cluster.records(topic)
    assert record.headers == [("h", b"1"), ("h", b"2"), ("other", b"3")]


def test_a_message_without_a_timestamp_gets_the_present_one(
    cluster, topic, producer_on_cluster
):
    """The default timestamp is the present time in milliseconds."""
    before = time.time_ns() // 1_000_000
    producer_on_cluster().produce_sync(topic=topic, payload=b"x")

    (record,) = cluster.records(topic)
    assert before <= record.timestamp <= time.time_ns() // 1_000_000


def test_offsets_count_by_partition(world, cluster, topic, producer_on_cluster):
    """Offsets start at 0 and grow by one in the order of sending."""
    cluster.create_topic(topic, partitions=2)
    batch = [Message(topic, str(each), partition=each % 2) for each in range(100)]

    reports = producer_on_cluster().produce_many_sync(batch)

    assert [each.offset for each in reports] == [each // 2 for each in range(100)]
    stored = cluster.records(topic)
    for partition in (0, 1):
        payloads = values(each for each in stored if each.partition == partition)
        assert payloads == [str(each).encode() for each in range(partition, 100, 2)]


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_key_leads_to_its_partition(cluster, topic, producer_on_cluster, name):
    """The partitioner of librdkafka chooses, also for a `partition_key`."""
    cluster.create_topic(topic, partitions=5)
    producer = producer_on_cluster({"partitioner": name})
    keys = [str(each).encode() for each in range(20)]
    expected = [partitioner(name)(key, 5) for key in keys]

    by_key = producer.produce_many_sync([Message(topic, b"x", key) for key in keys])
    by_partition_key = producer.produce_many_sync(
        [Message(topic, b"x", partition_key=key) for key in keys]
    )

    assert [each.partition for each in by_key] == expected
    assert [each.partition for each in by_partition_key] == expected
    assert len(set(expected)) > 2


def test_the_number_of_partitions_is_returned(cluster, topic, producer_on_cluster):
    """A topic has as many partitions as were created."""
    cluster.create_topic(topic, partitions=7)

    assert producer_on_cluster().partition_count(topic) == 7


def test_a_missing_partition_is_an_error(world, cluster, topic, producer_on_cluster):
    """Only the message for the missing partition fails."""
    cluster.create_topic(topic, partitions=2)
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"before")

    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic=topic, payload=b"x", partition=2)

    assert raised.value.name == "_UNKNOWN_PARTITION"
    assert raised.value.__cause__.code == -190
    producer.produce_sync(topic=topic, payload=b"after")
    assert sorted(values(cluster.records(topic))) == [b"after", b"before"]


@pytest.mark.parametrize(
    "sized",
    [
        (36, {}),
        (136, {"key": b"k" * 100}),
        (36 + 66 + 68 + 3, {"headers": {"a": b"v" * 63, "b": [b"v" * 64, None]}}),
    ],
)
def test_a_message_may_be_as_large_as_the_limit(
    world, cluster, topic, producer_on_cluster, sized
):
    """A message that is one byte larger is refused; the others are delivered."""
    size, rest = sized
    producer = producer_on_cluster({"message.max.bytes": 2000})

    with pytest.raises(MessageInvalidError):
        producer.produce_sync(topic=topic, payload=bytes(2001 - size), **rest)

    assert producer.queue_size == 0
    producer.produce_sync(topic=topic, payload=bytes(2000 - size), **rest)
    assert values(cluster.records(topic)) == [bytes(2000 - size)]


def test_an_invalid_message_is_not_sent(cluster, topic, producer_on_cluster):
    """An invalid message fails its batch before anything is sent."""
    producer = producer_on_cluster()

    with pytest.raises(MessageInvalidError):
        producer.produce_many_sync([Message(topic, b"x"), Message(topic, 5)])

    producer.produce_sync(topic=topic, payload=b"good")
    assert values(cluster.records(topic)) == [b"good"]


def test_messages_are_sent_as_middleware_returns_them(
    cluster, topic, producer_on_cluster
):
    """Middleware steps change a message in their order."""
    producer = producer_on_cluster()
    producer.middleware.append(lambda each: each._replace(payload=each.payload + "1"))
    producer.middleware.append(lambda each: each._replace(payload=each.payload + "2"))

    producer.produce_sync(topic=topic, payload="0")

    assert values(cluster.records(topic)) == [b"012"]


def test_events_are_emitted_in_order(world, cluster, topic, producer_on_cluster):
    """The acknowledgement is emitted before the event of the verb."""
    producer = producer_on_cluster()
    with Recorder(producer) as recorder:
        report = producer.produce_sync(topic=topic, payload=b"x", label="mine")

    assert recorder.names == [
        "producer.connected",
        "message.acknowledged",
        "message.produced_sync",
    ]
    event = recorder.named("message.acknowledged")[0]
    assert event["delivery_report"] == report
    assert (event["topic"], event["offset"], event["label"]) == (topic, 0, "mine")
    assert recorder.errors == []


def test_payloads_have_the_types_that_type_checkers_know(
    world, cluster, topic, producer_on_cluster
):
    """Each payload has the keys of its event, with values of the declared types."""
    cluster.create_topic(topic, partitions=1)
    producer = producer_on_cluster()
    recorder = Recorder(producer)
    batch = [Message(topic, b"x"), {"topic": topic, "payload": "y", "label": 5}]
    producer.produce_sync(topic=topic, payload=b"x", label=object())
    producer.produce_many_sync(batch)
    producer.produce_many_async(batch)
    producer.buffer(topic=topic, payload=b"x")
    producer.buffer_many(batch)
    producer.flush_sync()
    with pytest.raises(DeliveryError):
        producer.produce_sync(topic=topic, payload=b"x", partition=9)
    with pytest.raises(ProduceManyError):
        producer.produce_many_sync([*batch, Message(topic, b"x", partition=9)])
    producer.buffer(topic=topic, payload=b"x")
    producer.purge()
    producer.disconnect()
    producer.variant(topic_config={"acks": 0}).produce_sync(topic=topic, payload=b"x")
    producer.close()

    for event in recorder.events:
        check_payload(event)
    assert len(set(recorder.names)) >= 14


def test_a_failed_message_is_reported_as_an_event(
    world, topic, cluster, producer_on_cluster
):
    """The event has the error and the label of the message."""
    cluster.create_topic(topic, partitions=1)
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"x")
    with Recorder(producer) as recorder, pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic=topic, payload=b"x", partition=9, label="mine")

    kinds = [each["type"] for each in recorder.named("error.occurred")]
    assert kinds[-1] == "message.produce_sync"
    assert str(raised.value) == str(recorder.errors[-1])


def test_a_full_queue_makes_senders_wait(world, cluster, topic, producer_on_cluster):
    """Senders wait for space in the queue, and all messages arrive."""
    producer = producer_on_cluster({"queue.buffering.max.messages": 5})

    handles = [
        producer.produce_async(topic=topic, payload=str(each), partition=0)
        for each in range(200)
    ]

    assert [each.wait(20).offset for each in handles] == list(range(200))
    assert values(cluster.records(topic)) == [str(each).encode() for each in range(200)]


def test_buffered_messages_are_sent_by_a_flush(
    world, cluster, topic, producer_on_cluster
):
    """No buffered message is sent before the flush."""
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"first", partition=0)
    producer.buffer(topic=topic, payload=b"second", partition=0)
    before = values(cluster.records(topic))

    reports = producer.flush_sync()

    assert before == [b"first"]
    assert [each.offset for each in reports] == [1]
    assert values(cluster.records(topic)) == [b"first", b"second"]


def test_flush_waits_for_all_messages_and_leaves_the_producer_open(
    world, cluster, topic, producer_on_cluster
):
    """Buffered messages are sent, and those of variants are waited for, too."""
    cluster.create_topic(topic, partitions=1)
    producer = producer_on_cluster()
    handles = [
        producer.produce_async(topic=topic, payload=str(number)) for number in range(50)
    ]
    variant = producer.variant(topic_config={"acks": 1})
    handles.append(variant.produce_async(topic=topic, payload=b"variant"))
    producer.buffer(topic=topic, payload=b"buffered")

    producer.flush(20)

    assert all(each.done for each in handles)
    assert producer.queue_size == 0
    assert len(cluster.records(topic)) == 52
    assert producer.produce_sync(topic=topic, payload=b"after").offset == 52


def test_handles_are_awaited_in_an_event_loop(cluster, topic, producer_on_cluster):
    """`gather` returns the reports, and a failed message raises its error."""
    cluster.create_topic(topic, partitions=1)
    producer = producer_on_cluster()

    async def main():
        sent = [producer.produce_async(topic=topic, payload=b"x") for _ in range(50)]
        reports = await asyncio.gather(*sent)
        with pytest.raises(DeliveryError):
            await producer.produce_async(topic=topic, payload=b"x", partition=9)
        return reports

    assert [each.offset for each in asyncio.run(main())] == list(range(50))
    assert len(cluster.records(topic)) == 50


def test_handles_are_futures(world, cluster, topic, producer_on_cluster):
    """`result`, `exception` and `add_done_callback` have the outcome."""
    cluster.create_topic(topic, partitions=1)
    producer = producer_on_cluster()
    done = []

    handle = producer.produce_async(topic=topic, payload=b"x")
    handle.add_done_callback(done.append)
    failed = producer.produce_async(topic=topic, payload=b"x", partition=9)
    failed.add_done_callback(done.append)

    assert (handle.result(20).offset, handle.exception(20)) == (0, None)
    assert failed.exception(20).name == "_UNKNOWN_PARTITION"
    producer.close()
    assert set(map(id, done)) == {id(handle), id(failed)}


def test_one_handler_catches_what_verbs_raise_about_messages(
    world, cluster, topic, producer_on_cluster
):
    """Each error is a `ProduceError` with the state of the message."""
    cluster.create_topic(topic, partitions=1)
    producer = producer_on_cluster()
    states = []
    for message in ({"payload": 5}, {"payload": b"x", "partition": 9}):
        with pytest.raises(ProduceError) as raised:
            producer.produce_sync(topic=topic, **message)
        states.append(raised.value.message_state)
    producer.close()
    for verb in (producer.produce_sync, producer.produce_async, producer.buffer):
        with pytest.raises(ProduceError) as raised:
            verb(topic=topic, payload=b"x")
        states.append(raised.value.message_state)

    assert states == ["not_sent", "not_delivered", "not_sent", "not_sent", "not_sent"]


def test_a_producer_can_be_read(world, cluster, topic, producer_on_cluster):
    """Its properties show settings and state; a list of addresses is accepted."""
    servers = [cluster.bootstrap_servers]
    producer = producer_on_cluster(
        {"bootstrap.servers": servers, "enable.idempotence": True}, max_wait_timeout=20
    )
    fast = producer.variant(topic_config={"compression.level": 3}, max_wait_timeout=10)
    producer.produce_sync(topic=topic, payload=b"x")

    assert producer.settings["kafka"]["bootstrap.servers"] == servers[0]
    assert (producer.idempotent, producer.transactional) == (True, False)
    assert (producer.max_wait_timeout, fast.max_wait_timeout) == (20, 10)
    assert dict(fast.topic_config) == {"compression.level": "3"}
    assert (producer.in_flight, producer.disconnectable) == (0, True)


def test_a_flush_drops_refused_messages_and_sends_the_rest(
    world, cluster, topic, producer_on_cluster
):
    """The refused message is reported, and no flush meets it again."""
    cluster.create_topic(topic, partitions=1)
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"first", partition=0)
    for payload, partition in ((b"second", 0), (b"bad", 9), (b"third", 0)):
        producer.buffer(topic=topic, payload=payload, partition=partition)

    with Recorder(producer) as recorder:
        with pytest.raises(ProduceManyError) as raised:
            producer.flush_async()
        for handle in raised.value.dispatched[::2]:
            handle.wait(20)
        producer.close()

    assert raised.value.failed_index == 1
    assert raised.value.name == "_UNKNOWN_PARTITION"
    assert producer.buffered == ()
    kinds = [each["type"] for each in recorder.named("error.occurred")]
    assert sorted(kinds) == ["librdkafka.dispatch_error", "messages.produce_many_async"]
    assert values(cluster.records(topic)) == [b"first", b"second", b"third"]


def test_close_reports_buffered_messages_that_were_not_delivered(
    world, cluster, topic, producer_on_cluster
):
    """The undelivered messages can be read after `close`; the others were sent."""
    cluster.create_topic(topic, partitions=1)
    producer = producer_on_cluster()
    for payload, partition in ((b"first", 0), (b"bad", 9), (b"second", 0)):
        producer.buffer(topic=topic, payload=payload, partition=partition)

    with pytest.raises(MessagesAbandonedError, match="1 buffered message") as raised:
        producer.close()

    assert [each.payload for each in raised.value.buffered] == [b"bad"]
    assert producer.buffered == raised.value.buffered
    assert values(cluster.records(topic)) == [b"first", b"second"]


def test_a_tombstone_has_no_payload(cluster, topic, producer_on_cluster):
    """A tombstone is stored with its key and no payload."""
    producer_on_cluster().tombstone_sync(topic=topic, key="gone", partition=0)

    (record,) = cluster.records(topic)
    assert (record.key, record.payload) == (b"gone", None)


def test_without_acknowledgements_there_is_no_offset(
    world, cluster, topic, producer_on_cluster
):
    """With `acks=0`, set by a variant, the message is stored and no offset is known."""
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"one", partition=0)
    careless = producer.variant(topic_config={"acks": 0})

    report = careless.produce_sync(topic=topic, payload=b"two", partition=0)

    assert report.offset is None
    deadline = time.monotonic() + 10
    while len(cluster.records(topic)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert values(cluster.records(topic)) == [b"one", b"two"]


def test_a_scope_waits_for_its_messages(world, cluster, topic, producer_on_cluster):
    """All messages sent in a scope are delivered at its end."""
    producer = producer_on_cluster()

    with producer.scope(timeout=20):
        handles = [producer.produce_async(topic=topic, payload=b"x") for _ in range(10)]

    assert all(each.done for each in handles)
    assert len(cluster.records(topic)) == 10


def test_a_producer_of_a_pool_sends(cluster, topic, producer_on_cluster):
    """A producer borrowed from a pool delivers messages."""
    pool = ProducerPool(lambda: producer_on_cluster(), size=2)  # noqa: PLW0108
    with pool, pool.producer() as producer:
        producer.produce_sync(topic=topic, payload=b"1")

    assert values(cluster.records(topic)) == [b"1"]


def test_a_producer_reconnects_after_a_disconnect(
    world, cluster, topic, producer_on_cluster
):
    """Offsets continue after the new connection."""
    producer = producer_on_cluster()
    producer.produce_sync(topic=topic, payload=b"1", partition=0)

    assert producer.disconnect()
    assert producer.status == "disconnected"
    report = producer.produce_sync(topic=topic, payload=b"2", partition=0)

    assert report.offset == 1


def test_close_delivers_messages_in_flight(world, cluster, topic, producer_on_cluster):
    """A closed producer refuses further messages."""
    producer = producer_on_cluster()
    handles = [producer.produce_async(topic=topic, payload=b"x") for _ in range(100)]

    producer.close(timeout=20)

    assert all(each.report for each in handles)
    assert len(cluster.records(topic)) == 100
    with pytest.raises(ProducerClosedError):
        producer.produce_sync(topic=topic, payload=b"x")


def test_a_fatal_error_ends_a_client(world, cluster, topic, producer_on_cluster):
    """Each message after a fatal error fails with that error."""
    producer = producer_on_cluster({"enable.idempotence": True})
    producer.produce_sync(topic=topic, payload=b"x")
    assert fatal_error(producer) is None

    trigger_fatal_error(producer, 47, "enough")

    assert fatal_error(producer)[0] == 47
    for _ in range(2):
        with pytest.raises(DeliveryError) as raised:
            producer.produce_sync(topic=topic, payload=b"x")
        cause = raised.value.__cause__
        assert (cause.code, cause.name, cause.fatal) == (
            47,
            "INVALID_PRODUCER_EPOCH",
            True,
        )


def test_a_client_that_has_ended_is_replaced(
    world, cluster, topic, producer_on_cluster
):
    """With reloading switched on a new client continues, and order is kept."""
    producer = producer_on_cluster(
        {"enable.idempotence": True},
        reload_on_idempotent_fatal_error=True,
        wait_backoff_on_idempotent_fatal_error=0.0,
    )
    producer.produce_sync(topic=topic, payload=b"0", partition=0)
    with Recorder(producer) as recorder:
        trigger_fatal_error(producer, 64)

        handles = [
            producer.produce_async(topic=topic, payload=str(each), partition=0)
            for each in range(1, 20)
        ]
        offsets = [each.wait(20).offset for each in handles]
        assert recorder.wait_for("producer.reloaded")

    assert offsets == list(range(1, 20))
    assert values(cluster.records(topic)) == [str(each).encode() for each in range(20)]
