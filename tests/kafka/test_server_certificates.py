"""Certificates of a server that have expired, or are replaced while a producer runs."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
import trustme

from greendrop import DeliveryError, Producer
from tests.kafka.test_servers import tls
from tests.tasks import await_true

pytestmark = pytest.mark.slow

#: Seconds until librdkafka gives a message up. The reason has to come much sooner.
GIVES_UP = 60.0
#: Seconds for a node to start on a busy machine, and for a client to come back to it.
LONG = 90.0
BACK_SOON = {"reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 500}


class Server:
    """The broker with TLS, which can be started again with other certificates."""

    def __init__(self, cluster):
        self.listeners = cluster.secure_listeners
        self._node = cluster.nodes[0]

    def restart(self, **certificate):
        """Start it again with a new certificate; see `Certificates`."""
        self._node.kill()
        self.listeners.install_server_certificate(**certificate)
        self._node.start()


@pytest.fixture
def server(kafka_secure):
    """Return the broker, which has a valid certificate again after the test."""
    server = Server(kafka_secure)
    yield server
    server.restart()


@pytest.fixture
def produce(server):
    """Make a producer that checks the server's certificate, and keep its errors."""
    made = []

    def make(**kafka):
        keys = tls(server.listeners) | BACK_SOON | kafka
        keys |= {"message.timeout.ms": int(GIVES_UP * 1000)}
        producer = Producer(kafka=keys)
        producer.errors = []
        producer.monitor.subscribe(
            "error.occurred", lambda event: producer.errors.append(str(event["error"]))
        )
        made.append(producer)
        return producer

    yield make
    for producer in made:
        producer.close(force=True)


def await_reason(producer, text):
    """Wait until an error with a text was emitted; return the seconds."""
    started = time.monotonic()
    await_true(lambda: any(text in each for each in producer.errors), LONG)
    return time.monotonic() - started


def test_an_expired_certificate_is_named_at_once(server, produce, topic):
    """The reason comes long before the message fails; a valid one ends the trouble."""
    server.restart(not_after=datetime.now(timezone.utc) - timedelta(days=1))
    producer = produce()

    handle = producer.produce_async(topic=topic, payload=b"waits")
    seconds = await_reason(producer, "the certificate may also have expired")
    was_pending = not handle.done
    server.restart()
    report = handle.wait(LONG)

    assert was_pending
    assert seconds < GIVES_UP / 2
    assert report.offset == 0


def test_a_certificate_of_the_same_authority_is_accepted(server, produce, topic):
    """The producer connects again by itself, and delivers what was sent meanwhile."""
    producer = produce()
    producer.produce_sync(topic=topic, payload=b"before", partition=0)

    server.restart()
    report = producer.produce_async(topic=topic, payload=b"after", partition=0).wait(
        LONG
    )

    assert report.offset == 1


def test_a_certificate_of_another_authority_needs_its_file(
    server, produce, topic, tmp_path
):
    """Messages fail with the reason; after `disconnect` the new file is read."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(server.listeners.ca_file.read_bytes())
    producer = produce(**{"ssl.ca.location": str(ca_file)})
    producer.produce_sync(topic=topic, payload=b"before", partition=0)

    another = trustme.CA()
    server.restart(ca=another)
    handle = producer.produce_async(topic=topic, payload=b"refused", partition=0)
    seconds = await_reason(producer, "certificate verify failed")
    with pytest.raises(DeliveryError, match="certificate verify failed"):
        handle.wait(GIVES_UP + LONG)
    ca_file.write_bytes(another.cert_pem.bytes())
    assert producer.disconnect()
    report = producer.produce_sync(topic=topic, payload=b"after", partition=0)

    assert seconds < GIVES_UP / 2
    assert report.offset == 1
