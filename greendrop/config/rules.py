"""Rules: what the value of a setting must be, and its conversion.

A rule checks the type before the range, so that each error names one mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from greendrop._concurrency.deadline import DAY

__all__: list[str] = []

#: Seconds. An `idle_disconnect_timeout` is not shorter.
SHORTEST_IDLE_TIMEOUT = 30.0


class InvalidValueError(Exception):
    """A value breaks its rule. The text says how, and does not name the setting."""


class Rule(NamedTuple):
    """The rule of one setting."""

    #: Which values are valid, as the reference shows it.
    text: str
    #: Returns the converted value, or raises `InvalidValueError`.
    convert: Callable[[object], object]


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValueError(
            f"needs a number of seconds, not {type(value).__name__}"
        )
    if not math.isfinite(value):
        raise InvalidValueError(f"{value!r} is not finite; all waits must end")
    if value < 0:
        raise InvalidValueError(f"{value!r} is negative")
    if value > DAY:
        raise InvalidValueError(
            f"{value!r} seconds is more than a day and looks like milliseconds;"
            f" did you mean {value / 1000!r}?"
        )
    return float(value)


def _seconds_above_zero(value: object) -> float:
    seconds = _seconds(value)
    if not seconds:
        raise InvalidValueError(
            "0 leaves no time for delivery reports; needs a number above 0"
        )
    return seconds


def _idle_seconds(value: object) -> float:
    seconds = _seconds(value)
    if 0 < seconds < SHORTEST_IDLE_TIMEOUT:
        raise InvalidValueError(
            f"{value!r} is below {SHORTEST_IDLE_TIMEOUT:g} seconds; reconnecting so"
            " often costs more than it saves (0 turns it off)"
        )
    return seconds


def _count(value: object, what: str = "a whole number") -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValueError(f"needs {what}, not {type(value).__name__}")
    if value < 1:
        raise InvalidValueError(f"{value!r} is below 1")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidValueError(f"needs a list of {what}s, not {type(value).__name__}")
    texts = tuple(value)
    for text in texts:
        if not isinstance(text, str):
            raise InvalidValueError(
                f"needs a list of {what}s, and {text!r:.40} is of type"
                f" {type(text).__name__}"
            )
    return texts


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidValueError(f"needs True or False, not {value!r:.40}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(f"needs text, not {type(value).__name__}")
    if not value:
        raise InvalidValueError("must not be empty")
    return value


def _optional_function(value: object) -> object:
    if value is not None and not callable(value):
        raise InvalidValueError(
            f"needs a function without arguments, not {type(value).__name__}"
        )
    return value


SECONDS = Rule(f"a number from 0 to {DAY}", _seconds)
SECONDS_ABOVE_ZERO = Rule(f"a number above 0, up to {DAY}", _seconds_above_zero)
IDLE_SECONDS = Rule(f"0, or a number from 30 to {DAY}", _idle_seconds)
COUNT = Rule("a whole number of at least 1", _count)
BYTES = Rule(COUNT.text, partial(_count, what="a whole number of bytes"))
BOOLEAN = Rule("True or False", _boolean)
TEXT = Rule("text, not empty", _text)
FUNCTION = Rule("a function without arguments", _optional_function)
ERROR_NAMES = Rule("error names, such as `fenced`", partial(_texts, what="error name"))
STATISTICS_KEYS = Rule(
    "keys of librdkafka's statistics, such as `msg_cnt`", partial(_texts, what="key")
)
