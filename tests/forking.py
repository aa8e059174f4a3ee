"""Forked copies of a program that call a function and send its result to the parent.

For programs in fresh interpreters: pytest's process must not be forked.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from tests import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

_EXIT = 7


def forks() -> dict[str, Callable[[], int]]:
    """Return the functions that fork in this program, by name."""
    ways = {"os.fork": os.fork}
    gevent_os = sys.modules.get("gevent.os")
    if gevent_os is not None:
        ways["gevent.os.fork"] = gevent_os.fork
    return ways


class Fork:
    """A forked child that calls a function and ends at once, without exit handlers."""

    def __init__(
        self, function: Callable[[], object], fork: Callable[[], int] = os.fork
    ) -> None:
        self._reader, writer = os.pipe()
        self._pid = fork()
        if not self._pid:
            self._call(function, writer)
        os.close(writer)
        os.set_blocking(self._reader, False)

    @staticmethod
    def _call(function: Callable[[], object], writer: int) -> None:
        try:
            answer = [None, function()]
        except BaseException:  # noqa: BLE001 - sent to the parent
            answer = [traceback.format_exc(), None]
        os.write(writer, json.dumps(answer).encode())
        os._exit(_EXIT)

    def result(self, timeout: float = 10.0) -> Any:
        """Wait for the child's end, letting other tasks run; return its result."""
        deadline = time.monotonic() + timeout
        data = b""
        while True:
            assert time.monotonic() < deadline, "the forked child hangs"
            try:
                data = os.read(self._reader, 65536)
                break
            except BlockingIOError:
                tasks.sleep(0.005)
        os.close(self._reader)
        assert wait_for_exit(self._pid, deadline - time.monotonic()) == _EXIT
        problem, result = json.loads(data)
        assert problem is None, problem
        return result


def wait_for_exit(pid: int, timeout: float = 10.0) -> int:
    """Wait for a child's end, letting other tasks run; return its exit code."""
    deadline = time.monotonic() + timeout
    # gevent reaps the children that it has forked, once its loop has seen SIGCHLD. It
    # misses that of the first one if that ends before gevent has set its handler.
    gevent_os, monkey = (sys.modules.get(f"gevent.{name}") for name in ("os", "monkey"))
    waitpid = monkey.get_original("os", "waitpid") if monkey else os.waitpid
    while True:
        try:
            ended, status = waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            if gevent_os is None:
                raise
            ended, status = gevent_os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        assert time.monotonic() < deadline, "the forked child does not end"
        tasks.sleep(0.005)
