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

    Room is given first come, first served: who has just been served must not take
    the room that was made for those who wait, or some of them would wait for ever.

    Args:
        limit: Messages that fit into librdkafka's queue.
    """

    __slots__ = (
        "_limit",
        "_none",
        "_promised",
        "_room",
        "direct",
        "gathered",
        "refused",
        "settled",
    )

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
        # Waiters that were woken for room and have not taken it yet.
        self._promised = 0
        self._none: deque[_waiting.Waiter] = deque()

    @property
    def count(self) -> int:
        """Messages on their way. Below 0 for a moment when a report is quick."""
        return self.gathered + self.direct - self.settled

    @property
    def full(self) -> bool:
        """Whether there is no room for one who has waited for it."""
        count = self.gathered + self.direct - self.settled
        # What librdkafka refused for its bytes fits once nothing is on its way.
        return count >= self._limit or (self.refused and count > 0)

    @property
    def full_for_newcomers(self) -> bool:
        """Whether there is no room, or others wait for it."""
        count = self.gathered + self.direct - self.settled + self._promised
        return count >= self._limit or bool(self._room) or (self.refused and count > 0)

    def settle(self, count: int) -> None:
        """Count verdicts that were told, and wake who waited for that."""
        self.settled += count
        left = self.count
        if self._room:
            room = self._limit - left - self._promised
            self._wake_for_room(min(room, count) if self.refused and left else room)
        self.refused = False
        if self._none and left <= 0:
            while self._none:
                self._none.popleft().wake()

    def wait_for_room(
        self, waiter: _waiting.Waiter, seconds: float, *, again: bool
    ) -> None:
        """Wait until it is the caller's turn to send, or the time is over.

        Args:
            waiter: The caller's.
            seconds: How long.
            again: The caller had its turn, and there was no room after all: it goes
                to the front.

        Blocking:
            As the waiter does. Send at once after it, before others run.
        """
        (self._room.appendleft if again else self._room.append)(waiter)
        turn = False
        try:
            # Another thread may have made room meanwhile, and nobody is before us.
            promised = self.count + self._promised >= self._limit
            if promised or self.full or self._room[0] is not waiter:
                turn = waiter.wait(seconds)
        finally:
            if not _forget(self._room, waiter):
                # Woken: room is kept for it until here.
                self._promised -= 1
                if not turn:
                    self._wake_for_room(1)  # too late for this one, so the next

    def _wake_for_room(self, count: int) -> None:
        for _ in range(min(count, len(self._room))):
            try:
                waiter = self._room.popleft()
            except IndexError:
                return
            self._promised += 1
            waiter.wake()

    def send_away(self) -> None:
        """Wake all who wait for room: there won't be any."""
        self._wake_for_room(len(self._room))

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


def _forget(waiters: deque[_waiting.Waiter], waiter: _waiting.Waiter) -> bool:
    try:
        waiters.remove(waiter)
    except ValueError:
        return False
    return True
