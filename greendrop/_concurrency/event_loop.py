"""asyncio's event loop: waits of coroutines, and detecting a running loop.

The only module that uses asyncio. It is looked up in `sys.modules` and never imported
here, since a program without it runs no event loop.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from greendrop._concurrency.hub import current_task
from greendrop.errors import IllegalWaitError

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Generator

    from typing_extensions import Self

# Tasks in a block of `NoWaits`: they run a verb that never waits in an event loop.
_no_wait_tasks: set[object] = set()


def in_event_loop() -> bool:
    """Return whether a wait in the calling thread would block a running event loop."""
    return _running_loop() is not None


def _running_loop() -> Any:  # noqa: ANN401 - asyncio's or another library's
    asyncio: Any = sys.modules.get("asyncio")
    # The attribute is missing while another thread is importing asyncio.
    running_loop = getattr(asyncio, "_get_running_loop", None)
    return None if running_loop is None else running_loop()


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


class EventLoopWaiter:
    """A wait of a coroutine, which lets the event loop run others.

    Raises:
        RuntimeError: The calling thread runs no event loop.
    """

    __slots__ = ("_future", "_loop", "_woken")

    #: Longest `wait_slice`, in seconds.
    SLICE = 1.0

    def __init__(self) -> None:
        self._loop = _running_loop()
        if self._loop is None:
            raise RuntimeError("a handle can be awaited in asyncio only; use wait()")
        # Only during a wait.
        self._future: Future[None] | None = None
        self._woken = False

    def wait_slice(self, seconds: float) -> Generator[Any, None, bool]:
        """Wait until woken; return False if `seconds`, or `SLICE`, were over first.

        Call it by `yield from`: it yields futures to the event loop.
        """
        future: Future[None] = self._loop.create_future()
        self._future = future
        timer = self._loop.call_later(min(seconds, self.SLICE), self._resume)
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
        try:
            self._loop.call_soon_threadsafe(self._resume)
        except RuntimeError:
            return  # the loop is closed, so the coroutine is gone

    def _resume(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
