"""The benchmarks run, compare inside rounds, and measure any listener."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys

import pytest

from tests.benchmarks import cells
from tests.benchmarks.cells import TABLES, Cell, Goal, Load
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.page import docs_page
from tests.benchmarks.remarks import REMARKS
from tests.benchmarks.results import FIGURES, Results, goal_text, load_text
from tests.interpreter import ROOT

DOCS = ROOT / "docs"
KEPT = DOCS / "benchmarks.json"
ALL_CELLS = [cell for table in TABLES for cell in table.cells]
PEERS = ("slow peer", "fast peer")


def evaluated(goal, *rounds):
    """Return the result of a goal in rounds of rates: ours, and those of `PEERS`."""
    cell = Cell("wait-7", "7", Load("wait", workers=7, keys=9), ("greendrop", *PEERS))
    results = Results({})
    for rates in rounds:
        outcomes = zip(("greendrop", *PEERS), rates, strict=True)
        results.add(
            cell,
            {
                name: rate if isinstance(rate, str) else {"rate": rate}
                for name, rate in outcomes
            },
        )
    return results.evaluate(cell, goal)


def test_goals_compare_inside_rounds():
    """The median of the ratios counts, not the ratio of the medians."""
    goal = Goal("rate", PEERS[:1], at_least=2.0)

    result = evaluated(goal, (30, 10, 1), (200, 100, 1), (1_000, 400, 1))

    assert (result.reached, result.missed) == ("2.50 times", "")


def test_the_reference_that_is_hardest_to_reach_counts():
    """Of several references a goal is compared with the best, and names it."""
    goal = Goal("rate", PEERS, "each peer", at_least=1.0)

    result = evaluated(goal, (75, 10, 100))

    assert result.reached == "0.75 times (fast peer)"
    assert result.missed == "missed by 25%"


def test_a_goal_without_figures_of_a_reference_is_missed():
    """A reference that failed in all rounds does not count as beaten."""
    goal = Goal("rate", PEERS, "each peer", at_least=1.0)

    result = evaluated(goal, (90, 10, "it ended"))

    assert (result.reached, result.missed) == ("not measured", "missed")


def test_goals_name_reference_partitions_and_keys():
    """A reader learns what was compared, and under which load."""
    goal = Goal("cpu", ("raw callback",), difference=True, at_most=1.9e-6)
    cell = Cell("x", "x", Load("wait", workers=10, keys=1_000), (), partitions=50)

    assert goal_text(goal) == (
        "CPU per message compared with raw callback: at most 1.9 µs more"
    )
    assert load_text(cell) == (
        "10 greenlets that wait, Apache Kafka, 50 partitions, 1,000 keys"
    )


@pytest.mark.parametrize("cell", ALL_CELLS, ids=lambda cell: cell.name)
def test_each_reference_of_a_goal_runs_in_its_cell(cell):
    """No goal needs a contender that its cell doesn't run, or an unknown figure."""
    assert set(cell.contenders) <= set(CONTENDERS)
    for goal in cell.goals:
        assert set(goal.against) < set(cell.contenders)
        assert goal.figure in FIGURES
        assert (goal.at_least is None) != (goal.at_most is None)


def test_each_remark_belongs_to_a_cell():
    """A remark on a cell that is gone would never be shown."""
    assert set(REMARKS) <= {cell.name for cell in ALL_CELLS}


def test_figures_survive_being_saved(tmp_path):
    """A run that was saved can be shown again, with the reasons of failures."""
    cell = ALL_CELLS[0]
    results = Results({"date": "2026-12-01"})
    results.add(cell, {cells.GREENDROP: {"rate": 7.0}, cells.AIOKAFKA: "it ended"})
    results.save(tmp_path / "run.json")

    loaded = Results.load(tmp_path / "run.json")

    assert loaded.facts == {"date": "2026-12-01"}
    assert loaded.median(cell, cells.GREENDROP, "rate") == 7.0
    assert loaded.failures() == [f"{cell.name}: {cells.AIOKAFKA}: it ended"]


def test_page_names_failed_measurements():
    """A row without a figure has its reason on the page."""
    cell = ALL_CELLS[0]
    results = Results({"date": "2026-12-01"})
    results.add(cell, {cells.GREENDROP: {"rate": 7.0}, cells.AIOKAFKA: "it ended"})

    page = docs_page(results, TABLES)

    assert f"\n- {cell.name}: {cells.AIOKAFKA}: it ended\n" in page


def test_page_and_picture_show_the_kept_figures():
    """If they don't, run python -m tests.benchmarks --figures FILE --write-docs."""
    draw = runpy.run_path(str(DOCS / "pictures" / "draw.py"))

    page = docs_page(Results.load(KEPT), TABLES)
    picture = draw["benchmarks_svg"]()

    assert page == (DOCS / "benchmarks.md").read_text()
    assert picture == (DOCS / "pictures" / "benchmarks.svg").read_text()


@pytest.mark.slow
def test_a_quick_benchmark_has_figures_of_each_contender(tmp_path):
    """One cell, measured briefly, has all figures."""
    command = [sys.executable, "-m", "tests.benchmarks", "--quick"]
    command += ["--only", "hub-100", "--folder", str(tmp_path)]

    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    (file,) = tmp_path.iterdir()
    (outcomes,) = json.loads(file.read_text())["rounds"]["hub-100"]
    (cell,) = (each for each in ALL_CELLS if each.name == "hub-100")
    assert set(outcomes) == set(cell.contenders)
    for figures in outcomes.values():
        assert figures["rate"] > 0
        assert figures["late_max"] >= figures["late_p99"]


class Listener:
    """A listener for acknowledgements."""

    def on_message_acknowledged(self, event):
        """Do nothing."""


@pytest.mark.slow
def test_any_listener_can_be_measured():
    """A listener named by its path is in the table of costs, too."""
    command = [sys.executable, "-m", "tests.benchmarks.listeners", "--skip-ours"]
    command += ["--rounds", "1", "--count", "2000"]
    command += ["--listener", "tests.project.test_benchmarks:Listener"]
    command += ["--listener", "greendrop.listeners.opentelemetry:trace"]
    command += ["--listener", "greendrop.listeners.log:LogListener"]

    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )

    assert done.returncode == 0, done.stderr
    table = r"\| none \| [\d.]+ \| [\d.]+ \|\n(\| \S+:\w+ (\| [+-][\d.]+ ){2}\|\n){3}"
    assert re.search(table, done.stdout), done.stdout
