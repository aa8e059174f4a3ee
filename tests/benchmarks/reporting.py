"""Evaluation of the figures: medians, goals reached or missed, tables, files."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from tests.benchmarks.cells import GREENDROP, Cell, Goal, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.running import Figures, Outcome

_PACKAGES = (
    "greendrop",
    "confluent-kafka",
    "gevent",
    "greenlet",
    "aiokafka",
    "kafka-python",
    "uvloop",
)


class _Figure(NamedTuple):
    """Name and format of a figure."""

    title: str
    write: Callable[[float], str]
    more_is_better: bool = False


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.2f}"


FIGURES = {
    "rate": _Figure("messages a second", _number, more_is_better=True),
    "p50": _Figure("wait, median, ms", _milliseconds),
    "p99": _Figure("wait, p99, ms", _milliseconds),
    "cpu": _Figure("CPU per message, µs", lambda value: f"{value * 1e6:.2f}"),
    "bytes": _Figure("bytes per message beyond its payload", _number),
    "late_p50": _Figure("ticker's lateness, median, ms", _milliseconds),
    "late_p99": _Figure("ticker's lateness, p99, ms", _milliseconds),
    "late_max": _Figure("ticker's lateness, longest, ms", _milliseconds),
    "late_max_no_gc": _Figure(
        "ticker's lateness, longest, garbage collection aside, ms", _milliseconds
    ),
    "threads": _Figure("more threads that run Python", _number),
    "wakeups": _Figure("wakeups of the hub's thread a second", _number),
    "idle_cpu": _Figure("CPU of the whole process, %", lambda x: f"{x * 100:.2f}"),
}


class GoalResult(NamedTuple):
    """A goal, and the figure that was reached."""

    cell: str
    goal: str
    reached: str
    met: bool


class Results:
    """All figures of a run."""

    def __init__(self) -> None:
        self._rounds: dict[str, list[dict[str, Outcome]]] = {}

    def add(self, cell: Cell, outcomes: dict[str, Outcome]) -> None:
        """Add one round."""
        self._rounds.setdefault(cell.name, []).append(outcomes)

    def median(self, cell: Cell, contender: str, figure: str) -> float | None:
        """Return the median over all rounds; None without figures."""
        values = [
            figures[figure]
            for figures in self._figures(cell, contender).values()
            if figure in figures
        ]
        return median(values) if values else None

    def _figures(self, cell: Cell, contender: str) -> dict[int, Figures]:
        found = {}
        for number, outcomes in enumerate(self._rounds.get(cell.name, [])):
            outcome = outcomes.get(contender)
            if isinstance(outcome, dict):
                found[number] = outcome
        return found

    def failures(self) -> list[str]:
        """Name the measurements that failed."""
        return sorted(
            {
                f"{cell}: {contender}: {outcome}"
                for cell, rounds in self._rounds.items()
                for outcomes in rounds
                for contender, outcome in outcomes.items()
                if isinstance(outcome, str)
            }
        )

    def judge(self, cell: Cell, goal: Goal) -> GoalResult:
        """Compare a figure with a goal.

        Other contenders are compared round by round, and the median of that counts:
        both ran under the same conditions.
        """
        figure = FIGURES[goal.figure]
        value = self.median(cell, GREENDROP, goal.figure)
        limit = goal.at_most if goal.at_most is not None else goal.at_least
        assert limit is not None
        what, write = figure.title, figure.write
        if goal.against:
            rival = self._best(cell, goal, more=figure.more_is_better)
            value = None if rival is None else self._compared(cell, goal, rival)
            what += f" beside {rival or ' / '.join(goal.against)}"
            write = figure.write if goal.difference else _ratio
        sign = "≤" if goal.at_most is not None else "≥"
        text = f"{what}: {sign} {write(limit)}"
        if value is None:
            return GoalResult(cell.name, text, "not measured", met=False)
        met = value <= limit if goal.at_most is not None else value >= limit
        return GoalResult(cell.name, text, write(value), met)

    def _best(self, cell: Cell, goal: Goal, *, more: bool) -> str | None:
        medians = {
            rival: value
            for rival in goal.against
            if (value := self.median(cell, rival, goal.figure)) is not None
        }
        if not medians:
            return None
        return (max if more else min)(medians, key=lambda rival: medians[rival])

    def _compared(self, cell: Cell, goal: Goal, rival: str) -> float | None:
        ours, theirs = self._figures(cell, GREENDROP), self._figures(cell, rival)
        values = []
        for number in ours.keys() & theirs.keys():
            one, other = ours[number][goal.figure], theirs[number][goal.figure]
            values.append(one - other if goal.difference else one / other)
        return median(values) if values else None

    def goal_results(self, tables: list[Table]) -> list[GoalResult]:
        """Evaluate all goals of the cells that were measured."""
        return [
            self.judge(cell, goal)
            for table in tables
            for cell in table.cells
            if cell.name in self._rounds
            for goal in cell.goals
        ]

    def grid(self, table: Table, figure: str) -> list[list[str]]:
        """Return one figure of a table's contenders in its cells, with a head."""
        measured = [cell for cell in table.cells if cell.name in self._rounds]
        contenders = dict.fromkeys(
            name for cell in measured for name in cell.contenders
        )
        rows = [["", *(cell.name for cell in measured)]]
        for contender in contenders:
            values = [self.median(cell, contender, figure) for cell in measured]
            if any(value is not None for value in values):
                write = FIGURES[figure].write
                texts = ["" if each is None else write(each) for each in values]
                rows.append([contender, *texts])
        return rows if len(rows) > 1 else []

    def save(self, file: Path) -> None:
        """Write all figures of all rounds as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"about": about(), "rounds": self._rounds}
        file.write_text(json.dumps(content, indent=1))


def _ratio(value: float) -> str:
    return f"{value:.3f} x" if value < 0.1 else f"{value:.2f} x"


def about() -> dict[str, str]:
    """Describe machine, date and versions."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "processor": _processor(),
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def as_text(grid: list[list[str]]) -> str:
    """Format a grid for the terminal."""
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    return "\n".join(
        "  "
        + row[0].ljust(widths[0])
        + "".join(
            f"  {text:>{width}}"
            for text, width in zip(row[1:], widths[1:], strict=True)
        )
        for row in grid
    )


