"""In-memory brokers: features of their own. The rest is in `tests.contract`."""

import time
from typing import NamedTuple

import pytest
from confluent_kafka import Consumer

from greendrop import (
    BrokerError,
    DeliveryError,
    DeliveryTimeoutError,
    GreendropError,
    MessagePurgedError,
    OAuthToken,
    Producer,
    ProducerClosedError,
    monitor,
)
from greendrop._librdkafka.backend import KafkaException
from greendrop.testing import MemoryCluster, MockCluster, Recorder, in_memory
from greendrop.testing._memory_producer import MemoryProducer

#: A port without a listener.
NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}


@pytest.fixture
def cluster():
    """Connect all producers to in-memory brokers."""
    with in_memory() as cluster:
        yield cluster


@pytest.fixture
def producer(cluster):
    """Construct a producer that is configured for other brokers."""
    return Producer(kafka=NOWHERE)


def payloads(records):
    """Return the payloads."""
    return [record.payload for record in records]


# --- which producers connect ----------------------------------------------------------


def test_a_producer_made_before_connects_to_the_cluster(world):
    """Module-level producers exist long before a test; their address doesn't matter."""
    producer = Producer(kafka=NOWHERE)

    with in_memory() as cluster:
        producer.produce_sync(topic="t", payload=b"x")

    assert payloads(cluster.records("t")) == [b"x"]
    assert producer.polling is None
    assert producer.status == "disconnected"


def test_a_producer_reconnects_for_each_block(world):
    """The next test doesn't see the records of the one before."""
    producer = Producer(kafka=NOWHERE)
    offsets = []

    for _ in range(3):
        with in_memory() as cluster:
            report = producer.produce_sync(topic="t", payload=b"x", partition=0)
            offsets.append(report.offset)
        assert len(cluster.records()) == 1

    assert offsets == [0, 0, 0]


def test_a_connected_producer_stays_where_it_is(mock_cluster):
    """A block doesn't disconnect a producer from the brokers that it already has."""
    servers = {"bootstrap.servers": mock_cluster.bootstrap_servers}
    with Producer(kafka=servers) as producer:
        producer.produce_sync(topic="t", payload=b"x", partition=0)

        with in_memory() as cluster:
            assert producer.produce_sync(topic="t", payload=b"x", partition=0).offset

        assert cluster.records() == []
        assert producer.status == "connected"


def test_the_innermost_block_counts():
    """After the inner block producers connect to the outer cluster again."""
    with in_memory() as outer:
        with in_memory() as inner, Producer(kafka=NOWHERE) as producer:
            producer.produce_sync(topic="t", payload=b"inner")
        with Producer(kafka=NOWHERE) as producer:
            producer.produce_sync(topic="t", payload=b"outer")

    assert payloads(inner.records()) == [b"inner"]
    assert payloads(outer.records()) == [b"outer"]


def test_a_cluster_has_an_address_of_its_own(mock_cluster):
    """Only producers with that address connect to it."""
    with MemoryCluster() as one, MemoryCluster() as other:
        for number, cluster in enumerate((one, other, mock_cluster)):
            servers = {"bootstrap.servers": cluster.bootstrap_servers}
            with Producer(kafka=servers) as producer:
                producer.produce_sync(topic="t", payload=str(number))

        assert payloads(one.records()) == [b"0"]
        assert payloads(other.records()) == [b"1"]


def test_the_end_of_a_block_drops_messages_in_flight(world, cluster, producer):
    """Leaving a block doesn't wait, and handles end with an error."""
    cluster.round_trip(60)
    handle = producer.produce_async(topic="t", payload=b"x")
    with Recorder(producer) as recorder:
        started_at = time.monotonic()
        cluster.close()

    assert time.monotonic() - started_at < 5
    assert isinstance(handle.error, MessagePurgedError)
    assert recorder.names[-1] == "producer.disconnected"
    assert cluster.records() == []


def test_the_end_of_a_block_drops_buffered_messages():
    """The process exit would send buffered messages to the real brokers."""
    producer = Producer(kafka=NOWHERE)
    with in_memory():
        producer.buffer(topic="t", payload=b"x")

    assert producer.buffered == ()


