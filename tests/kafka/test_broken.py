"""Failures on purpose: each sender knows the outcome of its message.

Each message that was reported as delivered is in the topic, read by an independent
client; every other message has an error. Nothing hangs, and the hub is never held for
long.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from contextlib import contextmanager

import gevent
import pytest

from greendrop import (
    DeliveryError,
    DeliveryTimeoutError,
    Message,
    MessagePurgedError,
    MessagesAbandonedError,
    ProduceManyError,
    Producer,
    ProducerClosedError,
)
from tests.kafka.loading import Load, off_hub
from tests.servers.kafka import KafkaCluster
from tests.tasks import await_true

pytestmark = pytest.mark.slow

#: Seconds for which the hub may be held.
LONGEST_GAP = 0.05

#: librdkafka waits up to 10 s before it connects again, which is long in a test.
BACK_SOON = {"reconnect.backoff.max.ms": 500}


@pytest.fixture
def producer_of(longest_gap):
    """Make a producer, close it at the end, and check that the hub was never held."""

    @contextmanager
    def make(kafka, **settings):
        with longest_gap() as gap, Producer(kafka=kafka, **settings) as producer:
            yield producer
        assert gap.seconds < LONGEST_GAP
        assert (producer.status, producer.queue_size) == ("closed", 0)

    return make


# The broker --------------------------------------------------------------------------


def test_a_killed_broker_costs_no_message(kafka_secure, topic, read_topic, producer_of):
    """A load continues when its only broker was killed and is started again."""
    (node,) = kafka_secure.nodes
    kafka = {"bootstrap.servers": kafka_secure.bootstrap_servers, **BACK_SOON}

    with producer_of(kafka) as producer:
        load = Load(producer, topic)
        load.await_progress()
        off_hub(node.kill)
        gevent.sleep(0.5)
        off_hub(node.start)
        load.await_progress()
        load.stop()

    assert load.failed == {}
    load.check(read_topic(kafka_secure.bootstrap_servers, topic))


def test_messages_that_expire_fail(kafka_secure, topic, read_topic, producer_of):
    """Messages that wait too long for a killed broker fail; later ones are stored."""
    (node,) = kafka_secure.nodes
    servers = {"bootstrap.servers": kafka_secure.bootstrap_servers}

    with producer_of({**servers, **BACK_SOON, "message.timeout.ms": 1000}) as producer:
        load = Load(producer, topic, burst=10)
        load.await_progress()
        off_hub(node.kill)
        await_true(lambda: len(load.failed) >= 100)
        off_hub(node.start)
        load.await_progress()
        load.stop()

    assert {error.name for error in load.failed.values()} == {"_MSG_TIMED_OUT"}
    load.check(read_topic(kafka_secure.bootstrap_servers, topic))


def test_a_paused_broker_only_costs_time(kafka_secure, topic, read_topic, producer_of):
    """A load waits for a broker that is paused for 5 s, and continues."""
    (node,) = kafka_secure.nodes
    kafka = {"bootstrap.servers": kafka_secure.bootstrap_servers, **BACK_SOON}

    with producer_of(kafka) as producer:
        load = Load(producer, topic)
        load.await_progress()
        node.pause()
        gevent.sleep(5)
        off_hub(node.resume)
        load.await_progress()
        load.stop()

    assert load.failed == {}
    assert max(report.latency for report in load.acknowledged.values()) > 4
    load.check(read_topic(kafka_secure.bootstrap_servers, topic))


def test_an_idempotent_producer_survives_the_loss_of_a_node(
    kafka_three, topic, read_topic, producer_of
):
    """With a leader killed under load nothing is lost, doubled or out of order."""
    kafka_three.create_topic(topic, partitions=4)
    kafka = {
        "bootstrap.servers": kafka_three.bootstrap_servers,
        "enable.idempotence": True,
        **BACK_SOON,
    }

    with producer_of(kafka) as producer:
        load = Load(producer, topic, burst=10)
        load.await_progress(20)
        # Each node leads some of the partitions.
        off_hub(kafka_three.nodes[1].kill)
        load.await_progress(20)
        load.stop()

    assert load.failed == {}
    survivors = [node.address for node in kafka_three.nodes if node.running]
    records = read_topic(",".join(survivors), topic)
    load.check(records)
    load.check_exactly_once_in_order(records)


# The network -------------------------------------------------------------------------


def wrong_address(kafka, unused_address):
    """Choose a port without a listener."""
    return {"bootstrap.servers": unused_address}


def unresolvable_host(kafka, unused_address):
    """Choose a host under a domain that never exists (RFC 2606)."""
    return {"bootstrap.servers": "kafka.greendrop.invalid:9092"}


def wrong_password(kafka, unused_address):
    """Use a wrong password with PLAIN."""
    return {
        "bootstrap.servers": kafka.secure_listeners.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": kafka.secure_listeners.plain.user,
        "sasl.password": "not-the-password",
    }


def wrong_proof(kafka, unused_address):
    """Use a wrong password with SCRAM."""
    return wrong_password(kafka, unused_address) | {
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": kafka.secure_listeners.scram.user,
    }


def wrong_authority(kafka, unused_address):
    """Trust an authority that has not certified the broker."""
    return {
        "bootstrap.servers": kafka.secure_listeners.tls_bootstrap_servers,
        "security.protocol": "SSL",
        "ssl.ca.location": str(kafka.secure_listeners.client_cert_file),
    }


def plaintext_to_tls(kafka, unused_address):
    """Connect without TLS to a TLS port."""
    return {"bootstrap.servers": kafka.secure_listeners.tls_bootstrap_servers}


def tls_to_plaintext(kafka, unused_address):
    """Connect with TLS to a port without it."""
    return {
        "bootstrap.servers": kafka.bootstrap_servers,
        "security.protocol": "SSL",
        "ssl.ca.location": str(kafka.secure_listeners.ca_file),
    }


REASONS = {
    wrong_address: ["Connection refused"],
    unresolvable_host: ["Failed to resolve 'kafka.greendrop.invalid:9092'"],
    wrong_password: ["Authentication failed: Invalid username or password"],
    wrong_proof: ["invalid credentials with SASL mechanism SCRAM-SHA-256"],
    wrong_authority: ["certificate verify failed"],
    # librdkafka only sees the closed connection; the error names the likely cause.
    plaintext_to_tls: ["connection closed by peer", "security.protocol"],
    tls_to_plaintext: ["SSL connection closed by peer"],
}


@pytest.fixture
def unused_address():
    """Reserve a port without a listener."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host, port = unused.getsockname()
        yield f"{host}:{port}"


