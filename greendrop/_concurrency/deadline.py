"""Deadlines: points in time by which waits end, and checks of the users' timeouts."""

from __future__ import annotations

import time

monotonic = time.monotonic

#: Longest timeout in seconds that is accepted. A larger one was most likely written in
#: milliseconds, the unit of WaterDrop and librdkafka.
DAY = 86_400


def check_timeout(timeout: object) -> None:
    """Raise unless the timeout is a finite number of seconds, of at most a day.

    Raises:
        ValueError: It is something else, or looks like milliseconds.
    """
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or not 0 <= timeout < float("inf")
    ):
        text = f"timeout needs to be finite seconds, 0 or more, not {timeout!r}"
        raise ValueError(text)
    if timeout > DAY:
        text = (
            f"timeout={timeout!r} seconds is more than a day and looks like"
            f" milliseconds; did you mean {timeout / 1000:g}?"
        )
        raise ValueError(text)


class Deadline:
    """A point in time, by the monotonic clock.

    Args:
        seconds: Distance from now. At 0 or less the deadline has expired already;
            `math.inf` never expires.
    """

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        #: When it expires, by `time.monotonic()`.
        self.at = monotonic() + seconds

    def remaining(self) -> float:
        """Return the remaining seconds; 0 once the deadline has expired."""
        remaining = self.at - monotonic()
        return remaining if remaining > 0 else 0.0

    @property
    def has_expired(self) -> bool:
        """Whether no time remains."""
        return monotonic() >= self.at

    def earlier(self, other: Deadline) -> Deadline:
        """Return the one of two deadlines that expires first."""
        return self if self.at <= other.at else other

    def __repr__(self) -> str:
        return f"<Deadline in {self.at - monotonic():.3f} s>"
