"""Fair locks: items that tasks hold one at a time, in the order of asking.

A `FairPool` hands out several items, and a `FairLock` is a pool of one. A task is a
greenlet, or a thread where there is no hub.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from greendrop._concurrency import hub, native, waiters

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greendrop._concurrency.deadline import Deadline

T = TypeVar("T")

#: Seconds of the longest wait without another check. A signal handler may raise in the
#: task that is about to wake this one.
_RECHECK_EVERY = 1.0


class OwnerInParentError(Exception):
    """The lock is held by a task of the process that this one was forked from."""


class DeadlockError(Exception):
    """The calling task waits for the lock, or holds it, already.

    A signal handler interrupted the task and asked for the lock: neither could go on.
    """


class Request(Generic[T]):
    """A task's request for an item of a pool, and its hold of that item.

    Args:
        task: The caller, from `current_task`.
    """

    __slots__ = ("item", "pid", "released", "task", "waiter")

    def __init__(self, task: object) -> None:
        self.task = task
        self.pid = os.getpid()
        #: None until the pool has handed an item over.
        self.item: T | None = None
        #: Whether the task needs no item any more. A caller may set it just before
        #: `release`, in case a signal handler raises at the start of that call.
        self.released = False
        self.waiter: waiters.ThreadWaiter | waiters.GreenletWaiter | None = None

    @property
    def is_dead(self) -> bool:
        """Whether the task waited on a hub that is dead now."""
        return self.waiter is not None and self.waiter.is_dead


class FairPool(Generic[T]):
    """Items that tasks hold, each by one task at a time, in the order of asking.

    Signal handlers may raise at any step. So an item is free unless a request holds it
    that was not released, and each other state here is derived from that.

    Args:
        items: The items. The last one is handed over first, and an item that was
            released is the next to be handed over.
    """

    def __init__(self, items: Iterable[T]) -> None:
        #: Held over code that can't switch greenlets only. Users of the pool acquire it
        #: to change state of their own together with the pool's.
        self.lock = native.new_lock()
        self._items = list(items)
        #: Requests that an item was handed over to. Some may be released, after a
        #: signal handler has raised in `release`.
        self.handed_over: list[Request[T]] = []
        self._queue: deque[Request[T]] = deque()
        self._closed = False

    @property
    def holders(self) -> list[Request[T]]:
        """The requests that hold an item."""
        return [
            each
            for each in list(self.handed_over)
            if each.item is not None and not each.released
        ]

    @property
    def free(self) -> list[T]:
        """The items that no task holds; the last one is handed over next."""
        held = {id(each.item) for each in list(self.handed_over) if not each.released}
        return [each for each in self._items if id(each) not in held]

    @property
    def requests(self) -> list[Request[T]]:
        """The requests that wait for an item or hold one."""
        return [*list(self._queue), *self.holders]

    @property
    def waiting(self) -> int:
        """Number of tasks that wait for an item."""
        return len(self._queue)

    def acquire(self, request: Request[T], deadline: Deadline) -> bool:
        """Wait for an item; return False without one.

        The wait ends without an item at the deadline, or when the pool is closed.
        Whatever happens here, the caller has to `release` the request afterwards.

        Raises:
            IllegalWaitError: No item is free, and the caller is the hub itself.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread.
        """
        with self.lock:
            if self._closed:
                return False
            # Queued first, so that the order of asking also holds for tasks that arrive
            # at this moment.
            self._queue.append(request)
            self._hand_over()
            if request.item is not None:
                return True
            request.waiter = waiter = waiters.new_waiter()
        while request.item is None:
            remaining = deadline.remaining()
            if not remaining or waiter.wait(min(remaining, _RECHECK_EVERY)):
                break
            # A signal handler may have raised in `release`, before this step.
            with self.lock:
                self._hand_over()
        return request.item is not None

    def release(self, request: Request[T]) -> None:
        """End a request, in whatever state it is; from any task."""
        request.released = True
        item = request.item
        with self.lock:
            if item is not None:
                self._items = [each for each in self._items if each is not item] + [
                    item
                ]
            for requests in (self.handed_over, self._queue):
                with suppress(ValueError):
                    requests.remove(request)
            self._hand_over()

    def close(self) -> None:
        """Hand over no more items, and end all waits."""
        with self.lock:
            self._closed = True
            while self._queue:
                waiter = self._queue.popleft().waiter
                if waiter is not None:
                    waiter.wake()

    def _hand_over(self) -> None:
        # From here on the item belongs to the request: whether its task wakes, times
        # out or is killed, `release` finds the item there and passes it on.
        # The queue last: a signal handler that asks may have emptied it meanwhile.
        while (free := self.free) and self._queue:
            request = self._queue.popleft()
            # A dead hub accepts a wake-up and never runs it.
            if not (request.is_dead or request.released):
                self.handed_over.append(request)
                request.item = free[-1]
                if request.waiter is not None:
                    request.waiter.wake()


class LockRequest(Request[bool]):
    """A task's request for a `FairLock`, and its hold of it."""

    __slots__ = ()


class FairLock:
    """A lock that tasks hold one at a time, in the order of asking.

    The task that holds the lock may have another task release it.
    """

    def __init__(self) -> None:
        self._pool = FairPool([True])

    @property
    def waiting(self) -> int:
        """Number of tasks that wait for the lock."""
        return self._pool.waiting

    @property
    def holder(self) -> Request[bool] | None:
        """The request that holds the lock."""
        # Called for each message of a transaction, so without the lists of `FairPool`.
        for request in self._pool.handed_over:
            if request.item and not request.released:
                return request
        return None

    @property
    def held_by_me(self) -> bool:
        """Whether the calling task holds the lock."""
        holder = self.holder
        return holder is not None and hub.is_current(holder.task)

    @property
    def inherited(self) -> bool:
        """Whether a task of the process that this one was forked from holds it."""
        holder = self.holder
        return holder is not None and holder.pid != os.getpid()

    def acquire(self, request: LockRequest, deadline: Deadline) -> bool:
        """Wait for the lock; return False if the deadline expired first.

        Whatever happens here, the caller has to `release` the request afterwards.

        Raises:
            DeadlockError: The calling task waits for the lock, or holds it, already.
            OwnerInParentError: The holder would never release the lock here.
            IllegalWaitError: Another task holds the lock, and the caller is the hub.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread.
        """
        if self.inherited:
            raise OwnerInParentError
        if any(each.task == request.task for each in self._pool.requests):
            raise DeadlockError
        return self._pool.acquire(request, deadline)

    def release(self, request: LockRequest) -> None:
        """End a request, in whatever state it is; from any task."""
        self._pool.release(request)