def test_the_end_of_a_block_leaves_others_alone():
    """Producers of another cluster keep their messages."""
    with MemoryCluster() as cluster:
        servers = {"bootstrap.servers": cluster.bootstrap_servers}
        with Producer(kafka=servers) as producer:
            producer.produce_sync(topic="t", payload=b"x")
            producer.buffer(topic="t", payload=b"y")

            with in_memory():
                pass

            assert producer.status == "connected"
            assert len(producer.buffered) == 1


def test_variants_connect_to_the_cluster_too(cluster, producer):
    """Each variant has a client of its own, and all of them end with the block."""
    variant = producer.variant(topic_config={"acks": 1})
    producer.produce_sync(topic="t", payload=b"1")
    variant.produce_sync(topic="t", payload=b"2")
    cluster.close()

    assert payloads(cluster.records("t")) == [b"1", b"2"]
    with in_memory() as other:
        variant.produce_sync(topic="t", payload=b"3")
    assert payloads(other.records("t")) == [b"3"]


def test_a_closed_producer_stays_closed(cluster, producer):
    """A closed producer raises the usual error."""
    producer.produce_sync(topic="t", payload=b"x")
    producer.close()

    with pytest.raises(ProducerClosedError):
        producer.produce_sync(topic="t", payload=b"x")


def test_configurations_are_checked_as_usual(cluster):
    """The checks are those of librdkafka."""
    with pytest.raises(GreendropError, match="acks"):
        Producer(kafka={**NOWHERE, "acks": "sometimes"})


def test_no_login_is_needed(world, cluster):
    """Programs with logins run unchanged; token providers are called as usual."""
    asked = []

    def provide():
        asked.append(True)
        return OAuthToken("a-token", time.time() + 3600)

    login = {"security.protocol": "SASL_SSL", "sasl.mechanisms": "OAUTHBEARER"}
    with Producer(kafka=NOWHERE | login, oauth_token_provider=provide) as producer:
        producer.produce_sync(topic="t", payload=b"x")
    password = {"sasl.mechanisms": "PLAIN", "sasl.username": "u", "sasl.password": "p"}
    with Producer(kafka=NOWHERE | login | password) as producer:
        producer.produce_sync(topic="t", payload=b"x")

    assert asked == [True]
    assert len(cluster.records("t")) == 2


def test_reports_come_by_the_fitting_driver(world, cluster, producer):
    """Reports come by a descriptor in a hub, and by a thread elsewhere."""
    producer.produce_sync(topic="t", payload=b"x")

    assert producer.polling == ("fd" if world == "greenlets" else "thread")


def test_many_messages_are_delivered_soon(world, cluster, producer):
    """A report wakes the poller, which need not wait for its next poll."""
    producer.produce_sync(topic="t", payload=b"x")
    started_at = time.monotonic()

    for _ in range(20):
        handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(350)]
        assert all(each.wait(10) for each in handles)

    assert time.monotonic() - started_at < 20 * 0.4


def test_other_tasks_run_during_a_wait(cluster, producer, longest_gap):
    """In-memory brokers may be slow without blocking other tasks."""
    cluster.round_trip(0.3)

    with longest_gap() as gap:
        producer.produce_sync(topic="t", payload=b"x")

    assert gap.seconds < 0.15


@pytest.mark.patched
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "patched"])
def test_a_forked_child_has_a_copy(run_script, mode):
    """The copy can be used after `reset`, even if the parent was busy with sending."""
    run_script(
        """
        import os
        from greendrop import Producer, ProducerUsedInParentProcessError
        from greendrop.testing import in_memory

        with in_memory() as cluster:
            producer = Producer(kafka={"bootstrap.servers": "127.0.0.1:1"})
            producer.produce_sync(topic="t", payload=b"1", partition=0)
            cluster.round_trip(0.2)
            handle = producer.produce_async(topic="t", payload=b"2", partition=0)
            child = os.fork()
            if not child:
                try:
                    producer.produce_sync(topic="t", payload=b"3")
                except ProducerUsedInParentProcessError:
                    producer.reset()
                report = producer.produce_sync(topic="t", payload=b"3", partition=0)
                assert report.offset == 1, report
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert handle.wait(10).offset == 1
            assert [each.payload for each in cluster.records()] == [b"1", b"2"]
        """,
        mode,
    )