@pytest.mark.parametrize("way", REASONS, ids=lambda way: way.__name__)
def test_the_error_of_a_failed_message_names_the_reason(
    kafka_secure, unused_address, topic, way, producer_of
):
    """A sender that can't reach the broker gets the reason, not only a timeout."""
    config = way(kafka_secure, unused_address)
    events = []

    with producer_of({**config, "message.timeout.ms": 1000}) as producer:
        producer.monitor.subscribe("error.occurred", events.append)
        with pytest.raises(DeliveryError) as caught:
            producer.produce_sync(topic=topic, payload=b"x")

    assert caught.value.name == "_MSG_TIMED_OUT"
    reported = [event.payload["error"] for event in events]
    for reason in REASONS[way]:
        assert reason in str(caught.value)
        assert any(reason in str(error) for error in reported)
    assert "not-the-password" not in str(caught.value)


@pytest.mark.parametrize("way", REASONS, ids=lambda way: way.__name__)
def test_the_error_of_a_wait_that_is_too_short_names_the_reason(
    kafka_secure, unused_address, topic, way, producer_of
):
    """A wait that ends before librdkafka gives up raises the reason, too."""
    config = way(kafka_secure, unused_address)

    with producer_of(config, max_wait_timeout=0.7) as producer:
        with pytest.raises(DeliveryTimeoutError) as caught:
            producer.produce_sync(topic=topic, payload=b"x")
        producer.close(force=True)

    for reason in REASONS[way]:
        assert reason in str(caught.value)


