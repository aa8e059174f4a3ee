"""The result of a load: whether it passed, and its figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.results import Case

if TYPE_CHECKING:
    from tests.chaos.judge import Figures
    from tests.chaos.records import Summary

#: The longest gap of a hub that may be ours, in seconds.
LONGEST_GAP = 0.020


@dataclass
class Result:
    """The result of one load.

    Attributes:
        title: Of the load.
        seed: Of the run.
        seconds: How long it sent.
        once: Whether its messages were promised to be stored once and in order.
        figures: By the judge.
        summary: By its programs.
        empty_gap: The longest gap, in seconds, of the empty program beside it.
        faults: How often each fault was caused.
    """

    title: str
    seed: int
    seconds: float
    once: bool
    figures: Figures
    summary: Summary
    empty_gap: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def violations(self) -> dict[str, Any]:
        """The broken promises, with their counts."""
        found: dict[str, Any] = dict(self.figures.violations(once=self.once))
        if self.summary.stuck:
            found["stuck"] = self.summary.stuck
        if not self.figures.outcomes["acknowledged"]:
            found["acknowledged"] = 0
        gap = self.summary.gap
        if gap is not None and gap - self.empty_gap > LONGEST_GAP:
            found["gap"] = gap
        return found

    @property
    def case(self) -> Case:
        """The result for docs/reliability.md."""
        figures, outcomes = self.figures, self.figures.outcomes
        gap, slowest = self.summary.gap, self.summary.slowest
        empty_gap = None if gap is None else self.empty_gap
        return Case(
            self.title,
            seconds=round(self.seconds),
            seed=self.seed,
            passed=not self.violations,
            figures={
                "faults": self.faults.total(),
                "acknowledged": outcomes["acknowledged"],
                "aborted": outcomes["aborted"],
                "not acknowledged": outcomes["failed"] + outcomes["unknown"],
                "lost": figures.lost,
                "doubled": figures.doubled,
                "out of order": figures.disordered,
                "visible though aborted": figures.visible + figures.torn,
                "not where reported": figures.misplaced + figures.foreign,
                "slowest acknowledgement (s)": _rounded(slowest),
                "longest hub gap (ms)": _rounded(gap, 1000),
                "that of an empty program (ms)": _rounded(empty_gap, 1000),
                "errors by class": _counts(self.summary.errors) or "none",
                "signals": _counts(self.summary.signals),
            },
        )

    def describe(self) -> str:
        """Return a few lines for a terminal."""
        case = self.case
        lines = [
            f"{self.title}: {'passed' if case.passed else 'FAILED'}, seed {self.seed}",
            f"    {_counts(self.faults)}",
            *(f"    {name}: {value}" for name, value in case.figures.items()),
            *(f"    BROKEN {name}: {value}" for name, value in self.violations.items()),
            *(f"    {text}" for text in self.figures.examples),
        ]
        if self.summary.connections:
            lines.append(f"    connections: {self.summary.connections}")
        return "\n".join(lines)


def _rounded(seconds: float | None, factor: int = 1) -> float | str:
    return "" if seconds is None else round(seconds * factor, 1)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
