"""How many messages are on their way, and who waits for that to change.

A message is outstanding from the moment it is taken until its verdict is told,
whether it is gathered, in librdkafka's queue, in flight or reported and not yet told.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greendrop import _waiting


class Outstanding:
    """The count of one client's messages on their way.

    Args:
        limit: Messages that fit into librdkafka's queue.
    """

    __slots__ = ("_limit", "_none", "_room", "direct", "gathered", "refused", "settled")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Taken in the hub's thread, which counts without a lock.
        self.gathered = 0
        #: Taken in other threads; counted under the client's gate.
        self.direct = 0
        #: Told by the serving task.
        self.settled = 0
        #: librdkafka refused a message that the count had room for: it limits bytes.
        self.refused = False
        self._room: deque[_waiting.Waiter] = deque()
        self._none: deque[_waiting.Waiter] = deque()

    @property
    def count(self) -> int:
        """Messages on their way. Below 0 for a moment when a report is quick."""
        return self.gathered + self.direct - self.settled

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return self.refused or self.gathered + self.direct - self.settled >= self._limit

    def settle(self, count: int) -> None:
        """Count verdicts that were told, and wake who waited for that."""
        self.settled += count
        self.refused = False
        if self._room:
            self._wake_for_room(count)
        if self._none and self.count <= 0:
            while self._none:
                self._none.popleft().wake()

    def wait_for_room(self, waiter: _waiting.Waiter, seconds: float) -> None:
        """Wait until verdicts made room, or the time is over.

        Blocking:
            As the waiter does. Others may take the room first: try, and wait again.
        """
        self._room.append(waiter)
        woken = False
        try:
            if self.full:
                woken = waiter.wait(seconds)
        finally:
            if not _forget(self._room, waiter) and not woken:
                # Woken, but killed or timed out at the same moment: it won't use the
                # room, so the next one must hear of it.
                self._wake_for_room(1)

    def wait_for_none(self, waiter: _waiting.Waiter, seconds: float) -> None:
        """Wait until nothing is on its way, or the time is over.

        Blocking:
            As the waiter does.
        """
        self._none.append(waiter)
        try:
            if self.count > 0:
                waiter.wait(seconds)
        finally:
            _forget(self._none, waiter)

    def _wake_for_room(self, count: int) -> None:
        for _ in range(min(count, len(self._room))):
            try:
                self._room.popleft().wake()
            except IndexError:
                return


def _forget(waiters: deque[_waiting.Waiter], waiter: _waiting.Waiter) -> bool:
    try:
        waiters.remove(waiter)
    except ValueError:
        return False
    return True
