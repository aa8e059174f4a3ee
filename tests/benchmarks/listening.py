"""What listening costs: microseconds of processor time for each message.

    python -m tests.benchmarks.listening [--quick]

Each listener in a process of its own. "event" is what one event costs, told a hundred
thousand times in a loop. "message" is what a message costs in all, of all threads,
while a hundred greenlets produce and wait on a mock cluster in another process; that
varies by some microseconds, so it shows the size, not the difference.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Greenlets that produce and wait.
_GREENLETS = 100
_EVENTS = 100_000
_MESSAGES = 30_000
#: A quick run has so many times fewer of both.
_QUICK = 30


def _nothing() -> None:
    """Subscribe nobody."""


def _silent() -> object:
    """Log lines that nobody asked for: neither logging nor structlog is configured."""
    from greendrop.listeners.log import LogListener  # noqa: PLC0415 - what is measured

    return LogListener()


def _standard() -> object:
    """Log lines by `logging`, formatted and thrown away."""
    logging.basicConfig(stream=_sink(), level=logging.INFO)
    return _silent()


def _structlog(level: int = logging.INFO) -> object:
    """Log lines by structlog as JSON, with time and level, thrown away."""
    import structlog  # noqa: PLC0415

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(_sink()),
        cache_logger_on_first_use=True,
    )
    return _silent()


def _structlog_warnings() -> object:
    """Log nothing but warnings and errors, by structlog: every line is left out."""
    return _structlog(logging.WARNING)


def _sink() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


#: What is measured, by name.
LISTENERS: Mapping[str, Callable[[], object]] = {
    "no listener": _nothing,
    "log, nothing configured": _silent,
    "log, logging at info": _standard,
    "log, structlog at info": _structlog,
    "log, structlog at warning": _structlog_warnings,
}


def measure(name: str, servers: str, part: int = 1) -> dict[str, float]:
    """Measure one listener in this process; microseconds by figure.

    Args:
        name: A key of `LISTENERS`.
        servers: A broker's address.
        part: Send only the so-manyth part of the messages.
    """
    # Here and not above: the process that only starts others needs none of it.
    from greendrop import Producer  # noqa: PLC0415

    producer = Producer({"bootstrap.servers": servers})
    listener = LISTENERS[name]()
    if listener is not None:
        producer.monitor.subscribe(listener)
    with producer:
        return {
            "event": _of_an_event(producer, _EVENTS // part),
            "message": _of_a_message(producer, _MESSAGES // part),
        }


def _of_an_event(producer: Any, events: int) -> float:
    from greendrop import Message  # noqa: PLC0415

    monitor = producer.monitor
    message = Message("topic", b"x" * 100)
    name = "message.produced_sync"
    began = time.process_time()
    for _ in range(events):
        if name in monitor.listeners:
            payload = {"producer_id": producer.id, "message": message, "time": 0.001}
            monitor.emit(name, payload)
    return (time.process_time() - began) / events * 1e6


def _of_a_message(producer: Any, messages: int) -> float:
    import gevent  # noqa: PLC0415

    def produce(count: int) -> None:
        for _ in range(count):
            producer.produce_sync(topic="topic", payload=b"x" * 100)

    def all_produce(count: int) -> None:
        greenlets = [
            gevent.spawn(produce, count // _GREENLETS) for _ in range(_GREENLETS)
        ]
        gevent.joinall(greenlets, raise_error=True)

    all_produce(messages // 10)
    began = time.process_time()
    all_produce(messages)
    return (time.process_time() - began) / messages * 1e6


def main() -> None:
    """Measure all listeners, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SERVERS"))
    arguments = parser.parse_args()
    part = _QUICK if arguments.quick else 1
    if arguments.one:
        print(json.dumps(measure(*arguments.one, part)))
        return
    from greendrop.testing import MockCluster  # noqa: PLC0415

    figures: dict[str, list[dict[str, float]]] = {name: [] for name in LISTENERS}
    with MockCluster.spawn() as cluster:
        for _ in range(1 if arguments.quick else arguments.rounds):
            for name, rounds in figures.items():
                one = [name, cluster.bootstrap_servers]
                rounds.append(_in_a_process(one, quick=arguments.quick))
    print(f"{'us':<30}{'event':>10}{'message':>10}")
    for name, rounds in figures.items():
        event, message = (
            sorted(each[figure] for each in rounds)[len(rounds) // 2]
            for figure in ("event", "message")
        )
        print(f"{name:<30}{event:>10.2f}{message:>10.2f}")


def _in_a_process(one: list[str], *, quick: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.listening", "--one", *one]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    main()
