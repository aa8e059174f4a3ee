"""A listener that keeps metrics for Prometheus.

Names follow Prometheus' rules: base units, and `_total` for counters. The metrics are
registered with `prometheus-client`. They work in its multi-process mode: no label names
a process or a producer, so no series needs to be removed.
"""

from __future__ import annotations

import collections
import os
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from greendrop.listeners._statistics import Increments, brokers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics import MetricWrapperBase

    from greendrop.events import Event
    from greendrop.message import Message

__all__ = ["PrometheusListener"]

#: Seconds, from the latency of a broker in the same rack to `message.timeout.ms`.
BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0),
)

_MICROSECOND = 1e-6


class Spec(NamedTuple):
    """One row of the table of metrics.

    Attributes:
        kind: The type of metric.
        name: The name that is scraped.
        help: The description that is scraped.
        labels: The names of the labels.
        fold: For gauges: combines the values of producers and of processes.
    """

    kind: str
    name: str
    help: str
    labels: tuple[str, ...] = ()
    fold: Callable[[Iterable[float]], float] = sum


#: Every metric of `PrometheusListener`.
METRICS: tuple[Spec, ...] = (
    Spec(
        "counter",
        "greendrop_messages_produced_total",
        "Messages that were queued (verb async), or queued and acknowledged (sync)",
        ("topic", "verb"),
    ),
    Spec(
        "counter",
        "greendrop_messages_flushed_total",
        "Messages among those produced that came from the buffer",
        ("topic", "verb"),
    ),
    Spec(
        "counter",
        "greendrop_messages_acknowledged_total",
        "Messages that a broker has stored",
        ("topic",),
    ),
    Spec(
        "counter",
        "greendrop_messages_failed_total",
        "Messages that were queued and not delivered; error is Kafka's name for it",
        ("topic", "error"),
    ),
    Spec(
        "histogram",
        "greendrop_delivery_duration_seconds",
        "Time from librdkafka's queue to the acknowledgement",
        ("topic",),
    ),
    Spec(
        "counter",
        "greendrop_errors_total",
        "Events error.occurred, by their type",
        ("type", "error"),
    ),
    Spec("gauge", "greendrop_buffer_messages", "Messages in the buffer"),
    Spec(
        "gauge",
        "greendrop_queue_messages",
        "Messages in librdkafka's queue or in flight; from statistics",
    ),
    Spec("gauge", "greendrop_queue_bytes", "Size of these messages; from statistics"),
    Spec("counter", "greendrop_connections_total", "Clients that were built"),
    Spec(
        "counter",
        "greendrop_reloads_total",
        "Clients that replaced one with a fatal error",
    ),
    Spec(
        "counter",
        "greendrop_transactions_total",
        "Transactions that were finished",
        ("outcome",),
    ),
    Spec(
        "counter",
        "greendrop_hub_stalled_seconds_total",
        "Time for which the hub was blocked while delivery reports were waiting",
    ),
    Spec("counter", "greendrop_broker_requests_total", "Requests sent", ("broker",)),
    Spec(
        "counter",
        "greendrop_broker_request_retries_total",
        "Requests that were sent again",
        ("broker",),
    ),
    Spec(
        "counter",
        "greendrop_broker_send_errors_total",
        "Requests that could not be sent",
        ("broker",),
    ),
    Spec(
        "counter",
        "greendrop_broker_receive_errors_total",
        "Answers that could not be read",
        ("broker",),
    ),
    Spec(
        "gauge",
        "greendrop_broker_round_trip_seconds",
        "Time from request to answer, lately; statistic is avg, p95 or p99",
        ("broker", "statistic"),
        max,
    ),
    Spec(
        "gauge",
        "greendrop_broker_queue_seconds",
        "Time for which requests waited to be sent, lately",
        ("broker", "statistic"),
        max,
    ),
)

_BROKER_COUNTERS = (
    ("tx", "greendrop_broker_requests_total"),
    ("txretries", "greendrop_broker_request_retries_total"),
    ("txerrs", "greendrop_broker_send_errors_total"),
    ("rxerrs", "greendrop_broker_receive_errors_total"),
)
_BROKER_GAUGES = (
    ("rtt", "greendrop_broker_round_trip_seconds"),
    ("outbuf_latency", "greendrop_broker_queue_seconds"),
)
_QUEUE_GAUGES = (
    ("msg_cnt", "greendrop_queue_messages"),
    ("msg_size", "greendrop_queue_bytes"),
)

# The source of a gauge's value: the producer's id, and the client's name or
# `_NO_CLIENT`.
_Source: TypeAlias = tuple[str, str]
_NO_CLIENT = ""

