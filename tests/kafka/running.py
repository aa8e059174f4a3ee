"""Programs started by tests: with a log, finite waits, and a certain end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

ROOT = Path(__file__).parents[2]

#: Seconds for one step of a program, such as to start or to end.
_LONGEST_WAIT = 60.0


class Program:
    """A program in a process of its own, run from the checkout's root.

    A context manager. At its end it prints the program's output, which pytest shows if
    the test fails.

    Args:
        *arguments: For the interpreter, such as "-m" and a module.
        log_file: Receives all output of the program.
        executable: The program; this Python by default.
        quiet: Whether its output is not printed at the end.
        **environment: Variables beside ours.
    """

    def __init__(
        self,
        *arguments: str,
        log_file: Path,
        executable: str = sys.executable,
        quiet: bool = False,
        **environment: str,
    ) -> None:
        self._log_file = log_file
        self._quiet = quiet
        with log_file.open("wb") as log:
            # The session is its own, so that the program ends with all its children.
            self._process = subprocess.Popen(
                [executable, *arguments],
                cwd=ROOT,
                env=_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None or self._process.poll() is None:
            # Its children end as well: a server that has ended may have left a worker.
            self.kill()
        self._process.wait(_LONGEST_WAIT)
        if not self._quiet:
            print(f"--- {self._process.args}\n{self.log}")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """The output so far."""
        return self._log_file.read_text(errors="replace")

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that it has written with `write_facts`."""
        facts: dict[str, Any] = {}
        for line in self.log.splitlines():
            if line.startswith(_FACTS):
                facts.update(json.loads(line.removeprefix(_FACTS)))
        return facts

    def terminate(self) -> None:
        """Send SIGTERM to the program, not to its children."""
        self._process.terminate()

    def kill(self) -> None:
        """End the program and its children at once (SIGKILL)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_LONGEST_WAIT)

    def signal(self, number: int) -> None:
        """Send a signal to the program, not to its children."""
        self._process.send_signal(number)

    def wait(self, seconds: float = _LONGEST_WAIT) -> int:
        """Wait for the end and return the exit status; negative: the signal.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        return self._process.wait(seconds)

    def wait_for(self, what: str, condition: Callable[[], object]) -> Any:
        """Wait until a condition holds, and return its value.

        Raises:
            AssertionError: It didn't in time, or the program has ended.
        """
        deadline = time.monotonic() + _LONGEST_WAIT
        while not (found := condition()):
            assert self._process.poll() is None, f"ended, before it {what}"
            assert time.monotonic() < deadline, f"not in time: it {what}"
            time.sleep(0.02)
        return found


_FACTS = "FACTS "


def write_facts(**facts: object) -> None:
    """Write facts for the test; called by programs."""
    print(_FACTS + json.dumps(facts), flush=True)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    # Variables of pytest and its plugins are not for the program.
    ours = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    return {
        **ours,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        # All stacks, should it crash in C.
        "PYTHONFAULTHANDLER": "1",
        **more,
    }
