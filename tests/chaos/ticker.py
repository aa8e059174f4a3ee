"""An empty program with a hub: how long does this machine keep its ticker from running?

The hub of a load is compared with this one. Prints the longest gap in seconds at the
end of standard input.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import gevent
from gevent.fileobject import FileObject

from tests.tasks import LongestGap

if TYPE_CHECKING:
    from types import TracebackType


class EmptyTicker:
    """Runs the program beside a load. A context manager."""

    def __init__(self) -> None:
        #: The longest gap, in seconds; known at the end.
        self.gap = 0.0

    def __enter__(self) -> EmptyTicker:
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
    with LongestGap() as gap:
        FileObject(sys.stdin.fileno(), "rb", close=False).read()
        gevent.sleep(0)
    print(gap.seconds)


if __name__ == "__main__":
    main()
