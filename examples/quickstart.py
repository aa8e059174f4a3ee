"""The same program with greendrop, and with confluent-kafka's `flush()`.

Some hundred greenlets, like the requests in a busy web worker, send a message and wait
until the broker has it, again and again. A ticker greenlet wants to run every 10 ms
meanwhile, as a health check or another request would. The output is a table, and a
picture of when the ticker ran.

    make demo                                             on a built-in mock cluster
    GREENDROP_BOOTSTRAP_SERVERS=host:9092 make demo       on your broker
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

import confluent_kafka
import gevent

from greendrop import ProduceError, Producer
from greendrop.testing import MockCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOPIC = "greendrop-quickstart"
PAYLOAD = b"x" * 100
GREENLETS = 300
#: Seconds for each of the two clients.
BUDGET = 4.0
#: Round trip of the mock brokers in seconds, as to a Kafka in another region.
ROUND_TRIP = 0.02
#: Seconds between two ticks.
TICK = 0.01
#: Width of a picture, and of the text in front of it, in characters.
WIDTH = 50
MARGIN = 28

TERMINAL = sys.stdout.isatty()
COLOUR = TERMINAL and "NO_COLOR" not in os.environ
UNICODE = (sys.stdout.encoding or "").lower().startswith("utf")
BARS = " ▁▂▃▄▅▆▇█" if UNICODE else " .:-=+*#@"
MARK, REST = ("│", "·") if UNICODE else ("|", ".")
GREEN, RED, BOLD, DIM = "32", "31", "1", "2"


@dataclass
class Run:
    """The measurements of one client."""

    name: str
    colour: str
    started: float = 0.0
    #: Seconds from the start of each request until its message was acknowledged.
    latencies: list[float] = field(default_factory=list)
    #: When the ticker ran, in seconds since the start.
    ticks: list[float] = field(default_factory=list)

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def quantile(self, share: float) -> float:
        """Return the latency that this share of the requests did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]

    def longest_gap(self) -> float:
        """Return the longest time between two ticks."""
        return max(after - before for before, after in pairwise([0.0, *self.ticks]))

    def ticks_in(self, start: float, end: float) -> int:
        """Count the ticks between two moments."""
        return sum(start <= tick < end for tick in self.ticks)


