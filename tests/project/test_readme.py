"""The code that README.md and the pages in docs show, run as it stands.

A page may have three kinds of code that runs:

- Python blocks. All of a page together are one program.
- Files: blocks that begin with a comment which is a file's name, such as `# app.py`.
- `console` blocks, whose lines with `$` are commands. Those of a page run one after
  the other, in a folder with the page's files. Other lines are output to be expected.
"""

import ast
import os
import re
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_connection, socket
from time import monotonic, sleep

import pytest

from greendrop.testing import MockCluster

ROOT = Path(__file__).parents[2]
#: The one thing that is changed in a program that is run.
ADDRESS = "localhost:9092"
WEB = "127.0.0.1:8000"

#: Pages that are evidence or about development, and not for users of greendrop.
PROJECT = ("benchmarks.md", "listener-costs.md", "design.md", "contributing.md")
#: The commands of this page are run by the command line's own tests.
COMMAND_LINE = "docs/reference/cli.md"
#: Languages of blocks that are neither Python nor commands.
SHOWN = {"text", "ruby", "yaml", "ini"}
#: Python for clients that can't be run here, beside the same for greendrop.
OTHERS = "{code-block}"

# Uses of the programs that only define something, by one of their lines.
USES = {
    "@app.post": 'assert app.test_client().post("/events").json["offset"] >= 0\n',
    "@tasks.task": "invoice(7)\n",
}
# The same for files that no command of their page runs: by page.
DRIVERS = {
    "docs/run/celery.md": "from tasks import invoice\ninvoice(7)\n",
    "docs/run/django.md": """
import os

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
from django.core.management import call_command
from django.test import Client

django.setup()
call_command("check")
call_command("migrate", verbosity=0)
assert Client().post("/orders").status_code == 200
from django.test import RequestFactory
from views import place_order
assert place_order(RequestFactory().post("/orders")).status_code == 200
""",
    "docs/run/uwsgi.md": """
import configparser

conf = configparser.ConfigParser()
assert conf.read("uwsgi.ini")
assert conf["uwsgi"]["gevent-monkey-patch"] == "true"
""",
    "docs/observe/metrics.md": """
import runpy

assert callable(runpy.run_path("gunicorn.conf.py")["child_exit"])
""",
}
#: Files that a tool loads by convention.
FOUND_BY_NAME = ("conftest.py", "locustfile.py")
# Commands that prepare the reader's machine, or need what no test has.
NOT_RUN = (
    "python3 -m venv",
    ". venv/bin/activate",
    "python -m pip",
    "git clone",
    "cd ",
    "mkdir ",
    "make ",
    "docker ",
    "export ",
    "celery ",
    "uwsgi ",
    "apt-get ",
    "PROMETHEUS_MULTIPROC_DIR=",
    "GEVENT_MONITOR_THREAD_ENABLE=",
    "FLASK_GREENDROP_KAFKA=",
)

pytestmark = [pytest.mark.slow, pytest.mark.patched]


@dataclass
class Page:
    """The code of one page."""

    #: The page's Python blocks as one program, in which each line keeps its number.
    program: str = ""
    files: dict[str, str] = field(default_factory=dict)
    #: Commands, each with the output that the page shows.
    commands: list[tuple[str, list[str]]] = field(default_factory=list)
    languages: set[str] = field(default_factory=set)
    #: Python for other clients.
    others: list[str] = field(default_factory=list)
    #: Lines that Markdown takes for code because they are indented.
    indented: list[str] = field(default_factory=list)


def read_page(path):
    """Collect the code of a page."""
    page = Page()
    program, block, language, previous = [], None, "", ""
    for line in path.read_text().splitlines(keepends=True):
        fence = re.fullmatch(r"```(\S*).*\n", line)
        end = fence and block is not None
        program.append(_add_block(page, language, block) if end else "\n")
        if end:
            block = None
        elif fence:
            block, language = [], fence[1]
            page.languages.add(language)
        elif block is not None:
            block.append(line)
            if language == "python" and not _file_name(block):
                program[-1] = line
        elif line.startswith("    ") and previous == "\n":
            page.indented.append(line)
        previous = line
    page.program = "".join(program)
    return page


def _file_name(block):
    named = (
        re.fullmatch(r"# ([\w/]+(\.conf)?\.(py|ini))\n", block[0]) if block else None
    )
    return named[1] if named else None


def _add_block(page, language, block):
    """Add a block that has ended; return what the program needs to use it."""
    if name := _file_name(block):
        page.files[name] = "".join(block)
    elif language == OTHERS:
        page.others.append("".join(block))
    elif language == "console":
        for line in block:
            if line.startswith("$ "):
                page.commands.append((line[2:].strip(), []))
            elif page.commands:
                page.commands[-1][1].append(line.strip())
    elif language == "python":
        uses = [use for sign, use in USES.items() if sign in "".join(block)]
        return "; ".join(uses) or "\n"
    return "\n"