# A registry accepts each name once; listeners of one registry share its metrics.
_made: WeakKeyDictionary[CollectorRegistry, _Metrics] = WeakKeyDictionary()


class PrometheusListener:
    """Keeps the metrics of `METRICS` for the producers that it is subscribed to.

    `producer.monitor.subscribe(PrometheusListener())`. One listener may serve any
    number of producers; several listeners of one registry share its metrics.

    Args:
        registry: The registry; by default the one of prometheus-client.
        buckets: Upper bounds of the buckets of the delivery duration, in seconds. The
            first listener of a registry decides.
        statistics: Subscribe to librdkafka's statistics, for the metrics of the queue
            and the brokers. Then subscribe the listener before the first message.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        buckets: Sequence[float] = BUCKETS,
        statistics: bool = True,
    ) -> None:
        from prometheus_client import REGISTRY

        registry = REGISTRY if registry is None else registry
        if registry not in _made:
            _made[registry] = _Metrics(registry, buckets)
        self._metrics = _made[registry]
        if not statistics:
            self.on_statistics_emitted = None  # type: ignore[assignment,method-assign]

    # --- messages ----------------------------------------------------------------

    def on_message_produced_sync(self, event: Event) -> None:
        """Count one message."""
        topic = event["message"].topic
        self._metrics.add("greendrop_messages_produced_total", 1, topic, "sync")

    def on_message_produced_async(self, event: Event) -> None:
        """Count one message."""
        topic = event["message"].topic
        self._metrics.add("greendrop_messages_produced_total", 1, topic, "async")

    def on_messages_produced_sync(self, event: Event) -> None:
        """Count a batch."""
        self._count("greendrop_messages_produced_total", event, "sync")

    def on_messages_produced_async(self, event: Event) -> None:
        """Count a batch."""
        self._count("greendrop_messages_produced_total", event, "async")

    def on_message_acknowledged(self, event: Event) -> None:
        """Count one message, and observe its delivery duration."""
        topic = event["topic"]
        self._metrics.add("greendrop_messages_acknowledged_total", 1, topic)
        duration = self._metrics.child("greendrop_delivery_duration_seconds", topic)
        duration.observe(event["delivery_report"].latency)

    def on_message_purged(self, event: Event) -> None:
        """Count a message of an aborted transaction."""
        self._count_failed(event)

    def on_error_occurred(self, event: Event) -> None:
        """Count an error, and the message that failed, if any."""
        error_type, error = event["type"], event["error"]
        self._metrics.add("greendrop_errors_total", 1, error_type, _name(error))
        if error_type == "librdkafka.dispatch_error":
            self._count_failed(event)

    def _count_failed(self, event: Event) -> None:
        labels = event["topic"], _name(event["error"])
        self._metrics.add("greendrop_messages_failed_total", 1, *labels)

    def _count(self, metric: str, event: Event, verb: str) -> None:
        messages: Iterable[Message] = event["messages"]
        topics = collections.Counter(message.topic for message in messages)
        for topic, number in topics.items():
            self._metrics.add(metric, number, topic, verb)

    # --- the buffer --------------------------------------------------------------

    def on_message_buffered(self, event: Event) -> None:
        """Set the size of the buffer."""
        self._set_buffered(event, len(event["buffer"]))

    def on_messages_buffered(self, event: Event) -> None:
        """Set the size of the buffer."""
        self._set_buffered(event, len(event["buffer"]))

    def on_buffer_flushed_sync(self, event: Event) -> None:
        """Count the flushed messages."""
        self._count("greendrop_messages_flushed_total", event, "sync")
        self._set_buffered(event, 0)

    def on_buffer_flushed_async(self, event: Event) -> None:
        """Count the flushed messages."""
        self._count("greendrop_messages_flushed_total", event, "async")
        self._set_buffered(event, 0)

    def on_buffer_purged(self, event: Event) -> None:
        """Set the size of the buffer to 0."""
        self._set_buffered(event, 0)

    def _set_buffered(self, event: Event, size: int) -> None:
        source = event["producer_id"], _NO_CLIENT
        self._metrics.set("greendrop_buffer_messages", size, source)

    # --- producers and transactions ----------------------------------------------

    def on_producer_connected(self, _: Event) -> None:
        """Count a client."""
        self._metrics.add("greendrop_connections_total", 1)

    def on_producer_reloaded(self, event: Event) -> None:
        """Count a client that has replaced another."""
        self._metrics.add("greendrop_reloads_total", 1)
        self._metrics.forget_clients(event["producer_id"])

    def on_producer_disconnected(self, event: Event) -> None:
        """Forget the values of its clients."""
        self._metrics.forget_clients(event["producer_id"], counters=True)

    def on_producer_closed(self, event: Event) -> None:
        """Forget the values of its clients and of its buffer."""
        self._metrics.forget_clients(event["producer_id"], counters=True)
        self._metrics.forget((event["producer_id"], _NO_CLIENT))

    def on_transaction_finished(self, event: Event) -> None:
        """Count a transaction."""
        outcome = event.payload.get("outcome", "finished")
        self._metrics.add("greendrop_transactions_total", 1, outcome)

    def on_hub_stalled(self, event: Event) -> None:
        """Add the time for which the hub was blocked."""
        seconds = event["seconds"]
        self._metrics.add("greendrop_hub_stalled_seconds_total", seconds)

    # --- statistics --------------------------------------------------------------

    def on_statistics_emitted(self, event: Event) -> None:
        """Update the metrics of the queue and of the brokers."""
        statistics, metrics = event["statistics"], self._metrics
        client = event["producer_id"], statistics["name"]
        for key, name in _QUEUE_GAUGES:
            metrics.set(name, statistics[key], client)
        for broker, numbers in brokers(statistics):
            for key, name in _BROKER_COUNTERS:
                metrics.advance(name, numbers.get(key, 0), client, broker)
            for key, name in _BROKER_GAUGES:
                window = numbers.get(key, {})
                if not window.get("cnt"):
                    continue  # no request lately: 0 would be wrong
                for statistic in ("avg", "p95", "p99"):
                    seconds = window[statistic] * _MICROSECOND
                    metrics.set(name, seconds, client, broker, statistic)


class _Metrics:
    """The metrics of one registry."""

    def __init__(self, registry: CollectorRegistry, buckets: Sequence[float]) -> None:
        self._all = {spec.name: _make(spec, registry, buckets) for spec in METRICS}
        self._folds = {spec.name: spec.fold for spec in METRICS}
        # By name and labels: faster than the look-up in the metric.
        self._children: dict[tuple[str, ...], Any] = {}
        # The last value of each source, by gauge and labels.
        self._values: dict[tuple[str, ...], dict[_Source, float]] = {}
        self._increments = Increments()
        self._pid = os.getpid()

    def child(self, name: str, *labels: str) -> Any:  # noqa: ANN401 - any kind
        """Return the metric with these labels."""
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            metric = self._all[name]
            child = metric.labels(*labels) if labels else metric
            self._children[key] = child
        return child

    def add(self, name: str, number: float, *labels: str) -> None:
        """Add to a counter."""
        self.child(name, *labels).inc(number)

    def advance(self, name: str, value: float, client: _Source, *labels: str) -> None:
        """Add the growth of one of librdkafka's counters to a counter."""
        self._forget_parents()
        counter = (name, client, *labels)
        growth = self._increments.since_last(client[0], counter, value, first=value)
        self.child(name, *labels).inc(growth)

    def set(self, name: str, value: float, source: _Source, *labels: str) -> None:
        """Set the value of one source, and the gauge to the fold of all sources."""
        self._forget_parents()
        self._values.setdefault((name, *labels), {})[source] = value
        self._fold((name, *labels))

    def forget_clients(self, producer_id: str, *, counters: bool = False) -> None:
        """Forget the values of a producer's clients, and optionally their counters."""
        if counters:
            self._increments.forget(producer_id)
        for values in list(self._values.values()):
            for source in list(values):
                if source[0] == producer_id and source[1] != _NO_CLIENT:
                    self.forget(source)

    def forget(self, source: _Source) -> None:
        """Forget the values of one source."""
        for gauge, values in list(self._values.items()):
            if values.pop(source, None) is not None:
                self._fold(gauge)

    def _fold(self, gauge: tuple[str, ...]) -> None:
        values = list(self._values[gauge].values()) or [0.0]
        self.child(*gauge).set(self._folds[gauge[0]](values))

    def _forget_parents(self) -> None:
        # In a forked child: the parent keeps reporting its own values.
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._values = {}
            self._increments = Increments()


def _make(
    spec: Spec, registry: CollectorRegistry, buckets: Sequence[float]
) -> MetricWrapperBase:
    from prometheus_client import Counter, Gauge, Histogram

    if spec.kind == "counter":
        return Counter(spec.name, spec.help, spec.labels, registry=registry)
    if spec.kind == "histogram":
        return Histogram(
            spec.name, spec.help, spec.labels, registry=registry, buckets=buckets
        )
    # Of living processes only.
    mode = "livemax" if spec.fold is max else "livesum"
    return Gauge(
        spec.name,
        spec.help,
        spec.labels,
        registry=registry,
        multiprocess_mode=mode,  # type: ignore[arg-type]
    )


def _name(error: BaseException) -> str:
    """Return Kafka's name of an error, or the name of its class."""
    return getattr(error, "name", None) or type(error).__qualname__
