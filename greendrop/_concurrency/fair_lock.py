"""A lock that tasks hold: one greenlet or thread at a time, in the order of asking.

Who waits for it lets other greenlets run. Knows nothing of what it protects.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress

from greendrop._concurrency import hub, native, waiters
from greendrop._concurrency.deadlocks import waits_for


class LockRequest:
    """A task's use of the lock, from the moment it asks to the moment it gives back."""

    __slots__ = ("pid", "released", "task", "waiter")

    def __init__(self, task: object) -> None:
        self.task = task
        self.pid = os.getpid()
        #: Set before `release` is called. From then on nobody has the lock, even if a
        #: signal handler raises at the start of that call.
        self.released = False
        self.waiter: waiters.ThreadWaiter | waiters.GreenletWaiter | None = None

    @property
    def is_dead(self) -> bool:
        """Whether it waited in a hub that does not run any more."""
        return self.waiter is not None and self.waiter.is_dead


class DeadlockError(Exception):
    """Who has the lock waits for the one who asks, so neither would ever go on."""


class OwnerInParentError(Exception):
    """Who has the lock is a task of the process that this one was forked from."""


class FairLock:
    """Held by a task, and handed over in the order of asking.

    A task is a greenlet, or a thread where there is no hub; it may give the lock back
    from anywhere.
    """

    def __init__(self) -> None:
        self._owner: LockRequest | None = None
        self._queue: deque[LockRequest] = deque()
        # Held over code that can't switch greenlets only.
        self._lock = native.new_lock()

    @property
    def request(self) -> LockRequest | None:
        """Who has it."""
        owner = self._owner
        return None if owner is None or owner.released else owner

    @property
    def held_by_me(self) -> bool:
        """Whether the caller has it."""
        request = self.request
        return request is not None and hub.is_current(request.task)

    @property
    def inherited(self) -> bool:
        """Whether a task of the process that this one was forked from has it."""
        request = self.request
        return request is not None and request.pid != os.getpid()

    def acquire(self, request: LockRequest, seconds: float) -> bool:
        """Wait for one's request; False if it did not come in time.

        Whoever calls this gives the request back afterwards, however it ended.

        Args:
            request: The caller's, made for this.
            seconds: How long to wait.

        Raises:
            DeadlockError: The one who has it waits for the end of the caller, or it is
                the caller itself, interrupted by a signal handler.
            OwnerInParentError: The one who has it would never give it back here.
            IllegalWaitError: Another one has it, and the caller is the hub itself.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread.
        """
        if self.inherited:
            raise OwnerInParentError
        with self._lock:
            if self._has_request_of(request.task):
                raise DeadlockError
            # In the queue first: it decides, also when others come at this moment.
            self._queue.append(request)
            self._hand_over()
            if self.request is request:
                return True
            request.waiter = waiter = waiters.new_waiter()
        deadline = time.monotonic() + seconds
        while self.request is not request:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._refuse_circle(request)
            waiter.wait_slice(left)
            with self._lock:
                self._hand_over()  # an exception may have prevented that
        return True

    def _has_request_of(self, task: object) -> bool:
        requests = list(self._queue)  # a handler that asks may come in between
        owner = self.request
        if owner is not None:
            requests.append(owner)
        return any(each.task == task for each in requests)

    def release(self, request: LockRequest) -> None:
        """End a request, however far it got."""
        request.released = True
        with self._lock:
            if self._owner is request:
                self._owner = None
            with suppress(ValueError):
                self._queue.remove(request)
            self._hand_over()

    def _hand_over(self) -> None:
        # The lock is the waiter's from here on: whether it wakes, gives up or is
        # killed, `release` finds it there and passes it on.
        while self.request is None and self._queue:
            request = self._queue.popleft()
            if not (request.is_dead or request.released):
                self._owner = request
                if request.waiter is not None:
                    request.waiter.wake()

    def _refuse_circle(self, request: LockRequest) -> None:
        owner = self.request
        if owner is not None and waits_for(owner.task, request.task):
            raise DeadlockError
