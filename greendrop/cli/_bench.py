"""The command `greendrop bench`: measures greendrop and plain confluent-kafka.

Both run in a gevent hub, because that is where they differ: in messages a second, in
the latency of each message, and in how long other greenlets can't run meanwhile.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from greendrop import _wording
from greendrop.cli._shared import (
    DONE,
    FAILED,
    ConnectionErrors,
    add_connection,
    configuration,
    payload_limit,
    positive,
    say,
    seconds,
)
from greendrop.errors import ConfigurationInvalidError, GreendropError
from greendrop.producer import Producer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from greendrop.cli._shared import Commands
    from greendrop.events import Event

_EPILOG = """Each row is measured for --seconds. In the "waiting" rows each greenlet
sends a message, waits for its report and sends the next: with greendrop by
produce_sync, with confluent-kafka by produce and flush and its own defaults. p50 and
p99 are the times from one report to the next in a greenlet. The "bulk" rows send
without waiting, and are measured until the last report. "gap" is the longest time
during which a greenlet that sleeps for a millisecond at a time could not run."""

#: Seconds of warming up before a row.
_WARM_UP = 0.3
#: Messages of a bulk row between two turns for other greenlets.
_BURST = 500
#: Seconds for the delivery report of the first message.
_CONNECT_TIMEOUT = 5.0
#: Seconds for the last delivery reports of a row.
_REPORT_TIMEOUT = 30.0
_MISSING = float("nan")
#: Titles of the columns with numbers, and their widths. With the names of the loads in
#: front, a row of up to 9,999 greenlets fits 80 columns.
_COLUMNS = {"msg/s": 11, "p50 ms": 9, "p99 ms": 9, "gap ms": 9}
_CLIENT_WIDTH = len("confluent-kafka ")


def add_to(commands: Commands) -> None:
    """Add the command and its options."""
    import argparse

    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure latency and throughput of your brokers",
        description="Measure latency and throughput, with greendrop and with plain"
        " confluent-kafka.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connection(parser)
    load = parser.add_argument_group("load")
    load.add_argument("-t", "--topic", required=True, help="topic to fill with zeros")
    load.add_argument(
        "-s",
        "--size",
        type=positive,
        default=100,
        metavar="BYTES",
        help="bytes of each payload (default: 100)",
    )
    load.add_argument(
        "-n",
        "--greenlets",
        type=_numbers,
        default=(1, 10, 100),
        metavar="N,...",
        help="how many greenlets wait at the same time (default: 1,10,100)",
    )
    load.add_argument(
        "--seconds",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="seconds for each row (default: 2)",
    )
    load.add_argument("--json", action="store_true", help="write JSON")
    parser.set_defaults(run=run)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(each) for each in text.split(","))


class Row(NamedTuple):
    """One measurement.

    Attributes:
        client: "greendrop" or "confluent-kafka".
        load: The number of greenlets and whether they wait.
        rate: Delivered messages a second.
        median: Milliseconds from one report to the next in one greenlet.
        p99: The 99th percentile of the same.
        gap: The longest time, in milliseconds, during which nothing else ran.
    """

    client: str
    load: str
    rate: float
    median: float
    p99: float
    gap: float


class _Client(Protocol):
    """A client that can be measured."""

    name: str

    def send_and_wait(self) -> None:
        """Send one message, and wait for its delivery report."""

    def send(self) -> None:
        """Send one message, and don't wait."""

    def wait_for_all(self) -> None:
        """Wait for all delivery reports."""

    def close(self) -> None:
        """Close the client, and drop the messages in flight."""


class _Greendrop:
    name = "greendrop"

    def __init__(self, kafka: dict[str, str], topic: str, size: int) -> None:
        self._producer = Producer(
            kafka=kafka,
            max_payload_size=payload_limit(kafka),
            instrument_on_wait_queue_full=False,
        )
        self._topic, self._payload = topic, bytes(size)
        self._failed: list[BaseException] = []
        self._producer.monitor.subscribe("error.occurred", self._on_error)

    def _on_error(self, event: Event) -> None:
        if event["type"] == "librdkafka.dispatch_error":
            self._failed.append(event["error"])

    def send_and_wait(self) -> None:
        self._producer.produce_sync(topic=self._topic, payload=self._payload)

    def send(self) -> None:
        self._producer.produce_async(topic=self._topic, payload=self._payload)

    def wait_for_all(self) -> None:
        self._producer.close(_REPORT_TIMEOUT)
        if self._failed:
            raise self._failed[0]

    def close(self) -> None:
        self._producer.close(force=True)


class _Confluent:
    name = "confluent-kafka"

    def __init__(self, kafka: dict[str, str], topic: str, size: int) -> None:
        from confluent_kafka import Producer as Plain

        self._producer = Plain({"log_level": "0", **kafka})
        self._topic, self._payload = topic, bytes(size)
        self._failed: list[Any] = []

    def _on_report(self, error: Any, _: object) -> None:  # noqa: ANN401
        if error is not None:
            self._failed.append(error)

    def send_and_wait(self) -> None:
        self.send()
        self.wait_for_all()

    def send(self) -> None:
        while True:
            try:
                self._producer.produce(
                    self._topic, self._payload, on_delivery=self._on_report
                )
            except BufferError:
                self._producer.poll(0.01)
            else:
                self._producer.poll(0)
                return

    def wait_for_all(self) -> None:
        missing = self._producer.flush(_REPORT_TIMEOUT)
        if self._failed or missing:
            reason = self._failed[0].str() if self._failed else "no report came in time"
            raise GreendropError(reason)

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(1)