@pytest.mark.patched
@pytest.mark.slow
def test_programs_that_exit_in_a_block_leave_nothing(run_script):
    """The exit has no wait, no thread that delays it, and no complaint."""
    ended = run_script(
        """
        from greendrop import Producer
        from greendrop.testing import in_memory

        cluster = in_memory()
        producer = Producer(kafka={"bootstrap.servers": "127.0.0.1:1"})
        producer.produce_sync(topic="t", payload=b"x")
        cluster.round_trip(0.1)
        producer.produce_async(topic="t", payload=b"x")
        """,
        "none",
    )

    assert ended.seconds < 10


def test_many_senders_lose_nothing(world, cluster, producer, spawn):
    """Eight senders lose no message while brokers are slow, down and up again."""
    cluster.create_topic("t", 3)
    reports = []

    def send(number):
        for each in range(100):
            payload = f"{number}-{each}"
            reports.append(
                producer.produce_sync(topic="t", payload=payload, key=str(number))
            )

    tasks = [spawn(lambda number=number: send(number)) for number in range(8)]
    for _ in range(5):
        cluster.round_trip(0.005)
        cluster.broker_down()
        cluster.broker_up()
    cluster.round_trip(0)
    for task in tasks:
        task.join()

    records = cluster.records("t")
    assert len(reports) == len(records) == 800
    places = {(each.partition, each.offset) for each in reports}
    assert places == {(each.partition, each.offset) for each in records}
    for number in range(8):
        mine = [each.payload for each in records if each.key == str(number).encode()]
        assert mine == [f"{number}-{each}".encode() for each in range(100)]


# --- topics ---------------------------------------------------------------------------


def test_topics_are_created_with_as_many_partitions_as_asked():
    """Topics created by messages have as many partitions as configured."""
    with in_memory(partitions=2) as cluster, Producer(kafka=NOWHERE) as producer:
        cluster.create_topic("wide", 9)
        producer.produce_sync(topic="t", payload=b"x")

        assert cluster.topics == {"wide": 9, "t": 2}
        assert producer.partition_count("wide") == 9
        with pytest.raises(GreendropError, match="exists already"):
            cluster.create_topic("wide")


def test_unknown_topics_fail_at_once_without_creation():
    """Brokers that create no topics refuse a message at once."""
    with (
        in_memory(create_topics=False) as cluster,
        Producer(kafka=NOWHERE) as producer,
    ):
        cluster.create_topic("known", 1)
        producer.produce_sync(topic="known", payload=b"x")
        with pytest.raises(DeliveryError) as raised:
            producer.produce_sync(topic="t", payload=b"x")

        assert raised.value.name == "UNKNOWN_TOPIC_OR_PARTITION"
        assert cluster.topics == {"known": 1}


def test_clear_resets_everything(cluster, producer):
    """Topics, records, offsets and requested failures are gone."""
    cluster.round_trip(30)
    cluster.fail_messages("UNKNOWN", None)
    cluster.clear()

    assert producer.produce_sync(topic="t", payload=b"x", partition=0).offset == 0
    cluster.clear()
    assert cluster.records() == []
    assert producer.produce_sync(topic="t", payload=b"x", partition=0).offset == 0


# --- failures -------------------------------------------------------------------------


def test_messages_fail_as_requested(world, cluster, producer):
    """The requested number of messages fails with that error, and is not stored."""
    cluster.fail_messages("TOPIC_AUTHORIZATION_FAILED", times=2)

    handles = [
        producer.produce_async(topic="t", payload=str(each), partition=0, label=each)
        for each in range(4)
    ]
    for each in handles[2:]:
        each.wait(10)

    for each in handles[:2]:
        assert isinstance(each.error, DeliveryError)
        assert each.error.name == "TOPIC_AUTHORIZATION_FAILED"
        assert isinstance(each.error.__cause__, BrokerError)
    assert [each.report.offset for each in handles[2:]] == [0, 1]
    assert payloads(cluster.records()) == [b"2", b"3"]


