"""Runs measurements: the servers, and the rounds in which contenders take turns.

Each measurement is a process of its own, so that threads, hub and garbage of one don't
disturb another. The contenders of a cell follow each other closely, round after round,
so that whatever slows the machine down for a while slows down all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from greendrop.testing import MockCluster
from tests.benchmarks import cells
from tests.benchmarks.cells import Cell, Load
from tests.benchmarks.contenders.base import Place
from tests.servers.kafka import KafkaCluster, unavailable_reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

#: Seconds for one measurement.
_LONGEST_WAIT = 120.0
_WARM_UP = (
    (cells.GREENDROP, Load("wait", workers=100)),
    (cells.FLUSH, Load("wait")),
    (cells.AIOKAFKA, Load("wait", workers=100)),
    (cells.CALLBACK, Load("fire", count=200_000)),
    # Cold, the coordinator needs 20 to 40 ms for a transaction; then 3 ms.
    (cells.TRANSACTIONS, Load("transact", count=100)),
)

#: One contender's figures of one measurement; or the reason of a failure.
Figures = dict[str, float]
Outcome = Figures | str


class Servers(AbstractContextManager["Servers"]):
    """Starts the servers that a cell needs, when the first cell needs them."""

    def __init__(self, *, quick: bool) -> None:
        self._quick = quick
        self._stack = ExitStack()
        self._kafka: KafkaCluster | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @staticmethod
    def missing(cell: Cell) -> str | None:
        """Return why a cell can't be measured here."""
        return unavailable_reason() if cell.server == "kafka" else None

    def place(self, cell: Cell, stack: ExitStack) -> Place:
        """Return a topic of a cell's own; a mock cluster ends with the stack."""
        topic = f"{cell.name}-{uuid.uuid4().hex[:8]}"
        if cell.server == "none":
            return Place("", topic)
        if cell.server == "kafka":
            return self._kafka_place(topic, cell.partitions)
        cluster = stack.enter_context(MockCluster.spawn())
        cluster.create_topic(topic, cell.partitions)
        cluster.round_trip(cell.round_trip)
        return Place(cluster.bootstrap_servers, topic)

    def _kafka_place(self, topic: str, partitions: int) -> Place:
        if self._kafka is None:
            self._kafka = self._stack.enter_context(_kafka())
            self._warm_up(2 if self._quick else 5)
        self._kafka.create_topic(topic, partitions=partitions)
        return Place(self._kafka.bootstrap_servers, topic)

    def _warm_up(self, times: int) -> None:
        place = self._kafka_place("warm-up", 4)
        print("warming up Apache Kafka ...", flush=True)
        for _ in range(times):
            for contender, load in _WARM_UP:
                measure(contender, load, place, 1.0)


def _kafka() -> KafkaCluster:
    # A minute of this is several hundred megabytes, which are not needed.
    few = {
        "log.segment.bytes": 64 << 20,
        "log.retention.bytes": 64 << 20,
        "log.retention.check.interval.ms": 5_000,
        "log.segment.delete.delay.ms": 1_000,
    }
    return KafkaCluster(for_benchmarks=True, broker_config=few)


def measure(contender: str, load: Load, place: Place, seconds: float) -> Outcome:
    """Measure once, in a fresh process."""
    order = {
        "contender": contender,
        "load": asdict(load),
        "bootstrap_servers": place.bootstrap_servers,
        "topic": place.topic,
        "seconds": seconds,
    }
    command = [sys.executable, "-m", "tests.benchmarks.measure", json.dumps(order)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LONGEST_WAIT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end within {_LONGEST_WAIT:g} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit status {done.returncode}"
    figures: Figures = json.loads(done.stdout)
    return figures


def rounds_of(
    cell: Cell, servers: Servers, rounds: int, seconds: float
) -> Iterator[dict[str, Outcome]]:
    """Measure all contenders of a cell, round after round."""
    with ExitStack() as stack:
        place = servers.place(cell, stack)
        contenders = list(cell.contenders)
        for _ in range(rounds):
            yield {
                contender: measure(contender, cell.load, place, seconds)
                for contender in contenders
            }
            # No contender always follows the busiest one.
            contenders.reverse()
