"""Programs in interpreters of their own, in each of the ways that programs use gevent.

How gevent came into a program can't be tested in pytest's process: what is patched or
imported there stays so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

#: What a program does first.
MODES = {
    "none": "",
    "unpatched": "import gevent",
    "patched": "from gevent import monkey; monkey.patch_all()",
    "late": "import greendrop; from gevent import monkey; monkey.patch_all()",
}
# Then librdkafka's complaints about brokers that are meant to be down are left out of
# standard error, unless the program configures logging itself.
_QUIET = (
    "import logging as _logging;"
    " _logging.getLogger('greendrop.librdkafka').addHandler(_logging.NullHandler())"
)
# Then the names it was given are set, and then it runs.
_LAST = {"none": "import sys; assert 'gevent' not in sys.modules"}

#: Seconds until a program is ended with all it has started. None takes nearly as long.
_TIMEOUT = 30.0
_WARNINGS = (
    "-Wdefault",
    # Since Python 3.12 a fork warns when there are threads, librdkafka's too.
    "-Wignore:This process:DeprecationWarning",
)


class Ended(NamedTuple):
    """How a program went."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def start(source: str, mode: str, **names: object) -> subprocess.Popen[str]:
    """Start a program, as the leader of a process group; see `run`."""
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    lines = (MODES[mode], _QUIET, given, textwrap.dedent(source), _LAST.get(mode, ""))
    return subprocess.Popen(
        [sys.executable, "-Xfaulthandler", *_WARNINGS, "-c", "\n".join(lines)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = _TIMEOUT) -> Ended:
    """Wait for the end of a program that was started.

    Raises:
        AssertionError: It did not end in time. It is ended, with all it has started;
            the text says where its threads were.
    """
    began = time.monotonic()
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # faulthandler prints all stacks.
        os.killpg(process.pid, signal.SIGABRT)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=timeout)
        text = f"the program did not end within {timeout:g} s\n{stdout}\n{stderr}"
        raise AssertionError(text) from None
    return Ended(process.returncode, stdout, stderr, time.monotonic() - began)


def run(
    source: str,
    mode: str,
    *,
    fails: bool = False,
    timeout: float = _TIMEOUT,
    **names: object,
) -> Ended:
    """Run a program to its end.

    Args:
        source: Its text; indentation that all lines have is taken away.
        mode: A key of `MODES`. In mode "none" the program fails if anything has
            imported gevent.
        fails: Whether it may end with another exit code than 0, and write to stderr:
            there an exception would be told that nobody got.
        timeout: Seconds that it may take.
        **names: Names that it finds set, to what can be written as a literal.
    """
    ended = finish(start(source, mode, **names), timeout)
    if not fails:
        told = f"exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        assert (ended.returncode, ended.stderr) == (0, ""), told
    return ended
