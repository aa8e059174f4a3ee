"""Measure greendrop beside others; tables, and the goals that were missed.

With `--write-docs` the page, its figures and its picture are replaced together.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks import page
from tests.benchmarks.cells import TABLES, Cell, Table
from tests.benchmarks.results import Results, load_text, title_of
from tests.benchmarks.running import Servers, rounds_of

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "benchmarks.md"
_KEPT = _ROOT / "docs" / "benchmarks.json"
_DRAW = _ROOT / "docs" / "pictures" / "draw.py"
_FOLDER = _ROOT / "build" / "benchmarks"


def main() -> None:
    """Run the chosen cells and print the results."""
    arguments = _arguments()
    if arguments.figures:
        results = Results.load(arguments.figures)
        for table in TABLES:
            _show(results, table)
    else:
        results = _measure(arguments)
    for failure in results.failures():
        print(f"failed: {failure}")
    _conclude(results)
    if arguments.write_docs:
        results.save(_KEPT)
        _PAGE.write_text(page.docs_page(results, TABLES))
        subprocess.run([sys.executable, str(_DRAW), "benchmarks"], check=True)
        print(f"written: {_PAGE}, {_KEPT}, and the picture")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        help="a table or a cell; may be repeated",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help=f"write {_PAGE.name}, {_KEPT.name} and the picture",
    )
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="for the figures")
    parser.add_argument(
        "--figures",
        metavar="FILE",
        type=Path,
        help="show the figures of an earlier run instead of measuring",
    )
    arguments = parser.parse_args()
    if arguments.write_docs and (arguments.only or arguments.quick):
        parser.error("--write-docs is for a whole run")
    return arguments


def _measure(arguments: argparse.Namespace) -> Results:
    rounds = 1 if arguments.quick else arguments.rounds
    seconds = 0.5 if arguments.quick else 1.0
    results = Results()
    file = arguments.folder / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    started_at = time.monotonic()
    with Servers(quick=arguments.quick) as servers:
        for table in TABLES:
            chosen = [
                cell for cell in table.cells if _is_chosen(arguments.only, table, cell)
            ]
            if not chosen:
                continue
            print(f"\n{table.title}", flush=True)
            for cell in chosen:
                _run(cell, servers, results, rounds, seconds)
            _show(results, table)
            # After each table, so that an interrupted run isn't lost.
            results.save(file)
    print(f"\nall figures, after {time.monotonic() - started_at:.0f} s: {file}")
    return results


def _is_chosen(only: list[str] | None, table: Table, cell: Cell) -> bool:
    return only is None or table.name in only or cell.name in only


def _run(
    cell: Cell, servers: Servers, results: Results, rounds: int, seconds: float
) -> None:
    reason = servers.missing(cell)
    if reason is not None:
        print(f"{cell.name} left out: {reason}")
        return
    print(f"  {cell.name}: {load_text(cell)}", flush=True)
    for outcomes in rounds_of(cell, servers, rounds, seconds):
        results.add(cell, outcomes)


def _show(results: Results, table: Table) -> None:
    for figures in table.grids:
        grid = results.grid(table, figures)
        if grid:
            print(f"\n {title_of(figures)}\n{page.as_text(grid)}", flush=True)


def _conclude(results: Results) -> None:
    goals = results.goal_results(TABLES)
    if not goals:
        return
    reached = sum(not each.missed for each in goals)
    print(f"\ngoals\n{page.goals_text(goals)}")
    print(f"\n{reached} of {len(goals)} goals reached")


if __name__ == "__main__":
    main()
