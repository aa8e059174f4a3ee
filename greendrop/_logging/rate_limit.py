"""The rate limiter of log lines and events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Hashable

#: The number of kinds that are remembered. With more kinds in one interval nothing
#: repeats, and there is nothing to limit.
_MAX_KINDS = 500


class RateLimiter:
    """A limit of one per kind and interval, with a count of the suppressed others.

    Args:
        seconds: The interval.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._clock = _concurrency.monotonic
        # For each kind the end of its interval, and how many were suppressed in it.
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def suppressed(self, kind: Hashable) -> int | None:
        """Return how many of a kind were suppressed since the last one that was not.

        None means that this one must be suppressed as well; it is counted.
        """
        now = self._clock()
        end, count = self._kinds.get(kind, (now, 0))
        if now < end:
            self._kinds[kind] = (end, count + 1)
            return None
        if len(self._kinds) >= _MAX_KINDS:
            self._kinds = {
                key: entry for key, entry in list(self._kinds.items()) if entry[0] > now
            }
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds = {}
        self._kinds[kind] = (now + self._seconds, 0)
        return count
