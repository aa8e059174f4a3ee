"""A lock that tasks hold: one greenlet or thread at a time, in the order of asking.

Who waits for it lets other greenlets run. Knows nothing of what it protects.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress

from greendrop import _threads, _waiting
from greendrop._joins import waits_for


class Turn:
    """A task's use of the lock, from the moment it asks to the moment it gives back."""

    __slots__ = ("pid", "task", "waiter")

    def __init__(self, task: object) -> None:
        self.task = task
        self.pid = os.getpid()
        self.waiter: _waiting.ThreadWaiter | _waiting.GreenletWaiter | None = None

    @property
    def gone(self) -> bool:
        """Whether it waited in a hub that does not run any more."""
        return self.waiter is not None and self.waiter.gone


class OwnerWaitsError(Exception):
    """Who has the lock waits for the one who asks, so neither would ever go on."""


class OwnerInParentError(Exception):
    """Who has the lock is a task of the process that this one was forked from."""


class TaskLock:
    """Held by a task, and handed over in the order of asking.

    A task is a greenlet, or a thread where there is no hub; it may give the lock back
    from anywhere.
    """

    def __init__(self) -> None:
        #: Who has it.
        self.turn: Turn | None = None
        self._queue: deque[Turn] = deque()
        # Held over code that can't switch greenlets only.
        self._changing = _threads.new_lock()

    @property
    def is_mine(self) -> bool:
        """Whether the caller has it."""
        turn = self.turn
        return turn is not None and _waiting.is_current(turn.task)

    @property
    def inherited(self) -> bool:
        """Whether a task of the process that this one was forked from has it."""
        turn = self.turn
        return turn is not None and turn.pid != os.getpid()

    def acquire(self, turn: Turn, seconds: float) -> bool:
        """Wait for one's turn; False if it did not come in time.

        Whoever calls this gives the turn back afterwards, however it ended.

        Args:
            turn: The caller's, made for this.
            seconds: How long to wait.

        Raises:
            OwnerWaitsError: The one who has it waits for the end of the caller.
            OwnerInParentError: The one who has it would never give it back here.
            IllegalWaitError: Another one has it, and the caller is the hub itself.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread.
        """
        if self.inherited:
            raise OwnerInParentError
        with self._changing:
            # In the queue first: it decides, also when others come at this moment.
            self._queue.append(turn)
            self._hand_over()
            if self.turn is turn:
                return True
            turn.waiter = waiter = _waiting.new_waiter()
        deadline = _waiting.monotonic() + seconds
        while self.turn is not turn:
            left = deadline - _waiting.monotonic()
            if left <= 0:
                return False
            self._refuse_circle(turn)
            waiter.wait_patiently(left)
        return True

    def give_back(self, turn: Turn) -> None:
        """End a turn, however far it got."""
        with self._changing:
            if self.turn is turn:
                self.turn = None
            with suppress(ValueError):
                self._queue.remove(turn)
            self._hand_over()

    def _hand_over(self) -> None:
        # The lock is the waiter's from here on: whether it wakes, gives up or is
        # killed, `give_back` finds it there and passes it on.
        while self.turn is None and self._queue:
            turn = self._queue.popleft()
            if not turn.gone:
                self.turn = turn
                if turn.waiter is not None:
                    turn.waiter.wake()

    def _refuse_circle(self, turn: Turn) -> None:
        owner = self.turn
        if owner is not None and waits_for(owner.task, turn.task):
            raise OwnerWaitsError
