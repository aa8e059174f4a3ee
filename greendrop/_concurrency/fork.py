"""What kind of process this is, and whether it is the one that something was made in.

Every use of a client asks that first. `os.getpid()` is a system call each time, and
hooks such as `os.register_at_fork` are not run by those who fork in C, as uWSGI does.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

#: MADV_WIPEONFORK of Linux 4.14: a child finds zeros in this piece of memory, whoever
#: forked it. Python's mmap has no name for it.
_WIPE_ON_FORK = 18


class ForkMarker(Protocol):
    """`mark[0]` is true in the process that made the mark, and false in its children.

    Asked by an index because that is the cheapest question a piece of memory answers.
    """

    def __getitem__(self, index: int, /) -> int: ...


class _Pid:
    """A mark for systems that can't wipe memory at a fork."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int) -> int:
        return os.getpid() == self._pid


def fork_marker() -> ForkMarker:
    """Return a marker of this process."""
    try:
        page = mmap.mmap(-1, 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (AttributeError, OSError, ValueError):
        return _Pid()
    page[0] = 1
    return page


def uwsgi_without_threads() -> bool:
    """Tell whether Python's threads don't run while the program waits for work.

    uWSGI without `enable-threads` keeps the interpreter's lock between requests.
    """
    return getattr(sys.modules.get("uwsgi"), "has_threads", 1) == 0


def under_uwsgi() -> bool:
    """Tell whether a thread may be stopped for good in the midst of what it does.

    uWSGI's handler of SIGHUP waits for the requests of all other threads: in the main
    thread, whatever that was doing. What it held is held until the worker is killed.
    """
    return "uwsgi" in sys.modules


def register_multiprocessing_exit(function: Callable[[], object]) -> None:
    """Have a function called when this process ends, if multiprocessing has started it.

    Python's exit handlers don't run then: a forked child of multiprocessing ends by
    `os._exit`.
    """
    process: Any = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return
    # There, since that child's first function is in it. Ours comes before the wait for
    # grandchildren, which may be long.
    util: Any = sys.modules["multiprocessing.util"]
    util.Finalize(None, function, exitpriority=0)
