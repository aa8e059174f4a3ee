"""A listener that sends metrics to StatsD or Datadog, with WaterDrop's names.

Imports neither `datadog` nor `statsd`: the program passes its own client.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from greendrop.listeners._statistics import Increments, Part, brokers, value_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from greendrop.events import Event
    from greendrop.message import Message

__all__ = ["DatadogClient", "Metric", "StatsdClient", "StatsdListener"]

Kind = Literal["count", "gauge", "histogram"]
Scope = Literal["root", "brokers", "topics"]


class DatadogClient(Protocol):
    """The used part of `datadog.dogstatsd.DogStatsd`: metrics with tags."""

    def increment(self, metric: str, value: float, *, tags: list[str]) -> object:
        """Add to a counter."""

    def gauge(self, metric: str, value: float, *, tags: list[str]) -> object:
        """Set a gauge."""

    def histogram(self, metric: str, value: float, *, tags: list[str]) -> object:
        """Add to a distribution."""


class StatsdClient(Protocol):
    """The used part of `statsd.StatsClient`, which has no tags."""

    def incr(self, stat: str, count: int) -> object:
        """Add to a counter."""

    def gauge(self, stat: str, value: float) -> object:
        """Set a gauge."""


class Metric(NamedTuple):
    """A number in librdkafka's statistics, and the metric made of it.

    Attributes:
        kind: "count" sends the growth of a counter, and nothing the first time; "gauge"
            and "histogram" send the number as it is.
        scope: "root", or "brokers" for each broker (tag `broker`), or "topics" for each
            topic (tag `topic`).
        name: Without the namespace.
        keys: The path of the number within its scope.
    """

    kind: Kind
    scope: Scope
    name: str
    keys: tuple[str, ...]


#: The default metrics of statistics. Latencies are in microseconds, as in librdkafka.
METRICS: tuple[Metric, ...] = (
    Metric("count", "root", "calls", ("tx",)),
    Metric("histogram", "root", "queue.size", ("msg_cnt",)),
    Metric("count", "brokers", "deliver.attempts", ("txretries",)),
    Metric("count", "brokers", "deliver.errors", ("txerrs",)),
    Metric("count", "brokers", "receive.errors", ("rxerrs",)),
    *(
        Metric("gauge", "brokers", f"{name}.latency.{statistic}", (key, statistic))
        for name, key in (("queue", "outbuf_latency"), ("network", "rtt"))
        for statistic in ("avg", "p95", "p99")
    ),
)

#: The metrics of events.
NAMES = (
    "produced_sync",
    "produced_async",
    "flushed_sync",
    "flushed_async",
    "buffer.size",
    "acknowledged",
    "error_occurred",
)

# Separators of the StatsD protocol.
_NOT_IN_NAMES = re.compile(r"[.:|@#\s]")


class StatsdListener:
    """Sends metrics of the producers that it is subscribed to.

    `producer.monitor.subscribe(StatsdListener(client))`. One listener may serve any
    number of producers. A subclass may have methods for more events, such as
    `on_producer_connected(event)`.

    Args:
        client: Datadog's `DogStatsd`, or another object with its methods `increment`,
            `gauge` and `histogram`, which take tags. Or a `statsd.StatsClient`, or
            another object with `incr` and `gauge`: for these, tags become the last
            parts of the name, and histograms become gauges.
        namespace: The prefix of all names.
        default_tags: Sent with every metric.
        metrics: The metrics of statistics. If empty, statistics stay off.

    Raises:
        TypeError: The client has neither of the two sets of methods, or `default_tags`
            is a string instead of a list of tags.
        ValueError: A metric has an unknown scope or kind.
    """

    def __init__(
        self,
        client: DatadogClient | StatsdClient,
        *,
        namespace: str = "greendrop",
        default_tags: Iterable[str] = (),
        metrics: Sequence[Metric] = METRICS,
    ) -> None:
        if isinstance(default_tags, str):
            raise TypeError(f"default_tags needs a list of tags, not {default_tags!r}")
        for metric in metrics:
            _check(metric)
        self._namespace = namespace
        self._default_tags = tuple(default_tags)
        self._metrics = tuple(metrics)
        self._send = _sender(client)
        self._increments = Increments()
        if not metrics:
            self.on_statistics_emitted = None  # type: ignore[assignment,method-assign]

    def send_metric(self, kind: Kind, name: str, value: float, *tags: str) -> None:
        """Send one metric, with namespace and default tags; also for subclasses.

        Args:
            kind: "count" adds to a counter.
            name: Without the namespace.
            value: The number to add, or the new value.
            tags: Additional tags, such as `topic:events`.
        """
        name = f"{self._namespace}.{name}" if self._namespace else name
        self._send(kind, name, value, [*self._default_tags, *tags])

    # --- messages ----------------------------------------------------------------

    def on_message_produced_sync(self, event: Event) -> None:
        """Count one message."""
        self.send_metric("count", "produced_sync", 1, f"topic:{event['message'].topic}")

    def on_message_produced_async(self, event: Event) -> None:
        """Count one message."""
        self.send_metric(
            "count", "produced_async", 1, f"topic:{event['message'].topic}"
        )

    def on_messages_produced_sync(self, event: Event) -> None:
        """Count the messages of a batch."""
        self._count("produced_sync", event["messages"])

    def on_messages_produced_async(self, event: Event) -> None:
        """Count the messages of a batch."""
        self._count("produced_async", event["messages"])

    def on_buffer_flushed_sync(self, event: Event) -> None:
        """Count the flushed messages."""
        self._count("flushed_sync", event["messages"])

    def on_buffer_flushed_async(self, event: Event) -> None:
        """Count the flushed messages."""
        self._count("flushed_async", event["messages"])

    def on_message_buffered(self, event: Event) -> None:
        """Send the size of the buffer."""
        self.send_metric("histogram", "buffer.size", len(event["buffer"]))

    def on_messages_buffered(self, event: Event) -> None:
        """Send the size of the buffer."""
        self.send_metric("histogram", "buffer.size", len(event["buffer"]))

    def on_message_acknowledged(self, _: Event) -> None:
        """Count one message."""
        self.send_metric("count", "acknowledged", 1)

    def on_error_occurred(self, _: Event) -> None:
        """Count one error."""
        self.send_metric("count", "error_occurred", 1)

    def _count(self, name: str, messages: Iterable[Message]) -> None:
        for topic, number in Counter(message.topic for message in messages).items():
            self.send_metric("count", name, number, f"topic:{topic}")

    # --- statistics --------------------------------------------------------------

    def on_statistics_emitted(self, event: Event) -> None:
        """Send the metrics of statistics."""
        statistics = event["statistics"]
        for metric in self._metrics:
            for part, tags in _parts(metric.scope, statistics):
                value = value_at(part, metric.keys)
                if value is not None and metric.kind == "count":
                    counter = (statistics["name"], metric, tags)
                    value = self._increments.since_last(
                        event["producer_id"], counter, value, first=0
                    )
                if value is not None:
                    self.send_metric(metric.kind, metric.name, value, *tags)

    def on_producer_disconnected(self, event: Event) -> None:
        """Forget the counters of its clients."""
        self._increments.forget(event["producer_id"])

    def on_producer_closed(self, event: Event) -> None:
        """Forget the counters of its clients."""
        self._increments.forget(event["producer_id"])


def _parts(scope: Scope, statistics: Part) -> Iterable[tuple[Part, tuple[str, ...]]]:
    if scope == "root":
        return [(statistics, ())]
    if scope == "brokers":
        return [(part, (f"broker:{name}",)) for name, part in brokers(statistics)]
    topics = statistics.get("topics", {}).items()
    return [(part, (f"topic:{name}",)) for name, part in topics]


def _check(metric: Metric) -> None:
    for name, value, allowed in (
        ("scope", metric.scope, ("root", "brokers", "topics")),
        ("kind", metric.kind, ("count", "gauge", "histogram")),
    ):
        if value not in allowed:
            text = (
                f"{name} of metric {metric.name!r} is {value!r}, not one of {allowed}"
            )
            raise ValueError(text)


class _Send(Protocol):
    def __call__(
        self, kind: Kind, name: str, value: float, tags: list[str]
    ) -> None: ...


def _sender(client: Any) -> _Send:  # noqa: ANN401 - either of two protocols
    """Return a function that sends one metric by a client of either kind."""

    def with_tags(kind: Kind, name: str, value: float, tags: list[str]) -> None:
        if kind == "count":
            client.increment(name, value, tags=tags)
        elif kind == "gauge":
            client.gauge(name, value, tags=tags)
        else:
            client.histogram(name, value, tags=tags)

    def without_tags(kind: Kind, name: str, value: float, tags: list[str]) -> None:
        parts = (_NOT_IN_NAMES.sub("_", tag.partition(":")[2] or tag) for tag in tags)
        name = ".".join((name, *parts))
        if kind == "count":
            client.incr(name, value)
        else:
            client.gauge(name, value)

    for methods, send in (
        (("increment", "gauge", "histogram"), with_tags),
        (("incr", "gauge"), without_tags),
    ):
        if all(callable(getattr(client, each, None)) for each in methods):
            return send
    text = f"{client!r} has neither increment, gauge and histogram, nor incr and gauge"
    raise TypeError(text)
