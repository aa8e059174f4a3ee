"""Servers that are reloaded by SIGHUP and restarted after SIGTERM, for a while."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.loads.load import Setup
    from tests.chaos.records import Summary
    from tests.kafka.running import Program

#: Seconds between two signals, on average, and at least.
_EVERY, _LEAST = 12.0, 0.5
#: The share of SIGTERM among the signals.
_TERM = 0.3
#: Seconds for a server to end after SIGTERM: it waits for its messages.
_ENDING = 240.0


def keep_restarting(
    setup: Setup,
    start: Callable[[int], Program],
    summary: Summary,
    *,
    line: str,
    lines: int = 1,
) -> None:
    """Start a server, and start it again whenever it has ended, until time is over.

    Args:
        setup: Of the load.
        start: Starts the server; gets the number of the start, from 1.
        summary: Gets the signals, and the servers that did not end well.
        line: A line that the server writes when it starts and when it is reloaded.
            Before that it has no handlers, and a signal would just end it.
        lines: How often it writes that line each time.
    """
    dice = random.Random(setup.seed)
    deadline = time.monotonic() + setup.seconds
    starts = 0
    while starts == 0 or time.monotonic() < deadline:
        starts += 1
        with start(starts) as server:
            loads, name = 0, ""
            while name != "SIGTERM":
                loads += lines
                _await_lines(server, line, loads)
                pause = 2 * dice.random() * _EVERY
                time.sleep(max(min(pause, deadline - time.monotonic()), _LEAST))
                late = time.monotonic() >= deadline
                name = "SIGTERM" if late or dice.random() < _TERM else "SIGHUP"
                server.signal(signal.Signals[name])
                summary.signals[name] += 1
            summary.stuck += not _ends(server)


def _await_lines(server: Program, line: str, count: int) -> None:
    server.wait_for(f"writes {line!r}", lambda: server.log.count(line) >= count)


def _ends(server: Program) -> bool:
    """Wait for the end; return whether it came in time, with status 0."""
    try:
        return server.wait(_ENDING) == 0
    except subprocess.TimeoutExpired:
        return False
