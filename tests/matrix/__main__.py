"""Run short tests on each Python, library, event loop and tracing agent.

    python -m tests.matrix                      all cells
    python -m tests.matrix libuv "python 3.13"  these cells
    python -m tests.matrix --others             all but the Python that runs this
    python -m tests.matrix --list
    python -m tests.matrix --keep               for docs/reliability.md

A cell with another Python, or with packages of its own, has a virtual environment in
`.matrix`. It stays, so that the next run installs only what has changed. The other
cells run in the environment of this program. A cell without a Python of its version is
left out. Exits with 1 if a cell fails.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tests import results
from tests.interpreter import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FOLDER = ROOT / ".matrix"
#: Seconds for an installation, and for the tests of one cell, which take two to five
#: minutes on a machine with nothing else to do.
_INSTALLING, _TESTING = 900.0, 1200.0
#: They mostly wait, so that more processes than processors suit them.
_PROCESSES = "6"
#: The tests that need no broker, no other interpreter and little time.
_SHORT = (
    "not slow and not patched and not kafka and not bench and not install and not sweep"
)
#: The tests that start an interpreter, whose hub lives as long as the process. Other
#: tests destroy their hub. With libuv that hangs or crashes in gevent if a watcher is
#: active, as it does without greendrop; see docs/versions.md.
_FRESH = "patched and not kafka and not bench and not install and not sweep"
#: gevent 26.9.0 drops an exception of a signal handler that runs in a callback of
#: libuv, and stops the watcher of that callback. All but the last of these tests raise
#: such exceptions. The last one destroys a hub, and gevent leaves a pipe of it open.
_NOT_WITH_LIBUV = {
    "tests/cli/test_cli.py": ("test_ctrl_c_ends_bench_silently",),
    "tests/producer/test_exit.py": (
        "test_a_signal_handler_may_end_the_program",
        "test_an_interrupted_exit_reports_what_was_lost",
        "test_ctrl_c_ends_a_program_that_does_not_catch_it",
        "test_ctrl_c_in_a_listener_ends_the_program",
        "test_ctrl_c_interrupts_a_wait",
        "test_ctrl_c_while_reports_are_handled_loses_none",
    ),
    "tests/client/test_dead_hub.py": (
        "test_call_from_a_thread_survives_an_exception_in_the_hub",
        "test_wait_ends_though_an_exception_hit_its_timer",
        "test_waiter_made_before_the_hub_died_ends_in_time",
    ),
}
#: The tests beside an agent: those of the message's journey, with and without a hub.
_JOURNEY = (
    "tests/client/test_delivery.py",
    "tests/client/test_batcher.py",
    "tests/producer/test_producer.py",
    "tests/transactions/test_transactions.py",
    "tests/contract",
)
#: An address without a listener, for the data of agents.
_NOWHERE = "http://127.0.0.1:1"
#: The last line of pytest.
_SUM = re.compile(r"^(?:=+ )?(\d+ \w+.* in .*?)(?: =+)?$", re.MULTILINE)
#: A test that passed when it was tried once more.
_RERUN = re.compile(r"^RERUN .*\n", re.MULTILINE)
#: The result of a cell: whether it failed, the tests, and the seconds.
_RESULT = re.compile(r"(FAILED: )?(.*?)(?:(?: in |; see ).*)? \((\d+) s\)")
# The first event of an agent starts its thread, which no test then finds left behind.
_DDTRACE = """\
from ddtrace.trace import tracer
tracer.trace("start").finish()
"""
_NEWRELIC = """\
import newrelic.agent
newrelic.agent.initialize()
newrelic.agent.register_application(timeout=10.0)
"""
_SENTRY = f"""\
import sentry_sdk
sentry_sdk.init(
    dsn="{_NOWHERE.replace("//", "//key@")}/1", traces_sample_rate=1.0,
    shutdown_timeout=0,
)
sentry_sdk.capture_message("start")
"""


@dataclass(frozen=True)
class Cell:
    """One environment.

    Attributes:
        name: As the table shows it.
        python: Version of the interpreter; empty for the one that runs this.
        packages: Requirements beside those of the tests.
        environment: Variables for the tests.
        runs_in: The command of an agent that starts Python.
        start: Statements that each interpreter runs first.
        tests: Files and folders; all if empty.
        left_out: Tests that can't pass here, by their files.
        marker: Chooses the tests.
    """

    name: str
    python: str = ""
    packages: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    runs_in: tuple[str, ...] = ()
    start: str = ""
    tests: tuple[str, ...] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    marker: str = _SHORT

    @property
    def folder(self) -> Path:
        """Where its virtual environment and its output are."""
        return FOLDER / self.name.replace(" ", "-")

    def run(self, pytest_args: Sequence[str] = ()) -> str:
        """Install it and run its tests; return the last line of what pytest says."""
        python = _interpreter(self.python)
        if python is None:
            return f"left out: there is no Python {self.python}"
        started = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.packages or python != sys.executable:
                python = self._install(python)
            result = self._test(Path(python).parent, pytest_args)
        except subprocess.CalledProcessError as error:
            result = f"FAILED: no installation, exit code {error.returncode}"
        except subprocess.TimeoutExpired as error:
            result = f"FAILED: not within {error.timeout:.0f} s"
        return f"{result} ({time.monotonic() - started:.0f} s)"

    def _install(self, python: str) -> str:
        """Install everything into an environment of its own; return its Python."""
        own = self.folder / "bin" / "python"
        if not own.exists():
            subprocess.run([python, "-m", "venv", str(self.folder)], check=True)
        pip = [str(own), "-m", "pip", "install", "--quiet"]
        options = ["--disable-pip-version-check", "--use-pep517", "--editable"]
        command = [*pip, *options, f"{ROOT}[test]", *self.packages]
        subprocess.run(command, check=True, timeout=_INSTALLING)
        return str(own)

    def _test(self, programs: Path, pytest_args: Sequence[str]) -> str:
        command = [str(programs / "python"), "-m", "pytest", "-q", "-n", _PROCESSES]
        # Agents import packages before pytest can rewrite their assertions.
        command += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        command += ["-m", self.marker, *self.tests]
        for file, names in self.left_out.items():
            command += [f"--deselect={file}::{name}" for name in names]
        command += pytest_args
        if self.runs_in:
            command = [str(programs / self.runs_in[0]), *self.runs_in[1:], *command]
        environment = {**os.environ, **self.environment}
        if self.start:
            start = self.folder / "start"
            start.mkdir(exist_ok=True)
            (start / "sitecustomize.py").write_text(self.start)
            environment["PYTHONPATH"] = str(start)
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            timeout=_TESTING,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        (self.folder / "output").write_text(done.stdout)
        print(*_RERUN.findall(done.stdout), sep="", end="", flush=True)
        # Agents may write something at the end, too.
        sums = _SUM.findall(done.stdout)
        result = sums[-1] if sums else "no tests ran"
        if done.returncode:
            print(done.stdout, flush=True)
            return f"FAILED: {result}; see {self.folder / 'output'}"
        return str(result)


def _runs_this(version: str) -> bool:
    return sys.version.startswith(f"{version}.")


def _interpreter(version: str) -> str | None:
    """Find a Python of a version, among those of pyenv and on the path."""
    if not version or _runs_this(version):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(pyenv.glob(f"{version}.*/bin/python"))
    return str(found[-1]) if found else shutil.which(f"python{version}")


def _lowest() -> tuple[str, ...]:
    """Return the oldest releases that setup.cfg allows, where it names one."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"].split()
    return tuple(each.replace(">=", "==") for each in required if ">=" in each)


