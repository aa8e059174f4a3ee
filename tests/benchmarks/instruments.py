"""Instruments inside a measured process: clocks, a ticker, memory, wakeups."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

clock = time.perf_counter

#: Seconds between two ticks.
_TICK = 0.001


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


class Stopwatch:
    """Wall time and CPU time of this process since the stopwatch was created."""

    def __init__(self) -> None:
        self._wall = clock()
        self._cpu = time.process_time()

    def figures(self, messages: int) -> dict[str, float]:
        """Return messages per second, and CPU seconds per message of all threads."""
        if not messages:
            raise RuntimeError("no message was reported within the time")
        wall = clock() - self._wall
        cpu = time.process_time() - self._cpu
        return {"rate": messages / wall, "cpu": cpu / messages}


class Ticker:
    """A greenlet that wants to run every millisecond, and its lateness.

    A context manager. Times of the garbage collector are recorded as well: it stops the
    program, whichever part of it made the garbage.
    """

    def __init__(self) -> None:
        self._lateness: list[float] = []
        self._lateness_no_gc: list[float] = []
        self._collecting = 0.0
        self._began = 0.0
        self._on = True

    def __enter__(self) -> Ticker:
        # Threads are measured without gevent.
        import gevent  # noqa: PLC0415

        gc.callbacks.append(self._on_collection)
        self._sleep = gevent.sleep
        self._greenlet = gevent.spawn(self._tick)
        gevent.sleep(0)
        return self

    def __exit__(self, *_: object) -> None:
        # One more tick, so that a gap in progress is measured as a whole.
        self._on = False
        self._greenlet.join()
        gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, _: object) -> None:
        if phase == "start":
            self._began = clock()
        else:
            self._collecting += clock() - self._began

    def _tick(self) -> None:
        while self._on:
            collecting = self._collecting
            due = clock() + _TICK
            self._sleep(_TICK)
            late = max(clock() - due, 0.0)
            self._lateness.append(late)
            self._lateness_no_gc.append(late - (self._collecting - collecting))

    def figures(self) -> dict[str, float]:
        """Return the lateness, in seconds."""
        return {
            "late_p50": percentile(self._lateness, 0.5),
            "late_p99": percentile(self._lateness, 0.99),
            "late_max": max(self._lateness),
            "late_max_no_gc": max(self._lateness_no_gc),
        }


def resident_bytes() -> int:
    """Return this process's resident memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def python_threads() -> int:
    """Count threads that have run Python, including those unknown to `threading`."""
    return len(sys._current_frames())


def wakeups() -> int:
    """Count the times that the calling thread has gone to sleep so far (Linux)."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise RuntimeError("no count of context switches in /proc")
