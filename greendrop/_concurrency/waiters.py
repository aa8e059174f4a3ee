"""Waiters: how a task sleeps until another task wakes it.

A `GreenletWaiter` lets its hub run other greenlets, and a `ThreadWaiter` blocks its
thread. `new_waiter` chooses when a wait begins, by the calling thread.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

from greendrop._concurrency import native
from greendrop._concurrency.deadline import Deadline
from greendrop._concurrency.event_loop import check_waits_allowed
from greendrop._concurrency.hub import (
    SHORTEST_TIMER,
    call_soon_threadsafe,
    current_hub,
    ensure_threadsafe_calls,
    hub_is_dead,
)
from greendrop.errors import IllegalWaitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.hub import Hub
    from greenlet import greenlet

#: Seconds after which the timer of a wait fires again, until the wait has ended.
_REPEAT = 0.1
#: Seconds between two checks whether a greenlet of a dead hub has been woken.
_DEAD_HUB_POLL = 0.01
#: Interval in seconds of a timer that only holds the loop.
_HOLD_LOOP = 3600.0


class Waiter(Protocol):
    """A wait of one task, which another task ends once by `wake`."""

    def wait(self, seconds: float) -> bool:
        """Wait until woken; return False if the time was over first."""

    def wait_slice(self, seconds: float) -> bool:
        """Wait for `SLICE` seconds at most, so that the caller can check for progress.

        The task that is to wake the caller may hang in a native call, or be gone.
        """

    def wake(self) -> None:
        """Wake the waiter; from any thread, any number of times."""


class ThreadWaiter:
    """A wait that blocks the thread."""

    __slots__ = ("_lock",)

    #: Longest `wait_slice`, in seconds.
    SLICE = 0.1

    #: Whether nothing can wake the task any more.
    is_dead = False

    def __init__(self) -> None:
        self._lock = native.allocate_lock()
        self._lock.acquire()

    def wait(self, seconds: float) -> bool:
        return self._lock.acquire(timeout=min(max(seconds, 0.0), native.LONGEST))

    def wait_slice(self, seconds: float) -> bool:
        return self.wait(min(seconds, self.SLICE))

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            return  # already woken


class GreenletWaiter:
    """A wait that lets the hub run other greenlets."""

    __slots__ = (
        "_hub",
        "_shared_timer",
        "_switch",
        "_timed_out_by_timer",
        "_woken",
        "greenlet",
    )

    #: Longer than a thread's: while the hub runs, so do the pollers in that hub.
    SLICE = 1.0

    def __init__(
        self,
        hub: Hub,
        greenlet: greenlet,
        shared_timer: SharedTimer | None = None,
    ) -> None:
        self._hub = hub
        self._shared_timer = shared_timer
        #: The greenlet that waits.
        self.greenlet = greenlet
        # The greenlet's `switch`, only during a wait.
        self._switch: Callable[[], object] | None = None
        self._woken = False
        self._timed_out_by_timer = False

    @property
    def is_dead(self) -> bool:
        """Whether nothing can wake the greenlet any more."""
        return hub_is_dead(self._hub)

    def wait(self, seconds: float) -> bool:
        loop = self._hub.loop
        # The timer also holds the loop: with nothing else to wait for, gevent would
        # raise LoopExit in a greenlet that waits for a report only.
        # It repeats, because a signal handler may raise at the entry of `time_out`: the
        # exception goes to the main greenlet, and a one-shot timer would be spent.
        after = seconds if seconds > SHORTEST_TIMER else SHORTEST_TIMER  # noqa: FURB136 - faster
        timer = loop.timer(after, _REPEAT)
        try:
            timer.start(self.time_out, update=True)
            return self._sleep(seconds)
        finally:
            timer.close()

    def wait_slice(self, seconds: float) -> bool:
        shared_timer = self._shared_timer
        if shared_timer is None or shared_timer.closed or seconds < self.SLICE:
            return self.wait(min(seconds, self.SLICE))
        # A timer for each wait is a sixth of the hub's time per message.
        try:
            shared_timer.add(self)
            return self._sleep(self.SLICE)
        finally:
            shared_timer.discard(self)

    def _sleep(self, seconds: float) -> bool:
        hub = self._hub
        try:
            # In the block: Python 3.10 may call a signal handler after each operation.
            # If that raised before the block, a late wake-up would find the switch.
            self._switch = self.greenlet.switch
            while not (self._woken or self._timed_out_by_timer):
                if hub.dead:
                    return self._block(seconds)
                hub.switch()
        finally:
            # From here on a late wake-up does nothing: it must not switch into a
            # greenlet that has gone on to other code.
            self._switch = None
            self._timed_out_by_timer = False
        return self._woken

    def _block(self, seconds: float) -> bool:
        """Block the thread until woken or for some seconds, because the hub is dead.

        A dead hub runs no timers and resumes no greenlets. A switch to it returns at
        once, so that a loop around the switch would spin without end.
        """
        deadline = Deadline(seconds)
        pause = ThreadWaiter()
        while not (self._woken or deadline.has_expired):
            pause.wait(min(deadline.remaining(), _DEAD_HUB_POLL))
        return self._woken

    @property
    def waits(self) -> bool:
        """Whether the greenlet is waiting now."""
        return self._switch is not None

    def time_out(self) -> None:
        """End a wait because its time is over; in the hub's thread."""
        self._timed_out_by_timer = True
        if self._switch is not None:
            self._hub.loop.run_callback(self._resume)

    def wake(self) -> None:
        self._woken = True
        hub = self._hub
        loop = hub.loop
        if loop is None or native.get_ident() != hub.thread_ident:
            call_soon_threadsafe(hub, self._resume)
        elif self._switch is not None:
            # In the hub's own thread no other task runs between the check and the
            # schedule, so the detour by `call_soon_threadsafe` is not needed.
            loop.run_callback(self._resume)

    def _resume(self) -> None:
        # An exception may have ended the wait since this was scheduled.
        if self._switch is not None:
            self._switch()