# The topic ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka_without_creation():
    """One node that creates no topics by itself."""
    with KafkaCluster(broker_config={"auto.create.topics.enable": "false"}) as cluster:
        yield cluster


def test_a_topic_that_is_never_created_fails_the_message(
    kafka_without_creation, topic, producer_of
):
    """Where brokers create no topics, a message to an unknown one times out."""
    kafka = {
        "bootstrap.servers": kafka_without_creation.bootstrap_servers,
        "message.timeout.ms": 1000,
    }

    with producer_of(kafka) as producer:
        with pytest.raises(DeliveryError) as plain:
            producer.produce_sync(topic=topic, payload=b"x")
        with pytest.raises(DeliveryError) as keyed:
            producer.produce_sync(topic=topic, payload=b"x", key="key")

    assert (plain.value.name, keyed.value.name) == ("_MSG_TIMED_OUT", "_MSG_TIMED_OUT")
    assert "unknown" in str(plain.value)


def test_a_topic_that_stays_unknown_fails_the_message(
    kafka_without_creation, topic, producer_of
):
    """A message with time left fails when librdkafka gives up the topic."""
    kafka = {
        "bootstrap.servers": kafka_without_creation.bootstrap_servers,
        "topic.metadata.propagation.max.ms": 500,
    }

    with producer_of(kafka) as producer, pytest.raises(DeliveryError) as caught:
        producer.produce_sync(topic=topic, payload=b"x")

    assert caught.value.name in {"_UNKNOWN_TOPIC", "UNKNOWN_TOPIC_OR_PARTITION"}


def test_a_topic_that_comes_late_gets_its_message(
    kafka_without_creation, topic, read_topic, producer_of
):
    """A message waits for a topic that is created soon."""
    kafka = {"bootstrap.servers": kafka_without_creation.bootstrap_servers}

    with producer_of(kafka) as producer:
        handle = producer.produce_async(topic=topic, payload=b"x")
        gevent.sleep(0.3)
        assert not handle.done
        off_hub(kafka_without_creation.create_topic, topic)
        handle.wait()

    (record,) = read_topic(kafka_without_creation.bootstrap_servers, topic)
    assert record.value == b"x"


def test_an_invalid_topic_name_fails_the_message(kafka, producer_of):
    """The broker's refusal of a topic is reported at once."""
    config = {"bootstrap.servers": kafka.bootstrap_servers}

    with producer_of(config) as producer, pytest.raises(DeliveryError) as caught:
        producer.produce_sync(topic="..", payload=b"x")

    assert caught.value.name == "INVALID_TOPIC_EXCEPTION"


def test_a_message_that_is_too_large_for_the_broker_fails(
    kafka, topic, read_topic, producer_of
):
    """The topic's limit is lower than the producer's: only that message fails."""
    kafka.create_topic(topic, config={"max.message.bytes": "1000"})
    config = {"bootstrap.servers": kafka.bootstrap_servers}
    refused = []

    with producer_of(config) as producer:
        load = Load(producer, topic)
        load.await_progress()
        for _ in range(10):
            with pytest.raises(DeliveryError) as caught:
                producer.produce_sync(topic=topic, payload=b"x" * 2000)
            refused.append(caught.value.name)
        load.await_progress()
        load.stop()

    assert refused == ["MESSAGE_TOO_LARGE"] * 10
    # librdkafka fails the whole request, and with it the other messages in it.
    assert {error.name for error in load.failed.values()} <= {"MESSAGE_TOO_LARGE"}
    load.check(read_topic(kafka.bootstrap_servers, topic))


