import pickle
import threading
import time
from pathlib import Path
from types import MappingProxyType

import gevent
import pytest
from confluent_kafka import Consumer, TopicPartition

from greendrop import (
    ConfigurationInvalidError,
    DeliveryError,
    DeliveryReport,
    DeliveryTimeoutError,
    GreendropError,
    IllegalWaitError,
    Message,
    MessageInvalidError,
    ProduceError,
    ProduceManyError,
    Producer,
    ProducerAlreadyConfiguredError,
    ProducerClosedError,
    ProducerNotConfiguredError,
    QueueFullError,
)
from greendrop.testing import trigger_fatal_error

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
#: No broker listens there: a connection is refused at once.
NOWHERE = "127.0.0.1:1"
KAFKA = MappingProxyType({"bootstrap.servers": NOWHERE})

VERBS = {
    "produce_sync": lambda producer: producer.produce_sync(topic="t", payload=b"x"),
    "produce_async": lambda producer: producer.produce_async(topic="t", payload=b"x"),
    "produce_many_sync": lambda producer: producer.produce_many_sync(
        [{"topic": "t", "payload": b"x"}]
    ),
    "produce_many_async": lambda producer: producer.produce_many_async(
        [{"topic": "t", "payload": b"x"}]
    ),
}


@pytest.fixture
def together(world):
    """Run functions concurrently, in greenlets or threads, to their end."""

    def run(functions):
        if world == "greenlets":
            tasks = [gevent.spawn(function) for function in functions]
            gevent.joinall(tasks, timeout=LONG, raise_error=True)
            assert all(task.dead for task in tasks)
        else:
            tasks = [threading.Thread(target=function) for function in functions]
            for task in tasks:
                task.start()
            for task in tasks:
                task.join(LONG)
            assert not any(task.is_alive() for task in tasks)

    return run


def errors_of(producer):
    """Collect `error.occurred` events from now on."""
    events = []
    producer.monitor.subscribe("error.occurred", events.append)
    return events


# -- configuring ----------------------------------------------------------------------


def test_producer_is_configured_once():
    """The first configuration is kept; a second one is refused."""
    producer = Producer(kafka=KAFKA, id="first")

    with pytest.raises(ProducerAlreadyConfiguredError, match="'first'"):
        producer.setup(kafka=KAFKA, id="second")

    assert producer.id == "first"


def test_producer_may_be_configured_later():
    """`Producer()` and `setup` have the same result as one call."""
    producer = Producer()
    assert (producer.id, producer.status) == (None, "initial")

    producer.setup(kafka=KAFKA, id="late")

    assert (producer.id, producer.status) == ("late", "configured")


def test_setup_that_failed_may_be_tried_again():
    """A refused configuration leaves the producer unconfigured."""
    producer = Producer()
    with pytest.raises(ConfigurationInvalidError):
        producer.setup(kafka=KAFKA, max_wait_timeout=-1)
    assert producer.status == "initial"

    producer.setup(kafka=KAFKA)

    assert producer.status == "configured"


def test_setup_reports_all_that_is_wrong_at_once():
    """Bad settings and missing keys are named together, before anything is opened."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        Producer(max_wait_timeout=-1, wait_on_queue_full="yes")

    assert {"kafka", "max_wait_timeout", "wait_on_queue_full"} == set(
        raised.value.errors
    )


def test_unknown_kafka_key_is_refused_at_construction():
    """A key that librdkafka would refuse is refused before the first message."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        Producer(kafka={**KAFKA, "linger.mss": 5})

    assert "linger.ms" in raised.value.errors["kafka.linger.mss"]


def test_each_producer_has_an_id_of_its_own():
    """Without an `id` each producer gets a unique one."""
    names = {Producer(kafka=KAFKA).id for _ in range(10)}

    assert len(names) == 10
    assert all(name.startswith("greendrop-") for name in names)


def test_read_only_configuration_works(mock_cluster):
    """Any mapping is accepted, also one that can't be changed."""
    kafka = MappingProxyType({"bootstrap.servers": mock_cluster.bootstrap_servers})

    with Producer(kafka=kafka) as producer:
        assert producer.produce_sync(topic="t", payload=b"x").topic == "t"

    assert dict(kafka) == {"bootstrap.servers": mock_cluster.bootstrap_servers}


def test_configuration_is_copied(mock_cluster):
    """Later changes of the caller's dict have no effect."""
    kafka = {"bootstrap.servers": mock_cluster.bootstrap_servers}
    with Producer(kafka=kafka) as producer:
        kafka["bootstrap.servers"] = NOWHERE

        assert producer.produce_sync(topic="t", payload=b"x").topic == "t"


@pytest.mark.parametrize("verb", VERBS)
def test_unconfigured_producer_refuses_to_send(verb):
    """Each verb says to call `setup` first."""
    with pytest.raises(ProducerNotConfiguredError, match="setup"):
        VERBS[verb](Producer())


