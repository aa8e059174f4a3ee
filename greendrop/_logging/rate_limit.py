"""Whether something of a kind was told lately, so that it need not be told again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

#: Kinds that are remembered. More of them at a time are hardly kinds.
_MOST = 500


class RateLimiter:
    """Lets one of a kind through in a time, and counts the others.

    Args:
        seconds: That time.
        now: The clock.
    """

    def __init__(
        self, seconds: float = 60.0, now: Callable[[], float] = _concurrency.monotonic
    ) -> None:
        self._seconds = seconds
        self._now = now
        # When each kind may be told again, and how many were not since.
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def left_out(self, kind: Hashable) -> int | None:
        """Tell how many were left out since the last one; None: leave this out, too."""
        now = self._now()
        until, count = self._kinds.get(kind, (now, 0))
        if now < until:
            self._kinds[kind] = (until, count + 1)
            return None
        if len(self._kinds) >= _MOST:
            self._kinds = {
                each: told for each, told in list(self._kinds.items()) if told[0] > now
            }
            if len(self._kinds) >= _MOST:
                self._kinds = {}
        self._kinds[kind] = (now + self._seconds, 0)
        return count
