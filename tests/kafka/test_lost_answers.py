"""Lost answers: the broker has stored a message, and the producer can't know.

librdkafka then keeps the message in its queue, to be sent again. A message dropped from
the queue may be stored all the same; see docs/decisions/0023. A message that is sent
again with another sequence number is stored twice; see docs/decisions/0030.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from confluent_kafka import KafkaException
from confluent_kafka import Producer as RawProducer

from greendrop import (
    DeliveryError,
    MessagePurgedError,
    Producer,
    TransactionAbortedError,
)
from tests.tasks import await_true
from tests.transactions.transacting import events_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.kafka import KafkaCluster

pytestmark = pytest.mark.slow

#: librdkafka waits up to 10 s before it connects again, which is long in a test.
BACK_SOON = {"reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 500}
#: Seconds; a working test takes much less.
LONG = 20.0
#: Accepted by the client, and refused by the broker, which allows 1 MB.
TOO_LARGE = b"x" * 1_500_000
#: Has messages that wait for a retry stay in the queue until the refusal has come.
RETRY_LATE = {
    "retry.backoff.ms": 5_000,
    "retry.backoff.max.ms": 5_000,
    "message.max.bytes": 3_000_000,
}


@pytest.fixture
def keys(kafka_proxied: KafkaCluster) -> dict[str, str | int]:
    """Return the configuration of a client whose answers can be lost."""
    return {
        "bootstrap.servers": kafka_proxied.proxied_bootstrap_servers,
        "linger.ms": 0,
        **BACK_SOON,
    }


@pytest.fixture
def values(kafka_proxied, topic, read_topic) -> Callable[..., list[bytes]]:
    """Read the stored payloads, past the proxy, with an independent client."""

    def read(level: str = "read_uncommitted") -> list[bytes]:
        servers = kafka_proxied.bootstrap_servers
        return [each.value for each in away(read_topic, servers, topic, level)]

    return read


@pytest.fixture
def transactional(keys) -> Iterator[Callable[..., Producer]]:
    """Make a transactional producer, and close it after the test."""
    made = []

    def make(**settings: Any) -> Producer:
        name = {"transactional.id": f"tx-{uuid.uuid4().hex[:12]}"}
        kafka = keys | name | settings.pop("kafka", {})
        made.append(Producer(kafka=kafka, **settings))
        return made[-1]

    yield make
    for producer in made:
        producer.close(timeout=10)


def away(function, *arguments):
    """Run a blocking function on another thread, and return its result."""
    return gevent.get_hub().threadpool.apply(function, arguments)


def sending_to(producer, topic):
    """Return a function that sends a payload to partition 0 without waiting."""

    def send(payload):
        return producer.produce_async(topic=topic, payload=payload, partition=0)

    return send


def lose_the_answer(kafka_proxied, send, values, payload):
    """Have a message stored without an answer, and cut the network."""
    away(kafka_proxied.proxy.hold_answers)
    result = send(payload)
    await_true(lambda: payload.encode() in values(), LONG)
    away(kafka_proxied.proxy.cut)
    # Until librdkafka has noticed, and put the message back into its queue.
    gevent.sleep(1)
    return result


def resume_soon(kafka_proxied):
    """Bring the network back once the abort has begun."""
    gevent.spawn_later(1.5, away, kafka_proxied.proxy.resume)


def test_message_after_an_aborted_transaction_is_stored(
    kafka_proxied, transactional, values, topic
):
    """Its sequence number differs from that of the dropped message, so it is stored."""
    producer = transactional(wait_timeout_on_transaction_abort=0.2)
    clients = events_of(producer, "producer.connected")
    send = sending_to(producer, topic)

    with producer.transaction():
        send("committed")
    with producer.transaction() as tx:
        send("first").wait(LONG)
        dropped = lose_the_answer(kafka_proxied, send, values, "answer lost")
        resume_soon(kafka_proxied)
        tx.abort()
    with producer.transaction():
        after = send("after")

    assert isinstance(dropped.error, MessagePurgedError)
    assert after.report.offset > 3
    assert values("read_committed") == [b"committed", b"after"]
    assert len(clients) == 2


def test_abort_that_gets_its_reports_keeps_the_client(
    kafka_proxied, transactional, values, topic
):
    """When the answers arrive after all, the outcome is known and the client stays."""
    producer = transactional(wait_timeout_on_transaction_abort=LONG)
    clients = events_of(producer, "producer.connected")
    send = sending_to(producer, topic)

    with producer.transaction():
        send("committed")
    with producer.transaction() as tx:
        send("first").wait(LONG)
        handle = lose_the_answer(kafka_proxied, send, values, "answer lost")
        resume_soon(kafka_proxied)
        tx.abort()
    with producer.transaction():
        send("after")

    assert handle.report.offset == 3
    assert values("read_committed") == [b"committed", b"after"]
    assert len(clients) == 1


def test_purge_of_an_idempotent_producer_loses_no_later_message(
    kafka_proxied, keys, values, topic
):
    """Without transactions librdkafka leaves a gap in the sequence, and recovers."""
    producer = Producer(kafka=keys | {"enable.idempotence": True})
    send = sending_to(producer, topic)
    send("first").wait(LONG)
    lose_the_answer(kafka_proxied, send, values, "answer lost")
    never_sent = send("never sent")
    producer.purge()
    away(kafka_proxied.proxy.resume)
    later = [send(f"later {number}").wait(LONG) for number in range(3)]
    producer.close(timeout=10)

    assert isinstance(never_sent.error, MessagePurgedError)
    assert [each.offset for each in later] == [2, 3, 4]
    stored = [b"first", b"answer lost", b"later 0", b"later 1", b"later 2"]
    assert values() == stored


def test_topic_that_was_created_again_costs_one_transaction(
    kafka_proxied, transactional, values, topic
):
    """Its offsets start again, which looks as if messages were taken for older ones."""
    producer = transactional()
    for number in range(3):
        producer.produce_sync(topic=topic, payload=f"old {number}", partition=0)
    away(kafka_proxied.delete_topic, topic)
    away(kafka_proxied.create_topic, topic)

    refused = []
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        try:
            producer.produce_sync(topic=topic, payload="new", partition=0)
            break
        except TransactionAbortedError as error:
            refused.append(str(error))
    for number in range(3):
        producer.produce_sync(topic=topic, payload=f"newer {number}", partition=0)

    alarms = [each for each in refused if "deleted and created again" in each]
    assert len(alarms) == 1, refused
    expected = [b"new", b"newer 0", b"newer 1", b"newer 2"]
    assert values("read_committed") == expected


def test_topic_deleted_within_a_transaction_rolls_it_back(
    kafka_proxied, transactional, topic
):
    """The transaction is rolled back once librdkafka has given up the message."""
    producer = transactional(kafka={"message.timeout.ms": 5_000})
    producer.produce_sync(topic=topic, payload="1", partition=0)

    started_at = time.monotonic()
    expected = pytest.raises(TransactionAbortedError)
    with expected as raised, producer.transaction():
        away(kafka_proxied.delete_topic, topic)
        handle = producer.produce_async(topic=topic, payload="2", partition=0)

    assert str(handle.error) in str(raised.value)
    assert raised.value.name == handle.error.name
    assert time.monotonic() - started_at < LONG


def test_librdkafka_alone_reuses_sequence_numbers(kafka_proxied, keys, values, topic):
    """The minimal case. If nothing is lost here any more, 0023 can be undone."""
    raw = RawProducer(keys | {"transactional.id": f"raw-{uuid.uuid4().hex[:12]}"})
    offsets: dict[str, int | str] = {}

    def send(payload):
        def report(error, message):
            offsets[payload] = str(error) if error else message.offset()

        raw.produce(topic, payload, partition=0, on_delivery=report)

    def is_reported(payload):
        raw.poll(0)
        return payload in offsets

    def send_and_wait(payload):
        send(payload)
        await_true(lambda: is_reported(payload), LONG)

    away(raw.init_transactions, LONG)
    raw.begin_transaction()
    send_and_wait("committed")
    away(raw.commit_transaction, LONG)
    raw.begin_transaction()
    send_and_wait("first")
    lose_the_answer(kafka_proxied, send, values, "answer lost")
    resume_soon(kafka_proxied)
    away(raw.abort_transaction, LONG)
    raw.begin_transaction()
    send_and_wait("after")
    try:
        away(raw.commit_transaction, LONG)
        outcome = "committed"
    except KafkaException as error:
        outcome = str(error)

    committed = values("read_committed")
    print(outcome, offsets, committed, values())
    assert committed in ([b"committed"], [b"committed", b"after"])


def test_message_whose_answer_is_unreadable_may_be_stored(
    kafka_proxied, keys, values, topic
):
    """The message fails, and the error does not claim that it is not stored."""
    producer = Producer(kafka=keys | {"socket.timeout.ms": 5_000})
    send = sending_to(producer, topic)
    send("first").wait(LONG)
    network = kafka_proxied.proxy
    # Several attempts: the length of an answer is random, too, and if librdkafka takes
    # it for a real one, it waits for the rest, and sends the message again.
    for number in range(5):
        # Long enough to break the answer, and not the request before it.
        away(network.set_round_trip, 2.0)
        handle = send(f"unreadable {number}")
        gevent.sleep(0.5)
        away(network.set_garbage, 1.0)
        gevent.wait([handle], timeout=5)
        away(network.set_garbage, 0.0)
        away(network.set_round_trip, 0.0)
        await_true(lambda each=handle: each.done, 2 * LONG)
        if handle.error is not None:
            break
    producer.close(timeout=10)

    assert isinstance(handle.error, DeliveryError)
    assert handle.error.name == "_BAD_MSG"
    assert handle.error.message_state == "unknown"
    assert values().count(f"unreadable {number}".encode()) == 1


def test_librdkafka_alone_doubles_a_message_when_another_one_fails(
    kafka_proxied, keys, values, topic
):
    """The minimal case. When this fails, librdkafka is better, and 0030 can go."""
    kafka_proxied.create_topic(topic, partitions=2)
    raw = RawProducer(keys | RETRY_LATE | {"enable.idempotence": True})
    outcomes: dict[bytes, str] = {}

    def send(payload, partition=0):
        def report(error, _message):
            outcomes[payload] = error.name() if error else "acknowledged"

        raw.produce(topic, payload, partition=partition, on_delivery=report)

    def is_reported(payload):
        raw.poll(0)
        return payload in outcomes

    def send_and_wait(payload, partition):
        send(payload, partition)
        await_true(lambda: is_reported(payload), LONG)

    send_and_wait("first", 0)
    send_and_wait("first of the other partition", 1)
    lose_the_answer(kafka_proxied, send, values, "answer lost")
    away(kafka_proxied.proxy.resume)
    send_and_wait(TOO_LARGE, 1)
    await_true(lambda: is_reported("answer lost"), LONG)

    assert outcomes[TOO_LARGE] == "MSG_SIZE_TOO_LARGE"
    assert outcomes["answer lost"] == "acknowledged"
    assert values().count(b"answer lost") == 2


def test_transaction_is_visible_once_although_a_message_was_stored_twice(
    kafka_proxied, transactional, values, topic
):
    """The failure that makes librdkafka renumber its queue aborts the transaction."""
    kafka_proxied.create_topic(topic, partitions=2)
    producer = transactional(kafka=RETRY_LATE, max_payload_size=len(TOO_LARGE) * 2)
    send = sending_to(producer, topic)
    with producer.transaction():
        send("committed")

    expected = pytest.raises(TransactionAbortedError)
    with expected, producer.transaction():
        send("first").wait(LONG)
        producer.produce_async(topic=topic, payload="other", partition=1).wait(LONG)
        lose_the_answer(kafka_proxied, send, values, "answer lost")
        away(kafka_proxied.proxy.resume)
        producer.produce_async(topic=topic, payload=TOO_LARGE, partition=1)
    with producer.transaction():
        send("answer lost")

    assert values("read_committed") == [b"committed", b"answer lost"]