def test_unconfigured_producer_can_be_inspected_and_closed():
    """Everything but sending works without a configuration."""
    producer = Producer()

    assert repr(producer) == "<Producer id=None initial queue_size=0>"
    assert (producer.queue_size, producer.polling) == (0, None)
    producer.reset()
    producer.close()
    with producer:
        pass
    producer.setup(kafka=KAFKA)


# -- what construction opens ----------------------------------------------------------


def open_now():
    """Count file descriptors and threads of this process."""
    return [len(list(Path("/proc/self", name).iterdir())) for name in ("fd", "task")]


def test_construction_opens_nothing():
    """A producer that was made and not used has no descriptor and no thread."""
    Producer(kafka=KAFKA)  # imports modules
    before = open_now()

    producers = [Producer(kafka=KAFKA) for _ in range(5)]

    # librdkafka's trial client has threads, which end a moment later.
    deadline = time.monotonic() + LONG
    while open_now() != before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert open_now() == before
    assert [each.status for each in producers] == ["configured"] * 5


@pytest.mark.patched
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched", "late"])
def test_construction_makes_no_hub_and_no_greenlet(run_script, mode):
    """A producer can be made at module level, before gevent is ready.

    The same holds for its repr and for closing it unused.
    """
    run_script(
        """
        import os, sys
        import greendrop

        def threads():
            return len(os.listdir("/proc/self/task"))

        before = threads(), len(os.listdir("/proc/self/fd"))
        producer = greendrop.Producer(kafka={"bootstrap.servers": "127.0.0.1:1"})
        repr(producer), producer.status, producer.queue_size, producer.polling
        import time
        for _ in range(1000):
            if (threads(), len(os.listdir("/proc/self/fd"))) == before:
                break
        else:
            raise AssertionError("something is left open")
        hub = sys.modules.get("gevent._hub_local")
        assert hub is None or hub.get_hub_if_exists() is None
        producer.close()
        assert producer.status == "closed"
        """,
        mode,
    )


def test_inspecting_a_producer_never_connects(mock_cluster, make_producer):
    """Repr, status, queue size and polling need no client."""
    mock_cluster.watch_requests()
    producer = make_producer(id="shy")

    assert repr(producer) == "<Producer id='shy' configured queue_size=0>"
    assert (producer.queue_size, producer.polling) == (0, None)
    assert producer.status == "configured"
    assert mock_cluster.requests() == []


def test_repr_shows_the_status(world, mock_cluster, make_producer):
    """Each status of a producer is in its repr."""
    driver = "polling=fd" if world == "greenlets" else "polling=thread"
    producer = make_producer(id="p")
    producer.produce_sync(topic="t", payload=b"warm")
    mock_cluster.round_trip(0.1)
    handle = producer.produce_async(topic="t", payload=b"x")

    assert repr(producer) == f"<Producer id='p' connected {driver} queue_size=1>"
    handle.wait(LONG)
    assert repr(producer) == f"<Producer id='p' connected {driver} queue_size=0>"
    seen = []
    producer.monitor.subscribe(
        "producer.closing", lambda _: seen.append(repr(producer))
    )
    producer.close()

    assert seen == [f"<Producer id='p' closing {driver} queue_size=0>"]
    assert repr(producer) == "<Producer id='p' closed queue_size=0>"


def test_repr_waits_for_no_lock(make_producer):
    """It doesn't wait for the lock of the buffer either."""
    producer = make_producer(id="p")
    shown = []

    with producer._core.buffer._lock:
        task = threading.Thread(target=lambda: shown.append(repr(producer)))
        task.start()
        task.join(LONG)

    assert shown == ["<Producer id='p' configured queue_size=0>"]


STATUSES = {
    "initial": (ProducerNotConfiguredError, False),
    "configured": (None, False),
    "connected": (None, True),
    "disconnecting": (None, False),
    "disconnected": (None, False),
    "closing": (ProducerClosedError, False),
    "closed": (ProducerClosedError, False),
}


def send_in(status, producer):
    """Try to send, and to disconnect, while a producer has a status."""
    observed = []

    def try_both(*_):
        assert producer.status == status
        error = None
        try:
            disconnected = producer.disconnect()
            if producer.status in ("connected", "disconnected"):
                observed.append(disconnected)
            producer.produce_async(topic="t", payload=b"x")
        except GreendropError as caught:
            error = type(caught)
        observed.append(error)

    if status in ("disconnecting", "closing"):
        producer.monitor.subscribe(f"producer.{status}", try_both)
    if status not in ("initial", "configured"):
        producer.produce_sync(topic="t", payload=b"x")
    if status.startswith("disconnect"):
        producer.disconnect()
    elif status.startswith("clos"):
        producer.close()
    if status not in ("disconnecting", "closing"):
        try_both()
    return observed


@pytest.mark.parametrize("status", STATUSES)
def test_status_decides_whether_sends_are_accepted(world, make_producer, status):
    """Sending connects, proceeds, or is refused with the status."""
    producer = Producer() if status == "initial" else make_producer()
    refusal, disconnects = STATUSES[status]

    observed = send_in(status, producer)

    assert observed[-1] is refusal
    assert (True in observed) is disconnects
    assert not observed[:-1] or observed[:-1] == [disconnects]
    expected = status if refusal else "connected"
    assert producer.status == ("closed" if status == "closing" else expected)


CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_arrives(world, make_producer, consumed, codec):
    """A compressed batch arrives unchanged."""
    producer = make_producer({"compression.codec": codec})
    payloads = [b"%d" % number * 200 for number in range(20)]

    producer.produce_many_sync(Message("t", each, partition=0) for each in payloads)

    assert [record.value() for record in consumed("t")] == payloads


def test_poller_fits_the_thread(world, make_producer):
    """With a hub the hub polls; without a hub a thread polls."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")

    assert producer.polling == ("fd" if world == "greenlets" else "thread")


# -- one message ----------------------------------------------------------------------


def test_sync_returns_the_report(world, make_producer):
    """The report has the message's topic, partition, offset and timestamp."""
    before = time.monotonic()
    report = make_producer().produce_sync(
        topic="orders", payload="text", key="k", partition=2, label="a label"
    )

    assert isinstance(report, DeliveryReport)
    assert (report.topic, report.partition, report.offset) == ("orders", 2, 0)
    assert report.label == "a label"
    assert 0 < report.latency < time.monotonic() - before
    assert report.timestamp > 0


def test_async_returns_a_handle(world, make_producer):
    """The handle has the report later."""
    label = object()
    handle = make_producer().produce_async(topic="t", payload=None, label=label)
    assert handle.label is label

    report = handle.wait(LONG)

    assert report.label is label
    assert (handle.report, handle.error, handle.done) == (report, None, True)


def test_payload_needs_to_be_named(make_producer):
    """A message without a payload is a tombstone, so a payload must be given."""
    with pytest.raises(TypeError, match="payload"):
        make_producer().produce_sync(topic="t")


@pytest.mark.parametrize("verb", ["produce_sync", "produce_async"])
def test_invalid_message_is_refused_before_anything_is_opened(make_producer, verb):
    """An invalid message does not even cause a connection."""
    producer = make_producer(max_payload_size=3)

    with pytest.raises(MessageInvalidError) as raised:
        getattr(producer, verb)(topic="a b", payload=b"four", key="")

    assert raised.value.errors.keys() == {"topic", "key"}
    assert producer.status == "configured"


def test_every_kind_of_field_arrives(world, mock_cluster, make_producer, consumed):
    """A consumer gets payload, key, headers, partition and timestamp."""
    make_producer().produce_sync(
        topic="t",
        payload="grün",
        key="schlüssel",
        headers={"a": ["1", b"2", None], "ä": ""},
        partition=3,
        timestamp=1_700_000_000_123,
    )

    (record,) = consumed("t")
    assert record.value() == "grün".encode()
    assert record.key() == "schlüssel".encode()
    assert record.headers() == [("a", b"1"), ("a", b"2"), ("a", None), ("ä", b"")]
    assert record.partition() == 3
    assert record.timestamp()[1] == 1_700_000_000_123


def test_tombstone_and_empty_payload_arrive_as_they_are(make_producer, consumed):
    """None is no payload, and b"" is an empty one."""
    producer = make_producer()
    for payload in (None, b"", ""):
        producer.produce_sync(topic="t", payload=payload, key="k", partition=0)

    assert [each.value() for each in consumed("t")] == [None, b"", b""]


@pytest.fixture
def consumed(mock_cluster):
    """Read a topic of the mock cluster from its beginning to its end."""

    def read(topic):
        consumer = Consumer(
            {
                "bootstrap.servers": mock_cluster.bootstrap_servers,
                "group.id": "reading",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
                "log_level": 0,
            }
        )
        records, deadline = [], time.monotonic() + LONG
        try:
            left = set(consumer.list_topics(topic, LONG).topics[topic].partitions)
            consumer.assign([TopicPartition(topic, number, 0) for number in left])
            while left:
                assert time.monotonic() < deadline
                record = consumer.poll(0.1)
                if record is not None and record.error() is None:
                    records.append(record)
                elif record is not None:
                    left.discard(record.partition())
        finally:
            consumer.close()
        return records

    return read


def test_acks_zero_has_no_offset(world, make_producer):
    """Where the broker returns no offset, the report has None."""
    report = make_producer({"acks": 0}).produce_sync(topic="t", payload=b"x")

    assert report.offset is None


@pytest.mark.slow
def test_max_wait_timeout_ends_a_sync_verb(world, mock_cluster, make_producer):
    """Without a report in time the message may still be delivered, as it is here."""
    producer = make_producer(max_wait_timeout=0.1)
    producer.produce_async(topic="t", payload=b"warm").wait(LONG)
    mock_cluster.round_trip(0.4)
    events = []
    producer.monitor.subscribe("message.acknowledged", events.append)
    errors = errors_of(producer)

    started = time.monotonic()
    with pytest.raises(DeliveryTimeoutError, match=r"within 0\.1 s"):
        producer.produce_sync(topic="t", payload=b"x", label=1)
    took = time.monotonic() - started
    producer.close(LONG)

    assert 0.09 < took < 0.4
    assert [event["label"] for event in events] == [1]
    assert [event["type"] for event in errors] == ["message.produce_sync"]


