"""`greendrop bench`: one's own broker, with greendrop and with plain confluent-kafka.

In a gevent program, since that is where they differ: how many messages a second wait
for their reports, how long each waits, and how long everything else stands still.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from greendrop.cli._shared import (
    DONE,
    FAILED,
    add_connection,
    configuration,
    payload_limit,
    positive,
    say,
    seconds,
)
from greendrop.errors import GreendropError
from greendrop.producer import Producer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from greendrop.events import Event

_EPILOG = """Each row is measured for some seconds. "waiting" rows send a message, wait
for its report and send the next, in so many greenlets: greendrop by produce_sync,
confluent-kafka by produce and flush, with its own defaults. Their p50 and p99 are the
times from one report to the next in each greenlet: what it waits for, and how long it
is kept from going on. "bulk" rows send without waiting and are measured until the last
report. "stands still" is the longest time for which a greenlet that does nothing but
sleep for a millisecond did not run."""

#: Seconds of warming up before a row.
_WARM_UP = 0.3
#: Messages of a bulk row between two turns for other greenlets.
_BURST = 500
#: Seconds for a report.
_PATIENCE = 30.0
_MISSING = float("nan")


def add_to(commands: Any) -> None:  # noqa: ANN401 - argparse hides its class
    """Describe the options."""
    import argparse

    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure latency and rate with your broker",
        description="Measure latency and rate with your broker, beside plain"
        " confluent-kafka.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connection(parser)
    load = parser.add_argument_group("load")
    load.add_argument("-t", "--topic", required=True, help="filled with zeros")
    load.add_argument(
        "-s",
        "--size",
        type=positive,
        default=100,
        metavar="BYTES",
        help="of each payload (default: 100)",
    )
    load.add_argument(
        "-n",
        "--greenlets",
        type=_numbers,
        default=(1, 10, 100),
        metavar="N,...",
        help="how many wait at the same time (default: 1,10,100)",
    )
    load.add_argument(
        "--seconds",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="for each row (default: 2)",
    )
    load.add_argument("--json", action="store_true", help="write JSON")
    parser.set_defaults(run=run)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(each) for each in text.split(","))


class Row(NamedTuple):
    """One measurement.

    Attributes:
        client: "greendrop" or "confluent-kafka".
        load: What was done.
        rate: Delivered messages a second.
        median: Milliseconds from one report to the next in one greenlet.
        p99: The same, for all but one of a hundred.
        gap: Milliseconds for which nothing else ran, at most.
    """

    client: str
    load: str
    rate: float
    median: float
    p99: float
    gap: float


class _Contender(Protocol):
    """A client that is measured."""

    name: str

    def send_and_wait(self) -> None:
        """Send one message, and wait for its report."""
        ...

    def send(self) -> None:
        """Send one message."""
        ...

    def settle(self) -> None:
        """Wait for all reports, at the end."""
        ...

    def close(self) -> None:
        """End."""
        ...


class _Greendrop:
    name = "greendrop"

    def __init__(self, kafka: dict[str, str], topic: str, size: int) -> None:
        self._producer = Producer(
            kafka=kafka,
            max_payload_size=payload_limit(kafka),
            instrument_on_wait_queue_full=False,
        )
        self._topic, self._payload = topic, bytes(size)
        self._failed: list[GreendropError] = []
        self._producer.monitor.subscribe("error.occurred", self._on_error)

    def _on_error(self, event: Event) -> None:
        if event["type"] == "librdkafka.dispatch_error":
            self._failed.append(event["error"])

    def send_and_wait(self) -> None:
        self._producer.produce_sync(topic=self._topic, payload=self._payload)

    def send(self) -> None:
        self._producer.produce_async(topic=self._topic, payload=self._payload)

    def settle(self) -> None:
        self._producer.close(_PATIENCE)
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
        self.settle()

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

    def settle(self) -> None:
        left = self._producer.flush(_PATIENCE)
        if self._failed or left:
            reason = self._failed[0].str() if self._failed else "no report came in time"
            raise GreendropError(reason)

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(1)


def run(options: argparse.Namespace) -> int:
    """Measure row after row, and tell each as soon as it is there."""
    kafka = configuration(options)
    # Tells what is wrong with the settings before anything is measured.
    Producer(kafka=kafka)
    import gevent

    gevent.get_hub()
    rows: list[Row] = []
    if not options.json:
        head = ("msg/s", "p50 ms", "p99 ms", "stands still")
        sys.stdout.write(f"{'':36}" + "".join(f"{each:>13}" for each in head) + "\n")
    try:
        for row in _rows(options, kafka):
            rows.append(row)
            if not options.json:
                sys.stdout.write(_as_text(row))
                sys.stdout.flush()
    except GreendropError as error:
        say(f"stopped: {error}")
        return FAILED
    if options.json:
        found = [_as_json(each) for each in rows]
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return DONE


def _rows(options: argparse.Namespace, kafka: dict[str, str]) -> Iterator[Row]:
    made: tuple[Callable[..., _Contender], ...] = (_Greendrop, _Confluent)
    for number in options.greenlets:
        for make in made:
            contender = make(kafka, options.topic, options.size)
            try:
                yield _waiting_row(contender, number, options.seconds)
            finally:
                contender.close()
    for make in made:
        contender = make(kafka, options.topic, options.size)
        try:
            yield _bulk_row(contender, options.seconds)
        finally:
            contender.close()


def _waiting_row(contender: _Contender, number: int, duration: float) -> Row:
    import gevent

    contender.send_and_wait()
    taken: list[float] = []
    measured_from = time.monotonic() + _WARM_UP
    end = measured_from + duration

    def work() -> None:
        last = time.monotonic()
        while last < end:
            contender.send_and_wait()
            # A program does something else between two messages.
            gevent.sleep(0)
            now = time.monotonic()
            if last >= measured_from:
                taken.append((now - last) * 1000)
            last = now

    with _Gap() as gap:
        workers = [gevent.spawn(work) for _ in range(number)]
        gevent.joinall(workers, raise_error=True)
    seconds_measured = time.monotonic() - measured_from
    tasks = "1 greenlet" if number == 1 else f"{number} greenlets"
    return Row(
        contender.name,
        f"{tasks}, waiting",
        len(taken) / seconds_measured,
        statistics.median(taken) if taken else _MISSING,
        _percentile(taken, 0.99),
        gap.milliseconds,
    )


def _bulk_row(contender: _Contender, duration: float) -> Row:
    import gevent

    contender.send_and_wait()
    count = 0
    with _Gap() as gap:
        began = time.monotonic()
        while time.monotonic() < began + duration:
            for _ in range(_BURST):
                contender.send()
            count += _BURST
            gevent.sleep(0)
        contender.settle()
        taken = time.monotonic() - began
    return Row(
        contender.name, "bulk", count / taken, _MISSING, _MISSING, gap.milliseconds
    )


def _percentile(values: list[float], share: float) -> float:
    """Give the smallest value that so many, at least, are not above."""
    if not values:
        return _MISSING
    return sorted(values)[math.ceil(share * len(values)) - 1]


class _Gap:
    """Measures for how long other greenlets could not run."""

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
            self._note()
            gevent.sleep(0.001)

    def _note(self) -> None:
        now = time.monotonic()
        self.milliseconds = max(self.milliseconds, (now - self._last) * 1000)
        self._last = now

    def __exit__(self, *_: object) -> None:
        self._note()
        self._ticker.kill()


def _as_text(row: Row) -> str:
    cells = [f"{row.rate:,.0f}"]
    cells += [
        "" if each != each else f"{each:.2f}"  # noqa: PLR0124 - not a number
        for each in (row.median, row.p99)
    ]
    cells.append(f"{row.gap:.1f} ms")
    name = f"{row.client:16} {row.load}"
    return f"{name:36}" + "".join(f"{each:>13}" for each in cells) + "\n"


def _as_json(row: Row) -> dict[str, object]:
    # Not a number is nothing that JSON knows.
    return {
        key: None if value != value else value  # noqa: PLR0124
        for key, value in row._asdict().items()
    }
