"""Metrics for StatsD and Datadog, by the names that WaterDrop's have.

Imports neither `datadog` nor `statsd`: it uses the client that it is given.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from greendrop.listeners._statistics import Increments, brokers, value_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from greendrop.events import Event
    from greendrop.message import Message

Kind = Literal["count", "gauge", "histogram"]
Scope = Literal["root", "brokers", "topics"]


class DatadogClient(Protocol):
    """What is used of `datadog.dogstatsd.DogStatsd`: metrics with tags."""

    def increment(self, metric: str, value: float, *, tags: list[str]) -> object:
        """Add to a counter."""
        ...

    def gauge(self, metric: str, value: float, *, tags: list[str]) -> object:
        """Set a gauge."""
        ...

    def histogram(self, metric: str, value: float, *, tags: list[str]) -> object:
        """Add to a distribution."""
        ...


class StatsdClient(Protocol):
    """What is used of `statsd.StatsClient`, which knows no tags."""

    def incr(self, stat: str, count: int) -> object:
        """Add to a counter."""
        ...

    def gauge(self, stat: str, value: float) -> object:
        """Set a gauge."""
        ...


class Metric(NamedTuple):
    """A number in librdkafka's statistics, and the metric that it makes.

    Attributes:
        kind: "count" tells by how much a counter of librdkafka has grown, nothing the
            first time; "gauge" and "histogram" tell the number as it is.
        scope: "root", or each of the "brokers" (tag `broker`), or of the "topics" (tag
            `topic`).
        name: Without the namespace.
        keys: Where the number is, from the scope on.
    """

    kind: Kind
    scope: Scope
    name: str
    keys: tuple[str, ...]


#: What is told of statistics by default. Latencies are microseconds, as librdkafka's.
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

#: What is told of events, beside `METRICS`.
NAMES = (
    "produced_sync",
    "produced_async",
    "flushed_sync",
    "flushed_async",
    "buffer.size",
    "acknowledged",
    "error_occurred",
)

# What separates the parts of a name, or a value from its name, in StatsD's protocol.
_NOT_IN_NAMES = re.compile(r"[.:|@#\s]")


class StatsdListener:
    """Sends metrics of the producers that it is subscribed to.

    `producer.monitor.subscribe(StatsdListener(client))`. One listener may serve any
    number of producers. A subclass may have methods for more events, such as
    `on_producer_connected(event)`.

    Args:
        client: Datadog's `DogStatsd`, or another object with its `increment`, `gauge`
            and `histogram`, which take tags. Or a `statsd.StatsClient`, or another with
            its `incr` and `gauge`: there tags become the last parts of the name, and
            histograms gauges.
        namespace: What all names begin with.
        default_tags: Told with every metric.
        metrics: What to tell of statistics. With none of them, statistics stay off.

    Raises:
        TypeError: The client has neither of the two sets of methods, or `default_tags`
            is one text, not a list of tags.
        ValueError: A metric's scope or kind is none that there is.
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

    def tell(self, kind: Kind, name: str, value: float, *tags: str) -> None:
        """Send one metric, with namespace and default tags; also for subclasses.

        Args:
            kind: "count" adds to a counter.
            name: Without the namespace.
            value: What to add, or to tell.
            tags: More of them, as `topic:events`.
        """
        name = f"{self._namespace}.{name}" if self._namespace else name
        self._send(kind, name, value, [*self._default_tags, *tags])

    # --- messages ----------------------------------------------------------------

    def on_message_produced_sync(self, event: Event) -> None:
        """Count one message."""
        self.tell("count", "produced_sync", 1, f"topic:{event['message'].topic}")

    def on_message_produced_async(self, event: Event) -> None:
        """Count one message."""
        self.tell("count", "produced_async", 1, f"topic:{event['message'].topic}")

    def on_messages_produced_sync(self, event: Event) -> None:
        """Count the messages of a batch."""
        self._count("produced_sync", event["messages"])

    def on_messages_produced_async(self, event: Event) -> None:
        """Count the messages of a batch."""
        self._count("produced_async", event["messages"])

    def on_buffer_flushed_sync(self, event: Event) -> None:
        """Count the messages that came from the buffer."""
        self._count("flushed_sync", event["messages"])

    def on_buffer_flushed_async(self, event: Event) -> None:
        """Count the messages that came from the buffer."""
        self._count("flushed_async", event["messages"])

    def on_message_buffered(self, event: Event) -> None:
        """Tell how many are buffered."""
        self.tell("histogram", "buffer.size", len(event["buffer"]))

    def on_messages_buffered(self, event: Event) -> None:
        """Tell how many are buffered."""
        self.tell("histogram", "buffer.size", len(event["buffer"]))

    def on_message_acknowledged(self, _: Event) -> None:
        """Count one message."""
        self.tell("count", "acknowledged", 1)

    def on_error_occurred(self, _: Event) -> None:
        """Count one error."""
        self.tell("count", "error_occurred", 1)

    def _count(self, name: str, messages: Iterable[Message]) -> None:
        for topic, number in Counter(message.topic for message in messages).items():
            self.tell("count", name, number, f"topic:{topic}")

    # --- statistics --------------------------------------------------------------

    def on_statistics_emitted(self, event: Event) -> None:
        """Tell what `metrics` names."""
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
                    self.tell(metric.kind, metric.name, value, *tags)

    def on_producer_disconnected(self, event: Event) -> None:
        """Forget what its clients had counted."""
        self._increments.forget(event["producer_id"])

    def on_producer_closed(self, event: Event) -> None:
        """Forget what its clients had counted."""
        self._increments.forget(event["producer_id"])


def _parts(
    scope: Scope, statistics: Mapping[str, Any]
) -> Iterable[tuple[Mapping[str, Any], tuple[str, ...]]]:
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
            text = f"{name} of metric {metric.name!r} is {value!r}, none of {allowed}"
            raise ValueError(text)


class _Send(Protocol):
    def __call__(
        self, kind: Kind, name: str, value: float, tags: list[str]
    ) -> None: ...


def _sender(client: Any) -> _Send:  # noqa: ANN401 - either of two protocols
    """Give a function that sends one metric by a client of either kind."""

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
