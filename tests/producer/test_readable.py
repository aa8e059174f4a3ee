"""Read-only attributes of a producer, and why it can't be copied."""

import copy
import pickle

import pytest

from greendrop import Producer, ProducerPool

NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}


def test_settings_can_be_read_without_secrets():
    """All settings are listed by name, with librdkafka's, and no password."""
    kafka = {
        **NOWHERE,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "user",
        "sasl.password": "a secret",
    }
    with Producer(kafka, max_wait_timeout=7, id="mine") as producer:
        settings = producer.settings

        assert settings["id"] == "mine"
        assert settings["max_wait_timeout"] == 7
        assert settings["kafka"]["bootstrap.servers"] == "127.0.0.1:1"
        assert settings["kafka"]["sasl.password"] == "[hidden]"
        assert "a secret" not in repr(settings)
        with pytest.raises(TypeError):
            settings["id"] = "yours"


def test_variants_show_their_own_settings():
    """A variant has its own timeout and topic configuration, and shared settings."""
    with Producer(NOWHERE, max_wait_timeout=7) as producer:
        variant = producer.variant(max_wait_timeout=2, topic_config={"acks": 1})

        assert producer.max_wait_timeout == 7
        assert producer.topic_config == {}
        assert variant.max_wait_timeout == 2
        assert variant.topic_config == {"acks": "1"}
        assert variant.settings == producer.settings
        with pytest.raises(TypeError):
            variant.topic_config["acks"] = "all"


@pytest.mark.parametrize(
    ("kafka", "idempotent", "transactional"),
    [
        ({}, False, False),
        ({"enable.idempotence": True}, True, False),
        ({"transactional.id": "mine"}, True, True),
    ],
)
def test_a_producer_shows_whether_it_is_idempotent_or_transactional(
    kafka, idempotent, transactional
):
    """The values follow the configuration; a `transactional.id` implies both."""
    with Producer({**NOWHERE, **kafka}) as producer:
        assert producer.idempotent is idempotent
        assert producer.transactional is transactional


def test_a_producer_without_settings_can_be_read():
    """Before `setup` the values are empty, and no error is raised."""
    producer = Producer()

    assert producer.settings == {}
    assert producer.topic_config == {}
    assert producer.max_wait_timeout is None
    assert producer.idempotent is False
    assert producer.transactional is False
    assert producer.disconnectable is False
    assert producer.in_flight == 0


def test_in_flight_counts_messages_without_an_outcome(world, make_producer):
    """Buffered and delivered messages are not in flight."""
    producer = make_producer()
    producer.buffer(topic="events", payload=b"buffered")
    before = producer.in_flight
    handle = producer.produce_async(topic="events", payload=b"1")
    during = producer.in_flight
    handle.wait(20)

    assert (before, during, producer.in_flight) == (0, 1, 0)
    producer.purge()


def test_a_producer_shows_whether_it_would_disconnect(world, connected):
    """It would if it is connected, with an empty buffer and no open transaction."""
    producer = connected()
    unused = Producer(NOWHERE)

    idle = producer.disconnectable
    with producer.transaction():
        in_transaction = producer.disconnectable
    producer.buffer(topic="events", payload=b"1")
    buffered = producer.disconnectable
    producer.purge()

    assert (idle, in_transaction, buffered) == (True, False, False)
    assert unused.disconnectable is False
    assert producer.disconnectable is True
    assert producer.disconnect() is True
    assert producer.disconnectable is False
    unused.close()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_producers_and_their_parts_can_not_be_pickled_or_copied(duplicate):
    """The error says to make one in each process; nothing else happens."""
    kafka = {**NOWHERE, "transactional.id": "mine"}
    with (
        Producer(kafka) as producer,
        ProducerPool(lambda: Producer(NOWHERE), size=1) as pool,
    ):
        made = {
            "Producer": producer,
            "ProducerPool": pool,
            "DeliveryScope": producer.scope(),
            "Transaction": producer.transaction(),
        }
        for name, each in made.items():
            with pytest.raises(TypeError, match=rf"a {name} can't be .* each process"):
                duplicate(each)