def as_markdown(grid: list[list[str]]) -> str:
    """Format a grid as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in grid]
    lines.insert(1, "|---" + "|---:" * (len(grid[0]) - 1) + "|")
    return "\n".join(lines)


def goals_grid(goal_results: list[GoalResult]) -> list[list[str]]:
    """Return goals and reached figures side by side."""
    rows = [["cell", "goal", "reached", ""]]
    rows += [
        [each.cell, each.goal, each.reached, "" if each.met else "missed"]
        for each in goal_results
    ]
    return rows


_DOCS_HEAD = """\
# Benchmarks

Written by `python -m tests.benchmarks --write-docs`; don't edit. {facts}.

Each figure is the median of {rounds} rounds, of fewer where little varies. Each
measurement is a process of its own. In a round the contenders follow each other
closely, and what is compared is compared within a round. All ask for all
acknowledgements, without idempotence and compression; messages have 100 bytes. The
mock cluster runs in another process. Batches are made of messages that exist already.

"Raw" is confluent-kafka without greendrop:

- *flush*: `produce()` and `flush()`, for each message or batch;
- *poll thread*: a native thread polls, and wakes greenlets that wait for their
  `AsyncResult`s;
- *callback*: one shared callback, without waiting.

"linger 1" and "linger 5" are what the user gets who sets `linger.ms`. "linger 0
unbatched" is greendrop without batching, which no setting gives.
"""


def docs_page(results: Results, tables: list[Table], rounds: int) -> str:
    """Write the page of the documentation."""
    facts = ", ".join(f"{name} {fact}" for name, fact in about().items())
    parts = [_DOCS_HEAD.format(facts=facts, rounds=rounds)]
    for table in tables:
        grids = [(f, grid) for f in table.figures if (grid := results.grid(table, f))]
        if grids:
            parts.append(f"## {table.title}\n")
        for figure, grid in grids:
            parts.append(f"{FIGURES[figure].title}:\n\n{as_markdown(grid)}\n")
    goals = goals_grid(results.goal_results(tables))
    parts.append(f"## Goals\n\n{as_markdown(goals)}\n")
    return "\n".join(parts)
