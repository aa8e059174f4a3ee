"""Validation of messages, and their normal form.

Lower layers receive normalized messages: payload and key are bytes, headers a list of
pairs, partition and timestamp numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeGuard

from greendrop._hints import argument_hint
from greendrop.errors import MessageInvalidError
from greendrop.message import Message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greendrop.message import HeaderValue

#: librdkafka's number for "choose a partition for me" (RD_KAFKA_PARTITION_UA).
UNASSIGNED = -1

_TOPIC = re.compile(r"[A-Za-z0-9_.\-]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_HALF = timedelta(microseconds=500)  # for rounding to a millisecond

#: Kafka's limit on the length of a topic's name.
_TOPIC_LENGTH = 249

#: Bytes that librdkafka adds to payload, key and headers before it compares their sum
#: with `message.max.bytes`: the maximum for the lengths and offsets of a record.
_RECORD_OVERHEAD = 36

# An int is taken for milliseconds in this range only: from 1973 to the year 5138. The
# same moments in seconds lie below it, in microseconds and nanoseconds above it.
_EARLIEST, _LATEST = 10**11, 10**14
# From 1973 on, in seconds and in nanoseconds. Smaller numbers than the first are not
# times of a clock, and are accepted: tests and counters use them.
_FIRST_SECONDS, _FIRST_NANOSECONDS = 10**8, 10**17

# Valid names: the look-up is faster than matching again. Bounded, for programs that
# generate topic names.
known_topics: set[str] = set()
_KNOWN_TOPICS_LIMIT = 10_000


class SizeLimit:
    """The size of the largest message that a producer accepts.

    The size of a message is what librdkafka compares with `message.max.bytes`: payload,
    key and headers, and 36 bytes for the lengths and offsets of the record.

    Attributes:
        size: Bytes.
        setting: The setting that the limit comes from, as the user writes it.
        queue_bytes: The largest payload that fits into librdkafka's queue.
        without_overhead: Bytes of payload and key that are certainly within the limit.
    """

    __slots__ = ("queue_bytes", "setting", "size", "without_overhead")

    def __init__(
        self, size: int, setting: str, queue_bytes: int = 2_147_483_647
    ) -> None:
        self.size = size
        self.setting = setting
        self.queue_bytes = queue_bytes
        self.without_overhead = min(size - _RECORD_OVERHEAD, queue_bytes)


def as_message(item: object) -> Message:
    """Convert an item of a batch to a `Message`; the item itself is not changed.

    Raises:
        MessageInvalidError: The item is neither a message nor a mapping, or fields are
            unknown or missing. Nothing was sent.
    """
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping):
        text = f"needs a Message or a mapping, not {type(item).__name__}"
        raise MessageInvalidError({"message": text})
    errors = {}
    for name in item:
        if name not in Message._fields:
            try:
                shown = str(name)
            except ValueError:  # a number of more than 4,300 digits
                shown = f"({type(name).__name__})"
            hint = argument_hint(shown, Message._fields)
            errors[shown] = f"no such field{hint and f'; {hint}'}"
    for name in ("topic", "payload"):
        if name not in item:
            errors[name] = "this field is required"
    if errors:
        raise MessageInvalidError(errors)
    return Message(**item)


def as_tombstone(item: object, limit: SizeLimit) -> Message:
    """Convert an item of a batch to a validated tombstone; the item is not changed.

    A payload of the item is ignored.

    Raises:
        MessageInvalidError: Some fields are invalid, or there is no key or partition;
            the text names all of them.
    """
    errors: dict[str, str] = {}
    if isinstance(item, Mapping):
        item = {**dict.fromkeys(("topic", "key", "partition")), **item, "payload": None}
    try:
        message = as_message(item)._replace(payload=None)
    except MessageInvalidError as error:
        if not isinstance(item, Mapping):
            raise
        errors.update(error.errors)
        known = {name: item[name] for name in Message._fields if name in item}
        message = Message(**known)
    try:
        validate(message, limit)
    except MessageInvalidError as error:
        errors.update(error.errors)
    if message.key is None or errors.get("key", "").startswith("must not be empty"):
        errors["key"] = "a tombstone needs one, not empty"
    if message.partition in (None, UNASSIGNED):
        errors["partition"] = "a tombstone needs one, 0 or more"
    if message.partition_key is not None:
        errors["partition_key"] = "a tombstone goes to its partition"
    if errors:
        raise MessageInvalidError(errors)
    return message


def snapshot(message: Message) -> Message:
    """Return a message that shares no mutable object with the caller.

    Invalid values are kept; validation reports them later.
    """
    topic, payload, key, headers, partition, partition_key, timestamp, label = message
    return Message(
        topic,
        _frozen(payload),
        _frozen(key),
        _copied(headers),
        partition,
        _frozen(partition_key),
        timestamp,
        label,
    )


def _frozen(value: Any) -> Any:  # noqa: ANN401 - not validated yet
    if isinstance(value, (bytearray, memoryview)):
        try:
            return bytes(value)
        except ValueError:
            return value  # a released memoryview
    return value


def _copied(headers: Any) -> Any:  # noqa: ANN401 - not validated yet
    if isinstance(headers, Mapping):
        return {
            name: [_frozen(each) for each in value]
            if isinstance(value, (list, tuple))
            else _frozen(value)
            for name, value in headers.items()
        }
    if isinstance(headers, (list, tuple)):
        return [
            tuple(map(_frozen, pair)) if isinstance(pair, (list, tuple)) else pair
            for pair in headers
        ]
    return headers


def validate(message: Message, limit: SizeLimit) -> Message:
    """Validate a message and return it normalized.

    Args:
        message: The caller's message; never changed.
        limit: The maximum size of a message.

    Raises:
        MessageInvalidError: Some fields are invalid; the text names all of them.
            Nothing was sent.
    """
    topic, payload, key, headers, partition, partition_key, timestamp, _ = message
    # The common message needs no conversion: bytes to a known topic. It is returned
    # unchanged, at a tenth of the cost of the general case.
    if (
        type(payload) is bytes
        and type(topic) is str
        and topic in known_topics
        and headers is None
        and partition is None
        and partition_key is None
        and timestamp is None
        and (
            len(payload) <= limit.without_overhead
            if key is None
            else type(key) is bytes
            and key
            and len(payload) + len(key) <= limit.without_overhead
        )
    ):
        return message
    return _normalize(message, limit)


def all_validated(
    messages: Sequence[object], limit: SizeLimit
) -> TypeGuard[Sequence[Message]]:
    """Return whether `validate` would return each of these messages unchanged.

    Checks column by column, which takes a third of the time of a call for each message.
    It may return False although all are valid: if the longest key and the longest
    payload would be too large together, `validate` has to decide.
    """
    if set(map(type, messages)) != {Message}:
        return False
    topics, payloads, keys, *others, _ = zip(*messages, strict=True)
    return (
        set(map(type, topics)) == {str}
        and known_topics.issuperset(topics)
        and set(map(type, payloads)) == {bytes}
        and set(map(type, keys)) <= {type(None), bytes}
        and b"" not in keys
        and max(map(len, payloads)) + max(map(len, filter(None, keys)), default=0)
        <= limit.without_overhead
        and all(each.count(None) == len(messages) for each in others)
    )


def _normalize(message: Message, limit: SizeLimit) -> Message:
    errors: dict[str, str] = {}
    _check_topic(message.topic, errors)
    payload = _as_bytes("payload", message.payload, errors)
    key = _as_bytes("key", message.key, errors)
    partition_key = _as_bytes("partition_key", message.partition_key, errors)
    for name, value in (("key", key), ("partition_key", partition_key)):
        if value == b"":
            errors[name] = "must not be empty; None means no key"
    headers = _as_pairs(message.headers, errors)
    _check_partition(message.partition, errors)
    timestamp = _as_milliseconds(message.timestamp, errors)
    if not errors:
        _check_size(payload, key, headers, limit, errors)
    if errors:
        raise MessageInvalidError(errors)
    return Message(
        message.topic,
        payload,
        key,
        headers,
        message.partition,
        partition_key,
        timestamp,
        message.label,
    )


def _check_size(
    payload: bytes | None,
    key: bytes | None,
    headers: list[tuple[str, HeaderValue]] | None,
    limit: SizeLimit,
    errors: dict[str, str],
) -> None:
    """Check the size of a message; the error names its largest field."""
    sizes = {
        "payload": len(payload or b""),
        "key": len(key or b""),
        "headers": _size_of_headers(headers or ()),
    }
    size = sum(sizes.values()) + _RECORD_OVERHEAD
    if size <= limit.size:
        if sizes["payload"] > limit.queue_bytes:
            errors["payload"] = (
                f"{sizes['payload']} bytes never fit into the queue: kafka's"
                f" queue.buffering.max.kbytes={limit.queue_bytes // 1024} allows"
                f" {limit.queue_bytes}; nothing was sent"
            )
        return
    parts = [f"{name} {length}" for name, length in sizes.items() if length]
    errors[max(sizes, key=sizes.__getitem__)] = (
        f"the message takes {size} bytes ({', '.join(parts)}, record"
        f" {_RECORD_OVERHEAD}), more than {limit.setting}={limit.size} allows;"
        " nothing was sent"
    )


def size_of(
    payload: bytes | None,
    key: bytes | None,
    headers: Iterable[tuple[str, HeaderValue]],
) -> int:
    """Return the size of a normalized message, as librdkafka counts it."""
    size = len(payload or b"") + len(key or b"") + _size_of_headers(headers)
    return size + _RECORD_OVERHEAD


def _size_of_headers(headers: Iterable[tuple[str, HeaderValue]]) -> int:
    """Return the bytes of headers in a record: a varint before each name and value."""
    size = 0
    for name, value in headers:
        for part in (name.encode(), value or b""):
            size += len(part) + _size_of_varint(len(part))
    return size


def _size_of_varint(number: int) -> int:
    # Seven bits a byte, and one bit is the sign.
    return (number.bit_length() + 7) // 7


def check_topic(topic: object) -> None:
    """Check the name of a topic.

    Raises:
        ValueError: The name is not valid for a topic.
    """
    errors: dict[str, str] = {}
    _check_topic(topic, errors)
    if errors:
        raise ValueError(f"topic {errors['topic']}")


def _check_topic(topic: object, errors: dict[str, str]) -> None:
    if not isinstance(topic, str):
        errors["topic"] = f"needs text, not {type(topic).__name__}"
    elif not _TOPIC.fullmatch(topic) or len(topic) > _TOPIC_LENGTH:
        errors["topic"] = (
            f"{topic[:80]!r} is not a valid topic name"
            " (ASCII letters, digits, '_', '.', '-'; 1 to 249 of them)"
        )
    else:
        if len(known_topics) >= _KNOWN_TOPICS_LIMIT:
            known_topics.clear()
        known_topics.add(topic)


def _as_bytes(name: str, value: object, errors: dict[str, str]) -> bytes | None:
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            errors[name] = "contains lone surrogates, which UTF-8 can't encode"
            return None
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value)
        except ValueError:
            errors[name] = "is a released memoryview"
            return None
    errors[name] = f"needs bytes, text or None, not {type(value).__name__}"
    return None


def _check_partition(partition: object, errors: dict[str, str]) -> None:
    if partition is None:
        return
    if not isinstance(partition, int) or isinstance(partition, bool):
        errors["partition"] = f"needs an integer, not {type(partition).__name__}"
    elif not UNASSIGNED <= partition < 2**31:
        errors["partition"] = "is not between -1 and 2147483647"


def _as_milliseconds(value: object, errors: dict[str, str]) -> int | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            errors["timestamp"] = "a datetime needs a time zone"
            return None
        value = (value - _EPOCH + _HALF) // timedelta(milliseconds=1)
        if value < 0:
            errors["timestamp"] = "is not between 1970 and 9999"
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        errors["timestamp"] = (
            "needs milliseconds (int, such as time.time_ns() // 1_000_000) or a"
            f" datetime, not {type(value).__name__}"
        )
        return None
    if not 0 <= value < 2**63:
        errors["timestamp"] = "is not between 0 and 2**63 - 1"
    elif not (value < _FIRST_SECONDS or _EARLIEST <= value < _LATEST):
        errors["timestamp"] = _other_unit(value)
    return value


def _other_unit(value: int) -> str:
    """Return the error for a number that looks like another unit than milliseconds."""
    if value < _EARLIEST:
        unit, meant = "seconds", value * 1_000
    elif value < _FIRST_NANOSECONDS:
        unit, meant = "microseconds", value // 1_000
    else:
        unit, meant = "nanoseconds", value // 1_000_000
    return (
        f"{value} looks like {unit}, and a timestamp is in milliseconds; did you mean"
        f" {meant}? (a datetime may be any moment from 1970 on)"
    )


def _as_pairs(
    headers: object, errors: dict[str, str]
) -> list[tuple[str, HeaderValue]] | None:
    if headers is None:
        return None
    if isinstance(headers, Mapping):
        pairs: Iterable[object] = _spread(headers)
    elif isinstance(headers, (list, tuple)):
        pairs = headers
    else:
        errors["headers"] = (
            f"needs a mapping or a list of pairs, not {type(headers).__name__}"
        )
        return None
    normalized: list[tuple[str, HeaderValue]] = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:  # noqa: PLR2004
            errors["headers"] = "each item needs to be a pair of name and value"
            return None
        name, value = pair
        if not isinstance(name, str):
            errors["headers"] = f"a name needs to be text, not {type(name).__name__}"
            return None
        problems: dict[str, str] = {}
        _as_bytes("name", name, problems)
        if "\0" in name:
            problems["name"] = "holds a NUL, where librdkafka would cut it"
        normalized.append((name, _as_bytes("value", value, problems)))
        for part, text in problems.items():
            errors["headers"] = f"{part} of {name!r} {text}"
            return None
    return normalized or None


def _spread(headers: Mapping[object, object]) -> Iterable[tuple[object, object]]:
    """Give each value of a repeated header its own pair."""
    for name, value in headers.items():
        if isinstance(value, (list, tuple)):
            for one in value:
                yield name, one
        else:
            yield name, value
