"""The names of errors: Kafka's are told, and librdkafka's are understood, too."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from greendrop._librdkafka import bindings

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What librdkafka calls an error, where Kafka calls it something else
#: (org.apache.kafka.common.protocol.Errors).
_KAFKAS = {
    "NO_ERROR": "NONE",
    "UNKNOWN": "UNKNOWN_SERVER_ERROR",
    "INVALID_MSG": "CORRUPT_MESSAGE",
    "UNKNOWN_TOPIC_OR_PART": "UNKNOWN_TOPIC_OR_PARTITION",
    "INVALID_MSG_SIZE": "INVALID_FETCH_SIZE",
    "NOT_LEADER_FOR_PARTITION": "NOT_LEADER_OR_FOLLOWER",
    "MSG_SIZE_TOO_LARGE": "MESSAGE_TOO_LARGE",
    "STALE_CTRL_EPOCH": "STALE_CONTROLLER_EPOCH",
    "TOPIC_EXCEPTION": "INVALID_TOPIC_EXCEPTION",
}


def kafkas_name(name: str) -> str:
    """Give Kafka's name of an error; what is librdkafka's own keeps its name.

    Args:
        name: Kafka's or librdkafka's.
    """
    return _KAFKAS.get(name, name)


def error_code(error: str | int) -> int:
    """Give the number of an error.

    Args:
        error: Kafka's or librdkafka's name of it, such as "MESSAGE_TOO_LARGE" or
            "_MSG_TIMED_OUT"; or a number, which is taken as it is.

    Raises:
        ValueError: No error has that name.
    """
    if isinstance(error, int):
        return error
    codes = bindings.error_codes()
    kafkas = {kafkas_name(name): code for name, code in codes.items()}
    return number_of(error, {**codes, **kafkas}, "error")


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