@pytest.mark.parametrize(
    ("kafka", "settings", "limit"),
    [
        ({"message.max.bytes": 1_000}, {}, "kafka's message.max.bytes=1000"),
        (
            {"message.max.bytes": 1_000},
            {"max_payload_size": 1_000},
            "kafka's message.max.bytes=1000",
        ),
        (
            {"message.max.bytes": 2_000},
            {"max_payload_size": 1_000},
            "max_payload_size=1000",
        ),
        ({}, {"max_payload_size": 2_000_000}, "kafka's message.max.bytes=1000000"),
        ({}, {}, "kafka's message.max.bytes=1000000"),
    ],
)
def test_the_smaller_size_limit_applies_and_is_named(
    make_producer, kafka, settings, limit
):
    """A message above the limit is refused by each verb, before anything is opened."""
    producer = make_producer(kafka, **settings)
    large = {"topic": "t", "payload": b"x" * (int(limit.rpartition("=")[2]) - 35)}
    small = {"topic": "t", "payload": b"x"}

    for verb in (producer.produce_sync, producer.produce_async):
        with pytest.raises(MessageInvalidError) as raised:
            verb(**large)
        assert limit in raised.value.errors["payload"]
        assert "nothing was sent" in str(raised.value)
    for verb in (producer.produce_many_sync, producer.produce_many_async):
        with pytest.raises(MessageInvalidError) as raised:
            verb([small, large])
        assert limit in raised.value.errors["messages[1].payload"]
    assert producer.status == "configured"


def test_a_large_key_or_header_is_refused(make_producer):
    """All fields count; the error names the largest one."""
    producer = make_producer({"message.max.bytes": 1_000})

    for field, value in (("key", b"k" * 970), ("headers", {"h": b"v" * 970})):
        with pytest.raises(MessageInvalidError) as raised:
            producer.produce_sync(topic="t", payload=b"x", **{field: value})
        assert raised.value.errors.keys() == {field}
    with pytest.raises(MessageInvalidError):
        producer.tombstone_sync(topic="t", key=b"k" * 970, partition=0)


def test_message_larger_than_the_queue_is_refused_at_once(world, make_producer):
    """A message that can never fit into the queue is invalid; others are sent."""
    producer = make_producer({"queue.buffering.max.kbytes": 1})
    large = {"topic": "t", "payload": b"x" * 1_025}

    for verb in (producer.produce_sync, producer.produce_async, producer.buffer):
        with pytest.raises(MessageInvalidError) as raised:
            verb(**large)
        assert "max.kbytes=1 allows 1024" in raised.value.errors["payload"]
    for verb in (producer.produce_many_sync, producer.produce_many_async):
        with pytest.raises(MessageInvalidError, match="never fit into the queue"):
            verb([large])
    report = producer.produce_sync(topic="t", payload=b"x" * 1_024, key=b"k" * 100)
    assert report.topic == "t"
    assert producer.queue_size == 0


# -- errors of the cluster ------------------------------------------------------------


@pytest.mark.slow
def test_unreachable_cluster_is_named(world, make_producer):
    """The error has the timeout and the last broker error."""
    producer = make_producer({"bootstrap.servers": NOWHERE, "message.timeout.ms": 500})
    events = errors_of(producer)

    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic="t", payload=b"SECRET", key=b"SECRET")

    error = raised.value
    assert "_MSG_TIMED_OUT" in str(error)
    assert "last broker error" in str(error)
    assert NOWHERE in str(error)
    assert "SECRET" not in str(error)
    assert (error.name, error.code) == ("_MSG_TIMED_OUT", -192)
    observed = {event["type"]: event["error"] for event in events}
    assert observed["librdkafka.dispatch_error"].__cause__.code == -192
    assert observed["message.produce_sync"].__cause__.code == -192
    assert observed["librdkafka.error"].name in {"_TRANSPORT", "_ALL_BROKERS_DOWN"}


@pytest.mark.slow
def test_timeout_names_the_unreachable_cluster(world, make_producer):
    """A timeout before librdkafka's own names the cause too."""
    producer = make_producer({"bootstrap.servers": NOWHERE}, max_wait_timeout=0.2)

    with pytest.raises(DeliveryTimeoutError, match="Connection refused"):
        producer.produce_sync(topic="t", payload=b"x")


@pytest.mark.slow
def test_fatal_error_has_its_real_code(world, make_producer):
    """After a fatal error every send raises the real reason, not the generic one.

    librdkafka refuses only messages of idempotent producers.
    """
    producer = make_producer({"enable.idempotence": True})
    producer.produce_sync(topic="t", payload=b"x")
    trigger_fatal_error(producer, 47)

    for send in (
        VERBS["produce_sync"],
        lambda producer: VERBS["produce_async"](producer).wait(LONG),
        VERBS["produce_sync"],
    ):
        with pytest.raises(DeliveryError) as raised:
            send(producer)
        cause = raised.value.__cause__
        assert (cause.code, cause.name) == (47, "INVALID_PRODUCER_EPOCH")
        assert cause.fatal is True
        assert raised.value.fatal is True