READ = {
    str(path.relative_to(ROOT)): read_page(path)
    for path in sorted((ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
    if "/changes/" not in str(path) and "_build" not in str(path)
}
PROGRAMS = [name for name, page in READ.items() if page.program.strip()]
FOLDERS = [name for name, page in READ.items() if page.files or page.commands]
USER_PAGES = [
    name
    for name in READ
    if "/decisions/" not in name
    and Path(name).name not in PROJECT
    and name != COMMAND_LINE
]


@pytest.fixture
def cluster():
    """Run brokers for the programs."""
    with MockCluster() as running:
        yield running


def run(command, folder, *, timeout=100):
    """Run a command of a page, and return what it has written."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "PATH": path},
        check=False,
        shell=isinstance(command, str),
        timeout=timeout,
    )

    assert done.returncode == 0, done.stdout
    # A greenlet or a thread that fails only leaves a traceback.
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_a_page_run(name, cluster, tmp_path):
    """The blocks of a page run one after the other, with only the address replaced.

    Functions and tasks that a block defines are called.
    """
    program = READ[name].program
    # Not `logging.py`: a program that imports logging would get that.
    script = tmp_path / f"page_{Path(name).stem.replace('-', '_')}.py"
    script.write_text(program.replace(ADDRESS, cluster.bootstrap_servers))

    run([sys.executable, script], tmp_path)


# A page may start a web server, a load test and pytest.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FOLDERS)
def test_files_and_commands_of_a_page_run(name, cluster, tmp_path):
    """Files of a page do what its commands say, with only addresses replaced."""
    page = READ[name]
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        web = f"127.0.0.1:{free.getsockname()[1]}"

    def replaced(text):
        return text.replace(ADDRESS, cluster.bootstrap_servers).replace(WEB, web)

    for file, text in page.files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(replaced(text))
    with ExitStack() as stack:
        for command, expected in page.commands:
            if not command.startswith(NOT_RUN):
                output = run_command(replaced(command), tmp_path, web, stack)
                # On a busy machine Locust's 5 s may be over before its users begin.
                if command.startswith("locust ") and not shows(output, expected):
                    command = command.replace("5s", "30s")  # noqa: PLW2901 - again
                    output = run_command(replaced(command), tmp_path, web, stack)
                assert shows(output, expected), f"{command}\n{output}"
    if driver := DRIVERS.get(name):
        run([sys.executable, "-c", driver], tmp_path)
    used = " ".join([*(command for command, _ in page.commands), driver or ""])
    assert [file for file in page.files if not is_used(file, used, page)] == []


def shows(output, expected):
    """Return whether each line is part of an output; `...` stands for any text."""
    patterns = (".*".join(map(re.escape, line.split("..."))) for line in expected)
    return all(re.search(pattern, output) for pattern in patterns)


def is_used(file, commands, page):
    """Return whether a command, another file or a tool's convention runs a file."""
    others = (text for name, text in page.files.items() if name != file)
    return file in FOUND_BY_NAME or Path(file).stem in " ".join([commands, *others])


def run_command(command, folder, web, stack):
    """Run a command; a web server goes on until the page ends."""
    if posted := re.fullmatch(r"curl -d (\S+) (\S+)", command):
        request = urllib.request.Request(posted[2], posted[1].encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()
    if command == "python broker.py":
        broker = subprocess.Popen(
            [sys.executable, "broker.py"], cwd=folder, stdout=subprocess.PIPE
        )
        stack.callback(broker.wait, 30)
        stack.callback(broker.terminate)
        stack.callback(broker.stdout.close)
        return broker.stdout.readline().decode()
    if not command.startswith("gunicorn "):
        return run(command, folder)
    server = subprocess.Popen(
        [sys.executable, "-m", *command.split(), "--bind", web],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(server.wait, 30)
    stack.callback(server.terminate)
    host, port = web.split(":")
    deadline = monotonic() + 30
    while True:
        try:
            create_connection((host, int(port)), timeout=1).close()
        except OSError:
            assert monotonic() < deadline
            assert server.poll() is None
            sleep(0.05)
        else:
            return ""


@pytest.mark.parametrize("name", USER_PAGES)
def test_code_of_a_page_is_of_a_kind_that_runs(name):
    """No page for users has code that no test runs, unless it is no Python."""
    page = READ[name]

    assert page.indented == []
    assert page.languages - {"python", "console"} <= SHOWN | {
        each for each in page.languages if each.startswith("{")
    }


@pytest.mark.parametrize("name", [name for name, page in READ.items() if page.others])
def test_code_for_other_clients_compiles(name):
    """Code for clients that are compared with greendrop is Python at least."""
    for block in READ[name].others:
        compile(block, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


# Sphinx checks the links between the pages in docs, and knows nothing of these.
@pytest.mark.parametrize(
    "page",
    [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_of_a_page_lead_somewhere(page):
    """No link to a file of the checkout is dead, nor one to a heading of a page."""
    targets = [part.split(")")[0] for part in page.read_text().split("](")[1:]]

    assert [target for target in targets if is_dead(page, target)] == []


def is_dead(page, target):
    """Return whether a link of a page leads nowhere in the checkout."""
    name, _, anchor = target.partition("#")
    path = page.parent / name
    if "://" in target or not path.exists():
        return "://" not in target
    if not anchor:
        return False
    headings = re.findall("^#+ (.+)", path.read_text(), re.MULTILINE)
    slugs = [re.sub(r"[^\w -]", "", each).lower() for each in headings]
    return anchor not in [slug.replace(" ", "-") for slug in slugs]
