"""Checks of `greendrop doctor` that need a broker: connection, login, messages."""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import time
from typing import TYPE_CHECKING, Any

from greendrop import _wording
from greendrop._librdkafka import error_codes
from greendrop._librdkafka.errors import ErrorTranslator
from greendrop.cli._finding import Finding
from greendrop.cli._shared import servers
from greendrop.errors import GreendropError
from greendrop.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from greendrop.config.settings import Settings

#: Seconds for a connection, and then for an answer on it.
_CONNECT_TIMEOUT, _ANSWER_TIMEOUT = 3.0, 1.5
_DEFAULT_PORT = 9092
#: Messages of the round-trip check.
_MESSAGES = 10
#: Seconds for metadata where no broker is expected to answer. Apache Kafka answers a
#: wrong password after 0.1 to 0.3 s.
_LAST_ATTEMPT = 1.0

#: ApiVersions, version 0: every broker since 0.10 answers it, also before a login.
_CORRELATION_ID = 0x6472_6F70
_REQUEST = struct.pack(">hhih9s", 18, 0, _CORRELATION_ID, 9, b"greendrop")
_REQUEST = struct.pack(">i", len(_REQUEST)) + _REQUEST
#: Size and correlation id.
_ANSWER_SIZE = 8

_PROTOCOL = (
    "is security.protocol right? The broker may expect TLS or a login at this port, or"
    " speak no TLS there"
)
_NO_ACCESS = "an administrator of the cluster has to allow it (kafka-acls)"
#: Advice by a part of librdkafka's error text, in lower case. The first match counts.
_HINTS = {
    "topic_authorization_failed": "the user may not write to the topic, or must name"
    f" another one; {_NO_ACCESS}",
    "transactional_id_authorization_failed": "the user may not use that"
    f" transactional.id; {_NO_ACCESS}",
    "cluster_authorization_failed": "the user may not do that in this cluster"
    f" (enable.idempotence needs IdempotentWrite); {_NO_ACCESS}",
    "not valid in current sasl state": "this port asks for no login; is it the port for"
    " that security.protocol?",
    "authentication": "user, password or mechanism are wrong (sasl.username,"
    " sasl.password, sasl.mechanism), or the user has no access",
    "no provider for sasl mechanism": "set sasl.mechanism to PLAIN, SCRAM-SHA-256,"
    " SCRAM-SHA-512 or OAUTHBEARER; without it librdkafka chooses GSSAPI, which"
    " confluent-kafka's wheels don't contain",
    "certificate verify failed": "the broker's certificate is signed by an authority"
    " that is not trusted here (set ssl.ca.location), has expired, or is for another"
    " host name",
    "certificate": "the broker may require a certificate of the client:"
    " ssl.certificate.location and ssl.key.location",
    "ssl handshake": _PROTOCOL,
    "disconnected": _PROTOCOL,
    "apiversion": _PROTOCOL,
    "not_enough_replicas": "fewer replicas are in sync than min.insync.replicas asks"
    " for: is a broker down?",
    "policy_violation": "a policy of the cluster forbids it",
    "unknown": "create the topic, or let the brokers create topics"
    " (auto.create.topics.enable)",
    "connection refused": "is the broker running, and the port right?",
}


def check_settings(settings: Settings) -> Iterator[Finding]:
    """List the settings, without secrets, and comment on unusual ones."""
    shown: Any = settings.redacted()["kafka"]
    for key, value in sorted(shown.items()):
        yield Finding("settings", key, "ok", str(value))
    kafka = settings.kafka
    if kafka.get("acks", kafka.get("request.required.acks")) in ("0", "1"):
        yield Finding(
            "settings",
            "acks",
            "note",
            "a message is acknowledged before all in-sync replicas have it",
            "an acknowledged message is lost if a broker dies at the wrong moment;"
            " acks=all is the default",
        )
    if settings.user_sets_linger:
        yield Finding(
            "settings",
            "linger.ms",
            "note",
            "each delivery takes at least this long",
            "remove it: greendrop batches the messages of greenlets without it",
        )


