"""Wait queues: tasks that wait for other tasks of the same process.

A `WaitQueue` wakes all of its tasks to check a condition. A `FairQueue` grants shares
of something scarce, in the order of waiting. Greenlets and threads may share a queue.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from greendrop._concurrency import native
from greendrop._concurrency.waiters import new_waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop._concurrency.deadline import Deadline
    from greendrop._concurrency.waiters import Waiter

#: Seconds of the longest wait without another check. A wake-up is lost if a signal
#: handler raises while another task is about to wake this one.
_RECHECK_EVERY = 1.0


class WaitQueue:
    """Tasks that wait until a condition holds.

    Another task that makes it hold calls `notify_all`.
    """

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        #: The waiting tasks. Its truth value is the cheapest check for waiters.
        self.waiters: deque[Waiter] = deque()

    @property
    def has_waiters(self) -> bool:
        """Whether a task waits."""
        return bool(self.waiters)

    def wait_until(
        self,
        condition: Callable[[], bool],
        deadline: Deadline,
        new_waiter: Callable[[], Waiter] = new_waiter,
    ) -> bool:
        """Wait until the condition holds; return False if the time was over first.

        Args:
            condition: Checked in this task, before it waits and when it was woken.
            deadline: When to give up.
            new_waiter: Returns a waiter for the caller. Called for each wait, since a
                waiter can be woken only once.

        Raises:
            IllegalWaitError: The condition does not hold, and the caller is the hub.

        Blocking:
            As the waiters do; by default, lets other greenlets run where the thread has
            a hub, else blocks the thread.
        """
        while not condition():
            waiter = new_waiter()
            self.waiters.append(waiter)
            try:
                # Check again, now that the waiter is in the queue: a task that made the
                # condition hold in between has not woken it.
                while not condition():
                    remaining = deadline.remaining()
                    if not remaining:
                        return False
                    if waiter.wait(min(remaining, _RECHECK_EVERY)):
                        break
            finally:
                if waiter in self.waiters:
                    with suppress(ValueError):  # another thread notifies now
                        self.waiters.remove(waiter)
        return True

    def notify_all(self) -> None:
        """Wake all tasks that wait; from any thread."""
        while self.waiters:
            try:
                waiter = self.waiters.popleft()
            except IndexError:  # another thread notifies as well
                return
            waiter.wake()


class _Entry:
    """A task in a `FairQueue`, from the moment it enters to the moment it leaves."""

    __slots__ = ("__weakref__", "granted", "waiter")

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        #: Whether it was granted a share.
        self.granted = False


class FairQueue:
    """Tasks that wait for a share of something scarce, in the order of waiting.

    A share that was granted counts in `granted` until its task has returned from `wait`
    and takes it. If that task gives up instead, the share goes to the next one.
    """

    __slots__ = ("_granted", "_lock", "entries")

    def __init__(self) -> None:
        # Weak references: an entry lives as long as the call of its task. If a signal
        # handler raises while a task leaves the queue, the entry disappears all the
        # same.
        #: The waiting tasks. Its truth value is the cheapest check for waiters.
        self.entries: deque[weakref.ref[_Entry]] = deque()
        self._granted: list[weakref.ref[_Entry]] = []
        # Held over code that doesn't wait. Without it, `grant` could remove an entry
        # from the queue, then its task could give up, and then the share would be
        # granted to that task and lost.
        self._lock = native.new_lock()

    @property
    def has_waiters(self) -> bool:
        """Whether a task waits that was granted nothing yet."""
        return bool(self.entries) and self._first() is not None

    @property
    def granted(self) -> int:
        """Number of shares that were granted and not taken yet."""
        if not self._granted:
            return 0
        return sum(reference() is not None for reference in list(self._granted))

    def __len__(self) -> int:
        return sum(reference() is not None for reference in list(self.entries))

    def grant(self, count: int) -> None:
        """Grant shares to the first tasks, and wake them; from any thread."""
        while count > 0:
            with self._lock:
                if (entry := self._first()) is None:
                    return
                self._granted.append(self.entries.popleft())
                entry.granted = True
            entry.waiter.wake()
            count -= 1

    def grant_all(self) -> None:
        """Grant shares to all tasks that wait now."""
        self.grant(len(self.entries))

    def wait(
        self,
        is_free: Callable[[], bool],
        waiter: Waiter,
        deadline: Deadline,
        *,
        first: bool = False,
        on_wait: Callable[[], float] | None = None,
    ) -> bool:
        """Wait until it is the caller's turn; return False if the time was over first.

        Args:
            is_free: Whether the first task in the queue may go on without a grant.
            waiter: A waiter of the calling task.
            deadline: When to give up.
            first: Whether to enter at the front, because the caller's turn came before
                and it got nothing after all.
            on_wait: Called each time before the first task of the queue waits; returns
                the seconds after which it is called again.

        Blocking:
            As the waiter does. Take the share right after it, before other code runs.
        """
        entry = _Entry(waiter)
        reference = weakref.ref(entry)
        taken = False
        try:
            (self.entries.appendleft if first else self.entries.append)(reference)
            # Check after entering: shares that became free in between were granted to
            # other tasks.
            while not entry.granted:
                pause = _RECHECK_EVERY
                if self._first() is entry:
                    if is_free():
                        break
                    if on_wait is not None:
                        pause = on_wait()
                remaining = deadline.remaining()
                if not remaining:
                    return False
                waiter.wait(min(remaining, pause))
            taken = True
            return True
        finally:
            # Not a method: a signal handler may raise at the entry of any function.
            with self._lock:
                if reference in self.entries:
                    self.entries.remove(reference)
                if entry.granted and reference in self._granted:
                    self._granted.remove(reference)
            if entry.granted and not taken:
                self.grant(1)

    def _first(self) -> _Entry | None:
        with self._lock:
            while self.entries:
                if (entry := self.entries[0]()) is not None:
                    return entry
                self.entries.popleft()
        return None