@pytest.mark.parametrize("name", ["MESSAGE_TOO_LARGE", "MSG_SIZE_TOO_LARGE"])
def test_errors_have_kafkas_names(cluster, producer, name):
    """A request for failures may use the name of Kafka or of librdkafka."""
    cluster.fail_messages(name)

    with pytest.raises(DeliveryError, match=r"\(MESSAGE_TOO_LARGE, 10\)") as raised:
        producer.produce_sync(topic="t", payload=b"x")

    assert raised.value.name == "MESSAGE_TOO_LARGE"


def test_chosen_messages_fail(cluster, producer):
    """Messages can be chosen by topic, or by a function."""
    cluster.fail_messages("_MSG_TIMED_OUT", None, topic="bad")
    cluster.fail_messages(2, None, when=lambda record: record.key == b"poison")

    with pytest.raises(DeliveryError, match="_MSG_TIMED_OUT"):
        producer.produce_sync(topic="bad", payload=b"x")
    with pytest.raises(DeliveryError, match="CORRUPT_MESSAGE"):
        producer.produce_sync(topic="t", key="poison", payload=b"x")
    producer.produce_sync(topic="t", key="good", payload=b"x")

    cluster.forgive()
    producer.produce_sync(topic="bad", payload=b"x")
    assert len(cluster.records()) == 2


def test_unknown_errors_are_refused(cluster):
    """The text suggests the name that may have been meant."""
    with pytest.raises(ValueError, match="did you mean '_MSG_TIMED_OUT'"):
        cluster.fail_messages("MSG_TIMED_OUT_")
    with pytest.raises(ValueError, match="commit_transaction"):
        cluster.fail_calls("commit", "UNKNOWN")


def test_brokers_may_be_down_from_the_beginning(world, cluster):
    """A producer that connects then gets the error, and can send later."""
    cluster.broker_down()
    with Producer(kafka=NOWHERE, max_wait_timeout=0.1) as producer:
        with pytest.raises(DeliveryTimeoutError, match="last broker error"):
            producer.produce_sync(topic="t", payload=b"x")

        cluster.broker_up()

        producer.close(timeout=10)
    assert payloads(cluster.records()) == [b"x"]


def test_shorter_round_trips_don_t_change_the_order(world, cluster, producer):
    """Messages are answered in order, even if the round trip becomes shorter."""
    cluster.round_trip(0.2)
    slow = producer.produce_async(topic="t", payload=b"slow", partition=0)
    cluster.round_trip(0)
    quick = producer.produce_async(topic="t", payload=b"quick", partition=0)

    assert [slow.wait(10).offset, quick.wait(10).offset] == [0, 1]


def test_queue_is_limited_in_bytes(world, cluster):
    """The queue has librdkafka's limit, and waiting senders wake up for free space."""
    kafka = {**NOWHERE, "queue.buffering.max.kbytes": 1}
    with Producer(kafka=kafka) as producer:
        handles = [
            producer.produce_async(topic="t", payload=bytes(600), partition=0)
            for _ in range(20)
        ]
        assert [each.wait(10).offset for each in handles] == list(range(20))


# --- transactions ---------------------------------------------------------------------
# These tests use the client beneath; tests of the verbs are elsewhere.


class Position(NamedTuple):
    """A consumer's position in one partition."""

    topic: str
    partition: int
    offset: int


@pytest.fixture
def transactional(cluster):
    """Construct clients whose `transactional.id` is registered."""

    def make(transactional_id="id"):
        log = cluster._log
        client = MemoryProducer({"transactional.id": transactional_id}, log)
        cluster._backend.producers.add(client)
        client.init_transactions(1)
        return client

    return make


def put(client, payload, reports=None):
    """Send a message by a client, and record the name of its error, or None."""
    reports = [] if reports is None else reports

    def report(error, _):
        reports.append(error and error.name())

    client.produce("t", payload, None, 0, report)
    client.poll(0)
    return reports


