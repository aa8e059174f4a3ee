"""The figures of a run: kept in a file, their medians, and goals reached or missed."""

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
    from collections.abc import Callable, Iterable

    from tests.benchmarks.running import Outcome

_PACKAGES = (
    "greendrop",
    "confluent-kafka",
    "gevent",
    "greenlet",
    "kafka-python",
    "aiokafka",
    "uvloop",
)


class _Figure(NamedTuple):
    """Name and format of a figure."""

    title: str
    write: Callable[[float], str]
    unit: str = ""
    more_is_better: bool = False


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.2f}"


FIGURES = {
    "rate": _Figure("messages per second", _number, more_is_better=True),
    "cpu": _Figure("CPU per message", lambda value: f"{value * 1e6:.1f}", "µs"),
    "p50": _Figure("wait, median", _milliseconds, "ms"),
    "p99": _Figure("wait, p99", _milliseconds, "ms"),
    "bytes": _Figure("memory per message", _number, "bytes"),
    "late_p50": _Figure("ticker's lateness, median", _milliseconds, "ms"),
    "late_p99": _Figure("ticker's lateness, p99", _milliseconds, "ms"),
    "late_max": _Figure("ticker's lateness, longest", _milliseconds, "ms"),
    "late_max_no_gc": _Figure(
        "ticker's lateness, longest, garbage collection aside", _milliseconds, "ms"
    ),
    "threads": _Figure("additional threads that run Python", _number),
    "wakeups": _Figure("wake-ups of the hub's thread per second", _number),
    "idle_cpu": _Figure("CPU of the process", lambda x: f"{x * 100:.2f}", "%"),
}


class GoalResult(NamedTuple):
    """A goal, and the figure that was reached."""

    cell: Cell
    goal: str
    reached: str
    #: "" if it was reached; otherwise by how much it was missed.
    missed: str


class Results:
    """All figures of a run."""

    def __init__(self, facts: dict[str, str] | None = None) -> None:
        #: Machine, date and versions.
        self.facts = about() if facts is None else facts
        self._rounds: dict[str, list[dict[str, Outcome]]] = {}

    @classmethod
    def load(cls, file: Path) -> Results:
        """Read the file of an earlier run."""
        content = json.loads(file.read_text())
        results = cls(content["about"])
        results._rounds = content["rounds"]
        return results

    def save(self, file: Path) -> None:
        """Write all figures of all rounds as JSON, a round in a line."""
        cells = []
        for name, rounds in self._rounds.items():
            lines = ",\n".join(json.dumps(each) for each in rounds)
            cells.append(f"{json.dumps(name)}: [\n{lines}\n]")
        about = json.dumps(self.facts, indent=1, ensure_ascii=False)
        together = ",\n".join(cells)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"about": {about},\n"rounds": {{\n{together}\n}}}}\n')

    @property
    def rounds(self) -> int:
        """The most rounds that a cell has."""
        return max((len(rounds) for rounds in self._rounds.values()), default=0)

    def has(self, cell: Cell) -> bool:
        """Return whether a cell was measured."""
        return cell.name in self._rounds

    def add(self, cell: Cell, outcomes: dict[str, Outcome]) -> None:
        """Add one round."""
        short = {name: _short(outcome) for name, outcome in outcomes.items()}
        self._rounds.setdefault(cell.name, []).append(short)

    def median(self, cell: Cell, contender: str, figure: str) -> float | None:
        """Return the median over all rounds; None without figures."""
        values = self._values(cell, contender, figure)
        return median(values.values()) if values else None

    def _values(self, cell: Cell, contender: str, figure: str) -> dict[int, float]:
        """Return a figure by number of the round; without rounds that failed."""
        found = {}
        for number, outcomes in enumerate(self._rounds.get(cell.name, [])):
            outcome = outcomes.get(contender)
            if isinstance(outcome, dict) and figure in outcome:
                found[number] = outcome[figure]
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

    def goal_results(self, tables: Iterable[Table]) -> list[GoalResult]:
        """Evaluate all goals of the cells that were measured."""
        return [
            self.evaluate(cell, goal)
            for table in tables
            for cell in table.cells
            if self.has(cell)
            for goal in cell.goals
        ]

    def evaluate(self, cell: Cell, goal: Goal) -> GoalResult:
        """Compare a figure with a goal.

        A reference is compared round by round, and the median of that counts: both ran
        under the same conditions. Of several references the one that is the hardest to
        reach counts.
        """
        if not goal.against:
            value = self.median(cell, GREENDROP, goal.figure)
            return _result(cell, goal, value, FIGURES[goal.figure].write)
        write = FIGURES[goal.figure].write if goal.difference else _ratio
        compared = {
            reference: value
            for reference in goal.against
            if (value := self._compare(cell, goal, reference)) is not None
        }
        if len(compared) < len(goal.against):
            return _result(cell, goal, None, write)
        hardest = (max if goal.at_most is not None else min)(
            compared, key=lambda name: compared[name]
        )
        suffix = f" ({hardest})" if len(compared) > 1 else ""
        return _result(
            cell, goal, compared[hardest], lambda value: write(value) + suffix
        )

    def _compare(self, cell: Cell, goal: Goal, reference: str) -> float | None:
        ours = self._values(cell, GREENDROP, goal.figure)
        theirs = self._values(cell, reference, goal.figure)
        values = []
        for number in ours.keys() & theirs.keys():
            one, other = ours[number], theirs[number]
            values.append(one - other if goal.difference else one / other)
        return median(values) if values else None

    def grid(
        self, table: Table, figures: tuple[str, ...], *, heads: bool = False
    ) -> list[list[str]]:
        """Return figures of a table's contenders in its cells.

        The first row has the names of the cells, or the heads of the columns.
        """
        measured = [cell for cell in table.cells if self.has(cell)]
        contenders = dict.fromkeys(
            name for cell in measured for name in cell.contenders
        )
        rows = [["", *(cell.head if heads else cell.name for cell in measured)]]
        for contender in contenders:
            texts = [self._text(cell, contender, figures) for cell in measured]
            if any(texts):
                rows.append([contender, *texts])
        return rows if len(rows) > 1 else []

    def _text(self, cell: Cell, contender: str, figures: tuple[str, ...]) -> str:
        values = {figure: self.median(cell, contender, figure) for figure in figures}
        if all(value is None for value in values.values()):
            return ""
        return " · ".join(
            "-" if value is None else FIGURES[figure].write(value)
            for figure, value in values.items()
        )


