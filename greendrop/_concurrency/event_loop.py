"""asyncio's event loop: waits of coroutines, and detecting a running loop.

The only module that uses asyncio. It is looked up in `sys.modules` and never imported
here, since a program without it runs no event loop.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from greendrop._concurrency.hub import current_task
from greendrop.errors import IllegalWaitError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Generator

    from typing_extensions import Self

#: Coroutines that are resumed in one turn of an event loop.
_RESUMED_PER_TURN = 100

# Tasks in a block of `NoWaits`: they run a verb that never waits in an event loop.
_no_wait_tasks: set[object] = set()


def in_event_loop() -> bool:
    """Return whether a wait in the calling thread would block a running event loop."""
    return _running_loop() is not None


def _running_loop() -> AbstractEventLoop | None:
    asyncio = sys.modules.get("asyncio")
    # The attribute is missing while another thread is importing asyncio.
    running_loop = getattr(asyncio, "_get_running_loop", None)
    loop: AbstractEventLoop | None = None if running_loop is None else running_loop()
    return loop


class NoWaits:
    """A block in which the calling task must not wait."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        task = current_task()
        # In a nested block there is nothing to do: the outer one ends the ban.
        self._task = None if task in _no_wait_tasks else task

    def __enter__(self) -> Self:
        if self._task is not None:
            _no_wait_tasks.add(self._task)
        return self

    def __exit__(self, *_: object) -> None:
        _no_wait_tasks.discard(self._task)


def check_waits_allowed() -> None:
    """Raise if the caller is in a block of `NoWaits`.

    Raises:
        IllegalWaitError: The caller is in such a block.
    """
    if _no_wait_tasks and current_task() in _no_wait_tasks:
        raise IllegalWaitError("can't wait in a running asyncio event loop")


class _WakeUps:
    """The coroutines of one event loop that are to be woken, by one call for all.

    A call for each writes to the loop's socket, and hands the GIL to the loop, each
    time: a web server whose requests await 200 handles took 1.25 to 1.5 times as long.
    """

    def __init__(self) -> None:
        self._waiters: deque[EventLoopWaiter] = deque()
        self._is_scheduled = False

    def add(self, waiter: EventLoopWaiter, loop: AbstractEventLoop) -> None:
        """Resume a coroutine soon; from any thread."""
        # Append, then read the flag. `run` does the opposite, so that one of the two
        # sees the other.
        self._waiters.append(waiter)
        if not self._is_scheduled:
            self._is_scheduled = True
            try:
                loop.call_soon_threadsafe(self.run, loop)
            except RuntimeError:
                self._waiters.clear()  # the loop is closed, so its coroutines are gone

    def run(self, loop: AbstractEventLoop) -> None:
        """Resume some of them, and the others in further turns; in the event loop.

        All coroutines that are resumed in one turn of the loop run before anything
        else does: a thousand of them would delay other requests and timers.
        """
        self._is_scheduled = False
        for _ in range(min(len(self._waiters), _RESUMED_PER_TURN)):
            self._waiters.popleft().resume()
        if self._waiters and not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self.run, loop)


_wake_ups: WeakKeyDictionary[AbstractEventLoop, _WakeUps] = WeakKeyDictionary()


class EventLoopWaiter:
    """A wait of a coroutine, which lets the event loop run others.

    Raises:
        RuntimeError: The calling thread runs no event loop.
    """

    __slots__ = ("_future", "_loop", "_wake_ups", "_woken")

    #: Longest `wait_slice`, in seconds.
    SLICE = 1.0

    def __init__(self) -> None:
        loop = _running_loop()
        if loop is None:
            raise RuntimeError("a handle can be awaited in asyncio only; use wait()")
        self._loop = loop
        wake_ups = _wake_ups.get(loop)
        if wake_ups is None:
            wake_ups = _wake_ups[loop] = _WakeUps()
        self._wake_ups = wake_ups
        # Only during a wait.
        self._future: Future[None] | None = None
        self._woken = False

    def wait_slice(self, seconds: float) -> Generator[Future[None], None, bool]:
        """Wait until woken; return False if `seconds`, or `SLICE`, were over first.

        Call it by `yield from`: it yields futures to the event loop.
        """
        future: Future[None] = self._loop.create_future()
        self._future = future
        timer = self._loop.call_later(min(seconds, self.SLICE), self._on_timer)
        try:
            if not self._woken:
                yield from future
        finally:
            timer.cancel()
            self._future = None
        return self._woken

    def wake(self) -> None:
        """Wake the coroutine; from any thread, any number of times."""
        self._woken = True
        self._wake_ups.add(self, self._loop)

    def _on_timer(self) -> None:
        # A signal handler may have raised before the wake-ups were scheduled.
        self._wake_ups.run(self._loop)
        self.resume()

    def resume(self) -> None:
        """Resume the coroutine if it waits; in the event loop."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
