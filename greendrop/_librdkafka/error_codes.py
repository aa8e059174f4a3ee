"""Error codes of Kafka and librdkafka, and their names.

greendrop shows Kafka's names and accepts librdkafka's too.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from greendrop._librdkafka import bindings

if TYPE_CHECKING:
    from collections.abc import Mapping

# Kafka's codes (org.apache.kafka.common.protocol.Errors).
UNKNOWN_SERVER_ERROR = -1
UNKNOWN_TOPIC_OR_PARTITION = 3
LEADER_NOT_AVAILABLE = 5
REQUEST_TIMED_OUT = 7
MESSAGE_TOO_LARGE = 10
RECORD_LIST_TOO_LARGE = 18
NOT_ENOUGH_REPLICAS_AFTER_APPEND = 20
INVALID_TIMESTAMP = 32
OUT_OF_ORDER_SEQUENCE_NUMBER = 45
DUPLICATE_SEQUENCE_NUMBER = 46
INVALID_RECORD = 87

# librdkafka's own codes (rdkafka.h), whose names there begin with an underscore.
INVALID_DIFFERENT_RECORD = -138
FENCED = -144
GAPLESS_GUARANTEE = -148
INCONSISTENT = -149
FATAL = -150
PURGE_INFLIGHT = -151
PURGE_QUEUE = -152
STATE = -172
SSL = -181
TIMED_OUT = -185
ALL_BROKERS_DOWN = -187
UNKNOWN_TOPIC = -188
UNKNOWN_PARTITION = -190
MSG_TIMED_OUT = -192
TRANSPORT = -195
DESTROY = -197
BAD_MSG = -199

#: Kafka's names of errors that have other names in librdkafka.
_KAFKA_NAMES = {
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


def kafka_name(name: str) -> str:
    """Return Kafka's name of an error. Errors of librdkafka itself keep their name.

    Args:
        name: The name in Kafka or in librdkafka.
    """
    return _KAFKA_NAMES.get(name, name)


def error_code(error: str | int) -> int:
    """Return the code of an error.

    Args:
        error: The name in Kafka or in librdkafka, such as "MESSAGE_TOO_LARGE" or
            "_MSG_TIMED_OUT"; or a code, which is returned as it is.

    Raises:
        ValueError: No error has that name.
    """
    if isinstance(error, int):
        return error
    codes = bindings.error_codes()
    kafka_names = {kafka_name(name): code for name, code in codes.items()}
    return number_of(error, {**codes, **kafka_names}, "error")


def number_of(name: str, numbers: Mapping[str, int], kind: str) -> int:
    """Return the number of a name.

    Raises:
        ValueError: The name is unknown; the text suggests a similar one.
    """
    if name not in numbers:
        near = get_close_matches(name, numbers, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no {kind} is named {name!r}{hint}")
    return numbers[name]
