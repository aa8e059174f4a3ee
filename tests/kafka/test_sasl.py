"""Long-lived producers that have logged in with a password."""

from __future__ import annotations

import time

import pytest

from greendrop import Producer
from tests.servers import reading

pytestmark = pytest.mark.slow


@pytest.fixture
def login(kafka_secure):
    """Return librdkafka's configuration for the broker's SASL listener."""
    secure = kafka_secure.secure_listeners
    return {
        "bootstrap.servers": secure.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": secure.plain.user,
        "sasl.password": secure.plain.password,
    }


@pytest.mark.parametrize("statistics", [False, True], ids=["", "statistics"])
def test_a_producer_that_rests_over_sasl_still_sends(
    pause, kafka_secure, topic, login, statistics
):
    """Over SASL/PLAIN a producer sends after pauses as it did before them."""
    heard = []
    with Producer(kafka=login | {"statistics.interval.ms": 100}) as producer:
        producer.monitor.subscribe("error.occurred", heard.append)
        if statistics:
            producer.monitor.subscribe("statistics.emitted", lambda _: None)
        for number in range(5):
            started_at = time.monotonic()
            producer.produce_sync(topic=topic, payload=f"one {number}")
            producer.produce_many_sync([{"topic": topic, "payload": f"many {number}"}])
            assert time.monotonic() - started_at < 10
            pause(0.3 if number < 4 else 1.5)

    assert heard == []
    records = reading.read_topic(kafka_secure.bootstrap_servers, topic)
    expected = {b"%s %d" % (kind, n) for kind in (b"one", b"many") for n in range(5)}
    assert {record.value for record in records} == expected
