"""asyncio's event loop: waits of coroutines, and detecting a running loop.

The only module that uses asyncio. It is looked up in `sys.modules` and never imported
here, since a program without it runs no event loop.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from greendrop._concurrency.deadline import monotonic
from greendrop._concurrency.hub import current_task
from greendrop.errors import IllegalWaitError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, TimerHandle

    from typing_extensions import Self

#: Seconds that one turn of an event loop is to spend with coroutines that are resumed.
_TURN = 0.002
#: Coroutines that the first turn resumes, and the most that any turn does.
_FIRST_TURN, _LARGEST_TURN = 32, 128
#: Seconds between two checks on the coroutines that wait.
_CHECK_INTERVAL = 1.0
#: Seconds by which the end of a wait may miss its deadline, so that there are not as
#: many checks as deadlines.
_PRECISION = 0.02

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


class _LoopWaits:
    """The waits of the coroutines of one event loop.

    It resumes coroutines in turns of the loop that end soon, and checks once a second
    on those that wait. One timer serves them all: with a timer for each wait, a web
    server whose requests await 200 handles used a fifth more CPU time, and collected
    garbage 1.7 times as often.
    """

    __slots__ = (
        "__weakref__",
        "_is_scheduled",
        "_loop",
        "_next_check",
        "_per_turn",
        "_timer",
        "_to_resume",
        "_turn_began",
        "_waiting",
    )

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: set[EventLoopWaiter] = set()
        self._timer: TimerHandle | None = None
        self._next_check = 0.0  # of the timer, if there is one
        self._to_resume: deque[EventLoopWaiter] = deque()
        self._is_scheduled = False
        self._per_turn = _FIRST_TURN
        # When the last turn began that left some for the next one; else 0.
        self._turn_began = 0.0

    def begin(self, waiter: EventLoopWaiter) -> Future[bool]:
        """Return a future that is done when the coroutine is resumed.

        Its result is whether the coroutine was woken, and not resumed by a check.
        """
        self._waiting.add(waiter)
        if waiter.deadline < self._next_check or self._timer is None:
            self._schedule_check(waiter.deadline)
        return self._loop.create_future()

    def end(self, waiter: EventLoopWaiter) -> None:
        """Forget a coroutine that goes on."""
        self._waiting.discard(waiter)

    def wake(self, waiter: EventLoopWaiter) -> None:
        """Resume a coroutine soon; from any thread.

        One call into the loop is for all that are woken before it runs. A call for each
        writes to the loop's socket, and hands the GIL to the loop, each time: a web
        server whose requests await 200 handles took 1.25 to 1.5 times as long.
        """
        # Append, then read the flag. `_run` does the opposite, so that one of the two
        # sees the other.
        self._to_resume.append(waiter)
        if not self._is_scheduled:
            self._is_scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._run)
            except RuntimeError:
                self._to_resume.clear()  # the loop is closed: its coroutines are gone

    def _run(self) -> None:
        """Resume some coroutines, and the others in further turns of the loop.

        All coroutines that are resumed in one turn run before anything else does: a
        thousand of them would delay other requests and timers. How long they take is up
        to the program, so the time of each turn decides how many the next one resumes.
        """
        self._is_scheduled = False
        now = monotonic()
        if self._turn_began:
            took = now - self._turn_began
            if took > _TURN:
                self._per_turn = max(self._per_turn // 2, 1)
            elif took < _TURN / 2:
                self._per_turn = min(self._per_turn * 2, _LARGEST_TURN)
        for _ in range(min(len(self._to_resume), self._per_turn)):
            self._to_resume.popleft().resume()
        self._turn_began = now if self._to_resume else 0.0
        if self._to_resume and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._run)

    def _schedule_check(self, latest: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = monotonic()
        self._next_check = min(latest, now + _CHECK_INTERVAL)
        self._timer = self._loop.call_later(self._next_check - now, self._check)

    def _check(self) -> None:
        """Resume the coroutines whose time is over, and one for each source."""
        self._timer = None
        now = monotonic()
        nearest = math.inf
        sources: dict[object, EventLoopWaiter] = {}
        # A copy: the garbage collector may end a coroutine meanwhile.
        for waiter in tuple(self._waiting):
            if waiter.deadline <= now + _PRECISION:
                self._to_resume.append(waiter)
            else:
                nearest = min(nearest, waiter.deadline)
                sources.setdefault(waiter.source, waiter)
        self._to_resume.extend(sources.values())
        if self._waiting:
            self._schedule_check(max(nearest, now + _PRECISION))
        # Also those that were woken: a signal handler may have raised before that was
        # scheduled.
        self._run()


# By the id of the loop, which lives as long as its waits do. Only the loop's own
# callbacks, and the coroutines, refer to the waits: they end with the loop.
_waits_by_loop: WeakValueDictionary[int, _LoopWaits] = WeakValueDictionary()


class EventLoopWaiter:
    """A wait of a coroutine, which lets the event loop run others.

    Args:
        source: What is waited for: of all coroutines with the same source, one is
            resumed each second.
        timeout: Seconds until `deadline`.

    Raises:
        RuntimeError: The calling thread runs no event loop.
    """

    __slots__ = ("_future", "_waits", "_woken", "deadline", "source")

    def __init__(self, source: object, timeout: float) -> None:
        loop = _running_loop()
        if loop is None:
            raise RuntimeError("a handle can be awaited in asyncio only; use wait()")
        waits = _waits_by_loop.get(id(loop))
        if waits is None:
            waits = _waits_by_loop[id(loop)] = _LoopWaits(loop)
        self._waits = waits
        self._future: Future[bool] | None = None
        self._woken = False
        self.source = source
        #: When the wait has to end, by the monotonic clock.
        self.deadline = monotonic() + timeout

    def wait_slice(self) -> Future[bool]:
        """Return a future for `yield from`; its result is whether this was woken.

        It is done about at `deadline`, and before for some waiter of each source.
        """
        future = self._future = self._waits.begin(self)
        if self._woken:
            future.set_result(True)
        return future

    def end(self) -> None:
        """End the wait; in the event loop."""
        self._waits.end(self)

    def wake(self) -> None:
        """Wake the coroutine; from any thread, any number of times."""
        self._woken = True
        self._waits.wake(self)

    def resume(self) -> None:
        """Resume the coroutine if it waits; in the event loop."""
        future = self._future
        if future is not None and not future.done():
            future.set_result(self._woken)
