"""Draw the pictures that show measurements: ticker.svg and benchmarks.svg.

    python docs/pictures/draw.py [benchmarks]

`ticker.svg` is measured here, on the mock cluster, in some ten seconds.
`benchmarks.svg` shows figures of docs/benchmarks.json, the last run of the benchmarks.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import confluent_kafka
import gevent

from greendrop import Producer
from greendrop.testing import MockCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
#: Narrow enough that texts can be read on a phone.
WIDTH = 520
#: Content of ticker.svg: greenlets that send, seconds, a round trip, and a tick.
GREENLETS, SECONDS, ROUND_TRIP, TICK = 300, 2.0, 0.02, 0.01
#: Columns and contenders of benchmarks.svg, as docs/benchmarks.json names them.
COLUMNS = {"wait-1": "1", "wait-10": "10", "wait-100": "100", "wait-1000": "1,000"}
CONTENDERS = {
    "greendrop": "greendrop",
    "raw poll thread, linger 0": "confluent-kafka with a poll thread",
    "aiokafka on uvloop": "aiokafka on uvloop",
}

# A card of its own, so that it can be read on any page, whatever the reader's settings.
STYLE = """<style>
  svg { --card: #ffffff; --line: #d0d7de; --text: #1f2328; --dim: #59636e;
        --one: #1a7f37; --two: #bc4c00; --three: #0969da; }
  @media (prefers-color-scheme: dark) {
    svg { --card: #161b22; --line: #3d444d; --text: #e6edf3; --dim: #9198a1;
          --one: #3fb950; --two: #f0883e; --three: #58a6ff; }
  }
  text { font: 15px system-ui, sans-serif; fill: var(--text); }
  .dim { fill: var(--dim); font-size: 14px; }
  .value { fill: var(--dim); font-size: 12px; }
  .title { font-weight: 600; font-size: 16px; }
  .card { fill: var(--card); stroke: var(--line); }
  .axis { stroke: var(--line); }
  .one { fill: var(--one); } .two { fill: var(--two); } .three { fill: var(--three); }
</style>"""


class Run:
    """When a ticker ran beside greenlets that send, and how often they did."""

    def __init__(self, send: Callable[[], object]) -> None:
        #: Seconds since the start.
        self.ticks: list[float] = []
        self.messages = 0
        self._send = send
        self._started = time.perf_counter()
        senders = [gevent.spawn(self._send_on) for _ in range(GREENLETS)]
        gevent.joinall([gevent.spawn(self._tick), *senders], raise_error=True)
        self.ticks = [tick for tick in self.ticks if tick < SECONDS]

    def _elapsed(self) -> float:
        return time.perf_counter() - self._started

    def _send_on(self) -> None:
        while self._elapsed() < SECONDS:
            self._send()
            self.messages += 1
            gevent.sleep(0)

    def _tick(self) -> None:
        while self._elapsed() < SECONDS:
            gevent.sleep(TICK)
            self.ticks.append(self._elapsed())


def measure() -> dict[str, Run]:
    """Send with greendrop, then with confluent-kafka's `flush()`."""
    with MockCluster.spawn() as cluster:
        cluster.round_trip(ROUND_TRIP)
        kafka = {"bootstrap.servers": cluster.bootstrap_servers}
        with Producer(kafka=kafka) as producer:

            def wait() -> None:
                producer.produce_sync(topic="ticker", payload=b"x" * 100)

            wait()
            ours = Run(wait)
        raw = confluent_kafka.Producer(kafka)

        def flush() -> None:
            raw.produce("ticker", b"x" * 100)
            raw.flush()

        flush()
        theirs = Run(flush)
    return {"greendrop, produce_sync()": ours, "confluent-kafka, flush()": theirs}


def svg(height: int, title: str, parts: Iterator[str]) -> str:
    """Put parts on a card."""
    size = f'width="{WIDTH}" height="{height}"'
    card = f'x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"'
    return "\n".join(
        (
            '<svg xmlns="http://www.w3.org/2000/svg" role="img"',
            f'     viewBox="0 0 {WIDTH} {height}" {size}>',
            f"<title>{title}</title>",
            STYLE,
            f'<rect class="card" {card}/>',
            *parts,
            "</svg>\n",
        )
    )


def ticker(runs: dict[str, Run]) -> Iterator[str]:
    """Draw a line for each tick."""
    left, width = 20, WIDTH - 40
    yield (
        f'<text class="title" x="{left}" y="32">When a greenlet runs that wants to run'
        f" every {TICK * 1000:.0f} ms</text>"
    )
    subtitle = (
        f"{GREENLETS} other greenlets send to Kafka and wait; the broker answers",
        f"after {ROUND_TRIP * 1000:.0f} ms. Each line is one run of the greenlet.",
    )
    for row, text in enumerate(subtitle):
        yield f'<text class="dim" x="{left}" y="{56 + row * 20}">{text}</text>'
    for row, (name, run) in enumerate(runs.items()):
        top = 112 + row * 84
        colour = ("one", "two")[row]
        rate = f"{run.messages / SECONDS:,.0f} messages/s, {len(run.ticks)} runs"
        yield f'<text x="{left}" y="{top}">{name}</text>'
        yield (
            f'<text class="dim" x="{left + width}" y="{top}"'
            f' text-anchor="end">{rate}</text>'
        )
        yield (
            f'<line class="axis" x1="{left}" x2="{left + width}"'
            f' y1="{top + 46}" y2="{top + 46}"/>'
        )
        for tick in run.ticks:
            x = left + tick / SECONDS * width
            yield (
                f'<rect class="{colour}" x="{x:.1f}" y="{top + 12}" width="1.2"'
                ' height="34"/>'
            )
    yield f'<text class="dim" x="{left}" y="264">0 s</text>'
    yield (
        f'<text class="dim" x="{left + width}" y="264" text-anchor="end">'
        f"{SECONDS:.0f} s</text>"
    )


def figures() -> dict[str, dict[str, float]]:
    """Read the median rates of docs/benchmarks.json: contender, column, messages/s."""
    rounds = json.loads((HERE.parent / "benchmarks.json").read_text())["rounds"]
    found: dict[str, dict[str, float]] = {name: {} for name in CONTENDERS}
    for contender, column in product(CONTENDERS, COLUMNS):
        rates = [
            outcomes[contender]["rate"]
            for outcomes in rounds[column]
            # Otherwise the text of a failure.
            if isinstance(outcomes[contender], dict)
        ]
        if rates:
            found[contender][column] = median(rates)
    return found


def benchmarks() -> Iterator[str]:
    """Draw a group of bars for each column."""
    table = figures()
    highest = max(value for row in table.values() for value in row.values())
    yield (
        '<text class="title" x="20" y="32">Messages per second of waiting greenlets or'
        " tasks</text>"
    )
    for place, name in enumerate(CONTENDERS.values()):
        y = 48 + place * 22
        colour = ("one", "two", "three")[place]
        yield f'<rect class="{colour}" x="20" y="{y}" width="12" height="12" rx="2"/>'
        yield f'<text class="dim" x="40" y="{y + 11}">{name}</text>'
    for group, (column, label) in enumerate(COLUMNS.items()):
        left = 24 + group * 121
        for place, row in enumerate(CONTENDERS):
            value = table[row].get(column, 0.0)
            height = value / highest * 150
            x = left + place * 37
            colour = ("one", "two", "three")[place]
            yield (
                f'<rect class="{colour}" x="{x}" y="{294 - height:.1f}" width="34"'
                f' height="{height:.1f}" rx="2"/>'
            )
            yield (
                f'<text class="value" x="{x + 17}" y="{289 - height:.1f}"'
                f' text-anchor="middle">{value / 1000:.1f}k</text>'
            )
        yield (
            f'<text class="dim" x="{left + 54}" y="316" text-anchor="middle">'
            f"{label} waiting</text>"
        )
    yield f'<line class="axis" x1="20" x2="{WIDTH - 20}" y1="294" y2="294"/>'


def benchmarks_svg() -> str:
    """Return the picture of the last run of the benchmarks."""
    return svg(332, "Messages per second", benchmarks())


def main() -> None:
    """Write both, or only benchmarks.svg if `benchmarks` is asked for."""
    if sys.argv[1:] != ["benchmarks"]:
        title = "A ticker beside greenlets that send to Kafka"
        (HERE / "ticker.svg").write_text(svg(280, title, ticker(measure())))
    (HERE / "benchmarks.svg").write_text(benchmarks_svg())


if __name__ == "__main__":
    main()
