"""Input of `greendrop produce`: lines, their keys, and JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from greendrop.cli._shared import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

#: Bytes of one read.
_CHUNK = 65_536
#: A byte of a message takes at most six in JSON: `\u0001`.
_JSON_FACTOR = 6
#: Bytes of a JSON line beside the message: names of fields, punctuation, spaces.
_JSON_OVERHEAD = 65_536

_FIELDS = frozenset(
    {"topic", "payload", "key", "headers", "partition", "partition_key", "timestamp"}
)


class Line(NamedTuple):
    """The source of one message.

    Attributes:
        text: The line without its delimiter. None if the line is too long to be read.
        file: The file's name.
        number: The number of the line, from 1.
    """

    text: bytes | None
    file: str
    number: int

    @property
    def place(self) -> Place:
        """The file and the number of the line."""
        return Place(self.file, self.number)


class Place(NamedTuple):
    """The file and line that a message comes from."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


class Input:
    """Reads messages from files.

    Args:
        delimiter: The bytes that end a message.
        key_delimiter: The bytes between key and payload. None if lines have no keys.
        empty_is_null: Whether an empty payload is a tombstone.
        as_json: Whether each line is a JSON object.
        defaults: Fields for messages that don't have their own.
        limit: Bytes of the largest message. Longer lines are skipped and not kept in
            memory.
    """

    def __init__(
        self,
        *,
        delimiter: bytes,
        key_delimiter: bytes | None,
        empty_is_null: bool,
        as_json: bool,
        defaults: Mapping[str, object],
        limit: int,
    ) -> None:
        self._delimiter = delimiter
        self._key_delimiter = key_delimiter
        self._empty_is_null = empty_is_null
        self._as_json = as_json
        self._defaults = defaults
        self._limit = limit
        longest = limit + len(key_delimiter or b"") + len(b"\r")
        if as_json:
            longest = limit * _JSON_FACTOR + _JSON_OVERHEAD
        self._longest = longest

    def lines(self, stream: BinaryIO, name: str) -> Iterator[Line]:
        """Yield lines as soon as they can be read; skip empty ones."""
        split = self._split_lines if self._delimiter == b"\n" else self._split
        for number, text in enumerate(split(stream), 1):
            if text is None or text:
                yield Line(text, name, number)

    def _split_lines(self, stream: BinaryIO) -> Iterator[bytes | None]:
        """Yield the text of each line, and None for a line that is too long."""
        limit = self._longest + 1
        while line := stream.readline(limit):
            if line.endswith(b"\n") or len(line) < limit:
                yield line.removesuffix(b"\n").removesuffix(b"\r")
                continue
            while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield None

    def _split(self, stream: BinaryIO) -> Iterator[bytes | None]:
        """Do the same for any other delimiter."""
        delimiter = self._delimiter
        rest, skipping = b"", False
        # `read1` returns what is there; `read` would wait for a whole chunk.
        while chunk := stream.read1(_CHUNK):  # type: ignore[attr-defined]
            *whole, rest = (rest + chunk).split(delimiter)
            for text in whole:
                yield None if skipping or len(text) > self._longest else text
                skipping = False
            if skipping or len(rest) >= self._longest + len(delimiter):
                skipping = True
                # The end may be the first part of a delimiter.
                rest = rest[max(0, len(rest) - len(delimiter) + 1) :]
        if skipping or len(rest) > self._longest:
            yield None
        elif rest:
            yield rest

    def fields(self, line: Line) -> dict[str, Any]:
        """Return the fields of a message.

        Raises:
            UsageError: The line is too long, has no key, is no JSON object, or has
                unknown fields.
        """
        if line.text is None:
            raise UsageError(
                f"the line is longer than the largest message: {self._limit:,} bytes"
                " (message.max.bytes)"
            )
        if self._as_json:
            return self._from_json(line.text)
        payload: bytes | None = line.text
        key: object = None
        if self._key_delimiter is not None:
            before, found, after = line.text.partition(self._key_delimiter)
            if found:
                key, payload = before or None, after
            elif self._defaults["key"] is None:
                delimiter = self._key_delimiter.decode(errors="backslashreplace")
                raise UsageError(
                    f"the line has no key delimiter {delimiter!r}"
                    " (-k KEY sends such lines with that key)"
                )
        if not payload and self._empty_is_null:
            payload = None
        fields = {**self._defaults, "payload": payload}
        return fields if key is None else {**fields, "key": key}

    def _from_json(self, text: bytes) -> dict[str, Any]:
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"no JSON: {error}") from error
        if not isinstance(given, dict):
            raise UsageError(f"no JSON object, but {type(given).__name__}")
        if unknown := given.keys() - _FIELDS:
            raise UsageError(
                f"no such fields: {', '.join(sorted(unknown))}; there are"
                f" {', '.join(sorted(_FIELDS))}"
            )
        if "payload" not in given:
            raise UsageError("no payload (null makes a tombstone)")
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
            raise UsageError("no topic, neither here nor by -t")
        return fields
