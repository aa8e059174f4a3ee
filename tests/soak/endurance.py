"""A long run that counts resources: do memory, descriptors, threads, greenlets grow?

    python -m tests.soak.endurance --messages 10000000 --producers 1000

Producers come and go, ten at a time: each connects, sends its share of the messages by
all kinds of verbs, and is closed. After each ten, when no producer is open, the process
is measured. The early measurements, after a warm-up, are compared with the last ones.

Exits with 1 if anything has grown by 2 % or more, or if a message was not delivered.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent

from greendrop import Message, Producer
from greendrop.testing import MockCluster
from tests import results
from tests.soak.ledger import Ledger
from tests.soak.subjects import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Producers that are open at the same time; each fifth is used by a native thread.
_AT_ONCE = 10
_NATIVE = 5
#: Messages of one batch, and the number of greenlets or threads that send it.
_BATCH = 500
#: The part of the run that is its warm-up, and the part that is compared with the end.
_WARM_UP, _PART = 0.2, 0.2
#: The share by which nothing may grow.
_GROWTH = 0.02
#: Seconds for one producer.
_LONGEST = 600.0
_PROC = Path("/proc/self")


@dataclass
class Usage:
    """The resources of the process at one moment, with all producers closed.

    Attributes:
        kilobytes: Resident memory.
        descriptors: Open file descriptors.
        threads: Native threads.
        greenlets: Greenlets that have not ended.
        objects: Objects that the garbage collector knows.
    """

    kilobytes: int
    descriptors: int
    threads: int
    greenlets: int
    objects: int

    @classmethod
    def now(cls) -> Usage:
        """Measure."""
        gc.collect()
        objects = gc.get_objects()
        status = (_PROC / "status").read_text()
        (memory,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return cls(
            kilobytes=int(memory.split()[1]),
            descriptors=len(os.listdir(_PROC / "fd")),  # noqa: PTH208 - their number
            threads=len(os.listdir(_PROC / "task")),  # noqa: PTH208
            greenlets=sum(
                issubclass(type(each), gevent.Greenlet) and not each.dead
                for each in objects
            ),
            objects=len(objects),
        )


class Load:
    """The messages of one producer after the other.

    Args:
        servers: Addresses of the brokers.
        messages: Of each producer.
    """

    def __init__(self, servers: str, messages: int) -> None:
        self._servers = servers
        self._messages = messages
        self.delivered = 0
        self.failed = 0
        self._verbs: tuple[Callable[[Producer, list[Message]], Any], ...] = (
            self._async,
            self._many_sync,
            self._many_async,
            self._buffer,
            self._scope,
            self._variant,
        )

    def run(self, number: int) -> None:
        """Make a producer, send its messages, and close it."""
        kafka: dict[str, Any] = {"bootstrap.servers": self._servers}
        if number % 3 == 1:
            kafka["enable.idempotence"] = True
        if number % 3 == 2:
            kafka["transactional.id"] = f"endurance-{number}"
        producer = Producer(kafka=kafka, max_wait_timeout=_LONGEST)
        producer.monitor.subscribe("message.acknowledged", self._on_acknowledged)
        producer.monitor.subscribe("error.occurred", self._on_error)
        batch = [
            Message("endurance", b"x" * 100, key=b"%d" % index, label=index)
            for index in range(_BATCH)
        ]
        for index in range(self._messages // _BATCH):
            verb = self._verbs[index % len(self._verbs)]
            if producer.transactional:
                with producer.transaction():
                    # A variant has a client of its own, which no transaction has.
                    (self._async if verb == self._variant else verb)(producer, batch)
            else:
                verb(producer, batch)
        producer.close(_LONGEST)

    def _on_acknowledged(self, _: object) -> None:
        self.delivered += 1

    def _on_error(self, event: Any) -> None:
        if event["type"] == "librdkafka.dispatch_error":
            self.failed += 1

    @staticmethod
    def _async(producer: Producer, batch: Sequence[Message]) -> None:
        handles = [producer.produce_async(**each._asdict()) for each in batch]
        for handle in handles:
            handle.wait()

    @staticmethod
    def _many_sync(producer: Producer, batch: Sequence[Message]) -> None:
        producer.produce_many_sync(batch)

    @staticmethod
    def _many_async(producer: Producer, batch: Sequence[Message]) -> None:
        producer.produce_many_async(batch)

    @staticmethod
    def _buffer(producer: Producer, batch: Sequence[Message]) -> None:
        producer.buffer_many(batch)
        producer.flush_sync()

    @staticmethod
    def _scope(producer: Producer, batch: Sequence[Message]) -> None:
        with producer.scope():
            producer.produce_many_async(batch)

    @staticmethod
    def _variant(producer: Producer, batch: Sequence[Message]) -> None:
        producer.variant(topic_config={"request.timeout.ms": 20_000}).produce_many_sync(
            batch
        )


def run(messages: int, producers: int, report: Callable[[str], None]) -> list[Usage]:
    """Run the load; return the measurements.

    Raises:
        AssertionError: A message was not delivered, or a producer raised.
    """
    ledger = Ledger()
    measured: list[Usage] = []
    share = messages // producers
    with MockCluster.spawn() as cluster:
        cluster.create_topic("endurance", 12)
        load = Load(cluster.bootstrap_servers, share)
        for first in range(0, producers, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, producers))
            jobs = [
                Job(
                    ledger,
                    lambda number=number: load.run(number),
                    native=number % _NATIVE == 0,
                )
                for number in numbers
            ]
            for job in jobs:
                job.join(_LONGEST)
            assert not ledger.broken, ledger.broken[0]
            measured.append(Usage.now())
            report(
                f"{numbers.stop} producers, {load.delivered:,} messages: {measured[-1]}"
            )
    expected = share // _BATCH * _BATCH * producers
    assert not load.failed, f"{load.failed} messages failed"
    assert load.delivered == expected, f"{load.delivered} of {expected} were delivered"
    return measured


@dataclass
class Change:
    """The growth of one number of `Usage`.

    Attributes:
        early: Its median after the warm-up.
        late: Its median at the end of the run.
    """

    early: float
    late: float

    @property
    def growth(self) -> float:
        """The share by which it has grown."""
        return (self.late - self.early) / max(self.early, 1)

    def __str__(self) -> str:
        return f"{self.early:,.0f}, {self.late:,.0f}, {self.growth:.1%}"


def changes(measured: Sequence[Usage]) -> dict[str, Change]:
    """Compare each number after the warm-up with the same at the end."""
    warm, part = int(len(measured) * _WARM_UP), max(int(len(measured) * _PART), 1)
    early, late = measured[warm : warm + part], measured[-part:]
    return {
        name: Change(
            statistics.median(getattr(each, name) for each in early),
            statistics.median(getattr(each, name) for each in late),
        )
        for name in asdict(measured[0])
    }


def main() -> int:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.endurance")
    parser.add_argument("--messages", type=int, default=10_000_000)
    parser.add_argument("--producers", type=int, default=1_000)
    parser.add_argument(
        "--keep", action="store_true", help="write the result to docs/reliability.json"
    )
    options = parser.parse_args()
    gevent.get_hub()
    started = time.monotonic()
    measured = run(
        options.messages, options.producers, lambda text: print(text, flush=True)
    )
    changed = changes(measured)
    seconds = round(time.monotonic() - started)
    print(f"medians after the warm-up and at the end, and growth, in {seconds} s")
    for name, change in changed.items():
        print(f"{name:12} {change}")
    case = results.Case(
        name="producers that come and go",
        seconds=seconds,
        figures={
            "producers": options.producers,
            "messages": options.messages,
            **{
                f"{name}: median after the warm-up, at the end, growth": str(change)
                for name, change in changed.items()
            },
        },
        passed=all(change.growth < _GROWTH for change in changed.values()),
    )
    if options.keep:
        sizes = f"MESSAGES={options.messages} PRODUCERS={options.producers}"
        command = f"make endurance {sizes}"
        results.keep("endurance", command, [case], results.versions())
    return 0 if case.passed else 1


if __name__ == "__main__":
    sys.exit(main())
