"""Threads and file descriptors of this process, as Linux lists them."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from greendrop._concurrency import native
from tests import tasks

_PROC = Path("/proc/self")
#: What Linux calls the descriptor of an event loop; all of them have this target.
_EVENT_LOOP = "anon_inode:[eventpoll]"


class Open(NamedTuple):
    """What the process has open: threads by id, and descriptors with their targets."""

    threads: set[str]
    files: set[tuple[str, str]]

    @classmethod
    def now(cls) -> Open:
        """Take stock; nothing is found where there is no /proc."""
        if not _PROC.exists():
            return cls(set(), set())
        files = set()
        for file in (_PROC / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                files.add((file.name, str(file.readlink())))
        return cls({each.name for each in (_PROC / "task").iterdir()}, files)

    def left_open(self, seconds: float) -> list[str]:
        """Describe what is open now and was not before.

        Args:
            seconds: How long threads may take to end, and descriptors to close.
        """
        deadline = time.monotonic() + seconds
        while True:
            now = Open.now()
            threads, files = now.threads - self.threads, self._new_files(now)
            if not threads and not files:
                return []
            # Objects without references may be closed by their destructor.
            gc.collect()
            if time.monotonic() > deadline:
                break
            tasks.sleep(0.01)
        # On a busy machine a thread may end just now.
        names = [name for each in sorted(threads) if (name := _thread_name(each))]
        stacks = _stacks() if names else []
        return [
            *(f"thread {name}" for name in names),
            *(f"file descriptor {number} of {of}" for number, of in sorted(files)),
            *(f"perhaps the thread at\n{each}" for each in stacks),
        ]

    def _new_files(self, now: Open) -> set[tuple[str, str]]:
        """Return the descriptors of `now` that are new, except for replaced loops.

        In a forked child an event loop closes its epoll descriptor and opens another.
        A thread that opens a socket between the two gets the old number, and the loop a
        new one.
        """
        new, gone = now.files - self.files, self.files - now.files
        loops = [each for each in new if each[1] == _EVENT_LOOP]
        replaced = sum(target == _EVENT_LOOP for _, target in gone)
        return new - set(loops[:replaced])


def _stacks() -> list[str]:
    """Return the stacks of Python's other threads.

    Python knows no thread by the number that Linux gives it, so these are all of them.
    """
    return [
        "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
        if ident != native.get_ident()
    ]


def _thread_name(number: str) -> str | None:
    """Return the name of a thread; None if it has ended."""
    try:
        return (_PROC / "task" / number / "comm").read_text().strip() or number
    except OSError:
        return None
