"""What the doctor finds with brokers: can they be reached, do they let one in."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from typing import TYPE_CHECKING, Any

from greendrop._verdicts import Verdicts
from greendrop.cli._finding import Finding
from greendrop.config import BOOTSTRAP
from greendrop.errors import GreendropError
from greendrop.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from greendrop.config import Settings

#: Seconds for a connection.
_CONNECT = 3.0
_PORT = 9092
#: Messages of one check.
_PROBES = 10

#: What a complaint of librdkafka's often means.
_PROTOCOL = (
    "is security.protocol right? The broker may want TLS or a login at this port, or"
    " speak no TLS there"
)
_HINTS = {
    "authentication": "user, password or mechanism are wrong (sasl.username,"
    " sasl.password, sasl.mechanism), or the user has no access",
    "certificate verify failed": "the broker's certificate is signed by an authority"
    " that is not trusted here: set ssl.ca.location",
    "certificate": "the broker wants a certificate of the client's:"
    " ssl.certificate.location and ssl.key.location",
    "ssl handshake": _PROTOCOL,
    "disconnected": _PROTOCOL,
    "apiversion": _PROTOCOL,
    "unknown": "create it, or let the brokers create topics"
    " (auto.create.topics.enable)",
}


def settings(of: Settings) -> Iterator[Finding]:
    """Tell the settings, without secrets, and what is unusual about them."""
    shown: Any = of.redacted()["kafka"]
    for key, value in sorted(shown.items()):
        yield Finding("settings", key, "ok", str(value))
    kafka = of.kafka
    if kafka.get("acks", kafka.get("request.required.acks")) in ("0", "1"):
        yield Finding(
            "settings",
            "acks",
            "note",
            "not all replicas need to have a message",
            "an acknowledged message is lost if a broker dies at the wrong moment;"
            " acks=all is the default",
        )
    if of.linger_is_users:
        yield Finding(
            "settings",
            "linger.ms",
            "note",
            "each message that is waited for takes so long, at least",
            "leave it out: greendrop gathers what greenlets send by itself",
        )


def reach(of: Settings, timeout: float) -> Iterator[Finding]:
    """Connect, log in and ask for metadata."""
    addresses = next(filter(None, map(of.kafka.get, BOOTSTRAP)), "").split(",")
    findings = [_connects("broker", each.strip()) for each in addresses]
    reached = any(each.state == "ok" for each in findings)
    for each in findings:
        # One of them is enough: it tells of the others.
        passable = reached and each.state == "failed"
        yield each._replace(state="note") if passable else each
    if not reached:
        return
    metadata, reason, seconds = _metadata(of, timeout)
    if metadata is None:
        yield Finding("brokers", "metadata", "failed", reason, _hint(reason))
        return
    yield Finding("brokers", "login", "ok", _login(of.kafka))
    brokers = list(metadata.brokers.values())
    yield Finding(
        "brokers",
        "metadata",
        "ok",
        f"{len(brokers)} brokers, {len(metadata.topics)} topics, cluster"
        f" {metadata.cluster_id or '(unnamed)'}; {seconds * 1000:.0f} ms",
    )
    for broker in brokers:
        finding = _connects(f"broker {broker.id}", f"{broker.host}:{broker.port}")
        if finding.state != "ok":
            finding = finding._replace(
                advice="that is the address which the cluster itself gave"
                " (advertised.listeners); it must be reachable from here"
            )
        yield finding


def _connects(name: str, address: str) -> Finding:
    host, port = _host_and_port(address)
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), _CONNECT):
            taken = time.monotonic() - began
    except socket.gaierror as error:
        return Finding(
            "brokers",
            name,
            "failed",
            f"{address}: {error.strerror}",
            "no such host is known here; is the name right, and the DNS?",
        )
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Finding(
            "brokers",
            name,
            "failed",
            f"{address}: {reason}",
            "nothing answers there: is the broker up, the port right, and"
            " no firewall in between?",
        )
    text = f"{address} takes connections ({taken * 1000:.1f} ms)"
    return Finding("brokers", name, "ok", text)


def _host_and_port(address: str) -> tuple[str, int]:
    bare = address.rpartition("://")[2]
    host, colon, port = bare.rpartition(":")
    if not colon or not port.isdigit():
        return bare.strip("[]"), _PORT
    return host.strip("[]"), int(port)


class _Log:
    """What confluent-kafka takes for a logger."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts

    def log(self, _level: int, form: str, *args: object) -> None:
        self._verdicts.read_log(form % args if args else form)


def _metadata(of: Settings, timeout: float) -> tuple[Any, str, float]:
    """Ask the brokers; give what they said, or the reason why not, and seconds."""
    import confluent_kafka
    from confluent_kafka.admin import AdminClient

    verdicts = Verdicts(
        fatal_error=lambda: None,
        name_of=lambda code: str(confluent_kafka.KafkaError(code).name()),
        censored=of.censored,
    )
    conf: dict[str, Any] = {**of.kafka, "error_cb": verdicts.complaint}
    admin = AdminClient(conf, logger=_Log(verdicts))
    began = time.monotonic()
    metadata = None
    with contextlib.suppress(confluent_kafka.KafkaException):
        metadata = admin.list_topics(timeout=timeout)
    taken = time.monotonic() - began
    while admin.poll(0):
        pass
    return metadata, verdicts.last_error or f"no answer within {timeout:g} s", taken


def _login(kafka: Mapping[str, str]) -> str:
    protocol = kafka.get("security.protocol", "plaintext").upper()
    if not protocol.startswith("SASL"):
        return f"none is needed ({protocol})"
    mechanism = kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", "GSSAPI"))
    return f"by {mechanism} over {protocol}"


def _hint(text: str) -> str:
    return next((hint for sign, hint in _HINTS.items() if sign in text.lower()), "")


def round_trip(of: Settings, topic: str | None, timeout: float) -> Iterator[Finding]:
    """Send some messages, one after the other."""
    if topic is None:
        yield Finding(
            "round trip",
            "messages",
            "ok",
            "none was sent (-t TOPIC sends ten, and times them)",
        )
        return
    limit = {"message.timeout.ms": str(int(timeout * 1000))}
    kafka = {**of.kafka, **limit}
    kafka.pop("delivery.timeout.ms", None)
    if kafka.pop("transactional.id", None) is not None:
        yield Finding(
            "round trip",
            "transactional.id",
            "ok",
            "left out here, or the program that uses it would be fenced",
        )
    taken: list[float] = []
    producer = Producer(kafka=kafka, max_wait_timeout=timeout + 2)
    try:
        for _ in range(_PROBES):
            began = time.monotonic()
            report = producer.produce_sync(
                topic=topic, key="greendrop doctor", payload=b"greendrop doctor"
            )
            taken.append((time.monotonic() - began) * 1000)
        text = (
            f"{_PROBES} to {topic!r}, the last one at {report.partition}@"
            f"{report.offset}; the first took {taken[0]:.1f} ms, the others"
            f" {statistics.median(taken[1:]):.2f} ms"
        )
        yield Finding("round trip", "messages", "ok", text)
        yield Finding("round trip", "served by", "ok", str(producer.polling))
    except (GreendropError, ValueError) as error:
        yield Finding("round trip", "messages", "failed", str(error), _hint(str(error)))
    finally:
        producer.close(force=True)
