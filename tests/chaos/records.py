"""The account of a program: each message it has sent, and the outcome.

A payload is KEY-NUMBER. Numbers of a key ascend in the order in which they were sent.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

if TYPE_CHECKING:
    from pathlib import Path

#: Of a message. A message of a committed transaction is "acknowledged". One that
#: "failed" may be stored, as one that is "unknown". One that is "aborted" must not be
#: visible.
Outcome = Literal["acknowledged", "failed", "unknown", "aborted"]


class Sent(NamedTuple):
    """A message that a program has sent.

    Attributes:
        payload: See the module.
        outcome: As the producer reported it.
        partition: By its delivery report; None without one, or if it is not recorded.
        offset: As `partition`.
        group: The messages of an unknown transaction have one, which is visible as a
            whole or not at all.
    """

    payload: str
    outcome: Outcome
    partition: int | None = None
    offset: int | None = None
    group: str = ""


@dataclass
class Summary:
    """The figures of a program, beside its messages.

    Attributes:
        errors: How often each error was raised, by its class and the broker's name
            for it.
        slowest: Seconds until the slowest acknowledgement; None if not measured.
        gap: The longest time, in seconds, for which its hub kept other greenlets from
            running; None without a hub.
        stuck: Tasks that did not end in time, or ended by an unexpected error.
        signals: SIGKILL, SIGTERM and SIGHUP that its programs got, by their names.
        connections: Native clients that were built, one after the other. A higher
            number than that of producers means that some were replaced.
    """

    errors: Counter[str] = field(default_factory=Counter)
    slowest: float | None = None
    gap: float | None = None
    stuck: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    connections: int = 0

    @classmethod
    def read(cls, path: Path) -> Summary:
        """Read what `write` has written."""
        facts = json.loads(path.read_text())
        for name in ("errors", "signals"):
            facts[name] = Counter(facts[name])
        return cls(**facts)

    def write(self, path: Path) -> None:
        """Write it for another process."""
        path.write_text(json.dumps(vars(self)))


class Recorder:
    """Records outcomes in a file, so that they need no memory and no collection.

    Args:
        folder: Gets the files.
        name: Of this program in the folder.
    """

    def __init__(self, folder: Path, name: str = "sent") -> None:
        self.summary = Summary()
        self._folder = folder
        self._name = name
        # Not a text file, into which several threads must not write.
        self._file = (folder / f"{name}.tsv").open("wb", buffering=1 << 16)

    def record(self, sent: Sent) -> None:
        """Record a message."""
        line = "\t".join("" if field is None else str(field) for field in sent)
        self._file.write(f"{line}\n".encode())

    def acknowledged(self, started: float) -> None:
        """Record the time of an acknowledgement.

        Args:
            started: When the message was sent, by `time.monotonic`.
        """
        elapsed = time.monotonic() - started
        self.summary.slowest = max(self.summary.slowest or 0.0, elapsed)

    def error(self, error: BaseException) -> None:
        """Count an error."""
        name = getattr(error, "name", None)
        self.summary.errors[" ".join(filter(None, (type(error).__name__, name)))] += 1

    def close(self) -> None:
        """Write all of it."""
        self._file.close()
        self.summary.write(self._folder / f"{self._name}.json")


def read_sent(path: Path) -> list[Sent]:
    """Read the messages that a `Recorder` has recorded."""
    return [_parsed(line) for line in path.read_text().splitlines()]


def _parsed(line: str) -> Sent:
    payload, outcome, partition, offset, group = line.split("\t")
    return Sent(
        payload,
        cast("Outcome", outcome),
        int(partition) if partition else None,
        int(offset) if offset else None,
        group,
    )
