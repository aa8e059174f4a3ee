"""Forks: detecting them, and what this package does in the child.

Each use of a client checks a `ForkMarker`. `os.getpid()` is a system call each time,
and the hooks of `os.register_at_fork` don't run in children that were forked in C, as
uWSGI does.

Hooks of the child run in the order of their registration: first the one below, which
frees the locks that the others need; then those of modules that import this package.
`_client.client` drops the batches of its clients, which the parent sends, and `testing`
restarts its memory cluster.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import TYPE_CHECKING, Protocol

from greendrop._concurrency import hub, native

if TYPE_CHECKING:
    from collections.abc import Callable

#: MADV_WIPEONFORK of Linux 4.14: the child of a fork finds zeros in such memory,
#: however it was forked. Python's mmap module has no name for it.
_WIPE_ON_FORK = 18


class ForkMarker(Protocol):
    """Distinguishes the process that made it from that process's children.

    `marker[0]` is the same as `same_process`, for the hot path: reading an index of
    memory is the cheapest check that there is.
    """

    @property
    def same_process(self) -> bool:
        """Whether the caller is in the process that made the marker."""

    def __getitem__(self, index: int, /) -> int: ...


class _MemoryMarker(mmap.mmap):
    """A marker in memory that the system wipes at a fork."""

    __slots__ = ()

    @property
    def same_process(self) -> bool:
        return self[0] != 0


class PidMarker:
    """A marker for systems that can't wipe memory at a fork."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def same_process(self) -> bool:
        return os.getpid() == self._pid

    def __getitem__(self, index: int) -> int:
        return os.getpid() == self._pid


def fork_marker() -> ForkMarker:
    """Return a marker of this process."""
    try:
        page = _MemoryMarker(-1, 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (AttributeError, OSError, ValueError):
        return PidMarker()
    page[0] = 1
    return page


def _after_fork_in_child() -> None:
    native.free_locks_in_child()
    hub.note_inherited_hub()


os.register_at_fork(after_in_child=_after_fork_in_child)


def uwsgi_without_threads() -> bool:
    """Return whether Python's threads don't run while the program waits for requests.

    uWSGI without `enable-threads` keeps the interpreter's lock between requests.
    """
    return getattr(sys.modules.get("uwsgi"), "has_threads", 1) == 0


def under_uwsgi() -> bool:
    """Return whether a thread may be stopped for good at any point of its code.

    uWSGI's handler of SIGHUP runs in the main thread and waits there for the requests
    of all other threads. Locks that the main thread held at that moment stay held until
    the worker is killed.
    """
    return "uwsgi" in sys.modules


def register_multiprocessing_exit(function: Callable[[], object]) -> None:
    """Call a function when this process ends, if multiprocessing has started it.

    A forked child of multiprocessing ends by `os._exit`, without Python's exit
    handlers.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return
    # Loaded, because it contains the first function of the child. Priority 0 comes
    # before the wait for grandchildren, which may be long.
    util = sys.modules["multiprocessing.util"]
    util.Finalize(None, function, exitpriority=0)
