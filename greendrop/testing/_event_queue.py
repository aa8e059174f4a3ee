"""What has come in for a producer whose brokers are in memory, and was not polled."""

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
    """What has come in for a producer: its main queue.

    As librdkafka's, it signals a descriptor when it was empty and is not any more.
    """

    def __init__(self) -> None:
        self._entries: deque[Callable[[], object]] = deque()
        self._bell = _concurrency.ThreadWaiter()
        self._fd = -1
        self._yielded = False

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Callable[[], object]) -> None:
        """Add a call that a poll is to make."""
        self._entries.append(entry)
        if len(self._entries) == 1:
            self.wake()

    def serve(self, seconds: float) -> int:
        """Make the calls that are there; wait for one if there is none."""
        if not self._entries and seconds > 0:
            self._bell.wait(seconds)
        self._yielded = False
        count = 0
        try:
            while not self._yielded:
                try:
                    entry = self._entries.popleft()
                except IndexError:  # another thread serves, too
                    break
                count += 1
                entry()
        finally:
            if self._entries:
                self.wake()
        return count

    def silence(self) -> None:
        """Signal no more."""
        self._fd = -1

    # --- as `bindings.MainQueue` ------------------------------------------------

    def signal_on(self, fd: int) -> bool:
        """Have a descriptor written to."""
        self._fd = fd
        return True

    def wake(self) -> None:
        """Signal the descriptor, and end a poll that is waiting."""
        self._bell.wake()
        fd = self._fd
        if fd >= 0:
            try:
                os.write(fd, _ONE)
            except BlockingIOError:
                return  # full, which is as good

    def yield_poll(self) -> None:
        """Make the poll that runs this callback return after it."""
        self._yielded = True

    def release(self) -> None:
        """End the signals."""
        self.silence()
