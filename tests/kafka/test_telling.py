"""What a real broker's refusals look like in log lines and events, without secrets."""

import logging

import pytest

from greendrop import DeliveryError, Producer
from greendrop.events import EVENTS
from greendrop.listeners.log import LogListener

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hub")]

PASSWORD = "not-the-P4ssw0rd"


def plain(kafka):
    """Send a wrong password, as it is."""
    return {
        "bootstrap.servers": kafka.secure_listeners.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": kafka.secure_listeners.plain.user,
        "sasl.password": PASSWORD,
    }


def scram(kafka):
    """Prove that one knows a wrong password."""
    user = kafka.secure_listeners.scram.user
    changed = {"sasl.mechanism": "SCRAM-SHA-256", "sasl.username": user}
    return plain(kafka) | changed


def wrong_authority(kafka):
    """Trust somebody who has not certified the broker."""
    return {
        "bootstrap.servers": kafka.secure_listeners.tls_bootstrap_servers,
        "security.protocol": "SSL",
        "ssl.ca.location": str(kafka.secure_listeners.client_cert_file),
        "ssl.key.password": PASSWORD,
    }


@pytest.fixture
def logged(caplog, capfd):
    """Have all logged; give the log, and what makes one text of what came out."""
    caplog.set_level(1, "greendrop")
    return caplog, lambda: f"{caplog.text} {capfd.readouterr()}"


@pytest.mark.parametrize(
    ("refused", "kind"),
    [(plain, "authentication"), (scram, "authentication"), (wrong_authority, "tls")],
)
@pytest.mark.parametrize("debug", [{}, {"debug": "all"}], ids=["quiet", "debug"])
def test_refusals_are_classified_and_tell_no_secret(
    kafka_secure, logged, refused, kind, debug
):
    """A wrong password is a line of its kind, not twenty; the password is nowhere."""
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
    # librdkafka has two ways to say that it does not trust a certificate.
    assert kinds in ([kind], [kind, kind])
    everything = f"{said} {raised.value!r} {text()}"
    assert PASSWORD not in everything
    assert f"kind={kind}" in everything
