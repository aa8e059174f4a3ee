"""The clock that decides when a producer has been idle for long enough.

It costs a message nothing: a timer compares the number of delivery reports now and
then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable


class IdleWatch:
    """Measures the time since a message was last in flight.

    Args:
        timeout: Seconds without messages after which the producer counts as idle.
        clock: Returns the monotonic time in seconds.
    """

    def __init__(
        self, timeout: float, clock: Callable[[], float] = _concurrency.monotonic
    ) -> None:
        self._timeout = timeout
        self._clock = clock
        self._reported = -1
        self._since = 0.0

    def is_idle(self, reported: int, *, busy: bool) -> bool:
        """Return True if no message was sent or reported for the timeout.

        The measurement starts again then, so the next True is a timeout away.

        Args:
            reported: The number of delivery reports handled so far.
            busy: Whether messages are in flight.
        """
        now = self._clock()
        if busy or reported != self._reported:
            self._reported = reported
            self._since = now
            return False
        idle = now - self._since >= self._timeout
        if idle:
            self._since = now
        return idle
