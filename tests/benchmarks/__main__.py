"""Measure greendrop beside others; tables, and the goals that were missed."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.benchmarks import reporting
from tests.benchmarks.cells import TABLES, Cell, Table
from tests.benchmarks.reporting import FIGURES, Results
from tests.benchmarks.running import Servers, rounds_of

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "benchmarks.md"
_FOLDER = _ROOT / "build" / "benchmarks"


def main() -> None:
    """Run the chosen cells and print the results."""
    arguments = _arguments()
    rounds = 1 if arguments.quick else arguments.rounds
    seconds = 0.5 if arguments.quick else 1.0
    results = Results()
    with Servers(quick=arguments.quick) as servers:
        for table in TABLES:
            chosen = [
                cell for cell in table.cells if _is_chosen(arguments, table, cell)
            ]
            if chosen:
                print(f"\n{table.title}", flush=True)
            for cell in chosen:
                _run(cell, servers, results, min(rounds, table.rounds), seconds)
            if chosen:
                _show(results, table)
    file = arguments.folder / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    results.save(file)
    print(f"\nall figures: {file}")
    for failure in results.failures():
        print(f"failed: {failure}")
    _conclude(results)
    if arguments.write_docs:
        _PAGE.write_text(reporting.docs_page(results, list(TABLES), rounds))
        print(f"written: {_PAGE}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__
    )
    parser.add_argument(
        "--only", metavar="NAME", help="tables or cells, by their start"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--write-docs", action="store_true", help=f"write {_PAGE.name}")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="for the figures")
    arguments = parser.parse_args()
    if arguments.write_docs and (arguments.only or arguments.quick):
        parser.error("--write-docs is for a whole run")
    return arguments


def _is_chosen(arguments: argparse.Namespace, table: Table, cell: Cell) -> bool:
    only = arguments.only
    return only is None or only in (table.name, cell.name)


def _run(
    cell: Cell, servers: Servers, results: Results, rounds: int, seconds: float
) -> None:
    reason = servers.missing(cell)
    if reason is not None:
        print(f"{cell.name} left out: {reason}")
        return
    for outcomes in rounds_of(cell, servers, rounds, seconds):
        results.add(cell, outcomes)


def _show(results: Results, table: Table) -> None:
    for figure in table.figures:
        grid = results.grid(table, figure)
        if grid:
            print(f"\n {FIGURES[figure].title}\n{reporting.as_text(grid)}", flush=True)


def _conclude(results: Results) -> None:
    goal_results = results.goal_results(list(TABLES))
    if not goal_results:
        return
    missed = [each for each in goal_results if not each.met]
    print(f"\ngoals\n{reporting.as_text(reporting.goals_grid(goal_results))}")
    print(f"\n{len(goal_results) - len(missed)} of {len(goal_results)} goals reached")
    for each in missed:
        print(f"  missed: {each.cell}: {each.goal}, not {each.reached}")


if __name__ == "__main__":
    main()
