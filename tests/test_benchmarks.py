from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.interpreter import ROOT


@pytest.mark.slow
def test_a_quick_benchmark_gives_figures_of_each_contender(tmp_path):
    """The benchmarks still run: one cell, measured shortly, has all of its figures."""
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


@pytest.mark.slow
def test_a_quick_benchmark_of_listeners_gives_a_line_for_each():
    """What listening costs is still measured; without a listener an event is free."""
    command = [sys.executable, "-m", "tests.benchmarks.listening", "--quick"]

    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )

    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    costs = {line[:30].strip(): float(line.split()[-2]) for line in lines}
    assert costs["no listener"] < costs["log, nothing configured"]
    assert costs["no listener"] < costs["log, structlog at info"]
