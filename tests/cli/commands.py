"""Helpers that run the command line in a process of its own, as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, Any, NamedTuple

#: Seconds for one command.
_LONGEST_WAIT = 40.0


class Done(NamedTuple):
    """The result of a command."""

    status: int
    stdout: str
    stderr: str


def start(*arguments: str, stderr: int | IO[Any] = subprocess.PIPE, **environment: str):
    """Start `greendrop` with these arguments, and keep its input open."""
    return subprocess.Popen(
        [sys.executable, "-m", "greendrop", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**_clean_environment(), **environment},
    )


def finish(process: subprocess.Popen[str], text: str | None = None) -> Done:
    """Send the rest of its input to a command, and wait until it ends."""
    try:
        stdout, stderr = process.communicate(text, timeout=_LONGEST_WAIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert "Traceback" not in (stderr or ""), stderr
    return Done(process.returncode, stdout, stderr)


def run(*arguments: str, text: str = "", **environment: str) -> Done:
    """Run `greendrop` with these arguments and this input, and return the result."""
    return finish(start(*arguments, **environment), text)


def _clean_environment() -> dict[str, str]:
    unwanted = "GREENDROP_BOOTSTRAP_SERVERS"
    return {key: value for key, value in os.environ.items() if key != unwanted}