def test_fatal_error_emits_an_event(world, make_producer, pause):
    """The error listener gets a fatal error without any send."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    events = errors_of(producer)
    trigger_fatal_error(producer, 47)
    deadline = time.monotonic() + LONG
    while not events and time.monotonic() < deadline:
        pause(0.01)

    assert events[0]["type"] == "librdkafka.error"
    assert events[0]["error"].code == 47
    assert events[0]["error"].fatal is True


def test_message_to_a_missing_partition_is_refused(world, make_producer):
    """An unknown partition is a final error with librdkafka's name."""
    producer = make_producer()
    for _ in range(2):
        with pytest.raises(DeliveryError) as raised:
            producer.produce_sync(topic="t", payload=b"x", partition=99)
        assert raised.value.name == "_UNKNOWN_PARTITION"


# -- batches --------------------------------------------------------------------------


def test_batch_reports_come_in_the_order_of_the_messages(world, make_producer):
    """Reports are in the order of messages, whatever partitions these go to."""
    batch = [
        Message("t", b"x", partition=number % 4, label=number) for number in range(100)
    ]

    reports = make_producer().produce_many_sync(batch)

    assert [each.label for each in reports] == list(range(100))
    assert [each.partition for each in reports] == [number % 4 for number in range(100)]
    for partition in range(4):
        offsets = [each.offset for each in reports if each.partition == partition]
        assert offsets == list(range(25))


def test_batch_handles_come_in_the_order_of_the_messages(world, make_producer):
    """Handles are in the order of messages too."""
    batch = ({"topic": "t", "payload": b"x", "label": n} for n in range(100))

    handles = make_producer().produce_many_async(batch)

    assert [each.label for each in handles] == list(range(100))
    assert [each.wait(LONG).label for each in handles] == list(range(100))


@pytest.mark.parametrize("verb", ["produce_many_sync", "produce_many_async"])
def test_empty_batch_sends_nothing(make_producer, verb):
    """Without messages there is no connection, and the list is empty."""
    producer = make_producer()

    assert getattr(producer, verb)([]) == []
    assert producer.status == "configured"


@pytest.mark.parametrize("verb", ["produce_many_sync", "produce_many_async"])
def test_batch_with_bad_messages_is_refused_as_a_whole(make_producer, verb):
    """The error has all bad fields of all bad messages; nothing was sent or opened."""
    producer = make_producer()
    batch = [
        {"topic": "t", "payload": b"x"},
        {"topic": "a b", "payload": 1},
        Message("t", b"x", key=""),
        {"topic": "t"},
        5,
    ]

    with pytest.raises(MessageInvalidError) as raised:
        getattr(producer, verb)(batch)

    assert raised.value.errors.keys() == {
        "messages[1].topic",
        "messages[1].payload",
        "messages[2].key",
        "messages[3].payload",
        "messages[4].message",
    }
    assert producer.status == "configured"


NO_BATCHES = {
    "mapping": {"topic": "t", "payload": b"x"},
    "message": Message("t", b"x"),
    "text": "message",
    "bytes": b"message",
    "number": 5,
    "nothing": None,
}


@pytest.mark.parametrize("items", NO_BATCHES.values(), ids=NO_BATCHES)
@pytest.mark.parametrize(
    "verb",
    [
        "produce_many_sync",
        "produce_many_async",
        "buffer_many",
        "tombstone_many_sync",
        "tombstone_many_async",
    ],
)
def test_one_message_where_a_batch_belongs_is_refused(make_producer, verb, items):
    """The error does not treat the fields of the message as messages."""
    producer = make_producer()

    with pytest.raises(MessageInvalidError, match=r"^messages: needs a list") as raised:
        getattr(producer, verb)(items)

    assert list(raised.value.errors) == ["messages"]
    assert type(items).__name__ in str(raised.value)
    assert producer.status == "configured"


def test_error_of_a_batch_of_invalid_messages_is_short(make_producer):
    """The error for a thousand bad messages is short enough to read."""
    with pytest.raises(MessageInvalidError) as raised:
        make_producer().produce_many_sync([{"topic": "a b", "payload": b""}] * 1_000)

    assert len(raised.value.errors) < 30
    assert "980 more" in raised.value.errors["messages"]


def test_error_of_a_batch_names_the_undeliverable_message(world, make_producer):
    """One message to a missing partition fails the batch; the error has its index.

    The error has the handles of the queued messages, all with an outcome.
    """
    producer = make_producer()
    batch = [
        {"topic": "t", "payload": b"x", "partition": 99 if number == 3 else 0}
        for number in range(5)
    ]
    events = errors_of(producer)

    with pytest.raises(ProduceManyError) as raised:
        producer.produce_many_sync(batch)

    error = raised.value
    assert "_UNKNOWN_PARTITION" in str(error)
    assert error.failed_index == 3
    assert error.name == error.__cause__.name == "_UNKNOWN_PARTITION"
    assert len(error.dispatched) == 5
    assert all(each.done for each in error.dispatched)
    assert error.dispatched[3].error.name == "_UNKNOWN_PARTITION"
    assert [each.report.offset for each in error.dispatched if each.report] == [
        0,
        1,
        2,
        3,
    ]
    (observed,) = [
        each for each in events if each["type"] == "messages.produce_many_sync"
    ]
    assert observed["error"] is error
    assert observed["dispatched"] == error.dispatched
    assert len(observed["messages"]) == 5


