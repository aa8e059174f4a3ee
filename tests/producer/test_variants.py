import gc
import re
import time
import weakref

import pytest

from greendrop import (
    DeliveryError,
    DeliveryTimeoutError,
    Producer,
    ProducerClosedError,
    ProducerNotConfiguredError,
    VariantInvalidError,
)
from tests.tasks import await_true

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}


def send(producer, count=1, topic="t"):
    """Send messages without waiting; return their handles."""
    return [producer.produce_async(topic=topic, payload=b"x") for _ in range(count)]


def problems(producer, **changes):
    """Return what is wrong with a variant, by key."""
    with pytest.raises(VariantInvalidError) as raised:
        producer.variant(**changes)
    return raised.value.errors


# -- settings of a variant ----------------------------------------------------------


def test_variant_has_a_timeout_of_its_own(world):
    """The timeout applies to the variant's sync verbs only."""
    producer = Producer(NOWHERE, max_wait_timeout=LONG)
    brisk = producer.variant(max_wait_timeout=0.05)

    for verb in (
        lambda: brisk.produce_sync(topic="t", payload=b"x"),
        lambda: brisk.produce_many_sync([{"topic": "t", "payload": b"x"}]),
    ):
        started = time.monotonic()
        with pytest.raises((DeliveryTimeoutError, Exception), match="within"):
            verb()
        assert time.monotonic() - started < 2.0
    assert brisk._core is producer._core
    assert brisk._slot is producer._slot
    producer.close(force=True)


def test_variant_has_a_topic_configuration_of_its_own(world, make_producer):
    """Two configurations of one topic are used in parallel: acks=0 has no offsets."""
    producer = make_producer()
    careless = producer.variant(topic_config={"acks": 0})

    for _ in range(2):
        assert producer.produce_sync(topic="t", payload=b"x").offset is not None
        assert careless.produce_sync(topic="t", payload=b"x").offset is None


@pytest.mark.slow
def test_variant_has_its_own_message_timeout(world, mock_cluster):
    """The variant's timeout applies, under whichever alias the producer set it."""
    producer = Producer(NOWHERE | {"delivery.timeout.ms": 60_000})
    brief = producer.variant(topic_config={"message.timeout.ms": 200})

    patient_one, brief_one = send(producer) + send(brief)

    with pytest.raises(DeliveryError, match="_MSG_TIMED_OUT"):
        brief_one.wait(LONG)
    assert not patient_one.done
    assert brief._slot.settings.kafka.get("delivery.timeout.ms") is None
    producer.close(force=True)


def test_variant_of_a_variant_keeps_what_it_does_not_change(make_producer):
    """Changes add up, key by key, also under aliases of a key."""
    producer = make_producer()
    one = producer.variant(max_wait_timeout=5, topic_config={"acks": 1})
    two = one.variant(topic_config={"compression.type": "gzip"})
    three = two.variant(max_wait_timeout=7.5, topic_config={"request.required.acks": 0})

    assert (two._max_wait_timeout, three._max_wait_timeout) == (5.0, 7.5)
    assert two._slot.topic_config == {"acks": "1", "compression.codec": "gzip"}
    assert three._slot.topic_config == {"acks": "0", "compression.codec": "gzip"}
    assert producer._slot.topic_config == {}
    assert producer._max_wait_timeout == 180.0


def test_equal_configurations_share_a_connection(world, make_producer):
    """However often an equal variant is made, it has one connection."""
    producer = make_producer()
    connected = []
    producer.monitor.subscribe("producer.connected", connected.append)

    for value in (1, "1", 1.0):
        variant = producer.variant(topic_config={"acks": value})
        variant.produce_sync(topic="t", payload=b"x")
    assert producer.variant(topic_config={})._slot is producer._slot

    assert len(connected) == 1
    assert "topic_configs=1" in repr(producer)


def test_making_a_variant_opens_nothing(mock_cluster, make_producer):
    """A variant connects when it is first used."""
    producer = make_producer()
    mock_cluster.watch_requests()

    variant = producer.variant(topic_config={"acks": 1})

    assert (variant.status, variant.polling) == ("configured", None)
    assert mock_cluster.requests() == []


def test_nested_use_of_variants_keeps_them_apart(world, make_producer):
    """A variant is an object: code that uses another one does not affect it."""
    producer = make_producer()
    outer = producer.variant(topic_config={"acks": 0})
    inner = producer.variant(topic_config={"acks": 1})

    @producer.monitor.subscribe("message.acknowledged")
    def use_another(event):
        if event["topic"] == "outer":
            send(inner, topic="inner")

    offsets = [
        sender.produce_sync(topic="outer", payload=b"x").offset
        for sender in (outer, producer, outer)
    ]

    assert [offset is None for offset in offsets] == [True, False, True]


def test_buffered_messages_remember_their_variant(world, make_producer):
    """Each message is sent with the variant that buffered it, in order."""
    producer = make_producer()
    careless = producer.variant(topic_config={"acks": 0})
    for sender in (producer, careless, careless, producer):
        sender.buffer(topic="t", payload=b"x")

    reports = producer.flush_sync()

    assert [each.offset is None for each in reports] == [False, True, True, False]


# -- refused variants ---------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["acks", "request.required.acks", "request.timeout.ms", "partitioner"]
)
def test_allowed_keys_are_accepted(make_producer, key):
    """Keys of librdkafka that belong to a topic may differ."""
    value = "murmur2" if key == "partitioner" else 1

    assert make_producer().variant(topic_config={key: value}) is not None


