"""Whether this is the process that something was made in, told without a system call.

Every use of a client asks that first. `os.getpid()` is a system call each time, and
hooks such as `os.register_at_fork` are not run by those who fork in C, as uWSGI does.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Protocol

#: MADV_WIPEONFORK of Linux 4.14: a child finds zeros in this piece of memory, whoever
#: forked it. Python's mmap has no name for it.
_WIPE_ON_FORK = 18


class Mark(Protocol):
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


def mark() -> Mark:
    """Mark this process."""
    try:
        page = mmap.mmap(-1, 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (AttributeError, OSError, ValueError):
        return _Pid()
    page[0] = 1
    return page


def threads_stand_still() -> bool:
    """Tell whether Python's threads don't run while the program waits for work.

    uWSGI without `enable-threads` keeps the interpreter's lock between requests.
    """
    return getattr(sys.modules.get("uwsgi"), "has_threads", 1) == 0
