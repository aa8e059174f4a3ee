"""A program that only ticks: how long does this machine stop the hub of any program?

The hub of a load is compared with this one. The program has one more thread, and its
hub waits for that thread all the time, since each hub has to wait for other threads of
its process now and then: for the interpreter's lock at least. A busy machine stops such
a thread as well. Prints the longest gap in seconds at the end of standard input.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

import gevent
from gevent.fileobject import FileObject

from tests.tasks import LongestGap

if TYPE_CHECKING:
    from types import TracebackType

#: Seconds between two waits for the thread, and until such a wait is an error.
_EVERY, _LONGEST = 0.002, 60.0


class EmptyProgram:
    """Runs the program beside a load. A context manager."""

    def __init__(self) -> None:
        #: The longest gap, in seconds; known at the end.
        self.gap = 0.0

    def __enter__(self) -> EmptyProgram:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.ticker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        text, _ = self._process.communicate(timeout=30)
        self.gap = float(text)


def main() -> None:
    """Measure until the end of standard input."""
    asked: SimpleQueue[bool] = SimpleQueue()
    answered: SimpleQueue[bool] = SimpleQueue()

    def answer() -> None:
        while asked.get():
            answered.put(item=True)

    def ask() -> None:
        while True:
            gevent.sleep(_EVERY)
            asked.put(item=True)
            answered.get(timeout=_LONGEST)

    threading.Thread(target=answer, daemon=True).start()
    with LongestGap() as gap:
        asking = gevent.spawn(ask)
        FileObject(sys.stdin.fileno(), "rb", close=False).read()
        asking.kill()
    print(gap.seconds)


if __name__ == "__main__":
    main()
