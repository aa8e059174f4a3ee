"""One measurement, in this process: `python -m tests.benchmarks.measure JSON`.

Runs one load with one contender, after a short warm-up, and writes the figures as one
line of JSON. Seconds, bytes, and messages per second.
"""

# ruff: noqa: PLC0415 - a process imports only what its own load needs

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.benchmarks.cells import Load
from tests.benchmarks.contenders import CONTENDERS, PATCHED
from tests.benchmarks.contenders.base import PAYLOAD, Contender, Place
from tests.benchmarks.instruments import (
    Stopwatch,
    Ticker,
    percentile,
    python_threads,
    resident_bytes,
    wakeups,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Factory = Callable[[Place], Contender]

Figures = dict[str, float]

#: Seconds of load before the measurement.
_WARM_UP = 0.3
#: Messages that a worker sends without waiting before others have a turn, where a
#: ticker measures: a loop that never yields is its own author's doing.
_PIECE = 100
#: Seconds of a broker's answer that is to come when all messages have been sent.
_LATE_ANSWER = 2.0
_IDLE = 3.0


def wait(make: Factory, place: Place, load: Load, seconds: float) -> Figures:
    """Loops that produce and wait."""
    contender = make(place)
    contender.wait_loops(load, _WARM_UP)
    with ExitStack() as stack:
        ticker = stack.enter_context(Ticker()) if load.ticker else None
        stopwatch = Stopwatch()
        waits = contender.wait_loops(load, seconds)
        figures = stopwatch.figures(len(waits))
    figures["p50"] = percentile(waits, 0.5)
    figures["p99"] = percentile(waits, 0.99)
    contender.close()
    return figures | (ticker.figures() if ticker else {})


def fire(make: Factory, place: Place, load: Load, seconds: float) -> Figures:
    """Send without waiting, then wait for all reports."""
    contender = make(place)
    contender.connect()
    count = load.count if seconds >= 1 else load.count // 4
    if not load.ticker:
        stopwatch = Stopwatch()
        contender.fire(count)
        figures = stopwatch.figures(count)
        contender.close()
        return figures
    with Ticker() as ticker:
        stopwatch = Stopwatch()
        _fire_in_greenlets(contender, load.workers, count // load.workers)
        contender.finish()
        figures = stopwatch.figures(count)
    contender.close()
    return figures | ticker.figures()


def _fire_in_greenlets(contender: Contender, workers: int, count: int) -> None:
    import gevent

    def worker() -> None:
        for number in range(count):
            contender.send()
            if not number % _PIECE:
                gevent.sleep(0)

    gevent.joinall([gevent.spawn(worker) for _ in range(workers)], raise_error=True)


def batch(make: Factory, place: Place, load: Load, seconds: float) -> Figures:
    """Batches, one after another."""
    contender = make(place)
    contender.prepare_batch(load.count)
    for _ in _for_seconds(_WARM_UP):
        contender.send_batch()
    with ExitStack() as stack:
        ticker = stack.enter_context(Ticker()) if contender.in_hub else None
        stopwatch = Stopwatch()
        batches = 0
        for _ in _for_seconds(seconds):
            contender.send_batch()
            batches += 1
        figures = stopwatch.figures(batches * load.count)
    contender.close()
    return figures | (ticker.figures() if ticker else {})


def burst(make: Factory, place: Place, load: Load, seconds: float) -> Figures:
    """Have all reports arrive at once, from a broker of this measurement's own."""
    from greendrop.testing import MockCluster

    with MockCluster.spawn() as cluster:
        contender = make(Place(cluster.bootstrap_servers, place.topic))
        contender.connect()
        cluster.round_trip(_LATE_ANSWER)
        started_at = time.perf_counter()
        for _ in range(load.count):
            contender.send()
        if time.perf_counter() - started_at > _LATE_ANSWER:
            raise RuntimeError("sending took longer than the broker")
        with Ticker() as ticker:
            contender.finish()
        contender.close()
    return ticker.figures()


def memory(make: Factory, place: Place, load: Load, seconds: float) -> Figures:
    """Fill the queue of a producer whose broker never answers."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        contender = make(Place(address, place.topic))
        for _ in range(100):
            contender.send()
        gc.collect()
        before = resident_bytes()
        for _ in range(load.count - 100):
            contender.send()
        each = (resident_bytes() - before) / (load.count - 100)
        return {"bytes": each - len(PAYLOAD)}


def transact(make: Factory, place: Place, load: Load, seconds: float) -> Figures:
    """Run transactions, one after another, or those of several producers at once."""
    contender = make(place)
    contender.transact_loops(load, _WARM_UP)
    stopwatch = Stopwatch()
    took = contender.transact_loops(load, seconds)
    figures = stopwatch.figures(len(took) * load.count)
    figures["p50"] = percentile(took, 0.5)
    contender.close()
    return figures


def idle(make: Factory, place: Place, load: Load, seconds: float) -> Figures:
    """Stay connected and do nothing."""
    contender = make(place)
    import gevent

    contender.send_and_wait(None)
    gevent.sleep(1.0)
    before, cpu = wakeups(), time.process_time()
    gevent.sleep(_IDLE)
    cpu = time.process_time() - cpu
    figures = {
        "threads": python_threads() - 1,
        # One of them is the end of our own sleep.
        "wakeups": (wakeups() - before - 1) / _IDLE,
        "idle_cpu": cpu / _IDLE,
    }
    contender.close()
    return figures


def _for_seconds(seconds: float) -> Iterator[None]:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield


LOADS: dict[str, Callable[[Factory, Place, Load, float], Figures]] = {
    "wait": wait,
    "fire": fire,
    "batch": batch,
    "burst": burst,
    "memory": memory,
    "idle": idle,
    "transact": transact,
}


def main() -> None:
    """Run the measurement described by the first argument."""
    order = json.loads(sys.argv[1])
    load = Load(**order["load"])
    if order["contender"] in PATCHED:
        from gevent import monkey

        monkey.patch_all()
    if load.worker_kind == "greenlets":
        import gevent

        gevent.get_hub()
    place = Place(order["bootstrap_servers"], order["topic"])
    make = CONTENDERS[order["contender"]]
    figures = LOADS[load.kind](make, place, load, order["seconds"])
    print(json.dumps(figures), flush=True)
    # Messages queued for a mute broker would be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
