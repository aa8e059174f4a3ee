"""Tracing with OpenTelemetry: a span for each message, until its delivery report.

Needs `opentelemetry-api` only, and follows the semantic conventions for messaging,
1.44. Attribute names are literals here, since the package that defines them keeps
moving them.
"""

from __future__ import annotations

import contextlib
import time
from importlib.metadata import version
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakSet

from opentelemetry import propagate
from opentelemetry import trace as api
from opentelemetry.context import Context, get_value
from opentelemetry.propagators.textmap import Getter, Setter

from greendrop.errors import EventNotRegisteredError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from greendrop.config.settings import Settings
    from greendrop.events import Event, Monitor
    from greendrop.message import HeaderValue, Message
    from greendrop.producer import Producer

    _Pairs = list[tuple[str, HeaderValue]]

__all__ = ["trace"]

_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
#: Maximum links of a batch's span. The SDK's own limit is 128 by default.
_MAX_LINKS = 1_000
#: Fields of propagators that do not identify the creator of a message.
_BAGGAGE = frozenset({"baggage"})

# The monitors of producers that are traced already.
_traced: WeakSet[Monitor] = WeakSet()


def trace(
    producer: Producer,
    *,
    tracer_provider: api.TracerProvider | None = None,
    message_keys: bool = True,
) -> None:
    """Trace all messages that a producer and its variants send from now on.

    Each message gets a span `send TOPIC` of kind PRODUCER. The span starts when the
    message is queued, as a child of the caller's current span, and ends with the
    delivery report, or when the message is refused. The configured propagators (W3C's
    by default) write its context into the headers of the message.

    A message whose headers already have a context keeps it: its span is of kind CLIENT,
    and has a link to that context. A batch has a span of its own, of kind CLIENT, with
    links to the spans of its messages; it ends with the last of them.

    Calling it again for the same producer does nothing.

    Args:
        producer: A configured producer, at any time.
        tracer_provider: The provider of the tracer; by default the global one.
        message_keys: Record keys that are valid UTF-8 (`messaging.kafka.message.key`).

    Raises:
        ProducerNotConfiguredError: The producer has no settings yet; see
            `Producer.setup`.
    """
    if producer.monitor in _traced:
        return
    tracer = api.get_tracer(
        __name__, version("greendrop"), tracer_provider, schema_url=_SCHEMA
    )
    producer.intercept(
        lambda settings: _Tracing(tracer, settings, message_keys=message_keys)
    )
    _traced.add(producer.monitor)
    producer.monitor.subscribe("message.acknowledged", _on_acknowledged)
    producer.monitor.subscribe("error.occurred", _on_error)
    with contextlib.suppress(EventNotRegisteredError):
        producer.monitor.subscribe("message.purged", _on_failed)


class _Topic(str):
    """The name of a topic, with the span of its message.

    Each event about a message has the topic. The other values of the message belong to
    the caller.
    """

    __slots__ = ("sending",)

    #: None once the span has ended.
    sending: _Sending | None

    def __reduce__(self) -> tuple[object, ...]:
        return str, (str(self),)


class _Sending:
    """The span of a message that has no delivery report yet."""

    __slots__ = ("batch", "creation_link", "span", "started")

    def __init__(self, span: api.Span, started: int, creation_link: api.Link) -> None:
        self.span = span
        #: Nanoseconds since 1970.
        self.started = started
        #: A link to the context in the headers of the message.
        self.creation_link = creation_link
        self.batch: _Batch | None = None

    def end(self, error: BaseException | None = None) -> None:
        if error is not None:
            _fail(self.span, error)
        self.span.end()
        if self.batch is not None:
            self.batch.end_one(error)


class _Batch:
    """The span of a batch, which ends with that of its last message."""

    def __init__(self, span: api.Span, size: int) -> None:
        self._span = span
        self._size = size
        self._failed = False
        # Atomic: two threads never get the same number.
        self._ended = count(1)

    def end_one(self, error: BaseException | None) -> None:
        if error is not None and not self._failed:
            self._failed = True
            _fail(self._span, error)
        if next(self._ended) == self._size:
            self._span.end()


