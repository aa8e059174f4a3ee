"""Errors by their names, Kafka's or librdkafka's, for tests that order some."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from greendrop import _librdkafka

if TYPE_CHECKING:
    from collections.abc import Mapping

# Kafka's names where librdkafka has its own.
_ERRORS = {
    "NONE": 0,
    "UNKNOWN_SERVER_ERROR": -1,
    "UNKNOWN_TOPIC_OR_PARTITION": 3,
    "NOT_LEADER_OR_FOLLOWER": 6,
    "MESSAGE_TOO_LARGE": 10,
    "INVALID_TOPIC_EXCEPTION": 17,
}


def error_code(error: str | int) -> int:
    """Give the number of an error.

    Args:
        error: Its name, such as "MESSAGE_TOO_LARGE" or "_MSG_TIMED_OUT"; or a number,
            which is taken as it is.

    Raises:
        ValueError: No error has that name.
    """
    if isinstance(error, int):
        return error
    return number_of(error, {**_librdkafka.error_codes(), **_ERRORS}, "error")


def number_of(name: str, numbers: Mapping[str, int], kind: str) -> int:
    """Look a name up.

    Raises:
        ValueError: There is none; the text says which one may have been meant.
    """
    if name not in numbers:
        near = get_close_matches(name, numbers, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no {kind} is named {name!r}{hint}")
    return numbers[name]
