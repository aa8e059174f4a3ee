"""Whether a producer has been idle for long.

Costs a message nothing: looks now and then at how many verdicts there were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable


class IdleWatch:
    """Measures the time since something was on its way.

    Args:
        timeout: Seconds after which that is long.
        now: The clock.
    """

    def __init__(
        self, timeout: float, now: Callable[[], float] = _concurrency.monotonic
    ) -> None:
        self._timeout = timeout
        self._now = now
        self._settled = -1
        self._since = 0.0

    def is_over(self, settled: int, *, busy: bool) -> bool:
        """Tell whether nothing has happened for as long; then not again so soon.

        Args:
            settled: How many messages have had their verdict.
            busy: Whether any are on their way.
        """
        now = self._now()
        if busy or settled != self._settled:
            self._settled = settled
            self._since = now
            return False
        over = now - self._since >= self._timeout
        if over:
            self._since = now
        return over
