"""Run short tests in many environments, each a virtual environment of its own.

    python -m tests.matrix                      all cells
    python -m tests.matrix libuv "python 3.13"  these cells
    python -m tests.matrix --list
    python -m tests.matrix --keep               for docs/reliability.md

A cell without a Python of its version is left out. The environments stay in `.matrix`,
so that the next run installs only what has changed. Exits with 1 if a cell fails.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from tests import results
from tests.interpreter import ROOT

FOLDER = ROOT / ".matrix"
#: Seconds for an installation, and for the tests of one cell: a quarter of an hour on a
#: machine with nothing else to do.
_INSTALLING, _TESTING = 900.0, 3600.0
#: The tests that need no broker, no other interpreter and little time.
_SHORT = (
    "not slow and not patched and not kafka and not bench and not install and not sweep"
)
#: The tests that start an interpreter, whose hub lives as long as the process. Other
#: tests destroy their hub. With libuv that hangs or crashes in gevent if a watcher is
#: active, as it does without greendrop; see docs/versions.md.
_FRESH = "patched and not kafka and not bench and not install and not sweep"
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
        marker: Chooses the tests.
    """

    name: str
    python: str = ""
    packages: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    runs_in: tuple[str, ...] = ()
    start: str = ""
    tests: tuple[str, ...] = ()
    marker: str = _SHORT

    @property
    def folder(self) -> Path:
        """Where its virtual environment is."""
        return FOLDER / self.name.replace(" ", "-")

    def run(self) -> str:
        """Install it and run its tests; return the last line of what pytest says."""
        python = _interpreter(self.python)
        if python is None:
            return f"left out: there is no Python {self.python}"
        started = time.monotonic()
        try:
            self._install(python)
            result = self._test()
        except subprocess.CalledProcessError as error:
            result = f"FAILED: no installation, exit code {error.returncode}"
        except subprocess.TimeoutExpired as error:
            result = f"FAILED: not within {error.timeout:.0f} s"
        return f"{result} ({time.monotonic() - started:.0f} s)"

    def _install(self, python: str) -> None:
        if not (self.folder / "bin" / "python").exists():
            subprocess.run([python, "-m", "venv", str(self.folder)], check=True)
        pip = [str(self.folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        options = ["--disable-pip-version-check", "--use-pep517", "--editable"]
        command = [*pip, *options, f"{ROOT}[test]", *self.packages]
        subprocess.run(command, check=True, timeout=_INSTALLING)
        if self.start:
            (self.folder / "start").mkdir(exist_ok=True)
            (self.folder / "start" / "sitecustomize.py").write_text(self.start)

    def _test(self) -> str:
        programs = self.folder / "bin"
        command = [str(programs / "python"), "-m", "pytest", "-q", "-n", "2"]
        # Agents import packages before pytest can rewrite their assertions.
        command += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        command += ["-m", self.marker, *self.tests]
        if self.runs_in:
            command = [str(programs / self.runs_in[0]), *self.runs_in[1:], *command]
        environment = {**os.environ, **self.environment}
        environment["PYTHONPATH"] = str(self.folder / "start")
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
        # Agents may write something at the end, too.
        sums = _SUM.findall(done.stdout)
        result = sums[-1] if sums else "no tests ran"
        if done.returncode:
            return f"FAILED: {result}; see {self.folder / 'output'}"
        return str(result)


def _interpreter(version: str) -> str | None:
    """Find a Python of a version, among those of pyenv and on the path."""
    if not version or sys.version.startswith(f"{version}."):
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
    Cell("libev", environment={"GEVENT_LOOP": "libev-cffi"}),
    Cell("libuv", environment={"GEVENT_LOOP": "libuv-cffi"}, marker=_FRESH),
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
        if not options.cells or cell.name in options.cells:
            print(f"{cell.name} ...", flush=True)
            found[cell.name] = cell.run()
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