@pytest.mark.parametrize(
    "case",
    [
        (
            {"max.message.bytes": "1000"},
            [Message("", b"x" * 2000)],
            {"MESSAGE_TOO_LARGE"},
        ),
        ({"cleanup.policy": "compact"}, [Message("", b"x")], {"INVALID_RECORD"}),
        (
            {"cleanup.policy": "compact"},
            [Message("", b"x"), Message("", b"y")],
            {"INVALID_RECORD", "_INVALID_DIFFERENT_RECORD"},
        ),
        (
            {"message.timestamp.after.max.ms": "3600000"},
            [Message("", b"x", b"key", timestamp=4_000_000_000_000)],
            {"INVALID_TIMESTAMP"},
        ),
    ],
    ids=["too large", "no key", "twice no key", "from the future"],
)
def test_messages_that_fail_with_a_bad_one_can_be_sent_again(
    kafka, topic, read_topic, producer_of, case
):
    """The whole batch fails and nothing is stored, so sending again doubles nothing."""
    config, bad, names = case
    kafka.create_topic(topic, config=config)
    settings = {"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 500}
    good = [Message(topic, b"%d" % number, b"key") for number in range(3)]
    bad = [message._replace(topic=topic) for message in bad]

    with producer_of(settings) as producer:
        with pytest.raises(ProduceManyError) as caught:
            producer.produce_many_sync([good[0], *bad, *good[1:]])
        errors = [handle.error for handle in caught.value.dispatched]
        for message in good:
            producer.produce_sync(**message._asdict())

    assert {error.name for error in errors} == names
    assert all(error.batch_rejected for error in errors)
    records = read_topic(kafka.bootstrap_servers, topic)
    assert [record.value for record in records] == [b"0", b"1", b"2"]


# The sender --------------------------------------------------------------------------


def test_a_killed_senders_message_is_still_sent(
    kafka_secure, topic, read_topic, producer_of
):
    """Killing greenlets that wait breaks nothing; their messages are stored."""
    (node,) = kafka_secure.nodes
    config = {"bootstrap.servers": kafka_secure.bootstrap_servers}
    ended = []

    def send(number):
        try:
            producer.produce_sync(topic=topic, payload=f"killed-{number}")
        except BaseException as error:
            ended.append(type(error))
            raise

    with producer_of(config) as producer:
        producer.produce_sync(topic=topic, payload="before")
        node.pause()
        senders = [gevent.spawn(send, number) for number in range(50)]
        gevent.sleep(0.1)
        gevent.killall(senders, timeout=10)
        assert ended == [gevent.GreenletExit] * 50
        assert producer.queue_size == 50
        off_hub(node.resume)
        producer.produce_sync(topic=topic, payload="after")
        await_true(lambda: producer.queue_size == 0)

    records = read_topic(kafka_secure.bootstrap_servers, topic)
    expected = {b"before", b"after", *(b"killed-%d" % number for number in range(50))}
    assert Counter(expected) == Counter(record.value for record in records)


def test_a_timeout_around_a_send_only_ends_the_wait(
    kafka_secure, topic, read_topic, producer_of
):
    """gevent.Timeout ends a wait in time; the message may be stored, and is."""
    (node,) = kafka_secure.nodes
    config = {"bootstrap.servers": kafka_secure.bootstrap_servers}
    waits = []

    def send(number):
        started_at = time.monotonic()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.2):
            producer.produce_sync(topic=topic, payload=f"late-{number}")
        waits.append(time.monotonic() - started_at)

    with producer_of(config) as producer:
        producer.produce_sync(topic=topic, payload="before")
        node.pause()
        senders = [gevent.spawn(send, number) for number in range(50)]
        gevent.joinall(senders, timeout=10, raise_error=True)
        off_hub(node.resume)
        with gevent.Timeout(10):
            producer.produce_sync(topic=topic, payload="after")

    assert len(waits) == 50
    assert max(waits) < 1
    records = read_topic(kafka_secure.bootstrap_servers, topic)
    expected = {b"before", b"after", *(b"late-%d" % number for number in range(50))}
    assert Counter(expected) == Counter(record.value for record in records)


# Closing -----------------------------------------------------------------------------


