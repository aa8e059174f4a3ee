"""Messages: what a program sends, and the types of its headers.

`_validation` checks and normalizes messages before lower layers receive them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # noqa: TC003 - for get_type_hints
from datetime import datetime  # noqa: TC003
from typing import NamedTuple, TypeAlias

__all__ = ["HeaderValue", "Headers", "Message"]

#: A header's value: bytes, text (sent as UTF-8) or None.
HeaderValue: TypeAlias = "bytes | str | None"
#: A mapping (a list or tuple as value repeats the header, KIP-82) or a list of pairs.
Headers: TypeAlias = (
    "Mapping[str, HeaderValue | Sequence[HeaderValue]]"
    " | Sequence[tuple[str, HeaderValue]]"
)


class Message(NamedTuple):
    """One message. Immutable: `_replace` returns a changed copy.

    Attributes:
        topic: ASCII letters, digits, `_`, `.`, `-`; at most 249 of them.
        payload: Bytes, text (sent as UTF-8) or None, which is a tombstone.
        key: Bytes or text, not empty, or None.
        headers: See `Headers`.
        partition: Number of the partition; None (or -1) lets the partitioner choose.
        partition_key: Bytes or text, not empty, or None. Chooses the partition that the
            same `key` would choose, and is not sent. Takes precedence over `partition`,
            which is used while the number of partitions is unknown.
        timestamp: Milliseconds since 1970 (int), an aware datetime, or None (or 0) for
            now. An int that looks like seconds, microseconds or nanoseconds is refused;
            a datetime may be any moment from 1970 on.
        label: Any object; not sent, but available on handle, report and events.
    """

    topic: str
    payload: bytes | str | None
    key: bytes | str | None = None
    headers: Headers | None = None
    partition: int | None = None
    partition_key: bytes | str | None = None
    timestamp: int | datetime | None = None
    label: object = None

    def __repr__(self) -> str:
        """Return topic and size; no payload, key or header values."""
        payload: object = self.payload
        size = "None" if payload is None else type(payload).__name__
        if isinstance(payload, (bytes, str)):
            size = f"{len(payload)} long"
        return f"<Message topic={self.topic!r} payload={size}>"