def check_connection(
    settings: Settings, timeout: float
) -> Generator[Finding, None, bool]:
    """Connect, log in and request metadata; return whether the brokers answered."""
    tls = "SSL" in settings.kafka.get("security.protocol", "").upper()
    addresses = servers(settings.kafka).split(",")
    findings = [_check_address("broker", each.strip(), tls=tls) for each in addresses]
    reached = any(each.state == "ok" for each in findings)
    for each in findings:
        # One address is enough: its broker names the others.
        passable = reached and each.state == "failed"
        yield each._replace(state="note") if passable else each
    if not reached and not any(each.name.startswith("protocol") for each in findings):
        return False
    # Where no broker has answered, librdkafka only gets the time for a second opinion.
    metadata = yield from _check_metadata(
        settings, timeout if reached else min(timeout, _LAST_ATTEMPT)
    )
    if metadata is None:
        return False
    for broker in metadata.brokers.values():
        address = f"{broker.host}:{broker.port}"
        finding = _check_address(f"broker {broker.id}", address, tls=tls)
        if finding.state != "ok":
            finding = finding._replace(
                advice="the cluster itself names this address (advertised.listeners);"
                " it must be reachable from here"
            )
        yield finding
    return True


def _check_metadata(
    settings: Settings, timeout: float
) -> Generator[Finding, None, Any]:
    import confluent_kafka

    try:
        metadata, reason, elapsed = _metadata(settings, timeout)
    except confluent_kafka.KafkaException as error:
        # Some settings are only checked when a client is created.
        text = settings.redact(error.args[0].str())
        yield Finding("settings", "librdkafka", "failed", text, _hint(text))
        return None
    if metadata is None:
        yield Finding("brokers", "metadata", "failed", reason, _hint(reason))
        return None
    yield Finding("brokers", "login", "ok", _login(settings.kafka))
    yield Finding(
        "brokers",
        "metadata",
        "ok",
        f"{_wording.count(len(metadata.brokers), 'broker')},"
        f" {_wording.count(len(metadata.topics), 'topic')}, cluster"
        f" {metadata.cluster_id or '(unnamed)'}; {elapsed * 1000:.0f} ms",
    )
    return metadata