def refusal(function, *arguments):
    """Return the error with which a client refuses a call."""
    with pytest.raises(KafkaException) as raised:
        function(*arguments)
    return raised.value.args[0]


def test_a_committed_transaction_is_visible(cluster, transactional):
    """Its messages become visible all at once with the commit."""
    client = transactional()
    client.begin_transaction()
    reports = put(client, b"1")
    put(client, b"2", reports)

    assert reports == [None, None]
    assert cluster.records("t") == []
    assert payloads(cluster.records("t", uncommitted=True)) == [b"1", b"2"]
    client.commit_transaction(1)
    assert payloads(cluster.records("t")) == [b"1", b"2"]


def test_an_aborted_transaction_is_never_visible(cluster, transactional):
    """Later messages are visible."""
    client = transactional()
    client.begin_transaction()
    put(client, b"1")
    client.abort_transaction(1)
    client.begin_transaction()
    put(client, b"2")
    client.commit_transaction(1)

    (record,) = cluster.records("t")
    # The first message has offset 0, and the end marker of its transaction 1.
    assert (record.payload, record.offset) == (b"2", 2)


def test_abort_drops_messages_in_flight(cluster, transactional):
    """The delivery reports name the purge."""
    client = transactional()
    client.begin_transaction()
    cluster.round_trip(60)
    reports = put(client, b"1")

    client.abort_transaction(1)
    client.poll(0)

    assert reports == ["_PURGE_INFLIGHT"]


def test_commit_waits_for_messages_in_flight(cluster, transactional):
    """The wait ends at its time limit; another attempt may succeed."""
    client = transactional()
    client.begin_transaction()
    cluster.round_trip(0.1)
    put(client, b"1")

    error = refusal(client.commit_transaction, 0.01)
    assert (error.name(), error.retriable()) == ("_TIMED_OUT", True)
    client.commit_transaction(10)
    assert payloads(cluster.records("t")) == [b"1"]


def test_offsets_are_committed_with_a_transaction(cluster, transactional):
    """Offsets are kept by group, topic and partition, however similar the names are."""
    client = transactional()
    client.begin_transaction()
    places = [Position("a1", 1, 5), Position("a", 11, 6)]
    client.send_offsets_to_transaction(places, "group", 1)

    assert cluster.committed_offsets("group") == {}
    client.commit_transaction(1)
    assert cluster.committed_offsets("group") == {("a1", 1): 5, ("a", 11): 6}
    client.begin_transaction()
    client.send_offsets_to_transaction([Position("a", 11, 99)], "group", 1)
    client.abort_transaction(1)
    assert cluster.committed_offsets("group")["a", 11] == 6
    assert cluster.committed_offsets("other") == {}


def test_groups_are_known_by_metadata_of_consumers(cluster, transactional):
    """Consumers of librdkafka have their group's name in a piece of binary data."""
    consumer = Consumer(
        {"bootstrap.servers": "127.0.0.1:1", "group.id": "a group", "log_level": 0}
    )
    group = consumer.consumer_group_metadata()
    consumer.close()
    client = transactional()
    client.begin_transaction()

    client.send_offsets_to_transaction([Position("t", 0, 3)], group, 1)
    client.commit_transaction(1)

    assert cluster.committed_offsets("a group") == {("t", 0): 3}


def test_calls_out_of_turn_are_refused(transactional):
    """A refused call does no harm."""
    client = transactional()

    assert refusal(put, client, b"x").name() == "_STATE"
    assert refusal(client.commit_transaction).name() == "_STATE"
    assert refusal(client.abort_transaction).name() == "_STATE"
    client.begin_transaction()
    assert refusal(client.begin_transaction).name() == "_STATE"
    client.commit_transaction(1)


def test_a_second_producer_fences_the_first(cluster, transactional):
    """The fenced producer can do nothing any more."""
    first = transactional()
    first.begin_transaction()
    second = transactional()
    other = transactional("another id")

    error = refusal(put, first, b"x")
    assert (error.name(), error.fatal()) == ("_FATAL", True)
    assert first.fatal[0] == -144  # _FENCED
    assert refusal(first.commit_transaction, 1).fatal()
    assert refusal(first.poll, 0).fatal()
    for client in (second, other):
        client.begin_transaction()
        put(client, b"x")
        client.commit_transaction(1)
    assert len(cluster.records("t")) == 2


