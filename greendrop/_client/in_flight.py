"""Which messages are on their way, and who waits for that to change.

A message is outstanding from the moment it is taken until its verdict is told,
whether it is gathered, in librdkafka's queue, in flight or reported and not yet told.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greendrop import _concurrency
    from greendrop.delivery import DeliveryHandle


class InFlight:
    """The count of one client's messages on their way.

    Room is given first come, first served: who has just been served must not take
    the room that was made for those who wait, or some of them would wait for ever.

    Args:
        limit: Messages that fit into librdkafka's queue.
    """

    __slots__ = (
        "_full_by_bytes",
        "_limit",
        "_none",
        "_promised",
        "_space",
        "free_slots",
        "pending",
        "reported",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Handles without a verdict. Whoever takes a message adds its handle, and the
        #: serving task discards it; each is one step to all threads.
        self.pending: set[DeliveryHandle] = set()
        #: One who has not waited for room may send while fewer are on their way. Who
        #: sends reads this and `pending` directly: it is asked for each message.
        self.free_slots: float = limit
        #: How many verdicts were told.
        self.reported = 0
        # librdkafka refused a message that the count had room for: it limits bytes.
        self._full_by_bytes = False
        self._space: deque[_concurrency.Waiter] = deque()
        # Waiters that were woken for room and have not taken it yet.
        self._promised = 0
        self._none: deque[_concurrency.Waiter] = deque()

    @property
    def count(self) -> int:
        """Messages on their way."""
        return len(self.pending)

    @property
    def full(self) -> bool:
        """Whether there is no room even for one who has waited for it."""
        count = self.count
        # What librdkafka refused for its bytes fits once nothing is on its way.
        return count >= self._limit or (self._full_by_bytes and count > 0)

    @property
    def has_waiters(self) -> bool:
        """Whether anybody waits for room, or is about to take it."""
        return bool(self._space) or self._promised > 0

    def mark_full(self) -> None:
        """Take note that librdkafka had no room, whatever the count says."""
        self._full_by_bytes = True
        self._update_free_slots()

    def _update_free_slots(self) -> None:
        if self._space:
            self.free_slots = -math.inf
        else:
            self.free_slots = 1 if self._full_by_bytes else self._limit - self._promised

    def on_reports(self, count: int) -> None:
        """Wake who waited for this many verdicts, which were told."""
        self.reported += count
        left = self.count
        if self._space:
            room = self._limit - left - self._promised
            self._wake_for_space(
                min(room, count) if self._full_by_bytes and left else room
            )
        if self._full_by_bytes:
            self._full_by_bytes = False
            self._update_free_slots()
        if self._none and not left:
            while self._none:
                self._none.popleft().wake()

    def wait_for_space(
        self, waiter: _concurrency.Waiter, seconds: float, *, again: bool
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
        (self._space.appendleft if again else self._space.append)(waiter)
        self._update_free_slots()
        turn = False
        try:
            # Another thread may have made room meanwhile, and nobody is before us.
            promised = self.count + self._promised >= self._limit
            if promised or self.full or self._space[0] is not waiter:
                turn = waiter.wait(seconds)
        finally:
            if not _forget(self._space, waiter):
                # Woken: room is kept for it until here.
                self._promised -= 1
                if not turn:
                    self._wake_for_space(1)  # too late for this one, so the next
            self._update_free_slots()

    def _wake_for_space(self, count: int) -> None:
        for _ in range(min(count, len(self._space))):
            try:
                waiter = self._space.popleft()
            except IndexError:
                break
            self._promised += 1
            waiter.wake()
        self._update_free_slots()

    def wake_all(self) -> None:
        """Wake all who wait for room: there won't be any."""
        self._wake_for_space(len(self._space))

    def wait_for_none(self, waiter: _concurrency.Waiter, seconds: float) -> None:
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


def _forget(waiters: deque[_concurrency.Waiter], waiter: _concurrency.Waiter) -> bool:
    try:
        waiters.remove(waiter)
    except ValueError:
        return False
    return True
