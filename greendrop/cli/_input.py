"""Messages from lines: where one ends, what is its key, and JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from greendrop.cli._shared import MistakeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

#: Bytes that are read at once, where lines don't end in a newline.
_CHUNK = 65_536

_FIELDS = frozenset(
    {"topic", "payload", "key", "headers", "partition", "partition_key", "timestamp"}
)


class Line(NamedTuple):
    """What one message is made from.

    Attributes:
        text: Without what ends it.
        file: The file's name.
        number: Of the line, from 1.
    """

    text: bytes
    file: str
    number: int

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.file, self.number)


class Place(NamedTuple):
    """Where a message comes from."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


class Input:
    """How to read messages.

    Args:
        delimiter: What ends a message.
        key_delimiter: What stands between key and payload, if anything does.
        empty_is_null: Whether an empty payload is a tombstone.
        as_json: Whether each line is a JSON object.
        defaults: Fields of all messages that say nothing else.
    """

    def __init__(
        self,
        *,
        delimiter: bytes,
        key_delimiter: bytes | None,
        empty_is_null: bool,
        as_json: bool,
        defaults: Mapping[str, Any],
    ) -> None:
        self._delimiter = delimiter
        self._key_delimiter = key_delimiter
        self._empty_is_null = empty_is_null
        self._as_json = as_json
        self._defaults = defaults

    def lines(self, stream: BinaryIO, name: str) -> Iterator[Line]:
        """Read lines as they come; empty ones are left out."""
        for number, text in enumerate(self._split(stream), 1):
            if text:
                yield Line(text, name, number)

    def _split(self, stream: BinaryIO) -> Iterator[bytes]:
        if self._delimiter == b"\n":
            for line in stream:
                yield line.removesuffix(b"\n").removesuffix(b"\r")
            return
        rest = b""
        # Not `read`, which would wait for a whole chunk.
        while chunk := stream.read1(_CHUNK):  # type: ignore[attr-defined]
            *whole, rest = (rest + chunk).split(self._delimiter)
            yield from whole
        if rest:
            yield rest

    def fields(self, line: Line) -> dict[str, Any]:
        """Give a message's fields.

        Raises:
            MistakeError: The line is no JSON object, or has other fields.
        """
        if self._as_json:
            return self._from_json(line.text)
        payload: bytes | None = line.text
        key: object = None
        if self._key_delimiter is not None:
            before, found, after = line.text.partition(self._key_delimiter)
            if found:
                key, payload = before or None, after
        if not payload and self._empty_is_null:
            payload = None
        fields = {**self._defaults, "payload": payload}
        return fields if key is None else {**fields, "key": key}

    def _from_json(self, text: bytes) -> dict[str, Any]:
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MistakeError(f"no JSON: {error}") from error
        if not isinstance(given, dict):
            raise MistakeError(f"no JSON object, but {type(given).__name__}")
        if unknown := given.keys() - _FIELDS:
            raise MistakeError(
                f"no such fields: {', '.join(sorted(unknown))}; there are"
                f" {', '.join(sorted(_FIELDS))}"
            )
        if "payload" not in given:
            raise MistakeError("no payload (null makes a tombstone)")
        payload = given["payload"]
        if payload is not None and not isinstance(payload, str):
            payload = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
        if payload == "" and self._empty_is_null:
            payload = None
        key = given.get("key")
        if isinstance(key, (int, float)) and not isinstance(key, bool):
            given["key"] = json.dumps(key)
        fields = {**self._defaults, **given, "payload": payload}
        if not fields["topic"]:
            raise MistakeError("no topic, neither here nor by -t")
        return fields
