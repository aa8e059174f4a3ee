"""A point in time by which a wait ends."""

from __future__ import annotations

import time

_now = time.monotonic


class Deadline:
    """A point in time, counted by the monotonic clock.

    Args:
        seconds: How far from now; 0 or less has expired already.
    """

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        #: When it expires, by `time.monotonic()`.
        self.at = _now() + seconds

    def remaining(self) -> float:
        """Return the seconds that are left; 0 once it has expired."""
        remaining = self.at - _now()
        return remaining if remaining > 0 else 0.0

    @property
    def has_expired(self) -> bool:
        """Whether no time is left."""
        return _now() >= self.at

    def earlier(self, other: Deadline) -> Deadline:
        """Return the one of two deadlines that expires first."""
        return self if self.at <= other.at else other

    def __repr__(self) -> str:
        return f"<Deadline in {self.at - _now():.3f} s>"