def test_calls_fail_as_requested(cluster, transactional):
    """A call fails once; the consequences depend on the kind of error."""
    client = transactional()
    cluster.fail_calls("begin_transaction", "COORDINATOR_NOT_AVAILABLE", retriable=True)
    cluster.fail_calls("commit_transaction", "INVALID_TXN_STATE", abortable=True)

    assert refusal(client.begin_transaction).retriable()
    client.begin_transaction()
    put(client, b"x")
    assert refusal(client.commit_transaction, 1).txn_requires_abort()
    assert refusal(client.commit_transaction, 1).txn_requires_abort()
    client.abort_transaction(1)
    client.begin_transaction()
    cluster.fail_calls("abort_transaction", 47, fatal=True)
    assert refusal(client.abort_transaction, 1).fatal()
    assert client.fatal[0] == 47
    assert cluster.records("t") == []


# --- recording ------------------------------------------------------------------------


def test_recorder_keeps_events_of_process_and_producers(cluster):
    """All events are kept in one order."""
    kafka = {"bootstrap.servers": cluster.bootstrap_servers}
    with Producer(kafka) as one, Recorder(monitor, one) as recorder:
        with Producer(kafka) as other:
            other.produce_sync(topic="t", payload=b"x")
        one.produce_sync(topic="t", payload=b"x")

        recorder.wait_for("message.acknowledged")
        (configured,) = recorder.named("producer.configured")
        (connected,) = recorder.named("producer.connected")

    assert configured["producer"] is other
    assert connected["producer_id"] == one.id
    assert recorder.names.index("producer.closed") < recorder.names.index(
        "producer.connected"
    )


def test_recorder_waits_for_events(world, cluster, producer, spawn, pause):
    """The recorder also waits for events of other threads."""
    with Recorder(producer) as recorder:

        def send():
            pause(0.02)
            producer.produce_sync(topic="t", payload=b"x")

        task = spawn(send)
        (event,) = recorder.wait_for("message.acknowledged")
        task.join()

        assert event["topic"] == "t"
        recorder.clear()
        with pytest.raises(AssertionError, match=r"0 of 1 'producer\.closed' within"):
            recorder.wait_for("producer.closed", timeout=0.01)
        with pytest.raises(ValueError, match=r"no event 'producer\.close'"):
            recorder.named("producer.close")
    producer.produce_sync(topic="t", payload=b"x")
    assert recorder.events == []


@pytest.mark.slow
def test_mock_cluster_is_read(world):
    """The helpers read records of the mock cluster, too."""
    with MockCluster() as cluster:
        servers = {"bootstrap.servers": cluster.bootstrap_servers}
        with Producer(kafka=servers) as producer:
            producer.produce_sync(topic="t", payload="x", key="k", headers={"h": "1"})

        (record,) = cluster.records("t")
        assert record[4:] == (b"k", b"x", [("h", b"1")])
        assert cluster.records("unknown") == []


@pytest.mark.slow
def test_reading_without_brokers_raises_an_error():
    """The error names the brokers that can't be reached."""
    with MockCluster() as cluster:
        cluster.broker_down()
        with pytest.raises(GreendropError, match="can't read 't'"):
            cluster.records("t", timeout=0.5)


@pytest.mark.parametrize("count", [0, -1, 2**31, 1.5, True, "4"])
@pytest.mark.parametrize("kind", [MemoryCluster, MockCluster])
def test_topics_have_a_valid_number_of_partitions(kind, count):
    """Other numbers would end the interpreter in librdkafka's mock cluster."""
    with kind() as cluster, pytest.raises(ValueError, match="1 to 10,000 partitions"):
        cluster.create_topic("t", count)
    with pytest.raises(ValueError, match="1 to 10,000 partitions"):
        MemoryCluster(partitions=count)
