"""The cost of listeners: `python -m tests.benchmarks.listeners`.

Each measurement is a process of its own, which sends messages to a mock cluster in
another one. The figure is the CPU time per message of the thread that sends and polls,
compared with that of a producer without listeners; the measurements of a round follow
each other closely.

    python -m tests.benchmarks.listeners --listener package.module:Name

measures any listener: a class is instantiated without arguments and subscribed, a
function is called with the producer.
"""

# ruff: noqa: PLC0415 - a process imports only what its own measurement needs

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TextIO

import greendrop
from greendrop.testing import MockCluster
from tests.benchmarks.results import about

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greendrop import Producer

_PAGE = Path(__file__).parents[2] / "docs" / "listener-costs.md"
#: Seconds for one measurement.
_LONGEST_WAIT = 120.0
_PAYLOAD = b"x" * 100
_BATCH = 1_000
_WARM_UP = 3_000

_VENDORS = ("structlog", "prometheus-client", "statsd", "datadog", "opentelemetry-sdk")

_Figures = dict[str, float]


# --- listeners that are measured ------------------------------------------------------


def _none(producer: Producer) -> None:
    """Subscribe no listener."""


def _prometheus(producer: Producer) -> None:
    from greendrop.listeners.prometheus import PrometheusListener

    producer.monitor.subscribe(PrometheusListener())


def _statsd(producer: Producer) -> None:
    from statsd import StatsClient

    from greendrop.listeners.statsd import StatsdListener

    producer.monitor.subscribe(StatsdListener(StatsClient("127.0.0.1", _port())))


def _datadog(producer: Producer) -> None:
    from datadog.dogstatsd import DogStatsd

    from greendrop.listeners.statsd import StatsdListener

    client = DogStatsd("127.0.0.1", _port(), disable_telemetry=True)
    producer.monitor.subscribe(StatsdListener(client))


def _opentelemetry_api(producer: Producer) -> None:
    from greendrop.listeners.opentelemetry import trace

    trace(producer)


def _opentelemetry(producer: Producer) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    from greendrop.listeners.opentelemetry import trace

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> Any:
            """Drop the spans."""

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace(producer, tracer_provider=provider)


def _opentelemetry_unsampled(producer: Producer) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    from greendrop.listeners.opentelemetry import trace

    trace(producer, tracer_provider=TracerProvider(sampler=ALWAYS_OFF))


def _log(producer: Producer) -> None:
    from greendrop.listeners.log import LogListener

    producer.monitor.subscribe(LogListener())


def _log_by_logging(producer: Producer) -> None:
    import logging

    logging.basicConfig(stream=_nowhere(), level=logging.INFO)
    _log(producer)


def _log_by_structlog(producer: Producer, level: str = "info") -> None:
    import structlog

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(_nowhere()),
        cache_logger_on_first_use=True,
    )
    _log(producer)


def _log_warnings(producer: Producer) -> None:
    _log_by_structlog(producer, "warning")


def _nowhere() -> TextIO:
    return Path("/dev/null").open("w", encoding="utf-8")  # until the end


# Kept open, so that packets are accepted and dropped, and not refused.
_agents: list[socket.socket] = []


def _port() -> int:
    agent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    agent.bind(("127.0.0.1", 0))
    _agents.append(agent)
    port: int = agent.getsockname()[1]
    return port


_NONE = "none"
_OURS: dict[str, Callable[[Producer], None]] = {
    _NONE: _none,
    "none, once more": _none,
    "log, nothing configured": _log,
    "log, structlog at warning": _log_warnings,
    "log, structlog at info": _log_by_structlog,
    "log, logging at info": _log_by_logging,
    "Prometheus": _prometheus,
    "StatsD (statsd)": _statsd,
    "StatsD (datadog)": _datadog,
    "OpenTelemetry, no SDK": _opentelemetry_api,
    "OpenTelemetry, SDK, not sampled": _opentelemetry_unsampled,
    "OpenTelemetry, SDK": _opentelemetry,
}


def _subscribe(name: str, producer: Producer) -> None:
    if name in _OURS:
        _OURS[name](producer)
        return
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if inspect.isclass(found):
        producer.monitor.subscribe(found())
    else:
        found(producer)