def measure(run: Run, send: Callable[[], object]) -> None:
    """Run all greenlets and the ticker until the time is over."""

    def requests() -> None:
        while run.seconds() < BUDGET:
            started = time.perf_counter()
            # A handler lets other greenlets run before it sends.
            gevent.sleep(0)
            if run.seconds() < BUDGET:
                send()
                run.latencies.append(time.perf_counter() - started)

    def tick() -> None:
        due = 0.0
        while due < BUDGET:
            # Skip missed ticks, as a clock does.
            due = max(due + TICK, run.seconds() // TICK * TICK)
            gevent.sleep(max(due - run.seconds(), 0.0))
            run.ticks.append(run.seconds())

    run.started = time.perf_counter()
    greenlets: list[gevent.Greenlet[..., None]] = [
        gevent.spawn(show_progress, run),
        gevent.spawn(tick),
        *(gevent.spawn(requests) for _ in range(GREENLETS)),
    ]
    try:
        gevent.joinall(greenlets, raise_error=True)
    finally:
        gevent.killall(greenlets)


# --- output --------------------------------------------------------------------------


def colored(text: str, *codes: str) -> str:
    """Return a text in colour if the terminal shows colours."""
    return f"\033[{';'.join(codes)}m{text}\033[0m" if COLOUR else text


def show_progress(run: Run) -> None:
    """Show the progress, as a bar on a terminal and as lines elsewhere."""
    while True:
        share = min(run.seconds() / BUDGET, 1.0)
        count = f"{len(run.latencies):>7,} messages"
        if TERMINAL:
            done = int(share * 24)
            full, empty = ("█", "░") if UNICODE else ("#", ".")
            bar = colored(full * done, run.colour) + colored(empty * (24 - done), DIM)
            sys.stdout.write(f"\r  {run.name:<{MARGIN}}{bar}  {count}")
        elif run.latencies:
            sys.stdout.write(f"  {run.name:<{MARGIN}}{share:>5.0%}  {count}\n")
        sys.stdout.flush()
        if share >= 1:
            break
        gevent.sleep(0.1 if TERMINAL else 1.0)
    if TERMINAL:
        sys.stdout.write("\n")


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds, as text."""
    return f"{seconds * 1000:,.0f} ms"


def show_table(runs: Sequence[Run]) -> None:
    """Print the results side by side."""
    rows = {
        "messages acknowledged": [f"{len(run.latencies):,}" for run in runs],
        "messages a second": [f"{len(run.latencies) / BUDGET:,.0f}" for run in runs],
        "a request takes, p50": [milliseconds(run.quantile(0.50)) for run in runs],
        "a request takes, p99": [milliseconds(run.quantile(0.99)) for run in runs],
        f"ticks, of {BUDGET / TICK:,.0f}": [f"{len(run.ticks):,}" for run in runs],
        f"longest gap ({milliseconds(TICK)} is due)": [
            milliseconds(run.longest_gap()) for run in runs
        ],
    }
    print()
    head = "".join(colored(f"{run.name:>25}", BOLD, run.colour) for run in runs)
    print(f"  {'':<{MARGIN}}{head}")
    for title, values in rows.items():
        print(f"  {title:<{MARGIN}}" + "".join(f"{value:>25}" for value in values))


def show_picture(runs: Sequence[Run]) -> None:
    """Draw when the ticker ran: the whole run, and a part of it tick by tick."""
    slice_ = BUDGET / WIDTH
    most = slice_ / TICK
    print(f"\n  How often the ticker ran, over all {BUDGET:g} s (full is always):\n")
    for run in runs:
        counts = [run.ticks_in(i * slice_, (i + 1) * slice_) for i in range(WIDTH)]
        # Rounded up, so that even one tick is visible.
        levels = [-(-8 * min(count, most) // most) for count in counts]
        line = "".join(BARS[int(level)] for level in levels)
        print(f"  {run.name:<{MARGIN}}{colored(line, run.colour)}")

    middle = BUDGET / 2
    span = milliseconds(WIDTH * TICK)
    print(f"\n  Tick by tick, {span} from the middle:\n")
    for run in runs:
        line = "".join(
            colored(MARK, run.colour)
            if run.ticks_in(start, start + TICK)
            # A tick that was a little late appears in the next position.
            else colored(REST, DIM)
            for start in (middle + i * TICK for i in range(WIDTH))
        )
        print(f"  {run.name:<{MARGIN}}{line}")


# --- the two clients -----------------------------------------------------------------


def with_greendrop(servers: str) -> Run:
    """Measure `produce_sync`, which waits and lets other greenlets run."""
    run = Run("greendrop", GREEN)
    # A short timeout, so that a wrong address ends the example soon.
    with Producer(
        kafka={"bootstrap.servers": servers, "message.timeout.ms": 10_000}
    ) as producer:
        # Connect first: a worker is connected after its first request.
        producer.produce_sync(topic=TOPIC, payload=PAYLOAD)
        measure(run, lambda: producer.produce_sync(topic=TOPIC, payload=PAYLOAD))
    return run


def with_flush(servers: str) -> Run:
    """Measure `flush()`, which waits and lets nothing else run."""
    run = Run("confluent-kafka flush()", RED)
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": servers, "message.timeout.ms": 10_000}
    )

    def send() -> None:
        producer.produce(TOPIC, PAYLOAD)
        producer.flush()

    send()
    measure(run, send)
    return run


def main() -> int:
    """Measure both clients, print the results, and return the exit status."""
    servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS", "")
    with ExitStack() as stack:
        if servers:
            where = servers
        else:
            cluster = stack.enter_context(MockCluster())
            cluster.round_trip(ROUND_TRIP)
            servers = cluster.bootstrap_servers
            where = f"a mock Kafka, {milliseconds(ROUND_TRIP)} away"
        print(
            f"\n  {GREENLETS} greenlets send to {where}, and wait for each message."
            f"\n  Twice {BUDGET:g} s:\n"
        )
        try:
            runs = (with_greendrop(servers), with_flush(servers))
        except ProduceError as error:
            print(f"  {error}", file=sys.stderr)
            return 1
    show_table(runs)
    show_picture(runs)
    print("\n  produce_sync waits and lets other greenlets run; flush() does not.\n")
    return 0


if __name__ == "__main__":
    # Let Ctrl-C end the process at once, also in flush(): there is nothing to save.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
