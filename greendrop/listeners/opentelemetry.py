"""Spans of OpenTelemetry: one for each message, from its sending to its verdict.

Needs `opentelemetry-api` only, and follows the semantic conventions for messaging,
1.44. Their names are written out here: the package that has them moves them about.
"""

from __future__ import annotations

import contextlib
import time
from importlib.metadata import version
from itertools import count
from typing import TYPE_CHECKING, Any
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

_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
#: Links of a batch's span at most; the SDK's own limit is 128, if nobody raises it.
_MOST_LINKS = 1_000
#: Of what propagators write: says nothing about who created a message.
_BAGGAGE = frozenset({"baggage"})

# Those of producers that are traced already.
_traced: WeakSet[Monitor] = WeakSet()


def trace(
    producer: Producer,
    *,
    tracer_provider: api.TracerProvider | None = None,
    message_keys: bool = True,
) -> None:
    """Trace what a producer, and its variants, send from now on.

    Each message gets a span `send TOPIC` of kind PRODUCER. It begins when the message
    is queued, as a child of the caller's current span, and ends when its verdict is
    known, or when it is refused. The span's context goes into the message's headers,
    by the propagators that OpenTelemetry is set up with (W3C's by default).

    A message whose headers bring a context along keeps it: its span is of kind CLIENT,
    and has a link to that context. A batch has a span of its own, of kind CLIENT, with
    links to those of its messages; it ends with the last of these.

    Calling it again for the same producer does nothing.

    Args:
        producer: Configured; before its first message, or at any time.
        tracer_provider: Whose spans; by default the global one.
        message_keys: Tell keys that are text (`messaging.kafka.message.key`).

    Raises:
        ProducerNotConfiguredError: See `Producer.setup`.
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
    """A topic's name that brings along the span of its message.

    What is told of a message has its topic, and of all that belongs to it nothing else
    that is not the caller's.
    """

    __slots__ = ("sending",)

    #: None once the span has ended.
    sending: _Sending | None

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class _Sending:
    """The span of a message that was not told of yet."""

    __slots__ = ("batch", "began", "created_in", "span")

    def __init__(self, span: api.Span, began: int, created_in: api.Link) -> None:
        self.span = span
        #: Nanoseconds since 1970.
        self.began = began
        #: To the context that the message's headers have.
        self.created_in = created_in
        self.batch: _Batch | None = None

    def end(self, error: BaseException | None = None) -> None:
        if error is not None:
            _fail(self.span, error)
        self.span.end()
        if self.batch is not None:
            self.batch.checkpoint(error)


class _Batch:
    """The span of a batch, which ends with that of its last message."""

    def __init__(self, span: api.Span, size: int) -> None:
        self._span = span
        self._size = size
        self._failed = False
        # Two threads never get the same number of it.
        self._ended = count(1)

    def checkpoint(self, error: BaseException | None) -> None:
        if error is not None and not self._failed:
            self._failed = True
            _fail(self._span, error)
        if next(self._ended) == self._size:
            self._span.end()


class _Tracing:
    """Begins spans; see `Interceptor`."""

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
        began = time.time_ns()
        headers: _Pairs = list(message.headers or ())  # type: ignore[arg-type]  # wire form
        theirs = _fields(headers)
        links = _links(headers) if theirs else []
        span = self._tracer.start_span(
            f"send {message.topic}",
            kind=api.SpanKind.CLIENT if links else api.SpanKind.PRODUCER,
            attributes=self._attributes_of(message),
            links=links,
            start_time=began,
        )
        if not theirs:
            context = api.set_span_in_context(span)
            propagate.inject(headers, context, _SETTER)
        topic: str = message.topic
        if span.is_recording():
            topic = _Topic(topic)
            link = links[0] if links else api.Link(span.get_span_context())
            topic.sending = _Sending(span, began, link)
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
            links=[sending.created_in for sending in sendings[:_MOST_LINKS]],
            start_time=sendings[0].began,
        )
        batch = _Batch(span, len(sendings))
        for sending in sendings:
            sending.batch = batch

    def on_send_error(self, message: Message, error: BaseException) -> None:
        if sending := _taken(message.topic):
            sending.end(error)


def _on_acknowledged(event: Event) -> None:
    if sending := _taken(event["topic"]):
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
    if sending := _taken(event["topic"]):
        sending.end(event["error"])


def _taken(topic: str) -> _Sending | None:
    """Take the sending that a topic brings along, for nobody else to end it again."""
    if not isinstance(topic, _Topic):
        return None
    sending, topic.sending = topic.sending, None
    return sending


def _fail(span: api.Span, error: BaseException) -> None:
    kafkas_name = getattr(error, "name", None)
    span.set_attribute("error.type", kafkas_name or type(error).__qualname__)
    span.set_status(api.Status(api.StatusCode.ERROR, str(error)))


def _server(kafka: Mapping[str, str]) -> dict[str, str | int]:
    """Name the server, if there is only one to begin with."""
    servers = kafka.get("bootstrap.servers") or kafka.get("metadata.broker.list")
    if not servers or "," in servers:
        return {}
    host, _, port = servers.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        return {"server.address": servers}
    return {"server.address": host.strip("[]"), "server.port": int(port)}


def _is_suppressed() -> bool:
    """Tell whether the caller is an exporter, whose messages must make no spans."""
    return bool(get_value(_SUPPRESS))


def _suppress_key() -> str:
    # Nothing public has it in the API alone.
    from opentelemetry import context

    return getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")


_SUPPRESS = _suppress_key()


# --- the context in the headers -------------------------------------------------------


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


def _fields(headers: _Pairs) -> set[str]:
    """Name the headers by which the caller has told a context, be it a wrong one."""
    if not headers:
        return set()
    fields = propagate.get_global_textmap().fields - _BAGGAGE
    return fields.intersection(name.lower() for name, _ in headers)


def _links(headers: _Pairs) -> list[api.Link]:
    """Link to the context in a message's headers, if there is one."""
    context = propagate.extract(headers, Context(), _GETTER)
    there = api.get_current_span(context).get_span_context()
    return [api.Link(there)] if there.is_valid else []


def _text(value: HeaderValue) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
