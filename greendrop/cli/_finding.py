"""Results of the checks of `greendrop doctor`."""

from __future__ import annotations

import textwrap
from typing import Literal, NamedTuple

_MARKS = {"ok": "ok    ", "note": "note  ", "failed": "FAILED"}
_WIDTH = 88


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        section: The group of checks that it belongs to.
        name: The subject of the check.
        state: "ok", "failed", or "note" if a person should look at it.
        text: The result.
        advice: A way to repair it, if one is known.
    """

    section: str
    name: str
    state: Literal["ok", "note", "failed"]
    text: str
    advice: str = ""

    def as_text(self) -> str:
        """Return the finding as text for people, with the advice in the next lines."""
        line = f"  {_MARKS[self.state]}  {self.name}: {self.text}\n"
        if self.advice:
            indent = " " * 10
            line += textwrap.fill(
                self.advice,
                _WIDTH,
                initial_indent=f"{indent}-> ",
                subsequent_indent=f"{indent}   ",
                break_on_hyphens=False,
            )
            line += "\n"
        return line