# --- one measurement, in this process -------------------------------------------------


def _measure(name: str, servers: str, count: int) -> _Figures:
    import gevent

    gevent.get_hub()
    kafka = {"bootstrap.servers": servers, "queue.buffering.max.messages": 1_000_000}
    producer = greendrop.Producer(kafka=kafka)
    _subscribe(name, producer)
    figures = {}
    for load, send in (("produce_async", _one_by_one), ("batches", _batches)):
        _wait(send(producer, _WARM_UP))
        started_at = time.thread_time()
        _wait(send(producer, count))
        figures[load] = (time.thread_time() - started_at) / count
    producer.close()
    return figures


def _one_by_one(producer: Producer, count: int) -> list[Any]:
    return [
        producer.produce_async(topic="events", payload=_PAYLOAD) for _ in range(count)
    ]


def _batches(producer: Producer, count: int) -> list[Any]:
    message = greendrop.Message("events", _PAYLOAD)
    handles: list[Any] = []
    for _ in range(0, count, _BATCH):
        handles += producer.produce_many_async([message] * _BATCH)
    return handles


def _wait(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.wait()


# --- all measurements -----------------------------------------------------------------


def main() -> None:
    """Measure, and write a table."""
    arguments = _arguments()
    if arguments.measure is not None:
        json.dump(_measure(**json.loads(arguments.measure)), sys.stdout)
        return
    ours = [_NONE] if arguments.skip_ours else [*_OURS]
    names = [*ours, *arguments.listener]
    rounds: list[dict[str, _Figures]] = []
    with MockCluster.spawn() as cluster:
        cluster.create_topic("events")
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            order = names if number % 2 else names[::-1]
            rounds.append(
                {
                    name: _started(name, cluster.bootstrap_servers, arguments.count)
                    for name in order
                }
            )
    table = _table(names, rounds)
    print(table)
    if arguments.write_docs:
        _PAGE.write_text(_page(table, arguments.rounds))
        print(f"written: {_PAGE}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.listeners",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--listener", metavar="MODULE:NAME", action="append", default=[]
    )
    parser.add_argument("--skip-ours", action="store_true", help="only those named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=50_000, help="messages")
    parser.add_argument("--write-docs", action="store_true", help=f"write {_PAGE.name}")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def _started(name: str, servers: str, count: int) -> _Figures:
    order = {"name": name, "servers": servers, "count": count}
    command = [sys.executable, "-m", "tests.benchmarks.listeners"]
    done = subprocess.run(
        [*command, "--measure", json.dumps(order)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=_LONGEST_WAIT,
        check=True,
    )
    figures: _Figures = json.loads(done.stdout)
    return figures


def _table(names: Sequence[str], rounds: Sequence[dict[str, _Figures]]) -> str:
    loads = list(rounds[0][_NONE])
    lines = [["listener", *loads], ["---", *["---:"] * len(loads)]]
    for name in names:
        row = [name]
        for load in loads:
            cost = median(
                each[name][load] - (each[_NONE][load] if name != _NONE else 0)
                for each in rounds
            )
            row.append(f"{cost * 1e6:{'.2f' if name == _NONE else '+.2f'}}")
        lines.append(row)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _page(table: str, rounds: int) -> str:
    facts = about() | {name: version(name) for name in _VENDORS}
    described = ", ".join(f"{name} {fact}" for name, fact in facts.items())
    return f"""# What listeners cost

Written by `python -m tests.benchmarks.listeners --write-docs`; don't edit. {described}.

Microseconds for each message, of the thread that sends and serves: in the first row all
that it takes without listeners, in the others what comes on top. The median of {rounds}
rounds; "none, once more" shows the effect of chance. Messages have 100 bytes. Sent one
by one with `produce_async`, each with its events, and in batches of {_BATCH:,}, which
have one event for their sending and one for each acknowledgement. StatsD's packets go
to a socket without a reader; the SDK's batch processor drops its spans.

{table}
A program without listeners pays nothing for what it does not use: no payload is built,
and no function stands between its verbs and the queue.
"""


if __name__ == "__main__":
    main()
