"""Log lines and events of a real broker's refusals, without secrets."""

import logging

import pytest

from greendrop import DeliveryError, Producer
from greendrop.events import EVENTS
from greendrop.listeners.log import LogListener

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hub")]

PASSWORD = "not-the-P4ssw0rd"


def plain(kafka):
    """Use a wrong password with PLAIN."""
    return {
        "bootstrap.servers": kafka.secure_listeners.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": kafka.secure_listeners.plain.user,
        "sasl.password": PASSWORD,
    }


def scram(kafka):
    """Use a wrong password with SCRAM."""
    user = kafka.secure_listeners.scram.user
    changed = {"sasl.mechanism": "SCRAM-SHA-256", "sasl.username": user}
    return plain(kafka) | changed


def wrong_authority(kafka):
    """Trust an authority that has not certified the broker."""
    return {
        "bootstrap.servers": kafka.secure_listeners.tls_bootstrap_servers,
        "security.protocol": "SSL",
        "ssl.ca.location": str(kafka.secure_listeners.client_cert_file),
        "ssl.key.password": PASSWORD,
    }


@pytest.fixture
def logged(caplog, capfd):
    """Configure logging; return the log, and a function that joins all output."""
    caplog.set_level(1, "greendrop")
    return caplog, lambda: f"{caplog.text} {capfd.readouterr()}"


@pytest.mark.parametrize(
    ("refused", "kind"),
    [(plain, "authentication"), (scram, "authentication"), (wrong_authority, "tls")],
)
@pytest.mark.parametrize("debug", [{}, {"debug": "all"}], ids=["quiet", "debug"])
def test_refusals_are_classified_without_secrets(
    kafka_secure, logged, refused, kind, debug
):
    """A refusal is logged once or twice, by its kind and without the password."""
    said = []
    caplog, text = logged
    kafka = {
        **refused(kafka_secure),
        **debug,
        "message.timeout.ms": 2_000,
        "reconnect.backoff.max.ms": 100,
    }
    with Producer(kafka) as producer:
        producer.monitor.subscribe(LogListener(log_messages=True))
        for name in EVENTS:
            producer.monitor.subscribe(name, lambda e: said.append(str(e.payload)))
        with pytest.raises(DeliveryError) as raised:
            producer.produce_sync(topic="refused", payload=b"x")

    lines = [
        record.greendrop
        for record in caplog.records
        if record.name == "greendrop.librdkafka" and record.levelno >= logging.INFO
    ]
    kinds = [line["kind"] for line in lines if line["kind"] != "other"]
    # librdkafka has two texts for a certificate that it does not trust.
    assert kinds in ([kind], [kind, kind])
    everything = f"{said} {raised.value!r} {text()}"
    assert PASSWORD not in everything
    assert f"kind={kind}" in everything