def test_batch_of_undeliverable_messages_names_the_first(world, make_producer):
    """The same holds when the topic is known and librdkafka refuses within the call."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    batch = [{"topic": "t", "payload": b"x", "partition": 90 + n} for n in range(3)]

    with pytest.raises(ProduceManyError) as raised:
        producer.produce_many_sync(batch)

    assert raised.value.failed_index == 0
    assert raised.value.name == "_UNKNOWN_PARTITION"
    assert all(each.done for each in raised.value.dispatched)


def test_batch_error_can_be_pickled(world, make_producer):
    """A batch's error passes through Celery and process pools like any other."""
    with pytest.raises(ProduceManyError) as raised:
        make_producer().produce_many_sync(
            [
                {"topic": "t", "payload": b"x", "partition": n, "label": n}
                for n in (0, 99)
            ]
        )

    got = pickle.loads(pickle.dumps(raised.value))

    assert str(got) == str(raised.value)
    assert got.failed_index == 1
    # The second message is refused at once if librdkafka knows the partitions by then.
    labels = [each.label for each in raised.value.dispatched]
    assert [each.label for each in got.dispatched] == labels
    assert labels[0] == 0
    assert got.dispatched[0].report == raised.value.dispatched[0].report


def test_batch_error_with_messages_in_flight_can_be_pickled(
    mock_cluster, make_producer
):
    """Some reports may be missing, as after a timeout."""
    producer = make_producer(max_wait_timeout=0.05)
    mock_cluster.round_trip(0.3)
    with pytest.raises(ProduceManyError) as raised:
        producer.produce_many_sync([{"topic": "t", "payload": b"x", "label": 1}])
    assert not raised.value.dispatched[0].done

    got = pickle.loads(pickle.dumps(raised.value))

    assert str(got) == str(raised.value)
    assert [each.label for each in got.dispatched] == [1]


def test_batch_waits_once_for_all(world, mock_cluster, make_producer):
    """The timeout is that of the batch, not of each message in turn."""
    producer = make_producer(max_wait_timeout=0.1)
    producer.produce_async(topic="t", payload=b"warm").wait(LONG)
    mock_cluster.round_trip(1.0)

    started = time.monotonic()
    with pytest.raises(ProduceManyError) as raised:
        producer.produce_many_sync([{"topic": "t", "payload": b"x"}] * 20)

    assert time.monotonic() - started < 0.9
    assert isinstance(raised.value.__cause__, DeliveryTimeoutError)
    assert len(raised.value.dispatched) == 20
    assert raised.value.failed_index == 0


# -- a full queue ---------------------------------------------------------------------


@pytest.fixture
def full(mock_cluster, make_producer):
    """Make a producer whose queue has space for five messages, and fill it.

    Responses take `round_trip` seconds.
    """

    def make(round_trip=0.3, **settings):
        producer = make_producer({"queue.buffering.max.messages": 5}, **settings)
        producer.produce_sync(topic="t", payload=b"warm")
        mock_cluster.round_trip(round_trip)
        handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(5)]
        return producer, handles

    return make


@pytest.mark.parametrize("verb", VERBS)
def test_full_queue_raises_at_once_when_configured_so(world, full, verb):
    """With `wait_on_queue_full=False` the verb raises immediately."""
    producer, handles = full(round_trip=1.0, wait_on_queue_full=False)
    started = time.monotonic()

    with pytest.raises(ProduceError) as raised:
        VERBS[verb](producer)

    assert time.monotonic() - started < 0.5
    error = raised.value
    if "many" in verb:
        assert error.failed_index == 0
        assert error.dispatched == ()
        error = error.__cause__
    assert isinstance(error, QueueFullError)
    assert "not queued" in str(error)
    assert producer.queue_size == 5
    assert not any(each.done for each in handles)


@pytest.mark.parametrize("verb", VERBS)
def test_full_queue_raises_after_its_timeout(world, mock_cluster, full, verb):
    """Without space within `wait_timeout_on_queue_full` the message is not queued.

    The events name the verb.
    """
    producer, _ = full(round_trip=2.0, wait_timeout_on_queue_full=0.2)
    events = errors_of(producer)
    started = time.monotonic()

    with pytest.raises(ProduceError) as raised:
        VERBS[verb](producer)

    assert 0.15 < time.monotonic() - started < 1.5
    error = raised.value.__cause__ if "many" in verb else raised.value
    assert isinstance(error, QueueFullError)
    prefix = "messages" if "many" in verb else "message"
    assert [each["type"] for each in events] == [f"message.{verb}", f"{prefix}.{verb}"]
    assert isinstance(events[0]["error"], QueueFullError)
    assert events[0]["message"].topic == "t"


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_caller_goes_on_when_there_is_space(world, full, verb):
    """A caller that waits for space sends when reports have freed it."""
    producer, handles = full(round_trip=0.15, wait_timeout_on_queue_full=LONG)
    events = errors_of(producer)
    started = time.monotonic()

    VERBS[verb](producer)

    assert time.monotonic() - started < 2.0
    assert any(each.done for each in handles)
    assert [each["type"] for each in events] == [f"message.{verb}"]
    producer.close(LONG)
    assert all(each.report for each in handles)


