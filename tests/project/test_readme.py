"""The Python programs that README.md and the pages in docs show, run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from greendrop.testing import MockCluster

ROOT = Path(__file__).parents[2]
#: The one thing that is changed in a program that is run.
ADDRESS = "localhost:9092"
START, END = "```python\n", "```\n"

PAGES = sorted(
    page.relative_to(ROOT)
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if START in page.read_text()
)
# What a reader would do with a program that only defines something: by a line of it.
USES = {
    "@app.post": 'assert app.test_client().post("/events").json["offset"] >= 0\n',
    "@tasks.task": "invoice(7)\n",
}

pytestmark = [pytest.mark.slow, pytest.mark.patched]


def program_of(page):
    """Make one program of a page's blocks, in which each line keeps its number."""
    lines = []
    block = None
    for line in page.read_text().splitlines(keepends=True):
        if block is not None and line == END:
            uses = [use for sign, use in USES.items() if sign in "".join(block)]
            lines.append("; ".join(uses) or "\n")
            block = None
        elif block is not None:
            block.append(line)
            lines.append(line)
        else:
            lines.append("\n")
        if line == START:
            block = []
    return "".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_programs_of_a_page_run(page, tmp_path):
    """The blocks of a page run one after the other, with only the address replaced.

    What only defines something is used, too.
    """
    program = program_of(ROOT / page)
    assert ADDRESS in program
    with MockCluster() as cluster:
        # Not `logging.py`: who imports logging would get that.
        script = tmp_path / f"page_{page.stem}.py"
        script.write_text(program.replace(ADDRESS, cluster.bootstrap_servers))

        done = subprocess.run(
            [sys.executable, script],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            check=False,
            timeout=45,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    # A greenlet or thread that fails leaves only this.
    assert "Traceback" not in done.stderr


def test_every_page_that_readme_names_is_there():
    """No link of README.md to a file of the checkout is dead."""
    text = (ROOT / "README.md").read_text()
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    dead = [
        target
        for target in targets
        if "://" not in target and not (ROOT / target).exists()
    ]

    assert targets
    assert dead == []
