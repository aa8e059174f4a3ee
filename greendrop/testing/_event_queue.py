"""The main queue of a memory producer: events that wait for a poll."""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import TYPE_CHECKING

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable

_ONE = (1).to_bytes(8, sys.byteorder)


class EventQueue:
    """Events that wait for a poll.

    Like librdkafka's main queue it signals a descriptor when it stops being empty.
    """

    def __init__(self) -> None:
        self._entries: deque[Callable[[], object]] = deque()
        self._waiter = _concurrency.ThreadWaiter()
        self._fd = -1
        self._yielded = False

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Callable[[], object]) -> None:
        """Add a function, to be called by a poll."""
        self._entries.append(entry)
        if len(self._entries) == 1:
            self.wake()

    def serve(self, seconds: float) -> int:
        """Call the functions in the queue; wait for one if the queue is empty."""
        if not self._entries and seconds > 0:
            self._waiter.wait(seconds)
        self._yielded = False
        count = 0
        try:
            while not self._yielded:
                try:
                    entry = self._entries.popleft()
                except IndexError:  # another thread polls, too
                    break
                count += 1
                entry()
        finally:
            if self._entries:
                self.wake()
        return count

    def silence(self) -> None:
        """Stop signalling."""
        self._fd = -1

    # --- the interface of `bindings.MainQueue` ----------------------------------

    def signal_on(self, fd: int) -> bool:
        """Start signalling a descriptor."""
        self._fd = fd
        return True

    def wake(self) -> None:
        """Signal the descriptor, and end a poll that is waiting."""
        self._waiter.wake()
        fd = self._fd
        if fd >= 0:
            try:
                os.write(fd, _ONE)
            except BlockingIOError:
                return  # full: readable all the same

    def yield_poll(self) -> None:
        """Let the current poll return after this callback."""
        self._yielded = True

    def release(self) -> None:
        """Stop signalling, for good."""
        self.silence()