def run(options: argparse.Namespace) -> int:
    """Measure row after row, and print each row when it is complete."""
    kafka = configuration(options)
    # Check the settings before anything is measured.
    Producer(kafka=kafka)
    import gevent

    hub = gevent.get_hub()
    # Ctrl-C ends the command; the hub would print a traceback first.
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)
    rows: list[Row] = []
    width = max(len(_waiting_load(number)) for number in options.greenlets)
    try:
        _check_connection(kafka, options.topic)
        if not options.json:
            sys.stdout.write(_header(width))
            sys.stdout.flush()
        for row in _rows(options, kafka):
            rows.append(row)
            if not options.json:
                sys.stdout.write(_as_text(row, width))
                sys.stdout.flush()
    except ConfigurationInvalidError:
        raise  # some settings are only checked when a client is created
    except GreendropError as error:
        say(f"stopped: {error}")
        return FAILED
    if options.json:
        sys.stdout.write(json.dumps([_as_json(row) for row in rows], indent=2) + "\n")
    return DONE


def _check_connection(kafka: dict[str, str], topic: str) -> None:
    """Deliver one message.

    Raises:
        GreendropError: It was not delivered within `_CONNECT_TIMEOUT`.
    """
    producer = Producer(kafka=kafka)
    producer.monitor.subscribe(ConnectionErrors())
    try:
        producer.produce_async(topic=topic, payload=b"").wait(_CONNECT_TIMEOUT)
    finally:
        producer.close(force=True)


def _rows(options: argparse.Namespace, kafka: dict[str, str]) -> Iterator[Row]:
    classes: tuple[Callable[..., _Client], ...] = (_Greendrop, _Confluent)
    for number in options.greenlets:
        for make in classes:
            client = make(kafka, options.topic, options.size)
            try:
                yield _waiting_row(client, number, options.seconds)
            finally:
                client.close()
    for make in classes:
        client = make(kafka, options.topic, options.size)
        try:
            yield _bulk_row(client, options.seconds)
        finally:
            client.close()


def _waiting_row(client: _Client, number: int, duration: float) -> Row:
    import gevent

    client.send_and_wait()
    latencies: list[float] = []
    measured_from = time.monotonic() + _WARM_UP
    end = measured_from + duration

    def work() -> None:
        last = time.monotonic()
        while last < end:
            client.send_and_wait()
            # As in a program that does something else between two messages.
            gevent.sleep(0)
            now = time.monotonic()
            if last >= measured_from:
                latencies.append((now - last) * 1000)
            last = now

    with _Gap() as gap:
        workers = [gevent.spawn(work) for _ in range(number)]
        gevent.joinall(workers, raise_error=True)
    seconds_measured = time.monotonic() - measured_from
    return Row(
        client.name,
        _waiting_load(number),
        len(latencies) / seconds_measured,
        statistics.median(latencies) if latencies else _MISSING,
        _percentile(latencies, 0.99),
        gap.milliseconds,
    )


def _waiting_load(number: int) -> str:
    return f"{_wording.count(number, 'greenlet')}, waiting"


def _bulk_row(client: _Client, duration: float) -> Row:
    import gevent

    client.send_and_wait()
    count = 0
    with _Gap() as gap:
        started = time.monotonic()
        while time.monotonic() < started + duration:
            for _ in range(_BURST):
                client.send()
            count += _BURST
            gevent.sleep(0)
        client.wait_for_all()
        elapsed = time.monotonic() - started
    return Row(
        client.name, "bulk", count / elapsed, _MISSING, _MISSING, gap.milliseconds
    )


def _percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least this share of values do not exceed."""
    if not values:
        return _MISSING
    return sorted(values)[math.ceil(share * len(values)) - 1]


class _Gap:
    """Measures the longest time during which other greenlets could not run."""

    milliseconds = 0.0

    def __enter__(self) -> _Gap:
        import gevent

        self._last = time.monotonic()
        self._ticker = gevent.spawn(self._tick)
        gevent.sleep(0)
        return self

    def _tick(self) -> None:
        import gevent

        while True:
            self._measure()
            gevent.sleep(0.001)

    def _measure(self) -> None:
        now = time.monotonic()
        self.milliseconds = max(self.milliseconds, (now - self._last) * 1000)
        self._last = now

    def __exit__(self, *_: object) -> None:
        self._measure()
        self._ticker.kill()


def _header(width: int) -> str:
    return _line("", "", tuple(_COLUMNS), width)


def _as_text(row: Row, width: int) -> str:
    median, p99 = (
        "" if each != each else f"{each:.2f}"  # noqa: PLR0124 - not a number
        for each in (row.median, row.p99)
    )
    cells = (f"{row.rate:,.0f}", median, p99, f"{row.gap:.1f}")
    return _line(row.client, row.load, cells, width)


def _line(client: str, load: str, cells: tuple[str, ...], width: int) -> str:
    columns = zip(cells, _COLUMNS.values(), strict=True)
    numbers = "".join(f"{cell:>{column}}" for cell, column in columns)
    return f"{client:{_CLIENT_WIDTH}}{load:{width}}{numbers}\n"


def _as_json(row: Row) -> dict[str, object]:
    # JSON has no NaN.
    return {
        key: None if value != value else value  # noqa: PLR0124
        for key, value in row._asdict().items()
    }
