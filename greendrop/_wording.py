"""Parts of texts for people: counts, durations and the reasons of errors."""

from __future__ import annotations

import sys


def count(number: int, noun: str) -> str:
    """Write a number of things: "1 message", "1,200 messages".

    Args:
        number: How many.
        noun: In the singular; its plural ends in "s".
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def count_were(number: int, noun: str) -> str:
    """Write a number of things as a subject: "1 message was", "2 messages were"."""
    return f"{count(number, noun)} {'was' if number == 1 else 'were'}"


def seconds(duration: float) -> str:
    """Write a duration, rounded for people: "10 s" for 9.99999, "0.25 s", "180 s"."""
    digits = 0 if abs(duration) >= 100 else 1 if abs(duration) >= 10 else 3  # noqa: PLR2004
    return f"{round(duration, digits):g} s"


def add_note(interrupt: BaseException, text: str) -> None:
    """Have a traceback end with a sentence more, from Python 3.11 on.

    For `KeyboardInterrupt`: the program sees what it was waiting for.
    """
    if sys.version_info >= (3, 11):
        interrupt.add_note(f"greendrop: {text}")


def reason(error: BaseException) -> str:
    """Write what an exception says; the name of its class where it says nothing."""
    return str(error) or type(error).__name__