def test_closing_during_a_load_delivers_accepted_messages(
    kafka, topic, read_topic, producer_of
):
    """Accepted messages are stored; later ones are refused; no sender hangs."""
    config = {"bootstrap.servers": kafka.bootstrap_servers}

    with producer_of(config) as producer:
        load = Load(producer, topic, burst=10)
        load.await_progress(20)
        producer.close()
        load.stop()

    assert {type(error) for error in load.failed.values()} <= {ProducerClosedError}
    records = read_topic(kafka.bootstrap_servers, topic)
    load.check(records)
    # The error says "not sent", so the message is not there.
    assert {record.value for record in records} == load.acknowledged.keys()


def test_a_forced_close_reports_dropped_messages(
    kafka_secure, topic, read_topic, producer_of
):
    """With a paused broker, a forced close is quick and fails each pending message."""
    (node,) = kafka_secure.nodes
    config = {"bootstrap.servers": kafka_secure.bootstrap_servers}

    with producer_of(config) as producer:
        load = Load(producer, topic, burst=10)
        load.await_progress(20)
        node.pause()
        gevent.sleep(0.2)
        started_at = time.monotonic()
        producer.close(force=True)
        took = time.monotonic() - started_at
        load.stop()
    node.resume()

    assert took < 5
    dropped = [e for e in load.failed.values() if isinstance(e, MessagePurgedError)]
    assert len(dropped) >= 20
    load.check(read_topic(kafka_secure.bootstrap_servers, topic))


def test_a_close_that_runs_out_of_time_raises(
    kafka_secure, topic, read_topic, producer_of
):
    """With a paused broker, close ends in time and counts the undelivered messages."""
    (node,) = kafka_secure.nodes
    config = {"bootstrap.servers": kafka_secure.bootstrap_servers}

    with producer_of(config) as producer:
        load = Load(producer, topic)
        load.await_progress()
        node.pause()
        gevent.sleep(0.2)
        with pytest.raises(MessagesAbandonedError) as caught:
            producer.close(timeout=0.5)
        load.stop()
    node.resume()

    dropped = [e for e in load.failed.values() if isinstance(e, MessagePurgedError)]
    assert caught.value.count == len(dropped)
    load.check(read_topic(kafka_secure.bootstrap_servers, topic))


# Fresh interpreters ------------------------------------------------------------------

FORKS_UNDER_LOAD = """
    import gevent.os, json, os
    from greendrop import Producer, ProducerUsedInParentProcessError
    from tests.kafka.loading import Load
    from tests.servers.reading import read_topic
    from tests.tasks import LongestGap, await_true

    forking = gevent.os if forker == "gevent" else os
    producer = Producer(kafka={"bootstrap.servers": servers})

    def send_in_child():
        try:
            producer.produce_sync(topic=children, payload="refused")
        except ProducerUsedInParentProcessError:
            producer.reset()
            producer.produce_sync(topic=children, payload=str(os.getpid()))

    def status(pid):
        ended = []

        def has_ended():
            ended[:] = forking.waitpid(pid, os.WNOHANG)
            return ended[0] == pid

        await_true(has_ended)
        return os.waitstatus_to_exitcode(ended[1])

    with LongestGap() as gap:
        load = Load(producer, topic)
        load.await_progress()
        statuses = []
        for in_child in (send_in_child, bool, send_in_child, bool):
            pid = forking.fork()
            if pid == 0:
                in_child()
                raise SystemExit
            load.await_progress()
            statuses.append(status(pid))
        load.await_progress()
        load.stop()
    load.check(read_topic(servers, topic))
    print(json.dumps([gap.seconds, statuses, len(load.failed)]))
"""


@pytest.mark.patched
@pytest.mark.parametrize("forker", ["os", "gevent"])
def test_forks_during_a_load_do_not_disturb_the_parent(
    kafka, topic, read_topic, run_script, forker
):
    """Children may reset the producer or ignore it: the parent loses nothing."""
    servers, children = kafka.bootstrap_servers, f"{topic}-children"

    ended = run_script(
        FORKS_UNDER_LOAD,
        "unpatched",
        servers=servers,
        topic=topic,
        children=children,
        forker=forker,
    )

    gap, statuses, failed = json.loads(ended.stdout)
    assert gap < LONGEST_GAP
    assert statuses == [0, 0, 0, 0]
    assert failed == 0
    stored = [record.value for record in read_topic(servers, children)]
    assert len(stored) == 2
    assert b"refused" not in stored


