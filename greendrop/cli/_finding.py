"""One thing that the doctor has found."""

from __future__ import annotations

import textwrap
from typing import Literal, NamedTuple

_MARKS = {"ok": "ok    ", "note": "note  ", "failed": "FAILED"}
_WIDTH = 88


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        section: What it belongs to.
        name: What was looked at.
        state: "ok"; "note", if somebody should look at it; or "failed".
        text: What was found.
        advice: What to do about it, if anything.
    """

    section: str
    name: str
    state: Literal["ok", "note", "failed"]
    text: str
    advice: str = ""

    def as_text(self) -> str:
        """Write it for people, with its advice under it."""
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
