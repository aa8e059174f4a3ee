"""The figures as text for a terminal, and as the page docs/benchmarks.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.remarks import REMARKS
from tests.benchmarks.results import load_text, title_of, where_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.benchmarks.cells import Table
    from tests.benchmarks.results import GoalResult, Results

_HEAD = """\
# Benchmarks

Written by `python -m tests.benchmarks --write-docs`; don't edit. {facts}.

Each figure is {rounds}. Each measurement is a process of its own, and in a
round the contenders follow each other closely. All ask for all acknowledgements,
without idempotence and compression; messages have 100 bytes. The mock cluster runs in
another process. Batches are made of messages that exist already. The CPU time is that
of the whole client process, with all of its threads.

greendrop has its default settings, except where a line says otherwise: "linger 1" is
what users get who set `linger.ms`, and "linger 0, no batching" is greendrop without its
own batching, which no setting gives.

"Raw" is confluent-kafka without greendrop:

- *flush*: `produce()` and `flush()`, for each message or batch;
- *poll thread*: a native thread polls, and wakes greenlets that wait for their
  `AsyncResult`s;
- *poll(0) every 1 ms*: a greenlet polls, and greenlets wait for their `AsyncResult`s;
- *callback*: one shared callback, without waiting.

The gevent peers are poll thread, poll(0), and "kafka-python, patched": kafka-python
after gevent's `patch_all()`. aiokafka has tasks in place of greenlets, on uvloop.

A goal compares greendrop with its reference inside each round, and the median of these
ratios counts; it can differ from the ratio of two figures in a table. {reached} of
{goals} goals were reached.
"""


def as_text(grid: Sequence[Sequence[str]]) -> str:
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


def as_markdown(grid: Sequence[Sequence[str]], align: str = "---:") -> str:
    """Format a grid as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in grid]
    lines.insert(1, "|---" + f"|{align}" * (len(grid[0]) - 1) + "|")
    return "\n".join(lines)


def docs_page(results: Results, tables: Sequence[Table]) -> str:
    """Write the page of the documentation."""
    goals = results.goal_results(tables)
    facts = ", ".join(f"{name} {fact}" for name, fact in results.facts.items())
    rounds = "from one round"
    if results.rounds > 1:
        rounds = f"the median of {results.rounds} rounds"
    reached = sum(not each.missed for each in goals)
    parts = [
        _HEAD.format(facts=facts, rounds=rounds, reached=reached, goals=len(goals))
    ]
    for table in tables:
        parts += _section(results, table)
    if failures := results.failures():
        failed = "".join(f"- {failure}\n" for failure in failures)
        parts.append(f"## Failed measurements\n\n{failed}")
    return "\n".join(parts)


def _section(results: Results, table: Table) -> Iterator[str]:
    measured = [cell for cell in table.cells if results.has(cell)]
    if not measured:
        return
    yield f"## {table.title}\n"
    # If all cells have it in common.
    places = {where_text(cell) for cell in measured if cell.server != "none"}
    if len(places) == 1:
        place = places.pop()
        yield f"{place[0].upper()}{place[1:]}.\n"
    for figures in table.grids:
        if grid := results.grid(table, figures, heads=True):
            yield f"{title_of(figures)}:\n\n{as_markdown(grid)}\n"
    if goals := results.goal_results([table]):
        yield f"Goals:\n\n{as_markdown(_goal_rows(goals), '---')}\n"
    remarks = [
        f"- {load_text(cell)}: {REMARKS[cell.name]}"
        for cell in measured
        if cell.name in REMARKS
    ]
    if remarks:
        yield "Limits:\n\n" + "\n".join(remarks) + "\n"


def _goal_rows(goals: Sequence[GoalResult]) -> list[list[str]]:
    rows = [["load", "goal", "reached", ""]]
    rows += [[load_text(each.cell), *each[1:]] for each in goals]
    return rows


def goals_text(goals: Sequence[GoalResult]) -> str:
    """List goals and reached figures for the terminal."""
    rows = [["cell", "goal", "reached", ""]]
    rows += [[each.cell.name, *each[1:]] for each in goals]
    return as_text(rows)