class _Tracing:
    """The interceptor that starts the spans."""

    def __init__(
        self, tracer: api.Tracer, settings: Settings, *, message_keys: bool
    ) -> None:
        self._tracer = tracer
        self._message_keys = message_keys
        self._attributes: dict[str, str | int | bool] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.client.id": settings.kafka["client.id"],
            **_server(settings.kafka),
        }

    def on_send(self, message: Message) -> Message:
        if _is_suppressed():
            return message
        started = time.time_ns()
        headers: _Pairs = list(message.headers or ())  # type: ignore[arg-type]  # normalized
        context_fields = _context_fields(headers)
        links = _links(headers) if context_fields else []
        span = self._tracer.start_span(
            f"send {message.topic}",
            kind=api.SpanKind.CLIENT if links else api.SpanKind.PRODUCER,
            attributes=self._attributes_of(message),
            links=links,
            start_time=started,
        )
        if not context_fields:
            context = api.set_span_in_context(span)
            propagate.inject(headers, context, _SETTER)
        topic: str = message.topic
        if span.is_recording():
            topic = _Topic(topic)
            link = links[0] if links else api.Link(span.get_span_context())
            topic.sending = _Sending(span, started, link)
        return message._replace(topic=topic, headers=headers or None)

    def _attributes_of(self, message: Message) -> dict[str, str | int | bool]:
        attributes = {
            **self._attributes,
            "messaging.destination.name": str(message.topic),
        }
        if message.partition is not None and message.partition >= 0:
            attributes["messaging.destination.partition.id"] = str(message.partition)
        if message.payload is None:
            attributes["messaging.kafka.message.tombstone"] = True
        if self._message_keys and isinstance(message.key, bytes):
            with contextlib.suppress(UnicodeDecodeError):
                attributes["messaging.kafka.message.key"] = message.key.decode()
        return attributes

    def on_batch(self, messages: Sequence[Message]) -> None:
        names = [message.topic for message in messages]
        sendings = [
            name.sending
            for name in names
            if isinstance(name, _Topic) and name.sending is not None
        ]
        if not sendings:
            return
        attributes = dict(self._attributes)
        attributes["messaging.batch.message_count"] = len(messages)
        name = "send"
        topics = set(names)
        if len(topics) == 1:
            attributes["messaging.destination.name"] = topic = str(topics.pop())
            name = f"send {topic}"
        span = self._tracer.start_span(
            name,
            kind=api.SpanKind.CLIENT,
            attributes=attributes,
            links=[sending.creation_link for sending in sendings[:_MAX_LINKS]],
            start_time=sendings[0].started,
        )
        batch = _Batch(span, len(sendings))
        for sending in sendings:
            sending.batch = batch

    def on_send_error(self, message: Message, error: BaseException) -> None:
        if sending := _take_sending(message.topic):
            sending.end(error)


def _on_acknowledged(event: Event) -> None:
    if sending := _take_sending(event["topic"]):
        span = sending.span
        partition, offset = event["partition"], event["offset"]
        span.set_attribute("messaging.destination.partition.id", str(partition))
        if offset is not None:
            span.set_attribute("messaging.kafka.offset", offset)
        sending.end()


def _on_error(event: Event) -> None:
    if event["type"] == "librdkafka.dispatch_error":
        _on_failed(event)


def _on_failed(event: Event) -> None:
    if sending := _take_sending(event["topic"]):
        sending.end(event["error"])


def _take_sending(topic: str) -> _Sending | None:
    """Take the sending out of a topic, so that its span ends only once."""
    if not isinstance(topic, _Topic):
        return None
    sending, topic.sending = topic.sending, None
    return sending


def _fail(span: api.Span, error: BaseException) -> None:
    name = getattr(error, "name", None)
    span.set_attribute("error.type", name or type(error).__qualname__)
    span.set_status(api.Status(api.StatusCode.ERROR, str(error)))


def _server(kafka: Mapping[str, str]) -> dict[str, str | int]:
    """Return the attributes of the server, if only one address is configured."""
    servers = kafka.get("bootstrap.servers") or kafka.get("metadata.broker.list")
    if not servers or "," in servers:
        return {}
    host, _, port = servers.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        return {"server.address": servers}
    return {"server.address": host.strip("[]"), "server.port": int(port)}


def _is_suppressed() -> bool:
    """Return whether the caller is an exporter, whose messages get no spans."""
    return bool(get_value(_SUPPRESS))


def _suppress_key() -> str:
    # The API package has no public name for it.
    from opentelemetry import context

    return getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")


_SUPPRESS = _suppress_key()


# --- context in headers ---------------------------------------------------------------


class _Getter(Getter["_Pairs"]):
    def get(self, carrier: _Pairs, key: str) -> list[str] | None:
        found = [_text(value) for name, value in carrier if name.lower() == key]
        return found or None

    def keys(self, carrier: _Pairs) -> list[str]:
        return [name for name, _ in carrier]


class _Setter(Setter["_Pairs"]):
    def set(self, carrier: _Pairs, key: str, value: str) -> None:
        if not any(name.lower() == key for name, _ in carrier):
            carrier.append((key, value.encode()))


_GETTER, _SETTER = _Getter(), _Setter()


def _context_fields(headers: _Pairs) -> set[str]:
    """Return the names of headers that hold a context, valid or not."""
    if not headers:
        return set()
    fields = propagate.get_global_textmap().fields - _BAGGAGE
    return fields.intersection(name.lower() for name, _ in headers)


def _links(headers: _Pairs) -> list[api.Link]:
    """Return a link to the context in a message's headers, if it is valid."""
    context = propagate.extract(headers, Context(), _GETTER)
    found = api.get_current_span(context).get_span_context()
    return [api.Link(found)] if found.is_valid else []


def _text(value: HeaderValue) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
