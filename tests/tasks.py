"""Concurrent tasks, and a clock that measures how long they could not run.

Tasks are greenlets in a program that uses gevent without patching, and threads in any
other; in a patched program threads are greenlets too. For tests in this process and for
programs in fresh interpreters.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Seconds between two ticks.
_TICK = 0.001


def _gevent() -> Any:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return None
    return sys.modules.get("gevent")


def sleep(seconds: float) -> None:
    """Let other tasks run.

    A thread without a hub gets none by this: a hub has descriptors, which tests count.
    """
    gevent = _gevent()
    if gevent is None or gevent._hub_local.get_hub_if_exists() is None:
        time.sleep(seconds)
    else:
        gevent.sleep(seconds)


class Task:
    """A function that runs concurrently from now on."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self._function = function
        self._args = args
        self._error: BaseException | None = None
        # Set before the task runs: a thread may end before `start` returns.
        self.result: Any = None
        gevent = _gevent()
        if gevent is not None:
            self._task = gevent.spawn(self._run)
        else:
            self._task = threading.Thread(target=self._run, daemon=True)
            self._task.start()

    def _run(self) -> None:
        try:
            self.result = self._function(*self._args)
        except BaseException as error:  # noqa: BLE001 - raised in join
            self._error = error

    def join(self, timeout: float = 20.0) -> Any:
        """Wait for its end; return its result, or raise its exception."""
        deadline = time.monotonic() + timeout
        while self.is_running:
            assert time.monotonic() < deadline, f"{self._function} runs too long"
            self._task.join(0.5)
        if self._error is not None:
            raise self._error
        return self.result

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        alive = getattr(self._task, "is_alive", None)
        return bool(alive()) if alive else not self._task.dead


def together(functions: Iterable[Callable[[], object]]) -> list[Any]:
    """Run functions concurrently; return their results, in order."""
    tasks = [Task(function) for function in functions]
    return [task.join() for task in tasks]


def await_true(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Let other tasks run until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        sleep(0.005)


class LongestGap:
    """The longest time that other tasks had to wait in a `with` block.

    A ticker asks to run each millisecond. Time in which this thread was ready and the
    machine ran another program is not counted. Objects from before the block are frozen
    for the garbage collector meanwhile, since pytest's process has many of them.
    """

    def __init__(self) -> None:
        #: The longest gap between two ticks.
        self.seconds = 0.0
        #: How often the ticker ran.
        self.ticks = 0
        self._running = False

    def __enter__(self) -> LongestGap:
        gc.collect()
        gc.freeze()
        self._running = True
        self._task = Task(self._tick)
        sleep(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._task.join()
        gc.unfreeze()

    def _tick(self) -> None:
        with _Delay() as delay:
            last, delayed = time.monotonic(), delay()
            while self._running:
                sleep(_TICK)
                now, delayed_now = time.monotonic(), delay()
                gap = (now - last) - (delayed_now - delayed)
                self.seconds = max(self.seconds, gap)
                self.ticks += 1
                last, delayed = now, delayed_now


class _Delay(contextlib.AbstractContextManager["_Delay"]):
    """Seconds that this thread has waited for a processor; 0 where that is unknown."""

    def __enter__(self) -> _Delay:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self._file = -1
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def __call__(self) -> float:
        if self._file < 0:
            return 0.0
        return int(os.pread(self._file, 100, 0).split()[1]) / 1e9