def title_of(figures: tuple[str, ...]) -> str:
    """Name the figures of a grid, with their units."""
    named = [FIGURES[figure] for figure in figures]
    return " · ".join(
        f"{each.title}, {each.unit}" if each.unit else each.title for each in named
    )


def _short(outcome: Outcome) -> Outcome:
    """Round figures to five digits, so that files stay small."""
    if isinstance(outcome, str):
        return outcome
    return {name: float(f"{value:.5g}") for name, value in outcome.items()}


def _ratio(value: float) -> str:
    return f"{value:.3f} times" if value < 0.1 else f"{value:.2f} times"


def _limit(goal: Goal) -> float:
    limit = goal.at_most if goal.at_most is not None else goal.at_least
    assert limit is not None
    return limit


def _result(
    cell: Cell, goal: Goal, value: float | None, write: Callable[[float], str]
) -> GoalResult:
    text = goal_text(goal)
    if value is None:
        return GoalResult(cell, text, "not measured", "missed")
    limit = _limit(goal)
    excess = value - limit if goal.at_most is not None else limit - value
    missed = ""
    if excess > 0:
        # Of a limit of nothing there is no share.
        missed = f"missed by {_percent(excess / limit)}" if limit else "missed"
    return GoalResult(cell, text, write(value), missed)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:,.0%}"


def goal_text(goal: Goal) -> str:
    """Describe a goal in words."""
    figure, limit = FIGURES[goal.figure], _limit(goal)
    bound = "at most" if goal.at_most is not None else "at least"
    unit = f" {figure.unit}" if figure.unit else ""
    if not goal.against:
        return f"{figure.title}: {bound} {figure.write(limit)}{unit}"
    reference = goal.called or " and ".join(goal.against)
    compared = f"{figure.title} compared with {reference}"
    if goal.difference:
        return f"{compared}: {bound} {figure.write(limit)}{unit} more"
    return f"{compared}: {bound} {_ratio(limit)}"


_KINDS = {
    "wait": "{workers:,} {worker_kind} that wait",
    "fire": "{count:,} messages without waiting",
    "batch": "batches of {count:,}",
    "burst": "{count:,} reports at once",
    "memory": "{count:,} messages in flight",
    "idle": "an idle producer",
    "transact": "transactions of {count:,} messages by {workers:,} {worker_kind}",
}
_SERVERS = {"kafka": "Apache Kafka", "mock": "mock cluster", "none": ""}


def load_text(cell: Cell) -> str:
    """Describe the load of a cell: the work, the broker, its partitions, the keys."""
    load = cell.load
    work = _KINDS[load.kind].format(**vars(load))
    if load.workers == 1:
        work = work.replace("greenlets", "greenlet").replace("threads", "thread")
        work = work.replace("that wait", "that waits")
    parts = [work]
    if load.ticker and load.kind != "burst":
        parts.append("a ticker beside it")
    if cell.server == "none" or load.kind == "idle":
        return ", ".join(parts)
    parts.append(where_text(cell))
    return ", ".join(parts)


def where_text(cell: Cell) -> str:
    """Describe the broker of a cell, its partitions, and the keys."""
    parts = [_SERVERS[cell.server]]
    if cell.round_trip:
        parts.append(f"round trip {cell.round_trip * 1000:g} ms")
    parts.append(f"{cell.partitions} partitions")
    parts.append(f"{cell.load.keys:,} keys" if cell.load.keys else "no key")
    return ", ".join(parts)


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
