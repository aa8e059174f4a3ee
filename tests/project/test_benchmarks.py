"""The benchmarks run, and measure any listener."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.interpreter import ROOT


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
    assert set(outcomes) == {"greendrop", "raw poll thread linger 0"}
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