def _check_address(name: str, address: str, *, tls: bool) -> Finding:
    """Check that something listens at an address and speaks Kafka's protocol."""
    host, port = _host_and_port(address)
    started = time.monotonic()
    try:
        with socket.create_connection((host, port), _CONNECT_TIMEOUT) as connection:
            elapsed = time.monotonic() - started
            problem = _tls_problem(connection, host) if tls else _problem(connection)
    except socket.gaierror as error:
        return Finding(
            "brokers",
            name,
            "failed",
            f"{address}: {error.strerror}",
            "this host name is unknown here; is it spelled right, and does DNS work?",
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
    if problem is not None:
        text, advice = problem
        return Finding(
            "brokers", f"protocol of {name}", "failed", f"{address} {text}", advice
        )
    text = f"{address} accepts connections ({elapsed * 1000:.1f} ms)"
    return Finding("brokers", name, "ok", text)


def _host_and_port(address: str) -> tuple[str, int]:
    bare = address.rpartition("://")[2]
    host, colon, port = bare.rpartition(":")
    if not colon or not port.isdigit():
        return bare.strip("[]"), _DEFAULT_PORT
    return host.strip("[]"), int(port)


def _problem(connection: socket.socket) -> tuple[str, str] | None:
    """Send a Kafka request; return what is wrong with the answer, and advice."""
    answer = b""
    try:
        connection.settimeout(_ANSWER_TIMEOUT)
        connection.sendall(_REQUEST)
        while len(answer) < _ANSWER_SIZE and (received := connection.recv(64)):
            answer += received
    except TimeoutError:
        return (
            f"accepts connections, but did not answer within {_ANSWER_TIMEOUT:g} s",
            "is that Kafka's port? A broker that hangs looks the same",
        )
    except OSError:  # a reset counts as no answer
        answer = b""
    if answer[4:_ANSWER_SIZE] == struct.pack(">i", _CORRELATION_ID):
        return None
    if answer.startswith(b"HTTP"):
        return "is an HTTP server", "Kafka listens at another port, often 9092"
    if answer.startswith(b"\x15\x03"):  # an alert of TLS
        return "expects TLS", "set security.protocol to SSL or SASL_SSL"
    if not answer:
        return "closes the connection without an answer", _PROTOCOL
    return "answers, but not as Kafka does", "is that Kafka's port?"


def _tls_problem(connection: socket.socket, host: str) -> tuple[str, str] | None:
    """Start TLS without checking certificates; return the problem, and advice."""
    import ssl  # late: `--gevent` patches it before its first import

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection.settimeout(_ANSWER_TIMEOUT)
    try:
        context.wrap_socket(connection, server_hostname=host).close()
    except TimeoutError:
        reason = f"no answer within {_ANSWER_TIMEOUT:g} s"
    except OSError as error:
        reason = getattr(error, "reason", None) or str(error)
    else:
        return None
    return (
        f"does not speak TLS ({reason})",
        "security.protocol asks for TLS; is that the port of a TLS listener?",
    )


class _Logger:
    """The logger of an `AdminClient`: passes librdkafka's log lines on.

    Args:
        receiver: The object that reads the lines.
    """

    def __init__(self, receiver: ErrorTranslator) -> None:
        self._receiver = receiver

    def log(self, _level: int, form: str, *args: object) -> None:
        self._receiver.note_log_line(form % args if args else form)


def _metadata(settings: Settings, timeout: float) -> tuple[Any, str, float]:
    """Request the cluster's metadata.

    Returns:
        The metadata or None, the reason why there is none, and the elapsed seconds.

    Raises:
        KafkaException: librdkafka can't create a client with these settings.
    """
    import confluent_kafka
    from confluent_kafka.admin import AdminClient

    translator = ErrorTranslator(settings)
    all_down = False

    def on_error(error: confluent_kafka.KafkaError) -> None:
        nonlocal all_down
        all_down = all_down or error.code() == error_codes.ALL_BROKERS_DOWN
        translator.client_error(error)

    conf: dict[str, Any] = {**settings.kafka, "error_cb": on_error}
    admin = AdminClient(conf, logger=_Logger(translator))
    started = time.monotonic()
    metadata, elapsed, limit = None, 0.0, timeout
    while metadata is None and elapsed < limit:
        with contextlib.suppress(confluent_kafka.KafkaException):
            metadata = admin.list_topics(timeout=min(timeout - elapsed, 0.5))
        elapsed = time.monotonic() - started
        while admin.poll(0):
            pass
        if all_down:  # the reason is known by then: waiting longer is no use
            limit = min(timeout, _LAST_ATTEMPT)
    return metadata, translator.last_error or f"no answer within {timeout:g} s", elapsed


def _login(kafka: Mapping[str, str]) -> str:
    protocol = kafka.get("security.protocol", "plaintext").upper()
    if not protocol.startswith("SASL"):
        return f"none is needed ({protocol})"
    mechanism = kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", "GSSAPI"))
    return f"by {mechanism} over {protocol}"


def _hint(text: str) -> str:
    return next((hint for part, hint in _HINTS.items() if part in text.lower()), "")


def check_round_trip(
    settings: Settings, topic: str | None, timeout: float
) -> Iterator[Finding]:
    """Send some messages, one after the other, and measure their latency."""
    if topic is None:
        yield Finding(
            "round trip",
            "messages",
            "ok",
            f"none were sent (-t TOPIC sends {_MESSAGES}, and measures their latency)",
        )
        return
    limit = {"message.timeout.ms": str(int(timeout * 1000))}
    kafka = {**settings.kafka, **limit}
    kafka.pop("delivery.timeout.ms", None)
    if kafka.pop("transactional.id", None) is not None:
        yield Finding(
            "round trip",
            "transactional.id",
            "ok",
            "left out here, or the program that uses it would be fenced",
        )
    latencies: list[float] = []
    producer = Producer(kafka=kafka, max_wait_timeout=timeout + 2)
    try:
        for _ in range(_MESSAGES):
            started = time.monotonic()
            report = producer.produce_sync(
                topic=topic, key="greendrop doctor", payload=b"greendrop doctor"
            )
            latencies.append((time.monotonic() - started) * 1000)
        text = (
            f"{_MESSAGES} to {topic!r}, the last one at {report.partition}@"
            f"{report.offset}; the first took {latencies[0]:.1f} ms, the others"
            f" {statistics.median(latencies[1:]):.2f} ms"
        )
        yield Finding("round trip", "messages", "ok", text)
        yield Finding("round trip", "polled by", "ok", str(producer.polling))
    except (GreendropError, ValueError) as error:
        yield Finding("round trip", "messages", "failed", str(error), _hint(str(error)))
    finally:
        producer.close(force=True)