FORKS_UNDER_THREADS = """
    import os
    from greendrop import Producer, ProducerUsedInParentProcessError
    from tests.tasks import Task, await_true

    producer = Producer(kafka={"bootstrap.servers": servers})
    sent = [0] * 8
    going_on = True

    def load(sender):
        while going_on:
            handles = [
                producer.produce_async(topic=topic, payload=f"{sender}-{number}")
                for number in range(sent[sender], sent[sender] + 10)
            ]
            for handle in handles:
                handle.wait()
            sent[sender] += 10

    def fork():
        pid = os.fork()
        if pid == 0:
            try:
                producer.produce_sync(topic=children, payload="refused")
            except ProducerUsedInParentProcessError:
                producer.reset()
                producer.produce_sync(topic=children, payload=str(os.getpid()))
            raise SystemExit
        before = sum(sent)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        await_true(lambda: sum(sent) > before)

    tasks = [Task(load, sender) for sender in range(8)]
    await_true(lambda: all(sent))
    for _ in range(10):
        fork()
    going_on = False
    for task in tasks:
        task.join()
    producer.close()
    print(sum(sent))
"""


@pytest.mark.patched
def test_forks_during_a_load_of_threads_do_not_disturb_the_parent(
    kafka, topic, read_topic, run_script
):
    """The child can continue, whatever lock another thread held during the fork."""
    servers, children = kafka.bootstrap_servers, f"{topic}-children"

    ended = run_script(
        FORKS_UNDER_THREADS, "none", servers=servers, topic=topic, children=children
    )

    stored = [record.value for record in read_topic(servers, topic)]
    assert len(stored) == len(set(stored)) == int(ended.stdout)
    of_children = {record.value for record in read_topic(servers, children)}
    assert len(of_children) == 10
    assert b"refused" not in of_children


ENDS_IN_FLIGHT = """
    import sys
    from greendrop import Producer

    producer = Producer(kafka={"bootstrap.servers": servers})
    for number in range(1000):
        producer.produce_async(topic=topic, payload=str(number))
    if end == "exits":
        sys.exit()
    elif end == "exits in a greenlet":
        gevent.spawn(sys.exit).join()
"""


@pytest.mark.patched
@pytest.mark.parametrize(
    "way",
    [
        ("none", "ends"),
        ("none", "exits"),
        ("unpatched", "ends"),
        ("unpatched", "exits"),
        ("unpatched", "exits in a greenlet"),
        ("patched", "ends"),
        ("patched", "exits"),
        ("late", "ends"),
    ],
    ids=lambda way: f"{way[0]}, {way[1]}",
)
def test_a_program_that_ends_delivers_messages_in_flight(
    kafka, topic, read_topic, run_script, way
):
    """A program that never closes its producer, and never waits, loses nothing."""
    mode, end = way
    servers = kafka.bootstrap_servers

    ended = run_script(ENDS_IN_FLIGHT, mode, servers=servers, topic=topic, end=end)

    assert ended.seconds < 10
    stored = Counter(record.value for record in read_topic(servers, topic))
    assert stored == Counter(b"%d" % number for number in range(1000))


@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "patched"])
def test_a_program_that_ends_does_not_wait_for_ever(
    kafka_secure, topic, run_script, mode
):
    """With a paused broker the program ends in time, and prints the loss."""
    (node,) = kafka_secure.nodes
    program = """
        from greendrop import Producer

        kafka = {"bootstrap.servers": servers}
        producer = Producer(kafka=kafka, exit_timeout=0.5)
        for number in range(1000):
            producer.produce_async(topic=topic, payload=str(number))
    """

    node.pause()
    servers = kafka_secure.bootstrap_servers
    ended = run_script(program, mode, fails=True, servers=servers, topic=topic)
    node.resume()

    assert ended.returncode == 0
    assert ended.seconds < 5
    assert "1,000 messages were not delivered" in ended.stderr
