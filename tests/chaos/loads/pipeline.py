"""Consume, transform, produce: workers that are killed with SIGKILL, and started again.

The workers are those of examples/exactly_once.py. The harness feeds their input.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.chaos.loads.load import Account, Setup
from tests.chaos.loads.programs import ENDING, configuration
from tests.chaos.reading import read_visible
from tests.chaos.records import Sent, Summary
from tests.kafka.running import ROOT, Program

if TYPE_CHECKING:
    from collections.abc import Callable

_EXAMPLE = ROOT / "examples" / "exactly_once.py"
_WORKERS = 2
#: As of the load's topic, so that a key has the same partition in both.
PARTITIONS = 6
_KEYS = 20
#: Seconds between two messages of the input, and between two kills, on average.
_REST, _EVERY = 0.01, 6.0


class Worker:
    """A worker that is started whenever it is not running, until nothing is left."""

    def __init__(self, setup: Setup, source: str, number: int) -> None:
        self._start: Callable[[], Program] = lambda: Program(
            *(str(_EXAMPLE), "--work", setup.bootstrap_servers, source, setup.topic),
            *("--name", f"{setup.topic}-{number}"),
            log_file=setup.folder / f"worker-{number}-{self.starts}.log",
        )
        self.starts = 0
        self.failures = 0
        self._restart()

    def _restart(self) -> None:
        self._program = self._start()
        self.starts += 1

    def ensure_running(self) -> None:
        """Start the worker again if it has ended."""
        status = self._program.status
        if status is not None:
            self.failures += status != 0
            self._restart()

    def kill(self) -> None:
        """Kill the worker."""
        self._program.kill()
        self._restart()

    def finish(self, deadline: float) -> bool:
        """Wait until the worker finds nothing more to read, and ends.

        A worker that fails is started again.

        Returns:
            Whether it has ended in time.
        """
        while (status := self._program.status) != 0:
            if time.monotonic() > deadline:
                self._program.kill()
                return False
            if status is not None:
                self.ensure_running()
            time.sleep(0.1)
        return True


def run(setup: Setup) -> Account:
    """Feed the workers, kill one every few seconds, and wait until nothing is left."""
    source = f"{setup.topic}-in"
    admin = AdminClient({"bootstrap.servers": setup.direct_servers, "log_level": 0})
    topic = NewTopic(source, num_partitions=PARTITIONS)
    admin.create_topics([topic])[source].result(30)
    deadline = time.monotonic() + setup.seconds
    feeder = threading.Thread(target=_feed, args=(setup, source, deadline))
    feeder.start()
    workers = [Worker(setup, source, number) for number in range(_WORKERS)]
    summary = Summary()
    dice = random.Random(setup.seed)
    kill_at = time.monotonic() + _EVERY
    while time.monotonic() < deadline:
        if time.monotonic() > kill_at:
            dice.choice(workers).kill()
            summary.signals["SIGKILL"] += 1
            kill_at += 2 * dice.random() * _EVERY
        for each in workers:
            each.ensure_running()
        time.sleep(0.1)
    feeder.join()
    ending = time.monotonic() + ENDING
    summary.stuck = sum(not each.finish(ending) for each in workers)
    # What is in the input has to be in the output.
    fed = read_visible(setup.direct_servers, source)
    if failures := sum(each.failures for each in workers):
        summary.errors["worker failed"] = failures
    return Account([Sent(each.payload, "acknowledged") for each in fed], summary)


def _feed(setup: Setup, source: str, deadline: float) -> None:
    """Write numbered records until a deadline."""
    dice = random.Random(setup.seed)
    producer = Producer(
        {
            **configuration(setup.bootstrap_servers),
            "enable.idempotence": True,
            "log_level": 0,
        }
    )
    count = 0
    while time.monotonic() < deadline:
        # The example's workers transform it to upper case, which it is already.
        key = f"KEY{dice.randrange(_KEYS)}"
        producer.produce(source, f"{key}-{count}", key)
        producer.poll(0)
        count += 1
        time.sleep(_REST)
    producer.flush(ENDING)