def test_waits_for_space_emit_no_error_when_configured_so(world, full):
    """Where a full queue is the normal way to slow down, it emits no error."""
    producer, _ = full(round_trip=0.1, instrument_on_wait_queue_full=False)
    events = errors_of(producer)

    producer.produce_sync(topic="t", payload=b"x")

    assert events == []


def test_queue_full_by_bytes_makes_callers_wait_too(world, mock_cluster, make_producer):
    """Librdkafka also limits the queue's bytes; callers wait for them likewise."""
    producer = make_producer({"queue.buffering.max.kbytes": 2})
    mock_cluster.round_trip(0.01)

    handles = [
        producer.produce_async(topic="t", payload=b"x" * 500, label=number)
        for number in range(20)
    ]

    assert [each.wait(LONG).label for each in handles] == list(range(20))


def test_batch_larger_than_the_queue_goes_through(world, mock_cluster, make_producer):
    """A batch waits for space as often as necessary, and keeps its order."""
    producer = make_producer({"queue.buffering.max.messages": 10})
    mock_cluster.round_trip(0.01)
    batch = [{"topic": "t", "payload": b"x", "partition": 0}] * 100

    reports = producer.produce_many_sync(batch)

    assert [each.offset for each in reports] == list(range(100))


def test_closing_wakes_callers_that_wait_for_space(mock_cluster, full, spawn, pause):
    """Ten callers that wait for space get an error when the producer closes."""
    producer, _ = full(round_trip=5.0, wait_timeout_on_queue_full=LONG)
    ended = []

    def send():
        try:
            producer.produce_async(topic="t", payload=b"x")
        except ProducerClosedError:
            ended.append(time.monotonic())

    tasks = [spawn(send) for _ in range(10)]
    pause(0.1)
    started = time.monotonic()
    producer.close(force=True)
    for task in tasks:
        task.join(LONG)

    assert len(ended) == 10
    assert max(ended) - started < 2.0


def test_full_queue_raises_at_once_in_the_hub(hub, full):
    """The hub can't wait for space; the error says that nothing was queued."""
    producer, _ = full(round_trip=1.0)
    raised = []

    def call():
        try:
            producer.produce_async(topic="t", payload=b"x")
        except QueueFullError as error:
            raised.append(error)

    hub.loop.run_callback(call)
    gevent.sleep(0.01)

    assert "not queued" in str(raised[0])
    assert producer.queue_size == 5


def test_listener_that_sends_to_a_full_queue_gets_no_event_of_its_own(world, full):
    """The listener would otherwise be called again and again."""
    producer, _ = full(round_trip=5.0, wait_timeout_on_queue_full=0.05)
    raised = []

    @producer.monitor.subscribe("error.occurred")
    def forward(event):
        try:
            producer.produce_async(topic="errors", payload=event["type"])
        except QueueFullError as error:
            raised.append(error)

    with pytest.raises(QueueFullError):
        producer.produce_async(topic="t", payload=b"x")

    assert 1 <= len(raised) <= 3
    producer.monitor.unsubscribe(forward)
    producer.close(force=True)


@pytest.mark.slow
def test_many_senders_through_a_small_queue_lose_nothing(
    world, make_producer, together, stored
):
    """A hundred senders push fifty thousand messages through a queue of 500.

    With threads, ten senders push a tenth of that.
    """
    senders, count = (100, 500) if world == "greenlets" else (10, 500)
    acknowledged = push_through(make_producer, together, senders, count, queue=500)

    assert acknowledged == senders * count
    assert stored("t") == senders * count


@pytest.mark.slow
def test_a_thousand_greenlets_lose_no_message(hub, make_producer, stored):
    """A thousand greenlets push a quarter of a million messages."""

    def together(functions):
        gevent.joinall([gevent.spawn(each) for each in functions], raise_error=True)

    acknowledged = push_through(make_producer, together, 1_000, 250, queue=10_000)

    assert acknowledged == 250_000
    assert stored("t") == 250_000


def push_through(make_producer, together, senders, count, *, queue):
    """Let senders send without waiting for reports; count the acknowledgements."""
    producer = make_producer(
        {"queue.buffering.max.messages": queue},
        wait_timeout_on_queue_full=LONG,
        instrument_on_wait_queue_full=False,
    )
    acknowledged = []
    errors = errors_of(producer)
    producer.monitor.subscribe("message.acknowledged", acknowledged.append)

    def send():
        for _ in range(count):
            producer.produce_async(topic="t", payload=b"x" * 10)

    together([send] * senders)
    producer.close(LONG)
    assert errors == []
    return len(acknowledged)


