"""Programs in fresh interpreters, in each of the ways that programs use gevent.

pytest's process can't test how gevent is imported: what is patched or imported there
stays so.
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

#: The first statements of a program, by mode.
MODES = {
    "none": "",
    "unpatched": "import gevent",
    "patched": "from gevent import monkey; monkey.patch_all()",
    "late": "import greendrop; from gevent import monkey; monkey.patch_all()",
}
# Next: keep librdkafka's complaints about brokers that are meant to be down out of
# standard error, unless the program configures logging itself.
_QUIET = (
    "import logging as _logging;"
    " _logging.getLogger('greendrop.librdkafka').addHandler(_logging.NullHandler())"
)
# The last statements of a program, after the given names and its source.
_LAST = {"none": "import sys; assert 'gevent' not in sys.modules"}

#: Seconds until a program and its children are killed. None takes nearly as long.
_TIMEOUT = 30.0
_WARNINGS = (
    "-Wdefault",
    # Since Python 3.12 a fork warns when there are threads, librdkafka's too.
    "-Wignore:This process:DeprecationWarning",
    "-Wignore:libuv only supports millisecond timer resolution:UserWarning",
)


class Ended(NamedTuple):
    """The result of a program."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def start(source: str, mode: str, **names: object) -> subprocess.Popen[str]:
    """Start a program as the leader of a process group; see `run`."""
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
    """Wait for a started program to end.

    Raises:
        AssertionError: The program did not end in time, and was killed with children;
            the text has the stacks of its threads.
    """
    started = time.monotonic()
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
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Ended(process.returncode, stdout, stderr, time.monotonic() - started)


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
        source: The program; common indentation is removed.
        mode: A key of `MODES`. In mode "none" the program fails if anything has
            imported gevent.
        fails: Whether it may end with another exit code than 0 and write to stderr,
            where uncaught exceptions are printed.
        timeout: Seconds that it may take.
        **names: Names that the program finds set, to values that have a literal.
    """
    ended = finish(start(source, mode, **names), timeout)
    if not fails:
        output = f"exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        assert (ended.returncode, ended.stderr) == (0, ""), output
    return ended