class SharedTimer:
    """One timer for the sliced waits of all greenlets of a hub; in its thread only.

    The timer holds the loop while a waiter is registered, as a timer for each wait
    would. It ends each wait after half a `SLICE` to a whole one.
    """

    __slots__ = ("_new", "_old", "_timer", "closed")

    def __init__(self, hub: Hub) -> None:
        ensure_threadsafe_calls(hub)
        loop = hub.loop
        interval = GreenletWaiter.SLICE / 2
        self._timer = loop.timer(interval, interval)
        # Waiters that were added since the timer last fired, and those from before,
        # whose waits end when it fires next.
        self._new: set[GreenletWaiter] = set()
        self._old: set[GreenletWaiter] = set()
        #: Whether `close` was called; no waiters may be added any more.
        self.closed = False

    def add(self, waiter: GreenletWaiter) -> None:
        """Register a waiter until `discard`."""
        if not (self._new or self._old):
            self._timer.start(self._on_timer, update=True)
        self._new.add(waiter)

    def discard(self, waiter: GreenletWaiter) -> None:
        """Remove a waiter."""
        self._new.discard(waiter)
        self._old.discard(waiter)
        if not (self._new or self._old or self.closed):
            self._timer.stop()

    def _on_timer(self) -> None:
        for waiter in self._old:
            waiter.time_out()
        # Waiters stay registered until `discard`, and hold the loop so long. Remove
        # those whose `discard` was prevented by a signal handler that raised.
        registered = self._new | self._old
        self._new, self._old = set(), {each for each in registered if each.waits}
        if not self._old:
            self._timer.stop()

    def close(self) -> None:
        """End all waits, and close the timer."""
        self.closed = True
        self._timer.close()
        for waiter in (*self._new, *self._old):
            waiter.time_out()


class RawLink:
    """A callback that gevent linked to an object, as `gevent.wait` does."""

    __slots__ = ("_hub", "_source", "_timer", "callback")

    def __init__(
        self, hub: Hub, callback: Callable[[Any], object], source: object
    ) -> None:
        self._hub = hub
        self._source = source
        self.callback = callback
        # Holds the loop, as the timer of a wait does: the task that linked waits.
        loop = hub.loop
        self._timer = loop.timer(_HOLD_LOOP, _HOLD_LOOP)
        self._timer.start(self._hold)

    def wake(self) -> None:
        call_soon_threadsafe(self._hub, self._call)

    @staticmethod
    def _hold() -> None:
        """Do nothing; the timer runs until `cancel` closes it."""

    def cancel(self) -> None:
        """Stop holding the loop; in the hub's thread."""
        self._timer.close()

    def _call(self) -> None:
        self.cancel()
        self.callback(self._source)


def new_waiter(*, is_short: bool = False) -> ThreadWaiter | GreenletWaiter:
    """Return a waiter of the kind that fits the calling thread.

    Args:
        is_short: The wait takes milliseconds, so a verb that never waits in an event
            loop may do so.

    Raises:
        IllegalWaitError: The caller runs in the hub itself, or in such a verb.
    """
    if not is_short:
        check_waits_allowed()
    hub = current_hub()
    if hub is None:
        return ThreadWaiter()
    ensure_threadsafe_calls(hub)
    return waiter_in(hub)


def waiter_in(hub: Hub, shared_timer: SharedTimer | None = None) -> GreenletWaiter:
    """Return a waiter for the calling greenlet.

    Args:
        hub: The hub of the calling thread.
        shared_timer: The timer for sliced waits.

    Raises:
        IllegalWaitError: The caller runs in the hub itself.
    """
    greenlet = sys.modules["greenlet"].getcurrent()
    if greenlet is hub:
        text = "can't wait in the hub itself (a callback of gevent's event loop)"
        raise IllegalWaitError(text)
    return GreenletWaiter(hub, greenlet, shared_timer)


def link(callback: Callable[[Any], object], source: object) -> RawLink:
    """Return a waiter whose `wake` calls the callback in the calling thread's hub."""
    hub = current_hub()
    if hub is None:
        hub = sys.modules["gevent._hub_local"].get_hub()
    ensure_threadsafe_calls(hub)
    return RawLink(hub, callback, source)