CELLS = (
    *(
        Cell(f"python {each}", each)
        for each in ("3.10", "3.11", "3.12", "3.13", "3.14")
    ),
    # Of the newest Python that the oldest gevent has wheels for.
    Cell("oldest libraries", "3.12", _lowest()),
    # The others run on libev-cext.
    Cell("libev-cffi", environment={"GEVENT_LOOP": "libev-cffi"}),
    Cell(
        "libuv",
        environment={
            "GEVENT_LOOP": "libuv-cffi",
            "PYTHONWARNINGS": "ignore:libuv only supports millisecond timer resolution",
        },
        left_out=_NOT_WITH_LIBUV,
        marker=_FRESH,
    ),
    Cell("pure python", environment={"PUREPYTHON": "1"}),
    Cell(
        "ddtrace",
        environment={
            "DD_TRACE_AGENT_URL": _NOWHERE,
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        },
        runs_in=("ddtrace-run",),
        start=_DDTRACE,
        tests=_JOURNEY,
    ),
    Cell(
        "opentelemetry",
        packages=("opentelemetry-distro",),
        environment={
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        },
        runs_in=("opentelemetry-instrument",),
        tests=_JOURNEY,
    ),
    Cell(
        "newrelic",
        environment={
            "NEW_RELIC_LICENSE_KEY": "0" * 40,
            "NEW_RELIC_DEVELOPER_MODE": "true",
        },
        runs_in=("newrelic-admin", "run-program"),
        start=_NEWRELIC,
        tests=_JOURNEY,
    ),
    Cell("sentry", start=_SENTRY, tests=_JOURNEY),
)


def main() -> int:
    """Run the cells, and print their results in one table."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("cells", nargs="*", help="names of cells; all if omitted")
    parser.add_argument(
        "--others", action="store_true", help="leave out the Python that runs this"
    )
    parser.add_argument(
        "--pytest-args", default="", help="options for pytest, as a shell splits them"
    )
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument(
        "--keep", action="store_true", help="write the result to docs/reliability.json"
    )
    options = parser.parse_args()
    names = [each.name for each in CELLS]
    if unknown := set(options.cells) - set(names):
        parser.error(f"no such cells: {', '.join(sorted(unknown))}; see --list")
    if options.list:
        print(*names, sep="\n")
        return 0
    FOLDER.mkdir(exist_ok=True)
    found = {}
    for cell in CELLS:
        chosen = not options.cells or cell.name in options.cells
        if not chosen or (options.others and _runs_this(cell.python)):
            continue
        print(f"{cell.name} ...", flush=True)
        found[cell.name] = cell.run(shlex.split(options.pytest_args))
    for name, result in found.items():
        print(f"{name:18} {result}")
    if options.keep:
        _keep(found)
    return 1 if any(each.startswith("FAILED") for each in found.values()) else 0


def _keep(found: dict[str, str]) -> None:
    """Keep the results of the cells that ran, for docs/reliability.md."""
    cases = []
    for name, result in found.items():
        if ran := _RESULT.fullmatch(result):
            failed, tests, seconds = ran.groups()
            figures: results.Figures = {"tests": tests}
            cases.append(results.Case(name, int(seconds), figures, passed=not failed))
    results.keep(
        "matrix",
        "make matrix",
        cases,
        {"greendrop": version("greendrop")},
        note="Each cell has the newest libraries, if its name does not say otherwise.",
    )


if __name__ == "__main__":
    sys.exit(main())