# -- sustained use --------------------------------------------------------------------


def test_async_handles_all_resolve(world, make_producer):
    """Fifty messages sent without waiting have fifty handles and acknowledgements."""
    producer = make_producer()
    acknowledged = []
    producer.monitor.subscribe("message.acknowledged", acknowledged.append)

    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(50)]
    reports = [each.wait(LONG) for each in handles]
    producer.close()

    assert len(acknowledged) == 50
    assert len({(each.partition, each.offset) for each in reports}) == 50


def test_handles_can_be_waited_for_with_gevent(hub, mock_cluster, make_producer):
    """`gevent.wait` and `iwait` accept handles, together with greenlets and events."""
    producer = make_producer()
    mock_cluster.round_trip(0.02)
    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(20)]
    greenlet = gevent.spawn_later(0.01, len, handles)

    ready = gevent.wait([*handles, greenlet], timeout=LONG)

    assert set(ready) == {*handles, greenlet}
    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(20)]
    assert {each.report.topic for each in gevent.iwait(handles, timeout=LONG)} == {"t"}


@pytest.mark.slow
def test_idempotent_messages_are_stored_once(world, make_producer, stored):
    """A hundred keyed messages of an idempotent producer have a hundred offsets."""
    producer = make_producer({"enable.idempotence": True})
    events = errors_of(producer)

    handles = [
        producer.produce_async(topic="t", payload=b"x", key=f"key-{number}")
        for number in range(100)
    ]
    places = {(each.wait(LONG).partition, each.report.offset) for each in handles}

    assert len(places) == 100
    assert events == []
    assert stored("t") == 100


@pytest.mark.slow
def test_async_verbs_are_not_held_up_by_polling(world, make_producer, spawn, pause):
    """While others send and 500 messages are in flight, async verbs stay quick.

    Each call takes less than 100 ms.
    """
    producer = make_producer()
    stop = []

    def load():
        while not stop:
            producer.produce_sync(topic="t", payload=b"load")

    tasks = [spawn(load) for _ in range(4)]
    durations = []
    handles = []
    for burst in (1, 500):
        for _ in range(100):
            if burst > 1 and not len(handles) % 20:
                handles += [
                    producer.produce_async(topic="t", payload=b"burst")
                    for _ in range(burst)
                ]
            started = time.monotonic()
            handles.append(producer.produce_async(topic="t", payload=b"x"))
            durations.append(time.monotonic() - started)
            pause(0.0005)
    stop.append(True)
    for task in tasks:
        task.join(LONG)
    for handle in handles:
        handle.wait(LONG)

    assert len(durations) == 200
    assert max(durations) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "statistics"), [("produce_sync", False), ("produce_many_sync", True)]
)
def test_producer_works_after_pauses(world, make_producer, pause, verb, statistics):
    """A long-lived producer sends after pauses as before them."""
    producer = make_producer({"statistics.interval.ms": 50})
    events = errors_of(producer)
    if statistics:
        producer.monitor.subscribe("statistics.emitted", lambda _: None)

    for _ in range(5):
        started = time.monotonic()
        VERBS[verb](producer)
        assert time.monotonic() - started < 2.0
        pause(0.1)

    assert events == []


# -- callers that can't wait ----------------------------------------------------------


def test_sync_in_a_listener_is_refused_and_the_message_sent(world, make_producer):
    """A listener that would wait for itself gets an error; its message is sent."""
    producer = make_producer()
    raised, acknowledged = [], []

    def listener(event):
        acknowledged.append(event["label"])
        if event["label"] == "first":
            try:
                producer.produce_sync(topic="t", payload=b"y", label="second")
            except IllegalWaitError as error:
                raised.append(error)

    producer.monitor.subscribe("message.acknowledged", listener)
    started = time.monotonic()
    producer.produce_sync(topic="t", payload=b"x", label="first")
    took = time.monotonic() - started
    producer.close(LONG)

    assert took < 2.0
    assert "listener" in str(raised[0])
    assert "in flight all the same" in str(raised[0])
    assert acknowledged == ["first", "second"]


def test_sync_in_the_hub_is_refused_and_the_message_sent(hub, make_producer):
    """A callback of the loop can't wait; the message is queued all the same."""
    producer = make_producer()
    acknowledged, raised = [], []
    producer.monitor.subscribe(
        "message.acknowledged", lambda event: acknowledged.append(event["label"])
    )

    def call():
        try:
            producer.produce_sync(topic="t", payload=b"x", label="from the hub")
        except IllegalWaitError as error:
            raised.append(error)

    hub.loop.run_callback(call)
    while not raised:
        gevent.sleep(0.001)
    producer.close(LONG)

    assert acknowledged == ["from the hub"]


def test_async_in_the_hub_works(hub, make_producer):
    """Sending without waiting is allowed everywhere."""
    producer = make_producer()
    handles = []
    hub.loop.run_callback(
        lambda: handles.append(producer.produce_async(topic="t", payload=b"x"))
    )
    while not handles:
        gevent.sleep(0.001)

    assert handles[0].wait(LONG).topic == "t"
