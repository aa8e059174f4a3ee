"""Which messages are on their way, and who waits for that to change.

A message is outstanding from the moment it is taken until its verdict is told,
whether it is gathered, in librdkafka's queue, in flight or reported and not yet told.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greendrop import _waiting
    from greendrop.delivery import DeliveryHandle


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
        "_refused",
        "_room",
        "pending",
        "places",
        "settled",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Handles without a verdict. Whoever takes a message adds its handle, and the
        #: serving task discards it; each is one step to all threads.
        self.pending: set[DeliveryHandle] = set()
        #: One who has not waited for room may send while fewer are on their way. Who
        #: sends reads this and `pending` directly: it is asked for each message.
        self.places: float = limit
        #: How many verdicts were told.
        self.settled = 0
        # librdkafka refused a message that the count had room for: it limits bytes.
        self._refused = False
        self._room: deque[_waiting.Waiter] = deque()
        # Waiters that were woken for room and have not taken it yet.
        self._promised = 0
        self._none: deque[_waiting.Waiter] = deque()

    @property
    def count(self) -> int:
        """Messages on their way."""
        return len(self.pending)

    @property
    def full(self) -> bool:
        """Whether there is no room even for one who has waited for it."""
        count = self.count
        # What librdkafka refused for its bytes fits once nothing is on its way.
        return count >= self._limit or (self._refused and count > 0)

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for room, or is about to take it."""
        return bool(self._room) or self._promised > 0

    def refuse(self) -> None:
        """Take note that librdkafka had no room, whatever the count says."""
        self._refused = True
        self._review()

    def _review(self) -> None:
        if self._room:
            self.places = -math.inf
        else:
            self.places = 1 if self._refused else self._limit - self._promised

    def settle(self, count: int) -> None:
        """Wake who waited for this many verdicts, which were told."""
        self.settled += count
        left = self.count
        if self._room:
            room = self._limit - left - self._promised
            self._wake_for_room(min(room, count) if self._refused and left else room)
        if self._refused:
            self._refused = False
            self._review()
        if self._none and not left:
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
        self._review()
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
            self._review()

    def _wake_for_room(self, count: int) -> None:
        for _ in range(min(count, len(self._room))):
            try:
                waiter = self._room.popleft()
            except IndexError:
                break
            self._promised += 1
            waiter.wake()
        self._review()

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
