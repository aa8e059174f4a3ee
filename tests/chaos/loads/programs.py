"""The common parts of the programs: a plan, tasks, and the clock of their hub."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tests.tasks import LongestGap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.records import Recorder

#: Seconds that tasks may take to end, once their time is over.
ENDING = 120.0


@dataclass
class Plan:
    """The work of a program.

    Attributes:
        mode: "greenlets" or "threads".
        bootstrap_servers: Addresses of the brokers.
        topic: The topic of the messages.
        tasks: The number of greenlets or threads.
        seconds: How long they send.
        seed: Of sizes, rests, keys and rollbacks.
        folder: Gets the records.
        idempotent: Whether the producer is.
        peer: "greendrop", or "raw" for confluent-kafka alone.
    """

    mode: str
    bootstrap_servers: str
    topic: str
    tasks: int
    seconds: float
    seed: int
    folder: str
    idempotent: bool = True
    peer: str = "greendrop"

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read what `text` has written."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """Write it as an argument of a program."""
        return json.dumps(asdict(self))

    def prepare(self) -> None:
        """Patch this program if its tasks are greenlets."""
        if self.mode == "greenlets":
            from gevent import monkey  # noqa: PLC0415

            monkey.patch_all()
        # Errors of connections are expected here.
        logging.getLogger("greendrop").setLevel(logging.CRITICAL)


def configuration(bootstrap_servers: str) -> dict[str, Any]:
    """Return what the clients of all loads have in common."""
    return {
        "bootstrap.servers": bootstrap_servers,
        # librdkafka's 10 s and 60 s are long for a run of two minutes: the second one
        # is the time until it gives up a half-open connection.
        "reconnect.backoff.max.ms": 1_000,
        "socket.timeout.ms": 10_000,
    }


def transactional_id(topic: str, client: int) -> str:
    """Return the id by which the brokers know a client."""
    return f"{topic}-{client}"


def run_tasks(
    plan: Plan, functions: Sequence[Callable[[], None]], recorder: Recorder
) -> None:
    """Run functions in tasks, and a ticker beside greenlets.

    Sets `stuck` and `gap` of the summary. A task that is stuck is left behind.
    """
    with ExitStack() as stack:
        gap = None
        if plan.mode == "greenlets":
            gap = stack.enter_context(LongestGap())
        tasks = [
            threading.Thread(target=_run, args=(function, recorder), daemon=True)
            for function in functions
        ]
        for task in tasks:
            task.start()
        deadline = time.monotonic() + plan.seconds + ENDING
        for task in tasks:
            task.join(max(deadline - time.monotonic(), 0.0))
    recorder.summary.stuck += sum(task.is_alive() for task in tasks)
    recorder.summary.gap = None if gap is None else gap.seconds


def _run(function: Callable[[], None], recorder: Recorder) -> None:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - counted, and the run fails by it
        recorder.error(error)
        recorder.summary.stuck += 1


def leave() -> None:
    """End this program, even if a task is stuck."""
    os._exit(0)