@pytest.mark.parametrize(
    ("config", "key", "text"),
    [
        ({"linger.ms": 5}, "linger.ms", "can't change this"),
        ({"ack": 1}, "ack", "did you mean 'acks'"),
        ({"acks": "some"}, "acks", "acks"),
        ({"compression.codec": "zip"}, "compression.codec", "zip"),
        ({"acks": None}, "acks", "None"),
        ({5: 1}, "5", "text"),
    ],
)
def test_bad_keys_and_values_are_refused_at_once(make_producer, config, key, text):
    """A value that librdkafka would refuse is refused when the variant is made."""
    producer = make_producer()

    errors = problems(producer, topic_config=config)

    assert list(errors) == [f"topic_config.{key}"]
    assert text in errors[f"topic_config.{key}"]
    assert producer.produce_sync(topic="t", payload=b"x")


def test_all_bad_keys_are_named_together(make_producer):
    """Each bad key has its own text."""
    errors = problems(make_producer(), topic_config={"a": 1, "acks": object()})

    assert sorted(errors) == ["topic_config.a", "topic_config.acks"]


def test_other_types_than_mappings_are_refused(make_producer):
    """For instance, a list of pairs is refused."""
    assert "mapping" in problems(make_producer(), topic_config=[])["topic_config"]


@pytest.mark.parametrize("seconds", [-1, float("inf"), "5", True, 180_000])
def test_bad_timeouts_are_refused(make_producer, seconds):
    """A variant's timeout follows the rule of the setting."""
    errors = problems(make_producer(), max_wait_timeout=seconds)

    assert list(errors) == ["max_wait_timeout"]


@pytest.mark.parametrize("key", ["acks", "request.required.acks"])
@pytest.mark.parametrize(
    "kafka", [{"enable.idempotence": True}, {"transactional.id": "tx"}]
)
def test_acks_of_an_idempotent_producer_can_not_be_changed(make_producer, kafka, key):
    """Fewer acks would break the guarantee of idempotence."""
    producer = make_producer(kafka)

    errors = problems(producer, topic_config={key: 0})

    assert "acks=all" in errors[f"topic_config.{key}"]
    plain = make_producer({"enable.idempotence": "false"})
    assert plain.variant(topic_config={key: 0}) is not None


def test_number_of_connections_is_limited(make_producer):
    """The 17th topic configuration is refused; the earlier ones stay usable."""
    producer = make_producer()
    for number in range(16):
        producer.variant(topic_config={"message.timeout.ms": 1_000 + number})

    errors = problems(producer, topic_config={"message.timeout.ms": 2_000})

    assert "16" in errors["topic_config"]
    assert producer.variant(topic_config={"message.timeout.ms": 1_003}) is not None
    assert "topic_configs=16" in repr(producer)


def test_unconfigured_and_closed_producers_have_no_variants(make_producer):
    """A variant of an unusable producer is refused."""
    with pytest.raises(ProducerNotConfiguredError):
        Producer().variant()
    producer = make_producer()
    producer.close()
    with pytest.raises(ProducerClosedError):
        producer.variant(topic_config={"acks": 1})
    with pytest.raises(ProducerClosedError):
        producer.variant(max_wait_timeout=1.0)


# -- shared life cycle --------------------------------------------------------------


def test_closing_a_variant_closes_the_producer(world, make_producer):
    """They are one producer; all of its connections end."""
    producer = make_producer()
    variant = producer.variant(topic_config={"acks": 1})
    handles = send(producer, 10) + send(variant, 10)

    variant.close()

    assert (producer.status, producer.queue_size) == ("closed", 0)
    assert all(each.report for each in handles)
    for sender in (producer, variant):
        with pytest.raises(ProducerClosedError):
            send(sender)


def test_purge_and_disconnect_reach_all_connections(world, mock_cluster, make_producer):
    """Purge, disconnect and close of a producer include its variants."""
    producer = make_producer()
    variant = producer.variant(topic_config={"acks": 1})
    assert all(each.wait(LONG) for each in send(producer) + send(variant))
    mock_cluster.round_trip(1.0)
    handles = send(producer) + send(variant)
    assert variant.queue_size == producer.queue_size == 2

    variant.purge()
    mock_cluster.round_trip(0)

    assert all(each.error for each in handles)
    assert producer.disconnect() is True
    assert producer._core._connections.clients == []
    assert variant.produce_sync(topic="t", payload=b"x")
    assert producer.status == "connected"


@pytest.mark.slow
def test_a_collected_variant_closes_nothing(world, make_producer):
    """Only the last of a producer and its variants closes the connections."""
    producer = make_producer()
    producer.variant(topic_config={"acks": 1}).produce_sync(topic="t", payload=b"x")
    gc.collect()

    assert producer.status == "connected"
    assert producer.produce_sync(topic="t", payload=b"x")


@pytest.mark.slow
def test_a_variant_keeps_its_producer_open(world, mock_cluster):
    """A reference to the variant alone keeps the connection."""
    variant = Producer({"bootstrap.servers": mock_cluster.bootstrap_servers}).variant(
        max_wait_timeout=LONG
    )
    gc.collect()
    assert variant.produce_sync(topic="t", payload=b"x")

    core = weakref.ref(variant._core)
    # In a cycle, so that the garbage collector frees it.
    variant.itself = variant
    del variant
    with pytest.warns(ResourceWarning, match="never closed"):
        gc.collect()
    await_true(lambda: core() is None or core().status == "closed")


def test_variants_of_many_configurations_send_concurrently(
    world, make_producer, stored
):
    """Several connections of one producer are polled in parallel."""
    producer = make_producer()
    senders = [producer] + [
        producer.variant(topic_config={"message.timeout.ms": 10_000 + number})
        for number in range(3)
    ]
    handles = [handle for _ in range(20) for each in senders for handle in send(each)]

    assert all(each.wait(LONG) for each in handles)
    assert stored("t") == 80
    assert re.search("queue_size=0 topic_configs=3", repr(producer))
