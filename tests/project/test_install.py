"""Programs of README, docs and examples in virtual environments with what they name.

`make install-test` runs these tests: they download packages from PyPI.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from greendrop.testing import MockCluster

ROOT = Path(__file__).parents[2]
#: The address in the programs of the documentation.
ADDRESS = "localhost:9092"
#: Seconds for one command.
TIME_LIMIT = 200
#: The extras that only developers of greendrop need.
DEVELOPMENT = {"test", "lint", "docs", "bench"}

GUNICORN = (".[flask,gunicorn]",)
GETTING_STARTED = (".[flask,gunicorn]", "pytest")


class Program(NamedTuple):
    """A command line, and a text that its output must contain.

    Attributes:
        arguments: The name of a program of the environment, and its arguments.
        output: A part of what the program writes to standard output.
    """

    arguments: tuple[str, ...]
    output: str = ""


class Block(NamedTuple):
    """A Python block of README or docs.

    Attributes:
        marker: A part of the block.
        use: A program that uses what the block only defines.
    """

    marker: str
    use: str = ""


def example(path: str, output: str, *options: str) -> Program:
    """Return the command line of a program in `examples`."""
    return Program(("python", f"examples/{path}", *options), output)


#: Each documented way to install greendrop, and what is promised to run after it.
WAYS: dict[tuple[str, ...], tuple[Program | Block, ...]] = {
    (".",): (
        Block("gevent.joinall([gevent.spawn(handle, number)"),
        Block("with producer.scope():"),
        example("quickstart.py", "produce_sync waits"),
        example("concurrent.py", "three greenlets and one producer"),
        example("concurrent.py", "three threads and one producer", "--threads"),
        example("pool.py", "available=3"),
        example("buffer.py", "closed, 0 messages left"),
        example("observing.py", "slowest round trip"),
        example("oauth.py", "have their token"),
        example("scope.py", "answers 200"),
        example("exactly_once.py", "1000 records"),
        example("multiprocessing/run_multiprocessing.py", "words sent and delivered"),
        Program(("greendrop", "--version"), "greendrop "),
    ),
    (".", "pytest"): (Program(("pytest", "examples/testing"), "4 passed"),),
    (".[flask,gunicorn,prometheus]",): (
        Program(("python", "-c", "import flask, gunicorn, prometheus_client")),
    ),
    (".[gunicorn]",): (example("gunicorn/run_gunicorn.py", "1000 of 1000"),),
    (".[flask]",): (example("flask/run_flask.py", "100 of 100 orders"),),
    (".[django]",): (example("django/run_django.py", "the relay has sent 30"),),
    (".[celery]", "celery[redis]"): (
        # The transport loads what Redis needs, and connects later.
        Block("@tasks.task", "invoice(7)\nassert tasks.connection().transport\n"),
    ),
    (".[celery]",): (
        example("celery/run_celery.py", "prefork: the worker ends with 0"),
    ),
    (".[locust]",): (example("locust/run_locust.py", "greendrop-locust-orders"),),
    (".[prometheus]",): (
        Block("subscribe(PrometheusListener())"),
        example("metrics.py", "greendrop_messages_acknowledged_total"),
    ),
    (".[opentelemetry]",): (Block("trace(producer)"),),
    (".[opentelemetry]", "opentelemetry-sdk"): (
        example("tracing.py", "send greendrop-tracing"),
    ),
    (".[datadog]",): (Block("StatsdListener(DogStatsd()"),),
    (".[statsd]",): (
        Program(("python", "-c", "import greendrop.listeners.statsd, statsd")),
    ),
    (".[completion]",): (
        Program(("greendrop", "--print-completion", "bash"), "complete"),
    ),
}


class Environment:
    """A virtual environment with what one command installs, and nothing else.

    Args:
        folder: The folder of the environment.
        checkout: A checkout without the package, so that only the installed one counts.
    """

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.bin = folder / "bin"
        self.checkout = checkout

    def command(self, *arguments: str | Path) -> list[str]:
        """Return a command line whose program is one of the environment."""
        return [str(self.bin / arguments[0]), *map(str, arguments[1:])]

    def environ(self, **more: str) -> dict[str, str]:
        """Return the variables of a shell in which the environment is activated."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "PYTEST", "GREENDROP", "VIRTUAL_ENV"))
        }
        path = f"{self.bin}{os.pathsep}{kept['PATH']}"
        return {**kept, "PATH": path, "PYTHONIOENCODING": "utf-8", **more}

    def run(self, *arguments: str | Path, **more: str) -> str:
        """Run a program of the environment, and return its standard output."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.checkout,
            env=self.environ(**more),
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=TIME_LIMIT,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Copy the checkout, without what was built in it."""
    folder = tmp_path_factory.mktemp("install") / "checkout"
    made_here = shutil.ignore_patterns(
        ".*", "_build", "build", "dist", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, folder, ignore=made_here)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout):
    """Build the wheel once, with the setuptools of this environment."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", checkout]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    for name in ("greendrop", "pytest_greendrop.py", "tests", "build"):
        path = checkout / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return wheel


@pytest.fixture
def environment(tmp_path, checkout, wheel, tmp_path_factory):
    """Return a function that makes the environment of a way to install."""

    def make(way: tuple[str, ...]) -> Environment:
        folder = tmp_path / "environment"
        venv.create(folder, with_pip=False, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
        pip += ["--quiet", "--disable-pip-version-check"]
        pip += ["--cache-dir", tmp_path_factory.getbasetemp() / "pip-cache"]
        requirements = [
            f"{wheel}{each[1:]}" if each.startswith(".") else each for each in way
        ]
        done = subprocess.run(
            [*pip, "install", "--no-compile", *requirements],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIME_LIMIT,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Environment(folder, checkout)

    return make


def pages() -> list[Path]:
    """Return the Markdown pages that users read."""
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found += (ROOT / "examples").rglob("*.md")
    unread = (ROOT / "docs" / "changes", ROOT / "docs" / "decisions")
    return [page for page in found if not set(unread) & set(page.parents)]


def block_with(marker: str) -> str:
    """Return the Python block of the documentation that contains a text."""
    for page in pages():
        for text in re.findall(
            r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            if marker in text:
                return str(text)
    raise AssertionError(f"no block contains {marker!r}")


@pytest.mark.install
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_programs_run_with_what_their_page_installs(environment, tmp_path, way):
    """No program needs a package that its page does not name."""
    its = environment(way)
    for program in WAYS[way]:
        if isinstance(program, Program):
            assert program.output in its.run(*program.arguments)
        else:
            run_block(its, program, tmp_path)


def run_block(its: Environment, block: Block, folder: Path) -> None:
    """Run a block of the documentation on a mock cluster."""
    script = folder / "program.py"
    with MockCluster() as cluster:
        text = block_with(block.marker).replace(ADDRESS, cluster.bootstrap_servers)
        script.write_text(text + block.use)
        its.run("python", script)


@pytest.mark.install
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_gunicorn_serves_the_application_of_the_readme(environment, tmp_path):
    """The command below the block is run as it stands, but for the port."""
    its = environment(GUNICORN)
    log = tmp_path / "log"
    with MockCluster.spawn() as cluster, log.open("wb") as output:
        text = block_with("@app.post").replace(ADDRESS, cluster.bootstrap_servers)
        (tmp_path / "app.py").write_text(text)
        server = subprocess.Popen(
            its.command("gunicorn", "-b", "127.0.0.1:0", "-k", "gevent", "app:app"),
            cwd=tmp_path,
            env=its.environ(),
            stdout=output,
            stderr=output,
        )
        try:
            address = listening_address(log, server)
            with urllib.request.urlopen(f"{address}/events", b"x", 30) as answer:
                assert b"offset" in answer.read()
            assert len(cluster.records("events")) == 1
        finally:
            server.terminate()
            server.wait(30)


@pytest.mark.install
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_getting_started_runs_with_what_it_installs(environment, tmp_path):
    """Its programs that need no broker, and its test, run in its environment."""
    its = environment(GETTING_STARTED)
    text = (ROOT / "docs" / "start" / "getting-started.md").read_text()
    file = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    for name, code in file.findall(text):
        (tmp_path / name).write_text(code)

    assert "stored in partition" in its.run("python", tmp_path / "hello.py")
    assert "not delivered" in its.run("python", tmp_path / "failure.py")
    assert " passed" in its.run("pytest", "-q", tmp_path, "--rootdir", tmp_path)


def listening_address(log: Path, server: subprocess.Popen[bytes]) -> str:
    """Wait until gunicorn has logged its address."""
    for _ in range(600):
        if match := re.search(r"Listening at: (http://\S+)", log.read_text()):
            return match[1]
        if server.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_each_documented_way_to_install_is_tried():
    """README, docs and examples name no other command than those in `WAYS`."""
    texts = [page.read_text() for page in pages()]
    texts += [path.read_text() for path in (ROOT / "examples").rglob("*.py")]
    named = {
        tuple(shlex.split(line.replace("/path/to/greendrop", ".")))
        for text in texts
        for line in re.findall(r"pip install ([^`#\n]+)", text)
    }

    assert named
    assert named - {*WAYS, GUNICORN, GETTING_STARTED} == set()


def test_each_extra_is_tried():
    """Every extra for users is part of a way to install."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"]) - DEVELOPMENT

    tried = {f".[{extra}]" for extra in extras}
    assert tried <= {each for way in WAYS for each in way}
